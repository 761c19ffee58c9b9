"""media.video: GIFs, animated WebPs and animated PNGs are videos, with the frames and times that they show."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from media.files import is_video
from media.transcode import transcode
from media.video import VideoReader, frames
from tests.media.test_video import near
from torch_utils.errors import UserError

av = pytest.importorskip("av")


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animations_are_videos_in_every_format(tmp_path, suffix):
    images = [Image.new("RGB", (32, 16), (80 * i, 255 - 80 * i, 0)) for i in range(4)]
    options = {"lossless": True} if suffix == ".webp" else {}
    images[0].save(
        tmp_path / f"a{suffix}", save_all=True, append_images=images[1:], duration=[40, 80, 120, 40], **options
    )
    images[0].save(tmp_path / f"still{suffix}")
    assert is_video(tmp_path / f"a{suffix}") and not is_video(tmp_path / f"still{suffix}")
    found = list(frames(tmp_path / f"a{suffix}"))
    expected = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]
    assert len(found) == 4
    for frame, image in zip(found, expected, strict=True):
        assert (frame.int() - image.int()).abs().max() <= 3
    done = transcode(tmp_path / f"a{suffix}", tmp_path / "b.mp4", lambda x: x)
    assert (done.frames, done.damaged) == (4, 0)
    with av.open(str(tmp_path / "b.mp4")) as made:
        times = [float(frame.pts * frame.time_base) for frame in made.decode(video=0)]
    assert times == pytest.approx([0, 0.04, 0.12, 0.24], abs=0.011)


def test_the_last_frame_stays_as_long_as_it_did(tmp_path):
    images = [Image.new("RGB", (32, 16), (80 * i, 0, 0)) for i in range(3)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=[500, 500, 4000])
    for name in ("b.mp4", "b.mov"):
        transcode(tmp_path / "a.gif", tmp_path / name, lambda x: x)
        with av.open(str(tmp_path / name)) as made:
            assert made.duration / av.time_base == pytest.approx(5, abs=0.02)
            found = [float(packet.duration * packet.time_base) for packet in made.demux(video=0) if packet.size]
        assert found == pytest.approx([0.5, 0.5, 4], abs=0.02)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_transparent_pixels_of_animations_are_white(tmp_path, suffix):
    """As those of images, whatever colour they hide; half transparent ones are half white."""
    images = []
    for i in range(3):
        image = Image.new("RGBA", (32, 16), (200, 0, 0, 255))
        image.paste((10, 200, 30, 0), (0, 0, 16, 16))
        image.putpixel((20, 4), (0, 0, 100 + i, 128 if suffix != ".gif" else 255))
        images.append(image)
    options = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    images[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=images[1:], duration=40, **options)
    for i, frame in enumerate(frames(tmp_path / f"a{suffix}")):
        assert near(frame[:, 4, 4].tolist(), [255] * 3) and near(frame[:, 12, 28].tolist(), [200, 0, 0])
        if suffix != ".gif":
            assert near(frame[:, 4, 20].tolist(), [127, 127, 127 + (100 + i) / 2])


def test_animations_that_are_cut_off_are_broken_images(tmp_path):
    """At whatever byte: counting a GIF's frames reads all of it, and Pillow raises many kinds of errors."""
    for suffix, image_format in ((".gif", "GIF"), (".png", "PNG"), (".webp", "WEBP")):
        images = [Image.fromarray(np.random.default_rng(i).integers(0, 256, [9, 11, 3], np.uint8)) for i in range(3)]
        whole = io.BytesIO()
        images[0].save(whole, image_format, save_all=True, append_images=images[1:])
        for length in range(0, len(whole.getvalue()), 1 if suffix == ".gif" else 9):
            (tmp_path / f"a{suffix}").write_bytes(whole.getvalue()[:length])
            is_video(tmp_path / f"a{suffix}")  # says one or the other


def animated_webp(images, milliseconds, exif=b""):
    """An animated WebP with a frame for each image, also for equal ones, which Pillow makes one of."""

    def chunk(name, data):
        return name + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2)

    def number(value):
        return value.to_bytes(3, "little")

    width, height = (number(side - 1) for side in images[0].size)
    flags = bytes([0x12 | (0x08 if exif else 0), 0, 0, 0])  # animated, transparent, with EXIF
    content = b"WEBP" + chunk(b"VP8X", flags + width + height) + chunk(b"ANIM", b"\xff\xff\xff\xff\0\0")
    for image, duration in zip(images, milliseconds, strict=True):
        image.save(buffer := io.BytesIO(), "WEBP", lossless=True)
        frame = number(0) * 2 + width + height + number(duration) + b"\x02"
        content += chunk(b"ANMF", frame + buffer.getvalue()[12:])
    return chunk(b"RIFF", content + (chunk(b"EXIF", exif) if exif else b""))


@pytest.mark.parametrize("shown", ["aa", "aaa", "ab", "aab", "abb", "baabbb"])
@pytest.mark.parametrize("duration", [40, 80_000, 1_000_000])
def test_equal_frames_of_an_animation_are_frames(tmp_path, shown, duration):
    """All equal ones too, and each stays as long as it did: up to more than four hours in a WebP."""
    images = {"a": Image.new("RGB", (32, 16), (200, 0, 0)), "b": Image.new("RGB", (32, 16), (0, 0, 200))}
    data = animated_webp([images[letter] for letter in shown], [duration] * len(shown))
    (tmp_path / "a.webp").write_bytes(data)
    assert is_video(tmp_path / "a.webp")
    found = ["ba"[int(frame[0, 8, 16]) > 100] for frame in frames(tmp_path / "a.webp")]
    assert "".join(found) == shown
    assert transcode(tmp_path / "a.webp", tmp_path / "b.mp4", lambda x: x).frames == len(shown)
    with av.open(str(tmp_path / "b.mp4")) as made:
        assert made.duration / av.time_base == pytest.approx(duration * len(shown) / 1000, rel=0.01)
        times = [float(frame.pts * frame.time_base) for frame in made.decode(video=0)]
    assert times == pytest.approx([duration * i / 1000 for i in range(len(shown))], rel=0.01, abs=0.011)


def test_frames_of_a_turned_animation_are_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation: to be turned by a quarter
    images = [Image.new("RGB", (32, 16), (80 * i, 0, 0)) for i in range(3)]
    (tmp_path / "a.webp").write_bytes(animated_webp(images, [40] * 3, exif.tobytes()))
    assert [tuple(frame.shape) for frame in frames(tmp_path / "a.webp")] == [(3, 32, 16)] * 3


def test_an_animation_is_measured_before_it_is_decoded(tmp_path, monkeypatch):
    images = [Image.new("RGB", (64, 64), (12 * i, 0, 0)) for i in range(20)]
    images[0].save(tmp_path / "a.webp", save_all=True, append_images=images[1:], duration=40, lossless=True)
    monkeypatch.setattr("media.video.MAX_ANIMATION_PIXELS", 19 * 64 * 64)
    monkeypatch.setattr("media.video.decode_image", lambda *args: pytest.fail("a frame was decoded"))
    with pytest.raises(UserError, match="pixels in all frames"):
        VideoReader(tmp_path / "a.webp")
