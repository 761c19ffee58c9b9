"""Learned 3 × 3 convolutions, on the CPU by Winograd's algorithm."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_utils.ops import native
from torch_utils.ops.adaconv import PaddingMode

# Lavin and Gray 2016 (Fast Algorithms for Convolutional Neural Networks), F(4 × 4, 3 × 3), here with the points 0, ±√½,
# ±√2 and ∞: a row is 1, p, p² divided by the product of the point's distances from the others.
A, B = 0.5**0.5, 2**0.5
G = (
    (1, 0, 0),
    (-2 / 3, -2 / 3 * A, -1 / 3),
    (-2 / 3, 2 / 3 * A, -1 / 3),
    (1 / 6, B / 6, 1 / 3),
    (1 / 6, -B / 6, 1 / 3),
    (0, 0, 1),
)
LANES = 16  # of float32 in the widest vectors; narrower ones divide it
LEAST_TILES = 64  # of 4 × 4 outputs, for which it pays to transform the weight


class PreparedWeight:
    """A cache of the weight of a convolution in the form that `conv3x3` wants, prepared anew when the weight changes.

    A weight that is trained is never cached, because PyTorch's fused optimizers change weights without counting a
    version. An edit through `weight.data` does not count one either, and goes unnoticed.
    """

    def __init__(self) -> None:
        # the weight, its address and version, and what was prepared from it
        self.kept: tuple[Callable[[], Tensor | None], tuple[int, int] | None, Tensor | None]
        self.kept = (lambda: None, None, None)

    def of(self, weight: Tensor) -> Tensor:
        """[O, I, 3, 3] → U = G g Gᵀ at each of 36 points, [36, I, O rounded up to whole vectors]."""
        has_version = not weight.requires_grad and not weight.is_inference()
        key = (weight.data_ptr(), weight._version) if has_version else None
        find_weight, prepared_for, prepared = self.kept
        if prepared is None or key is None or key != prepared_for or find_weight() is not weight:
            prepared = prepare(weight)
            self.kept = (weakref.ref(weight), key, prepared)
        return prepared

    def __deepcopy__(self, memo: dict[int, object]) -> PreparedWeight:
        return PreparedWeight()

    def __reduce__(self) -> tuple[type[PreparedWeight], tuple[()]]:
        return PreparedWeight, ()


@torch.no_grad()
def prepare(weight: Tensor) -> Tensor:
    """[O, I, 3, 3] → U = G g Gᵀ at each of 36 points, [36, I, O rounded up to whole vectors]."""
    g = torch.tensor(G, dtype=torch.float64)
    of_values = torch.einsum("xk,yl->xykl", g, g).reshape(36, 9).float()
    outputs, inputs = weight.shape[:2]
    values = weight.float().permute(2, 3, 1, 0).reshape(9, inputs * outputs)
    u = (of_values @ values).view(36, inputs, outputs)
    return F.pad(u, [0, -outputs % LANES]).contiguous()


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    padding_mode: PaddingMode = "zeros",
    relu: bool = False,
    prepared: PreparedWeight | None = None,
) -> Tensor:
    """A convolution with one pixel of padding, and ReLU if asked for; differentiable.

    Args:
        x: [N, I, H, W].
        weight, bias: [O, I, 3, 3] and [O] or None.
        padding_mode: what lies beyond the border, zeros or the image reflected.
        relu: applies a ReLU to the result.
        prepared: a cache of the prepared weight, for the next call without gradients.

    Returns:
        [N, O, H, W].

    On the CPU in float32, Winograd's algorithm is used where I is a multiple of 16 and the weight is prepared and no
    gradient is wanted, or O is a multiple as well and there are many pixels. It takes a quarter of the multiplications.
    Results differ from those of a direct convolution by about 1e-6 of their size (the largest by 3e-6).
    """
    if _computable(x, weight, bias):
        reflect, differentiable = padding_mode == "reflect", _differentiable(x, weight, bias)
        if prepared is not None and not differentiable:
            return torch.ops.adaconv.conv3x3(x, prepared.of(weight), bias, len(weight), reflect, relu)
        if len(weight) % LANES == 0 and _enough_tiles(x):
            y = torch.ops.adaconv.winograd(F.pad(x, [1] * 4, mode="reflect") if reflect else x, weight, 1 - reflect)
            y = y if bias is None else y + bias[:, None, None]
            return y.relu_() if relu else y
    return conv3x3_reference(x, weight, bias, padding_mode, relu)


def conv3x3_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, padding_mode: PaddingMode = "zeros", relu: bool = False
) -> Tensor:
    """`conv3x3` in plain PyTorch."""
    if padding_mode == "reflect":
        y = F.conv2d(F.pad(x, [1] * 4, mode="reflect"), weight, bias)
    else:
        y = F.conv2d(x, weight, bias, padding=1)
    return y.relu_() if relu else y


def register() -> None:
    """Tells PyTorch the shapes of the kernels' results, once they are loaded."""

    @torch.library.register_fake("adaconv::winograd")
    def _(x: Tensor, weight: Tensor, padding: int) -> Tensor:
        n, _, h, w = x.shape
        shape = (n, weight.shape[0], h + 2 * padding - 2, w + 2 * padding - 2)
        return x.new_empty(shape).contiguous(memory_format=torch.channels_last)

    @torch.library.register_fake("adaconv::winograd_grad_weight")
    def _(x: Tensor, dy: Tensor, padding: int) -> Tensor:
        return x.new_empty(dy.shape[1], x.shape[1], 3, 3)


def _differentiable(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _enough_tiles(x: Tensor) -> bool:
    """Whether there are many tiles of 4 × 4 pixels, of which half are within the image: others save nothing."""
    n, _, h, w = x.shape
    tiles = n * -(-h // 4) * -(-w // 4)
    return tiles >= LEAST_TILES and n * h * w >= 8 * tiles


def _computable(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether Winograd's algorithm computes this."""
    return (
        x.device.type == "cpu"
        and all(t.dtype == torch.float32 for t in (x, weight, bias) if t is not None)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and weight.shape[1] % LANES == 0
        and weight.numel() > 0
        and native.available("cpu", "conv3x3")
    )
