"""Fréchet distance of two sets of features; of Inception-v3's, it is FID.

Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter: "GANs Trained by a Two Time-Scale Update Rule Converge to a Local
Nash Equilibrium", NeurIPS 2017, equation 6:

    d² = ‖μ₁ − μ₂‖² + Tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½)

FID∞ is what the distance tends to as the number of fakes grows: Chong and Forsyth, "Effectively Unbiased FID and
Inception Score and Where to Find Them", CVPR 2020, section 3. The distance of N fakes is close to d∞² + b / N.

With Σ = R Rᵀ, Tr (Σ₁ Σ₂)^½ is the sum of the singular values of R₁ᵀ R₂. Computed this way, nothing becomes complex or
negative, and the square roots of a singular covariance's eigenvalues, which are nothing but rounding, do not count.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BLOCK = 4096  # feature vectors that are multiplied at a time
POINTS = 15  # numbers of fakes that the distance is extrapolated from, all of them the largest


class Moments:
    """Mean and covariance of up to `count` feature vectors, batch by batch, in float64."""

    def __init__(self, count: int):
        self.count, self.seen = count, 0
        self._waiting: list[Tensor] = []
        self._rows = 0
        self._shift = self._sum = self._products = torch.zeros(())

    def add(self, features: Tensor) -> None:
        """Takes features [N, D]; those beyond `count` are left out."""
        features = features[: self.count - self.seen]
        self.seen += len(features)
        self._waiting.append(features)
        self._rows += len(features)
        if self._rows >= BLOCK:
            self._multiply()

    def _multiply(self) -> None:
        if not self._rows:
            return
        block = torch.cat(self._waiting).double()
        self._waiting, self._rows = [], 0
        if self._shift.ndim == 0:  # sums about a mean do not cancel as those about 0 do
            self._shift = block.mean(dim=0)
            self._sum = torch.zeros_like(self._shift)
            self._products = self._sum.new_zeros(2 * self._sum.shape)
        block -= self._shift
        self._sum += block.sum(dim=0)
        self._products += torch.from_numpy(block.numpy().T @ block.numpy())  # NumPy computes one half of it

    def finish(self) -> dict[str, Tensor]:
        """`mean` [D] and the unbiased `covariance` [D, D] (divided by n − 1), in float64."""
        self._multiply()
        mean = self._sum / self.seen
        covariance = (self._products - self.seen * torch.outer(mean, mean)) / (self.seen - 1)
        return {"mean": mean + self._shift, "covariance": covariance}


def root(covariance: Tensor) -> Tensor:
    """R [D, r] with R Rᵀ = Σ, for a symmetric Σ [D, D] of rank r. Eigenvalues that are mere rounding are dropped."""
    values, vectors = torch.linalg.eigh(covariance)
    positive = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, positive] * values[positive].sqrt()


def frechet_distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """d² of two sets, each given by its `mean` [D] and `covariance` [D, D] in float64."""
    return distance_with_root(a, root(a["covariance"]), b)


def distance_with_root(a: dict[str, Tensor], root_a: Tensor, b: dict[str, Tensor]) -> float:
    """`frechet_distance`, with the root of the covariance of `a` already computed."""
    difference = a["mean"] - b["mean"]
    trace_of_root = torch.linalg.svdvals(root_a.T @ root(b["covariance"])).sum()
    traces = a["covariance"].trace() + b["covariance"].trace()
    return float(difference @ difference + traces - 2 * trace_of_root)


def moments_of(features: Tensor) -> dict[str, Tensor]:
    """`mean` and `covariance` of features [N, D]."""
    moments = Moments(len(features))
    moments.add(features)
    return moments.finish()


def extrapolated_distance(real: dict[str, Tensor], fake: Tensor, seed: int = 0) -> float:
    """d∞² of features of N fakes [N, D] to the moments of real ones, by a line through d² over 1/N.

    The line is fitted to 15 subsets, drawn by `seed`, of N/10 … N fakes; where N/10 is less than 2 D, from 2 D or N/2
    on, whichever is less, because the distance of fewer is no line. Of two fakes there is no line: NaN.
    """
    n, dimensions = fake.shape
    if n < 3:
        return float("nan")
    smallest = max(n // 10, min(2 * dimensions, n // 2), 2)
    rng, root_of_real = np.random.default_rng(seed), root(real["covariance"])
    sizes = np.unique(np.linspace(smallest, n, POINTS).round().astype(int))
    distances = [
        distance_with_root(real, root_of_real, moments_of(fake[torch.from_numpy(rng.permutation(n)[:size])]))
        for size in sizes
    ]
    return float(np.polynomial.Polynomial.fit(1 / sizes, distances, 1).convert().coef[0])
