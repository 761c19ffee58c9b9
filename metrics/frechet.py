"""Fréchet distance of two sets of features (FID, with those of Inception).

Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter: "GANs Trained by a Two Time-Scale Update Rule Converge to a Local
Nash Equilibrium", NeurIPS 2017, equation 6:

    d² = ‖μ₁ − μ₂‖² + Tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½)

With Σ = R Rᵀ, Tr (Σ₁ Σ₂)^½ is the sum of the singular values of R₁ᵀ R₂. So taken, nothing can become complex or
negative, and what rounding leaves of the eigenvalues of a singular covariance does not count by its square root.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 4096  # rows that are multiplied at a time


class Moments:
    """Mean and covariance of up to `count` feature vectors, batch by batch, in float64."""

    def __init__(self, count: int):
        self.count, self.seen, self._waiting, self._rows = count, 0, [], 0
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
        if self._shift.ndim == 0:  # about the mean, so that the sums of squares do not cancel
            self._shift = block.mean(dim=0)
            self._sum = torch.zeros_like(self._shift)
            self._products = self._sum.new_zeros(2 * self._sum.shape)
        block -= self._shift
        self._sum += block.sum(dim=0)
        self._products += torch.from_numpy(block.numpy().T @ block.numpy())  # NumPy computes one half of it

    def finish(self) -> dict[str, Tensor]:
        """`mean` [D] and `covariance` [D, D] (of samples: divided by n − 1), and lets go of the rest."""
        self._multiply()
        mean = self._sum / self.seen
        covariance = (self._products - self.seen * torch.outer(mean, mean)) / (self.seen - 1)
        return {"mean": mean + self._shift, "covariance": covariance}


def root(covariance: Tensor) -> Tensor:
    """R [D, r] with R Rᵀ = Σ, for a symmetric Σ [D, D] of rank r; other eigenvalues are rounding and go."""
    values, vectors = torch.linalg.eigh(covariance)
    there = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, there] * values[there].sqrt()


def frechet_distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """d² of two sets, of each the `mean` [D] and `covariance` [D, D] in float64."""
    difference = a["mean"] - b["mean"]
    trace_of_root = torch.linalg.svdvals(root(a["covariance"]).T @ root(b["covariance"])).sum()
    traces = a["covariance"].trace() + b["covariance"].trace()
    return float(difference @ difference + traces - 2 * trace_of_root)
