"""FLD against a plain version in NumPy and SciPy, and of fresh images, copies, bad images and lost modes."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch

from metrics import fld
from metrics.fld import feature_likelihood_divergence, fit_variances, mean_log_density


def cloud(count: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    """Images of a source with few directions, as features of real images have."""
    rng = torch.Generator().manual_seed(seed)
    directions = torch.randn(5, size, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, 5, generator=rng) @ directions + torch.randn(count, size, generator=rng) / 2


def plain_log_density(x: np.ndarray, centres: np.ndarray, variances: np.ndarray) -> float:
    """The mean of log p(x), one Gaussian of scipy after the other."""
    pairs = zip(centres, variances, strict=True)
    densities = [scipy.stats.multivariate_normal(centre, variance).pdf(x) for centre, variance in pairs]
    return float(np.log(np.mean(densities, axis=0)).mean())


def plain_fit(centres: np.ndarray, train: np.ndarray) -> np.ndarray:
    """The variances that a general optimizer finds, from the floor upwards."""

    def loss(log_variances: np.ndarray) -> float:
        return -plain_log_density(train, centres, np.exp(log_variances))

    bounds = [(np.log(fld.MIN_VARIANCE), 10)] * len(centres)
    found = scipy.optimize.minimize(loss, np.zeros(len(centres)), bounds=bounds, method="L-BFGS-B", tol=1e-12)
    return np.exp(found.x)


@pytest.fixture
def exact(monkeypatch):
    monkeypatch.setattr(fld, "TOLERANCE", 1e-10)
    monkeypatch.setattr(fld, "MAX_STEPS", 10_000)


def test_density_is_that_of_scipys_gaussians(monkeypatch):
    monkeypatch.setattr(fld, "BLOCK_ROWS", 7)
    x, centres = cloud(20, 3).double(), cloud(6, 3, seed=1).double()
    variances = torch.linspace(0.3, 2, 6).double()
    expected = plain_log_density(*(tensor.numpy() for tensor in (x, centres, variances)))
    assert mean_log_density(x, centres, variances) == pytest.approx(expected, rel=1e-10)


def test_fit_is_that_of_a_general_optimizer(exact, monkeypatch):
    monkeypatch.setattr(fld, "BLOCK_ROWS", 7)
    train, centres = cloud(40, 3).double(), cloud(6, 3, seed=1).double()
    centres[2] = train[5]  # a copy, whose variance is the floor or close to it
    found, expected = fit_variances(centres, train[None]).numpy(), plain_fit(centres.numpy(), train.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_divergence_is_that_of_the_plain_version(exact):
    """Of two versions of the training images, all of which stand in for fakes, in any order."""
    train, flipped, new, fake = (cloud(count, 3, seed).double() for seed, count in enumerate((9, 9, 12, 9)))
    mean, std = train.numpy().mean(axis=0), train.numpy().std(axis=0, ddof=1)
    a, b, x, y = ((tensor.numpy() - mean) / std for tensor in (train, flipped, new, fake))
    fakes = plain_log_density(x, y, plain_fit(y, np.concatenate([a, b])))

    def loss(log_variances: np.ndarray) -> float:  # each image by the Gaussians around the other ones
        others = [np.arange(9) != i for i in range(9)]
        variances = np.exp(log_variances)
        images = (plain_log_density(v[i : i + 1], a[o], variances[o]) for i, o in enumerate(others) for v in (a, b))
        return -sum(images) / 18

    bounds = [(np.log(fld.MIN_VARIANCE), 10)] * 9
    found = scipy.optimize.minimize(loss, np.zeros(9), bounds=bounds, method="L-BFGS-B", tol=1e-12)
    standing_in = plain_log_density(x, a, np.exp(found.x))
    divergence = feature_likelihood_divergence(torch.stack([train, flipped]), new, fake)
    assert divergence == pytest.approx(100 / 3 * (standing_in - fakes), rel=1e-3, abs=1e-3)


def test_the_likelihood_rises_with_every_step():
    train, centres = cloud(60, 4).double()[None], cloud(20, 4, seed=1).double()
    likelihoods = []
    for steps in range(1, 8):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fld, "MAX_STEPS", steps)
            likelihoods.append(mean_log_density(train[0], centres, fit_variances(centres, train)))
    assert likelihoods == sorted(likelihoods) and likelihoods[-1] > likelihoods[0]


def test_it_sees_copies_bad_images_and_lost_modes():
    """Fresh images are near 0, whatever their number; everything else is worse, by more where there is more of it."""
    train, new, fresh = cloud(200), cloud(200, seed=1), cloud(200, seed=2)
    flipped = cloud(200, seed=3)
    versions = torch.stack([train, flipped])

    def divergence(fake: torch.Tensor) -> float:
        return feature_likelihood_divergence(versions, new, fake)

    for count in (200, 100, 20):  # the mean over draws: of one draw, the deviation is about 2
        assert abs(sum(divergence(cloud(count, seed=10 + draw)) for draw in range(8)) / 8) < 3
    floor = divergence(fresh)
    noise = torch.randn(fresh.shape, generator=torch.Generator().manual_seed(4))
    for damage in (
        [torch.cat([train[:count], fresh[count:]]) for count in (60, 120, 200)],
        [torch.cat([flipped[:count], fresh[count:]]) for count in (60, 120, 200)],
        [train + 0.2 * noise],  # close to copies
        [fresh + size * noise for size in (0.5, 2)],
        [(1 + size) * fresh for size in (0.2, 1)],
        [fresh[:count].repeat(200 // count, 1) for count in (50, 10)],
    ):
        values = [floor, *(divergence(fake) for fake in damage)]
        assert values == sorted(values) and values[1] > floor + 1, values


def test_features_may_be_constant_and_fakes_few():
    train, new = cloud(30), cloud(30, seed=1)
    train[:, 3] = new[:, 3] = 7
    for count in (1, 2, 30, 40):
        value = feature_likelihood_divergence(train[None], new, cloud(count, seed=2))
        assert np.isfinite(value)
    assert feature_likelihood_divergence(train[None], new, train[:1]) == pytest.approx(0, abs=60)


def test_copies_among_the_training_images_change_little():
    """They would explain each other: a constant from Gaussians as narrow as the floor would praise every model."""
    train, new, fakes = cloud(100, seed=1), cloud(100, seed=2), cloud(100, seed=3)
    alone = feature_likelihood_divergence(train[None], new, fakes)
    twice = feature_likelihood_divergence(train.repeat(2, 1)[None], new, fakes)
    assert abs(twice - alone) < 5, (alone, twice)
    copies = feature_likelihood_divergence(train.repeat(2, 1)[None], new, train)
    assert copies > twice + 50
    assert abs(feature_likelihood_divergence(train[:1].repeat(10, 1)[None], new, fakes)) < 1e6  # finite, if no use
