"""VGG-19 up to relu4_1 (Simonyan and Zisserman 2015): what content and style are measured by."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from networks.layers import Conv3x3

CHANNELS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, 256, "pool", 512)
TAPS = (1, 6, 11, 20)  # relu1_1, relu2_1, relu3_1 and relu4_1 in torchvision's numbering of `features`
STRIDE = 8  # of relu4_1

# of ImageNet, for pictures of 0..1
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class VGG19(nn.Module):
    """Picture [N, 3, H, W] in −1..1 → relu1_1, relu2_1, relu3_1, relu4_1: [N, C_i, H / 2ⁱ, W / 2ⁱ] for i = 0..3.

    The layers have torchvision's names and numbers, so that its weights load as they are; C_i = 64, 128, 256, 512
    times `width`. Works in channels-last memory, which convolutions read fastest.
    """

    def __init__(self, width: float = 1.0):
        super().__init__()
        self.width = width
        self.features = nn.Sequential()
        channels = 3
        for c in CHANNELS:
            if c == "pool":
                self.features.append(nn.MaxPool2d(2))
            else:
                self.features.append(Conv3x3(channels, scaled(c, width)))
                self.features.append(nn.ReLU(inplace=True))
                channels = scaled(c, width)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = ((images + 1) / 2 - self.mean) / self.std
        x = x.contiguous(memory_format=torch.channels_last)
        taps = []
        for i, layer in enumerate(self.features):
            if isinstance(layer, Conv3x3):
                x = layer(x, relu=True)  # the ReLU that follows it as well
            elif not isinstance(layer, nn.ReLU):
                x = layer(x)
            if i in TAPS:
                taps.append(x)
        return taps


def scaled(channels: int, width: float) -> int:
    """`channels` of the full model in one of that width, at least 1."""
    return max(round(channels * width), 1)
