"""Short videos with what a test needs, and their times and sound."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")

RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 220, 30), (30, 30, 220), (220, 220, 220)


def quarters(height: int = 48, width: int = 64) -> np.ndarray:
    """Red and green above, blue and white below."""
    image = np.empty((height, width, 3), np.uint8)
    image[: height // 2, : width // 2], image[: height // 2, width // 2 :] = RED, GREEN
    image[height // 2 :, : width // 2], image[height // 2 :, width // 2 :] = BLUE, WHITE
    return image


def grey(i: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), 20 + 8 * i, np.uint8)


def make(
    path: Path, images: list[np.ndarray], *, times=None, base=None, rate=25, codec="libx264", sound=None,
    shape=Fraction(1), rotation=0, matrix=None, begin=0, unsaid=False,
) -> Path:  # fmt: skip
    """A video; `times` in units of `base`, `sound` the names of codecs of its tracks."""
    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=rate)
        video.height, video.width = images[0].shape[:2]
        video.pix_fmt = {"ffv1": "yuv444p", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        video.codec_context.time_base = base or Fraction(1, rate)
        video.codec_context.sample_aspect_ratio = shape
        if matrix:
            video.codec_context.colorspace = matrix
        if rotation:
            video.set_display_rotation(rotation)
        tracks = [out.add_stream(name, rate=48000, layout="stereo") for name in sound or []]
        for track in tracks:
            track.bit_rate = 128_000
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image)
            frame = frame.reformat(format=video.pix_fmt, dst_colorspace="itu709" if matrix == 1 or unsaid else None)
            frame.pts, frame.time_base = times[i] if times else begin * rate + i, base or Fraction(1, rate)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        wave = (np.sin(np.arange(48000 * len(images) // rate) / 17) * 9000).astype(np.int16)
        for track in tracks:
            block = av.AudioFrame.from_ndarray(np.repeat(wave, 2)[None], format="s16", layout="stereo")
            block.sample_rate, block.pts = 48000, 48000 * begin
            out.mux(track.encode(block))
            out.mux(track.encode(None))
    return path


def times(path: Path) -> list[Fraction]:
    """The seconds at which the frames are shown."""
    with av.open(str(path)) as file:
        return [frame.pts * frame.time_base for frame in file.decode(video=0)]


def sound(path: Path, track: int = 0) -> list[tuple]:
    """Time and bytes of a sound track's packets."""
    with av.open(str(path)) as file:
        return [(p.pts * p.time_base, bytes(p)) for p in file.demux(audio=track) if p.size]
