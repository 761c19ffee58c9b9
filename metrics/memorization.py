"""How much a generator has memorized: metrics of the distances of fakes, and of new images, to the training images.

Authenticity: Alaa, van Breugel, Saveliev, van der Schaar, "How Faithful is your Synthetic Data?", ICML 2022, section 3.
C_T: Meehan, Chaudhuri, Dasgupta, "A Non-Parametric Test to Detect Data-Copying in Generative Models", AISTATS 2020,
section 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CELLS = 50  # that space is divided into, at most
CELL_IMAGES = 20  # new images in a cell, on average, at least
ITERATIONS = 30  # of k-means


def rank_z(new: Tensor, fake: Tensor) -> float:
    """Z of the Mann-Whitney test that fakes lie nearer to training images than new images do; negative if so.

    new [n] and fake [m] are distances to the nearest training image. With U the number of pairs in which the fake lies
    further away (ties count a half), Z = (U − nm/2) / √(nm (n + m + 1) / 12): normal with deviation 1 where both come
    from one distribution (Meehan et al., section 3.1).
    """
    n, m = len(new), len(fake)
    below, upto = (torch.searchsorted(new.sort().values, fake.contiguous(), right=right) for right in (False, True))
    u = float((below + upto).double().sum()) / 2
    return (u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)


def divide(features: Tensor, cells: int, seed: int = 0) -> Tensor:
    """The centres [cells, D] of k-means of features [N, D], started from `cells` of them."""
    chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:cells]
    centres = features[chosen].double()
    for _ in range(ITERATIONS):
        own = nearest_centre(features, centres)
        sums = torch.zeros_like(centres).index_add_(0, own, features.double())
        counts = own.bincount(minlength=len(centres))[:, None]
        moved = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def nearest_centre(features: Tensor, centres: Tensor) -> Tensor:
    """The number of the centre [cells, D] that is nearest to each of the features [N, D]: int64 [N]."""
    return torch.cat([torch.cdist(block.double(), centres).argmin(dim=1) for block in features.split(2048)])


def copying_test(train: Tensor, new: Tensor, fake: Tensor, new_distances: Tensor, fake_distances: Tensor) -> float:
    """C_T: the mean over cells of Z, each cell weighted by its share of the new images (Meehan et al., equation 3).

    Far below 0, fakes lie nearer to training images than new images of the same source do: they are copied. Far above
    0, the model fits badly. Unlike there, a cell with few fakes counts too, and the nearest training image is sought in
    all cells. Features [N, D] of the training images, of new ones and of fakes, and the distances of the
    last two to their nearest training image. Cells are those of k-means of the training images; a cell that has no new
    images or no fakes does not count. Where no cell has both, all are in one.
    """
    cells = max(1, min(CELLS, len(new) // CELL_IMAGES))
    centres = divide(train, cells)
    where_new, where_fake = nearest_centre(new, centres), nearest_centre(fake, centres)
    total = weight = 0.0
    for cell in range(cells):
        p, q = new_distances[where_new == cell], fake_distances[where_fake == cell]
        if len(p) and len(q):
            total += len(p) * rank_z(p, q)
            weight += len(p)
    return total / weight if weight else rank_z(new_distances, fake_distances)
