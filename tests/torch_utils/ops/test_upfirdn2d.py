"""ops.upfirdn2d against its definition, value by value in NumPy."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from torch_utils.ops import setup_filter, upfirdn2d

pytestmark = pytest.mark.usefixtures("implementation")

FILTERS = {
    "one tap": [1.5],
    "symmetric": [1.0, 3.0, 3.0, 1.0],
    "asymmetric": [1.0, -2.0, 4.0],
    "2D": [[1.0, 2.0, -1.0], [0.5, 3.0, 5.0]],
}
PADDINGS = [(0, 0, 0, 0), (2, 1, 2, 1), (3, -1, -2, 4), (-1, -1, -1, -1), (7, 6, 5, 8)]


def reference(x, f, up=1, down=1, padding=(0, 0, 0, 0), flip_filter=False, gain=1.0):
    """Insert zeros, pad or crop, convolve, decimate."""
    n, c, h, w = x.shape
    f = np.outer(f, f) if f.ndim == 1 else f
    if flip_filter:
        f = f[::-1, ::-1]
    (fh, fw), (left, right, top, bottom) = f.shape, padding
    upsampled = np.zeros((n, c, h * up, w * up))
    upsampled[:, :, ::up, ::up] = x
    padded = np.zeros((n, c, h * up + top + bottom, w * up + left + right))
    for i in range(padded.shape[2]):
        for j in range(padded.shape[3]):
            if 0 <= i - top < h * up and 0 <= j - left < w * up:
                padded[:, :, i, j] = upsampled[:, :, i - top, j - left]
    y = np.zeros((n, c, padded.shape[2] - fh + 1, padded.shape[3] - fw + 1))
    for i in range(fh):
        for j in range(fw):  # f[0, 0] meets the last value under the filter: a convolution
            y += f[i, j] * padded[:, :, fh - 1 - i :, fw - 1 - j :][:, :, : y.shape[2], : y.shape[3]]
    return gain * y[:, :, ::down, ::down]


def taps(name):
    return torch.tensor(FILTERS[name], dtype=torch.float64)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("down", [1, 2, 4])
@pytest.mark.parametrize("up", [1, 2, 4])
def test_equals_the_definition(up, down, name):
    torch.manual_seed(0)
    x, f = torch.randn(2, 3, 7, 6, dtype=torch.float64), taps(name)
    for padding in PADDINGS:
        for flip, gain in [(False, 1.0), (True, 2.5)]:
            y = upfirdn2d(x, f, up, down, padding, flip, gain)
            expected = torch.from_numpy(reference(x.numpy(), f.numpy(), up, down, padding, flip, gain))
            torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_a_number_pads_all_sides():
    torch.manual_seed(0)
    x, f = torch.randn(1, 2, 5, 4, dtype=torch.float64), taps("2D")
    assert torch.equal(upfirdn2d(x, f, padding=2), upfirdn2d(x, f, padding=(2, 2, 2, 2)))


@pytest.mark.parametrize("name", ["asymmetric", "2D"])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 2), (3, 2), (1, 4), (4, 1)])
def test_derivatives(up, down, name):
    torch.manual_seed(0)
    x, f = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True), taps(name)
    for padding in [(2, 3, 1, 2), (-1, 3, 4, -1)]:

        def op(x, padding=padding):
            return upfirdn2d(x, f, up, down, padding, gain=1.5)

        assert gradcheck(op, x)
        assert gradgradcheck(op, x)


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (4, 3)])
def test_gradient_is_the_adjoint_and_the_gradients_gradient_the_operation(up, down):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64, requires_grad=True)
    y = upfirdn2d(x, taps("2D"), up, down, (3, 1, -1, 5))
    v = torch.randn_like(y, requires_grad=True)
    (adjoint,) = torch.autograd.grad(y, x, v, create_graph=True)
    torch.testing.assert_close((y * v).sum(), (x * adjoint).sum(), rtol=1e-12, atol=0)
    (twice,) = torch.autograd.grad(adjoint, v, x.detach())
    torch.testing.assert_close(twice, y, rtol=1e-12, atol=1e-12)


def test_separable_filter_equals_its_outer_product():
    torch.manual_seed(0)
    x, f = torch.randn(1, 2, 6, 5, dtype=torch.float64), taps("asymmetric")
    options = {"up": 2, "down": 3, "padding": (2, 1, 0, 3), "gain": 4.0}
    torch.testing.assert_close(upfirdn2d(x, f, **options), upfirdn2d(x, torch.outer(f, f), **options))


def test_layout_and_precision():
    torch.manual_seed(0)
    x, f = torch.randn(2, 3, 8, 6), setup_filter([1, 3, 3, 1])
    expected = upfirdn2d(x.double(), f.double(), 2, 1, (2, 1, 2, 1), gain=4)
    for x2, tolerance in [(x, 1e-6), (x.contiguous(memory_format=torch.channels_last), 1e-6), (x.bfloat16(), 2e-2)]:
        y = upfirdn2d(x2, f, 2, 1, (2, 1, 2, 1), gain=4)
        assert y.dtype == x2.dtype
        assert (y.double() - expected).norm() < tolerance * expected.norm()


def test_empty_batch():
    assert upfirdn2d(torch.zeros(0, 3, 8, 6), setup_filter([1, 3, 3, 1]), down=2, padding=1).shape == (0, 3, 4, 3)


def test_setup_filter_sums_to_one():
    assert torch.equal(setup_filter([1, 3, 3, 1]), torch.tensor([0.125, 0.375, 0.375, 0.125]))


def test_resampling_keeps_a_constant_inside():
    x, f = torch.full([1, 1, 6, 8], 0.7, dtype=torch.float64), setup_filter([1, 3, 3, 1])
    up = upfirdn2d(x, f, up=2, padding=(2, 1, 2, 1), gain=4)
    assert up.shape == (1, 1, 12, 16)
    torch.testing.assert_close(up[:, :, 1:-1, 1:-1], torch.full_like(up[:, :, 1:-1, 1:-1], 0.7))
    down = upfirdn2d(x, f, down=2, padding=1)
    assert down.shape == (1, 1, 3, 4)
    torch.testing.assert_close(down[:, :, 1:-1, 1:-1], torch.full_like(down[:, :, 1:-1, 1:-1], 0.7))
    torch.testing.assert_close(float(down[0, 0, 1, 0]), 0.7 * 7 / 8)  # one tap of ⅛ lies beyond the border


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(3, 8, 8)}, r"^x: .*\[N, C, H, W\]"),
        ({"f": torch.tensor(1.0)}, "^f: "),
        ({"f": torch.zeros(0)}, "^f: "),
        ({"f": torch.zeros(2, 2, 2)}, "^f: "),
        ({"up": 0}, "^up, down: .*0 and 1"),
        ({"down": -1}, "^up, down: .*1 and -1"),
        ({"padding": (1, 2)}, r"^padding: .*\[1, 2\]"),
        ({"padding": (-8, 20, 0, 0)}, r"^padding: .*\[-8, 20, 0, 0\] crops away all"),
        ({"padding": (0, 0, 20, -16), "up": 2}, r"^padding: .*crops away all.* up=2"),
        ({"gain": -1.0}, "^gain: .*-1"),
        ({"padding": (0, 0, -3, -3)}, "^x: 2x8 .* smaller than the filter 3x3"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        upfirdn2d(**{"x": torch.zeros(1, 1, 8, 8), "f": torch.ones(3)} | arguments)
