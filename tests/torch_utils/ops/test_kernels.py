"""The C++ and CUDA kernels against the references in float64, and PyTorch's own checks of them.

Memory is poisoned with NaN before each kernel writes its result, so that a value that it leaves out is found.
"""

import random

import pytest
import torch
import torch.nn.functional as F

from torch_utils.ops import adaconv, bias_act, moments, native, setup_filter, upfirdn2d
from torch_utils.ops.adaconv import adaconv_reference
from torch_utils.ops.bias_act import ACTIVATIONS, bias_act_reference
from torch_utils.ops.moments import moments_reference
from torch_utils.ops.upfirdn2d import upfirdn2d_reference

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SIZES = [1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 40, 64, 100, 130]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    if not native.available(request.param):
        pytest.skip(f"no kernels for {request.param} here: see python -m torch_utils.ops")
    return request.param


def poison(count: int, dtype: torch.dtype, device: str) -> None:
    """Leaves NaN in the memory that the next results will be given."""
    blocks = [torch.full((max(count, 1),), float("nan"), dtype=dtype, device=device) for _ in range(3)]
    del blocks


def assert_close(value: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, what: object) -> None:
    assert value.shape == expected.shape, what
    assert value.dtype == dtype, what
    error = (value.double().cpu() - expected.cpu()).norm()
    assert error <= TOLERANCE[dtype] * expected.cpu().norm() + 1e-30, (float(error), what)


def layout(x: torch.Tensor, choose: random.Random) -> torch.Tensor:
    """x contiguous, channels-last, transposed, or every second column of something wider."""
    kind = choose.choice(["contiguous", "contiguous", "channels_last", "transposed", "strided"])
    if kind == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if kind == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if kind == "strided":
        return x.repeat_interleave(2, dim=3)[..., ::2]
    return x


@pytest.mark.parametrize("seed", range(6))
def test_adaconv(seed, device):
    choose = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(60):
        group, size = choose.choice([1, 2, 3, 4, 5, 7, 8, 12, 16]), choose.choice([1, 3, 5, 7])
        n, groups, mode = choose.choice([1, 2, 3]), choose.choice([1, 2, 3]), choose.choice(["zeros", "reflect"])
        h, w = choose.choice(SIZES), choose.choice(SIZES)
        dtype = choose.choice(list(TOLERANCE))
        if mode == "reflect" and min(h, w) <= size // 2:
            continue
        what = (group, size, n, groups, mode, h, w, dtype)
        x = layout(torch.randn(n, group * groups, h, w, device=device).to(dtype), choose).requires_grad_()
        kernel = torch.randn(n, group * groups, group, size, size, device=device).to(dtype).requires_grad_()
        bias = torch.randn(n, group * groups, device=device).to(dtype).requires_grad_()
        dy = layout(torch.randn(n, group * groups, h, w, device=device).to(dtype), choose)
        poison(x.numel(), dtype, device)
        y = adaconv(x, kernel, bias, mode)
        poison(x.numel(), dtype, device)
        gradients = torch.autograd.grad(y, (x, kernel, bias), dy)
        exact = [t.detach().double().cpu().requires_grad_() for t in (x, kernel, bias)]
        expected = adaconv_reference(*exact, mode)
        assert_close(y, expected, dtype, what)
        # a sum of products that cancel is only as exact as what is summed up
        slack = x[0, 0].numel() ** 0.5 if kernel.numel() < 100 else 1
        for gradient, want in zip(gradients, torch.autograd.grad(expected, exact, dy.double().cpu()), strict=True):
            if slack == 1 or want.norm() > 1:
                assert_close(gradient, want, dtype, what)


@pytest.mark.parametrize("seed", range(4))
def test_upfirdn2d(seed, device):
    choose = random.Random(seed)
    torch.manual_seed(seed)
    done = 0
    for _ in range(120):
        up, down = choose.choice([1, 1, 2, 2, 3, 4]), choose.choice([1, 1, 2, 2, 3, 4])
        f = torch.randn(choose.choice([1, 2, 3, 4, 4, 5, 8, 12]), device=device)
        pad = tuple(choose.randint(-4, 9) for _ in range(4))
        dtype = choose.choice(list(TOLERANCE))
        x = torch.randn(choose.choice([1, 2]), 3, choose.choice(SIZES), choose.choice(SIZES), device=device)
        x = layout(x.to(dtype), choose).requires_grad_()
        try:
            poison(x.numel() * (up + 3) ** 2, dtype, device)
            y = upfirdn2d(x, f, up, down, pad, True, 2.5)
        except ValueError:  # nothing is left of the image
            continue
        done += 1
        what = (up, down, len(f), pad, x.shape, dtype)
        exact, taps = x.detach().double().cpu().requires_grad_(), f.to(dtype).double().cpu()
        expected = upfirdn2d_reference(exact, taps, up, down, pad, 2.5)
        assert_close(y, expected, dtype, what)
        dy = torch.randn_like(y)
        poison(x.numel(), dtype, device)
        (gradient,) = torch.autograd.grad(y, x, dy)
        (want,) = torch.autograd.grad(expected, exact, dy.double().cpu())
        assert_close(gradient, want, dtype, what)
    assert done > 60


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_bias_act(act, dtype, device):
    choose = random.Random(0)
    torch.manual_seed(0)
    for shape in [(2, 3), (1, 5, 7), (2, 3, 4, 5), (2, 3, 16, 33), (1, 2, 64, 64), (3, 4, 1000), (0, 3, 4), (2, 3, 0)]:
        for gain, clamp in [(1.0, None), (2**0.5, 2.0), (-0.7, None), (3.0, 1.5)]:
            # half precision rounds to the clamp itself, where it makes a difference what is beyond
            if dtype in (torch.bfloat16, torch.float16) and clamp:
                continue
            x = torch.randn(shape, device=device).to(dtype)
            x = (layout(x, choose) if x.ndim == 4 else x).requires_grad_()
            bias = torch.randn(shape[1], device=device).to(dtype).requires_grad_()
            poison(x.numel(), dtype, device)
            y = bias_act(x, bias, act, gain, clamp)
            dy = torch.randn_like(y)
            poison(x.numel(), dtype, device)
            gradients = torch.autograd.grad(y, (x, bias), dy)
            exact = [t.detach().double().cpu().requires_grad_() for t in (x, bias)]
            expected = bias_act_reference(*exact, act, gain, clamp)
            what = (shape, gain, clamp)
            assert_close(y, expected, dtype, what)
            want = torch.autograd.grad(expected, exact, dy.double().cpu())
            assert_close(gradients[0], want[0], dtype, what)
            # what is summed up may cancel
            scale = max(float(dy.double().norm()), 1e-30)
            assert (gradients[1].double().cpu() - want[1]).norm() <= 3 * TOLERANCE[dtype] * scale, what


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_moments(dtype, device):
    torch.manual_seed(0)
    for h, w, shift in [(1, 1, 0), (5, 7, 0), (17, 65, 30), (64, 128, 100), (1, 1000, 3)]:
        x = (torch.randn(2, 3, h, w, device=device) + shift).to(dtype).requires_grad_()
        values = moments(x)
        exact = x.detach().double().cpu().requires_grad_()
        expected = moments_reference(exact)
        for value, want in zip(values, expected, strict=True):
            assert_close(value, want, dtype, (h, w, shift))
        directions = [torch.randn_like(v) for v in values]
        (gradient,) = torch.autograd.grad(values, x, directions)
        (want,) = torch.autograd.grad(expected, exact, [d.double().cpu() for d in directions])
        # differences of large numbers in half precision
        if dtype in (torch.float32, torch.float64) or shift == 0:
            assert_close(gradient, want, dtype, (h, w, shift))


def test_taps_keep_their_precision(device):
    x, f = torch.ones(1, 1, 1, 1, dtype=torch.float64, device=device), torch.tensor([0.1], dtype=torch.float64)
    assert float(upfirdn2d(x, f)) == 0.1 * 0.1
    x = torch.ones(1, 1, 8, 8, dtype=torch.float64, device=device)
    y = upfirdn2d(x, torch.full((4,), 0.1, dtype=torch.float64))
    assert (y - 0.16).abs().max() < 1e-16


def test_the_gradient_by_the_bias_is_made_only_where_it_is_wanted(device):
    x = torch.randn(2, 3, 4, 5, device=device)
    with_bias, without = (torch.ops.adaconv.bias_act_grad(x, x, 0, 1.0, -1.0, wanted) for wanted in (True, False))
    torch.testing.assert_close(with_bias[1], x.sum((0, 2, 3)))
    assert without[1].numel() == 0
    assert torch.equal(with_bias[0], without[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [21, 23, 35])
def test_large_kernels(size, dtype, device):
    """A GPU's shared memory holds up to 21 × 21; larger ones are left to the reference."""
    torch.manual_seed(0)
    x = torch.randn(1, 2, 36, 37, device=device, dtype=dtype, requires_grad=True)
    kernel = torch.randn(1, 2, 1, size, size, device=device, dtype=dtype, requires_grad=True)
    y = adaconv(x, kernel, None, "reflect")
    exact = [t.detach().double().cpu().requires_grad_() for t in (x, kernel)]
    expected = adaconv_reference(*exact, None, "reflect")
    assert_close(y, expected, dtype, size)
    dy = torch.randn_like(y)
    gradients = torch.autograd.grad(y, (x, kernel), dy)
    for gradient, want in zip(gradients, torch.autograd.grad(expected, exact, dy.double().cpu()), strict=True):
        assert_close(gradient, want, dtype, size)


def test_moments_beside_an_outlier(device):
    x = torch.randn(2, 3, 64, 65, device=device)
    x[:, :, 0, 0] = 1e4
    for value, want in zip(moments(x), moments_reference(x.double()), strict=True):
        assert_close(value, want, torch.float32, "outlier")


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_moments_of_channels_last(dtype, device):
    """Any number of channels, beside a large mean."""
    torch.manual_seed(0)
    for shape in [(2, 64, 33, 40), (1, 3, 9, 130), (3, 37, 5, 7), (2, 130, 16, 17), (1, 256, 1, 1)]:
        x = torch.randn(shape, device=device, dtype=dtype) + (0 if dtype in (torch.float16, torch.bfloat16) else 100)
        other = x.contiguous(memory_format=torch.channels_last)
        for value, want in zip(moments(other), moments_reference(x.double().cpu()), strict=True):
            assert_close(value, want, dtype, shape)


@pytest.mark.gpu
def test_channels_last_stays_channels_last_on_gpus():
    """Forward and backward, as convolutions in half precision want it; and PyTorch is told so."""
    if not torch.cuda.is_available() or not native.available("cuda"):
        pytest.skip("no GPU, or no kernels for it")
    torch.manual_seed(0)
    f = setup_filter([1, 3, 3, 1]).cuda()
    x = torch.randn(2, 32, 8, 16, device="cuda")
    last = {"memory_format": torch.channels_last}
    for op in (lambda x: upfirdn2d(x, f, up=2, padding=2), lambda x: bias_act(x, x.new_ones(32), "lrelu")):
        planes, other = x.clone().requires_grad_(), x.contiguous(**last).requires_grad_()
        y, expected = op(other), op(planes)
        dy = torch.randn_like(expected)
        (dx,) = torch.autograd.grad(y, other, dy.contiguous(**last))
        (want,) = torch.autograd.grad(expected, planes, dy)
        assert y.is_contiguous(**last) and dx.is_contiguous(**last)
        assert torch.equal(y, expected) and torch.equal(dx, want)
        torch.library.opcheck(torch.ops.adaconv.upfirdn2d.default, (other, f, 2, 1, (2, 2, 2, 2), 1.0))
        torch.library.opcheck(torch.ops.adaconv.bias_act.default, (other, None, 2, 1.0, -1.0))


# Derivatives, as PyTorch checks them.


@pytest.mark.parametrize(
    ("group", "mode", "size"), [(1, "zeros", 3), (2, "reflect", 3), (4, "reflect", 5), (2, "zeros", 1)]
)
def test_adaconv_gradcheck(group, mode, size, device):
    torch.manual_seed(0)
    options = {"dtype": torch.float64, "device": device, "requires_grad": True}
    x, bias = torch.randn(2, 4, 5, 6, **options), torch.randn(2, 4, **options)
    kernel = torch.randn(2, 4, group, size, size, **options)
    assert torch.autograd.gradcheck(lambda *a: adaconv(*a, mode), (x, kernel, bias))
    assert torch.autograd.gradgradcheck(lambda *a: adaconv(*a, mode), (x, kernel, bias))


@pytest.mark.parametrize(
    "options",
    [{"up": 2, "padding": (2, 1, 2, 1)}, {"down": 2, "padding": 1}, {"up": 2, "down": 3, "padding": (1, -1, 2, 3)}],
)
def test_upfirdn2d_gradcheck(options, device):
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, device=device, requires_grad=True)
    f = setup_filter([1, 3, 3, 1]).to(device)
    assert torch.autograd.gradcheck(lambda x: upfirdn2d(x, f, **options, gain=2), x)
    assert torch.autograd.gradgradcheck(lambda x: upfirdn2d(x, f, **options, gain=2), x)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize(("gain", "clamp"), [(None, None), (-0.7, 0.6)])
def test_bias_act_gradcheck(act, gain, clamp, device):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, dtype=torch.float64, device=device, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, device=device, requires_grad=True)
    for inputs in [(x, bias), (x, None)]:
        assert torch.autograd.gradcheck(lambda x, b: bias_act(x, b, act, gain, clamp), inputs)
        assert torch.autograd.gradgradcheck(lambda x, b: bias_act(x, b, act, gain, clamp), inputs)


def test_moments_gradcheck(device):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(moments, x)
    assert torch.autograd.gradgradcheck(moments, x)


def test_opcheck(device):
    """Schemas, fake tensors, autograd registration, and dynamic shapes under torch.compile's tracer."""
    ops, check = torch.ops.adaconv, torch.library.opcheck
    options = {"device": device, "requires_grad": True}
    x, kernel, bias = (
        torch.randn(2, 4, 8, 9, **options),
        torch.randn(2, 4, 2, 3, 3, **options),
        torch.randn(2, 4, **options),
    )
    dy, b = torch.randn(2, 4, 8, 9, **options), torch.randn(4, **options)
    for reflect in (False, True):
        check(ops.adaconv.default, (x, kernel, bias, reflect))
        check(ops.adaconv.default, (x, kernel, None, reflect))
        check(ops.adaconv_grad_x.default, (dy, kernel, reflect))
        check(ops.adaconv_grad_kernel.default, (x, dy, list(kernel.shape), reflect))
    check(ops.upfirdn2d.default, (x, setup_filter([1, 3, 3, 1]).to(device), 2, 1, [2, 1, 2, 1], 4.0))
    check(ops.bias_act.default, (x, b, 2, 1.4, 256.0))
    check(ops.bias_act.default, (x, None, 3, 1.4, -1.0))
    check(ops.bias_act_grad.default, (dy, x, 2, 1.4, 256.0))
    check(ops.moments.default, (x,))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_opcheck_of_channels_last(dtype, device):
    """Which order results have, in each type."""
    ops, check = torch.ops.adaconv, torch.library.opcheck
    tests = ("test_schema", "test_faketensor")
    x = torch.randn(2, 4, 8, 9, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    kernel, f = torch.randn(2, 4, 2, 3, 3, device=device).to(dtype), setup_filter([1, 3, 3, 1]).to(device, dtype)
    for other in (x, x.contiguous()):
        check(ops.adaconv.default, (x, kernel, None, True), test_utils=tests)
        check(ops.adaconv_grad_x.default, (x, kernel, True), test_utils=tests)
        check(ops.adaconv_grad_kernel.default, (x, other, list(kernel.shape), True), test_utils=tests)
        check(ops.adaconv_grad_kernel.default, (other, x, list(kernel.shape), True), test_utils=tests)
        check(ops.upfirdn2d.default, (x, f, 2, 1, [2, 1, 2, 1], 4.0), test_utils=tests)
        check(ops.bias_act.default, (x, None, 2, 1.4, 256.0), test_utils=tests)
        check(ops.bias_act_grad.default, (x, other, 2, 1.4, 256.0), test_utils=tests)
        check(ops.bias_act_grad.default, (other, x, 2, 1.4, 256.0), test_utils=tests)
        check(ops.moments.default, (x,), test_utils=tests)


def test_compiled_equals_eager(device):
    """A function of all ops in one graph, without a break, forward and backward."""
    torch.manual_seed(0)
    f = setup_filter([1, 3, 3, 1]).to(device)
    x = torch.randn(2, 4, 8, 8, device=device, requires_grad=True)
    kernel = torch.randn(2, 4, 2, 3, 3, device=device, requires_grad=True)
    bias = torch.randn(4, device=device, requires_grad=True)

    def function(x, kernel, bias):
        mean, var = moments(x)
        y = upfirdn2d(adaconv(x, kernel, mean), f, up=2, padding=(2, 1, 2, 1), gain=4)
        return bias_act(y, bias, "lrelu", clamp=2.0) * var[:, :, None, None]

    results = []
    for g in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
        y = g(x, kernel, bias)
        results.append([y, *torch.autograd.grad(y.square().sum(), (x, kernel, bias))])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)


# Bad input.


def test_thousands_of_random_arguments_give_an_error_or_a_result(device):
    """Whatever the shapes: a Python error that begins with an argument's name, or a result of the right shape."""
    choose = random.Random(0)

    def shape(length):
        return [choose.choice([0, 1, 1, 2, 2, 3, 4, 5, 6, 8]) for _ in range(length)]

    def tensor(length):
        dtype = choose.choice([torch.float32] * 8 + [torch.float64, torch.int32])
        return torch.zeros(shape(length), device=device).to(dtype)

    def near(x, kernel):  # mostly shapes that almost fit, as a mistake would be
        if x.ndim == 4 and choose.random() < 0.8:
            n, c = x.shape[:2]
            size = choose.choice([1, 2, 3, 3, 3, 5])
            return torch.zeros(n, c, choose.choice([1, 2, 3, 4, c]), size, choose.choice([size, 3]), device=device)
        return kernel

    def attempt(x, kernel, bias):
        op = choose.choice(["adaconv", "upfirdn2d", "bias_act", "moments"])
        if op == "adaconv":
            adaconv(x, kernel, bias, choose.choice(["zeros", "reflect", "circular"]))
        elif op == "upfirdn2d":
            upfirdn2d(x, tensor(choose.choice([1, 1, 1, 2, 3])), *shape(2), [v - 2 for v in shape(4)])
        elif op == "bias_act":
            bias_act(x, choose.choice([None, tensor(1)]), choose.choice([*ACTIVATIONS, "gelu"]), 1.0, None)
        else:
            moments(x)

    errors, results = 0, 0
    for _ in range(3000):
        x = tensor(choose.choice([4, 4, 4, 4, 3, 5, 0]))
        kernel = near(x, tensor(choose.choice([5, 5, 4])))
        bias = choose.choice([None, tensor(2), x.new_zeros(x.shape[:2])])
        try:
            attempt(x, kernel, bias)
            results += 1
        except (ValueError, TypeError) as error:
            errors += 1
            name = str(error).split(":")[0]
            names = {"x", "kernel", "bias", "kernel, bias", "padding_mode", "f", "up, down", "padding", "act", "gain"}
            assert name in names, error
    assert errors > 500
    assert results > 300


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o, t: o.adaconv(t(2, 3, 4), t(2, 3, 1, 3, 3), None, False), "^x: "),
        (lambda o, t: o.adaconv(t(2, 3, 4, 4), t(2, 3, 2, 3, 3), None, False), "^kernel: "),
        (lambda o, t: o.adaconv(t(2, 3, 4, 4), t(2, 3, 1, 3, 3).double(), None, False), "dtype"),
        (lambda o, t: o.adaconv(t(2, 3, 4, 4), t(2, 3, 1, 3, 3), t(3), False), "^bias: "),
        (lambda o, t: o.adaconv(t(2, 3, 4, 1), t(2, 3, 1, 3, 3), None, True), "too small"),
        (lambda o, t: o.adaconv_grad_x(t(2, 3, 4, 4), t(2, 3, 1, 2, 2), False), "^kernel: "),
        (lambda o, t: o.adaconv_grad_kernel(t(2, 3, 4, 4), t(2, 3, 4, 5), [2, 3, 1, 3, 3], False), "^dy: "),
        (lambda o, t: o.adaconv_grad_kernel(t(2, 3, 4, 4), t(2, 3, 4, 4), [2, 3, -1, 3, 3], False), "^kernel: "),
        (lambda o, t: o.upfirdn2d(t(2, 3, 4, 4), t(9), 1, 1, [0, 0, 0, 0], 1.0), "smaller than the filter"),
        (lambda o, t: o.upfirdn2d(t(2, 3, 4, 4), t(4), 0, 1, [0, 0, 0, 0], 1.0), "^up, down"),
        (lambda o, t: o.upfirdn2d(t(2, 3, 4, 4), t(4), 1, 1, [0, 0], 1.0), "padding"),
        (lambda o, t: o.bias_act(t(2, 3), t(4), 0, 1.0, -1.0), "^bias: "),
        (lambda o, t: o.bias_act(t(2, 3), None, 9, 1.0, -1.0), "^act: "),
        (lambda o, t: o.bias_act_grad(t(2, 3), t(2, 4), 0, 1.0, -1.0), "^y: "),
        (lambda o, t: o.moments(t(2, 3, 0, 4)), "^x: "),
    ],
)
def test_the_kernels_check_for_themselves(call, message, device):
    with pytest.raises(ValueError, match=message):
        call(torch.ops.adaconv, lambda *shape: torch.zeros(shape, device=device))


def test_folded_statistics_equal_normalizing_first(device):
    """The instance-normalized image, reflected, convolved: with statistics and kernel folded into one pass."""
    from networks.adaconv import fold_instance_norm

    torch.manual_seed(0)
    x = 3 * torch.randn(2, 8, 20, 21, dtype=torch.float64, device=device) + 5
    kernel = torch.randn(2, 8, 4, 3, 3, dtype=torch.float64, device=device)
    y = adaconv(x, *fold_instance_norm(x, kernel, None), padding_mode="reflect")
    expected = adaconv_reference(F.instance_norm(x, eps=1e-5), kernel, None, "reflect")
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
