"""ops.adaconv against loops over samples, channels and taps."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from torch_utils.ops import adaconv

pytestmark = pytest.mark.usefixtures("implementation")

MODES = ["zeros", "reflect"]


def extend(x, radius, padding_mode):
    """x with a border of `radius`, built from row and column numbers."""

    def numbers(size):
        i = torch.arange(-radius, size + radius)
        return (size - 1) - ((size - 1) - i.abs()).abs() if padding_mode == "reflect" else i.clamp(0, size - 1)

    def inside(size):
        i = torch.arange(-radius, size + radius)
        return ((i >= 0) & (i < size)).to(x.dtype)

    h, w = x.shape[2:]
    y = x[:, :, numbers(h)][:, :, :, numbers(w)]
    return y if padding_mode == "reflect" else y * inside(h)[:, None] * inside(w)


def reference(x, kernel, bias=None, padding_mode="zeros"):
    """y[n, o] = Σ_i Σ_ab K[n, o, i, a, b] · x[n, i] shifted by (a, b), one term at a time."""
    (n, c, h, w), (group, k) = x.shape, kernel.shape[2:4]
    extended = extend(x, k // 2, padding_mode)
    samples = []
    for s in range(n):
        channels = []
        for o in range(c):
            y = torch.zeros(h, w, dtype=x.dtype) if bias is None else bias[s, o].expand(h, w)
            for i in range(group):
                image = extended[s, o // group * group + i]
                for a in range(k):
                    for b in range(k):
                        y = y + kernel[s, o, i, a, b] * image[a : a + h, b : b + w]
            channels.append(y)
        samples.append(torch.stack(channels))
    return torch.stack(samples)


def arguments(n=2, c=4, group=2, k=3, size=(4, 5), dtype=torch.float64):
    x = torch.randn(n, c, *size, dtype=dtype, requires_grad=True)
    kernel = torch.randn(n, c, group, k, k, dtype=dtype, requires_grad=True)
    bias = torch.randn(n, c, dtype=dtype, requires_grad=True)
    return x, kernel, bias


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_equals_the_loop(group, k, mode):
    torch.manual_seed(0)
    x, kernel, bias = arguments(2, 8, group, k, (5, 7))
    torch.testing.assert_close(adaconv(x, kernel, bias, mode), reference(x, kernel, bias, mode), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(adaconv(x, kernel, None, mode), reference(x, kernel, None, mode), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (3, 3), (8, 5)])
def test_sizes_smaller_and_larger_than_the_kernel(size):
    torch.manual_seed(0)
    x, kernel, bias = arguments(3, 4, 2, 5, size)
    torch.testing.assert_close(adaconv(x, kernel, bias), reference(x, kernel, bias), rtol=1e-12, atol=1e-12)


def test_equals_conv2d_where_all_samples_share_a_kernel():
    torch.manual_seed(0)
    x, kernel, bias = arguments(3, 6, 2, 3, (7, 6))
    kernel, bias = kernel[:1].expand(3, -1, -1, -1, -1), bias[:1].expand(3, -1)
    expected = F.conv2d(x, kernel[0], bias[0], padding=1, groups=3)
    torch.testing.assert_close(adaconv(x, kernel, bias), expected, rtol=1e-12, atol=1e-12)


def test_a_centre_tap_is_the_identity():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 5, 4)
    kernel = torch.zeros(2, 6, 3, 3, 3)
    for o in range(6):
        kernel[:, o, o % 3, 1, 1] = 1
    for mode in MODES:
        assert torch.equal(adaconv(x, kernel, padding_mode=mode), x)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("group", "k"), [(1, 1), (1, 3), (2, 1), (2, 3), (4, 3)])
def test_derivatives(group, k, mode, fast_mode):
    torch.manual_seed(0)
    args = arguments(2, 4, group, k, (3, 2))

    def f(x, kernel, bias):
        return adaconv(x, kernel, bias, mode)

    assert gradcheck(f, args, fast_mode=fast_mode)
    assert gradgradcheck(f, args, fast_mode=fast_mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("group", "k"), [(1, 1), (1, 3), (2, 3), (4, 1), (4, 5)])
def test_first_and_second_derivatives_equal_those_of_the_loop(group, k, mode):
    torch.manual_seed(0)
    args = arguments(2, 4, group, k, (4, 5))
    directions = [torch.randn_like(a) for a in args]

    def derivatives(op):
        first = torch.autograd.grad(op(*args, mode).tanh().sum(), args, create_graph=True)
        second = torch.autograd.grad(sum((g * d).sum() for g, d in zip(first, directions, strict=True)), args)
        return *first, *second

    torch.testing.assert_close(derivatives(adaconv), derivatives(reference), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(8, 5), (16, 2), (9, 6), (2, 3), (3, 3)])
@pytest.mark.parametrize("group", [1, 2])
def test_the_gradient_by_a_reflected_x_is_rounded_once_and_the_same_every_time(group, size, dtype, implementation):
    """What comes back from beyond the border is added before the sum is rounded, and in a fixed order."""
    if implementation == "reference":
        pytest.skip("PyTorch's own gradient of reflection rounds more often")
    torch.manual_seed(0)
    x, kernel, _ = (a.detach().to(dtype) for a in arguments(2, 4, group, 3, size))
    x, dy = x.requires_grad_(), torch.randn_like(x)
    first, second = (torch.autograd.grad(adaconv(x, kernel, None, "reflect"), x, dy)[0] for _ in range(2))
    assert torch.equal(first, second)
    exact = x.detach().double().requires_grad_()
    expected = torch.autograd.grad(reference(exact, kernel.double(), None, "reflect"), exact, dy.double())[0]
    # half a unit in the last place of the result, and what float32's sums are off by
    allowed = torch.finfo(dtype).eps / 2 * expected.abs() + 40 * torch.finfo(torch.float32).eps
    assert ((first.double() - expected).abs() <= allowed).all()


def test_gradients_of_one_argument_alone():
    torch.manual_seed(0)
    x, kernel, _ = arguments()
    dx, dkernel = torch.autograd.grad(adaconv(x, kernel).square().sum(), [x, kernel])
    torch.testing.assert_close(torch.autograd.grad(adaconv(x, kernel.detach()).square().sum(), x)[0], dx)
    torch.testing.assert_close(torch.autograd.grad(adaconv(x.detach(), kernel).square().sum(), kernel)[0], dkernel)


@pytest.mark.parametrize("mode", MODES)
def test_bilinear(mode):
    torch.manual_seed(0)
    (x1, k1, _), (x2, k2, _) = arguments(), arguments()
    y = adaconv(2 * x1 - 3 * x2, k1 + 5 * k2, None, mode)
    parts = [adaconv(x, k, None, mode) for x in (x1, x2) for k in (k1, k2)]
    expected = 2 * parts[0] + 10 * parts[1] - 3 * parts[2] - 15 * parts[3]
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_samples_do_not_see_each_other():
    torch.manual_seed(0)
    x, kernel, bias = arguments(n=3)
    whole = adaconv(x, kernel, bias)
    for i in range(3):
        torch.testing.assert_close(adaconv(x[i : i + 1], kernel[i : i + 1], bias[i : i + 1])[0], whole[i])
    gradient = torch.autograd.grad(whole[1].sum(), [x, kernel, bias])
    for g in gradient:
        assert g[1].any()
        assert not g[0].any() and not g[2].any()


def test_memory_layouts():
    torch.manual_seed(0)
    x, kernel, bias = arguments(2, 4, 2, 3, (5, 6))
    expected = adaconv(x, kernel, bias)
    expected_dx, expected_dkernel = torch.autograd.grad(expected.square().sum(), [x, kernel])
    layouts = [
        lambda t: t.contiguous(memory_format=torch.channels_last),
        lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
        lambda t: torch.stack([t, t], dim=-1)[..., 0],
    ]
    for layout in layouts:
        x2 = layout(x.detach()).requires_grad_()
        kernel2 = kernel.detach().transpose(1, 4).contiguous().transpose(1, 4).requires_grad_()
        y = adaconv(x2, kernel2, bias)
        torch.testing.assert_close(y, expected)
        y = y * layout(y.detach())  # its gradient has the layout too
        dx, dkernel = torch.autograd.grad(y.sum() * 2, [x2, kernel2])
        torch.testing.assert_close(dx, expected_dx)
        torch.testing.assert_close(dkernel, expected_dkernel)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("k", [1, 3])
def test_empty_batch(k, mode):
    x, kernel, bias = arguments(n=0, k=k)
    y = adaconv(x, kernel, bias, mode)
    assert y.shape == x.shape
    gradients = torch.autograd.grad(y.sum(), [x, kernel, bias])
    assert [g.shape for g in gradients] == [x.shape, kernel.shape, bias.shape]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("group", [1, 4])
def test_lower_precision_is_close_to_float64(group, dtype, tolerance):
    torch.manual_seed(0)
    rounded = [a.detach().to(dtype).requires_grad_() for a in arguments(2, 8, group, 3, (9, 8))]
    exact = [a.detach().double().requires_grad_() for a in rounded]
    y, expected = adaconv(*rounded), adaconv(*exact)
    assert y.dtype == dtype
    pairs = [(y, expected)]
    pairs += zip(torch.autograd.grad(y.sum(), rounded[:2]), torch.autograd.grad(expected.sum(), exact[:2]), strict=True)
    for a, b in pairs:
        assert a.dtype == dtype
        assert (a.double() - b).norm() < tolerance * b.norm()


@pytest.mark.parametrize("size", [1, 3])
def test_autocast_takes_its_precision(size):
    x, kernel = torch.randn(2, 4, 6, 6, requires_grad=True), torch.randn(2, 4, 1, size, size, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = adaconv(x, kernel)
    expected = adaconv(x.bfloat16(), kernel.bfloat16())
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)
    dy = torch.randn_like(y)
    gradients, wanted = (torch.autograd.grad(z, (x, kernel), dy) for z in (y, expected))
    for gradient, want in zip(gradients, wanted, strict=True):
        assert gradient.dtype == torch.float32
        assert torch.equal(gradient, want)


def test_one_dtype_for_all():
    with pytest.raises(ValueError, match=r"^kernel, bias: expected torch.float32 on cpu"):
        adaconv(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 1, 3, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("x", "kernel", "bias", "mode", "message"),
    [
        ([4, 5, 5], [2, 4, 1, 3, 3], None, "zeros", r"^x: .*\[N, C, H, W\]"),
        ([2, 4, 5, 5], [2, 4, 3, 3], None, "zeros", r"^kernel: .*\[2, 4, C/G, k, k\]"),
        ([2, 4, 5, 5], [1, 4, 1, 3, 3], None, "zeros", "^kernel: "),
        ([2, 4, 5, 5], [2, 3, 1, 3, 3], None, "zeros", "^kernel: "),
        ([2, 4, 5, 5], [2, 4, 3, 3, 3], None, "zeros", "^kernel: 3 channels a group"),
        ([2, 4, 5, 5], [2, 4, 8, 3, 3], None, "zeros", "^kernel: 8 channels a group"),
        ([2, 4, 5, 5], [2, 4, 0, 3, 3], None, "zeros", "^kernel: 0 channels a group"),
        ([2, 4, 5, 5], [2, 4, 1, 2, 2], None, "zeros", "^kernel: .*odd.*2x2"),
        ([2, 4, 5, 5], [2, 4, 1, 3, 5], None, "zeros", "^kernel: .*square.*3x5"),
        ([2, 4, 5, 5], [2, 4, 1, 3, 3], [4], "zeros", r"^bias: .*\[2, 4\]"),
        ([2, 4, 5, 5], [2, 4, 1, 3, 3], [2, 1], "zeros", "^bias: "),
        ([2, 4, 5, 5], [2, 4, 1, 3, 3], None, "circular", "^padding_mode: .*'circular'"),
        ([2, 4, 5, 2], [2, 4, 1, 5, 5], None, "reflect", "^x: 5x2 is too small"),
    ],
)
def test_errors_name_the_argument(x, kernel, bias, mode, message):
    bias = None if bias is None else torch.zeros(bias)
    with pytest.raises(ValueError, match=message):
        adaconv(torch.zeros(x), torch.zeros(kernel), bias, mode)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_strides_of_dimensions_of_size_one(dtype):
    """They say nothing of where values are; x, the kernels and the gradient by y may come with any."""
    torch.manual_seed(0)

    def restrided(t, choose):
        order = torch.randperm(t.ndim, generator=choose).tolist()
        strides = [
            choose_stride if size == 1 else s for size, s, choose_stride in zip(t.shape, t.stride(), order, strict=True)
        ]
        return t.as_strided(t.shape, strides).requires_grad_()

    choose = torch.Generator().manual_seed(0)
    for n, c, group, k, h, w in [
        (2, 2, 2, 3, 1, 1),
        (1, 4, 2, 3, 1, 1),
        (2, 4, 1, 3, 1, 3),
        (1, 2, 2, 1, 5, 1),
        (3, 1, 1, 3, 1, 1),
    ]:
        x, kernel = torch.randn(n, c, h, w, dtype=dtype), torch.randn(n, c, group, k, k, dtype=dtype)
        dy = torch.randn(n, c, h, w, dtype=dtype)
        plain = [x.clone().requires_grad_(), kernel.clone().requires_grad_()]
        expected = torch.autograd.grad(adaconv(*plain), plain, dy)
        last = x.as_strided(x.shape, (c * h * w, 1, c * w, c)) if h * w == 1 else x  # as channels-last has them
        for variant in (restrided(x, choose), restrided(x, choose), last.requires_grad_()):
            other = [variant, restrided(kernel, choose)]
            gradients = torch.autograd.grad(adaconv(*other), other, restrided(dy, choose).detach())
            for gradient, want in zip(gradients, expected, strict=True):
                torch.testing.assert_close(gradient, want)
