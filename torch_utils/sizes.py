"""Sizes of images: which ones the networks can make, and how they are written.

A network doubles a constant of h₀ × w₀ pixels n times, so that its images have h₀·2ⁿ × w₀·2ⁿ pixels. StyleGAN2 starts
from 4 × 4; here h₀ and w₀ go from 3 to 16, and n from 2 on.

A resolution is the side of a square, or width and height in this order, as in image programs: `64` or `96x64` on the
command line, 64 or (96, 64) in Python, 64 or [96, 64] in JSON. Tensors have the height first: [N, C, 64, 96].
"""

from __future__ import annotations

import math
import re
from typing import Any

Resolution = int | tuple[int, int]  # the side of a square, or width and height where they differ

MIN_START, MAX_START = 3, 16  # sides of the constant
MIN_DOUBLINGS = 2
MAX_SIDE = 8192  # pixels
RULE = "docs/data.md#sizes"  # which says in words what sizes are possible


def width_and_height(resolution: Resolution) -> tuple[int, int]:
    """(64, 64) for 64."""
    return (resolution, resolution) if isinstance(resolution, int) else resolution


def to_resolution(size: Any) -> Resolution:
    """The resolution of a width and a height, or itself: 64 for (64, 64). Raises ValueError if it is no resolution."""
    match size:
        case int(side) if not isinstance(side, bool):
            return side
        case [int(width), int(height)] if not isinstance(width, bool) and not isinstance(height, bool):
            return width if width == height else (width, height)
    raise ValueError(f"expected a side, or width and height, got {str(size)[:40]!r}")


def parse_resolution(text: str) -> Resolution:
    """The resolution that `64` or `96x64` names. Raises ValueError if the text is of another form."""
    match = re.fullmatch(r"(\d{1,6})(?:[x×](\d{1,6}))?", text.strip(), re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is not a size; write e.g. 64, or width x height: 96x64")
    return to_resolution((int(match[1]), int(match[2] or match[1])))


def size_text(resolution: Resolution) -> str:
    """Width x height: `64x64` or `96x64`."""
    return "{}x{}".format(*width_and_height(resolution))


def size_option(resolution: Resolution) -> str:
    """As it is typed after --resolution: `64` or `96x64`."""
    return str(resolution) if isinstance(resolution, int) else size_text(resolution)


def block_sizes(resolution: Resolution) -> list[tuple[int, int]]:
    """Height and width of each of a network's blocks, from the constant to the image.

    There are as many blocks as possible: the constant is so small that it could not be halved.
    Raises ValueError for a size that networks cannot have.
    """
    width, height = width_and_height(resolution)
    sizes = [(height, width)]
    if max(sizes[0]) <= MAX_SIDE:
        while all(side % 2 == 0 and side // 2 >= MIN_START for side in sizes[0]):
            sizes.insert(0, (sizes[0][0] // 2, sizes[0][1] // 2))
    if len(sizes) <= MIN_DOUBLINGS or max(sizes[0]) > MAX_START:
        raise ValueError(f"resolution: {no_size_message(resolution)}")
    return sizes


def is_possible(resolution: Resolution) -> bool:
    """Whether networks can make images of this size."""
    try:
        return bool(block_sizes(resolution))
    except ValueError:
        return False


def nearest_sizes(resolution: Resolution) -> list[Resolution]:
    """The largest possible size that fits into this one, and the smallest one that it fits into, where there are such.

    For 50 these are 48 and 52, and for (1280, 720) they are (1280, 640) and (1280, 768).
    """
    width, height = width_and_height(resolution)
    inside, around = [], []
    step = 1 << MIN_DOUBLINGS
    while step * MIN_START <= MAX_SIDE:
        least, most = MIN_START * step, min(MAX_START * step, MAX_SIDE)
        if min(width, height) >= least:
            inside.append(tuple(min(side - side % step, most) for side in (width, height)))
        if max(width, height) <= most:
            around.append(tuple(max(side + -side % step, least) for side in (width, height)))
        step *= 2
    nearest = [*sorted(inside, key=math.prod)[-1:], *sorted(around, key=math.prod)[:1]]
    return [to_resolution(size) for size in dict.fromkeys(nearest)]


def no_size_message(resolution: Resolution) -> str:
    """That networks cannot have this size, and which ones are nearest, for a message."""
    sizes = " and ".join(map(size_option, nearest_sizes(resolution)))
    nearest = f"; {sizes} {'are' if ' and ' in sizes else 'is'} nearest" if sizes else ""
    return f"{size_text(resolution)} is no size for a model{nearest} (see {RULE})"


def nominal_sides(resolution: Resolution) -> list[int]:
    """For each block the power of two that is nearest to √(h·w), on which its number of channels depends.

    For squares of powers of two it is the side itself. Halfway between two powers it is the smaller one.
    Raises ValueError as `block_sizes` does.
    """
    sizes = block_sizes(resolution)
    height, width = sizes[0]
    start = 1 << ((height * width - 1).bit_length() // 2)  # 2 to the power of log2 √(h·w), rounded, halves down
    return [start << i for i in range(len(sizes))]


def nominal_side(resolution: Resolution) -> int:
    """That of the last block: what a square would have as its side. Raises ValueError as `block_sizes` does."""
    return nominal_sides(resolution)[-1]
