"""The distances that projection minimizes: squared differences of features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from media.alpha import on_background
from media.decode import BLACK, WHITE
from models.encoder import URL, load_encoder
from networks.vgg import VGG19
from torch_utils.download import cached_path

Features = Callable[[Tensor], list[Tensor]]  # images [N, C, H, W] in −1..1 → [N, C_i, H_i, W_i] each

MAX_SIDE = 256  # of the images that VGG sees, as in StyleGAN2's projection
MIN_SIDE = 8  # of a pyramid's last level
WINDOW = 7  # side of a patch
CONTRAST = 0.03 * 2  # SSIM's K₂ times the range of the values: patches with less contrast count as flat


def distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Σᵢ mean (aᵢ − bᵢ)² → [N], the distance between images with the features a and images with the features b."""
    return torch.stack([(x - y).square().mean(dim=(1, 2, 3)) for x, y in zip(a, b, strict=True)]).sum(dim=0)


def pyramid(images: Tensor) -> list[Tensor]:
    """The images at all scales, each the means of 2 × 2 pixels of the one before, down to a side of 8 to 15."""
    levels = [images]
    while min(levels[-1].shape[2:]) >= 2 * MIN_SIDE:
        levels.append(F.avg_pool2d(levels[-1], 2))
    return levels


def normalized_patches(x: Tensor) -> Tensor:
    """(x − μ) / √(σ² + c²) [N, C, H, W], with the mean and variance of the 7 × 7 patch around each pixel.

    The squared difference of two such images compares their structure without brightness and contrast. It is the third
    term of SSIM (Wang et al. 2004, equation 10) as a distance.
    """
    padded = F.pad(x, [WINDOW // 2] * 4, mode="reflect")
    mean = F.avg_pool2d(padded, WINDOW, stride=1)
    variance = F.avg_pool2d(padded.square(), WINDOW, stride=1) - mean.square()
    return (x - mean) * (variance.clamp(min=0) + CONTRAST**2).rsqrt()


class PatchFeatures:
    """Pixels and normalized patches at every scale, for use without a network.

    `patches` is the weight of the patches relative to the pixels.
    """

    def __init__(self, patches: float = 1.0):
        self.gain = patches**0.5

    def __call__(self, images: Tensor) -> list[Tensor]:
        levels = pyramid(images)
        return levels + [self.gain * normalized_patches(level) for level in levels]


class VGGFeatures:
    """VGG-19's relu1_1 to relu4_1, with the channels of each pixel scaled to a mean square of 1.

    This is LPIPS without learned weights: equation 1 of Zhang et al. 2018 with w = 1. Larger images are reduced until
    their longer side has 256 pixels. Transparent ones are compared over black and over white, which together tell their
    colours and their alpha.
    """

    def __init__(self, vgg: VGG19):
        self.vgg = vgg

    def __call__(self, images: Tensor) -> list[Tensor]:
        if images.shape[1] == 4:
            return [tap for color in (BLACK, WHITE) for tap in self(on_background(images, color))]
        x = images.expand(-1, 3, -1, -1)
        if (longer := max(x.shape[2:])) > MAX_SIDE:
            height, width = (max(round(side * MAX_SIDE / longer), MIN_SIDE) for side in x.shape[2:])
            x = F.interpolate(x, size=(height, width), mode="area")
        return [F.normalize(tap, dim=1) * tap.shape[1] ** 0.5 for tap in self.vgg(x)]


def find_features(weights: str | None, device: torch.device) -> tuple[Features, str]:
    """The features that images are compared by, and their name. Nothing is downloaded.

    They are those of the encoder in the file `weights`, or of torchvision's if it is in the cache, or else patches.
    """
    if weights is None and not cached_path(URL).is_file():
        return PatchFeatures(), "pixels and patches at several scales"
    file = Path(weights) if weights is not None else cached_path(URL)
    return VGGFeatures(load_encoder(file, device)), f"the features of VGG-19 ({file.name})"
