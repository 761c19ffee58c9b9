"""VGG-19 up to relu4_1 (Simonyan and Zisserman 2015), whose features content and style are measured by."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.layers import Conv3x3
from torch_utils.ops.adaconv import PaddingMode

CHANNELS: tuple[int | str, ...] = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, 256, "pool", 512)
TAPS = (1, 6, 11, 20)  # relu1_1, relu2_1, relu3_1 and relu4_1 in torchvision's numbering of `features`
STRIDE = 8  # of relu4_1
# the rest of VGG-19's convolutions, from conv4_2 on
BEYOND: tuple[int | str, ...] = (512, 512, 512, "pool", 512, 512, 512, 512)

# mean and standard deviation of ImageNet's images, in 0..1
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class VGG19(nn.Module):
    """Image [N, 3, H, W] in −1..1 → relu1_1, relu2_1, relu3_1, relu4_1: [N, C_i, H / 2ⁱ, W / 2ⁱ] for i = 0..3.

    The layers have torchvision's names and numbers, so that its weights load unchanged; C_i = 64, 128, 256, 512 times
    `width`. Works in channels-last memory, which convolutions read fastest.

    Args:
        width: factor on all channels, above 0 and up to 4.
        border: what the convolutions see beyond the border, "zeros" as in training, or "reflect", which keeps features
            at the border like those inside.

    Raises:
        ValueError: if the width is out of range.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: float = 1.0, border: PaddingMode = "zeros"):
        super().__init__()
        if not 0 < width <= 4:
            raise ValueError(f"width: expected a number above 0, up to 4, got {width}")
        self.width = width
        self.min_side = STRIDE if border == "zeros" else 2 * STRIDE  # of images; a single pixel cannot be reflected
        self.features = nn.Sequential()
        channels = 3
        for c in CHANNELS:
            if isinstance(c, str):
                self.features.append(nn.MaxPool2d(2))
            else:
                self.features.append(Conv3x3(channels, scale_channels(c, width), border))
                self.features.append(nn.ReLU(inplace=True))
                channels = scale_channels(c, width)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = ((images + 1) / 2 - self.mean) / self.std
        x = x.contiguous(memory_format=torch.channels_last)
        taps = []
        for i, layer in enumerate(self.features):
            if isinstance(layer, nn.MaxPool2d):
                x = layer(x)
            elif not isinstance(layer, nn.ReLU):
                x = layer(x, relu=True)  # with the ReLU that follows
            if i in TAPS:
                taps.append(x)
        return taps


class NormalizedConv(nn.Sequential):
    """A convolution, followed in training by batch normalization (Ioffe and Szegedy 2015); then an optional ReLU."""

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        x = super().forward(x)
        return F.relu(x) if relu else x


class Classifier(nn.Module):
    """Image [N, 3, H, W] in −1..1 → logits [N, classes]: the network that trains a VGG19 encoder.

    It has all of VGG-19's convolutions; the encoder is those up to relu4_1. The later ones collect evidence over the
    image, so that the encoder's own features can stay local. Each convolution is followed by batch normalization, which
    `fold` merges into its weights. The logits are a linear function of the mean of relu5_4.
    """

    STRIDE = 2 * STRIDE  # of relu5_4

    def __init__(self, width: float, classes: int):
        super().__init__()
        self.encoder = VGG19(width)
        for i, layer in enumerate(self.encoder.features):
            if isinstance(layer, nn.Conv2d):
                self.encoder.features[i] = normalized_conv(layer.in_channels, layer.out_channels)
        channels = scale_channels(512, width)
        self.beyond = nn.ModuleList()
        for c in BEYOND:
            if isinstance(c, str):
                self.beyond.append(nn.MaxPool2d(2))
            else:
                self.beyond.append(normalized_conv(channels, scale_channels(c, width)))
        self.head = nn.Linear(channels, classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        x = self.encoder(images)[-1]
        for layer in self.beyond:
            x = layer(x) if isinstance(layer, nn.MaxPool2d) else layer(x, relu=True)
        return self.head(x.mean(dim=(2, 3)))

    @torch.no_grad()
    def fold(self) -> VGG19:
        """The encoder as a plain VGG19 in eval mode, with the same features as this one's in eval mode.

        γ (W ∗ x − μ) / σ + β, with the running mean and deviation, is a convolution with W γ / σ and a bias.
        """
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced: training's random numbers stay
            plain = VGG19(self.encoder.width).to(self.head.weight.device)
        for layer, folded in zip(self.encoder.features, plain.features, strict=True):
            if isinstance(folded, nn.Conv2d):
                conv, norm = cast(tuple[nn.Conv2d, nn.BatchNorm2d], layer)
                assert norm.running_mean is not None and norm.running_var is not None and folded.bias is not None
                scale = norm.weight / (norm.running_var + norm.eps).sqrt()
                folded.weight.copy_(conv.weight * scale.view(-1, 1, 1, 1))
                folded.bias.copy_(norm.bias - norm.running_mean * scale)
        return plain.eval()


def normalized_conv(in_channels: int, out_channels: int) -> NormalizedConv:
    conv = Conv3x3(in_channels, out_channels, bias=False)
    drawn = torch.empty(conv.weight.shape)  # in planes: the order of memory is the order of the random numbers
    conv.weight.data.copy_(nn.init.kaiming_normal_(drawn, mode="fan_out", nonlinearity="relu"))
    return NormalizedConv(conv, nn.BatchNorm2d(out_channels))


def scale_channels(channels: int, width: float) -> int:
    """The number of channels of a model of that width, where the full model has `channels`; at least 1."""
    return max(round(channels * width), 1)
