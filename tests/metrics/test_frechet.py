"""FID's arithmetic, against closed forms, torch-fidelity and pytorch-fid's formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from metrics import frechet
from metrics.frechet import Moments, frechet_distance


def moments(features: torch.Tensor, batch: int = 50) -> dict[str, torch.Tensor]:
    collector = Moments(len(features))
    for part in features.split(batch):
        collector.add(part)
    return collector.finish()


def features(count: int, size: int, seed: int, offset: float = 0.0) -> torch.Tensor:
    """Correlated, as a detector's are, and none below 0."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=torch.Generator().manual_seed(99)) / size**0.5
    return (torch.randn(count, size, generator=generator) @ mixing + offset).relu()


def with_square_root(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The formula as pytorch-fid computes it: with the square root of the product."""
    first, second = a["covariance"].numpy(), b["covariance"].numpy()
    covmean = scipy.linalg.sqrtm(first @ second)
    difference = (a["mean"] - b["mean"]).numpy()
    return difference @ difference + np.trace(first) + np.trace(second) - 2 * np.trace(covmean.real)


@pytest.mark.parametrize("batch", [1, 7, 5000])
def test_moments_are_numpys(monkeypatch, batch):
    monkeypatch.setattr("metrics.frechet.BLOCK", 100)
    x = features(1000, 20, 0) + 1000  # far from 0
    found = moments(x, batch)
    np.testing.assert_allclose(found["mean"], np.mean(x.double().numpy(), axis=0), rtol=1e-12)
    np.testing.assert_allclose(found["covariance"], np.cov(x.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-12)


def test_no_more_than_asked_for():
    x = features(90, 5, 0)
    collector = Moments(60)
    for part in x.split(25):
        collector.add(part)
    assert collector.seen == 60
    assert torch.equal(collector.finish()["covariance"], moments(x[:60], 25)["covariance"])


def test_two_gaussians_in_closed_form():
    """Covariances with the same axes: ‖μ₁ − μ₂‖² + Σ (√λ₁ − √λ₂)²."""
    axes = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    first, second = torch.linspace(0.01, 9, 30).double(), torch.linspace(4, 0.5, 30).double()
    mean = torch.linspace(-1, 1, 30).double()
    a = {"mean": mean, "covariance": axes * first @ axes.T}
    b = {"mean": mean + 0.5, "covariance": axes * second @ axes.T}
    expected = 30 * 0.25 + float(((first.sqrt() - second.sqrt()) ** 2).sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_two_samples_of_gaussians_come_to_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200_000, 4, generator=generator) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    b = torch.randn(200_000, 4, generator=generator) * 2 + 1
    expected = 4 + (1 + 0 + 1 + 4)
    assert frechet_distance(moments(a, 5000), moments(b, 5000)) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("count", [400, 40])  # the second has singular covariances
def test_it_is_torch_fidelitys_and_pytorch_fids(count):
    x, y = features(count, 64, 1), features(count + 20, 64, 2, offset=0.2)
    found = frechet_distance(moments(x), moments(y))
    statistics = [fid_features_to_statistics(z.double()) for z in (x, y)]
    reference = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert found == pytest.approx(reference, rel=1e-4)
    assert found == pytest.approx(with_square_root(moments(x), moments(y)), rel=1e-4)


@pytest.mark.parametrize("count", [2000, 100])
def test_a_set_against_itself_is_zero(count):
    x = 50 * features(count, 300, 0)
    assert abs(frechet_distance(moments(x), moments(x))) < 1e-3
    assert abs(frechet_distance(moments(x), moments(x.flip(0), batch=33))) < 1e-3


def test_singular_covariances_do_not_add_up():
    """Two sets on a line each, in 500 dimensions: (σ₁ − σ₂)² along it is all that there is."""
    line = torch.nn.functional.normalize(torch.rand(500, generator=torch.Generator().manual_seed(0)), dim=0).double()
    t = torch.randn(1000, 1, generator=torch.Generator().manual_seed(1)).double()
    a, b = moments(100 * t * line), moments(300 * t * line)
    expected = float((200 * t.mean()) ** 2 + (200 * t.std()) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    same = moments(torch.ones(10, 500))
    assert frechet_distance(same, same) == 0


def test_symmetric_and_never_below_zero():
    for seed in range(5):
        a, b = moments(features(30, 50, seed)), moments(features(35, 50, seed + 10))
        assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
        assert frechet_distance(a, b) > 0


# --- extrapolation --------------------------------------------------------------------------------------------------


def test_the_limit_of_a_line_is_found(monkeypatch):
    """Where the distance is d∞² + b / N exactly."""
    seen = []

    def distance(a, root_of_a, b):
        seen.append(b)
        return 7.0 + 300 / b

    monkeypatch.setattr(frechet, "moments_of", len)
    monkeypatch.setattr(frechet, "distance_with_root", distance)
    real = {"covariance": torch.eye(3, dtype=torch.float64)}
    assert frechet.extrapolated_distance(real, torch.zeros(5000, 3)) == pytest.approx(7.0)
    assert seen[0] == 500 and seen[-1] == 5000 and len(seen) == 15
    seen.clear()
    frechet.extrapolated_distance(real, torch.zeros(100, 90))  # the covariance of fewer than 91 is singular
    assert min(seen) == 50 and max(seen) == 100


def test_of_two_fakes_there_is_no_line():
    real = {"mean": torch.zeros(3).double(), "covariance": torch.eye(3).double()}
    assert math.isnan(frechet.extrapolated_distance(real, torch.randn(2, 3)))


def test_extrapolation_removes_the_bias_of_few_images():
    """Two Gaussians with means 1 apart: d² = 1. Few fakes make it larger; the limit is near the truth."""
    generator = torch.Generator().manual_seed(0)
    dimensions = 100
    real = {"mean": torch.zeros(dimensions).double(), "covariance": torch.eye(dimensions).double()}
    fake = torch.randn(2000, dimensions, generator=generator)
    fake[:, 0] += 1
    plain = frechet.frechet_distance(real, frechet.moments_of(fake))
    limit = frechet.extrapolated_distance(real, fake)
    assert plain > 2 and limit == pytest.approx(1, abs=0.3)
    assert frechet.extrapolated_distance(real, fake, seed=1) != limit
