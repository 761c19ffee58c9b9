"""What images are compared by when one is to be found again: features, whose squared differences are the distance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from networks.vgg import VGG19

Features = Callable[[Tensor], list[Tensor]]  # images [N, C, H, W] in −1..1 → [N, C_i, H_i, W_i] each

LARGEST = 256  # side that VGG sees, as in StyleGAN2's projection
SMALLEST = 8  # side of a pyramid's last level
WINDOW = 7  # side of a patch
CONTRAST = 0.03 * 2  # below it a patch counts as flat: SSIM's K₂ times the range of the values


def distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Σᵢ mean (aᵢ − bᵢ)²: the distance [N] of images with the features a from those with the features b."""
    return torch.stack([(x - y).square().mean(dim=(1, 2, 3)) for x, y in zip(a, b, strict=True)]).sum(dim=0)


def pyramid(images: Tensor) -> list[Tensor]:
    """An image and its halves, each the mean of 2 × 2 pixels of the last, down to a side of 8."""
    levels = [images]
    while min(levels[-1].shape[2:]) >= 2 * SMALLEST:
        levels.append(F.avg_pool2d(levels[-1], 2))
    return levels


def normalized_patches(x: Tensor) -> Tensor:
    """(x − μ) / √(σ² + c²), with mean and variance of the 7 × 7 patch around each pixel, [N, C, H, W] → the same.

    The squared difference of two such images is that of their structure, brightness and contrast aside: the third of
    SSIM's terms (Wang et al. 2004, equation 9), as a distance.
    """
    padded = F.pad(x, [WINDOW // 2] * 4, mode="reflect")
    mean = F.avg_pool2d(padded, WINDOW, stride=1)
    variance = F.avg_pool2d(padded.square(), WINDOW, stride=1) - mean.square()
    return (x - mean) * (variance.clamp(min=0) + CONTRAST**2).rsqrt()


class PatchFeatures:
    """Pixels and normalized patches at every scale: for where there is no network that knows what matters.

    `patches` weighs the patches beside the pixels.
    """

    def __init__(self, patches: float = 1.0):
        self.gain = patches**0.5

    def __call__(self, images: Tensor) -> list[Tensor]:
        levels = pyramid(images)
        return levels + [self.gain * normalized_patches(level) for level in levels]


class VGGFeatures:
    """VGG-19's relu1_1 to relu4_1, each pixel's channels scaled to a mean square of 1: LPIPS before it is learned.

    Zhang et al. 2018, equation 1, with w = 1. Images of more than 256 pixels a side are reduced to that.
    """

    def __init__(self, vgg: VGG19):
        self.vgg = vgg

    def __call__(self, images: Tensor) -> list[Tensor]:
        x = images.expand(-1, 3, -1, -1)
        if x.shape[2] > LARGEST:
            x = F.interpolate(x, size=(LARGEST, LARGEST), mode="area")
        return [F.normalize(tap, dim=1) * tap.shape[1] ** 0.5 for tap in self.vgg(x)]
