"""Masks, which say where a style applies: read from images, softened, and used to blend images."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from media.files import read_image
from styling.color import luma
from torch_utils.errors import UserError


def read_mask(path: str | os.PathLike, size: tuple[int, int] | None = None) -> Tensor:
    """Reads a mask from an image: float [1, H, W], 1 where the image is white and 0 where it is black.

    Colours are converted to their luma, and transparent pixels are black.

    Args:
        size: (height, width) of the content, which the mask must have as well; None for the frames of a film, to which
            a mask of any size is resized.

    Raises:
        UserError: if the image cannot be read or has another size.
    """
    image = read_image(path, min_side=1, background=(0, 0, 0))
    if size is not None and image.shape[1:] != size:
        height, width = image.shape[1:]
        raise UserError(
            f"the mask {Path(path)} has {width}x{height} pixels, but the content {size[1]}x{size[0]}; "
            "resize the mask to the content's size"
        )
    return mask_of(image)


def mask_of(image: Tensor) -> Tensor:
    """The mask [1, H, W] that an image, uint8 [3, H, W], stands for."""
    return (luma(image.float()) / 255).clamp(0, 1)


def resize_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask [1, H, W] in another (height, width)."""
    if tuple(mask.shape[1:]) == tuple(size):
        return mask
    return F.interpolate(mask[None], list(size), mode="bilinear", antialias=True, align_corners=False)[0]


def soften(masks: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of [..., 1, H, W], `sigma` in pixels; the border pixels are repeated outwards."""
    if sigma <= 0:
        return masks
    height, width = masks.shape[-2:]
    # of a reduced image, as the work grows with sigma; of at least 32 pixels, so that its border stays where it is
    if (factor := min(int(sigma // 8), min(height, width) // 32)) > 1:
        x = F.pad(masks.reshape(-1, 1, height, width), (0, -width % factor, 0, -height % factor), "replicate")
        # averaging a square and interpolating add a variance of factor² / 12 and factor² / 6
        small = soften(F.avg_pool2d(x, factor), (sigma**2 - factor**2 / 4) ** 0.5 / factor)
        y = F.interpolate(small, x.shape[-2:], mode="bilinear", align_corners=False)
        return y[..., :height, :width].reshape(masks.shape)
    radius = math.ceil(3 * sigma)
    taps = torch.arange(-radius, radius + 1, dtype=masks.dtype, device=masks.device)
    taps = torch.exp(-0.5 * (taps / sigma) ** 2)
    taps = (taps / taps.sum()).view(1, 1, 1, -1)
    x = masks.reshape(-1, 1, *masks.shape[-2:])
    x = F.conv2d(F.pad(x, (radius, radius, 0, 0), "replicate"), taps)
    x = F.conv2d(F.pad(x, (0, 0, radius, radius), "replicate"), taps.mT)
    return x.view(masks.shape)


def blend(inside: Tensor, outside: Tensor, mask: Tensor) -> Tensor:
    """mask · inside + (1 − mask) · outside, for floats [..., C, H, W] and a mask [..., 1, H, W] of the same size."""
    return torch.lerp(outside, inside, mask.to(inside.dtype))
