"""Grouped convolution with one kernel per sample: the arithmetic of AdaConv.

    y[n, o] = Σ_i x[n, i] ⋆ K[n, o, i] + bias[n, o]        i in the group of o

(x, K) → y is bilinear. Forward, gradient by x and gradient by K are therefore a closed family: the derivatives
of each are made of the other two, and derivatives of any order need no further formula. The family is here twice:
as kernels of our own (csrc/adaconv*.cpp, adaconv.cu, autograd.cpp), and as the reference that they are tested against.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.nn.grad import conv2d_weight

from torch_utils.ops import native

PaddingMode = Literal["zeros", "reflect"]
LARGEST_ON_GPU = 21  # the kernels that fit in a GPU's shared memory in float64; larger ones are left to the reference


def adaconv(x: Tensor, kernel: Tensor, bias: Tensor | None = None, padding_mode: PaddingMode = "zeros") -> Tensor:
    """Convolves every sample with its own grouped kernel; the size stays the same.

    Args:
        x: images or features, [N, C, H, W].
        kernel: [N, C, C/G, k, k], k odd: for each sample and output channel one k × k kernel for each of the C/G
            input channels in its group. Applied as a correlation, as `conv2d` does.
        bias: [N, C], or None.
        padding_mode: what lies beyond the border: zeros, or the image reflected (needs H, W > k // 2).

    Returns:
        [N, C, H, W], twice differentiable by all three tensors. In half precision everything is added up in float32.
        Channels-last stays channels-last, but in the plain reference.

    Under autocast, all three tensors are converted to its precision first.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit together, named with what was expected.
    """
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):  # meta has no autocast, and PyTorch raises for it
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return adaconv(x.to(dtype), kernel.to(dtype), None if bias is None else bias.to(dtype), padding_mode)
    _check(x, kernel, bias, padding_mode)
    fits = kernel.shape[-1] <= LARGEST_ON_GPU or not native.on_gpu(x)
    if fits and native.available(device, "adaconv"):
        return torch.ops.adaconv.adaconv(native.readable(x, "adaconv"), kernel, bias, padding_mode == "reflect")
    return adaconv_reference(x, kernel, bias, padding_mode)


def adaconv_reference(
    x: Tensor, kernel: Tensor, bias: Tensor | None = None, padding_mode: PaddingMode = "zeros"
) -> Tensor:
    """`adaconv` in plain PyTorch."""
    half, dtype = x.dtype, native.reference_dtype(x)
    x, kernel, bias = x.to(dtype), kernel.to(dtype), None if bias is None else bias.to(dtype)
    size = kernel.shape[-1]
    if kernel.shape[2:] == (1, 1, 1) or x.numel() == 0:
        y = x * kernel[:, :, 0, :1, :1]  # one number a channel: AdaIN's scale, StyleGAN2's modulation
    else:
        open_batch = torch.compiler.is_exporting() and not isinstance(x.shape[0], int)
        convolve = _one_by_one if open_batch else _Forward.apply
        if padding_mode == "reflect" and size > 1:
            y = convolve(F.pad(x, [size // 2] * 4, mode="reflect"), kernel, 0)
        else:
            y = convolve(x, kernel, size // 2)
    return (y if bias is None else y + bias[:, :, None, None]).to(half)


def _check(x: Tensor, kernel: Tensor, bias: Tensor | None, padding_mode: str) -> None:
    if x.ndim != 4:
        raise ValueError(f"x: expected [N, C, H, W], got {list(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x: expected floating point, got {x.dtype}")
    n, c = x.shape[:2]
    if kernel.ndim != 5 or kernel.shape[:2] != x.shape[:2]:
        raise ValueError(f"kernel: expected [{n}, {c}, C/G, k, k] for x {list(x.shape)}, got {list(kernel.shape)}")
    group, height, width = kernel.shape[2:]
    if group == 0 or c % group:
        raise ValueError(f"kernel: {group} channels a group do not divide the {c} channels of x")
    if height != width or height % 2 == 0:
        raise ValueError(f"kernel: expected an odd square size, got {height}x{width}")
    if bias is not None and bias.shape != x.shape[:2]:
        raise ValueError(f"bias: expected [{n}, {c}], got {list(bias.shape)}")
    if any(t is not None and (t.dtype, t.device) != (x.dtype, x.device) for t in (kernel, bias)):
        raise ValueError(f"kernel, bias: expected {x.dtype} on {x.device} as x")
    if padding_mode not in ("zeros", "reflect"):
        raise ValueError(f"padding_mode: expected 'zeros' or 'reflect', got {padding_mode!r}")
    if padding_mode == "reflect" and min(x.shape[2:]) <= height // 2:
        raise ValueError(f"x: {x.shape[2]}x{x.shape[3]} is too small to be reflected for a kernel of {height}x{height}")


def register() -> None:
    """Tells PyTorch the shapes of the kernels' results, once they are loaded."""

    @torch.library.register_fake("adaconv::adaconv")
    def _(x: Tensor, kernel: Tensor, bias: Tensor | None, reflect: bool) -> Tensor:
        return native.fake_output(x.shape, x)

    @torch.library.register_fake("adaconv::adaconv_grad_x")
    def _(dy: Tensor, kernel: Tensor, reflect: bool) -> Tensor:
        return native.fake_output(dy.shape, dy)

    @torch.library.register_fake("adaconv::adaconv_grad_kernel")
    def _(x: Tensor, dy: Tensor, shape: Sequence[int], reflect: bool) -> Tensor:
        return x.new_empty(shape)


# The closed family in plain PyTorch. `conv2d` takes one kernel for a whole batch: here the N samples in G groups become
# N·G groups of one sample, [1, N·C, H, W], so that a batch is one call and not a loop. (Left to autograd, the second
# derivative of a grouped convolution would run through the groups one by one.)
# p is the zero padding on each side; x [N, C, H, W], y [N, C, H+2p-k+1, W+2p-k+1].


def _one_sample(x: Tensor) -> Tensor:
    shape = (1, x.shape[0] * x.shape[1], *x.shape[2:])
    # The strides of dimensions of size 1 can be anything. By them PyTorch may take x for channels-last, and then fail.
    return x.flatten().view(shape) if x.is_contiguous() else x.reshape(shape)


def _groups(kernel: Tensor) -> int:
    n, c, group = kernel.shape[:3]
    return n * c // group


def _one_by_one(x: Tensor, kernel: Tensor, p: int) -> Tensor:
    """y = x ⋆ K in an exported graph that takes batches of any size N.

    There the number of groups is part of an operator, and so cannot be N·G. Instead there is a loop over the samples
    with G groups each: ONNX's Scan. It takes less time than a matrix product for each group, as the groups are small
    (benchmarks/bench_export.py).
    """
    from torch._higher_order_ops.scan import scan  # no public name yet, and needed here only

    def one(nothing: Tensor, sample: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, kernel = sample
        groups = kernel.shape[0] // kernel.shape[1]
        return nothing.clone(), F.conv2d(x[None], kernel, padding=p, groups=groups)[0]

    return scan(one, x.new_zeros([]), (x, kernel))[1]


class _Forward(Function):
    """y = x ⋆ K."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, p: int) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.p = p
        y = F.conv2d(_one_sample(x), _one_sample(kernel)[0], padding=p, groups=_groups(kernel))
        return y.view(x.shape[0], x.shape[1], *y.shape[2:])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        dx = _GradX.apply(dy, kernel, ctx.p) if ctx.needs_input_grad[0] else None
        dkernel = _GradKernel.apply(x, dy, kernel.shape, ctx.p) if ctx.needs_input_grad[1] else None
        return dx, dkernel, None


class _GradX(Function):
    """dx = dy ∗ K, the transposed convolution."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, kernel: Tensor, p: int) -> Tensor:
        ctx.save_for_backward(dy, kernel)
        ctx.p = p
        dx = F.conv_transpose2d(_one_sample(dy), _one_sample(kernel)[0], padding=p, groups=_groups(kernel))
        return dx.view(dy.shape[0], dy.shape[1], *dx.shape[2:])

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:
        dy, kernel = ctx.saved_tensors
        ddy = _Forward.apply(ddx, kernel, ctx.p) if ctx.needs_input_grad[0] else None
        dkernel = _GradKernel.apply(ddx, dy, kernel.shape, ctx.p) if ctx.needs_input_grad[1] else None
        return ddy, dkernel, None


class _GradKernel(Function):
    """dK = x ⋆ dy, for each sample, and each pair of channels in a group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dy: Tensor, shape: torch.Size, p: int) -> Tensor:
        ctx.save_for_backward(x, dy)
        ctx.p = p
        n, c, group = shape[:3]
        dkernel = conv2d_weight(_one_sample(x), (n * c, *shape[2:]), _one_sample(dy), padding=p, groups=n * c // group)
        return dkernel.view(shape)

    @staticmethod
    def backward(ctx: Any, ddkernel: Tensor) -> tuple[Tensor | None, ...]:
        x, dy = ctx.saved_tensors
        dx = _GradX.apply(dy, ddkernel, ctx.p) if ctx.needs_input_grad[0] else None
        ddy = _Forward.apply(x, ddkernel, ctx.p) if ctx.needs_input_grad[1] else None
        return dx, ddy, None, None
