"""Writes animations one frame at a time: videos with PyAV, GIF and WebP with Pillow, APNG with Pillow's PNGs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import BinaryIO

from PIL import GifImagePlugin, Image
from torch import Tensor

from media import video_writer
from media.alpha import on_chequerboard
from media.apng import write_apng
from media.images import to_pillow
from torch_utils.errors import DiskFull, UserError
from torch_utils.files import DISK_FULL_ERRORS, atomic_write, make_folder

MAX_GIF_RATE = 50  # frames per second; browsers slow down faster ones
TRANSPARENT = (".webp", ".apng")
MAX_SIDE = {".gif": 65535, ".webp": 16383, ".apng": 65535}  # pixels of a frame's longer side
MAX_SIDE_H264 = 16384  # the limit of x264


def check_animation(path: str | os.PathLike, rate: float) -> None:
    """Raises UserError if the extension is of no known format, or if the format does not support the frame rate."""
    suffix = Path(path).suffix.lower()
    if suffix == ".gif" and rate > MAX_GIF_RATE:
        raise UserError(
            f"{path}: a GIF plays up to {MAX_GIF_RATE} frames per second; use --fps {MAX_GIF_RATE}, or write .webp"
        )
    if suffix not in (*WRITERS, *video_writer.FORMATS):
        known = ", ".join([*video_writer.FORMATS, *WRITERS])
        raise UserError(f"cannot write {path}: animations are written as {known}; name such a file with --out")


def check_side(path: str | os.PathLike, pixels: int, remedy: str) -> None:
    """Raises UserError if the format does not support frames whose longer side has this many pixels."""
    limit = MAX_SIDE.get(Path(path).suffix.lower(), MAX_SIDE_H264)
    if pixels > limit:
        raise UserError(f"{path}: each side of a frame is limited to {limit:,} pixels, not {pixels:,}; {remedy}")


def write_animation(path: str | os.PathLike, frames: Iterator[Tensor], count: int, rate: float) -> None:
    """Writes `count` frames uint8 [C, H, W] at `rate` per second, in the format of the extension, atomically.

    C is 3, or 4 for frames with premultiplied alpha: WebP and APNG keep it, others show a chequerboard behind it. GIF,
    WebP and APNG repeat forever. Memory holds one frame at a time, and the compressed part of a WebP.
    Raises UserError if the file cannot be written, and DiskFull if there is no room for it.
    """
    path = Path(path)
    check_animation(path, rate)
    suffix = path.suffix.lower()
    if suffix not in TRANSPARENT:
        frames = (on_chequerboard(frame[None])[0] for frame in frames)
    if suffix in video_writer.FORMATS:
        with video_writer.VideoWriter(path, rate) as writer:
            for frame in frames:
                writer.write(frame)
        return
    make_folder(path.parent)
    try:
        with atomic_write(path) as file:
            WRITERS[suffix](file, map(to_pillow, frames), count, rate)
    except OSError as error:
        reason = error.strerror or error
        if error.errno in DISK_FULL_ERRORS:
            raise DiskFull(f"no room for {path} ({reason})") from None
        raise UserError(f"cannot write {path}: {reason}; name another place with --out") from None


def _durations(count: int, rate: float, unit: int) -> list[int]:
    """How long each frame is shown, in whole fractions 1/`unit` of a second, without a rounding error of the sum."""
    times = [round(i * unit / rate) for i in range(count + 1)]
    return [after - before for before, after in pairwise(times)]


def _write_gif(file: BinaryIO, images: Iterator[Image.Image], count: int, rate: float) -> None:
    """Writes each frame with 256 colours of its own. Pillow's `save` would keep all frames in memory."""
    for i, (image, hundredths) in enumerate(zip(images, _durations(count, rate, 100), strict=True)):
        frame = image.quantize(256)
        if i == 0:
            file.writelines(GifImagePlugin.getheader(frame.copy(), info={"loop": 0})[0])
        file.writelines(GifImagePlugin.getdata(frame, duration=10 * hundredths, include_color_table=True))
    file.write(b";")  # the trailer


class _Frames(Image.Image):
    """An animated image for Pillow's `save`, which takes each frame from an iterator when it seeks to it."""

    def __init__(self, images: Iterator[Image.Image], count: int):
        super().__init__()
        first = next(images)
        self._images, self._position, self.n_frames = chain([first], images), -1, count
        self._mode, self._size, self.im = first.mode, first.size, first.im

    def seek(self, frame: int) -> None:
        if frame == self._position + 1:
            self.im, self._position = next(self._images).im, frame

    def tell(self) -> int:
        return 0


def _write_webp(file: BinaryIO, images: Iterator[Image.Image], count: int, rate: float) -> None:
    durations = _durations(count, rate, 1000)
    _Frames(images, count).save(
        file, "WEBP", save_all=True, duration=durations, loop=0, quality=90, method=4, minimize_size=False
    )


def _write_apng(file: BinaryIO, images: Iterator[Image.Image], count: int, rate: float) -> None:
    write_apng(file, images, _durations(count, rate, 1000))


WRITERS = {".gif": _write_gif, ".webp": _write_webp, ".apng": _write_apng}
