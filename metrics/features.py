"""Features of a set of images, computed by all processes together and gathered in the images' order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

from media.loader import Loader, ignore_stop_signals, read_batches
from torch_utils import distributed

# Several images: a tensor [N, C, H, W], or a list of [C, H, W] where their sizes differ.
Images = Tensor | list[Tensor]
# The images of a set by their numbers: those of each batch of numbers.
Source = Callable[[Sequence[Sequence[int]]], Iterator[Images]]

AT_ONCE = 4  # images of any sizes that a worker reads before it hands them over, as they may be whole photographs
BATCHES_PER_TURN = 8  # batches between two meetings of the processes, so that a GPU need not wait after each


class ImageSet(Protocol):
    """A data set: its items are images uint8 [C, H, W], or tuples that begin with one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def dataset_source(dataset: ImageSet, chosen: Sequence[int], workers: int = 0) -> Source:
    """The images `chosen` of a data set, by their position in `chosen`."""

    def split(batch: Sequence[int]) -> list[Sequence[int]]:
        size = AT_ONCE if getattr(dataset, "any_sizes", False) else len(batch)
        return [batch[start : start + size] for start in range(0, len(batch), size)]

    def read(batches: Sequence[Sequence[int]]) -> Iterator[Images]:
        parts = [[chosen[number] for number in part] for batch in batches for part in split(batch)]
        # a generator of its own: otherwise the loader draws from the global random state that the training depends on
        loader = Loader(
            cast(Dataset, dataset),
            batch_sampler=parts,
            num_workers=workers,
            generator=torch.Generator(),
            worker_init_fn=ignore_stop_signals,
            collate_fn=pack,
        )
        loaded = (packed if isinstance(packed, Tensor) else unpack(*packed) for packed in read_batches(loader))
        for batch in batches:
            yield join([next(loaded) for _ in split(batch)])

    return read


def join(parts: list[Images]) -> Images:
    """The images of all parts as one batch: a tensor, or a list where their sizes differ."""
    if len(parts) == 1:
        return parts[0]
    images = [image for part in parts for image in part]
    return torch.stack(images) if len({image.shape for image in images}) == 1 else images


def pack(items: list[Any]) -> Tensor | tuple[Tensor, list[torch.Size]]:
    """The images of a data set's items [N, C, H, W]; where their sizes differ, all pixels in a row, and the shapes.

    A worker hands each tensor over in a file of shared memory, of which a process may have a thousand.
    """
    images = [item if isinstance(item, Tensor) else item[0] for item in items]
    shapes = [image.shape for image in images]
    if len(set(shapes)) == 1:
        return default_collate(images)
    return torch.cat([image.flatten() for image in images]), shapes


def unpack(pixels: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    """The images [C, H, W] whose pixels and shapes `pack` gave."""
    parts = pixels.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def tensor_source(images: Tensor) -> Source:
    """The images [N, C, H, W] of a tensor."""

    def read(batches: Sequence[Sequence[int]]) -> Iterator[Images]:
        return (images[list(numbers)] for numbers in batches)

    return read


def watched(source: Source, see: Callable[[Images, int], None]) -> Source:
    """The same source; `see` gets the images of each batch, and the number of the first, before they are handed on.

    Of `describe_images`, each process sees those batches that it describes, in their order.
    """

    def read(batches: Sequence[Sequence[int]]) -> Iterator[Images]:
        for numbers, images in zip(batches, source(batches), strict=True):
            see(images, numbers[0])
            yield images

    return read


def describe_images(
    source: Source,
    count: int,
    batch: int,
    describe: Callable[[Tensor], dict[str, Tensor]],
    *,
    title: str = "",
    first: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """Yields what `describe` returns for the images first … count − 1, in this order; in rank 0 only.

    The other processes do their part of the work and yield nothing. Every image is described once, in a batch that is
    the same for any number of processes. With a `title`, a progress bar is shown.
    """
    batches = [range(start, min(start + batch, count)) for start in range(first, count, batch)]
    rank, world = distributed.rank(), distributed.world_size()
    size = max(1, min(BATCHES_PER_TURN, len(batches) // world))
    turns = [batches[start : start + size] for start in range(0, len(batches), size)]
    images = source([numbers for own in turns[rank::world] for numbers in own])
    shown = None if title and rank == 0 else True
    with tqdm(desc=title, total=count, initial=first, unit="img", disable=shown) as bar:
        for start in range(0, len(turns), world):
            described: list[dict[str, Tensor]] = []
            if start + rank < len(turns):
                for some in islice(images, len(turns[start + rank])):
                    described.append(describe(some) if isinstance(some, Tensor) else describe_sizes(some, describe))
                    bar.update(min(world * len(some), count - bar.n))
            names = described[0] if described else {}
            own = {name: torch.cat([part[name] for part in described]).cpu() for name in names}
            yield from (part for part in distributed.gather_on_rank_0(own) if part)


def describe_sizes(images: list[Tensor], describe: Callable[[Tensor], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `describe` returns for images [C, H, W] of several sizes, in their order: it is given those of each size."""
    numbers: dict[torch.Size, list[int]] = {}
    for number, image in enumerate(images):
        numbers.setdefault(image.shape, []).append(number)
    parts = [describe(torch.stack([images[number] for number in some])) for some in numbers.values()]
    order = torch.tensor([number for some in numbers.values() for number in some]).argsort()
    return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}


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
