"""Moving images from frames that come one at a time: videos through PyAV, GIF and WebP through Pillow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import BinaryIO

from PIL import GifImagePlugin, Image
from torch import Tensor

from media import video
from torch_utils.errors import DiskFull, UserError
from torch_utils.files import FULL, atomic_write, make_folder

GIF_RATE = 50  # frames a second: browsers slow down what is faster
SIDES = {".gif": 65535, ".webp": 16383}  # pixels that a frame may have a side
SIDE_H264 = 16384  # ... with x264


def check_animation(path: str | os.PathLike, rate: float) -> None:
    """Raises UserError where the extension is none that can be written, or the format cannot have that rate."""
    suffix = Path(path).suffix.lower()
    if suffix == ".gif" and rate > GIF_RATE:
        raise UserError(f"{path}: GIF has at most {GIF_RATE} frames a second; take --fps {GIF_RATE} or less, or .webp")
    if suffix not in (".gif", ".webp", *video.WRITTEN):
        known = ", ".join([*video.WRITTEN, ".gif", ".webp"])
        raise UserError(f"cannot write {path}: moving images are written as {known}; name such a file with --out")


def check_side(path: str | os.PathLike, pixels: int) -> None:
    """Raises UserError where the format cannot have frames of so many pixels a side."""
    most = SIDES.get(Path(path).suffix.lower(), SIDE_H264)
    if pixels > most:
        raise UserError(f"{path}: a frame has at most {most} pixels a side, not {pixels}; take a smaller --grid")


def write_animation(path: str | os.PathLike, frames: Iterator[Tensor], count: int, rate: float) -> None:
    """Writes `count` frames uint8 [3, H, W] at `rate` a second, as the extension says; GIF and WebP repeat for ever.

    One frame is in memory at a time, and of WebP what is compressed so far. The file is whole or not there. Raises
    UserError where it cannot be written, DiskFull where there is no room.
    """
    path = Path(path)
    check_animation(path, rate)
    if path.suffix.lower() in video.WRITTEN:
        with video.VideoWriter(path, rate) as writer:
            for frame in frames:
                writer.write(frame)
        return
    make_folder(path.parent)
    images = (Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()) for frame in frames)
    try:
        with atomic_write(path) as file:
            (_write_gif if path.suffix.lower() == ".gif" else _write_webp)(file, images, count, rate)
    except OSError as error:
        reason = error.strerror or error
        if error.errno in FULL:
            raise DiskFull(f"no room for {path} ({reason})") from None
        raise UserError(f"cannot write {path}: {reason}; name another place with --out") from None


def _durations(count: int, rate: float, unit: int) -> list[int]:
    """How long each frame is shown, in whole units of a second, so that the sum is right."""
    times = [round(i * unit / rate) for i in range(count + 1)]
    return [after - before for before, after in pairwise(times)]


def _write_gif(file: BinaryIO, images: Iterator[Image.Image], count: int, rate: float) -> None:
    """Frame by frame, each with its own 256 colours; Pillow's `save` would keep all frames until the end."""
    for i, (image, hundredths) in enumerate(zip(images, _durations(count, rate, 100), strict=True)):
        frame = image.quantize(256)
        if i == 0:
            file.writelines(GifImagePlugin.getheader(frame.copy(), info={"loop": 0})[0])
        file.writelines(GifImagePlugin.getdata(frame, duration=10 * hundredths, include_color_table=True))
    file.write(b";")  # the trailer


class _Frames(Image.Image):
    """An image of several frames that are made as Pillow asks for them."""

    def __init__(self, images: Iterator[Image.Image], count: int):
        super().__init__()
        first = next(images)
        self._images, self._at, self.n_frames = chain([first], images), -1, count
        self._mode, self._size, self.im = first.mode, first.size, first.im

    def seek(self, frame: int) -> None:
        if frame == self._at + 1:
            self.im, self._at = next(self._images).im, frame

    def tell(self) -> int:
        return 0


def _write_webp(file: BinaryIO, images: Iterator[Image.Image], count: int, rate: float) -> None:
    durations = _durations(count, rate, 1000)
    _Frames(images, count).save(
        file, "WEBP", save_all=True, duration=durations, loop=0, quality=90, method=4, minimize_size=False
    )
