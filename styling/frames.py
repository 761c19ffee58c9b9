"""Sequences: numbered images of a folder as the frames of one film."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from media.files import IMAGE_FORMATS, is_video, read_image, stored_size, write_image
from styling.apply import Progress, check_size
from styling.films import FrameFunction, batch_for
from torch_utils.errors import UserError


def frame_paths(frames: Sequence[Path], folder: Path, suffix: str | None = None) -> list[Path]:
    """Where the stylized frames are written: in `folder`, under their own names.

    They have the extension `suffix`, or with None their own, or .png if images of that kind cannot be written. Raises
    UserError if two frames would have the same name.
    """
    outs: dict[Path, Path] = {}
    for frame in frames:
        kept = suffix or (frame.suffix if frame.suffix.lower() in IMAGE_FORMATS else ".png")
        out = folder / f"{frame.stem}{kept}"
        if out in outs:
            raise UserError(f"{outs[out]} and {frame.name} would both be written to {out}; rename one of them")
        outs[out] = frame
    return list(outs)


def check_frames(frames: Sequence[Path]) -> None:
    """Raises UserError if images cannot be the frames of one film, which is found out without decoding them."""
    first = None
    for frame in frames:
        if is_video(frame):
            raise UserError(f"{frame} moves by itself, and --sequence is for still images; move it out of the folder")
        size = stored_size(frame)
        first = size if first is None else first
        if sorted(size) != sorted(first):  # some may lie on their side, and are turned when they are read
            raise UserError(other_size(frame, size, frames[0], first))


def other_size(frame: Path, size: tuple[int, int], first: Path, expected: tuple[int, int]) -> str:
    """A message that a frame has another (width, height) than the first one."""
    (width, height), (w, h) = size, expected
    return (
        f"{frame} has {width}x{height} pixels, and {first.name} {w}x{h}, but the frames of a film have one size; "
        "resize it, or leave out --sequence"
    )


def stylize_sequence(
    frames: Sequence[Path],
    outs: Sequence[Path],
    stylize: FrameFunction,
    batch: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Stylizes images in their order as the frames of one film, and writes each to its place in `outs`.

    Args:
        stylize: what has stylized no frames of another film before.
        batch: number of frames stylized together; None to choose by their size.

    Raises:
        UserError: if an image cannot be read, is too small or of another size than the first, or cannot be written.
        DiskFull: if there is no space for a result.
    """
    first = read_image(frames[0])
    _, height, width = first.shape
    size = check_size(stylize.model, frames[0], height, width, stylize.settings.max_side, even=True)
    batch = batch_for(stylize.model, *size) if batch is None else batch
    for start in range(0, len(frames), batch):
        part = slice(start, start + batch)
        images = [read_image(frame, min_side=1) for frame in frames[part]]
        for frame, image in zip(frames[part], images, strict=True):
            if image.shape != first.shape:
                raise UserError(other_size(frame, (image.shape[2], image.shape[1]), frames[0], (width, height)))
        for number, image in enumerate(stylize(torch.stack(images)), start):
            write_image(image, outs[number])
            if progress is not None:
                progress(number + 1, len(frames))
