import dataclasses
import math

import pytest
import torch
from torch import Tensor

from latents.perception import PatchFeatures, distance
from latents.projection import (
    ProjectionConfig,
    exploration,
    learning_rate,
    nearest,
    noise_regularization,
    normalize_noise,
    project,
    psnr,
    random_ws,
)
from media.images import to_float, to_uint8
from models.sampling import latents
from networks.generator import Generator, GeneratorConfig

QUICK = ProjectionConfig(steps=100, candidates=64)


def tiny(c_dim: int = 0, noise: bool = False) -> Generator:
    """A generator of random weights, whose images use most of the range."""
    torch.manual_seed(0)
    config = GeneratorConfig(
        16, c_dim=c_dim, cbase=128, cmax=16, map_depth=2, z_dim=16, w_dim=16, style_channels=8, noise=noise
    )
    G = Generator(config).eval().requires_grad_(False)
    for layer in G.synthesis.layers():
        if noise:
            layer.noise_strength.fill_(0.1)
    spread = G.synthesis(G.ws(torch.randn(64, 16), torch.eye(max(c_dim, 1))[:1, :c_dim].expand(64, -1)), "const").std()
    for block in G.synthesis.blocks:
        block.torgb.weight *= 0.5 / spread
    return G


def own_images(G: Generator, count: int) -> Tensor:
    """What the generator makes of seeds, as a file has it, in −1..1."""
    c = torch.eye(max(G.config.c_dim, 1))[torch.arange(count) % max(G.config.c_dim, 1), : G.config.c_dim]
    return to_float(to_uint8(G(latents(range(100, 100 + count), G.config.z_dim), c, noise="const")))


def plain_regularization(maps: list[Tensor]) -> Tensor:
    """The sum of appendix D for one sample, pixel by pixel."""
    total = 0
    for n in maps:
        while True:
            side = len(n)
            right = sum(n[y][x] * n[y][x - 1] for y in range(side) for x in range(side)) / side**2
            down = sum(n[y][x] * n[y - 1][x] for y in range(side) for x in range(side)) / side**2
            total = total + right**2 + down**2
            if side <= 8:
                break
            half = range(0, side, 2)
            n = torch.stack(
                [torch.stack([(n[y, x] + n[y, x + 1] + n[y + 1, x] + n[y + 1, x + 1]) / 2 for x in half]) for y in half]
            )
    return total


def test_noise_regularization_and_its_gradient_equal_the_plain_sums():
    sides = [4, 8, 32]
    noise = [torch.randn(2, 1, side, side, dtype=torch.float64, requires_grad=True) for side in sides]
    values = noise_regularization(noise)
    plain = torch.stack([plain_regularization([maps[i, 0] for maps in noise]) for i in range(2)])
    torch.testing.assert_close(values, plain)
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(values @ weights, noise), torch.autograd.grad(plain @ weights, noise), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_noise_regularization_tells_noise_from_a_image():
    noise = torch.randn(64, 1, 32, 32)
    image = torch.linspace(0, 2 * math.pi, 33)[:32].sin().expand(1, 1, 32, 32) * 2**0.5
    assert noise_regularization([noise]).mean() < 0.05 < 1 < float(noise_regularization([image]))
    scaled = [5 * noise + 3]
    normalize_noise(scaled)
    torch.testing.assert_close(scaled[0].mean(dim=(2, 3)), torch.zeros(64, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled[0].square().mean(dim=(2, 3)), torch.ones(64, 1))


def test_the_learning_rate_rises_stays_and_falls():
    config = ProjectionConfig(steps=1000, lr=0.1)
    rates = [learning_rate(step, config) for step in range(1000)]
    assert rates[24] == pytest.approx(0.05) and rates[49] == rates[400] == rates[749] == pytest.approx(0.1)
    assert rates[875] == pytest.approx(0.05) and 0 < rates[-1] < 1e-5


def test_the_noise_on_w_ends_after_three_quarters():
    config = ProjectionConfig(steps=1000)
    levels = [exploration(step, config) for step in range(1000)]
    assert levels[0] == 0.05 and levels[375] == pytest.approx(0.05 / 4) and max(levels[750:]) == 0


def test_psnr_of_known_errors():
    a = torch.zeros(2, 3, 4, 4)
    b = torch.stack([a[0] + 0.2, a[1]])
    torch.testing.assert_close(psnr(b, a), torch.tensor([20.0, 100.0]))
    assert float(psnr(torch.full([1, 1, 2, 2], 7.0), torch.ones(1, 1, 2, 2))) == 100  # as the file has it


@pytest.mark.parametrize("space", ["w", "w+"])
@pytest.mark.parametrize("noise", [False, True])
def test_a_models_own_images_are_found(space, noise):
    G = tiny(noise=noise)
    targets = own_images(G, 3)
    config = dataclasses.replace(QUICK, space=space)
    found = project(G, targets, PatchFeatures(), config)
    assert psnr(found.images, targets).min() > 30
    same = [bool((found.ws[:, i] == found.ws[:, 0]).all()) for i in range(1, G.config.num_ws)]
    assert all(same) if space == "w" else not any(same)
    torch.testing.assert_close(G.synthesis(found.ws, found.noise or "const"), found.images)
    features = PatchFeatures()
    torch.testing.assert_close(found.distance, distance(features(found.images), features(targets)))
    if noise:
        for maps, layer in zip(found.noise, G.synthesis.layers(), strict=True):
            assert not torch.equal(maps[0], layer.noise_const[0])
            torch.testing.assert_close(maps.square().mean(dim=(1, 2, 3)), torch.ones(3))
    else:
        assert found.noise is None


def test_a_batch_has_the_results_of_its_targets_alone():
    G = tiny(noise=True)
    targets = own_images(G, 3)
    config = dataclasses.replace(QUICK, steps=30)
    together = project(G, targets, PatchFeatures(), config)
    for i in range(3):
        alone = project(G, targets[i : i + 1], PatchFeatures(), config)
        torch.testing.assert_close(alone.ws[0], together.ws[i], atol=1e-2, rtol=0)
        torch.testing.assert_close(alone.images[0], together.images[i], atol=1e-2, rtol=0)


def test_more_starts_are_never_worse():
    G = tiny()
    targets = own_images(G, 2)
    config = dataclasses.replace(QUICK, steps=10)
    one, four = (project(G, targets, PatchFeatures(), dataclasses.replace(config, starts=s)) for s in (1, 4))
    assert (four.distance <= one.distance * (1 + 1e-3)).all()


def test_the_nearest_candidate_is_the_one_that_made_the_image():
    G = tiny()
    ws = random_ws(G, 40, seed=3)
    targets = G.synthesis(ws[[7, 31], None].expand(-1, G.config.num_ws, -1), "const")
    torch.testing.assert_close(nearest(G, ws, targets, 2)[:, 0], ws[[7, 31]])


def test_codes_of_a_class():
    G = tiny(c_dim=3)
    labels = torch.eye(3)
    for number in range(3):
        ws = random_ws(G, 6, 0, labels[number])
        with pytest.raises(AssertionError):
            torch.testing.assert_close(ws, random_ws(G, 6, 0, labels[(number + 1) % 3]))
        torch.testing.assert_close(ws[number::3], random_ws(G, 6, 0)[number::3])


def test_progress_tells_the_best_start_of_each_target():
    G = tiny()
    targets = own_images(G, 2)
    seen = []
    config = dataclasses.replace(QUICK, steps=5, starts=3)
    project(G, targets, PatchFeatures(), config, progress=lambda *told: seen.append(told))
    assert [step for step, _, _ in seen] == list(range(5))
    features = PatchFeatures()
    for _, loss, images in seen:
        torch.testing.assert_close(loss, distance(features(images), features(targets)))


def test_progress_can_end_the_search_and_keeps_what_was_found():
    G, seen = tiny(noise=True), []

    def progress(step, loss, images):
        seen.append(images)
        return step == 4

    stopped = project(
        G, own_images(G, 1), PatchFeatures(), ProjectionConfig(steps=50, candidates=10), progress=progress
    )
    assert len(seen) == 5
    assert torch.allclose(stopped.images, G.synthesis(stopped.ws, stopped.noise or "const"), atol=1e-5)
    assert (stopped.images != seen[-1]).any()  # the last step is not lost
