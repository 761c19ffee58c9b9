"""Averages over contents that are moved on the encoder's grid: what keeps to the grid, and not to the content, cancels.

The encoder halves an image three times, so that its features have one position for each cell of 8 × 8 pixels. The
decoder enlarges them again, and what it draws into even areas, where the content says nothing, repeats from cell to
cell. In a content without its first rows and columns the cells lie elsewhere: so does that pattern, but nothing else,
and the mean of the images has less of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from networks.vgg import STRIDE

HALF = STRIDE // 2
Shift = tuple[int, int]  # pixels that are cut off at the top and at the left
# By the number of contents: in one place, in two along the diagonal, and in four.
SHIFTS: dict[int, tuple[Shift, ...]] = {
    1: ((0, 0),),
    2: ((0, 0), (HALF, HALF)),
    4: ((0, 0), (0, HALF), (HALF, 0), (HALF, HALF)),
}


def moved(content: Tensor, shift: Shift) -> Tensor:
    """Images [..., H, W] without their first rows and columns, so that the grid begins elsewhere in them."""
    top, left = shift
    return content[..., top:, left:]


def average(images: Sequence[Tensor]) -> Tensor:
    """The mean of uint8 images of one shape, rounded."""
    if len(images) == 1:
        return images[0]
    total = torch.zeros_like(images[0], dtype=torch.int32)
    for image in images:
        total += image
    return ((total + len(images) // 2) // len(images)).to(torch.uint8)
