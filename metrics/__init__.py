"""How good the pictures are: named figures that compare a set of fake pictures with the real ones.

A name is a kind and, if need be, a number of pictures: `swd`, `swd2k`, `swd500`. See `swd.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from metrics.swd import PatchDescriptors, sliced_wasserstein
from torch_utils.cli import UserError

DEFAULT_COUNTS = {"swd": 8192}  # pictures of each side, by kind


def parse_metric(name: str) -> tuple[str, int]:
    """Splits a metric's name into its kind and its number of pictures: `swd2k` is ("swd", 2000).

    Raises UserError for a name that is not known.
    """
    match = re.fullmatch(r"([a-z]+)(?:([1-9][0-9]{0,8})(k?))?", name)
    if match is None or match[1] not in DEFAULT_COUNTS:
        known = ", ".join(f"{kind} ({count} pictures)" for kind, count in DEFAULT_COUNTS.items())
        raise UserError(
            f"no metric is called {name!r}; there is {known}, "
            "with another number of pictures for example swd500 or swd2k"
        )
    kind, digits, thousands = match.groups()
    count = int(digits) * (1000 if thousands else 1) if digits else DEFAULT_COUNTS[kind]
    if count < 2:
        raise UserError(f"{name}: a set of at least 2 pictures is needed")
    return kind, count


def picture_batches(
    dataset: Dataset, count: int, *, batch: int = 64, seed: int = 0, workers: int = 0
) -> Iterator[torch.Tensor]:
    """Yields `count` pictures of `dataset`, chosen by `seed`, as uint8 [N, C, H, W].

    An item of the data set is a picture or a tuple that begins with one. A smaller `count` gives the beginning
    of the same choice.
    """
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:count].tolist()
    # a generator of its own: else the loader draws from the global random state that the training depends on
    loader = DataLoader(Subset(dataset, chosen), batch, num_workers=workers, generator=torch.Generator())
    for item in loader:
        yield item if isinstance(item, torch.Tensor) else item[0]


class Evaluator:
    """The metrics `names` of fake pictures against the real ones of `dataset`.

    Make one and call `evaluate` as often as there are fakes to judge: the real side is worked out at the
    first call and kept. A metric takes as many pictures as its name says, or as the data set has if fewer: `counts`
    holds the numbers, and `shortage` the note that a user gets.

    Raises UserError for an unknown name and for a data set of fewer than 2 pictures.
    """

    def __init__(
        self,
        names: Sequence[str],
        dataset: Dataset,
        *,
        batch: int = 64,
        workers: int = 0,
        seed: int = 0,
        device: torch.device | str = "cpu",
        progress: bool = False,
    ):
        if len(dataset) < 2:
            raise UserError("the data set has only one picture; the metrics need at least 2")
        asked = {name: parse_metric(name)[1] for name in names}
        self.counts = {name: min(count, len(dataset)) for name, count in asked.items()}
        self.count = max(self.counts.values(), default=0)  # the fakes that `evaluate` wants
        short = ", ".join(f"{name} ({count})" for name, count in asked.items() if self.counts[name] < count)
        self.shortage = short and (
            f"note: there are only {len(dataset)} pictures for {short}; "
            "figures fall with the number of pictures: compare at equal numbers only"
        )
        self.dataset = dataset
        self.batch = batch
        self.workers = workers
        self.seed = seed
        self.device = device
        self.progress = progress
        self._real: dict[str, dict[int, torch.Tensor]] | None = None

    def evaluate(self, fakes: Iterable[torch.Tensor]) -> dict[str, float]:
        """Returns the figures for `fakes`, batches of uint8 [N, C, H, W] of the data set's shape.

        Takes the first `count` pictures, or fewer where the batches end before. A metric gives its mean under
        its name and its parts after an underscore: `swd2k`, `swd2k_32`, `swd2k_16`. Raises UserError for fewer
        than 2 fakes.
        """
        if not self.counts:
            return {}
        if self._real is None:
            real = picture_batches(self.dataset, self.count, batch=self.batch, seed=self.seed, workers=self.workers)
            self._real = self._describe(real, "real pictures")
        described = self._describe(fakes, "fake pictures")
        figures = {}
        for name, fake in described.items():
            for key, value in sliced_wasserstein(self._real[name], fake).items():
                figures[key.replace("swd", name)] = value
        return figures

    def _describe(self, batches: Iterable[torch.Tensor], title: str) -> dict[str, dict[int, torch.Tensor]]:
        """What the metrics compare of one side, by the metric's name."""
        descriptors = {
            name: PatchDescriptors(count, seed=self.seed, device=self.device) for name, count in self.counts.items()
        }
        seen = 0
        with tqdm(desc=title, total=self.count, unit="pic", disable=None if self.progress else True) as bar:
            for images in batches:
                for descriptor in descriptors.values():
                    descriptor.add(images)
                seen += len(images)
                bar.update(len(images))
                if seen >= self.count:
                    break
        if seen < 2:
            raise UserError(f"there are only {seen} {title}; the metrics need at least 2")
        return {name: descriptor.finish() for name, descriptor in descriptors.items()}
