"""Endless shuffled batches. The position in the stream is one number, so that training resumes exactly."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator, Iterator
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch

from media.dataset import ImageDataset
from media.shard_stream import ShardStream
from torch_utils import distributed


class EndlessSampler(torch.utils.data.Sampler):
    """An endless shuffled stream of indices below `size`.

    The index at position p depends only on (size, seed, p): it is entry p % size of a permutation that is seeded by
    (seed, p // size). Process `rank` takes the positions start + rank, start + rank + world_size, and so on. To
    continue after n images of all processes together, create a sampler with start = n.
    """

    def __init__(self, size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world_size: int = 1):
        if size < 1 or seed < 0 or start < 0 or not 0 <= rank < world_size:
            raise ValueError(f"invalid stream: {size=}, {seed=}, {start=}, {rank=}, {world_size=}")
        self.size, self.seed, self.start, self.rank, self.world_size = size, seed, start, rank, world_size

    def __iter__(self) -> Iterator[int]:
        position, shuffled_epoch = self.start + self.rank, -1
        while True:
            epoch, entry = divmod(position, self.size)
            if epoch != shuffled_epoch:
                order, shuffled_epoch = self._permutation(epoch), epoch
            yield order[entry]
            position += self.world_size

    def _permutation(self, epoch: int) -> list[int]:
        epoch_seed = int(np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0])
        return torch.randperm(self.size, generator=torch.Generator().manual_seed(epoch_seed)).tolist()


def endless_batches(
    dataset: torch.utils.data.Dataset,
    *,
    batch: int,
    step: int,
    seed: int,
    workers: int,
    device: torch.device,
    sampler: type[EndlessSampler] = EndlessSampler,
) -> Generator[list[torch.Tensor]]:
    """Yields the batches from `step` on, without end: the share of this process of each, on `device`.

    `batch` is the number of images over all processes together, `workers` the number of processes that read for this
    one. The sampler's indices may be of any kind that the data set takes. Shards are read by `ShardStream` instead, in
    whose order the numbers of processes and workers have a part.
    """
    rank, world_size = distributed.rank(), distributed.world_size()
    share = batch // world_size
    source, indices = dataset, None
    if isinstance(dataset, ImageDataset) and not dataset.files.random_access:
        source = ShardStream(
            dataset, seed=seed, step=step, share=share, rank=rank, world_size=world_size, workers=workers
        )
    else:
        size = len(dataset)  # type: ignore[arg-type]
        indices = sampler(size, seed=seed, start=step * batch, rank=rank, world_size=world_size)
    loader = Loader(
        source,
        batch_size=share,
        sampler=indices,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=ignore_stop_signals,
        # Forks share the memory of the decoded images; from Python 3.14 on they are no longer the default.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        # Without a generator, the loader would seed its workers from the global one, on which training depends.
        generator=torch.Generator().manual_seed(0),
    )
    for loaded in read_batches(loader):
        tensors = [loaded] if isinstance(loaded, torch.Tensor) else loaded
        yield [tensor.to(device, non_blocking=True) for tensor in tensors]


class Loader(torch.utils.data.DataLoader):
    """A loader with as many workers as it is told to have.

    PyTorch warns of more workers than cores, twice for each loader. The number is an option of our commands, whose
    default does no harm on a single core either.
    """

    def check_worker_number_rationality(self) -> None:
        """Warns of nothing."""


def read_batches(loader: Loader) -> Iterator[Any]:
    """Yields the batches of a loader, and ends its workers with the iteration, also after an error.

    The loader itself ends them only when it is collected as garbage. An error's traceback holds on to it until the
    process exits, which then waits for workers that ignore SIGTERM.
    """
    iterator = iter(loader)
    # If nobody closes the generator, this runs at exit, before the queues to the workers close (priority 10).
    stop = Finalize(None, _stop_workers, (iterator,), exitpriority=20)
    try:
        yield from iterator
    finally:
        stop()


def _stop_workers(iterator: Any) -> None:
    """Ends the workers of a loader's iterator, if it has any, and kills those that hang."""
    workers = getattr(iterator, "_workers", [])
    if workers:
        iterator._shutdown_workers()
    for worker in workers:
        if worker.is_alive():  # it hangs, for example on a network file system
            worker.kill()
            worker.join()


def ignore_stop_signals(worker: int) -> None:
    """Makes a worker ignore ^C and SIGTERM, which reach the whole process group: training saves, and then ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
