"""Features of a set of images, computed by all processes together and gathered in the images' order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from media.loader import ignore_stop_signals, read_batches
from torch_utils import distributed

# The images of a set by their numbers, a tensor [N, C, H, W] for each batch of numbers.
Source = Callable[[Sequence[Sequence[int]]], Iterator[Tensor]]

BATCHES_PER_TURN = 8  # batches between two meetings of the processes, so that a GPU need not wait after each


class ImageSet(Protocol):
    """A data set: its items are images uint8 [C, H, W], or tuples that begin with one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def dataset_source(dataset: ImageSet, chosen: Sequence[int], workers: int = 0) -> Source:
    """The images `chosen` of a data set, by their position in `chosen`."""

    def read(batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        numbers = [[chosen[number] for number in batch] for batch in batches]
        # a generator of its own: otherwise the loader draws from the global random state that the training depends on
        loader = DataLoader(
            cast(Dataset, dataset),
            batch_sampler=numbers,
            num_workers=workers,
            generator=torch.Generator(),
            worker_init_fn=ignore_stop_signals,
        )
        for item in read_batches(loader):
            yield item if isinstance(item, Tensor) else item[0]

    return read


def tensor_source(images: Tensor) -> Source:
    """The images [N, C, H, W] of a tensor."""

    def read(batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        return (images[list(numbers)] for numbers in batches)

    return read


def describe_images(
    source: Source,
    count: int,
    batch: int,
    describe: Callable[[Tensor], dict[str, Tensor]],
    *,
    title: str = "",
    batches_per_turn: int = BATCHES_PER_TURN,
    first: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """Yields what `describe` returns for the images first … count − 1, in this order; in rank 0 only.

    The other processes do their part of the work and yield nothing. Every image is described once, in a batch that is
    the same for any number of processes. With a `title`, a progress bar is shown.
    """
    batches = [range(start, min(start + batch, count)) for start in range(first, count, batch)]
    rank, world = distributed.rank(), distributed.world_size()
    size = max(1, min(batches_per_turn, len(batches) // world))
    turns = [batches[start : start + size] for start in range(0, len(batches), size)]
    images = source([numbers for own in turns[rank::world] for numbers in own])
    shown = None if title and rank == 0 else True
    with tqdm(desc=title, total=count, initial=first, unit="img", disable=shown) as bar:
        for start in range(0, len(turns), world):
            described: list[dict[str, Tensor]] = []
            if start + rank < len(turns):
                for some in islice(images, len(turns[start + rank])):
                    described.append(describe(some))
                    bar.update(min(world * len(some), count - bar.n))
            names = described[0] if described else {}
            own = {name: torch.cat([part[name] for part in described]).cpu() for name in names}
            yield from (part for part in distributed.gather_on_rank_0(own) if part)


class Features:
    """Collects up to `count` feature vectors, float32 [count, D]."""

    def __init__(self, count: int):
        self.count, self.seen, self._features = count, 0, torch.empty(0)

    def add(self, features: Tensor) -> None:
        """Takes features [N, D]; those beyond `count` are left out."""
        features = features[: self.count - self.seen]
        if not self.seen:
            self._features = features.new_empty(self.count, features.shape[1])
        self._features[self.seen : self.seen + len(features)] = features
        self.seen += len(features)

    def finish(self) -> dict[str, Tensor]:
        """`features`, [seen, D]."""
        return {"features": self._features[: self.seen]}
