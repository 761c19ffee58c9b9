"""training.augment: each transform against a plain version of it."""

import math

import numpy as np
import pytest
import torch

from tests.training.test_augment import LOWPASS, POWER, force, random_images, values
from training import augment
from training.augment import (
    SYM2,
    SYM6,
    SYM6_CENTRE,
    AugmentPipe,
    amplify,
    cut_out,
    filter_bank,
    lookup,
    random_colors,
    random_gains,
    random_geometry,
    random_holes,
    random_sigmas,
    recolor,
    rotation,
    scaling,
    translation,
    warp,
)

# The filters.


@pytest.mark.parametrize("taps", [SYM2, SYM6])
def test_wavelets_are_orthogonal_with_vanishing_moments(taps):
    h, n = np.array(taps), np.arange(len(taps))
    for shift in range(0, len(h), 2):
        assert np.dot(h[shift:], h[: len(h) - shift]) == pytest.approx(float(shift == 0), abs=1e-12)
    assert h.sum() == pytest.approx(math.sqrt(2), abs=1e-12)
    for moment in range(len(h) // 2):
        terms = (-1.0) ** n * (n / len(h)) ** moment * h
        assert terms.sum() == pytest.approx(0, abs=1e-12)


def test_sym6_is_nearly_symmetric_about_its_centre():
    """Which tells it from the other filters of 12 taps that pass the test above."""
    n = np.arange(12) - SYM6_CENTRE
    for w in np.linspace(0, math.pi / 2, 50):
        response = np.dot(np.exp(-1j * w * n), SYM6)
        assert abs(np.angle(response)) < 0.3  # the next best: 0.42


def test_bands_have_the_response_of_their_definition():
    """With |H(ω)|²/2 = cos⁴(ω/2)·(1 + 2 sin²(ω/2)) for two vanishing moments (Daubechies)."""
    bands = filter_bank().double().numpy()
    assert np.abs(bands - bands[:, ::-1]).max() == 0
    w = np.linspace(0, math.pi, 200)
    response = bands @ np.cos(w * (np.arange(43) - 21)[:, None])

    def low(w):
        return np.cos(w / 2) ** 4 * (1 + 2 * np.sin(w / 2) ** 2)

    expected = [
        low(w) * low(2 * w) * low(4 * w),
        low(w) * low(2 * w) * (1 - low(4 * w)),
        low(w) * (1 - low(2 * w)),
        1 - low(w),
    ]
    np.testing.assert_allclose(response, expected, atol=1e-6)
    np.testing.assert_allclose(bands.sum(axis=0), np.eye(43)[21], atol=1e-7)


# Blits.


def test_lookup_flips_turns_and_shifts_exactly():
    x = random_images(1, 3, 7, 7)
    array, one, zero = x.numpy(), values(1), values(0)
    assert np.array_equal(lookup(x, scaling(-one, one)).numpy(), array[:, :, :, ::-1])
    for k in range(4):
        turned = lookup(x, rotation(values(k * math.pi / 2)).round()).numpy()
        assert np.array_equal(turned, np.rot90(array, k, axes=(2, 3)))
    padded = np.pad(array, ((0, 0), (0, 0), (20, 20), (20, 20)), mode="reflect")
    for dx, dy in ((0, 0), (2, -1), (-6, 6), (-20, 13)):
        shifted = lookup(x, translation(one * dx, zero + dy)).numpy()
        assert np.array_equal(shifted, padded[:, :, 20 + dy : 27 + dy, 20 + dx : 27 + dx])


@pytest.mark.parametrize("height, width", [(16, 16), (12, 24)])
def test_every_blit_is_a_flip_then_turns_then_a_shift(height, width):
    """Up to an eighth of each side. A turned image that is not square is cropped and mirrored to the old shape."""
    torch.manual_seed(0)
    x = random_images(60, 3, height, width)
    y = AugmentPipe("blit", 1.0)(x).numpy()
    below, beside, frame = round(height / 8), round(width / 8), 12
    seen = set()
    for image, result in zip(x.numpy(), y, strict=True):
        matches = []
        for flip in (False, True):
            for turns in range(4):
                moved = np.rot90(image[:, :, ::-1] if flip else image, turns, axes=(1, 2))
                padded = np.pad(moved, ((0, 0), (frame, frame), (frame, frame)), mode="reflect")
                top, left = (padded.shape[1] - height) // 2, (padded.shape[2] - width) // 2
                for dy in range(-below, below + 1):
                    for dx in range(-beside, beside + 1):
                        window = np.s_[:, top + dy : top + dy + height, left + dx : left + dx + width]
                        if np.array_equal(padded[window], result):
                            matches.append((flip, turns, dy, dx))
        assert len(matches) == 1
        seen.add(matches[0])
    assert len({match[:2] for match in seen}) == 8
    assert len({match[2:] for match in seen}) > 10


# The geometric transforms.


def test_geometry_is_the_product_of_its_transforms(monkeypatch):
    """Scale, rotate, stretch, rotate, shift, from right to left; the function gives the inverse."""
    scale, before, stretch, after, shift = 1.3, 0.7, 0.8, -2.0, values(3, -5)
    force(monkeypatch, scale, before, stretch, after, shift)
    inverse = random_geometry(1, torch.tensor(1.0), 32, 32)[0].double().numpy()

    def turn(angle):
        return np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])

    forward = np.diag([scale, scale, 1])
    forward = np.diag([stretch, 1 / stretch, 1]) @ turn(-before) @ forward
    forward = np.array([[1, 0, -3], [0, 1, 5], [0, 0, 1]]) @ turn(-after) @ forward
    np.testing.assert_allclose(inverse @ forward, np.eye(3), atol=1e-5)


def test_distributions_of_the_geometry():
    torch.manual_seed(0)
    inverse = random_geometry(20000, torch.tensor(1.0), 48, 64).double()
    A = inverse[:, :2, :2]
    sizes = -0.5 * A.det().log2()
    assert float(sizes.mean()) == pytest.approx(0, abs=0.01)
    assert float(sizes.std()) == pytest.approx(0.2, rel=0.03)
    large, small = torch.linalg.svdvals(A).unbind(1)
    stretch = 0.5 * (large / small).log2()  # |log₂ s|
    assert float(stretch.square().mean().sqrt()) == pytest.approx(0.2, rel=0.03)
    shift = torch.linalg.solve(A, inverse[:, :2, 2])
    assert shift.std(dim=0).tolist() == pytest.approx([0.125 * 64, 0.125 * 48], rel=0.03)
    for row in range(2):
        for column in range(2):  # in all directions alike
            assert float(A[:, row, column].mean()) == pytest.approx(0, abs=0.03)


def by_the_paper(x, inverse, margin=40):
    """One channel [H, W] padded by reflection, upsampled, looked up pixel by pixel, downsampled and cropped."""
    height, width = x.shape
    padded = np.pad(x, margin, mode="reflect")

    def upsampling(length):
        up = np.zeros([2 * length, length])  # row 2k + n − centre gets h[n] of pixel k
        for k in range(length):
            for n, tap in enumerate(SYM6):
                if 0 <= 2 * k + n - SYM6_CENTRE < 2 * length:
                    up[2 * k + n - SYM6_CENTRE, k] = tap
        return up

    rows, columns = map(upsampling, padded.shape)
    fine = rows @ padded @ columns.T
    moved = np.zeros_like(fine)
    down, right = (2 * margin + (side - 1) for side in (height, width))  # the middle of the fine image
    for i in range(2 * margin - 12, 2 * (margin + height) + 12):
        for j in range(2 * margin - 12, 2 * (margin + width) + 12):
            px, py, _ = inverse @ np.array([(j - right) / 2, (i - down) / 2, 1])
            fx, fy = 2 * px + right, 2 * py + down
            x0, y0 = math.floor(fx), math.floor(fy)
            a, b = fx - x0, fy - y0
            moved[i, j] = (1 - b) * ((1 - a) * fine[y0, x0] + a * fine[y0, x0 + 1]) + b * (
                (1 - a) * fine[y0 + 1, x0] + a * fine[y0 + 1, x0 + 1]
            )
    result = rows.T @ moved @ columns
    return result[margin : margin + height, margin : margin + width]


@pytest.mark.parametrize("height, width", [(24, 24), (30, 36)])
def test_warp_is_the_papers_execution(height, width):
    torch.manual_seed(0)
    x = random_images(3, 1, height, width, dtype=torch.float64)
    matrices = [scaling(values(1.1), values(0.9)), rotation(values(0.6)), translation(values(1.7), values(-2.2))]
    matrices = torch.cat([matrices[0], matrices[1], matrices[1] @ matrices[0] @ matrices[2]])
    y = warp(x, matrices, LOWPASS)
    for image, matrix, result in zip(x, matrices, y, strict=True):
        expected = by_the_paper(image[0].numpy(), matrix.double().numpy())
        error = np.abs(result[0].numpy() - expected)
        middle = tuple(slice(side // 2 - 4, side // 2 + 4) for side in (height, width))
        assert error[middle].max() < 1e-5
        # at the edges the mirrored interpolation is nearly the interpolation of the mirrored image
        assert np.sqrt(np.mean(error**2)) < 0.1


def wave(px, py):
    """Colours of three smooth waves at points in pixels, [..., 3]."""
    w = 2 * math.pi / 32
    return np.stack([np.cos(w * px), np.sin(w * (px + 0.5 * py)), np.cos(w * (py - 3))], axis=-1)


def points(height, width):
    return np.meshgrid(*(np.arange(side) - (side - 1) / 2 for side in (width, height)))


@pytest.mark.parametrize("height, width", [(64, 64), (56, 96)])
def test_warped_waves_are_waves_of_warped_coordinates(height, width):
    """In pixels, whatever the shape of the image: a rotation turns, and does not shear."""
    torch.manual_seed(0)
    px, py = points(height, width)
    x = torch.tensor(wave(px, py)).permute(2, 0, 1)
    inverse = random_geometry(40, torch.tensor(0.7), height, width)
    y = warp(x.expand(40, -1, -1, -1), inverse, LOWPASS).permute(0, 2, 3, 1).numpy()
    compared = 0
    for matrix, result in zip(inverse.double().numpy(), y, strict=True):
        sx, sy, _ = np.tensordot(matrix, np.stack([px, py, np.ones_like(px)]), axes=1)
        # where neither the filters nor the source reach an edge
        inside = (np.abs(sx) < width / 2 - 10) & (np.abs(sy) < height / 2 - 10)
        inside &= (np.abs(px) < width / 2 - 8) & (np.abs(py) < height / 2 - 8)
        assert np.abs(result - wave(sx, sy))[inside].max(initial=0) < 0.035
        compared += inside.sum()
    assert compared > 20000


def test_warped_images_go_on_as_their_mirror_image():
    size = 32
    px, _ = points(size, size)
    edge = (size - 1) / 2
    x = torch.tensor(np.cos(math.pi / 16 * (px + edge)))[None, None]  # even about its first pixel
    y = warp(x, translation(values(-80), values(100)), LOWPASS)[0, 0].numpy()
    distance = np.abs((px - 80 + edge + 62) % 62)
    distance = np.where(distance > 31, 62 - distance, distance)
    np.testing.assert_allclose(y, np.cos(math.pi / 16 * distance), atol=0.02)


def test_warp_by_whole_pixels_is_near_the_lookup():
    px, py = points(32, 32)
    x = torch.tensor(wave(px, py)).permute(2, 0, 1)[None].float()
    one, zero = values(1), values(0)
    inside = np.s_[:, :, 8:-8, 8:-8]
    for matrix, tolerance in (
        (rotation(zero), 1e-5),
        (translation(3 * one, -one), 1e-5),
        (rotation(one * math.pi / 2), 0.02),
        (scaling(-one, one), 0.02),
    ):
        error = (warp(x, matrix, LOWPASS) - lookup(x, matrix.round())).abs()
        assert error[inside].max() < tolerance
        assert error.max() < 0.05


def test_blits_and_general_transforms_are_one(monkeypatch):
    """First the blit, then the rest; an image without the rest is exact."""
    torch.manual_seed(0)
    x, pipe = random_images(2, 3, 16, 16), AugmentPipe("bg", 1.0)
    flip, turns, shift = values(1, 0), values(0, 1), torch.tensor([[2.0, 0.0], [0.0, -1.0]])
    force(monkeypatch, flip, turns, shift, values(1, 1.1), values(0, 0.3), None, None, None)
    y = pipe(x)
    one = values(1)
    blit = scaling(-one, one) @ translation(2 * one, 0 * one)
    assert torch.equal(y[:1], lookup(x[:1], blit))
    blit = rotation(one * math.pi / 2) @ translation(0 * one, -one)
    general = scaling(one / 1.1, one / 1.1) @ rotation(0.3 * one)
    torch.testing.assert_close(y[1:], warp(x[1:], blit @ general, LOWPASS), rtol=0, atol=1e-4)


# Colours.


def plain_color(rgb, brightness, contrast, flip, hue, saturation):
    """One pixel: its grey part along (1, 1, 1) and its colour in two directions across."""
    r, g, b = ((part + brightness) * contrast for part in rgb)
    grey = (r + g + b) / 3
    u, v = (r - g) / math.sqrt(2), (r + g - 2 * b) / math.sqrt(6)
    if flip:
        grey = -grey
    u, v = u * math.cos(hue) - v * math.sin(hue), u * math.sin(hue) + v * math.cos(hue)
    u, v = u * saturation, v * saturation
    return [
        grey + u / math.sqrt(2) + v / math.sqrt(6),
        grey - u / math.sqrt(2) + v / math.sqrt(6),
        grey - 2 * v / math.sqrt(6),
    ]


NEUTRAL = {"brightness": 0.0, "contrast": 1.0, "flip": 0.0, "hue": 0.0, "saturation": 1.0}


@pytest.mark.parametrize(
    "change",
    [
        {"brightness": 0.3},
        {"contrast": 1.7},
        {"flip": 1.0},
        {"hue": 2.0},
        {"saturation": 0.4},
        {"brightness": -0.2, "contrast": 0.6, "flip": 1.0, "hue": -1.0, "saturation": 2.5},
    ],
    ids=lambda change: "+".join(change),
)
def test_colors_pixel_by_pixel(monkeypatch, change):
    torch.manual_seed(0)
    parameters = NEUTRAL | change
    force(monkeypatch, *parameters.values(), *parameters.values())
    x = random_images(2, 3, 4, 4, dtype=torch.float64)
    y = recolor(x, random_colors(2, torch.tensor(1.0)))
    for n in range(2):
        for i in range(4):
            for j in range(4):
                expected = plain_color(x[n, :, i, j].tolist(), **parameters)
                assert y[n, :, i, j].tolist() == pytest.approx(expected, abs=2e-6)
    grey = x[:, :1]
    of_grey = recolor(grey, random_colors(2, torch.tensor(1.0)))
    expected = [plain_color([v] * 3, **parameters)[0] for v in grey.flatten().tolist()]
    assert of_grey.flatten().tolist() == pytest.approx(expected, abs=2e-6)


def test_distributions_of_the_colors(monkeypatch):
    torch.manual_seed(0)
    drawn = []
    monkeypatch.setattr(augment, "sometimes", lambda p, v, neutral: drawn.append(v) or v)
    random_colors(20000, torch.tensor(1.0))
    brightness, contrast, flip, hue, saturation = drawn
    assert float(brightness.mean()) == pytest.approx(0, abs=0.01)
    assert float(brightness.std()) == pytest.approx(0.2, rel=0.03)
    assert float(contrast.log2().std()) == pytest.approx(0.5, rel=0.03)
    assert float(flip.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(hue.abs().max()) <= math.pi
    assert float(hue.std()) == pytest.approx(math.pi / math.sqrt(3), rel=0.03)
    assert float(saturation.log2().std()) == pytest.approx(1, rel=0.03)


# The filter.


@pytest.mark.parametrize("height, width", [(8, 8), (30, 30), (12, 20)])
def test_amplification_by_rows_and_columns(height, width):
    torch.manual_seed(0)
    x, gains = random_images(2, 3, height, width, dtype=torch.float64), torch.rand(2, 4) * 2
    y = amplify(x, gains, filter_bank()).numpy()
    for n in range(2):
        taps = (gains[n] @ filter_bank()).numpy()
        for c in range(3):
            padded = np.pad(x[n, c].numpy(), 21, mode="reflect")
            rows = np.stack([np.convolve(row, taps, mode="valid") for row in padded])
            both = np.stack([np.convolve(column, taps, mode="valid") for column in rows.T]).T
            np.testing.assert_allclose(y[n, c], both, atol=1e-6)


def test_gain_of_each_band_by_fourier_transform():
    """Gratings in the middle of each band, and a gain of 3 for one: it takes most of it, and the others little."""
    size = 128
    middles = [2, 12, 24, 48]  # cycles, of 64 at π: the bands end at 8, 16, 32
    axis = torch.arange(size, dtype=torch.float64)
    gratings = torch.stack([torch.cos(2 * math.pi * cycles * (axis + 0.5) / size) for cycles in middles])
    x = gratings[:, None, None, :].expand(4, 1, size, size)
    measured = np.zeros([4, 4])
    for band in range(4):
        gains = torch.ones(4, 4)
        gains[:, band] = 3
        # the rows are constant down the image, so that the filter along y has the gain of frequency 0
        y = amplify(x, gains, filter_bank()) / (3 if band == 0 else 1)
        spectrum = torch.fft.rfft(y[:, 0, 64]).abs() / (size / 2)
        measured[band] = [float(spectrum[n, cycles]) for n, cycles in enumerate(middles)]
    share = (measured - 1) / 2
    np.testing.assert_allclose(share.sum(axis=0), 1, atol=0.03)
    assert share.argmax(axis=0).tolist() == [0, 1, 2, 3]
    assert (np.diag(share) > [0.98, 0.6, 0.7, 0.8]).all()


@pytest.mark.parametrize("band", range(4))
def test_amplifying_one_band_keeps_the_expected_power(monkeypatch, band):
    torch.manual_seed(0)

    def only_this(p, gains, neutral):
        chosen = torch.arange(len(gains)) % 4 == band
        return torch.where(chosen[:, None], gains, neutral)

    monkeypatch.setattr(augment, "sometimes", only_this)
    assert torch.equal(AugmentPipe("filter").power, POWER)
    gains = random_gains(5000, torch.tensor(1.0), POWER)
    torch.testing.assert_close((POWER * gains.square()).sum(dim=1), torch.ones(5000))
    others = [i for i in range(4) if i != band]
    assert (gains[:, others] == gains[:, others[:1]]).all()
    amplification = (gains[:, band] / gains[:, others[0]]).log2()
    assert float(amplification.mean()) == pytest.approx(0, abs=0.06)
    assert float(amplification.std()) == pytest.approx(1, rel=0.04)


# The corruptions.


def test_noise_has_its_variance():
    """E σ² = 0.1² at p = 1, and p times that below; different in every value."""
    torch.manual_seed(0)
    x = random_images(3000, 3, 4, 4)
    for p in (1.0, 0.4):
        noise = AugmentPipe("noise", p)(x) - x
        assert float(noise.square().mean()) == pytest.approx(0.01 * p, rel=0.1)
        assert float(noise.mean()) == pytest.approx(0, abs=0.002)
    flat = noise.flatten(1)
    assert abs(float((flat[:, 0] * flat[:, 1]).mean())) < 0.001
    sigma = random_sigmas(20000, torch.tensor(1.0))
    assert float(sigma.mean()) == pytest.approx(0.1 * math.sqrt(2 / math.pi), rel=0.03)


@pytest.mark.parametrize("height, width", [(8, 8), (17, 17), (12, 20)])
def test_cutout_pixel_by_pixel(height, width):
    torch.manual_seed(0)
    x = random_images(50, 2, height, width)
    centre, half = random_holes(50, torch.tensor(0.7))
    assert set(half.tolist()) == {0.0, 0.25}
    y = cut_out(x, centre, half)
    for n in range(50):
        cx, cy, h = (float(v) for v in (*centre[n], half[n]))
        for i in range(height):
            for j in range(width):
                hole = round((cx - h) * width) <= j < round((cx + h) * width)
                hole = hole and round((cy - h) * height) <= i < round((cy + h) * height)
                expected = torch.zeros(2) if hole else x[n, :, i, j]
                assert torch.equal(y[n, :, i, j], expected)
    middle = cut_out(torch.ones(1, 1, 8, 8), torch.tensor([[0.5, 0.5]]), values(0.25))
    assert float(middle.sum()) == 64 - 16
