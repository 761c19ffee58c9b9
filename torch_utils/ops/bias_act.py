"""Bias, activation, gain and clamp in one operation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_utils.ops import native

# Name → (function, the gain that roughly keeps the second moment of unit-variance input).
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "linear": (lambda x: x, 1.0),
    "relu": (F.relu, math.sqrt(2)),
    "lrelu": (lambda x: F.leaky_relu(x, 0.2), math.sqrt(2)),
    "sigmoid": (torch.sigmoid, 1.0),
    "tanh": (torch.tanh, 1.0),
}


def bias_act(
    x: Tensor, bias: Tensor | None = None, act: str = "linear", gain: float | None = None, clamp: float | None = None
) -> Tensor:
    """clamp(gain · act(x + bias)).

    Args:
        x: [N, C, ...].
        bias: [C], or None.
        act: linear, relu, lrelu (slope 0.2), sigmoid or tanh.
        gain: factor after the activation; None takes the activation's own (√2 for relu and lrelu, else 1).
        clamp: limits the result to [-clamp, clamp]; None for no limit.

    Returns:
        The shape of x; twice differentiable. In half precision it is computed in float32 and rounded once.
        Channels-last stays channels-last.

    Raises:
        ValueError: for an unknown activation, an x without channels, or a bias of another length than C.
    """
    if act not in ACTIVATIONS:
        raise ValueError(f"act: expected one of {', '.join(ACTIVATIONS)}, got {act!r}")
    if not x.is_floating_point():
        raise ValueError(f"x: expected floating point, got {x.dtype}")
    if bias is not None:
        if x.ndim < 2:
            raise ValueError(f"x: expected [N, C, ...], got {list(x.shape)}")
        if bias.shape != x.shape[1:2]:
            raise ValueError(f"bias: expected [{x.shape[1]}], got {list(bias.shape)}")
        bias = bias.to(x.dtype)
    if clamp is not None and clamp < 0:
        raise ValueError(f"clamp: expected 0 or more, got {clamp}")
    gain = ACTIVATIONS[act][1] if gain is None else gain
    # the kernel's gradient is computed from y, which is no help where the gain is 0
    if gain != 0 and x.ndim >= 2 and native.available(x.device.type, "bias_act"):
        x, limit = native.readable(x, "bias_act"), -1.0 if clamp is None else clamp
        return torch.ops.adaconv.bias_act(x, bias, list(ACTIVATIONS).index(act), gain, limit)
    return bias_act_reference(x, bias, act, gain, clamp)


def bias_act_reference(x: Tensor, bias: Tensor | None, act: str, gain: float, clamp: float | None) -> Tensor:
    """`bias_act` in plain PyTorch."""
    half, dtype = x.dtype, native.reference_dtype(x)
    x = x.to(dtype)
    if bias is not None:
        x = x + bias.to(dtype).view(-1, *[1] * (x.ndim - 2))
    x = ACTIVATIONS[act][0](x)
    if gain != 1:
        x = x * gain
    if clamp is not None:
        x = x.clamp(-clamp, clamp)
    return x.to(half)


def register() -> None:
    """Tells PyTorch the shapes of the kernels' results, once they are loaded."""

    @torch.library.register_fake("adaconv::bias_act")
    def _(x: Tensor, bias: Tensor | None, act: int, gain: float, clamp: float) -> Tensor:
        return native.fake_output(x.shape, x)

    @torch.library.register_fake("adaconv::bias_act_grad")
    def _(dy: Tensor, y: Tensor, act: int, gain: float, clamp: float, with_bias: bool = True) -> tuple[Tensor, Tensor]:
        return native.fake_output(dy.shape, y), dy.new_empty(dy.shape[1] if with_bias else 0)
