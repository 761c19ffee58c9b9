"""Layers that no style modulates: StyleGAN2's equalized and resampling layers, and the plain 3 × 3 convolution of
VGG-19 and the stylizer.

An equalized layer keeps its weights at unit variance and scales them when it is applied, by 1/√fan-in (He) times its
learning rate multiplier, so that Adam's steps are equally large for all weights (Karras et al. 2018, section 4.1).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_utils.ops import PreparedWeight, bias_act, conv3x3, setup_filter, upfirdn2d
from torch_utils.ops.adaconv import PaddingMode

RESAMPLE_TAPS = (1, 3, 3, 1)  # the filter of StyleGAN2's published code for all resampling


def normalize_2nd_moment(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Scales each row of x [N, C] to a mean square of 1."""
    return x * (x.square().mean(dim=1, keepdim=True) + eps).rsqrt()


class Linear(nn.Module):
    """A fully connected layer with equalized learning rate and activation: [N, in] → [N, out].

    `bias_init` is the initial value of the bias. An `lr_multiplier` below 1 slows the learning of weights and bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        act: str = "linear",
        bias: bool = True,
        bias_init: float = 0.0,
        lr_multiplier: float = 1.0,
    ):
        super().__init__()
        self.act = act
        self.lr_multiplier = lr_multiplier
        # in place, as a meta tensor that is divided into another has PyTorch import its compiler: seconds at every load
        self.weight = nn.Parameter(torch.randn(out_features, in_features).div_(lr_multiplier))
        self.bias = nn.Parameter(torch.full([out_features], bias_init / lr_multiplier)) if bias else None
        self.weight_gain = lr_multiplier / in_features**0.5

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias if self.bias is None else self.bias * self.lr_multiplier
        y = F.linear(x, self.weight * self.weight_gain)
        return bias_act(y, bias, self.act)


class Conv2d(nn.Module):
    """A convolution with equalized learning rate, optional downsampling by 2, bias, activation and gain.

    [N, in, H, W] → [N, out, H, W], or [N, out, H/2, W/2] with `down`, in the precision of the input.
    """

    filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        act: str = "linear",
        bias: bool = True,
        down: bool = False,
        clamp: float | None = None,
    ):
        super().__init__()
        self.act, self.down, self.clamp = act, down, clamp
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.weight_gain = (in_channels * kernel_size**2) ** -0.5
        self.register_buffer("filter", setup_filter(RESAMPLE_TAPS), persistent=False)

    def forward(self, x: Tensor, gain: float | None = None) -> Tensor:
        weight = (self.weight * self.weight_gain).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.down:
            y = downsample_conv2d(x, weight, self.filter)
        else:
            y = conv3x3(x, weight) if weight.shape[-1] == 3 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        return bias_act(y, bias, self.act, gain=gain, clamp=self.clamp)


class Conv3x3(nn.Conv2d):
    """A plain 3 × 3 convolution with one pixel of padding ("zeros" or "reflect"), channels-last."""

    def __init__(self, in_channels: int, out_channels: int, border: PaddingMode = "zeros", bias: bool = True):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias, padding_mode=border)
        self.border = border
        self.prepared = PreparedWeight()
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """[N, in, H, W] → [N, out, H, W], followed by a ReLU if `relu` is set."""
        return conv3x3(x, self.weight, self.bias, self.border, relu, self.prepared)


def in_fast_order(x: Tensor) -> Tensor:
    """x [N, C, H, W] in channels-last memory where convolutions are faster in it: on the CPU, and in half precision.

    Elsewhere x itself. The layers that follow return the memory order that they are given.
    """
    fast = x.device.type == "cpu" or x.dtype in (torch.float16, torch.bfloat16)
    return x.contiguous(memory_format=torch.channels_last) if fast else x


def upsample2d(x: Tensor, f: Tensor) -> Tensor:
    """Doubles height and width: [N, C, H, W] → [N, C, 2H, 2W]. f is the low-pass filter of 4 taps."""
    return upfirdn2d(x, f, up=2, padding=(2, 1, 2, 1), gain=4)


def upsample_conv2d(x: Tensor, weight: Tensor, f: Tensor) -> Tensor:
    """A 3 × 3 convolution that doubles height and width: a transposed one, then the low-pass filter.

    x [N, I, H, W], weight [O, I, 3, 3], f 4 taps → [N, O, 2H, 2W].
    """
    weight = weight.transpose(0, 1)
    if x.device.type == "cpu":  # oneDNN's own layout: converting from another one takes as long as the convolution
        weight = weight.contiguous(memory_format=torch.channels_last)
    y = F.conv_transpose2d(x, weight, stride=2)
    return upfirdn2d(y, f, padding=1, gain=4)


def downsample_conv2d(x: Tensor, weight: Tensor, f: Tensor) -> Tensor:
    """A convolution that halves height and width, after the low-pass filter.

    x [N, I, H, W], weight [O, I, k, k] with k 1 or 3, f 4 taps → [N, O, H/2, W/2].
    """
    if weight.shape[-1] == 1:  # reads only every second pixel, so the filter need not compute the others
        return F.conv2d(upfirdn2d(x, f, down=2, padding=1), weight)
    return F.conv2d(upfirdn2d(x, f, padding=2), weight, stride=2)
