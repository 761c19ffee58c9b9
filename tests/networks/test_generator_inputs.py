"""networks.generator: truncation, kernels in place of w, noise, and which w changes what."""

import math

import pytest
import torch

from networks.generator import Generator, SynthesisLayer, ToRGB
from tests.networks.test_generator import VARIANTS, codes, config, generator, lrelu, normal

# Truncation.


def test_truncation():
    G = generator()
    z = codes(4)
    w = G.mapping(z, None)
    for psi in (0.0, 0.3, 1.0, 1.5):
        ws = G.ws(z, psi=psi)
        assert ws.shape == (4, G.config.num_ws, 8)
        expected = G.w_avg + psi * (w - G.w_avg)
        for i in range(G.config.num_ws):
            torch.testing.assert_close(ws[:, i], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(G(z, psi=1.0, noise="const"), G(z, noise="const"))
    same = G(z, psi=0.0, noise="const")
    torch.testing.assert_close(same, same[:1].expand_as(same), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(same, G(z, noise="const"))


def test_truncation_by_layer():
    G = generator()
    z, psi = codes(4), torch.tensor([0, 0.3, 1, 1, 0.5, 1.5], dtype=torch.float64)
    ws = G.ws(z, psi=psi)
    for i, value in enumerate(psi.tolist()):
        torch.testing.assert_close(ws[:, i], G.ws(z, psi=value)[:, i], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(G.ws(z, psi=torch.full([6], 0.7)), G.ws(z, psi=0.7), rtol=1e-7, atol=1e-7)


# Kernels in place of w.


@pytest.mark.parametrize(("modulation", "norm"), VARIANTS)
def test_predicted_kernels_in_place_of_ws(modulation, norm):
    G = generator(32, modulation, norm)
    ws = G.ws(codes(2))
    kernels = G.synthesis.kernels(ws)
    assert [k.depthwise.shape[1] for k in kernels] == [layer.weight.shape[1] for layer in G.synthesis.layers()]
    assert torch.equal(G.synthesis(ws, "const", kernels), G.synthesis(ws, "const"))


def test_kernels_of_another_code_are_its_w_in_that_layer():
    G = generator(32)
    ws, other = G.ws(codes(2)), G.ws(codes(2))
    last = len(G.synthesis.layers()) - 1  # its w is no ToRGB's: that of this block has the next one
    kernels, theirs = G.synthesis.kernels(ws), G.synthesis.kernels(other)
    mixed = torch.cat([ws[:, :last], other[:, last:-1], ws[:, -1:]], dim=1)
    expected = G.synthesis(mixed, "const")
    assert torch.equal(G.synthesis(ws, "const", [*kernels[:-1], theirs[-1]]), expected)
    assert not torch.allclose(expected, G.synthesis(ws, "const"))


# Noise.


def test_noise_modes():
    G = generator()
    ws = G.ws(codes(2))
    const, random, none = (G.synthesis(ws, mode) for mode in ("const", "random", "none"))
    assert torch.equal(G.synthesis(ws, "const"), const)
    assert not torch.allclose(const, none)
    assert not torch.allclose(random, const) and not torch.allclose(random, none)
    assert not torch.allclose(random, G.synthesis(ws, "random"))
    listed = [layer.noise_const for layer in G.synthesis.layers()]
    assert torch.equal(G.synthesis(ws, listed), const)
    assert torch.equal(G.synthesis(ws, [torch.zeros_like(n) for n in listed]), none)


def test_random_noise_is_another_for_each_sample_and_seeded():
    G = generator()
    ws = G.ws(codes(1)).expand(3, -1, -1)
    torch.manual_seed(5)
    a, b, c = images = G.synthesis(ws, "random")
    assert min((a - b).abs().max(), (b - c).abs().max(), (a - c).abs().max()) > 0.01
    torch.manual_seed(5)
    assert torch.equal(G.synthesis(ws, "random"), images)


def test_noise_is_added_before_the_activation():
    """One layer's noise alone, through the last layer's formula: lrelu(y + strength · noise + bias)."""
    G = generator(clamp=None)
    last, features = G.synthesis.layers()[-1], []
    last.register_forward_hook(lambda module, args, y: features.append(y))
    ws, noise = G.ws(codes(2)), [torch.zeros(1, 1, 1, 1).double()] * len(G.synthesis.layers())
    G.synthesis(ws, noise)
    G.synthesis(ws, [*noise[:-1], last.noise_const])
    before = torch.where(features[0] > 0, features[0], features[0] / 0.2) / math.sqrt(2)
    expected = lrelu(before + last.noise_strength * last.noise_const)
    torch.testing.assert_close(features[1], expected, rtol=1e-10, atol=1e-10)


def test_noise_has_no_effect_at_the_start():
    torch.manual_seed(0)
    G = Generator(config())
    assert not any(layer.noise_strength.any() for layer in G.synthesis.layers())
    ws = G.ws(torch.randn(2, 8))
    assert torch.equal(G.synthesis(ws, "random"), G.synthesis(ws, "none"))
    with torch.no_grad():
        G.synthesis.layers()[2].noise_strength += 1
    assert not torch.equal(G.synthesis(ws, "random"), G.synthesis(ws, "none"))


def test_a_generator_without_noise():
    G = generator(noise=False)
    assert not [name for name in G.state_dict() if "noise" in name]
    ws = G.ws(codes(2))
    assert torch.equal(G.synthesis(ws, "random"), G.synthesis(ws, "none"))
    assert torch.equal(G.synthesis(ws, "const"), G.synthesis(ws, "none"))


# Which w does what.


@pytest.mark.parametrize(("modulation", "norm"), VARIANTS)
def test_a_w_acts_from_its_layer_on(modulation, norm):
    G = generator(32, modulation, norm)
    layers = G.synthesis.layers()

    def features(ws):
        outputs = []
        hooks = [layer.register_forward_hook(lambda module, args, y: outputs.append(y)) for layer in layers]
        image = G.synthesis(ws, "const")
        for hook in hooks:
            hook.remove()
        return [*outputs, image]

    ws = G.ws(codes(2)).clone()
    before = features(ws)
    for i in range(G.config.num_ws):
        changed = ws.clone()
        changed[:, i] += 1
        differs = [not torch.equal(a, b) for a, b in zip(before, features(changed), strict=True)]
        assert differs == [j >= i for j in range(len(layers))] + [True]


def test_every_w_has_a_gradient():
    G = generator(32)
    ws = G.ws(codes(2)).detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad((G.synthesis(ws, "const") * normal(2, 3, 32, 32)).sum(), ws)
    assert (gradient.abs().amax(dim=2) > 1e-6).all()


def test_torgb_shares_its_w_with_the_next_block():
    """StyleGAN2's layout: layers take 0 | 1 2 | 3 4 | …, ToRGB takes 1, 3, 5, …"""
    G = generator(64)
    numbers = torch.arange(G.config.num_ws).double()
    ws = numbers[None, :, None].expand(2, -1, 8)
    seen = {}
    for module in G.synthesis.modules():
        if isinstance(module, SynthesisLayer | ToRGB):
            module.register_forward_pre_hook(lambda module, args: seen.update({module: args[1]}))
    G.synthesis(ws, "none")
    number = {module: float(w[0, 0]) for module, w in seen.items()}
    assert [number[layer] for layer in G.synthesis.layers()] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert [number[block.torgb] for block in G.synthesis.blocks] == [1, 3, 5, 7, 9]
