"""AdaConv: convolution kernels predicted from a style (Chandran et al., CVPR 2021).

    x̂ = (x − μ(x)) / σ(x)                             per sample and channel: `norm="instance"`
    y = pointwise ∗ (depthwise ∗ x̂) + bias            both grouped; paper, section 3

Depthwise and pointwise kernels compose into one grouped kernel, and the normalization folds into it, so the op reads
the image once. Both models use this layer: the generator with styles from `w`, the stylizer with the style of an image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_utils.ops import adaconv, moments
from torch_utils.ops.adaconv import PaddingMode


@dataclass
class AdaConvKernels:
    """The kernels that a style predicts for one layer of C channels in groups of C/G.

    depthwise: [N, C, C/G, k, k], spatial structure. pointwise: [N, C, C/G], how the channels of a group mix.
    bias: [N, C], or None.
    """

    depthwise: Tensor
    pointwise: Tensor
    bias: Tensor | None = None
    _composed: tuple[Tensor, Tensor, Tensor] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def composed(self) -> Tensor:
        """Both kernels as one: K[n, o, i] = Σ_m pointwise[n, o, m] · depthwise[n, m, i], [N, C, C/G, k, k].

        It is kept for the next use, where both kernels are the same tensors and it has the gradient that is wanted.
        """
        parts = self.depthwise, self.pointwise  # no functools.cached_property, whose lock torch.compile cannot follow
        differentiated = torch.is_grad_enabled() and any(part.requires_grad for part in parts)
        # kernels that are optimized themselves change in place, and a graph can be gone through once
        optimized = any(part.is_leaf and part.requires_grad for part in parts)
        if self._composed is not None and not optimized:
            depthwise, pointwise, composed = self._composed
            if depthwise is parts[0] and pointwise is parts[1] and composed.requires_grad >= differentiated:
                return composed
        device = parts[0].device.type
        if device != "meta" and torch.is_autocast_enabled(device):  # the next use may be in full precision
            with torch.autocast(device, enabled=False):
                composed = self._compose()
        else:
            composed = self._compose()
        self._composed = (*parts, composed)
        return composed

    def scaled(self, factor: Tensor) -> AdaConvKernels:
        """Kernels whose output is `factor` [N] times as large."""
        bias = None if self.bias is None else self.bias * factor[:, None]
        return AdaConvKernels(self.depthwise, self.pointwise * factor[:, None, None], bias)

    def _compose(self) -> Tensor:
        n, c, group, k, _ = self.depthwise.shape
        if group == 1:
            return self.pointwise[..., None, None] * self.depthwise
        pointwise = self.pointwise.reshape(n * c // group, group, group)
        depthwise = self.depthwise.reshape(n * c // group, group, group * k * k)
        return (pointwise @ depthwise).view(n, c, group, k, k)


def fold_instance_norm(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    eps: float = 1e-5,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The kernel and bias with which AdaConv of x equals AdaConv of the instance-normalized x.

    K ← K·rstd and bias ← bias − Σ K·μ, exact if the border is reflected (or filled with the channel mean).

    Args:
        x: [N, C, H, W].
        kernel, bias: [N, C, C/G, k, k] and [N, C], or None; N may be 1, for one kernel that all samples share.
        eps: added to the variance.
        statistics: mean and variance, [N, C] each, to normalize by; None for those of x.

    Returns:
        Kernel and bias in the same shapes, for N samples.
    """
    c, group = kernel.shape[1:3]
    mean, var = moments(x) if statistics is None else statistics
    n = mean.shape[0]
    # μ and rstd of the inputs i of each output's group: [N, G, 1, C/G], beside the kernel [N, G, C/G, C/G, k·k]
    mean, var = mean.to(kernel.dtype), var.to(kernel.dtype)  # x may be half precision, where kernels are float32
    mean, rstd = (t.view(n, c // group, 1, group) for t in (mean, (var + eps).rsqrt()))
    folded = kernel.flatten(3).unflatten(1, (c // group, group)) * rstd[..., None]
    shift = (folded.sum(dim=4) * mean).sum(dim=3).view(n, c)
    return folded.view(n, *kernel.shape[1:]), -shift if bias is None else bias - shift


def demodulation(weight: Tensor, kernel: Tensor, eps: float = 1e-8) -> Tensor:
    """Scales for the outputs of the convolution that follows AdaConv: d[n, o] = rsqrt(Σ_i ‖K_i‖² Σ_k W²_oik + ε).

    StyleGAN2's demodulation (Karras et al. 2020, equation 3) with the squared scale of channel i replaced by the
    squared norm of its predicted kernel. As there, the layer's inputs are taken to be independent and of unit variance;
    what is more, so are the outputs of K, which holds exactly only for kernels of 1 × 1 and one channel per group. It
    takes the place of instance normalization. weight [O, C, k, k], kernel [N, C, C/G, k, k] → [N, O].
    """
    power = kernel.square().sum(dim=(2, 3, 4))
    return (power @ weight.square().sum(dim=(2, 3)).t() + eps).rsqrt()


class KernelPredictor(nn.Module):
    """Predicts a layer's kernels from a style map W: [N, S, k, k] → AdaConvKernels (paper, section 3.2).

    A k × k convolution of W gives the depthwise kernels, 1 × 1 convolutions of the pooled W give the pointwise kernels
    and the bias. Unlike in the paper, each kernel is the identity plus a scaled deviation, as StyleGAN's scales start
    at 1, and where the style also is a vector, as `w` in the generator, that vector replaces the pooled W.

    Args:
        style_channels: S.
        channels, group: C and C/G of the layer.
        kernel_size: k, odd; also the size of the style map.
        depthwise_scale, pointwise_scale: initial standard deviation of the kernels' deviations from the identity, for
            a style of unit variance.
        mixing_scale: the same for the entries of the pointwise kernel that connect different channels of a group.
        bias: whether a bias is predicted.
        pooled_channels: length of the vector that replaces the pooled W; None if W itself is pooled.
        border: what the k × k convolution sees beyond the border of W, "zeros" or "reflect".

    Raises:
        ValueError: if the groups do not divide the channels, or kernel_size is even.
    """

    identity: Tensor
    pointwise_scale: Tensor

    def __init__(
        self,
        style_channels: int,
        channels: int,
        group: int,
        kernel_size: int = 3,
        depthwise_scale: float = 0.3,
        pointwise_scale: float = 1.0,
        mixing_scale: float = 1.0,
        bias: bool = True,
        pooled_channels: int | None = None,
        border: PaddingMode = "zeros",
    ):
        super().__init__()
        if channels % group:
            raise ValueError(f"group: {channels} channels cannot be divided into groups of {group}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
        self.group, self.depthwise_scale, self.border = group, depthwise_scale, border
        out, pooled = channels * group, pooled_channels or style_channels
        self.depthwise_weight = nn.Parameter(torch.randn(out, style_channels, kernel_size, kernel_size))
        self.depthwise_bias = nn.Parameter(torch.zeros(out))
        self.pointwise_weight = nn.Parameter(torch.randn(out, pooled))
        self.pointwise_bias = nn.Parameter(torch.zeros(out))
        self.bias_weight = nn.Parameter(torch.randn(channels, pooled)) if bias else None
        self.bias_bias = nn.Parameter(torch.zeros(channels)) if bias else None
        # views are filled, as arithmetic on meta tensors has PyTorch import its compiler: seconds at every load
        identity = torch.zeros(channels // group, group, group)
        identity.diagonal(dim1=1, dim2=2).fill_(1)
        self.register_buffer("identity", identity.flatten(0, 1), persistent=False)  # [C, C/G]: each channel to itself
        scale = torch.full_like(identity, mixing_scale)
        scale.diagonal(dim1=1, dim2=2).fill_(pointwise_scale)
        self.register_buffer("pointwise_scale", scale.flatten(0, 1), persistent=False)

    def forward(self, style: Tensor, pooled: Tensor | None = None) -> AdaConvKernels:
        """style [N, S, k, k]; pooled [N, pooled_channels], or None to pool the style map."""
        n, s, k, _ = style.shape
        if pooled is None:
            pooled = style.sum(dim=(2, 3)) / k  # a mean that keeps the variance of independent entries
        pooled = pooled / pooled.shape[1] ** 0.5  # the equalized learning rate's 1/√fan-in

        weight, bias = self.depthwise_weight * (s * k * k) ** -0.5, self.depthwise_bias
        if self.border == "reflect":
            depthwise = F.conv2d(F.pad(style, [k // 2] * 4, mode="reflect"), weight, bias)
        else:
            depthwise = F.conv2d(style, weight, bias, padding=k // 2)
        depthwise = depthwise.view(n, len(self.identity), self.group, k, k)
        depthwise = F.pad(self.identity[..., None, None], [k // 2] * 4) + depthwise * self.depthwise_scale

        pointwise = F.linear(pooled, self.pointwise_weight, self.pointwise_bias).view(n, len(self.identity), self.group)
        pointwise = self.identity + pointwise * self.pointwise_scale

        if self.bias_weight is None:
            return AdaConvKernels(depthwise, pointwise)
        return AdaConvKernels(depthwise, pointwise, F.linear(pooled, self.bias_weight, self.bias_bias))


class AdaConv2d(nn.Module):
    """The layer: kernels predicted from a style, normalization, and one adaptive convolution.

    Args:
        predictor: a module that maps a style to AdaConvKernels; KernelPredictor is the paper's.
        norm: "instance" normalizes each sample and channel first, as the paper does; "none" takes x as it is, for
            layers whose convolution scales its output by `demodulation`.
        padding_mode: what lies beyond the border, "zeros" or "reflect". Zeros in place of x would not be zeros after
            the normalization, so "instance" requires "reflect".

    Raises:
        ValueError: if norm is unknown, or "instance" is combined with zeros.
    """

    def __init__(
        self,
        predictor: nn.Module,
        norm: Literal["instance", "none"] = "instance",
        padding_mode: PaddingMode = "reflect",
    ):
        super().__init__()
        if norm not in ("instance", "none"):
            raise ValueError(f"norm: expected 'instance' or 'none', got {norm!r}")
        if norm == "instance" and padding_mode != "reflect":
            raise ValueError("norm='instance' needs padding_mode='reflect'")
        self.predictor, self.norm, self.padding_mode = predictor, norm, padding_mode

    def forward(
        self, x: Tensor, style: Tensor | AdaConvKernels, statistics: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """x [N, C, H, W] and a style for the predictor, or kernels that it predicted before → [N, C, H, W].

        All samples may share one style. `statistics`: mean and variance [N, C] for "instance"; None for those of x.
        """
        kernels = style if isinstance(style, AdaConvKernels) else self.predictor(style)
        kernel, bias = kernels.composed, kernels.bias
        if self.norm == "instance":
            kernel, bias = fold_instance_norm(x, kernel, bias, statistics=statistics)
        elif kernel.shape[0] == 1:
            n = x.shape[0]
            kernel, bias = kernel.expand(n, -1, -1, -1, -1), None if bias is None else bias.expand(n, -1)
        return adaconv(x, kernel.to(x.dtype), None if bias is None else bias.to(x.dtype), self.padding_mode)
