"""Learned perceptual image patch similarity with VGG-16, the distance that PPL is computed with.

Zhang, Isola, Efros, Shechtman, Wang: "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR
2018, equation 1:

    d(x, y) = Σₗ 1/(HₗWₗ) Σ ‖wₗ ⊙ (x̂ₗ − ŷₗ)‖²

with x̂ₗ the features of layer l at a position, divided by their length, and w the weights of version 0.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_utils.download import read_tensors
from torch_utils.errors import UserError

CHANNEL_WEIGHTS = Path(__file__).with_name("lpips-vgg16.safetensors")  # w² of the channels of each layer
RELUS = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 in torchvision's numbering of `features`
MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in −1..1
MAX_SIDE = 256
MIN_SIDE = 16  # VGG-16 halves four times before the last layer that is compared


class LPIPS(nn.Module):
    """Images float [N, 1 or 3, H, W] in −1..1, twice → distances [N].

    Images of 512 rows and more are first reduced by a whole factor, to 256² for powers of two, as in StyleGAN. Where it
    does not divide a side, the last rows or columns, fewer than the factor, are left out.
    `vgg` are the `features` of torchvision's vgg16.
    """

    def __init__(self, vgg: nn.Sequential):
        super().__init__()
        self.layers = vgg[: RELUS[-1] + 1]
        for i, weight in enumerate(read_tensors(CHANNEL_WEIGHTS).values()):
            self.register_buffer(f"weight{i}", weight)
        # for pixels of 0..255
        self.register_buffer("mean", ((1 + torch.tensor(MEAN)) * 255 / 2).view(3, 1, 1))
        self.register_buffer("inverse_std", (2 / (torch.tensor(STD) * 255)).view(3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        distance = torch.zeros(len(a), device=a.device)
        for i, (x, y) in enumerate(zip(self.normalized_features(a), self.normalized_features(b), strict=True)):
            distance = distance + F.conv2d((x - y) ** 2, self.get_buffer(f"weight{i}")).mean([2, 3]).flatten()
        return distance

    def normalized_features(self, images: Tensor) -> list[Tensor]:
        """x̂ of each layer, [N, C, H, W]: features whose vector at each position has length 1."""
        x = images.expand(-1, 3, -1, -1) * 127.5 + 127.5
        if x.shape[2] > MAX_SIDE:
            x = F.avg_pool2d(x, x.shape[2] // MAX_SIDE)
        x = (x - self.get_buffer("mean")) * self.get_buffer("inverse_std")
        found = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in RELUS:
                found.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return found


def check_size(name: str, size: Sequence[int]) -> None:
    """Raises UserError where images of a height and a width are smaller than the metric of that name can compare."""
    height, width = size
    if min(height, width) < MIN_SIDE:
        raise UserError(
            f"{name} compares images of {MIN_SIDE} pixels a side or more, and these have {width}x{height}; leave it out"
        )
