"""The order in which training reads shards: endless, shuffled, shared by processes, and resumed at any step.

Every epoch is a function of the shards' numbers of images, the seed and the epoch: the shards are permuted, and what is
one row of images then is split evenly into lanes, one for each process that reads. A lane reads a few shards in turn,
block by block, and shuffles each block. So no process reads what another one does, none needs more memory than two
blocks, and the position in the stream is one number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import torch

from media.dataset import ImageDataset
from media.shards import ShardFiles
from torch_utils.errors import UserError, plural

SLOTS = 4  # shards that a lane reads in turn
BLOCK_BYTES = 64 << 20  # image files that are shuffled together
BLOCK_IMAGES = 8192  # at most


@dataclass(frozen=True)
class Lane:
    """One of `lanes` equal parts of the stream over shards with these numbers of images.

    A round of a lane is `length` images long, and no two lanes have an image of a round in common. The rest of the
    division, fewer images than there are lanes, is left out: others in each round. With `mirror`, an epoch is two
    rounds, and each image is flipped in one of them.
    """

    counts: Sequence[int]
    lane: int
    lanes: int
    seed: int
    block: int = BLOCK_IMAGES
    mirror: bool = False

    @property
    def length(self) -> int:
        """Images of one round."""
        return sum(self.counts) // self.lanes

    def reading_order(self, round_number: int) -> Iterator[int]:
        """The numbers of the images of a round, in the order in which they are read: a few shards in turn."""
        waiting = self._segments(round_number)
        slots = [iter(segment) for segment in islice(waiting, SLOTS)]
        turn = 0
        while slots:
            turn %= len(slots)
            number = next(slots[turn], None)
            if number is not None:
                yield number
                turn += 1
            elif (segment := next(waiting, None)) is not None:
                slots[turn] = iter(segment)
            else:
                del slots[turn]

    def _segments(self, round_number: int) -> Iterator[range]:
        """The lane's part of each shard, as numbers of images, in the order of the round."""
        starts = np.cumsum([0, *self.counts]).tolist()
        low, high, position = self.lane * self.length, (self.lane + 1) * self.length, 0
        for shard in self._random(round_number).permutation(len(self.counts)).tolist():
            first, last = max(low - position, 0), min(high - position, self.counts[shard])
            if first < last:
                yield range(starts[shard] + first, starts[shard] + last)
            position += self.counts[shard]

    def block_order(self, round_number: int, block: int, size: int) -> list[int]:
        """The permutation of a block of `size` images."""
        return self._random(round_number, self.lane, block).permutation(size).tolist()

    def flips(self, round_number: int) -> np.ndarray | None:
        """Which images are flipped in a round, bool [images]: the others in the next one. None without `mirror`."""
        if not self.mirror:
            return None
        first, second = divmod(round_number, 2)
        drawn = np.random.default_rng((self.seed, first, 1)).integers(0, 2, sum(self.counts), np.uint8)
        return (drawn == 1) ^ (second == 1)

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, 0, *key))

    def indices(self, start: int = 0) -> Iterator[int]:
        """The stream from the position `start` on, without end, as indices of `ImageDataset`."""
        yield from (index for index, _ in self._stream(start, lambda number: b""))

    def images(self, files: ShardFiles, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """`indices` with the image files. Two blocks are in memory: one is read while the other one is handed out."""
        return self._stream(start, files.read_number)

    def _stream(self, start: int, read: Callable[[int], bytes]) -> Iterator[tuple[int, bytes]]:
        first_round, position = divmod(start, self.length)
        for round_number in count(first_round):
            yield from self._round(round_number, position, read)
            position = 0

    def _round(self, round_number: int, start: int, read: Callable[[int], bytes]) -> Iterator[tuple[int, bytes]]:
        first_block, skipped = divmod(start, self.block)
        flips, total = self.flips(round_number), sum(self.counts)
        order = islice(self.reading_order(round_number), first_block * self.block, None)
        files = ((number, read(number)) for number in order)
        current = list(islice(files, self.block))
        for block in count(first_block):
            upcoming: list[tuple[int, bytes]] = []
            for place, chosen in enumerate(self.block_order(round_number, block, len(current))):
                upcoming += islice(files, 1)
                if place >= skipped:
                    number, data = current[chosen]
                    yield number + total * bool(flips is not None and flips[number]), data
            if not upcoming:
                return
            current, skipped = upcoming, 0


class ShardStream(torch.utils.data.IterableDataset):
    """What a loader reads of a data set in shards, from a step on: the share of one process of each batch.

    Each worker of the loader has a lane of its own. The stream depends on the numbers of processes and of workers.
    """

    def __init__(
        self, dataset: ImageDataset, *, seed: int, step: int, share: int, rank: int, world_size: int, workers: int
    ):
        assert isinstance(dataset.files, ShardFiles)
        self.dataset, self.files = dataset, dataset.files
        self.seed, self.step, self.share, self.rank = seed, step, share, rank
        self.lanes_here, self.lanes = max(workers, 1), max(workers, 1) * world_size
        if len(self.files.names) < self.lanes:
            raise UserError(
                f"{self.files.path} has {plural(len(self.files.names), 'image')} for {self.lanes} processes that read; "
                "take fewer --workers, or fewer processes"
            )

    def lane(self, number: int) -> Lane:
        """A lane of this process."""
        block = int(min(max(BLOCK_BYTES / self.files.mean_bytes, 1), BLOCK_IMAGES))
        counts = self.files.index.counts.tolist()
        return Lane(counts, self.rank * self.lanes_here + number, self.lanes, self.seed, block, self.dataset.mirror)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The images of one worker, whose batches the loader takes in turn, beginning with worker 0."""
        info = torch.utils.data.get_worker_info()
        number = (self.step + (info.id if info else 0)) % self.lanes_here
        batches = len(range(number, self.step, self.lanes_here))  # that this lane has given before
        for index, data in self.lane(number).images(self.files, batches * self.share):
            yield self.dataset.item(index, data)
