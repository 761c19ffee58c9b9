"""Metrics of features: known answers, and plain versions of the papers' formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from metrics import scores
from metrics.scores import density_coverage, inception_score, kernel_distance, path_length, precision_recall


def cloud(count: int, size: int = 16, seed: int = 0, offset: float = 0.0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) + offset


def plain_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate of MMD², kernel (x·y / D + 1)³: Bińkowski et al., section 4 and appendix B."""

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    m, n = len(x), len(y)
    xx, yy = kernel(x, x), kernel(y, y)
    first = (xx.sum() - np.trace(xx)) / (m * (m - 1))
    second = (yy.sum() - np.trace(yy)) / (n * (n - 1))
    return first + second - 2 * kernel(x, y).mean()


def test_kid_of_all_is_the_unbiased_estimate():
    x, y = cloud(60), cloud(60, seed=1, offset=0.3)
    found = kernel_distance(x, y)
    assert found[""] == pytest.approx(plain_mmd(x.double().numpy(), y.double().numpy()), rel=1e-10)
    assert found["_std"] < 1e-12  # every subset is the whole


def test_kid_of_subsets_is_about_that_of_all(monkeypatch):
    monkeypatch.setattr("metrics.scores.KID_SUBSET_SIZE", 100)
    x, y = cloud(1000), cloud(900, seed=1, offset=0.3)
    found = kernel_distance(x, y)
    whole = plain_mmd(x.double().numpy(), y.double().numpy())
    assert found["_std"] > 0
    assert abs(found[""] - whole) < 4 * found["_std"] / 10


def test_kid_of_one_source_is_about_zero():
    found = kernel_distance(cloud(400), cloud(400, seed=1))
    assert abs(found[""]) < 0.05 * kernel_distance(cloud(400), cloud(400, seed=1, offset=1))[""]


def plain_precision(fake: np.ndarray, real: np.ndarray) -> float:
    """Kynkäänniemi et al., equations 1 and 2, image by image."""
    radii = [np.sort(np.linalg.norm(real - r, axis=1))[3] for r in real]
    return float(np.mean([np.any(np.linalg.norm(real - f, axis=1) <= radii) for f in fake]))


@pytest.mark.parametrize("rows", [7, 1000])
def test_precision_and_recall_are_the_papers(monkeypatch, rows):
    monkeypatch.setattr("metrics.scores.BLOCK_ROWS", rows)
    real, fake = cloud(80, 4), cloud(70, 4, seed=1, offset=0.8)
    found = precision_recall(real, fake)
    real, fake = real.double().numpy(), fake.double().numpy()
    assert found["_precision"] == pytest.approx(plain_precision(fake, real))
    assert found["_recall"] == pytest.approx(plain_precision(real, fake))
    assert 0.2 < found["_precision"] < 0.95 and found["_precision"] != found["_recall"]


def test_equal_sets_have_all_of_each_other():
    x = cloud(100)
    assert precision_recall(x, x) == {"_precision": 1, "_recall": 1}


def test_some_of_the_real_ones_are_precise_and_recall_little():
    real = torch.cat([cloud(100), cloud(100, seed=1, offset=100)])
    assert precision_recall(real, real[:100]) == {"_precision": 1, "_recall": 0.5}


def test_sets_far_apart_have_nothing_of_each_other():
    assert precision_recall(cloud(50), cloud(50, seed=1, offset=100)) == {"_precision": 0, "_recall": 0}


def plain_density_coverage(fake: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """Naeem et al., equations 3 and 4 with k = 5, image by image."""
    radii = np.array([np.sort(np.linalg.norm(real - r, axis=1))[5] for r in real])
    inside = np.array([np.linalg.norm(real - f, axis=1) < radii for f in fake])
    return inside.sum() / (5 * len(fake)), inside.any(axis=0).mean()


@pytest.mark.parametrize("rows", [7, 1000])
def test_density_and_coverage_are_the_papers(monkeypatch, rows):
    monkeypatch.setattr("metrics.scores.BLOCK_ROWS", rows)
    real, fake = cloud(80, 4), cloud(70, 4, seed=1, offset=0.8)
    found = density_coverage(real, fake)
    density, coverage = plain_density_coverage(fake.double().numpy(), real.double().numpy())
    assert found == {"_density": pytest.approx(density, rel=1e-12), "_coverage": pytest.approx(coverage, rel=1e-12)}
    assert 0.1 < density < 1 and 0.1 < coverage < 0.9


def test_density_and_coverage_are_those_of_prdc():
    prdc = pytest.importorskip("prdc")
    real, fake = cloud(200, 8), cloud(150, 8, seed=1, offset=0.3)
    expected = prdc.compute_prdc(real.double().numpy(), fake.double().numpy(), nearest_k=5)
    found = density_coverage(real, fake)
    assert found == {"_density": pytest.approx(expected["density"]), "_coverage": expected["coverage"]}


def test_density_and_coverage_of_equal_sets_and_of_sets_far_apart():
    x = cloud(100)
    found = density_coverage(x, x)
    # each is in its own ball and its neighbours' in it; rounding decides about those at the very edge
    assert found["_coverage"] == 1 and found["_density"] == pytest.approx(1, abs=0.01)
    assert density_coverage(x, cloud(50, seed=1, offset=100)) == {"_density": 0, "_coverage": 0}


def test_fakes_of_one_mode_are_dense_and_cover_little():
    real = torch.cat([cloud(100, 2), cloud(100, 2, seed=1, offset=100)])
    found = density_coverage(real, real[:1].repeat(50, 1))
    assert found["_density"] >= 0.8 and found["_coverage"] < 0.1


def test_inception_score_of_known_predictions():
    sure = 50 * torch.eye(10).repeat(1000, 1)  # equally many of each class, without doubt
    found = inception_score(sure)
    assert found["_mean"] == pytest.approx(10, rel=0.02) and found["_std"] < 0.3
    beyond = inception_score(5000 * torch.eye(100))  # of which float64 has no exponential; ten classes in each part
    assert beyond == {"_mean": pytest.approx(10), "_std": pytest.approx(0)}
    assert inception_score(torch.zeros(100, 10)) == {"_mean": pytest.approx(1), "_std": pytest.approx(0)}


def test_path_length_leaves_out_the_outer_per_cents():
    distances = torch.arange(1, 1002) * 1e-8
    distances[0], distances[-1] = 0, 1.0
    shuffled = distances[torch.randperm(1001, generator=torch.Generator().manual_seed(0))]
    # indices 10 … 990 of the sorted ones
    assert path_length(shuffled, 1e-4)[""] == pytest.approx(np.mean(np.arange(11, 992)), rel=1e-6)


# --- CMMD -----------------------------------------------------------------------------------------------------------


def test_cmmd_of_equal_sets_and_of_lengths():
    """It compares directions: the length of a feature does not count, and a set has no distance to itself."""
    torch.manual_seed(0)
    a = torch.randn(50, 8)
    assert scores.cmmd(a, a) == pytest.approx(0, abs=1e-12)
    assert scores.cmmd(a, 3 * a[torch.randperm(50)]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("angle", [0.01, 0.5, 3.0])
def test_cmmd_of_two_directions(angle):
    """All fakes in one direction, all real images in another: 2000 (1 − exp(−(1 − cos φ) / σ²))."""
    a = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(7, 2)
    b = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64).expand(5, 2)
    expected = -2000 * math.expm1(-(1 - math.cos(angle)) / 100)
    assert scores.cmmd(a, b) == pytest.approx(expected, rel=1e-9)


def test_cmmd_does_not_depend_on_the_blocks(monkeypatch):
    torch.manual_seed(0)
    a, b = torch.randn(50, 8), torch.randn(40, 8) + 1
    whole = scores.cmmd(a, b)
    monkeypatch.setattr(scores, "BLOCK_ROWS", 7)
    assert scores.cmmd(a, b) == pytest.approx(whole, rel=1e-12) and whole > 0.1
