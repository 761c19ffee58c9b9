"""Where a style applies: masks from images, and blending by them."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from media.files import read_image
from styling.color import luma
from torch_utils.errors import UserError


def read_mask(path: str | os.PathLike, size: tuple[int, int], *, feather: float = 0) -> Tensor:
    """float [1, H, W] in 0..1 from an image: 1 where it is white. `size` is the content's (height, width).

    Coloured images count by their luma; what is transparent counts as black. `feather` softens the edges: the
    standard deviation of a Gaussian, in pixels. Raises UserError as `read_image` does, and where the size is another.
    """
    image = read_image(path, min_side=1, background=(0, 0, 0))
    if image.shape[1:] != size:
        (height, width), (there, across) = image.shape[1:], size
        raise UserError(
            f"the mask {Path(path)} has {width}x{height} pixels, but the content {across}x{there}; "
            "resize the mask to the content's size"
        )
    return soften(luma(image.float()) / 255, feather).clamp(0, 1)


def soften(masks: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of [..., 1, H, W] with the standard deviation `sigma` in pixels; borders go on as they are."""
    if sigma <= 0:
        return masks
    radius = math.ceil(3 * sigma)
    taps = torch.arange(-radius, radius + 1, dtype=masks.dtype, device=masks.device)
    taps = torch.exp(-0.5 * (taps / sigma) ** 2)
    taps = (taps / taps.sum()).view(1, 1, 1, -1)
    x = masks.reshape(-1, 1, *masks.shape[-2:])
    x = F.conv2d(F.pad(x, (radius, radius, 0, 0), "replicate"), taps)
    x = F.conv2d(F.pad(x, (0, 0, radius, radius), "replicate"), taps.mT)
    return x.view(masks.shape)


def blend(inside: Tensor, outside: Tensor, mask: Tensor) -> Tensor:
    """mask · inside + (1 − mask) · outside: floats [..., C, H, W], of one size with the mask [..., 1, H, W].

    `outside` is the content, or another style's image; several masks are several calls.
    """
    return torch.lerp(outside, inside, mask.to(inside.dtype))
