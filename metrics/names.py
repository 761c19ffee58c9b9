"""The metrics' names, as StyleGAN2-ADA's users know them: a kind, a number of images, and what with.

`fid50k_full`: 50 000 fakes against all real images; without `_full`, against as many real ones as fakes. Any number
can stand in place of 50k: `fid5k_full`, `kid2k`, `swd500`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch_utils.errors import UserError

COUNT = "([1-9][0-9]{0,8}k?)"
PATTERNS = {
    "fid": f"fid{COUNT}(_full)?",
    "kid": f"kid{COUNT}(_full)?",
    "pr": f"pr{COUNT}3(_full)?",  # with the 3rd nearest neighbour
    "is": f"is{COUNT}",
    "ppl": f"ppl2_wend{COUNT}?",
    "swd": f"swd{COUNT}?",
}
DEFAULT_COUNTS = {"ppl": "50k", "swd": "8192"}  # where the name has none
LEAST = {"pr": 4, "is": 10}  # images; of the others 2
MOST, MOST_PATHS = 1_000_000, 500_000  # for which a seed has latents: models.sampling.STRETCH
MOST_REAL = {"kid": 1_000_000, "pr": 200_000}  # that `_full` takes, as StyleGAN2-ADA does

LISTED = {
    "fid50k_full": "Fréchet inception distance; lower is better",
    "kid50k_full": "kernel inception distance; lower is better",
    "pr50k3_full": "precision and recall by the 3rd neighbour in VGG-16's features; higher is better",
    "is50k": "inception score of the fakes alone; higher is better",
    "ppl2_wend": "perceptual path length in W at the paths' ends, 50k paths; lower is smoother",
    "swd": "sliced Wasserstein distance, 8192 images; lower is better; needs no download",
}


@dataclass(frozen=True)
class Metric:
    """A figure to work out. Raises UserError, from `parse_metric`, where there is none of that name."""

    name: str
    kind: str  # of PATTERNS
    count: int  # of fakes, and of real images
    full: bool = False  # all real ones in place of `count`

    def reals(self, there: int) -> int:
        """How many of the real images `there` it takes."""
        if self.kind in ("is", "ppl"):
            return 0
        return min(MOST_REAL.get(self.kind, there) if self.full else self.count, there)

    def fakes(self, reals_there: int, there: int | None = None) -> int:
        """How many fakes it takes, of as many as are `there` (None: any number can be made)."""
        count = self.reals(reals_there) if self.kind == "swd" else self.count
        return count if there is None else min(count, there)

    @property
    def least(self) -> int:
        """The images of a side that it cannot do without."""
        return LEAST.get(self.kind, 2)


def parse_metric(name: str) -> Metric:
    """The metric of that name. Raises UserError for one that is not known, or of too few or too many."""
    for kind, pattern in PATTERNS.items():
        if match := re.fullmatch(pattern, name):
            count, full = (*match.groups(), None)[:2]
            count = count or DEFAULT_COUNTS[kind]
            metric = Metric(name, kind, int(count.removesuffix("k")) * (1000 if count.endswith("k") else 1), bool(full))
            if metric.count < metric.least:
                raise UserError(f"{name}: a set of at least {metric.least} images is needed")
            if metric.count > (most := MOST_PATHS if kind == "ppl" else MOST):
                raise UserError(f"{name}: at most {most:,} images can be asked for")
            return metric
    raise UserError(
        f"no metric is called {name!r}; there are {', '.join(LISTED)}, with any number of images in the name "
        "(fid5k_full, swd2k); python -m metrics --list says what they are"
    )
