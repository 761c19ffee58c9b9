"""AdaConv generators made of StyleGAN2's and StyleGAN's: the same images, and everything new can learn."""

import pytest
import torch

from models.convert import STYLE_MAP, adaconv_weights, modulation_of, to_adaconv
from models.stylegan2 import load_networks
from networks.generator import Generator, GeneratorConfig

KINDS = {"modconv": "demod", "adain": "instance"}


def generator(modulation: str, resolution: int = 32, **changes) -> Generator:
    """Random weights, and images of the usual range."""
    torch.manual_seed(1)
    sizes = {"resolution": resolution, "cbase": 2048, "cmax": 128, "z_dim": 32, "w_dim": 32, "map_depth": 2}
    config = GeneratorConfig(**{**sizes, "modulation": modulation, "norm": KINDS[modulation], **changes})
    G = Generator(config).requires_grad_(False)
    for p in G.parameters():
        if p.ndim <= 1:
            p.add_(0.2 * torch.randn(p.shape))
    scale = 0.5 / G(torch.randn(4, 32), noise="const").std()
    for block in G.synthesis.blocks:
        block.torgb.weight *= scale
        block.torgb.bias *= scale
    return G


LIKE = [
    None,
    GeneratorConfig(kernel_size=5, style_channels=8, depthwise_scale=0.3, pointwise_scale=0.5, mixing_scale=1.0),
    GeneratorConfig(predict_bias=True, map_lr=0.1),
]


@pytest.mark.parametrize("resolution", [32, 256])
@pytest.mark.parametrize("modulation", KINDS)
@pytest.mark.parametrize("like", LIKE, ids=["default", "other kernels", "with biases"])
def test_the_images_are_the_same(modulation, resolution, like):
    """In float64 they are equal; in float32 they are as near to those as the images of the other generator are."""
    G = generator(modulation, resolution)
    A = to_adaconv(G, like)
    assert A.config.modulation == "adaconv" and A.config.norm == G.config.norm
    z = torch.randn(2, 32)
    for noise in ("const", "none"):
        with torch.no_grad():
            theirs, own = G.float()(z, psi=0.7, noise=noise), A.float()(z, psi=0.7, noise=noise)
            exact = G.double()(z.double(), psi=0.7, noise=noise)
            assert exact.std() > 0.1
            assert (A.double()(z.double(), psi=0.7, noise=noise) - exact).abs().max() <= 1e-12
        rounding = (theirs - exact).abs().max()
        assert rounding <= 3e-5 and (own - exact).abs().max() <= 2 * rounding


@pytest.mark.parametrize("modulation", KINDS)
def test_deviations_start_at_zero_and_have_a_gradient(modulation):
    A = to_adaconv(generator(modulation))
    torch.manual_seed(2)
    image = A(torch.randn(4, 32), noise="const")
    (image * torch.randn_like(image)).sum().backward()
    for layer in A.synthesis.layers():
        predictor = layer.adaconv.predictor.predictor
        channels, group = predictor.identity.shape
        assert not predictor.depthwise_weight.any() and not predictor.depthwise_bias.any()
        mixing = predictor.pointwise_weight.view(channels, group, -1)[predictor.identity == 0]
        assert not mixing.any()
        gradients = [predictor.depthwise_weight.grad, predictor.pointwise_weight.grad, predictor.pointwise_bias.grad]
        for gradient in gradients:
            per_kernel = gradient.flatten(1).abs().sum(dim=1) if gradient.ndim > 1 else gradient.abs()
            assert (per_kernel > 0).float().mean() > 0.9  # but for what no leaky ReLU and no border lets through


def test_a_step_of_training_moves_the_style_maps_too():
    """Their gradient is 0 while the kernels that they multiply are, so the first step cannot."""
    A, z = to_adaconv(generator("modconv")), torch.randn(4, 32)
    optimizer = torch.optim.Adam(A.parameters(), lr=1e-3)
    moved = []
    for _ in range(2):
        optimizer.zero_grad()
        A(z, noise="const").square().mean().backward()
        moved.append(A.synthesis.blocks[1].conv0.adaconv.predictor.map.weight.grad.abs().max() > 0)
        optimizer.step()
    assert moved == [False, True]


def test_what_both_have_is_copied_and_style_maps_are_the_same_each_time():
    G = generator("modconv")
    before = torch.random.get_rng_state()
    first, second = to_adaconv(G).state_dict(), to_adaconv(G).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    shared = [name for name in G.state_dict() if ".adaconv.predictor." not in name]
    assert len(shared) > 30 and all(torch.equal(first[name], G.state_dict()[name]) for name in shared)


def test_weights_alone_leave_the_style_maps_out():
    G = generator("adain")
    A = to_adaconv(G)
    weights = adaconv_weights(G.state_dict(), A.config)
    assert modulation_of(generator("modconv").state_dict()) == "modconv"
    assert modulation_of(G.state_dict()) == "adain" and modulation_of(A.state_dict()) == "adaconv"
    in_part = Generator(GeneratorConfig(resolution=32, cbase=256, cmax=8, kernels_up_to=16))
    assert modulation_of(in_part.state_dict()) == "adaconv"
    other = {name.replace(".scale.", ".rotation."): value for name, value in generator("modconv").state_dict().items()}
    assert modulation_of(other) is None
    assert {name for name in A.state_dict() if name not in weights} == {n for n in A.state_dict() if STYLE_MAP in n}


def test_what_cannot_be_converted_is_told():
    A = to_adaconv(generator("modconv"))
    with pytest.raises(ValueError, match="already"):
        to_adaconv(A)
    with pytest.raises(ValueError, match="pointwise_scale"):
        to_adaconv(generator("modconv"), GeneratorConfig(pointwise_scale=0.0))
    with pytest.raises(ValueError, match="predict_bias"):
        adaconv_weights(generator("adain").state_dict(), A.config)


def test_a_published_network_keeps_its_images(published_pickles):
    G = load_networks(published_pickles / "sg2ada-cond-protocol4.pkl", ["G_ema"])[0]["G_ema"]
    z, c = torch.randn(4, 64), torch.eye(5)[:4]
    with torch.no_grad():
        assert (to_adaconv(G)(z, c, noise="const") - G(z, c, noise="const")).abs().max() <= 1e-5
