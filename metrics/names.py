"""Names of metrics as StyleGAN2-ADA's users know them: what is computed, of how many images, by which detector.

    fid50k_full               50 000 fakes against all real images
    fid50k                    50 000 fakes against 50 000 real images
    fdd50k_full               the Fréchet distance by DINOv2's features
    fd5k_full@tiny-imagenet   the Fréchet distance of 5000 fakes by the features of another detector

Any number can stand in place of 50k: `fid5k_full`, `kid2k`, `swd500`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch_utils.errors import UserError, one_line

COUNT = "([1-9][0-9]{0,8}k?)"
PATTERNS = {
    "fid": f"fid{COUNT}(_full)?",
    "cleanfid": f"cleanfid{COUNT}(_full)?",
    "kid": f"kid{COUNT}(_full)?",
    "fd": f"fd{COUNT}(_full)?",
    "kd": f"kd{COUNT}(_full)?",
    "fdd": f"fdd{COUNT}(_full)?",
    "kdd": f"kdd{COUNT}(_full)?",
    "cmmd": f"cmmd{COUNT}(_full)?",
    "pr": f"pr{COUNT}3(_full)?",  # with the 3rd nearest neighbour
    "dc": f"dc{COUNT}5(_full)?",  # with the 5th nearest neighbour
    "is": f"is{COUNT}",
    "ppl": f"ppl2_wend{COUNT}?",
    "swd": f"swd{COUNT}?",
}
DEFAULT_COUNTS = {"ppl": "50k", "swd": "8192"}  # where the name has none
NEEDS_DETECTOR = {"fd", "kd"}  # FID and KID are those of Inception-v3, and no others are called so
TAKES_DETECTOR = {*NEEDS_DETECTOR, "pr", "dc", "cmmd"}
DEFAULT_DETECTOR = "tiny-imagenet"  # the encoder that comes with the project for this, see metrics/encoders.py
DINOV2, CLIP = "dinov2-vit-l-14", "clip-vit-l-14-336px"
ALIASES = {"fdd": ("fd", DINOV2), "kdd": ("kd", DINOV2)}  # names of their own for a metric with a detector
CLEAN = "2048 of clean-fid"  # a layer: Inception-v3's pool3 of images that are resized as clean-fid does
FRECHET = {"fid", "cleanfid", "fd"}  # distances of means and covariances
LEAST = {"pr": 4, "dc": 6, "is": 10}  # images; 2 for the others
HIGHER_IS_BETTER = {"pr": ("_precision", "_recall"), "dc": ("_density", "_coverage"), "is": ("_mean",)}
MOST, MOST_PATHS = 1_000_000, 500_000  # for which a seed has latents: models.sampling.STRETCH
# of `_full`, as in StyleGAN2-ADA
MOST_REAL = {"kid": 1_000_000, "kd": 1_000_000, "cmmd": 200_000, "pr": 200_000, "dc": 200_000}

LISTED = {
    "fid50k_full": "Fréchet inception distance; lower is better",
    "cleanfid50k_full": "Fréchet inception distance of images that are resized as clean-fid does; lower is better",
    "kid50k_full": "kernel inception distance; lower is better",
    "fdd50k_full": "Fréchet distance of DINOv2's features, FD-DINOv2 (ViT-L/14); lower is better",
    "kdd50k_full": "kernel distance of DINOv2's features; lower is better",
    "cmmd30k": "maximum mean discrepancy of CLIP's features × 1000 (ViT-L/14 at 336 pixels); lower is better",
    "pr50k3_full": "precision and recall with the 3rd nearest neighbour in VGG-16's features; higher is better",
    "dc10k5_full": "density and coverage with the 5th nearest neighbour in VGG-16's features; higher is better",
    "is50k": "inception score of the fakes alone; higher is better",
    "ppl2_wend": "perceptual path length in W at the paths' ends, of 50,000 paths; lower is smoother",
    "swd": "sliced Wasserstein distance of 8192 images; lower is better; needs no download",
    "pr50k3_full@dinov2-vit-l-14": "precision and recall in the features of a detector; dc10k5_full takes one as well",
    f"fd5k_full@{DEFAULT_DETECTOR}": "Fréchet distance of an encoder's features, shipped or a file's; lower is better",
    f"kd5k_full@{DEFAULT_DETECTOR}": "kernel distance of the same features; lower is better",
}


@dataclass(frozen=True)
class Metric:
    """What the name of a metric says. `parse_metric` makes it."""

    name: str
    kind: str  # of PATTERNS
    count: int  # of fakes, and of real images
    full: bool = False  # all real images in place of `count`
    detector: str = ""  # what follows the @: the name or the file of an encoder

    @property
    def takes_reals(self) -> bool:
        """Whether it compares with real images; others are of the fakes alone."""
        return self.kind not in ("is", "ppl")

    @property
    def compares_pixels(self) -> bool:
        """Whether it sees images as they are, and not by a detector, which resizes them to its own size."""
        return self.kind == "swd"

    def reals(self, available: int) -> int:
        """How many of the `available` real images it takes."""
        if not self.takes_reals:
            return 0
        return min(MOST_REAL.get(self.kind, available) if self.full else self.count, available)

    def fakes(self, available_reals: int, available: int | None = None) -> int:
        """How many of the `available` fakes it takes; None where any number can be made."""
        count = self.reals(available_reals) if self.kind == "swd" else self.count
        return count if available is None else min(count, available)

    @property
    def least(self) -> int:
        """The smallest number of images of a side that it can be computed of."""
        return LEAST.get(self.kind, 2)

    def rankings(self) -> dict[str, bool]:
        """The names of its values that models can be ranked by, and whether the higher one is better."""
        if suffixes := HIGHER_IS_BETTER.get(self.kind):
            return {self.value_name(suffix): True for suffix in suffixes}
        return {self.name: False}

    def value_name(self, suffix: str) -> str:
        """What one of its values is called: `_precision` of `pr5k3@x` is `pr5k3_precision@x`."""
        base, at, detector = self.name.partition("@")
        return base + suffix + at + detector


def parse_metric(name: str) -> Metric:
    """The metric of that name. Raises UserError for an unknown one, and for one of too few or too many images."""
    base, at, detector = name.partition("@")
    for kind, pattern in PATTERNS.items():
        if match := re.fullmatch(pattern, base):
            _check_detector(name, kind, bool(at), detector)
            count, full = (*match.groups(), None)[:2]
            count = count or DEFAULT_COUNTS[kind]
            number = int(count.removesuffix("k")) * (1000 if count.endswith("k") else 1)
            kind, detector = ALIASES.get(kind, (kind, detector))
            metric = Metric(name, kind, number, bool(full), detector or (CLIP if kind == "cmmd" else ""))
            if metric.count < metric.least:
                raise UserError(f"{name}: a set of at least {metric.least} images is needed")
            if metric.count > (most := MOST_PATHS if kind == "ppl" else MOST):
                raise UserError(f"{name}: at most {most:,} images can be asked for")
            return metric
    near = " or ".join(nearest_names(base))
    hint = f"did you mean {near}?" if near else "write e.g. fid50k_full or swd2k;"
    raise UserError(f"no metric is called {one_line(name, 40)!r}; {hint} python -m metrics --list shows all")


def nearest_names(base: str) -> list[str]:
    """Up to three names of metrics that are like a wrong one, with the number of images in it."""
    base = base.lower()
    number = re.search(r"[1-9]\d*k?", base)
    letters = re.sub(r"\d+k*|_full|[^a-z]", "", base)
    listed: dict[str, str] = {}
    for name in LISTED:
        own, at, detector = name.partition("@")
        kind = re.sub(r"\d+k?|_full|_", "", own)
        if number and kind != "pplwend":
            own = re.sub(r"(?<=[a-z])\d+k", number[0], own) if re.search(r"\d", own) else own + number[0]
        listed.setdefault(kind, own + at + detector)
    return [listed[kind] for kind in difflib.get_close_matches(letters, list(listed), n=3)]


def values_of(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a metric in a record, by what follows its name: "" is itself, then "_std", "_precision"."""
    base, _, detector = name.partition("@")
    found = {}
    for key, value in record.items():
        start, _, other = key.partition("@")
        suffix = start.removeprefix(base)
        own = start == base or (start.startswith(f"{base}_") and not suffix.startswith("_full"))
        if own and other == detector:
            found[suffix] = value
    return found


def higher_is_better(value: str, names: Iterable[str]) -> bool:
    """Whether the higher value of that name is better, of a value that the metrics `names` compute.

    Raises UserError for one that they do not compute, or that models cannot be ranked by.
    """
    rankings = {key: higher for name in names for key, higher in parse_metric(name).rankings().items()}
    if value not in rankings:
        known = f"; --metrics gives {', '.join(rankings)}" if rankings else ""
        raise UserError(
            f"models cannot be ranked by {value!r} in this run: add it to --metrics, or take another{known}"
        )
    return rankings[value]


def _check_detector(name: str, kind: str, at: bool, detector: str) -> None:
    """Raises UserError where the name has a detector that it cannot have, or has none that it needs."""
    if kind in NEEDS_DETECTOR and not detector:
        raise UserError(
            f"{name} needs a detector: write {name.rstrip('@')}@{DEFAULT_DETECTOR}, or @ and the file of an encoder "
            "or a stylizer"
        )
    if at and kind in ALIASES:
        other = name.replace("dd", "d", 1)
        raise UserError(f"{name}: this name stands for the features of {DINOV2}; write {other} for another detector")
    if at and kind in ("fid", "kid"):
        other = name.replace("id", "d", 1)
        raise UserError(f"{name}: FID and KID are computed with Inception-v3 alone; write {other} for another detector")
    if at and kind not in TAKES_DETECTOR:
        raise UserError(f"{name}: this metric takes no detector; write {name.partition('@')[0]}")
    if at and not detector:
        raise UserError(f"{name}: after the @ the name or the file of an encoder is missing; write @{DEFAULT_DETECTOR}")
    if at and kind == "cmmd" and not detector.startswith("clip-"):
        other = name.replace("cmmd", "kd", 1)
        raise UserError(f"{name}: CMMD is of CLIP's features; write {other} for a kernel distance of others")
