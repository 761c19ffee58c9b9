"""Keeping the content's colours (Gatys, Bethge, Hertzmann and Shechtman 2016, "Preserving Color in Neural Artistic
Style Transfer"): by transferring only the luminance, or by matching the style's colours to the content's beforehand.
"""

from __future__ import annotations

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601, the Y of both YIQ and YCbCr
RANK = 1e-6  # variances below this part of the largest one count as 0: in 8-bit images they are rounding


def luma(images: Tensor) -> Tensor:
    """The Y of BT.601, in the range of the images: [..., 3, H, W] → [..., 1, H, W]."""
    weights = images.new_tensor(LUMA).view(3, 1, 1)
    return (images * weights).sum(-3, keepdim=True)


def keep_colors(stylized: Tensor, content: Tensor) -> Tensor:
    """The luminance of `stylized` with the chroma of `content` (approach 2): floats [..., 3, H, W] in −1..1.

    I and Q of YIQ (or Cb and Cr) are weighted sums of R − Y and B − Y, so taking them from the content is taking the
    differences to its own luma. Where the sum leaves −1..1, clipping would change the luminance. Instead the chroma is
    scaled down, towards the grey of that luminance, until the colour is in range.

    Raises:
        ValueError: if the images differ in shape.
    """
    if stylized.shape != content.shape:
        raise ValueError(f"images of different shapes: {tuple(stylized.shape)} and {tuple(content.shape)}")
    y = luma(stylized).clamp(-1, 1)
    chroma = content - luma(content)
    room = torch.where(chroma > 0, 1 - y, 1 + y) / chroma.abs().clamp_min(1e-12)
    return y + chroma * room.amin(-3, keepdim=True).clamp_max(1)


def match_colors(style: Tensor, content: Tensor) -> Tensor:
    """The style image with the mean and covariance of the content's colours, which replaces the style (approach 1).

    x → A (x − μ_style) + μ_content with A = Σ_content^½ Σ_style^−½ and symmetric square roots. Both are floats
    [..., 3, H, W], of sizes that may differ. Directions of colour in which the style has no variance get none: a grey
    style gets shades of one colour. The result is not clipped to −1..1, so that its statistics are exact.
    """
    x, mean, root = _color_moments(style)
    _, goal, goal_root = _color_moments(content)
    values, vectors = torch.linalg.eigh(root)
    nonzero = values > RANK**0.5 * values.amax(-1, keepdim=True).clamp_min(1e-6)
    inverse = torch.where(nonzero, 1 / values.clamp_min(1e-12), 0)
    matrix = goal_root @ (vectors * inverse.unsqueeze(-2)) @ vectors.mT
    return (matrix @ (x - mean) + goal).to(style.dtype).view(style.shape)


def _color_moments(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels [..., 3, H·W], their mean [..., 3, 1], and the symmetric root of their covariance [..., 3, 3]; float64."""
    x = images.double().flatten(-2)
    mean = x.mean(-1, keepdim=True)
    covariance = (x - mean) @ (x - mean).mT / x.shape[-1]
    values, vectors = torch.linalg.eigh(covariance)
    return x, mean, (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mT
