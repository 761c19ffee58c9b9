"""What metrics know of a set of images, worked out by all processes together and gathered in the images' order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from media.loader import read_batches
from metrics.frechet import Moments
from torch_utils import distributed
from torch_utils.errors import DiskFull
from torch_utils.files import cache_folder, write_file

# The images of a set by their numbers, a tensor [N, C, H, W] for each batch of numbers.
Source = Callable[[Sequence[Sequence[int]]], Iterator[Tensor]]

TURN = 8  # batches between two meetings of the processes, so that a GPU need not wait after each


def dataset_source(dataset: Dataset, chosen: Sequence[int], workers: int = 0) -> Source:
    """The images `chosen` of a data set, whose items are images or tuples that begin with one."""

    def read(batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        numbers = [[chosen[number] for number in batch] for batch in batches]
        # a generator of its own: else the loader draws from the global random state that the training depends on
        loader = DataLoader(dataset, batch_sampler=numbers, num_workers=workers, generator=torch.Generator())
        for item in read_batches(loader):
            yield item if isinstance(item, Tensor) else item[0]

    return read


def described(
    source: Source,
    count: int,
    batch: int,
    describe: Callable[[Tensor], dict[str, Tensor]],
    title: str = "",
    turn: int = TURN,
    first: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """Yields what `describe` makes of the images first … count − 1, in this order; with several processes, in rank 0.

    The others work, and yield nothing. Every image is described once, in a batch that is the same for any number of
    processes. With a `title`, the progress is shown.
    """
    batches = [range(start, min(start + batch, count)) for start in range(first, count, batch)]
    rank, world = distributed.rank(), distributed.world_size()
    turn = max(1, min(turn, len(batches) // world))
    turns = [batches[start : start + turn] for start in range(0, len(batches), turn)]
    images = source([numbers for own in turns[rank::world] for numbers in own])
    shown = None if title and rank == 0 else True
    with tqdm(desc=title, total=count, initial=first, unit="pic", disable=shown) as bar:
        for start in range(0, len(turns), world):
            parts = []
            if start + rank < len(turns):
                for part in islice(images, len(turns[start + rank])):
                    parts.append(describe(part))
                    bar.update(min(world * len(part), count - bar.n))
            own = {key: torch.cat([part[key] for part in parts]).cpu() for key in (parts[0] if parts else {})}
            for part in distributed.gather_on_rank_0(own):
                if part:
                    yield part


class Features:
    """Up to `count` feature vectors, float32 [count, D]."""

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
        return {"features": self._features[: self.seen]}


COLLECTORS = {"moments": Moments, "features": Features}


# --- kept for the next time -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CacheKey:
    """All that statistics of real images depend on."""

    content: str  # of the images, flipped or not, in their order
    shape: tuple[int, ...]  # [C, H, W]
    count: int
    kind: str  # of `evaluator.Statistic`
    layer: str
    detector: str  # SHA-256 of its weights; of patches, how they are drawn
    version: int = 1

    @property
    def path(self) -> Path:
        name = hashlib.sha256(self.text.encode()).hexdigest()[:32]
        return cache_folder() / "statistics" / f"{self.kind}-{name}.safetensors"

    @property
    def text(self) -> str:
        return json.dumps(asdict(self))


def read_cached(key: CacheKey) -> dict[str, Tensor] | None:
    """Statistics that were kept; None where there are none, or they are damaged."""
    try:
        with safe_open(key.path, framework="pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError):
        return None
    return tensors if meta == {"key": key.text, "sha256": _digest(tensors)} else None


def write_cached(key: CacheKey, tensors: dict[str, Tensor]) -> str:
    """Keeps statistics for the next time. Returns why it cannot, or nothing."""
    try:
        key.path.parent.mkdir(parents=True, exist_ok=True)
        write_file(key.path, save(tensors, metadata={"key": key.text, "sha256": _digest(tensors)}))
    except (DiskFull, OSError) as error:
        return getattr(error, "message", "") or f"cannot write {key.path}: {error}"
    return ""


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
