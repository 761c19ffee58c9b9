"""Endless shuffled batches whose whole position is one number, so that training resumes exactly where it stopped."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import numpy as np
import torch

from torch_utils import distributed


class EndlessSampler(torch.utils.data.Sampler):
    """An endless shuffled stream of indices below `size`; its whole state is one integer.

    Position p of the stream depends on nothing but (size, seed, p): it is entry p % size of the permutation
    that (seed, p // size) gives. Process `rank` takes the positions start + rank, start + rank + world_size,
    ...; to go on after `n` images of all processes together, make a sampler with start = n.
    """

    def __init__(self, size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world_size: int = 1):
        if size < 1 or seed < 0 or start < 0 or not 0 <= rank < world_size:
            raise ValueError(f"no stream with {size=}, {seed=}, {start=}, {rank=}, {world_size=}")
        self.size, self.seed, self.start, self.rank, self.world_size = size, seed, start, rank, world_size

    def __iter__(self) -> Iterator[int]:
        position, drawn = self.start + self.rank, -1
        while True:
            epoch, entry = divmod(position, self.size)
            if epoch != drawn:
                order, drawn = self._permutation(epoch), epoch
            yield order[entry]
            position += self.world_size

    def _permutation(self, epoch: int) -> list[int]:
        mixed = int(np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0])
        return torch.randperm(self.size, generator=torch.Generator().manual_seed(mixed)).tolist()


def endless_batches(
    dataset: torch.utils.data.Dataset,
    *,
    batch: int,
    step: int,
    seed: int,
    workers: int,
    device: torch.device,
    sampler: type[EndlessSampler] = EndlessSampler,
) -> Iterator[list[torch.Tensor]]:
    """The batches of training from `step` on, without end: this process's share of each, on `device`.

    `batch` counts the images of all processes together; `workers` is the number of processes that read for this one.
    """
    stream = sampler(
        len(dataset),
        seed=seed,
        start=step * batch,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=batch // distributed.world_size(),
        sampler=stream,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=ignore_stop_signals,
        # The loader seeds its workers from this generator and not from the global one, which training depends on.
        generator=torch.Generator().manual_seed(0),
    )
    for loaded in loader:
        tensors = [loaded] if isinstance(loaded, torch.Tensor) else loaded
        yield [tensor.to(device, non_blocking=True) for tensor in tensors]


def ignore_stop_signals(worker: int) -> None:
    """^C and SIGTERM reach the whole process group; the loader's workers leave it to the training to end them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
