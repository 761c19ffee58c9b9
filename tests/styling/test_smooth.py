"""styling.smooth: noise goes, motion stays, and nothing passes a cut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from media.files import list_images, read_image
from styling.smooth import CutDetector, MotionFilter, MovingAverage

SIGMA = 0.06  # of the noise, in −1..1: 8 steps of 255


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scene(seed: int = 0, height: int = 64, width: int = 96) -> torch.Tensor:
    """An image [3, H, W] of smooth patches, in −0.8..0.8."""
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8
    return F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(-0.8, 0.8)[0]


def still(frames: int = 40, seed: int = 0) -> torch.Tensor:
    """A still image with new noise in each frame."""
    return scene(seed) + SIGMA * normal(frames, 3, 64, 96, seed=seed + 100)


def no_cuts(frames) -> list[bool]:
    return [i == 0 for i in range(len(frames))]


def change(frames: torch.Tensor) -> float:
    """The root mean square of what changes from frame to frame."""
    return (frames[1:] - frames[:-1]).square().mean().sqrt().item()


# Cuts


def test_cuts_are_found_where_they_are():
    frames = torch.cat([still(5, seed) for seed in range(4)])
    expected = [i % 5 == 0 for i in range(20)]
    assert CutDetector()(frames) == expected
    detector = CutDetector()
    assert [cut for part in frames.split(3) for cut in detector(part)] == expected  # however they are divided


def test_motion_noise_and_slow_fades_are_no_cuts():
    wide = scene(0, 64, 400)
    pan = torch.stack([wide[:, :, 3 * i : 3 * i + 96] for i in range(40)])
    fade = scene(1) * torch.linspace(1, -1, 40).view(-1, 1, 1, 1)
    for frames in (pan, fade, still(10) + 0.2 * normal(10, 3, 64, 96, seed=3)):
        assert CutDetector()(frames) == no_cuts(frames)


def test_cuts_between_real_photos(real_images):
    photos = [
        F.interpolate(read_image(path).float()[None] / 127.5 - 1, size=(256, 384), mode="area")
        for path in list_images(real_images / "photos")
    ]
    frames = torch.cat([photo[:, :, :, 4 * i : 4 * i + 300] for photo in photos for i in range(5)])
    assert CutDetector()(frames) == [i % 5 == 0 for i in range(len(frames))]


# Averages


def tensors(frames: int, seed: int = 0) -> list[torch.Tensor]:
    """Tensors of several shapes [frames, …]."""
    return [normal(frames, *shape, seed=seed + i) for i, shape in enumerate([(8, 1, 1), (8,), (4, 2, 3, 3), ()])]


def test_constant_tensors_are_unchanged():
    constant = [x[:1].expand(20, *x.shape[1:]) for x in tensors(1)]
    for found, expected in zip(MovingAverage(0.8)(constant, no_cuts(range(20))), constant, strict=True):
        assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("a", [0.0, 0.5, 0.8, 0.95])
def test_the_variance_of_noise_falls_by_the_stated_factor(a):
    (average,) = MovingAverage(a)([normal(2500, 400)], no_cuts(range(2500)))
    assert average[500:].var().item() == pytest.approx((1 - a) / (1 + a), rel=0.05)


def test_it_is_an_exponential_average_that_begins_as_a_plain_mean():
    values = normal(30, 5)
    other, average = MovingAverage(0.8)([-values, values], no_cuts(values))
    assert torch.equal(other, -average)
    for i in range(5):  # 1 / 5 is 1 − 0.8
        assert torch.allclose(average[i], values[: i + 1].mean(0), atol=1e-6)
    expected = average[4]
    for i in range(5, 30):
        expected = 0.8 * expected + 0.2 * values[i]
        assert torch.allclose(average[i], expected, atol=1e-6)


def test_averages_do_not_pass_a_cut_and_batches_do_not_matter():
    data = tensors(24)
    cuts = [i in (0, 10, 11) for i in range(24)]
    whole = MovingAverage()(data, cuts)
    for begin, end in ((0, 10), (10, 11), (11, 24)):
        alone = MovingAverage()([x[begin:end] for x in data], no_cuts(range(end - begin)))
        for a, b in zip(whole, alone, strict=True):
            assert torch.equal(a[begin:end], b)
    smoother, parts = MovingAverage(), []
    for i in range(0, 24, 7):
        parts.append(smoother([x[i : i + 7] for x in data], cuts[i : i + 7]))
    for i, expected in enumerate(whole):
        assert torch.equal(torch.cat([part[i] for part in parts]), expected)
    with pytest.raises(ValueError, match=r"a: .* got 1"):
        MovingAverage(1)


# Still parts


@pytest.mark.parametrize("noise", [None, SIGMA])
def test_noise_in_a_still_image_changes_at_most_half_as_much(noise):
    frames = still()
    out = MotionFilter(noise=noise)(frames, no_cuts(frames))
    assert change(out) <= 0.5 * change(frames)
    # in the long run g / √(2 − g) with g = 1/4, and the noise left is √(g / (2 − g))
    assert change(out[20:]) == pytest.approx(0.25 / 1.75**0.5 * change(frames), rel=0.25)
    left = (out[20:] - scene()).square().mean().sqrt().item()
    assert left == pytest.approx((0.25 / 1.75) ** 0.5 * SIGMA, rel=0.15)


def test_a_filter_of_the_content_calms_what_is_made_of_it():
    # a stand-in for a network: convolutions with something not linear between
    first, second = normal(8, 3, 3, 3, seed=1) / 5, normal(3, 8, 3, 3, seed=2) / 8

    def model(x):
        return F.conv2d(torch.relu(F.conv2d(F.instance_norm(x), first)), second)

    frames = still()
    out = MotionFilter()(frames, no_cuts(frames))
    assert change(model(out)) <= 0.5 * change(model(frames))


def moving(frames: int = 24, noise: float = SIGMA) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A bright square that goes 2 pixels a frame to the right over a still ground; clean, noisy, and where it is."""
    clean = torch.stack([scene() * 0.5 - 0.4 for _ in range(frames)])
    inside = torch.zeros(frames, 1, 64, 96, dtype=torch.bool)
    for i in range(frames):
        inside[i, :, 20:44, 5 + 2 * i : 29 + 2 * i] = True
    clean = torch.where(inside, torch.tensor([0.6, 0.5, 0.7]).view(3, 1, 1), clean)
    return clean, clean + noise * normal(*clean.shape, seed=9), inside


def test_moving_edges_stay_sharp():
    clean, noisy, inside = moving()
    out = MotionFilter()(noisy, no_cuts(noisy))
    edge = (F.max_pool2d(inside.float(), 5, 1, 2) - -F.max_pool2d(-inside.float(), 5, 1, 2)).bool()
    edge = edge.expand_as(clean)
    # around the edges what is left is noise, without a trace of where they were
    error = (out - clean)[10:][edge[10:]]
    assert error.square().mean().sqrt().item() < 1.1 * SIGMA
    assert error.abs().max().item() < 6 * SIGMA
    for i in range(10, 24):  # across the right edge: ground on one side, square on the other, nothing between
        x = 28 + 2 * i
        rise = (out[i, :, 24:40, x] - out[i, :, 24:40, x + 1]).mean()
        expected = (clean[i, :, 24:40, x] - clean[i, :, 24:40, x + 1]).mean()
        assert rise.item() == pytest.approx(expected.item(), rel=0.1)
    # while the still ground far away is calm
    assert change(out[10:, :, :12]) <= 0.4 * change(noisy[10:, :, :12])


def test_without_noise_motion_goes_through_as_it_is():
    clean, _, _ = moving(noise=0)
    out = MotionFilter()(clean, no_cuts(clean))
    assert (out - clean).abs().max() < 0.01


def test_a_pan_of_everything_is_not_smeared():
    wide = scene(3, 64, 300) + 0.25 * normal(3, 64, 300, seed=4).sign()  # texture that is no noise
    frames = torch.stack([wide[:, :, 4 * i : 4 * i + 96] for i in range(20)])
    out = MotionFilter()(frames, no_cuts(frames))
    assert (out - frames).abs().mean() < 0.02


def test_light_that_fades_slowly_is_followed():
    # less from frame to frame than the noise, but everywhere the same
    light = torch.linspace(0, 0.6, 60).view(-1, 1, 1, 1)
    frames = scene() * 0.3 - 0.3 + light + SIGMA * normal(60, 3, 64, 96, seed=5)
    out = MotionFilter()(frames, no_cuts(frames))
    late = (scene() * 0.3 - 0.3 + light - out)[20:].mean((1, 2, 3))
    assert late.abs().max() < 0.5 * SIGMA
    assert change(out) < 0.6 * change(frames)


def test_nothing_passes_a_cut_and_batches_do_not_matter():
    frames = torch.cat([still(8, 0), still(8, 1)])
    cuts = [i % 8 == 0 for i in range(16)]
    whole = MotionFilter(noise=SIGMA)(frames, cuts)
    assert torch.equal(whole[8], frames[8])
    assert torch.equal(whole[8:], MotionFilter(noise=SIGMA)(frames[8:], cuts[8:]))
    for options in ({}, {"noise": SIGMA}):
        parts = MotionFilter(**options)
        joined = torch.cat([parts(f, c) for f, c in ((frames[:3], cuts[:3]), (frames[3:], cuts[3:]))])
        assert torch.equal(joined, MotionFilter(**options)(frames, cuts))
    constant = scene().expand(5, -1, -1, -1)
    assert torch.allclose(MotionFilter()(constant, no_cuts(constant)), constant)
    assert (
        torch.equal(MotionFilter(gain=1)(frames, cuts), frames)
        or (MotionFilter(gain=1)(frames, cuts) - frames).abs().max() < 1e-6
    )


@pytest.mark.parametrize("noise, pixels", [(0.0, 1), (0.0, 3), (SIGMA, 1), (SIGMA, 3)])
def test_a_noisy_pan_over_a_real_photo(real_images, noise, pixels):
    photo = read_image(real_images / "photos" / "golden_gate.jpg").float()[:, 100:260, :400] / 127.5 - 1
    clean = torch.stack([photo[:, :, pixels * i : pixels * i + 300] for i in range(14)])
    noisy = clean + noise * normal(*clean.shape)
    out = MotionFilter()(noisy, no_cuts(noisy))
    left = (out - clean)[6:].square().mean().sqrt().item()
    assert left < (0.9 * noise if noise else 0.01)
