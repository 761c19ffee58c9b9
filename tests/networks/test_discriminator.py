"""networks.discriminator against loops and formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks.discriminator import Discriminator, DiscriminatorBlock, DiscriminatorConfig, minibatch_std


def discriminator(seed=0, **options):
    """A small one in float64 with biases other than zero, as after some training."""
    torch.manual_seed(seed)
    D = Discriminator(DiscriminatorConfig(**{"resolution": 16, "cbase": 64, "cmax": 8, "map_depth": 2} | options))
    for name, parameter in D.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return D.double()


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def lrelu(x):
    return torch.where(x > 0, x, 0.2 * x)


# Minibatch standard deviation.


def std_of(samples):
    """√(variance + ε) over the samples at each channel and position, averaged over these."""
    values = [s.flatten().tolist() for s in samples]
    total = 0.0
    for column in zip(*values, strict=True):
        mean = sum(column) / len(column)
        total += math.sqrt(sum((v - mean) ** 2 for v in column) / len(column) + 1e-8)
    return total / len(values[0])


@pytest.mark.parametrize(
    ("n", "group", "expected"),  # the group's real size
    [(8, 4, 4), (4, 4, 4), (8, 2, 2), (6, 4, 3), (5, 4, 1), (3, 4, 3), (1, 4, 1), (12, 8, 6)],
)
def test_minibatch_std_equals_the_loop(n, group, expected):
    torch.manual_seed(0)
    x = normal(n, 3, 4, 2)
    y = minibatch_std(x, group)
    assert y.shape == (n, 4, 4, 2)
    assert torch.equal(y[:, :3], x)
    stride = n // expected
    for i in range(n):
        together = [x[j] for j in range(i % stride, n, stride)]
        assert len(together) == expected
        torch.testing.assert_close(y[i, 3], torch.full_like(y[i, 3], std_of(together)), rtol=1e-10, atol=1e-12)


def test_a_image_acts_on_its_group_alone():
    D = discriminator(mbstd_group=4)
    images = normal(8, 3, 16, 16).requires_grad_()
    logits = D(images)
    for j in range(8):
        (gradient,) = torch.autograd.grad(logits[j], images, retain_graph=True)
        acts = gradient.flatten(1).any(dim=1).tolist()
        assert acts == [i % 2 == j % 2 for i in range(8)]


def test_alike_images_have_no_deviation():
    D, seen = discriminator(), []
    D.conv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    image = normal(1, 3, 16, 16)
    D(image.expand(4, -1, -1, -1))
    D(normal(4, 3, 16, 16))
    alike, different = (x[:, -1] for x in seen)
    torch.testing.assert_close(alike, torch.full_like(alike, 1e-4))  # √ε
    assert (different > 0.01).all()


# Blocks.


def filtered(x):
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype) / 8
    return F.conv2d(x, torch.outer(taps, taps).expand(x.shape[1], 1, 4, 4), groups=x.shape[1])


@pytest.mark.parametrize("clamp", [math.inf, 0.5])
def test_block_formula(clamp):
    """The clamp limits what the activations would be without the gain √½ of the block's two branches."""
    torch.manual_seed(0)
    config = DiscriminatorConfig(16, cbase=128, cmax=12, clamp=None if clamp == math.inf else clamp)
    block = DiscriminatorBlock(config, config.channels(16), config.channels(8)).double()
    for layer in (block.conv0, block.conv1):
        nn.init.normal_(layer.bias)
    x = normal(2, 8, 16, 16)
    y = F.conv2d(x, block.conv0.weight / math.sqrt(8 * 9), block.conv0.bias, padding=1)
    y = (math.sqrt(2) * lrelu(y)).clamp(-clamp, clamp)
    y = F.conv2d(filtered(F.pad(y, [2] * 4)), block.conv1.weight / math.sqrt(8 * 9), block.conv1.bias, stride=2)
    skip = F.conv2d(filtered(F.pad(x, [1] * 4))[:, :, ::2, ::2], block.skip.weight / math.sqrt(8))
    y = math.sqrt(0.5) * (math.sqrt(2) * lrelu(y)).clamp(-clamp, clamp)
    torch.testing.assert_close(block(x), y + math.sqrt(0.5) * skip, rtol=1e-12, atol=1e-12)


def test_block_keeps_the_second_moment_at_the_start():
    """Over random weights, inside images so smooth that the filter leaves them: ½ for the skip and ½ · 1.04²."""
    torch.manual_seed(0)
    powers, config = [], DiscriminatorConfig(16, cbase=16 * 128, cmax=128)
    for _ in range(16):
        x = torch.randn(8, 128, 1, 1).expand(-1, -1, 16, 16)
        with torch.no_grad():
            y = DiscriminatorBlock(config, 128, 128)(x)[:, :, 2:-2, 2:-2]
        powers.append(float(y.square().mean()))
    assert sum(powers) / 16 == pytest.approx(0.5 + 0.5 * 1.04**2, rel=0.03)


# The whole.


@pytest.mark.parametrize("resolution", [16, 32, 64])
@pytest.mark.parametrize(("channels", "c_dim"), [(1, 0), (3, 0), (3, 5)])
def test_groups_are_independent_of_each_other(resolution, channels, c_dim):
    D = discriminator(resolution=resolution, img_channels=channels, c_dim=c_dim, cbase=256, mbstd_group=2)
    images = normal(6, channels, resolution, resolution)
    c = torch.eye(c_dim, dtype=torch.float64)[torch.arange(6) % c_dim] if c_dim else None
    logits = D(images, c)
    assert logits.shape == (6, 1)
    assert logits.std() > 1e-3
    for i in range(3):
        pair = [i, i + 3]
        torch.testing.assert_close(D(images[pair], None if c is None else c[pair]), logits[pair])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 68}, "^resolution: .*68"),
        ({"cbase": 8}, "^cbase: .*8"),
        ({"mbstd_group": -1}, "^mbstd_group: .*-1"),
    ],
)
def test_configurations_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        discriminator(**options)


def test_projection():
    """Σ features · embedding(c) / √C (Miyato and Koyama 2018)."""
    D, features = discriminator(c_dim=3), []
    D.out.register_forward_hook(lambda module, args, y: features.append(y))
    images = normal(1, 3, 16, 16).expand(3, -1, -1, -1)
    logits = D(images, torch.eye(3, dtype=torch.float64))
    assert logits.flatten().unique().numel() == 3
    for i in range(3):
        v = D.mapping.embed.weight[:, i] / math.sqrt(3) + D.mapping.embed.bias
        v = v / (v.square().mean() + 1e-8).sqrt()
        for layer in D.mapping.layers:
            v = math.sqrt(2) * lrelu(0.01 * (layer.weight @ v / math.sqrt(8) + layer.bias))
        expected = sum(features[0][i, o] * v[o] for o in range(8)) / math.sqrt(8)
        torch.testing.assert_close(logits[i, 0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("c_dim", [0, 3])
def test_r1_gradient_equals_finite_differences(c_dim, gradient_equals_finite_differences):
    """∇ Σ‖∂D/∂x‖² by all parameters, which differentiates twice through every layer."""
    D = discriminator(c_dim=c_dim)
    images = normal(4, 3, 16, 16).requires_grad_()
    c = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]] if c_dim else None

    def penalty():
        (gradient,) = torch.autograd.grad(D(images, c).sum(), images, create_graph=True)
        return gradient.square().sum()

    gradient_equals_finite_differences(penalty, list(D.parameters()))


def test_state_dict_round_trip():
    D, other = discriminator(c_dim=3), discriminator(seed=1, c_dim=3)
    images, c = normal(4, 3, 16, 16), torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]
    assert not torch.allclose(other(images, c), D(images, c))
    other.load_state_dict(D.state_dict())
    assert torch.equal(other(images, c), D(images, c))


def test_channels_last_memory_changes_nothing():
    """As training keeps the weights on GPUs: logits, gradients and the gradient penalty's gradients."""
    torch.manual_seed(0)
    D = Discriminator(DiscriminatorConfig(32, cbase=512, cmax=32)).double()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    results = []
    for order in (torch.contiguous_format, torch.channels_last):
        D.blocks.to(memory_format=order)
        logits = D(x)
        (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        results.append([logits, *torch.autograd.grad(gradient.square().sum(), D.blocks[0].conv0.weight), gradient])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_images_that_are_not_square():
    """The last block has the shape of the generator's constant; a square is one shape among others."""
    wide, square = discriminator(resolution=(48, 32)), discriminator(resolution=32)
    assert wide.fc.weight.shape == (8, 8 * 4 * 6)
    names = [name for name in square.state_dict() if not name.startswith("fc.")]
    assert all(wide.state_dict()[name].shape == square.state_dict()[name].shape for name in names)
    assert wide(normal(4, 3, 32, 48)).shape == (4, 1)
    image = normal(1, 3, 32, 48)
    changed = image.clone()
    changed[:, :, :, 40:] += 1  # the last columns count as well
    assert float((wide(image) - wide(changed)).abs()) > 1e-6
