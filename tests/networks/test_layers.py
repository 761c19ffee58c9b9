"""networks.layers: equalized learning rates and resampling convolutions, against their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from networks.discriminator import Discriminator, DiscriminatorConfig
from networks.generator import Generator, GeneratorConfig
from networks.layers import (
    RESAMPLE_TAPS,
    Conv2d,
    Linear,
    downsample_conv2d,
    normalize_2nd_moment,
    upsample2d,
    upsample_conv2d,
)
from torch_utils.ops import native, setup_filter
from training.gan import set_precision

TAPS = setup_filter(RESAMPLE_TAPS).double()
TAPS_2D = torch.outer(TAPS, TAPS)


def blur(x):
    """Every channel with the 4 × 4 low-pass filter; 3 rows and columns fewer."""
    return torch.cat([F.conv2d(x[:, c : c + 1], TAPS_2D[None, None]) for c in range(x.shape[1])], dim=1)


def lrelu(x):
    return torch.where(x > 0, x, 0.2 * x)


def test_normalize_2nd_moment():
    torch.manual_seed(0)
    x = torch.randn(4, 7, dtype=torch.float64) * torch.tensor([[0.01], [1.0], [10.0], [0.0]])
    y = normalize_2nd_moment(x)
    expected = torch.tensor([1.0, 1.0, 1.0, 0.0]).double()
    torch.testing.assert_close(y.square().mean(dim=1), expected, rtol=1e-3, atol=0)
    for i in range(3):
        torch.testing.assert_close(y[i], x[i] / (sum(v * v for v in x[i]) / 7 + 1e-8).sqrt())


# Linear.


def linear(lr_multiplier, act="linear", bias_init=0.5):
    torch.manual_seed(0)
    return Linear(30, 20, act, bias_init=bias_init, lr_multiplier=lr_multiplier).double()


@pytest.mark.parametrize("lr_multiplier", [1.0, 0.01])
def test_linear_formula(lr_multiplier):
    layer, x = linear(lr_multiplier, "lrelu"), torch.randn(5, 30, dtype=torch.float64)
    for n in range(5):
        for o in range(20):
            v = lr_multiplier * (sum(layer.weight[o] * x[n]) / math.sqrt(30) + layer.bias[o])
            torch.testing.assert_close(layer(x)[n, o], math.sqrt(2) * lrelu(v))


def test_the_learning_rate_multiplier_does_not_change_the_start():
    x = torch.randn(5, 30, dtype=torch.float64)
    torch.testing.assert_close(linear(0.01)(x), linear(1.0)(x), rtol=1e-5, atol=1e-6)  # initialized in float32


def test_equal_steps_of_the_parameters_move_the_output_by_the_learning_rate_multiplier():
    """Adam moves each parameter by about the learning rate: the output moves by lr · multiplier · (Σx/√in + 1)."""
    x = torch.randn(5, 30, dtype=torch.float64)
    for multiplier in (1.0, 0.01):
        layer = linear(multiplier)
        before = layer(x)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter += 0.002
        expected = 0.002 * multiplier * (x.sum(dim=1, keepdim=True) / math.sqrt(30) + 1)
        torch.testing.assert_close(layer(x) - before, expected.expand(5, 20))


def test_gradients_scale_with_the_learning_rate_multiplier():
    """d/dweight = multiplier/√in · d/d(the weight applied), d/dbias = multiplier · d/d(the bias applied)."""
    x, v = torch.randn(5, 30, dtype=torch.float64), torch.randn(5, 20, dtype=torch.float64)
    for multiplier in (1.0, 0.01):
        layer = linear(multiplier)
        (layer(x) * v).sum().backward()
        torch.testing.assert_close(layer.weight.grad, multiplier / math.sqrt(30) * v.T @ x)
        torch.testing.assert_close(layer.bias.grad, multiplier * v.sum(dim=0))


def test_linear_keeps_the_second_moment_at_the_start():
    torch.manual_seed(0)
    x = torch.randn(500, 256)
    with torch.no_grad():
        plain, lrelu = Linear(256, 300)(x), Linear(256, 300, "lrelu", lr_multiplier=0.01)(x)
    assert float(plain.square().mean()) == pytest.approx(1.0, rel=0.05)
    assert float(lrelu.square().mean()) == pytest.approx(1.04, rel=0.05)


def test_linear_without_bias():
    layer = Linear(4, 3, bias=False)
    assert layer.bias is None
    assert not layer(torch.zeros(2, 4)).any()


# Conv2d.


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("gain", [None, 0.7])
def test_conv_formula(k, gain):
    torch.manual_seed(0)
    layer = Conv2d(5, 4, k, act="lrelu", clamp=0.9).double()
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    y = F.conv2d(x, layer.weight / math.sqrt(5 * k * k), layer.bias, padding=k // 2)
    expected = (lrelu(y) * (math.sqrt(2) if gain is None else gain)).clamp(-0.9, 0.9)
    assert expected.abs().max() == 0.9
    torch.testing.assert_close(layer(x, gain=gain), expected, rtol=1e-12, atol=1e-12)


def test_conv_keeps_the_second_moment_at_the_start():
    torch.manual_seed(0)
    with torch.no_grad():
        y = Conv2d(64, 96, 3, act="lrelu")(torch.randn(4, 64, 20, 20))[:, :, 1:-1, 1:-1]
    assert float(y.square().mean()) == pytest.approx(1.04, rel=0.05)


# Resampling convolutions, against the definition: filter, then convolve with stride 2; insert zeros, convolve, filter.


@pytest.mark.parametrize("k", [1, 3])
def test_downsampling_is_the_filter_then_a_convolution_with_stride_2(k):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, 8, 10, dtype=torch.float64), torch.randn(4, 5, k, k, dtype=torch.float64)
    expected = F.conv2d(blur(F.pad(x, [1 + k // 2] * 4)), weight, stride=2)
    y = downsample_conv2d(x, weight, TAPS)
    assert y.shape == (2, 4, 4, 5)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3])
def test_conv_with_down_applies_the_scaled_weight(k):
    torch.manual_seed(0)
    layer = Conv2d(5, 4, k, down=True).double()
    x = torch.randn(2, 5, 8, 6, dtype=torch.float64)
    expected = F.conv2d(blur(F.pad(x, [1 + k // 2] * 4)), layer.weight / math.sqrt(5 * k * k), stride=2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def zeros_between(x):
    y = x.new_zeros(*x.shape[:2], 2 * x.shape[2] - 1, 2 * x.shape[3] - 1)
    y[:, :, ::2, ::2] = x
    return y


def test_upsampling_is_zeros_between_then_a_convolution_then_the_filter():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, 4, 6, dtype=torch.float64), torch.randn(3, 5, 3, 3, dtype=torch.float64)
    # a transposed convolution: the kernel turned round, over all places that it touches
    y = F.conv2d(F.pad(zeros_between(x), [2, 2, 2, 2]), weight.flip([2, 3]))
    expected = 4 * blur(F.pad(y, [1, 1, 1, 1]))
    y = upsample_conv2d(x, weight, TAPS)
    assert y.shape == (2, 3, 8, 12)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_resampling_keeps_a_constant_inside():
    """With a kernel that sums to 1; when upsampling, each value meets a quarter of the kernel, so on the average."""
    torch.manual_seed(0)
    x = torch.full([1, 1, 16, 16], 0.7, dtype=torch.float64)
    weight = torch.rand(1, 1, 3, 3, dtype=torch.float64)
    weight = weight / weight.sum()
    for y in (
        downsample_conv2d(x, weight, TAPS)[:, :, 2:-2, 2:-2],
        F.avg_pool2d(upsample_conv2d(x, weight, TAPS)[:, :, 4:-4, 4:-4], 2),
        upsample2d(x, TAPS)[:, :, 1:-1, 1:-1],
    ):
        assert y.numel() > 4
        torch.testing.assert_close(y, torch.full_like(y, 0.7))


def test_upsample2d_known_values():
    """[1, 3, 3, 1] interpolates at ¼ and ¾: y[2i] = ¼·x[i−1] + ¾·x[i], y[2i+1] = ¾·x[i] + ¼·x[i+1]."""
    x = torch.tensor([0.0, 4.0, 8.0, 0.0]).double().expand(1, 1, 4, 4)
    expected = torch.tensor([0.0, 1.0, 3.0, 5.0, 7.0, 6.0, 2.0, 0.0]).double()
    torch.testing.assert_close(upsample2d(x, TAPS)[0, 0, 3], expected)
    torch.testing.assert_close(upsample2d(x.transpose(2, 3), TAPS)[0, 0, :, 3], expected)


def images_of_layers(network, *inputs):
    """The results of all modules of a network that are images, by the module's name."""
    found, hooks = {}, []
    for name, module in network.named_modules():

        def keep(module, given, result, name=name):
            if isinstance(result, torch.Tensor) and result.ndim == 4:
                found[name] = result

        hooks.append(module.register_forward_hook(keep))
    network(*inputs)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "fp32"), ("cpu", "bf16"), pytest.param("cuda", "bf16", marks=pytest.mark.gpu)],
)
@pytest.mark.parametrize(
    ("modulation", "norm"), [("adaconv", "demod"), ("adaconv", "instance"), ("modconv", "demod"), ("adain", "instance")]
)
def test_layers_work_in_channels_last_memory(device, precision, modulation, norm):
    """Forward and backward: an order that changes between two layers costs a copy. Not ToRGB, whose 3 channels are
    small, nor the discriminator's last layers at 4 × 4; on a GPU the layers in half precision."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    if not native.available(device):
        pytest.skip("the references of the ops keep no order of memory")
    torch.manual_seed(0)
    sizes = {"resolution": 32, "cbase": 512, "cmax": 32}
    G = Generator(GeneratorConfig(**sizes, w_dim=16, z_dim=16, modulation=modulation, norm=norm))
    D = Discriminator(DiscriminatorConfig(**sizes))
    set_precision(G.to(device), D.to(device), precision)
    features = images_of_layers(G.synthesis, torch.randn(4, G.config.num_ws, 16, device=device))
    features = {name: x for name, x in features.items() if "torgb" not in name and "." in name}
    seen = images_of_layers(D, torch.randn(4, 3, 32, 32, device=device, requires_grad=True))
    features |= {name: x for name, x in seen.items() if name.startswith(("fromrgb", "blocks."))}
    if device == "cuda":
        features = {name: x for name, x in features.items() if x.dtype == torch.bfloat16}
    assert len(features) >= 3 * 4
    gradients = torch.autograd.grad([x.float().square().sum() for x in features.values()], list(features.values()))
    for name, x, dx in zip(features, features.values(), gradients, strict=True):
        for what, tensor in (("the result", x), ("its gradient", dx)):
            assert tensor.is_contiguous(memory_format=torch.channels_last), (name, what)
