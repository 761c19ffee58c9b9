"""VGG-19 up to relu4_1 (Simonyan and Zisserman 2015): what content and style are measured by."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.layers import Conv3x3

CHANNELS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, 256, "pool", 512)
TAPS = (1, 6, 11, 20)  # relu1_1, relu2_1, relu3_1 and relu4_1 in torchvision's numbering of `features`
STRIDE = 8  # of relu4_1
BEYOND = (512, 512, 512, "pool", 512, 512, 512, 512)  # the rest of VGG-19's convolutions, from conv4_2 on

# of ImageNet, for images of 0..1
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class VGG19(nn.Module):
    """Image [N, 3, H, W] in −1..1 → relu1_1, relu2_1, relu3_1, relu4_1: [N, C_i, H / 2ⁱ, W / 2ⁱ] for i = 0..3.

    The layers have torchvision's names and numbers, so that its weights load as they are; C_i = 64, 128, 256, 512
    times `width`. Works in channels-last memory, which convolutions read fastest.
    """

    def __init__(self, width: float = 1.0):
        super().__init__()
        if not 0 < width <= 4:
            raise ValueError(f"width: expected a number above 0, up to 4, got {width}")
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
            if isinstance(layer, nn.MaxPool2d):
                x = layer(x)
            elif not isinstance(layer, nn.ReLU):
                x = layer(x, relu=True)  # with the ReLU that follows
            if i in TAPS:
                taps.append(x)
        return taps


class NormalizedConv(nn.Sequential):
    """A convolution and what follows it in training: batch normalization (Ioffe and Szegedy 2015), then ReLU."""

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        x = super().forward(x)
        return F.relu(x) if relu else x


class Classifier(nn.Module):
    """Image [N, 3, H, W] in −1..1 → logits [N, classes]: what an encoder of one's own is trained as.

    All of VGG-19's convolutions, of which the encoder has those up to relu4_1: with layers beyond, it need not give up
    where things are. While trained, each has a batch normalization behind it; `fold` gives an encoder without. The
    classes are a linear function of the mean of relu5_4.
    """

    STRIDE = 2 * STRIDE  # of relu5_4

    def __init__(self, width: float, classes: int):
        super().__init__()
        self.encoder = VGG19(width)
        for i, layer in enumerate(self.encoder.features):
            if isinstance(layer, nn.Conv2d):
                self.encoder.features[i] = normalized_conv(layer.in_channels, layer.out_channels)
        channels = scaled(CHANNELS[-1], width)
        self.beyond = nn.ModuleList()
        for c in BEYOND:
            self.beyond.append(nn.MaxPool2d(2) if c == "pool" else normalized_conv(channels, scaled(c, width)))
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
        with torch.random.fork_rng(devices=[]):  # weights are drawn for nothing, and training's numbers stay
            plain = VGG19(self.encoder.width).to(self.head.weight.device)
        for layer, folded in zip(self.encoder.features, plain.features, strict=True):
            if isinstance(folded, nn.Conv2d):
                conv, norm = layer
                scale = norm.weight / (norm.running_var + norm.eps).sqrt()
                folded.weight.copy_(conv.weight * scale.view(-1, 1, 1, 1))
                folded.bias.copy_(norm.bias - norm.running_mean * scale)
        return plain.eval()


def normalized_conv(in_channels: int, out_channels: int) -> NormalizedConv:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return NormalizedConv(conv, nn.BatchNorm2d(out_channels))


def scaled(channels: int, width: float) -> int:
    """`channels` of the full model in one of that width, at least 1."""
    return max(round(channels * width), 1)
