"""models.sampling: the same seed gives the same image in any batch."""

import numpy as np
import pytest
import torch
from torch import nn

from media.images import to_uint8
from models.sampling import STATE_START, STATE_WORDS, generate_batches, latents, noise_from_seeds, one_hot
from networks.generator import Generator, GeneratorConfig

SEEDS = [3, 14, 15, 92, 65, 35, 89, 79, 3]


def generator(c_dim=0):
    torch.manual_seed(0)
    G = Generator(GeneratorConfig(32, c_dim=c_dim, z_dim=8, w_dim=8, map_depth=2, cbase=256, cmax=8, noise=True))
    for layer in G.synthesis.layers():
        nn.init.constant_(layer.noise_strength, 0.3)
    return G


def images(G, batch, seeds=SEEDS, **options):
    batches = list(generate_batches(G, seeds, batch, **options))
    assert [len(b) for b in batches] == [len(seeds[i : i + batch]) for i in range(0, len(seeds), batch)]
    return torch.cat(batches)


def assert_same(a, b):
    """But for a rounding here and there."""
    difference = (a.int() - b.int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 1e-3


def test_latents_do_not_depend_on_the_batch():
    z = latents(SEEDS, 20)
    for i, seed in enumerate(SEEDS):
        assert torch.equal(z[i], latents([seed], 20)[0])
    assert torch.equal(z[0], z[-1])
    assert len({tuple(row.tolist()) for row in z}) == len(set(SEEDS))


def test_all_64_bits_of_a_seed_count():
    """PyTorch's CPU generator takes the lower 32 bits of a seed, so that seeds above 2³² repeated."""
    low = [0, 1, 2**31, 2**32 - 1]
    seeds = [high * 2**32 + seed for high in (0, 1, 2, 2**20, 2**31 - 1) for seed in low]
    z = latents(seeds, 64)
    cosines = torch.nn.functional.cosine_similarity(z[:, None], z[None], dim=2) - torch.eye(len(seeds))
    assert cosines.abs().max() < 0.6
    for row, seed in zip(z, low, strict=False):  # those of before
        assert torch.equal(row, torch.randn(64, generator=torch.Generator().manual_seed(seed ^ 0x6C6174656E740000)))
    large = latents(range(2**40, 2**40 + 200), 512)
    assert float(large.mean()) == pytest.approx(0, abs=0.01) and float(large.std()) == pytest.approx(1, abs=0.01)


def test_seeds_of_stylegan2_are_numpys():
    """By the line of NVIDIA's programs, of which those for videos leave out the 1."""
    seeds = [0, 3, 85, 2**32 - 1]
    for z_dim in (8, 512):
        rows = [torch.from_numpy(np.random.RandomState(seed).randn(1, z_dim)).float() for seed in seeds]
        assert torch.equal(latents(seeds, z_dim, "stylegan2"), torch.cat(rows))
    first = [1.76405235, 0.40015721, 0.97873798]  # RandomState(0), as it has been since NumPy 1.0
    assert latents([0], 3, "stylegan2").tolist()[0] == pytest.approx(first, abs=1e-7)
    assert torch.equal(latents(seeds, 8, "adaconv"), latents(seeds, 8))
    assert latents([], 8, "stylegan2").shape == (0, 8)
    for wrong, words in (([2**32], "0 to 2\\*\\*32 - 1"), ([-1], "got -1")):
        with pytest.raises(ValueError, match=words):
            latents(wrong, 8, "stylegan2")
    with pytest.raises(ValueError, match="expected 'adaconv' or 'stylegan2', got 'stylegan3'"):
        latents([0], 8, "stylegan3")


def test_the_state_of_the_generator_is_where_it_is_filled():
    """The Mersenne Twister's first word is its seed, and the others follow from it."""
    state = torch.Generator().manual_seed(5489).get_state()
    words = state[STATE_START:][: 8 * STATE_WORDS].view(torch.int64).tolist()
    expected = [5489]
    for i in range(1, STATE_WORDS):
        expected.append((1812433253 * (expected[-1] ^ (expected[-1] >> 30)) + i) % 2**32)
    assert words == expected


def test_latents_are_normal_and_leave_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    z = latents(range(200), 512)
    assert torch.equal(torch.randn(3), expected)
    assert float(z.mean()) == pytest.approx(0, abs=0.01)
    assert float(z.std()) == pytest.approx(1, abs=0.01)


def test_noise_does_not_depend_on_the_batch():
    G = generator()
    noise = noise_from_seeds(G, SEEDS)
    sizes = [layer.size for layer in G.synthesis.layers()]
    assert [n.shape for n in noise] == [(len(SEEDS), 1, *size) for size in sizes]
    for i, seed in enumerate(SEEDS):
        for alone, together in zip(noise_from_seeds(G, [seed]), noise, strict=True):
            assert torch.equal(alone[0], together[i])
    flat = torch.cat([n[:-1].flatten() for n in noise])
    assert float(flat.mean()) == pytest.approx(0, abs=0.03)
    assert float(flat.std()) == pytest.approx(1, abs=0.03)


def test_noise_is_drawn_apart_from_z_and_for_each_layer():
    torch.manual_seed(0)
    G = Generator(GeneratorConfig(16, z_dim=64, w_dim=8, map_depth=1, cbase=64, cmax=4, noise=True))
    drawn = [latents([7], 64)[0], *(n.flatten() for n in noise_from_seeds(G, [7]))]
    values = torch.cat([d[:16] for d in drawn])  # draws from one place of the sequence begin alike
    assert values.unique().numel() == len(values)


@pytest.mark.parametrize("noise", ["const", "random", "none"])
def test_images_do_not_depend_on_the_batch(noise):
    G = generator()
    alone = images(G, 1, noise=noise)
    assert alone.dtype == torch.uint8 and alone.shape == (9, 3, 32, 32)
    assert_same(alone[0], alone[-1])
    assert (alone[0].int() - alone[1].int()).abs().float().mean() > 3
    for batch in (3, 8, 64):
        assert_same(images(G, batch, noise=noise), alone)


def test_noise_modes_differ():
    G = generator()
    const, random, none = (images(G, 4, noise=mode) for mode in ("const", "random", "none"))
    for a, b in [(const, random), (const, none), (random, none)]:
        assert (a.int() - b.int()).abs().float().mean() > 1


def test_random_noise_does_not_touch_the_global_generator():
    G = generator()
    torch.manual_seed(1)
    a = images(G, 4, noise="random")
    torch.manual_seed(2)
    assert torch.equal(images(G, 4, noise="random"), a)


def test_images_are_the_generators():
    G = generator(c_dim=3)
    G.w_avg.normal_()
    classes = torch.tensor([2, 0, 1, 1, 2, 0, 0, 1, 0])
    ours = images(G, 4, classes=classes, psi=0.7)
    with torch.no_grad():
        expected = G(latents(SEEDS, 8), torch.eye(3)[classes], 0.7, "const")
    assert_same(ours, to_uint8(expected))
    assert (ours[0].int() - ours[-1].int()).abs().float().mean() > 1  # one seed, two classes
    first = images(G, 4, psi=0.7)
    assert_same(first[1], ours[1])  # class 0 is what is left out
    assert (first[0].int() - ours[0].int()).abs().float().mean() > 1


def test_truncated_to_nothing_all_images_are_one():
    a = images(generator(), 4, psi=0.0)
    for i in range(1, len(a)):
        assert_same(a[0], a[i])


def test_one_hot():
    assert one_hot(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert one_hot(torch.tensor([2, 0]), 3).dtype == torch.float32
    assert one_hot(torch.tensor([0, 0]), 0).shape == (2, 0)


def test_no_seeds_no_images():
    assert list(generate_batches(generator(), [], 4)) == []


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_no_latent_is_what_a_network_was_made_from(seed):
    """Weights drawn from the same numbers as a latent would single that image out."""
    torch.manual_seed(seed)
    weights = torch.randn(64 * 128)
    z = latents([seed], 64)[0]
    cosines = weights.unfold(0, 64, 1) @ z / (weights.unfold(0, 64, 1).norm(dim=1) * z.norm())
    assert cosines.abs().max() < 0.7


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_seeds_that_do_not_exist(seed):
    with pytest.raises(ValueError, match=rf"seeds: expected 0 to 2\*\*64 - 1, got {seed}"):
        latents([1, seed], 4)
