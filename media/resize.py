"""Makes images smaller, with Pillow's Lanczos filter: each new pixel is an average of all that it covers."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def smaller_size(height: int, width: int, most: int | None, even: bool = False) -> tuple[int, int]:
    """The height and width of an image whose longer side has at most `most` pixels, of the same shape.

    A size that fits, and every size with None, stays as it is. With `even`, others become even numbers, as videos need.
    """
    longer = max(height, width)
    if most is None or longer <= most:
        return height, width
    step = 2 if even else 1
    scale = most // step / longer
    return max(step * round(height * scale), step), max(step * round(width * scale), step)


def make_smaller(images: Tensor, most: int | None, even: bool = False) -> Tensor:
    """Images uint8 [..., 3, H, W] in the size that `smaller_size` gives; those that fit, as they are."""
    height, width = images.shape[-2:]
    size = smaller_size(height, width, most, even)
    if size == (height, width):
        return images
    made = []
    for image in images.reshape(-1, 3, height, width):
        small = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()).resize(
            (size[1], size[0]), Image.Resampling.LANCZOS
        )
        made.append(torch.from_numpy(np.array(small)).permute(2, 0, 1))
    return torch.stack(made).reshape(*images.shape[:-2], *size)
