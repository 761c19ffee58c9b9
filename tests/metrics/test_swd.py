"""metrics/swd.py and the Evaluator, against plain NumPy written from the paper."""

from __future__ import annotations

import io
import itertools
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metrics import Evaluator, choose
from metrics.features import tensor_source
from metrics.swd import (
    VALUES,
    PatchDescriptors,
    count_values,
    cut_patches,
    laplacian_pyramid,
    packed,
    project_patches,
    random_directions,
    sliced_wasserstein,
    smooth,
    unpacked,
    upsample,
    wasserstein,
)
from torch_utils.errors import UserError

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10-test.zip"


def blobs(count: int, size: int = 32, channels: int = 3, seed: int = 0, radius: float = 5) -> torch.Tensor:
    """Images with structure: a few coloured discs on a ground, uint8 [N, C, H, W]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    images = np.empty((count, channels, size, size))
    for image in images:
        image[:] = rng.uniform(0, 255, (channels, 1, 1))
        for _ in range(6):
            cy, cx = rng.uniform(0, size, 2)
            inside = (y - cy) ** 2 + (x - cx) ** 2 < (radius * size / 32) ** 2
            image[:, inside] = rng.uniform(0, 255, (channels, 1))
    return torch.from_numpy(images.round().astype(np.uint8))


def blur(images: torch.Tensor, times: int) -> torch.Tensor:
    x = images.float()
    for _ in range(times):
        x = smooth(x)
    return x.round().clamp(0, 255).byte()


@pytest.fixture
def few_directions(monkeypatch):
    """An eighth of the directions: for tests in which the last per cent does not matter."""
    monkeypatch.setattr("metrics.swd.DIRECTIONS", 64)


def describe(images: torch.Tensor, seed: int = 0, batch: int = 10_000) -> dict[int, torch.Tensor]:
    descriptors = PatchDescriptors(len(images), seed=seed)
    for part in images.split(batch):
        descriptors.add(part)
    return descriptors.finish()


def swd(real: torch.Tensor, fake: torch.Tensor) -> float:
    return sliced_wasserstein(describe(real), describe(fake))["swd"]


# --- the plain version ----------------------------------------------------------------------------------------------


def mirrored(i: int, n: int) -> int:
    if i < 0:
        return -i
    return 2 * (n - 1) - i if i >= n else i


def plain_smooth(x: np.ndarray) -> np.ndarray:
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    height, width = x.shape[2:]
    result = np.zeros_like(x)
    for i, j, di, dj in itertools.product(range(height), range(width), range(5), range(5)):
        result[:, :, i, j] += kernel[di, dj] * x[:, :, mirrored(i + di - 2, height), mirrored(j + dj - 2, width)]
    return result


def plain_pyramid(x: np.ndarray) -> list[np.ndarray]:
    """x float64 [N, C, H, H] → its levels down to 16×16."""
    levels = []
    while x.shape[2] > 16:
        coarse = plain_smooth(x)[:, :, ::2, ::2]
        spread = np.zeros_like(x)
        spread[:, :, ::2, ::2] = coarse
        levels.append(x - 4 * plain_smooth(spread))
        x = coarse
    return [*levels, x]


def plain_patches(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """128 patches of each image, normalized: [N·128, C·49]."""
    patches = []
    for image in x:
        for _ in range(128):
            i, j = rng.integers(0, x.shape[2] - 6, 2)
            patches.append(image[:, i : i + 7, j : j + 7])
    return plain_normalize(np.array(patches))


def plain_normalize(patches: np.ndarray) -> np.ndarray:
    patches = patches - patches.mean(axis=(0, 2, 3), keepdims=True)
    return (patches / patches.std(axis=(0, 2, 3), keepdims=True)).reshape(len(patches), -1)


def plain_distance(a: np.ndarray, b: np.ndarray, directions: np.ndarray) -> float:
    """Patches [P, D] and [P, D] on directions [512, D], in the paper's words: sort, subtract, average; × 1000."""
    return 1000 * float(np.mean([np.abs(np.sort(a @ d) - np.sort(b @ d)).mean() for d in directions]))


# --- the parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_pyramid_is_the_plain_one(channels):
    images = blobs(3, 64, channels)
    levels = laplacian_pyramid(images.float())
    plain = plain_pyramid(images.double().numpy())
    assert [level.shape[2] for level in levels] == [64, 32, 16]
    for level, expected in zip(levels, plain, strict=True):
        np.testing.assert_allclose(level.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(("size", "sizes"), [(16, [16]), (8, [8]), (128, [128, 64, 32, 16]), (100, [100, 50, 25])])
def test_pyramid_gives_the_image_back(size, sizes):
    x = blobs(2, size).float()
    levels = laplacian_pyramid(x)
    assert [level.shape[3] for level in levels] == sizes
    image = levels[-1]
    for level in reversed(levels[:-1]):
        image = level + upsample(image)
    torch.testing.assert_close(image, x, rtol=0, atol=1e-4)


def test_upsampling_keeps_a_constant_image():
    torch.testing.assert_close(upsample(torch.full((1, 1, 16, 16), 7.0)), torch.full((1, 1, 32, 32), 7.0))


def test_patches_are_windows_at_uniform_positions():
    size = 16
    y, x = np.mgrid[:size, :size]
    place = np.stack([y, x, y * size + x])  # every pixel tells where it is
    image = np.stack([place, place + 1000])
    patches = cut_patches(torch.from_numpy(np.repeat(image, 200, axis=0)).double(), np.random.default_rng(0)).numpy()
    assert patches.shape == (400 * 128, 3, 7, 7)
    assert (patches[: 200 * 128] < 1000).all() and (patches[200 * 128 :] >= 1000).all()
    corner = patches[:, :2, 0, 0] % 1000
    inside = np.mgrid[:7, :7][None] + corner[:, :, None, None]
    np.testing.assert_array_equal(patches[:, :2] % 1000, inside)
    np.testing.assert_array_equal(patches[:, 2] % 1000, inside[:, 0] * size + inside[:, 1])
    counts = np.zeros((10, 10))
    np.add.at(counts, tuple(corner.astype(int).T), 1)
    assert abs(counts / counts.mean() - 1).max() < 5 / np.sqrt(counts.mean())  # 5 standard deviations


def test_directions_are_uniform_unit_vectors():
    directions = random_directions(147, np.random.default_rng(0)).numpy()
    assert directions.shape == (512, 147)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    assert np.abs(directions.T @ directions / 512 * 147 - np.eye(147)).max() < 5 / np.sqrt(512)


def test_values_are_all_finite_float16_ascending():
    every = np.arange(0x10000, dtype=np.uint16).view(np.float16)
    every = np.sort(every[np.isfinite(every)])
    np.testing.assert_array_equal(VALUES.numpy(), every)


def test_counting_sorts():
    x = torch.randn(3, 5000) * torch.tensor([[1e-6], [1.0], [1000.0]])
    counts = np.zeros((3, len(VALUES)), dtype=np.int32)
    count_values(x, counts)
    for row, count in zip(x, counts, strict=True):
        np.testing.assert_array_equal(np.repeat(VALUES.numpy(), count), np.sort(row.half().numpy()))


def test_distance_of_known_distributions():
    points = {name: torch.zeros(1, len(VALUES), dtype=torch.int32) for name in ("zero", "ones", "pair", "pairs")}
    at = {value: int((value == VALUES).nonzero()[-1]) for value in (-2, 0, 1, 3)}
    points["zero"][0, at[0]] = 4
    points["ones"][0, at[1]] = 4
    points["pair"][0, [at[-2], at[3]]] = torch.tensor([1, 3], dtype=torch.int32)
    points["pairs"][0, [at[-2], at[3]]] = torch.tensor([10, 30], dtype=torch.int32)
    assert wasserstein(points["zero"], points["ones"]) == 1
    assert wasserstein(points["zero"], points["pair"]) == (1 * 2 + 3 * 3) / 4
    assert wasserstein(points["ones"], points["pair"]) == (1 * 3 + 3 * 2) / 4
    assert wasserstein(points["pair"], points["pairs"]) == 0  # the size of the set does not matter


@pytest.mark.parametrize("channels", [1, 3])
def test_projection_is_normalize_project_sort(channels):
    rng = np.random.default_rng(0)
    means, scales = np.array([200.0, 3.0, -50.0])[:channels], np.array([2.0, 30.0, 0.1])[:channels]
    a, b = (means[:, None, None] + scales[:, None, None] * rng.laplace(size=(3000, channels, 7, 7)) for _ in range(2))
    b[:, :, 2:4] *= 1.2
    a, b = torch.from_numpy(a).half(), torch.from_numpy(b).half()
    distance = 1000 * wasserstein(*(project_patches(x, np.random.default_rng(5), "cpu") for x in (a, b)))
    directions = random_directions(49 * channels, np.random.default_rng(5)).numpy()
    plain = plain_distance(*(plain_normalize(x.double().numpy()) for x in (a, b)), directions)
    assert distance == pytest.approx(plain, rel=1e-3)


# --- the whole ------------------------------------------------------------------------------------------------------


def test_half_precision_costs_less_than_a_ten_thousandth():
    """The same patches and directions in float64, sorted."""
    real, fake = blobs(25, seed=1), blur(blobs(25, seed=2), 1)
    distances = sliced_wasserstein(describe(real), describe(fake))
    for index, size in enumerate((32, 16)):
        a, b = (
            plain_normalize(
                cut_patches(
                    torch.from_numpy(plain_pyramid(images.double().numpy())[index]), np.random.default_rng([0, size, 0])
                ).numpy()
            )
            for images in (real, fake)
        )
        directions = random_directions(147, np.random.default_rng([0, size, 1])).numpy()
        assert distances[f"swd_{size}"] == pytest.approx(plain_distance(a, b, directions), rel=1e-4)


def test_whole_agrees_with_the_plain_version_drawn_anew():
    """Other patches and directions, so equal only up to chance: from seed to seed a distance varies by 5 %."""
    real, fake = blobs(50, seed=1), blobs(50, seed=2, radius=8)
    distances = sliced_wasserstein(describe(real), describe(fake))
    rng = np.random.default_rng(99)
    plain = []
    for a, b in zip(*(plain_pyramid(images.double().numpy()) for images in (real, fake)), strict=True):
        directions = rng.standard_normal((512, 147))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        plain.append(plain_distance(plain_patches(a, rng), plain_patches(b, rng), directions))
    assert list(distances) == ["swd", "swd_32", "swd_16"]
    assert distances["swd_32"] == pytest.approx(plain[0], rel=0.15)
    assert distances["swd_16"] == pytest.approx(plain[1], rel=0.15)
    assert distances["swd"] == pytest.approx(np.mean([distances["swd_32"], distances["swd_16"]]))


def test_a_set_against_itself_is_zero(few_directions):
    images = blobs(50)
    assert set(sliced_wasserstein(describe(images), describe(images)).values()) == {0.0}


def test_packed_ones_come_back(few_directions):
    whole = describe(blobs(20, 64))
    small = packed(whole)
    assert sum(map(len, small.values())) < sum(counts.nbytes for counts in whole.values()) / 8
    again = unpacked(dict(sorted(small.items())))
    assert list(again) == [64, 32, 16] and all(torch.equal(again[size], whole[size]) for size in whole)


def test_batches_and_order_of_calls_change_nothing(few_directions):
    images, other = blobs(70), blobs(50, seed=1)
    whole = describe(images)
    for batch in (1, 7, 64):
        parts = describe(images, batch=batch)
        assert all(torch.equal(whole[size], parts[size]) for size in whole)
    torch.manual_seed(1)
    np.random.seed(1)
    assert sliced_wasserstein(whole, describe(other)) == sliced_wasserstein(describe(images), describe(other))
    assert not torch.equal(whole[32], describe(images, seed=1)[32])


def test_more_than_count_is_left_out(few_directions):
    images = blobs(30)
    descriptors, some = PatchDescriptors(20), describe(images[:20])
    for part in images.split(8):
        descriptors.add(part)
    assert descriptors.images == 20
    assert all(torch.equal(some[size], counts) for size, counts in descriptors.finish().items())


def test_a_part_of_a_set_has_the_patches_that_it_has_in_the_whole():
    images, whole, part = blobs(30), PatchDescriptors(20), PatchDescriptors(20)
    whole.add(images)
    part.add(images[3:7], 3)
    part.add(images[12:], 12)
    for size, patches in whole.patches.items():
        assert torch.equal(part.patches[size][: 12 * 128], torch.cat([patches[384:896], patches[1536:]]))


def test_two_samples_of_one_source_come_closer_as_they_grow(few_directions):
    small = swd(blobs(50, seed=1), blobs(50, seed=2))
    large = swd(blobs(800, seed=3), blobs(800, seed=4))
    assert large < 0.5 * small
    assert large < 0.2 * swd(blobs(800, seed=3), blobs(800, seed=4, radius=3))


def test_distances_grow_with_the_change(few_directions):
    real, fake = blobs(150, seed=1), blobs(150, seed=2)
    noise = torch.randn(fake.shape, generator=torch.Generator().manual_seed(0))
    blurred = [swd(real, blur(fake, times)) for times in (0, 1, 2, 4)]
    noisy = [swd(real, (fake + level * noise).clamp(0, 255).byte()) for level in (0, 5, 15, 45)]
    mixed = [swd(real, torch.cat([fake[n:], blobs(n, seed=3, radius=2)])) for n in (0, 50, 100, 150)]
    for distances in (blurred, noisy, mixed):
        assert all(b > 1.1 * a for a, b in itertools.pairwise(distances)), distances


def test_blind_to_brightness_and_contrast_of_the_set(few_directions):
    real, fake = blobs(100, seed=1), blobs(100, seed=2)
    darker = (fake // 2 * 2).div(2).add(20).byte()
    assert swd(real, darker) == pytest.approx(swd(real, fake // 2 * 2), rel=1e-3)


def test_sees_the_relation_between_channels(few_directions):
    """Each channel by itself stays what it was; only which goes with which changes."""
    real, fake = blobs(200, seed=1), blobs(200, seed=2)
    shuffled = torch.stack([fake[:, c].roll(c, dims=0) for c in range(3)], dim=1)
    assert swd(real, shuffled) > 1.5 * swd(real, fake)


def test_collapsed_set_gives_a_large_finite_distance(few_directions):
    real = blobs(20)
    grey = torch.full_like(real, 128)
    distance = swd(real, grey)
    assert np.isfinite(distance) and distance > 100
    assert swd(grey, grey) == 0


def test_large_and_grey_images(few_directions):
    images = blobs(2, 1024, channels=1)
    distances = sliced_wasserstein(describe(images), describe(images.flip(2)))
    assert list(distances)[1:] == [f"swd_{size}" for size in (1024, 512, 256, 128, 64, 32, 16)]


def test_levels_of_images_that_are_not_square(few_directions):
    """By their shorter side; a picture lying on its side has the same levels."""
    images = blobs(4, 96)[:, :, :64]
    distances = sliced_wasserstein(describe(images), describe(images.flip(2)))
    assert list(distances)[1:] == ["swd_64", "swd_32", "swd_16"]
    assert sliced_wasserstein(describe(images), describe(images))["swd"] == 0 < distances["swd"]
    assert list(describe(images)) == list(describe(images.transpose(2, 3)))


def test_wrong_images_are_refused(few_directions):
    descriptors = PatchDescriptors(10)
    for wrong in (blobs(1).float(), blobs(1)[0], blobs(1)[:, :, :6], blobs(1)[:, :, :6, :6]):
        with pytest.raises(ValueError, match="expected uint8 images"):
            descriptors.add(wrong)
    descriptors.add(blobs(1))
    for wrong, text in ((blobs(1, 64), "after images"), (blobs(1), "image 0 after image 0")):
        with pytest.raises(ValueError, match=text):
            descriptors.add(wrong, 0)
    with pytest.raises(ValueError, match="differ in size"):
        sliced_wasserstein(describe(blobs(2, 32)), describe(blobs(2, 64)))


# --- the Evaluator --------------------------------------------------------------------------------------------------


class Counted(torch.utils.data.Dataset):
    """Images with labels, which counts how often it is read."""

    def __init__(self, images: torch.Tensor):
        self.images, self.reads = images, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.reads += 1
        return self.images[index], torch.zeros(0)


def test_evaluator_reads_the_real_images_once(few_directions):
    dataset, fakes = Counted(blobs(60)), blobs(60, seed=1)
    evaluator = Evaluator(["swd"], dataset)
    assert evaluator.count == 60 and dataset.reads == 0
    first = evaluator.evaluate(tensor_source(fakes))
    assert dataset.reads == 60
    assert Evaluator(["swd"], Counted(dataset.images), batch=25).evaluate(tensor_source(fakes)) == first
    assert evaluator.evaluate(tensor_source(blur(fakes, 1)))["swd"] > first["swd"]
    assert dataset.reads == 60


def test_evaluator_is_the_plain_call_on_a_choice_of_the_real_images(few_directions):
    real, fakes = blobs(60), blobs(40, seed=1)
    chosen = real[choose(60, 40, seed=3)]
    distances = Evaluator(["swd40", "swd20"], Counted(real), seed=3, batch=7).evaluate(tensor_source(fakes))
    assert list(distances) == ["swd40", "swd40_32", "swd40_16", "swd20", "swd20_32", "swd20_16"]
    for count in (40, 20):
        expected = sliced_wasserstein(describe(chosen[:count], seed=3), describe(fakes[:count], seed=3))
        assert [distances[f"swd{count}{part}"] for part in ("", "_32", "_16")] == list(expected.values())


def test_evaluator_takes_no_more_fakes_than_it_needs(few_directions):
    taken = []

    def source(batches):
        for numbers in batches:
            taken.extend(numbers)
            yield blobs(len(numbers), seed=numbers[0])

    Evaluator(["swd40"], Counted(blobs(50)), batch=16).evaluate(source)
    assert taken == list(range(40))


def test_evaluator_leaves_the_random_state_of_the_training_alone(few_directions):
    torch.manual_seed(0)
    np.random.seed(0)
    Evaluator(["swd"], Counted(blobs(20)), workers=0).evaluate(tensor_source(blobs(20)))
    after = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    assert after == (torch.rand(1), np.random.rand())


def test_evaluator_refuses_what_cannot_be_compared(few_directions):
    with pytest.raises(UserError, match="at least 2"):
        Evaluator(["swd"], Counted(blobs(1)))
    with pytest.raises(UserError, match="no metric is called 'fid'"):
        Evaluator(["swd", "fid"], Counted(blobs(4)))
    with pytest.raises(UserError, match="from 1 fake image; it needs at least 2"):
        Evaluator(["swd"], Counted(blobs(4)), fakes=1)
    assert Evaluator([], Counted(blobs(4))).evaluate(tensor_source(blobs(0))) == {}


# --- photographs ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not CIFAR.exists(), reason=f"needs {CIFAR.name}, a ZIP of 32×32 photographs")
def test_photographs(few_directions):
    with zipfile.ZipFile(CIFAR) as archive:
        names = [name for name in archive.namelist() if name.endswith((".png", ".jpg"))]
        chosen = np.random.default_rng(0).permutation(len(names))[:1000]
        photographs = [Image.open(io.BytesIO(archive.read(names[i]))).convert("RGB") for i in chosen]
    images = torch.from_numpy(np.stack([np.array(photograph) for photograph in photographs])).permute(0, 3, 1, 2)
    real = describe(images[:500])
    distances = [
        sliced_wasserstein(real, describe(fake))["swd"]
        for fake in (images[500:], blur(images[500:], 1), blur(images[500:], 4), blobs(500))
    ]
    assert distances[0] < 30
    assert distances[1] > 2 * distances[0]
    assert distances[2] > 1.5 * distances[1]
    assert distances[3] > 5 * distances[0]
