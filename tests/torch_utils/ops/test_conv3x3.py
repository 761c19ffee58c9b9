"""torch_utils.ops.conv3x3: Winograd's algorithm against the definition, and when it is not taken."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from torch_utils.ops import PreparedWeight, conv3x3, native
from torch_utils.ops.conv3x3 import G, conv3x3_reference, prepare

needs_kernels = pytest.mark.skipif(not native.available("cpu"), reason="no kernels on this machine")


def definition(x, weight, bias, padding_mode, relu):
    """In float64."""
    mode = "constant" if padding_mode == "zeros" else "reflect"
    y = F.conv2d(F.pad(x.double(), [1] * 4, mode=mode), weight.double(), None if bias is None else bias.double())
    return torch.relu(y) if relu else y


def assert_near(y, expected, tolerance=2e-5):
    y, expected = y.detach().double(), expected.detach()
    assert y.shape == expected.shape
    assert float((y - expected).abs().max()) < tolerance * float(expected.abs().max())


def example(inputs=32, outputs=24, size=(9, 14), n=2):
    torch.manual_seed(0)
    return torch.randn(n, inputs, *size), torch.randn(outputs, inputs, 3, 3), torch.randn(outputs)


@needs_kernels
def test_rounding_errors_are_small():
    """Of the deviation of the results, 1.1e-6; the usual points 0, ±1 and ±2 have 2.3e-6, a direct convolution 2e-7."""
    torch.manual_seed(0)
    x, weight = torch.randn(4, 128, 32, 32), torch.randn(64, 128, 3, 3)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    error = torch.ops.adaconv.winograd(x, weight, 1) - exact
    assert error.square().mean().sqrt() < 1.4e-6 * exact.std()


@needs_kernels
@pytest.mark.parametrize(("padding_mode", "relu", "bias"), itertools.product(["zeros", "reflect"], [0, 1], [0, 1]))
def test_equals_the_definition(padding_mode, relu, bias):
    x, weight, b = example()
    b = b if bias else None
    y = conv3x3(x, weight, b, padding_mode, bool(relu), PreparedWeight())
    assert_near(y, definition(x, weight, b, padding_mode, relu))
    assert y.is_contiguous(memory_format=torch.channels_last)
    plain = conv3x3(x, weight, b, padding_mode, bool(relu))
    assert not torch.equal(y, plain)  # the other algorithm


@needs_kernels
@pytest.mark.parametrize("size", [(2, 2), (2, 7), (3, 3), (4, 4), (5, 8), (11, 6), (12, 13)])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_every_size(size, padding_mode):
    x, weight, bias = example(16, 17, size, 3)
    y = conv3x3(x, weight, bias, padding_mode, False, PreparedWeight())
    assert_near(y, definition(x, weight, bias, padding_mode, False))


@needs_kernels
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 1), (16, 3), (64, 16), (48, 100), (512, 256)])
def test_every_number_of_channels(inputs, outputs):
    x, weight, bias = example(inputs, outputs, (10, 10))
    y = conv3x3(x, weight, bias, "reflect", True, PreparedWeight())
    assert_near(y, definition(x, weight, bias, "reflect", True))


@needs_kernels
def test_many_tiles_and_any_strides():
    x, weight, bias = example(16, 16, (130, 90), 3)
    expected = definition(x, weight, bias, "reflect", False)
    for same in (x, x.contiguous(memory_format=torch.channels_last), torch.cat([x, x], 3)[..., :90]):
        assert_near(conv3x3(same, weight, bias, "reflect", False, PreparedWeight()), expected)


@needs_kernels
def test_no_images():
    _, weight, bias = example()
    assert conv3x3(torch.zeros(0, 32, 8, 8), weight, bias, prepared=PreparedWeight()).shape == (0, 24, 8, 8)


@needs_kernels
def test_nan_is_not_lost():
    x, weight, bias = example()
    x[0, 3, 4, 5] = float("nan")
    y = conv3x3(x, weight, bias, relu=False, prepared=PreparedWeight())
    assert y[0, :, 3:6, 4:7].isnan().all() and not y[1].isnan().any()
    relu = conv3x3(x, weight, bias, relu=True, prepared=PreparedWeight())
    assert relu[0, :, 3:6, 4:7].isnan().all()  # as PyTorch's ReLU


def test_the_transform_of_a_kernel():
    """Products at the points 0, ±√½, ±√2 and ∞: values of the kernel as a polynomial, divided by the product of the
    differences from the other points."""
    points = [0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)]
    for row, point in zip(G, points, strict=False):
        factor = math.prod(point - other for other in points if other != point)
        assert row == pytest.approx([point**k / factor for k in range(3)])
    assert G[5] == (0, 0, 1)
    weight = torch.randn(5, 4, 3, 3)
    u = prepare(weight)
    assert u.shape == (36, 4, 16) and not u[:, :, 5:].any()
    g = torch.tensor(G)
    torch.testing.assert_close(u[:, 2, 3].view(6, 6), g @ weight[3, 2] @ g.t())


@needs_kernels
def test_a_changed_weight_is_prepared_again():
    x, weight, bias = example()
    prepared = PreparedWeight()

    def near(w):
        assert_near(conv3x3(x, w, bias, prepared=prepared), definition(x, w, bias, "zeros", False))

    near(weight)
    first = prepared.kept[2]
    near(weight)
    assert prepared.kept[2] is first
    weight.mul_(2)
    near(weight)
    near(torch.randn_like(weight))
    parameter = torch.nn.Parameter(weight)
    with torch.no_grad():
        near(parameter)
        parameter.data = torch.randn_like(weight)
        near(parameter)
    copied = copy.deepcopy(prepared)
    assert copied.kept[2] is None


@needs_kernels
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize(("channels", "size"), [((16, 16), (9, 14)), ((32, 48), (8, 4)), ((64, 16), (5, 21))])
def test_first_and_second_derivatives(padding, channels, size):
    """Of a sum of squares of gradients, as the penalties of training are, against float64 by direct convolutions."""
    torch.manual_seed(0)
    x, weight = torch.randn(3, channels[0], *size), torch.randn(channels[1], channels[0], 3, 3) / channels[0] ** 0.5
    found = []
    for dtype, convolve in ((torch.float32, torch.ops.adaconv.winograd), (torch.float64, direct)):
        a, w = x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
        y = convolve(a, w, padding)
        first = torch.autograd.grad(y.pow(3).sum(), [a, w], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), [a, w])
        found.append([t.detach() for t in (y, *first, *second)])
    for value, expected in zip(*found, strict=True):
        assert_near(value, expected, 1e-4)


def direct(x, weight, padding):
    return F.conv2d(x, weight, padding=padding)


@needs_kernels
def test_training_takes_it_where_it_pays():
    """With 64 tiles of 4 × 4 or more, of zeros and of reflected borders; with fewer, to the last bit PyTorch's."""
    x, weight, bias = example(32, 16, (16, 15), 4)
    for mode, relu in itertools.product(["zeros", "reflect"], [False, True]):
        a, w, b = (t.clone().requires_grad_() for t in (x, weight, bias))
        y = conv3x3(a, w, b, mode, relu)
        exact = [t.double().requires_grad_() for t in (x, weight, bias)]
        expected = definition(*exact, mode, relu)
        assert_near(y, expected)
        assert not torch.equal(y, conv3x3_reference(a, w, b, mode, relu))
        gradients = torch.autograd.grad(y.square().sum(), [a, w, b])
        for value, want in zip(gradients, torch.autograd.grad(expected.square().sum(), exact), strict=True):
            assert_near(value, want, 5e-5)
    few = x[:3]
    assert torch.equal(conv3x3(few, weight, bias), F.conv2d(few, weight, bias, padding=1))


@needs_kernels
def test_autocast_begins_or_ends_between_forward_and_backward():
    """The gradient has the type of what it is of, whatever autocast would convert to by then."""
    x, weight, _ = example(32, 16, (16, 16), 4)
    expected = torch.autograd.grad(
        conv3x3(a := x.requires_grad_(), w := weight.requires_grad_()).square().sum(), [a, w]
    )
    y = conv3x3(x, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(y.square().sum(), [x, weight])
        assert torch.equal(torch.ops.adaconv.winograd(x, weight, 1), y)
    assert all(torch.equal(g, e) for g, e in zip(found, expected, strict=True))


@needs_kernels
def test_tiles_that_are_mostly_empty_are_left_to_pytorch():
    for side, taken in [(2, False), (4, True), (5, False), (6, True), (9, True)]:
        x, weight, _ = example(32, 16, (side, side), 64)
        same = torch.equal(conv3x3(x, weight), F.conv2d(x, weight, padding=1))
        assert same is not taken, side


def test_no_channels_are_a_mistake_as_in_pytorch():
    with pytest.raises(RuntimeError):
        conv3x3(torch.randn(4, 0, 32, 32), torch.randn(0, 0, 3, 3))
    if native.available("cpu"):
        with pytest.raises(ValueError, match="expected multiples"):
            torch.ops.adaconv.winograd(torch.randn(4, 0, 32, 32), torch.randn(0, 0, 3, 3), 1)


@needs_kernels
def test_evaluation_in_training_equals_that_of_the_trained_model():
    """To the last bit, though a weight that is trained is prepared anew for each batch."""
    x, weight, bias = example(32, 16, (16, 16), 4)
    later = conv3x3(x, weight, bias, "reflect", True, PreparedWeight())
    with torch.no_grad():
        y = conv3x3(x, weight.clone().requires_grad_(), bias, "reflect", True, PreparedWeight())
    assert torch.equal(y, later)


@needs_kernels
def test_derivatives_are_the_same_for_any_number_of_threads():
    x, weight = torch.randn(4, 32, 30, 26), torch.randn(48, 32, 3, 3)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            a, w = x.clone().requires_grad_(), weight.clone().requires_grad_()
            y = torch.ops.adaconv.winograd(a, w, 1)
            found.append((y.detach(), *torch.autograd.grad(y.sin().sum(), [a, w])))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True))


@needs_kernels
@pytest.mark.parametrize("wrong", ["channels", "weight", "padding", "gradient", "small"])
def test_a_learned_convolution_refuses_what_would_read_beyond(wrong):
    x, weight, dy, padding = torch.randn(2, 16, 8, 8), torch.randn(16, 16, 3, 3), torch.randn(2, 16, 8, 8), 1
    if wrong == "channels":
        x, weight, dy = x[:, :12], weight[:12, :12], dy[:, :12]
    elif wrong == "weight":
        weight = weight[:, :, :2]
    elif wrong == "padding":
        padding = 3
    elif wrong == "gradient":
        dy = dy[:, :, :7]
    else:
        x, padding = x[:, :, :2], 0
    if wrong != "gradient":
        with pytest.raises(ValueError, match="expected"):
            torch.ops.adaconv.winograd(x, weight, padding)
    if wrong != "weight":
        with pytest.raises(ValueError, match="expected"):
            torch.ops.adaconv.winograd_grad_weight(x, dy, padding)


@needs_kernels
def test_opcheck():
    inputs = torch.randn(2, 16, 8, 9), torch.randn(32, 16, 3, 3)
    torch.library.opcheck(torch.ops.adaconv.winograd, (*(t.requires_grad_() for t in inputs), 1))
    dy = torch.randn(2, 32, 8, 9).requires_grad_()
    torch.library.opcheck(torch.ops.adaconv.winograd_grad_weight, (inputs[0], dy, 1))


def test_where_the_algorithm_is_not_taken():
    """Few pixels, other types and channels that do not fill vectors: the plain way, to the last bit."""
    x, weight, bias = example()
    prepared = PreparedWeight()
    trained = weight.clone().requires_grad_()
    y = conv3x3(x, trained, bias, "reflect", True, prepared)
    expected = F.conv2d(F.pad(x, [1] * 4, mode="reflect"), weight, bias).relu()
    assert torch.equal(y, expected)
    y.sum().backward()
    assert trained.grad.any()
    for x, weight, bias in [(t.double() for t in example()), example(inputs=12), example(inputs=3)]:
        assert torch.equal(conv3x3(x, weight, bias, prepared=prepared), F.conv2d(x, weight, bias, padding=1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv3x3(*example(), prepared=prepared).dtype == torch.bfloat16
    assert prepared.kept[2] is None


@needs_kernels
def test_inference_tensors():
    x, weight, bias = example()
    prepared = PreparedWeight()
    with torch.inference_mode():
        weight = weight.clone()
        for factor in (1, 2):
            weight.mul_(factor)
            y = conv3x3(x, weight, bias, prepared=prepared)
            assert_near(y, definition(x, weight, bias, "zeros", False))


@needs_kernels
@pytest.mark.parametrize("wrong", ["channels", "kernel", "bias", "dtype", "reflect"])
def test_the_kernel_refuses_what_would_read_beyond(wrong):
    x, weight, bias = example()
    u, reflect = prepare(weight), False
    if wrong == "channels":
        x = x[:, :20]
    elif wrong == "kernel":
        u = u[:35]
    elif wrong == "bias":
        bias = bias[:-1]
    elif wrong == "dtype":
        u = u.double()
    else:
        x, reflect = x[:, :, :1], True
    with pytest.raises((ValueError, RuntimeError)):
        torch.ops.adaconv.conv3x3(x, u, bias, 24, reflect, False)


def test_a_weight_that_an_optimizer_changes_is_not_kept():
    """Fused ones do not count it as a change."""
    torch.manual_seed(0)
    x, bias, prepared = torch.randn(1, 32, 8, 8), torch.zeros(16), PreparedWeight()
    weight = torch.nn.Parameter(torch.randn(16, 32, 3, 3))
    adam = torch.optim.Adam([weight], lr=0.1, fused=True)
    for _ in range(2):
        with torch.no_grad():
            assert_near(conv3x3(x, weight, bias, prepared=prepared), definition(x, weight, bias, "zeros", False))
        conv3x3(x, weight, bias, prepared=prepared).square().sum().backward()
        adam.step()


@needs_kernels
@pytest.mark.parametrize("outputs", [1, 3, 8, 9, 24, 33])
def test_wider_vectors_than_the_machines(outputs):
    """What is prepared is padded for the widest: on others there are whole vectors of zeros, which are passed over."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 32, 9, 10), torch.randn(outputs, 32, 3, 3), torch.randn(outputs)
    u = F.pad(prepare(weight), [0, 32])
    y = torch.ops.adaconv.conv3x3(x, u, bias, outputs, True, False)
    assert_near(y, definition(x, weight, bias, "reflect", False))
