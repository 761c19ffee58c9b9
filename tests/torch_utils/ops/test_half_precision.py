"""All ops in float16 and bfloat16, value by value as close to float64 as rounding allows, in both memory orders.

A result that is added up in float32 and rounded once is off by at most

    u · |exact| + n · 2⁻²⁴ · Σ |terms|        u = eps / 2 of the type, n the number of terms.

The terms' absolute values are added up by the same op in float64, applied to absolute values.
"""

import itertools
import os

import pytest
import torch

from torch_utils.ops import adaconv, bias_act, moments, setup_filter, upfirdn2d
from torch_utils.ops.bias_act import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("implementation")

ORDERS = {"planes": torch.contiguous_format, "channels last": torch.channels_last}
SHAPES = [(2, 64, 8, 16), (1, 48, 9, 7), (2, 19, 5, 33), (1, 3, 40, 40)]
by_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
by_orders = pytest.mark.parametrize(("x_order", "dy_order"), list(itertools.product(ORDERS, ORDERS)))


def draw(shape, dtype, order="planes"):
    return torch.randn(shape).to(dtype).contiguous(memory_format=ORDERS[order] if len(shape) == 4 else ORDERS["planes"])


def exactly(tensors):
    """In float64, contiguous."""
    return [t.detach().double().contiguous().requires_grad_(t.requires_grad) for t in tensors]


def assert_rounded(value, exact, terms, count, what, slack=0.0):
    """`slack`: what else the result may be off by, [as exact]."""
    info = torch.finfo(value.dtype)
    error = (value.double() - exact).abs()
    bound = info.eps / 2 * exact.abs() + (count + 4) * 2.0**-24 * terms.abs() + slack + info.tiny * info.eps
    worst = (error / bound).max() if error.numel() else 0
    assert value.shape == exact.shape, what
    assert worst <= 1.001, (what, float(worst))


def assert_keeps_order(y, x, implementation):
    """What the kernels give has the order of x, so that nothing is converted before the next convolution."""
    if implementation == "kernels":
        for order in ORDERS.values():
            if x.is_contiguous(memory_format=order):
                assert y.is_contiguous(memory_format=order)


def gradients(op, inputs, directions):
    """Of op(*inputs), and what these give when they are differentiated again, one by one."""
    dy = directions[0].detach().requires_grad_()
    first = torch.autograd.grad(op(*inputs), inputs, dy, create_graph=True)
    second = []
    for gradient, direction in zip(first, directions[1:], strict=True):
        of = [*inputs, dy]
        second.append(torch.autograd.grad(gradient, of, direction, retain_graph=True, allow_unused=True))
    return first, second


@by_dtype
@by_orders
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize(("group", "size"), [(1, 3), (2, 3), (8, 3), (3, 5), (16, 1), (24, 3)])
def test_adaconv(group, size, mode, x_order, dy_order, dtype, implementation):
    torch.manual_seed(0)
    for n, h, w in [(2, 8, 16), (1, 9, 33)]:
        channels = group * (5 if group < 16 else 1)
        x = draw((n, channels, h, w), dtype, x_order).requires_grad_()
        kernel, bias = draw((n, channels, group, size, size), dtype).requires_grad_(), draw((n, channels), dtype)
        y = adaconv(x, kernel, bias, mode)
        assert_keeps_order(y, x, implementation)
        exact, absolute = exactly([x, kernel, bias]), exactly([x.abs(), kernel.abs(), bias.abs()])
        what = (group, size, mode, h, w)
        terms = group * size**2
        assert_rounded(y, adaconv(*exact, mode), adaconv(*absolute, mode), terms, what)

        directions = [draw(x.shape, dtype, dy_order), draw(x.shape, dtype, dy_order), draw(kernel.shape, dtype)]
        results = gradients(lambda x, k: adaconv(x, k, None, mode), [x, kernel], directions)
        inputs = [exactly([x, kernel]), [t.detach().abs().requires_grad_() for t in exactly([x, kernel])]]
        ways = [exactly(directions), [t.abs() for t in exactly(directions)]]
        wanted, sums = (
            gradients(lambda x, k: adaconv(x, k, None, mode), i, d) for i, d in zip(inputs, ways, strict=True)
        )
        pixels = h * w
        # of a reflected border each pixel is several terms
        more = 4 if mode == "reflect" else 1
        for i, count in enumerate((terms * more, pixels)):
            assert_rounded(results[0][i], wanted[0][i], sums[0][i], count, (what, "first", i))
        for i, j in itertools.product(range(2), range(3)):
            if wanted[1][i][j] is not None:
                count = max(terms * more, pixels)
                assert_rounded(results[1][i][j], wanted[1][i][j], sums[1][i][j], count, (what, "second", i, j))


@by_dtype
@by_orders
@pytest.mark.parametrize("shape", SHAPES)
def test_upfirdn2d(shape, x_order, dy_order, dtype, implementation):
    torch.manual_seed(0)
    f = torch.randn(4)
    cases = [(1, 1, 2), (2, 1, (2, 1, 2, 1)), (1, 2, 1), (2, 3, (1, -1, 2, 3)), (4, 1, 5), (1, 1, (3, -2, -1, 4))]
    for (up, down, padding), taps in itertools.product(cases, (setup_filter([1, 3, 3, 1]), f, f[:3])):

        def op(x, taps, up=up, down=down, padding=padding):
            return upfirdn2d(x, taps, up, down, padding, gain=2.0)

        x, rounded = draw(shape, dtype, x_order).requires_grad_(), taps.to(dtype).double()
        y = op(x, taps)
        assert_keeps_order(y, x, implementation)
        what = (up, down, padding)
        directions = [draw(y.shape, dtype, dy_order), draw(x.shape, dtype, x_order)]
        (dx,), ((_, ddy),) = gradients(lambda x, taps=taps, op=op: op(x, taps), [x], directions)
        exact, absolute = exactly([x, *directions]), [t.detach().abs() for t in exactly([x, *directions])]
        wanted, sums = [], []
        for (v, *way), filters, into in ((exact, rounded, wanted), (absolute, rounded.abs(), sums)):
            v = v.detach().requires_grad_()
            first, second = gradients(lambda x, t=filters, op=op: op(x, t), [v], way)
            into += [op(v, filters), first[0], second[0][1]]
        for value, want, terms in zip((y, dx, ddy), wanted, sums, strict=True):
            assert_rounded(value, want, terms, 16, what)


@by_dtype
@by_orders
@pytest.mark.parametrize("shape", [*SHAPES, (3, 5), (2, 3, 100)])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_bias_act(act, shape, x_order, dy_order, dtype, implementation):
    torch.manual_seed(0)
    curved = act in ("sigmoid", "tanh")
    for gain, clamp in [(2**0.5, None), (2.0, 1.5), (-0.75, 0.5)]:
        x, bias = draw(shape, dtype, x_order), draw(shape[1:2], dtype)
        spread = bias.double().view(-1, *[1] * (len(shape) - 2))
        if clamp is not None:  # rounded, some others are at the clamp as well
            unclamped = bias_act(x.double(), bias.double(), act, gain)
            x = torch.where((unclamped.abs() - clamp).abs() < 0.02, -spread + 0.125, x).to(x)
        x, bias = x.requires_grad_(), bias.requires_grad_()
        y = bias_act(x, bias, act, gain, clamp)
        assert_keeps_order(y, x, implementation)
        exact = exactly([x, bias])
        size = (exact[0].abs() + spread.abs()) * abs(gain) + abs(gain)
        want = bias_act(*exact, act, gain, clamp)
        assert_rounded(y, want, size.detach(), 4, (act, gain, clamp))

        directions = [draw(shape, dtype, dy_order), draw(shape, dtype, x_order), draw(shape[1:2], dtype)]
        first, second = gradients(lambda x, b, g=gain, c=clamp: bias_act(x, b, act, g, c), [x, bias], directions)
        first_exact, second_exact = gradients(
            lambda x, b, g=gain, c=clamp: bias_act(x, b, act, g, c), exact, exactly(directions)
        )
        # the kernels compute the curves' slopes from the rounded y
        u = torch.finfo(dtype).eps / 2
        off = (2 * u * abs(gain) if curved else 4 * 2.0**-24 * abs(gain)) * directions[0].double().abs()
        rest = [0, *range(2, len(shape))]
        whole = directions[0].double().abs().sum(rest) * abs(gain)
        count = x.numel() // shape[1]
        assert_rounded(first[0], first_exact[0], size * 0, 0, (act, gain, clamp, "dx"), off)
        # CUDA's gradient by the bias adds up what the gradient by x was rounded to, as PyTorch's own operations do
        terms = u * first_exact[0].detach().abs() if "EMULATED_LIBRARY" in os.environ else 0.0
        assert_rounded(first[1], first_exact[1], whole, count, (act, gain, clamp, "db"), (off + terms).sum(rest))
        off = off / directions[0].double().abs().clamp(min=1e-30) * directions[1].double().abs()
        assert_rounded(second[0][2], second_exact[0][2], size * 0, 0, (act, gain, clamp, "ddy"), off)


@by_dtype
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 130, 16, 17), (1, 256, 1, 1), (1, 2, 64, 128)])
def test_moments(shape, order, dtype):
    torch.manual_seed(0)
    for shift in (0.0, 8.0):
        x = (draw(shape, torch.float32) + shift).to(dtype).contiguous(memory_format=ORDERS[order]).requires_grad_()
        values, (exact,) = moments(x), exactly([x])
        wanted, pixels = moments(exact), shape[2] * shape[3]
        # sums of squares are taken around some value of the plane
        spread = (exact - exact[:, :, :1, :1]).square().mean((2, 3)) + 1
        assert_rounded(values[0], wanted[0], exact.abs().mean((2, 3)), 64, (shape, shift, "mean"))
        assert_rounded(values[1], wanted[1], spread, 64, (shape, shift, "var"))
        directions = [draw(shape[:2], dtype), draw(shape[:2], dtype)]
        (dx,) = torch.autograd.grad(values, x, directions)
        (want,) = torch.autograd.grad(wanted, exact, exactly(directions))
        # (dmean + 2 · dvar · (x − mean)) / pixels, of which each part is rounded
        a, b = (d.double()[:, :, None, None] / pixels for d in directions)
        parts = a.abs() + 2 * b.abs() * ((exact - wanted[0][:, :, None, None]).abs() + exact.abs())
        info = torch.finfo(dtype)
        slack = 3 * info.eps * parts.detach() + info.tiny * info.eps * (1 + 2 * shift + exact.detach().abs())
        assert_rounded(dx, want, want, 0, (shape, shift, "dx"), slack)


@by_dtype
def test_rounding_is_to_the_nearest_and_ties_to_even(dtype):
    """All sums of a value and half of its last digit; infinity and numbers that are none stay what they are."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = bits.view(dtype)
    x = x[x.isfinite() & (x.abs() >= torch.finfo(dtype).tiny * 4)]
    y = bias_act(x.view(-1, 1), None, "linear", gain=1.0 + torch.finfo(dtype).eps / 2)
    expected = (x.float() * (1.0 + torch.finfo(dtype).eps / 2)).to(dtype)
    assert torch.equal(y.flatten(), expected)
    special = torch.tensor([[float("inf"), float("-inf"), float("nan"), 0.0] * 9], dtype=dtype)
    result = bias_act(special, None, "linear")
    assert torch.equal(result.isnan(), special.isnan())
    assert torch.equal(result.nan_to_num(7.0), special.nan_to_num(7.0))
