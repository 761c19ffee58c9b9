"""Mean and variance of every sample and channel: what instance normalization needs."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_utils.ops import native


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [N, C, H, W] → mean and variance (of the population, not of a sample) over H and W, both [N, C].

    Twice differentiable. In half precision the sums are in float32.

    Raises:
        ValueError: where x has another shape, or no pixels.
    """
    if x.ndim != 4 or x.shape[2] * x.shape[3] == 0:
        raise ValueError(f"x: expected [N, C, H, W] with pixels, got {list(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x: expected floating point, got {x.dtype}")
    if native.available(x.device.type, "moments"):
        return torch.ops.adaconv.moments(native.readable(x, "moments"))
    return moments_reference(x)


def moments_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """`moments` in plain PyTorch."""
    var, mean = torch.var_mean(x.to(native.reference_dtype(x)), dim=(2, 3), correction=0)
    return mean.to(x.dtype), var.to(x.dtype)


def register() -> None:
    """Tells PyTorch the shapes of the kernel's results, once it is loaded."""

    @torch.library.register_fake("adaconv::moments")
    def _(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])
