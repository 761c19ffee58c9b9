"""Feature likelihood divergence: how likely new images are by a density of the fakes, fitted to the training images.

Jiralerspong, Bose, Gemp, Qin, Bachrach, Gidel, "Feature Likelihood Divergence: Evaluating the Generalization of
Generative Models Using Samples", NeurIPS 2023, section 3. With a Gaussian around each of m fakes gⱼ, in d dimensions,

    p(x) = 1/m Σⱼ N(x; gⱼ, σⱼ² I),    σ = argmax Σ log p(x) over the training images x,
    FLD = −100/d · mean log p(x) over new images x − C

A copy of a training image explains that image best with σ → 0, and then no other image: new ones become unlikely. So
FLD grows with bad images, with lost modes and with copies. C is the same of training images that stand in for the
fakes, none of which explains itself: 0 means as good as training images. (The paper's C is of one half of them, fitted
to the other; then a perfect model is at 0 for one number of fakes only.)

Features are scaled to mean 0 and deviation 1, those of the training images. The likelihood of a copy has no maximum, so
σ needs a floor; here it is 0.1, a tenth of a feature's own deviation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

SAME = 1e-6  # of a dimension's variance: the squared distance in it of images that are the same, at most
MIN_VARIANCE = 0.1**2
MAX_STEPS, TOLERANCE = 100, 1e-3  # of the fit, which ends where a step adds less to 100/d · mean log p
BLOCK_ROWS = 1024  # images whose densities are in memory at a time


def feature_likelihood_divergence(train: Tensor, new: Tensor, fake: Tensor, seed: int = 0) -> float:
    """FLD of features [N, D] of new images and [M, D] of fakes, with training images [K, n, D]: n images in K versions.

    Versions are the images themselves and, say, flipped ones, whose copies count as well. The training images that
    stand in for the fakes are as many as those, or all, drawn by `seed`.
    """
    images = train[0].double()
    mean, std = images.mean(dim=0), images.std(dim=0)
    train, new, fake = ((x.double() - mean) / std.where(std > 0, 1) for x in (train, new, fake))
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: len(fake)]
    own = chosen if len(chosen) > 1 else None  # a single one has to explain itself as well: nothing else does
    standing_in = mean_log_density(new, train[0, chosen], fit_variances(train[0, chosen], train, own))
    return 100 / train.shape[2] * (standing_in - mean_log_density(new, fake, fit_variances(fake, train)))


def mean_log_density(new: Tensor, centres: Tensor, variances: Tensor) -> float:
    """The mean of log p(x) over images [N, D], with Gaussians of variances [M] around centres [M, D]."""
    sums = [log_terms(x, centres, variances)[0].logsumexp(dim=1).sum() for x in new.split(BLOCK_ROWS)]
    return float(torch.stack(sums).sum()) / len(new)


def fit_variances(centres: Tensor, train: Tensor, own: Tensor | None = None) -> Tensor:
    """σ² [M] by which training images [K, n, D] are most likely, by expectation maximization from σ = 1.

    With rᵢⱼ the share of Gaussian j in p(xᵢ), a step sets σⱼ² = Σᵢ rᵢⱼ ‖xᵢ − gⱼ‖² / (d Σᵢ rᵢⱼ), or the floor if that is
    higher. `own` [M] is the training image that each centre is; it explains neither that one nor copies of it.
    """
    dimensions, variances, before = train.shape[2], centres.new_ones(len(centres)), -math.inf
    for _ in range(MAX_STEPS):
        weights, spread, total = centres.new_zeros(len(centres)), centres.new_zeros(len(centres)), 0.0
        for numbers, x in numbered_blocks(train):
            terms, squares = log_terms(x, centres, variances)
            if own is not None:
                same = (numbers[:, None] == own) | (squares <= SAME * dimensions)
                kept = ~same.all(dim=1)  # an image that only itself and its copies could explain says nothing
                terms, squares = terms.masked_fill(same, -math.inf)[kept], squares[kept]
            density = terms.logsumexp(dim=1, keepdim=True)
            shares = (terms - density).exp()
            weights += shares.sum(dim=0)
            spread += (shares * squares).sum(dim=0)
            total += float(density.sum())
        # a Gaussian that has no share in any image keeps its variance
        variances = (spread / (dimensions * weights)).where(weights > 0, variances).clamp(min=MIN_VARIANCE)
        likelihood = 100 / dimensions * total / train[..., 0].numel()
        if likelihood - before < TOLERANCE:
            break
        before = likelihood
    return variances


def numbered_blocks(train: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The images of each version [K, n, D], a block at a time, with their numbers in 0 … n − 1."""
    for version in train:
        yield from zip(torch.arange(len(version)).split(BLOCK_ROWS), version.split(BLOCK_ROWS), strict=True)


def log_terms(x: Tensor, centres: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """log(N(x; gⱼ, σⱼ² I) / m) and ‖x − gⱼ‖² of each image [N, D] and each of m centres, both [N, m]."""
    squares = torch.cdist(x, centres).square()
    log_gaussians = -0.5 * (squares / variances + x.shape[1] * (2 * math.pi * variances).log())
    return log_gaussians - math.log(len(centres)), squares
