"""AdaConv contains its predecessors, and each shortcut that makes it fast is exact (float64)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from networks.adaconv import AdaConv2d, AdaConvKernels, KernelPredictor, fold_instance_norm
from networks.generator import Generator, GeneratorConfig, SynthesisLayer
from torch_utils.ops import adaconv, upfirdn2d


def normal(*shape) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def instance_norm(x: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    mean = x.mean(dim=(2, 3), keepdim=True)
    return (x - mean) / ((x - mean).square().mean(dim=(2, 3), keepdim=True) + eps).sqrt()


def two_passes(x: torch.Tensor, kernels: AdaConvKernels) -> torch.Tensor:
    """The paper's formula, sample by sample: depthwise, then pointwise, then the bias; borders reflected."""
    groups = x.shape[1] // kernels.pointwise.shape[2]
    p = kernels.depthwise.shape[-1] // 2
    rows = []
    for i in range(len(x)):
        y = F.conv2d(F.pad(x[i : i + 1], [p] * 4, mode="reflect"), kernels.depthwise[i], groups=groups)
        y = F.conv2d(y, kernels.pointwise[i][..., None, None], groups=groups)
        rows.append(y + kernels.bias[i][None, :, None, None])
    return torch.cat(rows)


@pytest.mark.parametrize("group, k", [(1, 1), (1, 3), (2, 3), (4, 5), (8, 3)])
def test_one_pass_equals_normalize_depthwise_pointwise(group, k):
    torch.manual_seed(0)
    x = normal(3, 8, 7, 9) * 3 + 1
    kernels = AdaConvKernels(normal(3, 8, group, k, k), normal(3, 8, group), normal(3, 8))
    close(AdaConv2d(torch.nn.Identity(), "none")(x, kernels), two_passes(x, kernels))
    close(AdaConv2d(torch.nn.Identity(), "instance")(x, kernels), two_passes(instance_norm(x), kernels))


def test_folding_without_a_bias():
    torch.manual_seed(0)
    x, kernel = normal(2, 4, 6, 6) + 5, normal(2, 4, 2, 3, 3)
    close(
        adaconv(x, *fold_instance_norm(x, kernel, None), "reflect"), adaconv(instance_norm(x), kernel, None, "reflect")
    )


def test_bilinear():
    torch.manual_seed(0)
    x, y, k, m = normal(2, 4, 5, 5), normal(2, 4, 5, 5), normal(2, 4, 2, 3, 3), normal(2, 4, 2, 3, 3)
    close(adaconv(2 * x - y, k + 3 * m), 2 * adaconv(x, k) + 6 * adaconv(x, m) - adaconv(y, k) - 3 * adaconv(y, m))


def test_smallest_adaconv_is_adain():
    torch.manual_seed(0)
    x, scale, bias = normal(3, 6, 5, 7), normal(3, 6), normal(3, 6)
    kernels = AdaConvKernels(torch.ones(3, 6, 1, 1, 1, dtype=torch.float64), scale[..., None], bias)
    adain = instance_norm(x) * scale[:, :, None, None] + bias[:, :, None, None]
    close(AdaConv2d(torch.nn.Identity(), "instance")(x, kernels), adain)


@pytest.mark.parametrize("up", [False, True])
def test_modconv_is_stylegan2s_modulated_convolution(up):
    """Karras et al. 2020, equations 1 and 3, weights scaled and demodulated sample by sample."""
    torch.manual_seed(0)
    config = GeneratorConfig(16, w_dim=8, cbase=128, cmax=16, modulation="modconv", clamp=None)
    layer = SynthesisLayer(config, 16, 16 if up else 8, up=up).double()
    x, w = normal(3, 16, 8, 8), normal(3, 8)
    rows = []
    for i in range(3):
        scale = w[i] @ layer.adaconv.predictor.scale.weight.t() / 8**0.5 + 1
        weight = layer.weight / (16 * 9) ** 0.5 * scale[None, :, None, None]
        weight = weight * (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).rsqrt()
        if up:
            y = F.conv_transpose2d(x[i : i + 1], weight.transpose(0, 1), stride=2)
            y = upfirdn2d(y, torch.tensor([1.0, 3, 3, 1], dtype=torch.float64) / 8, padding=1, gain=4)
        else:
            y = F.conv2d(x[i : i + 1], weight, padding=1)
        rows.append(F.leaky_relu(y, 0.2) * 2**0.5)
    close(layer(x, w, None), torch.cat(rows))


def test_demodulation_keeps_unit_variance():
    torch.manual_seed(0)
    config = GeneratorConfig(32, w_dim=32, cbase=1024, cmax=128, depthwise_scale=0.5, clamp=None)
    layer = SynthesisLayer(config, 64, 32)
    kernels = layer.adaconv.predictor(torch.randn(4, 32))
    layer.adaconv.predictor = torch.nn.Identity()
    layer.adaconv.forward = lambda x, k: adaconv(x, k.composed)
    y = layer(torch.randn(4, 64, 32, 32), kernels, None)
    before = torch.where(y > 0, y, y * 5) / 2**0.5  # the leaky ReLU undone
    assert before[:, :, 4:-4, 4:-4].var(dim=(2, 3)).mean().item() == pytest.approx(1, rel=0.1)


def test_a_predictor_without_deviation_is_the_identity():
    torch.manual_seed(0)
    predictor = KernelPredictor(4, 8, 2, 3, depthwise_scale=0, pointwise_scale=0, mixing_scale=0).double()
    torch.nn.init.zeros_(predictor.bias_weight)
    x = normal(2, 8, 6, 6)
    close(AdaConv2d(predictor, "none")(x, normal(2, 4, 3, 3)), x)


@pytest.mark.parametrize("modulation, norm", [("adaconv", "demod"), ("adaconv", "instance"), ("modconv", "demod")])
def test_a_batch_is_its_samples(modulation, norm):
    torch.manual_seed(0)
    config = GeneratorConfig(
        32,
        c_dim=3,
        z_dim=8,
        w_dim=8,
        map_depth=2,
        cbase=256,
        cmax=16,
        modulation=modulation,
        norm=norm,
        style_channels=4,
    )
    G = Generator(config).double()
    for layer in G.synthesis.layers():
        torch.nn.init.ones_(layer.noise_strength)
    z, c = normal(3, 8), torch.eye(3, dtype=torch.float64)
    whole = G(z, c, noise="const")
    assert whole.shape == (3, 3, 32, 32)
    close(whole, torch.cat([G(z[i : i + 1], c[i : i + 1], noise="const") for i in range(3)]))
    assert (whole[0] - whole[1]).abs().max() > 1e-2


def test_every_w_matters_and_second_derivatives_are_right():
    torch.manual_seed(0)
    config = GeneratorConfig(16, z_dim=4, w_dim=4, map_depth=1, cbase=64, cmax=4, style_channels=2)
    G = Generator(config).double()
    ws = normal(2, config.num_ws, 4).requires_grad_()
    gradient = torch.autograd.grad(G.synthesis(ws, "none").square().sum(), ws)[0]
    assert (gradient.abs().amax(dim=(0, 2)) > 1e-8).all()

    def length(ws):  # what path length regularization differentiates
        (g,) = torch.autograd.grad(G.synthesis(ws, "none").square().sum(), ws, create_graph=True)
        return g.square().sum()

    analytic = torch.autograd.grad(length(ws), ws)[0]
    direction, step = normal(*ws.shape), 1e-6
    numeric = (length(ws + step * direction) - length(ws - step * direction)) / (2 * step)
    assert (analytic * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-5)


@pytest.mark.parametrize("resolution, channels", [(16, 1), (64, 3), (1024, 3)])
def test_sizes(resolution, channels):
    G = Generator(
        GeneratorConfig(resolution, channels, z_dim=4, w_dim=4, map_depth=1, cbase=1024, cmax=4, style_channels=2)
    )
    assert G(torch.randn(1, 4)).shape == (1, channels, resolution, resolution)
    assert G.config.num_ws == len(G.synthesis.layers()) + 1


def test_truncation():
    torch.manual_seed(0)
    G = Generator(GeneratorConfig(16, z_dim=8, w_dim=8, map_depth=1, cbase=64, cmax=4, style_channels=2))
    G.w_avg.normal_()
    z = torch.randn(2, 8)
    w = G.mapping(z, None)
    torch.testing.assert_close(G.ws(z, psi=0.3)[:, 2], G.w_avg + 0.3 * (w - G.w_avg))
    torch.testing.assert_close(G.ws(z, psi=0.0)[0], G.ws(z, psi=0.0)[1])
