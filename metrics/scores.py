"""Metrics that compare the features of images themselves, in float64; and path lengths.

KID: Bińkowski, Sutherland, Arbel, Gretton: "Demystifying MMD GANs", ICLR 2018, section 4. IS: Salimans et al.:
"Improved Techniques for Training GANs", NeurIPS 2016, section 4. CMMD: Jayasumana, Ramalingam, Veit, Glasner,
Chakrabarti, Kumar: "Rethinking FID: Towards a Better Evaluation Metric for Image Generation", CVPR 2024, section 4.
Precision and recall: Kynkäänniemi, Karras, Laine, Lehtinen, Aila: "Improved Precision and Recall Metric for Assessing
Generative Models", NeurIPS 2019, section 3. Density and coverage: Naeem, Oh, Uh, Choi, Yoo: "Reliable Fidelity and
Diversity Metrics for Generative Models", ICML 2020, section 3. PPL: Karras, Laine, Aila: "A Style-Based Generator
Architecture for Generative Adversarial Networks", CVPR 2019, section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
IS_SPLITS = 10
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
PR_NEIGHBOUR, DC_NEIGHBOUR = 3, 5
SEED = 2020  # torch-fidelity's, for the subsets of KID and the splits of IS
MAX_LOGIT_GAP = 700.0  # beyond which a probability would be 0 in float64, and its logarithm infinite
BLOCK_ROWS = 2048  # of both sets, whose distances are in memory at a time: 34 MB


def kernel_distance(real: Tensor, fake: Tensor) -> dict[str, float]:
    """KID of features [N, D] and [M, D]: "" its mean and "_std" its standard deviation over 100 random subsets.

    On subsets of 1000 images, or of all where there are fewer. The subsets are torch-fidelity's.
    """
    size = min(len(real), len(fake), KID_SUBSET_SIZE)
    rng = np.random.RandomState(SEED)
    distances = np.zeros(KID_SUBSETS)
    for i in range(KID_SUBSETS):
        x = fake[rng.choice(len(fake), size, replace=False)].double().numpy()
        y = real[rng.choice(len(real), size, replace=False)].double().numpy()
        distances[i] = unbiased_mmd(x, y)
    return {"": float(distances.mean()), "_std": float(distances.std())}


def unbiased_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate of MMD² of x [m, D] and y [m, D] with the kernel k(a, b) = (a·b / D + 1)³.

    1/(m (m − 1)) Σ_{i≠j} (k(xᵢ, xⱼ) + k(yᵢ, yⱼ)) − 2/m² Σ_{i,j} k(xᵢ, yⱼ)
    """

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (np.matmul(a, b.T) * (1.0 / a.shape[1]) + 1.0) ** 3

    def off_diagonal(k: np.ndarray) -> float:
        return (k.sum(axis=1) - k.diagonal()).sum()

    m = len(x)
    within = (off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y))) / (m * (m - 1))
    return within - 2 * kernel(x, y).sum(axis=0).sum() / (m * m)


def cmmd(real: Tensor, fake: Tensor, title: str = "") -> float:
    """1000 × MMD² of features [N, D] and [M, D], of length 1, with the kernel exp(−‖a − b‖² / 2σ²), σ = 10.

    The mean over all pairs, those of an image with itself included, as in the paper's own program: for small sets it is
    larger than the unbiased estimate, and never negative. With a `title`, a progress bar is shown.
    """
    n, m = len(real), len(fake)
    real, fake = normalize(real.double()), normalize(fake.double())
    with tqdm(desc=title, total=n * n + m * m + n * m, unit_scale=True, disable=None if title else True) as bar:

        def mean_kernel(a: Tensor, b: Tensor) -> float:
            total = 0.0
            for rows in a.split(BLOCK_ROWS):
                for columns in b.split(BLOCK_ROWS):
                    cosines = rows @ columns.T  # ‖a − b‖² = 2 − 2 a·b
                    # minus 1, so that differences of numbers close to 1 lose no digits
                    total += float(torch.expm1((cosines - 1) / CMMD_SIGMA**2).sum())
                    bar.update(cosines.numel())
            return total / (len(a) * len(b))

        mmd = mean_kernel(real, real) + mean_kernel(fake, fake) - 2 * mean_kernel(real, fake)
    return CMMD_SCALE * mmd


def precision_recall(real: Tensor, fake: Tensor, title: str = "") -> dict[str, float]:
    """ "_precision": the share of fakes [M, D] within a ball around a real image; "_recall": the other way round.

    The ball around an image of a set [N, D] reaches to its third nearest neighbour in the set. torch-fidelity computes
    the same from all features at once; here only a block of each set is in float64. With a `title`, a progress bar is
    shown.
    """
    n, m = len(real), len(fake)
    with tqdm(desc=title, total=n * n + m * m + n * m, unit_scale=True, disable=None if title else True) as bar:
        real_radius = neighbour_distances(real, PR_NEIGHBOUR, bar)
        fake_radius = neighbour_distances(fake, PR_NEIGHBOUR, bar)
        precise, recalled = torch.zeros(m, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
        for i, j, distances in distance_blocks(fake, real):
            precise[i] |= (distances <= real_radius[j]).any(dim=1)
            recalled[j] |= (distances <= fake_radius[i, None]).any(dim=0)
            bar.update(distances.numel())
    return {"_precision": float(precise.double().mean()), "_recall": float(recalled.double().mean())}


def density_coverage(real: Tensor, fake: Tensor, title: str = "") -> dict[str, float]:
    """ "_density" and "_coverage" of fakes [M, D] among real images [N, D]: Naeem et al., equations 3 and 4.

    Around each real image is a ball that ends before its fifth nearest neighbour among the real ones. Density is how
    many of the balls a fake is in on average, divided by 5: 1 for fakes like the real images, and more where they crowd
    in dense places. Coverage is the share of balls with a fake in them. With a `title`, a progress bar is shown.
    """
    n, m = len(real), len(fake)
    with tqdm(desc=title, total=n * n + n * m, unit_scale=True, disable=None if title else True) as bar:
        radius = neighbour_distances(real, DC_NEIGHBOUR, bar)
        balls, covered = torch.zeros(m, dtype=torch.int64), torch.zeros(n, dtype=torch.bool)
        for i, j, distances in distance_blocks(fake, real):
            inside = distances < radius[j]
            balls[i] += inside.sum(dim=1)
            covered[j] |= inside.any(dim=0)
            bar.update(distances.numel())
    return {"_density": float(balls.double().mean()) / DC_NEIGHBOUR, "_coverage": float(covered.double().mean())}


def neighbour_distances(features: Tensor, neighbour: int, bar: tqdm) -> Tensor:
    """The distance of each of the features [N, D] to its nearest neighbour of that number, itself not counted: [N]."""
    nearest = features.new_full([len(features), neighbour + 1], torch.inf, dtype=torch.float64)  # and itself

    def update(rows: slice, distances: Tensor) -> None:
        candidates = torch.cat([nearest[rows], distances], dim=1)
        nearest[rows] = candidates.topk(neighbour + 1, largest=False).values

    for i, j, distances in distance_blocks(features, features, symmetric=True):
        update(i, distances)
        if i != j:
            update(j, distances.T)
        bar.update(distances.numel() if i == j else 2 * distances.numel())
    return nearest.amax(dim=1)


def distance_blocks(a: Tensor, b: Tensor, symmetric: bool = False) -> Iterator[tuple[slice, slice, Tensor]]:
    """The distances of a [N, D] and b [M, D] in float64, block by block, with the rows of a and b that they are of.

    With `symmetric`, for a = b, a block off the diagonal comes once, not again as its transpose.
    """
    for first in range(0, len(a), BLOCK_ROWS):
        rows = a[first : first + BLOCK_ROWS].double()
        for second in range(first if symmetric else 0, len(b), BLOCK_ROWS):
            columns = b[second : second + BLOCK_ROWS].double()
            yield slice(first, first + BLOCK_ROWS), slice(second, second + BLOCK_ROWS), torch.cdist(rows, columns)


def inception_score(logits: Tensor) -> dict[str, float]:
    """exp E[KL(p(y|x) ‖ p(y))] of logits [N, classes]: "_mean" and "_std" of 10 splits, by torch-fidelity."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    logits = logits.double()
    logits = (logits - logits.amax(dim=1, keepdim=True)).clamp(min=-MAX_LOGIT_GAP)
    found = isc_features_to_metric(logits, IS_SPLITS, shuffle=True, rng_seed=SEED)
    return {"_mean": found[KEY_METRIC_ISC_MEAN], "_std": found[KEY_METRIC_ISC_STD]}


def path_length(distances: Tensor, epsilon: float) -> dict[str, float]:
    """PPL of the distances [N] of images that lie `epsilon` apart in W: the mean of d/ε².

    The lowest and the highest per cent of the paths do not count.
    """
    lengths = distances.double().numpy() / epsilon**2
    low = np.percentile(lengths, 1, method="lower")
    high = np.percentile(lengths, 99, method="higher")
    return {"": float(lengths[(low <= lengths) & (lengths <= high)].mean())}
