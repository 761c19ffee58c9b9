"""networks.generator: each layer against its papers' formulas, and what holds of the whole."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks.generator import Generator, GeneratorConfig, MappingNetwork, SynthesisLayer, ToRGB

VARIANTS = [("adaconv", "demod"), ("adaconv", "instance"), ("modconv", "demod"), ("adain", "instance")]


def config(resolution=16, modulation="adaconv", norm="demod", **options):
    small = {"z_dim": 8, "w_dim": 8, "map_depth": 2, "cbase": 128, "cmax": 8, "noise": True}
    if modulation == "adaconv":
        small |= {"kernel_size": 3, "style_channels": 4, "predict_bias": True}
        small |= {"depthwise_scale": 0.3, "pointwise_scale": 1.0, "mixing_scale": 0.5}
    return GeneratorConfig(resolution=resolution, modulation=modulation, norm=norm, **small | options)


def trained(G, seed=1):
    """G in float64, with biases, noise strengths and w_avg other than zero, as after some training."""
    torch.manual_seed(seed)
    G.double()
    for name, parameter in G.named_parameters():
        if name.endswith(("noise_strength", "bias")):
            nn.init.normal_(parameter, std=0.3)
    G.w_avg.normal_()
    return G


def generator(*args, **options):
    torch.manual_seed(0)
    return trained(Generator(config(*args, **options)))


def codes(n, size=8):
    return torch.randn(n, size, dtype=torch.float64)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def lrelu(x):
    return math.sqrt(2) * torch.where(x > 0, x, 0.2 * x)


def affine(layer, w):
    """An equalized linear layer: W w/√in + b."""
    return layer.weight @ w / math.sqrt(len(w)) + layer.bias


def up_convolution(x, weight):
    """The transposed convolution of x [1, I, H, W] with stride 2, then the filter [1, 3, 3, 1] with gain 4."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype) / 8
    y = F.pad(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), [1, 1, 1, 1])
    fir = 4 * torch.outer(taps, taps).expand(y.shape[1], 1, 4, 4)
    return F.conv2d(y, fir, groups=y.shape[1])


# Layers.


@pytest.mark.parametrize(
    ("limit", "resolution", "sides"), [(8, 16, [4, 8, 8]), (4, 16, [4]), (16, (24, 16), [4, 8, 8])]
)
def test_kernels_can_be_limited_to_small_layers(limit, resolution, sides):
    """Larger layers are the modulated convolution, parameter by parameter; the longer side counts."""
    limited, plain = generator(resolution, kernels_up_to=limit), generator(resolution, "modconv")
    layers, others = limited.synthesis.layers(), plain.synthesis.layers()
    assert [layer.size[0] for layer in layers if "map.weight" in layer.adaconv.predictor.state_dict()] == sides
    for layer, other in list(zip(layers, others, strict=True))[len(sides) :]:
        layer.load_state_dict(other.state_dict())
        side = (layer.size[0] // (2 if layer.up else 1), layer.size[1] // (2 if layer.up else 1))
        x, w, noise = normal(2, layer.weight.shape[1], *side), codes(2), normal(2, 1, *layer.size)
        assert torch.equal(layer(x, w, noise), other(x, w, noise))
    assert limited(torch.randn(2, 8, dtype=torch.float64)).isfinite().all()


def test_a_limit_beyond_the_image_changes_nothing():
    G, same = generator(16), generator(16, kernels_up_to=16)
    same.load_state_dict(G.state_dict())
    z = codes(2)
    assert torch.equal(G(z, noise="none"), same(z, noise="none"))


def layer_and_inputs(modulation, norm, up, size=8):
    torch.manual_seed(0)
    c = config(32, modulation, norm, cbase=256, cmax=16, clamp=2.0)
    layer = SynthesisLayer(c, 16, 16, (2 * size,) * 2 if up else (size, size), up=up).double()
    for parameter in (layer.bias, layer.noise_strength):
        nn.init.normal_(parameter)
    noise = normal(3, 1, *[2 * size if up else size] * 2)
    return layer, normal(3, 16, size, size), codes(3), noise


def finish(layer, y, noise):
    """Noise, bias, leaky ReLU, gain, clamp."""
    y = y + layer.noise_strength * noise + layer.bias[:, None, None]
    return lrelu(y).clamp(-layer.clamp, layer.clamp)


@pytest.mark.parametrize("up", [False, True])
def test_modconv_is_stylegan2s_modulated_convolution(up):
    """Karras et al. 2020, equations 1 and 3: per sample, W' = s_i·W, W'' = W' / √(ΣW'² + ε)."""
    layer, x, w, noise = layer_and_inputs("modconv", "demod", up)
    expected = []
    for i in range(3):
        style = affine(layer.adaconv.predictor.scale, w[i])
        weight = layer.weight * style[None, :, None, None]
        weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        image = x[i : i + 1]
        y = up_convolution(image, weight) if up else F.conv2d(image, weight, padding=1)
        expected.append(finish(layer, y, noise[i : i + 1]))
    expected = torch.cat(expected)
    assert float(expected.detach().abs().max()) == 2.0  # the clamp is part of it
    torch.testing.assert_close(layer(x, w, noise), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("up", [False, True])
def test_adain_layer_is_instance_norm_scale_bias_and_a_convolution(up):
    layer, x, w, noise = layer_and_inputs("adain", "instance", up)
    x = 3 * x + 1
    expected = []
    for i in range(3):
        style = layer.adaconv.predictor
        y = F.instance_norm(x[i : i + 1], eps=1e-5)
        y = y * affine(style.scale, w[i])[:, None, None] + affine(style.bias, w[i])[:, None, None]
        weight = layer.weight / math.sqrt(16 * 9)
        y = up_convolution(y, weight) if up else F.conv2d(y, weight, padding=1)
        expected.append(finish(layer, y, noise[i : i + 1]))
    torch.testing.assert_close(layer(x, w, noise), torch.cat(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("up", [False, True])
def test_adaconv_layer_with_demodulation(up):
    """DESIGN's formula: y_o = (W ∗ (K ⋆ x + b))_o · rsqrt(Σ_i ‖K_i‖² Σ_k W²_oik + ε)."""
    layer, x, w, noise = layer_and_inputs("adaconv", "demod", up)
    kernels = layer.adaconv.predictor(w)
    groups = 16 // kernels.pointwise.shape[2]
    expected = []
    for i in range(3):
        y = F.conv2d(x[i : i + 1], kernels.composed[i], kernels.bias[i], padding=1, groups=groups)
        weight = layer.weight / math.sqrt(16 * 9)
        y = up_convolution(y, weight) if up else F.conv2d(y, weight, padding=1)
        power = torch.zeros(16, dtype=torch.float64)
        for channel in range(16):
            power += kernels.composed[i, channel].square().sum() * weight[:, channel].square().sum(dim=(1, 2))
        power += 1e-8 / (16 * 9)  # ε stands beside the weights before their gain
        expected.append(finish(layer, y / power.sqrt()[:, None, None], noise[i : i + 1]))
    torch.testing.assert_close(layer(x, w, noise), torch.cat(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("modulation", ["adaconv", "modconv"])
def test_demodulation_makes_the_output_independent_of_the_styles_size(modulation):
    torch.manual_seed(0)
    c = config(64, modulation, cbase=4096, cmax=128, clamp=None, predict_bias=False)
    layer = SynthesisLayer(c, 64, 64, (64, 64))
    with torch.no_grad():
        y = layer(torch.randn(8, 64, 64, 64), torch.randn(8, 8), None)[:, :, 3:-3, 3:-3]
        before = torch.where(y > 0, y, y / 0.2) / math.sqrt(2)
        power = before.square().mean(dim=(1, 2, 3))  # of each sample, over many output channels
    assert float(power.mean()) == pytest.approx(1.0, rel=0.1)
    assert ((power - 1).abs() < 0.3).all(), power
    assert float(y.square().mean()) == pytest.approx(1.04, rel=0.1)


def test_torgb_is_a_modulated_1x1_convolution_without_demodulation():
    torch.manual_seed(0)
    layer = ToRGB(config(clamp=1.5), 8).double()
    nn.init.normal_(layer.bias)
    x, w = normal(3, 8, 5, 5), codes(3)
    expected = torch.zeros(3, 3, 5, 5, dtype=torch.float64)
    for i in range(3):
        weight = layer.weight[:, :, 0, 0] / math.sqrt(8) * affine(layer.scale, w[i])
        for o in range(3):
            expected[i, o] = sum(weight[o, c] * x[i, c] for c in range(8)) + layer.bias[o]
    torch.testing.assert_close(layer(x, w), expected.clamp(-1.5, 1.5), rtol=1e-10, atol=1e-10)


def test_the_image_is_the_sum_of_the_upsampled_torgbs():
    """The skip architecture, from what the ToRGB layers themselves gave."""
    G, parts = generator(32, clamp=None), []
    for block in G.synthesis.blocks:
        block.torgb.register_forward_hook(lambda module, args, y: parts.append(y))
    image = G(codes(2), noise="const")
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]).double() / 8
    img = torch.zeros(2, 3, 2, 2, dtype=torch.float64)
    for part in parts:
        spread = torch.zeros(2, 3, *[2 * img.shape[2]] * 2, dtype=torch.float64)
        spread[:, :, ::2, ::2] = img
        spread = F.pad(spread, [2, 1, 2, 1])
        img = part + F.conv2d(spread, 4 * torch.outer(taps, taps).expand(3, 1, 4, 4), groups=3)
    torch.testing.assert_close(image, img, rtol=1e-12, atol=1e-12)


# Mapping.


@pytest.mark.parametrize(("z_dim", "c_dim"), [(8, 0), (8, 3), (0, 3)])
def test_mapping_network_formula(z_dim, c_dim):
    torch.manual_seed(0)
    mapping = MappingNetwork(z_dim, c_dim, 6, 2).double()
    for parameter in mapping.parameters():
        nn.init.normal_(parameter, std=30)
    z = normal(4, z_dim) if z_dim else None
    c = torch.eye(3, dtype=torch.float64)[[0, 2, 1, 0]] if c_dim else None

    def unit(v):
        return v / (v.square().mean() + 1e-8).sqrt()

    for i, w in enumerate(mapping(z, c)):
        parts = ([unit(z[i])] if z_dim else []) + ([unit(affine(mapping.embed, c[i]))] if c_dim else [])
        v = torch.cat(parts)
        for layer in mapping.layers:
            v = lrelu(0.01 * (layer.weight @ v / math.sqrt(len(v)) + layer.bias))
        torch.testing.assert_close(w, v, rtol=1e-10, atol=1e-10)


def test_mapping_does_not_see_the_length_of_z():
    mapping = generator().mapping
    z = codes(3)
    torch.testing.assert_close(mapping(100 * z, None), mapping(z, None))


# The whole.


@pytest.mark.parametrize("resolution", [16, 32, 64])
@pytest.mark.parametrize(("modulation", "norm"), VARIANTS)
def test_a_batch_is_its_samples_one_by_one(modulation, norm, resolution):
    c_dim, channels = (3, 1) if resolution == 32 else (0, 3)
    G = generator(resolution, modulation, norm, c_dim=c_dim, img_channels=channels)
    z, c = codes(3), torch.eye(3, dtype=torch.float64) if c_dim else None
    images = G(z, c, noise="const")
    assert images.shape == (3, channels, resolution, resolution)
    assert (images[0] - images[1]).abs().max() > 0.01
    for i in range(3):
        alone = G(z[i : i + 1], None if c is None else c[i : i + 1], noise="const")
        torch.testing.assert_close(alone[0], images[i], rtol=1e-9, atol=1e-10)


def test_1024_with_very_few_channels():
    torch.manual_seed(0)
    G = Generator(config(1024, cbase=1024, cmax=8))
    with torch.no_grad():
        images = G(torch.randn(1, 8))
    assert images.shape == (1, 3, 1024, 1024)
    assert images.isfinite().all() and images.std() > 0.01
    assert [layer.weight.shape[0] for layer in G.synthesis.layers()[-2:]] == [1, 1]


def test_the_class_changes_the_image():
    G = generator(c_dim=3)
    z = codes(1).expand(3, -1)
    a, b, c = G(z, torch.eye(3, dtype=torch.float64), noise="const")
    assert min((a - b).abs().max(), (b - c).abs().max(), (a - c).abs().max()) > 0.01


@pytest.mark.parametrize("resolution", [16, 64, 256])
def test_number_of_ws(resolution):
    c = config(resolution, cbase=256, cmax=4)
    convolutions = 1 + 2 * (int(math.log2(resolution)) - 2)  # one at 4 × 4, two at each that follows
    assert c.num_ws == convolutions + 1
    assert len(Generator(c).synthesis.layers()) == convolutions


def test_channels_and_groups():
    c = GeneratorConfig(resolution=256, cbase=8192, cmax=256)
    assert [c.channels(r) for r in (4, 16, 32, 64, 128, 256)] == [256, 256, 256, 128, 64, 32]
    assert [c.group(channels) for channels in (256, 128, 64, 32)] == [1, 2, 4, 8]
    assert GeneratorConfig().group(1) == 1
    for channels in range(1, 385):  # a size that is no power of two, too
        group = GeneratorConfig(cmax=384).group(channels)
        assert channels % group == 0 and 1 <= group <= max(1, 384 // channels)


def test_the_number_of_predicted_values_is_the_same_at_every_resolution():
    torch.manual_seed(0)
    c = config(64, cbase=1024, cmax=64, kernel_size=3)
    layers = Generator(c).synthesis.layers()
    kernels = [layer.adaconv.predictor(torch.randn(1, 8)) for layer in layers]
    assert {k.depthwise.shape[1] for k in kernels} == {64, 32, 16}
    assert {k.depthwise.numel() for k in kernels} == {64 * 9}
    assert {k.pointwise.numel() for k in kernels} == {64}


# Images that are not square.


@pytest.mark.parametrize(("modulation", "norm"), VARIANTS)
def test_an_image_of_any_shape_is_made_block_by_block(modulation, norm):
    """96 × 64 pixels from a constant of 6 × 4, with the channels and ws of 64 × 64."""
    G, square = (
        generator(resolution, modulation, norm, cbase=256, cmax=8, noise=True) for resolution in ((96, 64), 64)
    )
    sizes = [(4 << i, 6 << i) for i in range(5)]
    assert [layer.size for layer in G.synthesis.layers()] == [sizes[0], *(s for s in sizes[1:] for _ in range(2))]
    assert G.synthesis.const.shape == (8, 4, 6) and G.config.num_ws == square.config.num_ws == 10
    shapes = {name: tensor.shape for name, tensor in square.state_dict().items() if "const" not in name}
    assert {name: tensor.shape for name, tensor in G.state_dict().items() if "const" not in name} == shapes
    for noise in ("const", "random", "none"):
        assert G(codes(2), noise=noise).shape == (2, 3, 64, 96)


def test_a_wider_constant_makes_more_of_the_same_image():
    """The layers are those of the square: far from the seam, a constant of two squares gives the square's image."""
    square = generator(16, "modconv", "demod", cbase=64, cmax=8, noise=False)
    wide = generator((32, 16), "modconv", "demod", cbase=64, cmax=8, noise=False)
    wide.load_state_dict({name: value for name, value in square.state_dict().items() if "const" not in name}, False)
    with torch.no_grad():
        wide.synthesis.const.copy_(torch.cat([square.synthesis.const] * 2, dim=2))
        ws = square.ws(codes(1))
        expected, found = square.synthesis(ws, "none"), wide.synthesis(ws, "none")
    torch.testing.assert_close(found[:, :, :, 0], expected[:, :, :, 0])
    torch.testing.assert_close(found[:, :, :, -1], expected[:, :, :, -1])


def test_squares_are_what_they_were():
    """The same numbers drawn in the same order: the sum of a small model's weights and of its image."""
    torch.manual_seed(0)
    sizes = {"cbase": 256, "cmax": 16, "z_dim": 8, "w_dim": 8, "style_channels": 4, "map_depth": 2}
    G = Generator(GeneratorConfig(32, **sizes, depthwise_scale=0.1, map_lr=1.0))
    assert float(sum(p.detach().double().sum() for p in G.parameters())) == pytest.approx(533.7549628646811, abs=1e-6)
    with torch.no_grad():
        assert float(G(torch.ones(1, 8), noise="const").double().sum()) == pytest.approx(-843.92645, abs=0.01)


def test_the_style_maps_learning_rate_changes_no_image_at_the_start():
    """Only what is learned: a factor on the learning rate divides the weight that it multiplies."""
    images = []
    for map_lr in (1.0, 0.1):
        torch.manual_seed(0)
        G = Generator(GeneratorConfig(16, cbase=64, cmax=8, z_dim=8, w_dim=8, style_channels=4, map_lr=map_lr))
        images.append(G(torch.ones(2, 8), noise="none"))
    torch.testing.assert_close(*images)


# Derivatives.


@pytest.mark.parametrize(("modulation", "norm"), VARIANTS)
def test_path_length_gradient_equals_finite_differences(modulation, norm, gradient_equals_finite_differences):
    """∇ Σ‖Jᵀy‖² by all parameters, which differentiates twice through every layer."""
    G = generator(16, modulation, norm, cbase=64, cmax=4)
    z, y = codes(2), normal(2, 3, 16, 16)

    def penalty():
        ws = G.ws(z)
        (gradient,) = torch.autograd.grad((G.synthesis(ws, "const") * y).sum(), ws, create_graph=True)
        return gradient.square().sum()

    gradient_equals_finite_differences(penalty, list(G.parameters()))


# Building and storing.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 8}, r"^resolution: 8x8 is no size"),
        ({"resolution": 68}, r"^resolution: 68x68 is no size for a model; 64 and 72 are nearest"),
        ({"resolution": (96, 20)}, r"^resolution: 96x20 is no size for a model; 64x20 and 96x24 are nearest"),
        ({"resolution": "96x64"}, r"^expected a side, or width and height, got '96x64'"),
        ({"resolution": 256, "cbase": 128}, r"^cbase: .*128"),
        ({"modulation": "adacon"}, r"^modulation: .*'adacon'"),
        ({"norm": "batch"}, r"^norm: .*'batch'"),
        ({"modulation": "modconv", "norm": "instance"}, "modconv.*demod"),
        ({"modulation": "adain", "norm": "demod"}, "adain.*instance"),
    ],
)
def test_configurations_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        GeneratorConfig(**options)


def test_arguments_that_do_not_fit():
    G = generator()
    ws = G.ws(codes(2))
    with pytest.raises(ValueError, match=r"^noise: .*'constant'"):
        G.synthesis(ws, "constant")
    with pytest.raises(ValueError, match=r"^noise: .* 5 layers, got 1"):
        G.synthesis(ws, [None])
    with pytest.raises(ValueError, match=r"^kernels: .* 5 layers, got 4"):
        G.synthesis(ws, "const", G.synthesis.kernels(ws)[1:])
    for wrong in (ws[:, :-1], torch.cat([ws, ws], dim=1), ws[:, 0]):
        for function in (G.synthesis, G.synthesis.kernels):
            with pytest.raises(ValueError, match=r"^ws: expected \[N, 6, w_dim\]"):
                function(wrong)


@pytest.mark.parametrize(("modulation", "norm"), VARIANTS)
def test_state_dict_round_trip(modulation, norm):
    G = generator(32, modulation, norm, c_dim=3)
    torch.manual_seed(7)
    other = Generator(G.config).double()
    z, c = codes(2), torch.eye(3, dtype=torch.float64)[:2]
    image = G(z, c, psi=0.7, noise="const")
    assert not torch.allclose(other(z, c, psi=0.7, noise="const"), image)
    other.load_state_dict(G.state_dict())
    assert torch.equal(other(z, c, psi=0.7, noise="const"), image)


@pytest.mark.parametrize(("modulation", "norm"), VARIANTS)
def test_an_empty_batch_gives_no_images(modulation, norm):
    G = generator(modulation=modulation, norm=norm)
    assert G(codes(0)).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("modulation, predict_bias", [("adaconv", True), ("modconv", False)])
def test_float16_does_not_overflow_before_the_demodulation(modulation, predict_bias):
    """However large the predicted kernels and the weights: the layer's output does not depend on their scale."""
    torch.manual_seed(0)
    config = GeneratorConfig(16, cbase=1024, cmax=64, w_dim=32, modulation=modulation, predict_bias=predict_bias)
    layer = SynthesisLayer(config, 64, 64, (16, 16), up=True).requires_grad_(False)
    layer.weight.mul_(3000)
    x, w = torch.randn(4, 64, 8, 8) * 8, torch.randn(4, 32) * 100
    exact = layer.double()(x.double(), w.double(), None)
    half = layer.float()(x.half(), w, None)
    assert half.isfinite().all()
    assert (half - exact).norm() < 0.005 * exact.norm()
