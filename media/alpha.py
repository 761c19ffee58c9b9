"""Transparent images, as the models see them: RGBA with premultiplied colours (Porter and Duff 1984).

In tensors of 4 channels, each colour is multiplied by its pixel's alpha. So a pixel that nobody can see is black
whatever its file says, and nothing has to be learned about it; resampling and every other linear filter work without
fringes at the edges; and the image over a background is colour + (1 − alpha) · background. Only files hold straight
colours, as PNG and WebP want them.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Color = tuple[int, int, int]

LIGHT, DARK = 255, 204  # the greys of the chequerboard
SQUARE = 8  # the side of its squares, in pixels


def premultiply(image: Image.Image) -> np.ndarray:
    """An image of mode RGBA as uint8 [H, W, 4], with premultiplied colours."""
    pixels = np.asarray(image).astype(np.uint16)
    pixels[..., :3] = (pixels[..., :3] * pixels[..., 3:] + 127) // 255
    return pixels.astype(np.uint8)


def straighten(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 4] with straight colours, as in files, from premultiplied ones.

    The inverse of `premultiply` as far as can be seen: invisible pixels are black, and the colour of a pixel with a low
    alpha is known to ±½ · 255 / alpha. Colours brighter than alpha allows, which a network can make, become 255.
    """
    alpha = pixels[..., 3:].astype(np.uint16)
    colors = (pixels[..., :3].astype(np.uint16) * 255 + alpha // 2) // np.maximum(alpha, 1)
    colors = np.where(alpha == 0, 0, np.minimum(colors, 255))
    return np.concatenate([colors, alpha], axis=-1).astype(np.uint8)


def on_background(images: Tensor, color: Color) -> Tensor:
    """Premultiplied images [N, 4, H, W] over a colour: [N, 3, H, W], in the same range, uint8 or float in −1..1."""
    return _over(images, torch.tensor(color, device=images.device).view(3, 1, 1))


def opaque(images: Tensor, color: Color) -> Tensor:
    """Images [N, C, H, W] without transparency: transparent ones over a colour, others as they are."""
    return on_background(images, color) if images.shape[1] == 4 else images


def on_chequerboard(images: Tensor) -> Tensor:
    """Images uint8 [N, C, H, W] as they can be shown: transparent ones over a chequerboard, others as they are."""
    if images.shape[1] != 4:
        return images
    y, x = (torch.arange(side, device=images.device) // SQUARE for side in images.shape[2:])
    return _over(images, torch.where((y[:, None] + x) % 2 == 0, LIGHT, DARK))


def _over(images: Tensor, ground: Tensor) -> Tensor:
    """colour + (1 − alpha) · ground, where the ground is 0 to 255, of a shape that broadcasts to [N, 3, H, W].

    A network can make colours that are brighter than alpha allows. No file can hold them, so they are not shown either.
    """
    alpha = images[:, 3:]
    colors = torch.minimum(images[:, :3], alpha)
    if images.dtype == torch.uint8:
        below = (255 - alpha.int()) * ground
        return (colors.int() + (below + 127) // 255).clamp(max=255).to(torch.uint8)
    return (colors + (1 - alpha) * ground / 255).clamp(max=1)
