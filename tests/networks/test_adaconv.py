"""networks.adaconv: the three exact facts of the layer, its predecessors as special cases, and the predictor."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks.adaconv import AdaConv2d, AdaConvKernels, KernelPredictor, demodulation, fold_instance_norm
from torch_utils.ops import adaconv

GROUPS = [1, 2, 4, 8]


def random_kernels(n=3, c=8, group=2, k=3, bias=True):
    return AdaConvKernels(
        torch.randn(n, c, group, k, k, dtype=torch.float64),
        torch.randn(n, c, group, dtype=torch.float64),
        torch.randn(n, c, dtype=torch.float64) if bias else None,
    )


def one_after_the_other(x, kernels, padding_mode):
    """The definition, sample by sample: the depthwise convolution, the pointwise one, both grouped, and the bias."""
    c, group, k = kernels.depthwise.shape[1:4]
    x = F.pad(x, [k // 2] * 4, mode="constant" if padding_mode == "zeros" else "reflect")
    ys = []
    for i in range(len(x)):
        y = F.conv2d(x[i : i + 1], kernels.depthwise[i], groups=c // group)
        y = F.conv2d(y, kernels.pointwise[i, :, :, None, None], groups=c // group)
        ys.append(y if kernels.bias is None else y + kernels.bias[i][:, None, None])
    return torch.cat(ys)


def normalized(x, eps=1e-5):
    """(x − μ) / σ, channel by channel."""
    y = torch.empty_like(x)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            values = x[n, c]
            variance = (values - values.mean()).square().mean()
            y[n, c] = (values - values.mean()) / (variance + eps).sqrt()
    return y


def relative_difference(a, b):
    return float((a - b).norm() / b.norm())


class Fixed(nn.Module):
    """A predictor that says the same of every style."""

    def __init__(self, kernels):
        super().__init__()
        self.kernels = kernels

    def forward(self, style):
        return self.kernels


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("group", GROUPS)
def test_the_composed_kernel_does_both_convolutions(group, k, padding_mode):
    torch.manual_seed(0)
    x, kernels = torch.randn(3, 8, 9, 6, dtype=torch.float64), random_kernels(group=group, k=k)
    y = AdaConv2d(Fixed(kernels), norm="none", padding_mode=padding_mode)(x, torch.zeros(3, 1))
    assert relative_difference(y, one_after_the_other(x, kernels, padding_mode)) < 1e-12


def test_composed_equals_its_formula():
    torch.manual_seed(0)
    kernels = random_kernels(2, 6, 3, 3)
    expected = torch.zeros(2, 6, 3, 3, 3, dtype=torch.float64)
    for o in range(6):
        first = o // 3 * 3
        for i in range(3):
            for m in range(3):
                expected[:, o, i] += kernels.pointwise[:, o, m, None, None] * kernels.depthwise[:, first + m, i]
    torch.testing.assert_close(kernels.composed, expected, rtol=1e-12, atol=1e-12)


def test_kernels_may_be_used_without_a_gradient_first():
    torch.manual_seed(0)
    layer = AdaConv2d(KernelPredictor(8, 8, 2))
    kernels, x = layer.predictor(torch.randn(1, 8, 3, 3)), torch.randn(1, 8, 6, 6)
    with torch.no_grad():
        first = layer(x, kernels)
    second = layer(x, kernels)
    second.square().sum().backward()
    assert torch.equal(first, second.detach())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.predictor.parameters())


def test_kernels_without_values_have_shapes():
    with torch.device("meta"):
        assert random_kernels(2, 8, 4).composed.shape == (2, 8, 4, 3, 3)


def test_kernels_may_be_changed_and_optimized():
    torch.manual_seed(0)
    kernels, x = random_kernels(1, 4, 2), torch.randn(1, 4, 6, 6, dtype=torch.float64)
    layer = AdaConv2d(Fixed(kernels))

    def expected():
        return one_after_the_other(normalized(x), kernels, "reflect")

    assert relative_difference(layer(x, kernels), expected()) < 1e-12
    kernels.pointwise = torch.randn_like(kernels.pointwise)
    assert relative_difference(layer(x, kernels), expected()) < 1e-12
    parts = kernels.depthwise, kernels.pointwise
    optimizer = torch.optim.SGD([part.requires_grad_() for part in parts], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        layer(x, kernels).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            assert relative_difference(layer(x, kernels), expected()) < 1e-12


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("group", GROUPS)
def test_folding_equals_normalizing_first(group, k, bias):
    torch.manual_seed(0)
    x = 3 * torch.randn(3, 8, 9, 6, dtype=torch.float64) + 5 * torch.randn(3, 8, 1, 1, dtype=torch.float64)
    kernels = random_kernels(group=group, k=k, bias=bias)
    expected = one_after_the_other(normalized(x), kernels, "reflect")
    layer = AdaConv2d(Fixed(kernels), norm="instance", padding_mode="reflect")
    assert relative_difference(layer(x, torch.zeros(3, 1)), expected) < 1e-12
    # zeros beyond the border of the normalized image are the channel mean beyond the border of x
    kernel, shift = fold_instance_norm(x, kernels.composed, kernels.bias)
    mean = x.mean(dim=(2, 3), keepdim=True)
    padded = F.pad(x - mean, [k // 2] * 4) + mean
    y = adaconv(padded, kernel, shift)
    inside = y[:, :, k // 2 : k // 2 + 9, k // 2 : k // 2 + 6]
    assert relative_difference(inside, one_after_the_other(normalized(x), kernels, "zeros")) < 1e-12


def test_folding_keeps_the_derivatives():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    kernels = random_kernels(2, 4, 2)
    layer, v = AdaConv2d(Fixed(kernels)), torch.randn_like(x)

    def normalized_first(x):
        mean, variance = x.mean(dim=(2, 3), keepdim=True), x.var(dim=(2, 3), keepdim=True, correction=0)
        return one_after_the_other((x - mean) / (variance + 1e-5).sqrt(), kernels, "reflect")

    def derivatives(y):
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return first, *torch.autograd.grad((first * v).sum(), x)

    torch.testing.assert_close(derivatives(layer(x, v)), derivatives(normalized_first(x)), rtol=1e-9, atol=1e-9)


def test_bilinear_in_the_image_and_each_kernel():
    torch.manual_seed(0)
    x1, x2 = torch.randn(2, 3, 8, 5, 6, dtype=torch.float64)
    a, b = random_kernels(bias=False), random_kernels(bias=False)
    layer = AdaConv2d(nn.Identity(), norm="none", padding_mode="zeros")

    def close(y, expected):
        torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)

    close(layer(2 * x1 - 3 * x2, a), 2 * layer(x1, a) - 3 * layer(x2, a))
    mixed = AdaConvKernels(2 * a.depthwise - 3 * b.depthwise, a.pointwise)
    close(layer(x1, mixed), 2 * layer(x1, a) - 3 * layer(x1, AdaConvKernels(b.depthwise, a.pointwise)))
    mixed = AdaConvKernels(a.depthwise, 2 * a.pointwise - 3 * b.pointwise)
    close(layer(x1, mixed), 2 * layer(x1, a) - 3 * layer(x1, AdaConvKernels(a.depthwise, b.pointwise)))


def test_adain_is_the_special_case_of_1x1_kernels_and_groups_of_one():
    torch.manual_seed(0)
    x = 2 * torch.randn(3, 8, 6, 5, dtype=torch.float64) + 1
    kernels = random_kernels(group=1, k=1)
    y = AdaConv2d(Fixed(kernels), norm="instance")(x, torch.zeros(3, 1))
    scale = (kernels.depthwise[..., 0, 0] * kernels.pointwise)[..., None]
    expected = scale * normalized(x) + kernels.bias[:, :, None, None]
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_instance_norm_takes_away_scale_and_offset():
    torch.manual_seed(0)
    x, kernels = torch.randn(3, 8, 6, 5, dtype=torch.float64), random_kernels()
    layer = AdaConv2d(Fixed(kernels))
    scale, offset = torch.rand(2, 3, 8, 1, 1, dtype=torch.float64)
    y, same = layer(x, x), layer(100 * (scale + 1) * x + offset, x)
    assert relative_difference(same, y) < 1e-4  # but for ε


def test_the_layer_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"norm: .*'batch'"):
        AdaConv2d(nn.Identity(), norm="batch")
    with pytest.raises(ValueError, match="reflect"):
        AdaConv2d(nn.Identity(), norm="instance", padding_mode="zeros")
    with pytest.raises(ValueError, match="8 channels cannot be divided into groups of 3"):
        KernelPredictor(4, 8, 3)
    with pytest.raises(ValueError, match=r"kernel_size: .*odd"):
        KernelPredictor(4, 8, 2, kernel_size=2)


def test_demodulation_formula():
    torch.manual_seed(0)
    weight = torch.randn(5, 8, 3, 3, dtype=torch.float64)
    kernel = random_kernels(group=4).composed
    for n in range(3):
        for o in range(5):
            power = sum(kernel[n, i].square().sum() * weight[o, i].square().sum() for i in range(8))
            torch.testing.assert_close(demodulation(weight, kernel)[n, o], (power + 1e-8).rsqrt())


@pytest.mark.parametrize(("group", "k"), [(1, 1), (1, 3), (4, 3)])
def test_demodulation_keeps_unit_variance(group, k):
    """Over independent inputs and many random weights, inside the border, whatever the size of the kernels."""
    torch.manual_seed(0)
    x, weight = torch.randn(4, 32, 24, 24), torch.randn(256, 32, 3, 3)
    size = torch.tensor([0.01, 1.0, 5.0, 300.0]).view(4, 1, 1, 1, 1)
    kernel = size * torch.rand(4, 32, 1, 1, 1) * torch.randn(4, 32, group, k, k)
    y = F.conv2d(adaconv(x, kernel), weight, padding=1) * demodulation(weight, kernel)[:, :, None, None]
    power = y[:, :, 3:-3, 3:-3].square().mean(dim=(1, 2, 3))
    assert ((power - 1).abs() < 0.1).all(), power


# The predictor.


def predictor(style=6, channels=8, group=2, k=3, depthwise=0.5, pointwise=2.0, mixing=0.25, bias=True, pooled=None):
    """One with random biases, as after some training."""
    module = KernelPredictor(style, channels, group, k, depthwise, pointwise, mixing, bias, pooled).double()
    for parameter in (module.depthwise_bias, module.pointwise_bias, module.bias_bias):
        if parameter is not None:
            nn.init.normal_(parameter)
    return module


def identity_kernels(n, channels, group, k):
    depthwise, pointwise = torch.zeros(n, channels, group, k, k), torch.zeros(n, channels, group)
    for c in range(channels):
        depthwise[:, c, c % group, k // 2, k // 2] = 1
        pointwise[:, c, c % group] = 1
    return depthwise.double(), pointwise.double()


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("group", GROUPS)
def test_without_deviations_the_layer_is_the_identity(group, k):
    torch.manual_seed(0)
    style, x = torch.randn(3, 6, k, k, dtype=torch.float64), torch.randn(3, 8, 7, 6, dtype=torch.float64)
    no_scales = predictor(group=group, k=k, depthwise=0, pointwise=0, mixing=0, bias=False)
    no_weights = predictor(group=group, k=k)
    for parameter in no_weights.parameters():
        nn.init.zeros_(parameter)
    depthwise, pointwise = identity_kernels(3, 8, group, k)
    for module in (no_scales, no_weights):
        kernels = module(style)
        assert torch.equal(kernels.depthwise, depthwise)
        assert torch.equal(kernels.pointwise, pointwise)
        assert kernels.bias is None or not kernels.bias.any()
        assert torch.equal(AdaConv2d(module, norm="none")(x, style), x)
        expected = normalized(x)
        torch.testing.assert_close(AdaConv2d(module)(x, style), expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def deviations(module, style, pooled=None):
    """Depthwise and pointwise kernels less the identity, and the bias."""
    kernels = module(style, pooled)
    n, c, group, k, _ = kernels.depthwise.shape
    depthwise, pointwise = identity_kernels(n, c, group, k)
    return kernels.depthwise - depthwise, kernels.pointwise - pointwise, kernels.bias


def test_depthwise_is_a_convolution_of_the_map():
    """What one entry of the map adds depends on its distance alone, and reaches k // 2 far."""
    torch.manual_seed(0)
    module = predictor(style=2, channels=4, group=2, k=3)
    rest, _, _ = deviations(module, torch.zeros(1, 2, 3, 3, dtype=torch.float64))
    for s in range(2):
        answers = {}
        for a in range(3):
            for b in range(3):
                style = torch.zeros(1, 2, 3, 3, dtype=torch.float64)
                style[0, s, a, b] = 1
                depthwise, _, _ = deviations(module, style)
                for i in range(3):
                    for j in range(3):
                        value = (depthwise - rest)[0, :, :, i, j]
                        if max(abs(i - a), abs(j - b)) > 1:
                            assert not value.any()
                        else:
                            assert value.any()
                            known = answers.setdefault((i - a, j - b), value)
                            torch.testing.assert_close(value, known, rtol=1e-12, atol=1e-12)
        assert len(answers) == 9


def test_pointwise_and_bias_read_the_pooled_map():
    """Their gradient by the map is the same at every position; the depthwise kernels' is not."""
    torch.manual_seed(0)
    module = predictor()
    style = torch.randn(1, 6, 3, 3, dtype=torch.float64, requires_grad=True)
    kernels = module(style)
    for value in [*kernels.pointwise.flatten(), *kernels.bias.flatten()]:
        (gradient,) = torch.autograd.grad(value, style, retain_graph=True)
        assert gradient.any()
        torch.testing.assert_close(gradient, gradient[:, :, :1, :1].expand_as(gradient), rtol=1e-12, atol=1e-14)
    (gradient,) = torch.autograd.grad(kernels.depthwise[0, 0, 0, 1, 1], style)
    assert not torch.allclose(gradient, gradient[:, :, :1, :1].expand_as(gradient))


def test_a_given_vector_takes_the_place_of_the_pooled_map():
    torch.manual_seed(0)
    module = predictor(pooled=10)
    style = torch.randn(2, 6, 3, 3, dtype=torch.float64, requires_grad=True)
    pooled = torch.randn(2, 10, dtype=torch.float64, requires_grad=True)
    kernels = module(style, pooled)
    for value, by_style, by_pooled in [
        (kernels.depthwise, True, False),
        (kernels.pointwise, False, True),
        (kernels.bias, False, True),
    ]:
        gradients = torch.autograd.grad(value[1].sum(), [style, pooled], retain_graph=True, allow_unused=True)
        assert [g is not None for g in gradients] == [by_style, by_pooled]
        (gradient,) = (g for g in gradients if g is not None)
        assert gradient[1].any() and not gradient[0].any()  # each sample its own


def test_all_predictions_are_affine_in_the_style():
    torch.manual_seed(0)
    module = predictor()
    a, b = torch.randn(2, 3, 6, 3, 3, dtype=torch.float64)
    middle = zip(deviations(module, a), deviations(module, b), deviations(module, (a + b) / 2), strict=True)
    for of_a, of_b, of_middle in middle:
        torch.testing.assert_close((of_a + of_b) / 2, of_middle, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(of_a, of_b)


@pytest.mark.parametrize("pooled", [None, 40])
def test_deviations_start_as_large_as_the_arguments_say(pooled):
    torch.manual_seed(0)
    module = KernelPredictor(24, 64, 4, 3, 0.2, 3.0, 0.7, bias=True, pooled_channels=pooled).double()
    style = torch.randn(400, 24, 3, 3, dtype=torch.float64)
    vector = None if pooled is None else torch.randn(400, pooled, dtype=torch.float64)
    depthwise, pointwise, bias = deviations(module, style, vector)
    own = torch.eye(4).repeat(16, 1).bool()
    assert float(depthwise[..., 1, 1].std()) == pytest.approx(0.2, rel=0.1)
    assert float(pointwise[:, own].std()) == pytest.approx(3.0, rel=0.1)
    assert float(pointwise[:, ~own].std()) == pytest.approx(0.7, rel=0.1)
    assert float(bias.std()) == pytest.approx(1.0, rel=0.1)
    for value in (depthwise[..., 1, 1], pointwise[:, own], pointwise[:, ~own], bias):
        assert abs(float(value.mean())) < 0.1 * float(value.std())


def test_shapes():
    for group, k, bias in [(1, 1, True), (2, 3, False), (8, 5, True)]:
        kernels = KernelPredictor(4, 8, group, k, bias=bias)(torch.zeros(3, 4, k, k))
        assert kernels.depthwise.shape == (3, 8, group, k, k)
        assert kernels.pointwise.shape == (3, 8, group)
        assert kernels.composed.shape == (3, 8, group, k, k)
        assert (kernels.bias is None) == (not bias)
        assert kernels.bias is None or kernels.bias.shape == (3, 8)


def test_the_layer_takes_kernels_made_before():
    torch.manual_seed(0)
    x, style = torch.randn(2, 8, 5, 5, dtype=torch.float64), torch.randn(2, 6, 3, 3, dtype=torch.float64)
    layer = AdaConv2d(predictor())
    assert torch.equal(layer(x, style), layer(x, layer.predictor(style)))
