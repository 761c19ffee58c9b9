"""Upsample, filter, downsample: the resampling of StyleGAN2, in one operation that is its own gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from torch_utils.ops import native


def setup_filter(taps: Sequence[float]) -> Tensor:
    """A separable low-pass filter from its taps, [f] float32 with sum 1."""
    f = torch.tensor(taps, dtype=torch.float32)
    return f.div_(f.sum())


def upfirdn2d(
    x: Tensor,
    f: Tensor,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Tensor:
    """Inserts zeros, pads, filters and keeps every `down`-th value (Karras et al. 2020, StyleGAN2, appendix B).

    Args:
        x: [N, C, H, W].
        f: a separable filter [f], applied along both axes, or a 2D one [fh, fw].
        up: each value is followed by up - 1 zeros along both axes.
        down: every `down`-th value along both axes is kept.
        padding: zeros to add to the upsampled image, negative to crop: a number or (left, right, top, bottom). No
            side may be cropped so far that nothing of x is left.
        flip_filter: True for a correlation in place of a convolution.
        gain: factor on the result, not negative; up² keeps the brightness when upsampling.

    Returns:
        [N, C, (H·up + top + bottom - fh) // down + 1, (W·up + left + right - fw) // down + 1]; differentiable any
        number of times. In half precision it is computed in float32 and rounded once. Channels-last stays
        channels-last.

    Raises:
        ValueError: if an argument does not fit, or nothing is left of the image.
    """
    if x.ndim != 4:
        raise ValueError(f"x: expected [N, C, H, W], got {list(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x: expected floating point, got {x.dtype}")
    if f.ndim not in (1, 2) or f.numel() == 0:
        raise ValueError(f"f: expected [f] or [fh, fw], got {list(f.shape)}")
    if up < 1 or down < 1:
        raise ValueError(f"up, down: expected 1 or more, got {up} and {down}")
    pad = (padding,) * 4 if isinstance(padding, int) else tuple(padding)
    if len(pad) != 4:
        raise ValueError(f"padding: expected a number or (left, right, top, bottom), got {list(pad)}")
    if gain < 0:
        raise ValueError(f"gain: expected 0 or more, got {gain}")
    for (before, after), size in ((pad[:2], x.shape[3]), (pad[2:], x.shape[2])):
        if -before > (size - 1) * up or -after >= size * up:
            raise ValueError(f"padding: {list(pad)} crops away all of x {list(x.shape)} with up={up}")
    fh, fw = f.shape[0], f.shape[-1]
    height, width = x.shape[2] * up + pad[2] + pad[3], x.shape[3] * up + pad[0] + pad[1]
    if height < fh or width < fw:
        raise ValueError(f"x: {height}x{width} after upsampling and padding is smaller than the filter {fh}x{fw}")
    f = f.to(dtype=x.dtype, device=x.device)
    if not flip_filter:
        f = f.flip(list(range(f.ndim)))
    if f.ndim == 1 and native.available(x.device.type, "upfirdn2d"):
        return torch.ops.adaconv.upfirdn2d(native.readable(x, "upfirdn2d"), f, up, down, pad, gain)
    return upfirdn2d_reference(x, f, up, down, pad, gain)


def upfirdn2d_reference(x: Tensor, f: Tensor, up: int, down: int, pad: tuple[int, ...], gain: float) -> Tensor:
    """`upfirdn2d` in plain PyTorch, as a correlation with f."""
    dtype = native.reference_dtype(x)
    return _UpFirDn2d.apply(x.to(dtype), f.to(dtype) * gain ** (f.ndim / 2), up, down, pad).to(x.dtype)


def register() -> None:
    """Tells PyTorch the shape of the kernel's result, once it is loaded."""

    @torch.library.register_fake("adaconv::upfirdn2d")
    def _(x: Tensor, f: Tensor, up: int, down: int, padding: Sequence[int], gain: float) -> Tensor:
        n, c, h, w = x.shape
        left, right, top, bottom = padding
        taps = f.shape[0]
        shape = (n, c, (h * up + top + bottom - taps) // down + 1, (w * up + left + right - taps) // down + 1)
        return native.fake_output(shape, x)


class _UpFirDn2d(Function):
    """The correlation with f; its gradient has up and down exchanged and f turned round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Tensor, up: int, down: int, pad: tuple[int, ...]) -> Tensor:
        y = _filter(x, f, up, down, pad)
        ctx.save_for_backward(f)
        ctx.up, ctx.down = up, down
        (h, w), (out_h, out_w), (fh, fw) = x.shape[2:], y.shape[2:], (f.shape[0], f.shape[-1])
        left, _, top, _ = pad
        ctx.pad = (
            fw - 1 - left,
            w * up - out_w * down + left - up + 1,
            fh - 1 - top,
            h * up - out_h * down + top - up + 1,
        )
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (f,) = ctx.saved_tensors
        dx = _UpFirDn2d.apply(dy, f.flip(list(range(f.ndim))), ctx.down, ctx.up, ctx.pad)
        return dx, None, None, None, None


def _filter(x: Tensor, f: Tensor, up: int, down: int, pad: tuple[int, ...]) -> Tensor:
    left, right, top, bottom = pad
    if f.ndim == 2:
        return _filter_axes(x, f, (up, up), (down, down), pad)
    y = _filter_axes(x, f[None, :], (1, up), (1, down), (left, right, 0, 0))
    return _filter_axes(y, f[:, None], (up, 1), (down, 1), (0, 0, top, bottom))


def _filter_axes(x: Tensor, f: Tensor, up: tuple[int, int], down: tuple[int, int], pad: tuple[int, ...]) -> Tensor:
    channels = x.shape[1]
    if channels == 0:  # no channels are no groups either, which a convolution refuses
        left, right, top, bottom = pad
        height = (x.shape[2] * up[0] + top + bottom - f.shape[0]) // down[0] + 1
        width = (x.shape[3] * up[1] + left + right - f.shape[1]) // down[1] + 1
        return x.new_empty(x.shape[0], 0, height, width)
    weight = f.expand(channels, 1, *f.shape)
    if up == (1, 1):
        # zeros before cropping: a crop alone may be larger than the image
        x = F.pad(F.pad(x, [max(p, 0) for p in pad]), [min(p, 0) for p in pad])
        return F.conv2d(x, weight, stride=down, groups=channels)
    # A transposed convolution multiplies no inserted zeros. It gives the full convolution of the upsampled image
    # without the zeros that follow its last value; cropping or padding that gives what `pad` asks for.
    y = F.conv_transpose2d(x, weight.flip([2, 3]), stride=up, groups=channels)
    (fh, fw), (left, right, top, bottom) = f.shape, pad
    crop = [left - fw + 1, right - fw + up[1], top - fh + 1, bottom - fh + up[0]]
    y = F.pad(F.pad(y, [max(p, 0) for p in crop]), [min(p, 0) for p in crop])
    return y[:, :, :: down[0], :: down[1]]
