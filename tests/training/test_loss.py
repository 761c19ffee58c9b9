"""training.loss: known answers and formulas."""

import math

import pytest
import torch
from torch import nn

from networks.generator import Generator, GeneratorConfig
from training.loss import PathLength, discriminator_loss, generator_loss, gradient_penalty, sample_ws


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_logits_of_zero():
    zero = torch.zeros(5, 1, dtype=torch.float64)
    assert float(generator_loss(zero)) == pytest.approx(math.log(2), rel=1e-12)
    assert float(discriminator_loss(zero, zero)) == pytest.approx(2 * math.log(2), rel=1e-12)


def test_losses_equal_their_formula():
    """−log σ(D(G(z))), and −log σ(D(x)) − log(1 − σ(D(G(z))))."""
    real, fake = [3.0, -2.0, 0.5], [-1.0, 4.0, 0.1]

    def sigma(v):
        return 1 / (1 + math.exp(-v))

    r, f = (torch.tensor(values, dtype=torch.float64)[:, None] for values in (real, fake))
    expected = sum(-math.log(sigma(v)) for v in fake) / 3
    assert float(generator_loss(f)) == pytest.approx(expected, rel=1e-12)
    expected = sum(-math.log(sigma(v)) for v in real) / 3 + sum(-math.log(1 - sigma(v)) for v in fake) / 3
    assert float(discriminator_loss(r, f)) == pytest.approx(expected, rel=1e-12)


def test_losses_of_sure_logits():
    sure = torch.full([2, 1], 1000.0)
    assert float(discriminator_loss(sure, -sure)) == 0
    assert float(discriminator_loss(-sure, sure)) == 2000
    assert float(generator_loss(sure)) == 0
    assert float(generator_loss(-sure)) == 1000


# R1.


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images, c):
        return self.function(images, c)


def test_r1_of_a_linear_function_is_its_squared_norm():
    torch.manual_seed(0)
    a = normal(3, 4, 5).requires_grad_()
    D = Function(lambda images, c: (images * a).sum(dim=(1, 2, 3))[:, None])
    penalty = gradient_penalty(D, normal(6, 3, 4, 5), None)
    torch.testing.assert_close(penalty, a.square().sum())
    torch.testing.assert_close(torch.autograd.grad(penalty, a)[0], 2 * a)


def test_r1_is_the_mean_over_the_batch_and_takes_the_classes():
    """D(x, c) = c · ½‖x‖² has the gradient c·x."""
    torch.manual_seed(0)
    images, c = normal(4, 3, 2, 2), torch.tensor([[0.0], [1.0], [2.0], [3.0]]).double()
    penalty = gradient_penalty(Function(lambda x, c: c * x.square().sum(dim=(1, 2, 3))[:, None] / 2), images, c)
    expected = sum(float(c[i]) ** 2 * float(images[i].square().sum()) for i in range(4)) / 4
    assert float(penalty.detach()) == pytest.approx(expected, rel=1e-12)
    assert not images.requires_grad


# Path length.


def test_path_length_of_a_linear_map():
    """Images M·ws have the Jacobian M: lengths √(mean over layers of ‖Mᵀy‖²), with y of variance 1 / (H·W)."""
    torch.manual_seed(0)
    n, layers, w_dim, shape = 3, 4, 5, (2, 6, 8)
    M = normal(math.prod(shape), layers * w_dim).requires_grad_()
    ws = normal(n, layers, w_dim).requires_grad_()
    path_length = PathLength(decay=0.25).double()
    path_length.mean.fill_(2.0)

    torch.manual_seed(7)
    penalty = path_length((ws.flatten(1) @ M.T).view(n, *shape), ws)
    torch.manual_seed(7)
    y = normal(n, *shape) / math.sqrt(6 * 8)
    lengths = []
    for i in range(n):
        gradient = (M.T @ y[i].flatten()).view(layers, w_dim)
        lengths.append((sum(g @ g for g in gradient) / layers).sqrt())
    lengths = torch.stack(lengths)
    mean = 0.75 * 2.0 + 0.25 * lengths.mean()  # through which the published code differentiates, too
    torch.testing.assert_close(path_length.mean, mean.detach())
    expected = (lengths - mean).square().mean()
    torch.testing.assert_close(penalty, expected)
    torch.testing.assert_close(torch.autograd.grad(penalty, M)[0], torch.autograd.grad(expected, M)[0])


def test_running_mean_of_path_lengths():
    """Images 3·w of C channels: all lengths are about 3√C, and their running mean after t steps 3√C·(1 − (1−β)ᵗ)."""
    torch.manual_seed(0)
    path_length = PathLength(decay=0.1)
    assert float(path_length.mean) == 0
    for step in range(1, 31):
        ws = torch.randn(4, 1, 2 * 64 * 64, requires_grad=True)
        penalty = path_length((3 * ws).view(4, 2, 64, 64), ws)
        mean = 3 * math.sqrt(2) * (1 - 0.9**step)
        assert float(path_length.mean) == pytest.approx(mean, rel=0.01)
        assert float(penalty.detach()) == pytest.approx((3 * math.sqrt(2) - mean) ** 2, rel=0.1, abs=0.02)
    assert "mean" in path_length.state_dict()


def test_path_length_mean_has_no_graph():
    ws = torch.randn(2, 3, 4, requires_grad=True)
    path_length = PathLength()
    for _ in range(2):
        path_length(ws.square().sum(dim=1)[:, :, None, None].expand(-1, -1, 2, 2), ws).backward()
    assert not path_length.mean.requires_grad and float(path_length.mean) > 0


# Style mixing.


def generator():
    torch.manual_seed(0)
    return Generator(GeneratorConfig(64, z_dim=8, w_dim=8, map_depth=2, cbase=128, cmax=4))


def test_without_mixing_all_layers_share_their_w():
    G = generator()
    z = torch.randn(5, 8)
    ws = sample_ws(G, z, None, mixing=0)
    torch.testing.assert_close(ws, G.mapping(z, None)[:, None].expand(5, G.config.num_ws, 8))


def test_with_mixing_two_codes_meet_at_one_layer():
    G = generator()
    z = torch.randn(5, 8)
    w, count, cutoffs = G.mapping(z, None), G.config.num_ws, set()
    for seed in range(100):
        torch.manual_seed(seed)
        ws = sample_ws(G, z, None, mixing=1)
        assert ws.shape == (5, count, 8)
        own = [torch.allclose(ws[:, i], w) for i in range(count)]
        cutoff = sum(own)
        assert own == [i < cutoff for i in range(count)]
        torch.testing.assert_close(ws[:, cutoff:], ws[:, cutoff:][:, :1].expand(-1, count - cutoff, -1))
        others = ws[:, -1]
        assert (others[:, None] - w[None]).abs().amax(dim=2).min() > 1e-4  # codes of their own
        assert (others[0] - others[1]).abs().max() > 1e-4
        cutoffs.add(cutoff)
    assert cutoffs == set(range(1, count))


def test_mixing_happens_with_its_probability():
    G = generator()
    z, mixed = torch.randn(2, 8), 0
    for seed in range(300):
        torch.manual_seed(seed)
        ws = sample_ws(G, z, None, mixing=0.3)
        mixed += not torch.equal(ws[:, 0], ws[:, -1])
    assert 60 < mixed < 120


def test_mixing_keeps_the_class():
    torch.manual_seed(0)
    G = Generator(GeneratorConfig(16, z_dim=8, w_dim=8, map_depth=1, cbase=64, cmax=4, c_dim=2))
    with torch.no_grad():  # a mapping that says the class alone
        G.mapping.layers[0].weight[:, :8] = 0
    c = torch.eye(2)
    ws = sample_ws(G, torch.randn(2, 8), c, mixing=1)
    torch.testing.assert_close(ws, G.mapping(torch.randn(2, 8), c)[:, None].expand_as(ws))
    assert (ws[0] - ws[1]).abs().max() > 1e-4


def test_gradients_reach_both_codes():
    G = generator()
    ws = sample_ws(G, torch.randn(2, 8), None, mixing=1)
    for i in (0, -1):
        (gradient,) = torch.autograd.grad(ws[:, i].sum(), G.mapping.layers[0].weight, retain_graph=True)
        assert gradient.any()
