"""Figures from features that are not distances of moments, in float64; KID and IS are torch-fidelity's arithmetic.

KID: Bińkowski, Sutherland, Arbel, Gretton: "Demystifying MMD GANs", ICLR 2018, section 4. IS: Salimans et al.:
"Improved Techniques for Training GANs", NeurIPS 2016, section 4. Precision and recall: Kynkäänniemi, Karras, Laine,
Lehtinen, Aila: "Improved Precision and Recall Metric for Assessing Generative Models", NeurIPS 2019, section 3. PPL:
Karras, Laine, Aila: "A Style-Based Generator Architecture for Generative Adversarial Networks", CVPR 2019, section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

SUBSETS, SUBSET_SIZE = 100, 1000  # of KID
SPLITS = 10  # of IS
NEIGHBOUR = 3
SEED = 2020  # torch-fidelity's
SURE = 700.0  # logits apart, beyond which the exponential in float64 would be 0, and its logarithm no number
ROWS = 2048  # of both sets, whose distances are there at a time: 34 MB


def kernel_distance(real: Tensor, fake: Tensor) -> dict[str, float]:
    """KID of features [N, D] and [M, D]: "" its mean and "_std" its standard deviation over 100 random subsets.

    The unbiased estimate of MMD² with the kernel (x·y / D + 1)³, on subsets of 1000, or of all where there are fewer.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    size = min(len(real), len(fake), SUBSET_SIZE)
    options = {"kid_subsets": SUBSETS, "kid_subset_size": size, "rng_seed": SEED, "verbose": False}
    found = kid_features_to_metric(fake.double(), real.double(), **options)
    return {"": found[KEY_METRIC_KID_MEAN], "_std": found[KEY_METRIC_KID_STD]}


def precision_recall(real: Tensor, fake: Tensor, title: str = "") -> dict[str, float]:
    """ "_precision": the part of the fakes [M, D] that lie in a ball about a real one; "_recall": the other way round.

    The ball about an image of a set [N, D] reaches as far as its third neighbour in the set. torch-fidelity does the
    same with all of both sets in the precision of the distances; here only a block of each is in float64. With a
    `title`, the progress is shown.
    """
    n, m = len(real), len(fake)
    with tqdm(desc=title, total=n * n + m * m + n * m, unit_scale=True, disable=None if title else True) as bar:
        real_radius, fake_radius = neighbour_distances(real, bar), neighbour_distances(fake, bar)
        precise, recalled = torch.zeros(m, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
        for i, j, distances in distance_blocks(fake, real):
            precise[i] |= (distances <= real_radius[j]).any(dim=1)
            recalled[j] |= (distances <= fake_radius[i, None]).any(dim=0)
            bar.update(distances.numel())
    return {"_precision": float(precise.double().mean()), "_recall": float(recalled.double().mean())}


def neighbour_distances(features: Tensor, bar: tqdm) -> Tensor:
    """How far the third neighbour of each of the features [N, D] is: [N]. Each is nearest to itself."""
    nearest = features.new_full([len(features), NEIGHBOUR + 1], torch.inf, dtype=torch.float64)

    def meet(of: slice, distances: Tensor) -> None:
        candidates = torch.cat([nearest[of], distances], dim=1)
        nearest[of] = candidates.topk(NEIGHBOUR + 1, largest=False).values

    for i, j, distances in distance_blocks(features, features, symmetric=True):
        meet(i, distances)
        if i != j:
            meet(j, distances.T)
        bar.update(distances.numel() if i == j else 2 * distances.numel())
    return nearest.amax(dim=1)


def distance_blocks(a: Tensor, b: Tensor, symmetric: bool = False) -> Iterator[tuple[slice, slice, Tensor]]:
    """The distances of a [N, D] and b [M, D] in float64, block by block, with the rows of a and b that they are of.

    With `symmetric`, where a and b are the same, a block and its mirror image come once.
    """
    for first in range(0, len(a), ROWS):
        rows = a[first : first + ROWS].double()
        for second in range(first if symmetric else 0, len(b), ROWS):
            columns = b[second : second + ROWS].double()
            yield slice(first, first + ROWS), slice(second, second + ROWS), torch.cdist(rows, columns)


def inception_score(logits: Tensor) -> dict[str, float]:
    """exp E[KL(p(y|x) ‖ p(y))] of logits [N, classes], in 10 parts: their "_mean" and "_std"."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    logits = logits.double()
    logits = (logits - logits.amax(dim=1, keepdim=True)).clamp(min=-SURE)
    found = isc_features_to_metric(logits, SPLITS, shuffle=True, rng_seed=SEED)
    return {"_mean": found[KEY_METRIC_ISC_MEAN], "_std": found[KEY_METRIC_ISC_STD]}


def path_length(distances: Tensor, epsilon: float) -> dict[str, float]:
    """PPL of the distances [N] of images that lie `epsilon` apart: the mean of d/ε², without the outer per cents."""
    lengths = distances.double().numpy() / epsilon**2
    low = np.percentile(lengths, 1, method="lower")
    high = np.percentile(lengths, 99, method="higher")
    return {"": float(lengths[(low <= lengths) & (lengths <= high)].mean())}
