"""Data sets in shards: tar files of WebDataset, Parquet files, or data sets of the Hugging Face Hub, read as streams.

On the Hub, the library `datasets` finds the shards; it is installed by `pip install 'datasets>=4.0'`, with what reads
Parquet files. What a stream does not tell, the number of its images and their labels, is measured once and kept beside
it.
"""

from __future__ import annotations

import errno
import glob
import io
import os
import time
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np

from media.decode import Unusable
from media.shard_index import HUB, ShardIndex, measure, read_index, write_index
from media.shard_rows import MAX_IMAGE_BYTES, Row, class_names, rows
from torch_utils.errors import UserError, WorkerError, one_line, printable

SUFFIXES = (".tar", ".parquet")
OPEN_SHARDS = 16  # whose positions a reader keeps, so that it need not start at the beginning of a shard again
RETRY_SECONDS = (1, 4, 16)  # before a shard that could not be read over a network is tried again


def is_sharded(path: str) -> bool:
    """Whether --data names shards: `hf://owner/name`, or a name or pattern of tar or Parquet files."""
    return path.startswith(HUB) or path.lower().endswith(SUFFIXES)


@lru_cache(maxsize=4)
def find_shards(path: str) -> tuple[str, ...]:
    """The addresses of all shards, in the order of their names. Raises UserError."""
    try:
        if path.startswith(HUB):
            found = shards_on_hub(path)
        elif "://" in path:
            import fsspec

            filesystem, _, paths = fsspec.get_fs_token_paths(path)
            found = [filesystem.unstrip_protocol(name) for name in paths]
        else:
            there = [path] if os.path.isfile(path) else glob.glob(path, recursive=True)
            found = [os.path.abspath(name) for name in there]
    except UserError:
        raise
    except Exception as error:  # of the network, of the Hub, of a file system: the libraries raise many kinds
        raise UserError(
            f"cannot find {path}: {one_line(error, 200)}; name tar or Parquet files, or hf://owner/name"
        ) from None
    if not found:
        raise UserError(f"there is no {path}; name the shards, with a pattern such as 'shards/*.tar' in quotes")
    if others := [name for name in found if not name.lower().endswith(SUFFIXES)]:
        raise UserError(
            f"{path} consists of files such as {printable(others[0])}; only tar and Parquet files can be read as shards"
        )
    return tuple(sorted(found))


def shards_on_hub(path: str) -> list[str]:
    """The shards of `hf://owner/name`, also as `hf://owner/name@revision`, with a configuration after another `/`."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"{path} needs the library datasets; install it with: pip install 'datasets>=4.0'") from None
    owner, _, rest = path.removeprefix(HUB).removeprefix("datasets/").partition("/")
    repository, _, configuration = rest.partition("/")
    name, _, revision = repository.partition("@")
    if not owner or not name:
        raise UserError(f"{path} names no data set of the Hub; write hf://owner/name")
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    builder = datasets.load_dataset_builder(f"{owner}/{name}", configuration or None, revision=revision or None)
    files = builder.config.data_files or {}
    return list(map(str, files["train"] if "train" in files else next(iter(files.values()), [])))


def may_pass(error: Exception, address: str) -> bool:
    """Whether a shard may be readable when it is tried again: a network failed, which a damaged file never mends."""
    if isinstance(error, OSError) and "://" not in address:
        return isinstance(error, ConnectionError | TimeoutError) or error.errno in (errno.EIO, errno.ESTALE)
    return isinstance(error, OSError)


class ShardReadError(WorkerError):
    """A shard that cannot be read."""


class ShardNames(Sequence[str]):
    """The names of all images, `train-0003.tar#417`, without a list of millions of them."""

    def __init__(self, addresses: Sequence[str], counts: Sequence[int]):
        self.shards = [address.rpartition("/")[2] for address in addresses]
        self.starts = np.cumsum([0, *counts]).tolist()  # the number of each shard's first image, and of all images

    def __len__(self) -> int:
        return self.starts[-1]

    def locate(self, number: int) -> tuple[int, int]:
        """The shard of an image, and its position in there."""
        if not 0 <= number < len(self):
            raise IndexError(f"image {number} of {len(self)}")
        shard = bisect_right(self.starts, number) - 1
        return shard, number - self.starts[shard]

    def number(self, name: str) -> int:
        """The number of the image with this name. Raises KeyError."""
        shard, _, position = name.rpartition("#")
        return self.starts[self._positions[shard]] + int(position)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {shard: position for position, shard in enumerate(self.shards)}

    @overload
    def __getitem__(self, number: int) -> str: ...

    @overload
    def __getitem__(self, number: slice) -> list[str]: ...

    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        shard, position = self.locate(number)
        return f"{self.shards[shard]}#{position}"


class ShardFiles:
    """The images in shards, under the interface of `media.image_files.ImageFiles`. Reading in their order is fast.

    Raises UserError if a shard cannot be read.
    """

    random_access = False
    notes: tuple[str, ...] = ()

    def __init__(self, path: str):
        self.path = path
        self.addresses = find_shards(path)
        shards = [address.rpartition("/")[2] for address in self.addresses]
        if twice := next((name for name, count in Counter(shards).items() if count > 1), None):
            raise UserError(
                f"{path}: two shards have the name {printable(twice)}; rename one of them, or name one folder only"
            )
        index = read_index(self.addresses)
        if index is None:
            index = measure(self.addresses, self._rows)
            write_index(index)
        self.index: ShardIndex = index
        self.names = ShardNames(self.addresses, index.counts.tolist())
        if not len(self.names):
            raise UserError(f"{path} holds no images; name the shards that hold them")
        self._open: OrderedDict[int, tuple[int, Iterator[Row]]] = OrderedDict()
        self._process = os.getpid()

    @property
    def name(self) -> str:
        """What the data set is called: the repository on the Hub, or the folder of the shards."""
        if self.path.startswith(HUB):
            return self.path.removeprefix(HUB).removeprefix("datasets/").split("/")[1]
        return Path(self.addresses[0]).parent.name

    @property
    def labels(self) -> np.ndarray | None:
        """The classes of all images, -1 where one has none, as int32 [images]; None if no image has one."""
        return self.index.labels if (self.index.labels >= 0).any() else None

    @property
    def fingerprint(self) -> str:
        return self.index.fingerprint

    @property
    def mean_bytes(self) -> float:
        """The mean size of an image file."""
        return float(self.index.sizes.sum() / len(self.names))

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; () if there are none, or too few for the labels."""
        names = () if self.labels is None else class_names(self.addresses[0])
        return names if self.labels is not None and self.labels.max() < len(names) else ()

    def labels_by_name(self) -> dict[str, int] | None:
        """`labels` of the images that have one, by their names."""
        if self.labels is None:
            return None
        return {name: int(label) for name, label in zip(self.names, self.labels, strict=True) if label >= 0}

    def choose(self, count: int, seed: int) -> list[int]:
        """The numbers of `count` images, in order, of as few shards as hold them, which are drawn by `seed`."""
        chosen: list[int] = []
        for shard in np.random.default_rng(seed).permutation(len(self.names.shards)).tolist():
            first, after = self.names.starts[shard], self.names.starts[shard + 1]
            chosen += range(first, min(after, first + count - len(chosen)))
        return sorted(chosen)

    def read(self, name: str, limit: int = MAX_IMAGE_BYTES) -> bytes:
        """An image file. Raises Unusable, and UserError where its shard cannot be read."""
        data = self.read_number(self.names.number(name))
        if len(data) > limit:
            raise Unusable(f"is larger than {limit >> 20} MiB")
        return data

    def open(self, name: str) -> BinaryIO:
        """An image file in memory. Raises Unusable, and UserError where its shard cannot be read."""
        return io.BytesIO(self.read(name))

    def read_number(self, number: int) -> bytes:
        """`read` by the number of an image: a shard is read on from where its last image was, if that lies before."""
        if self._process != os.getpid():  # a fork must not share positions in files
            self._open, self._process = OrderedDict(), os.getpid()
        shard, position = self.names.locate(number)
        at, stream = self._open.pop(shard, (position + 1, iter(())))
        if at > position:
            at, stream = position, self._rows(shard, position)
        data = next((data for at, (data, _) in enumerate(stream, at) if at == position), None)
        if data is None:
            raise ShardReadError(f"{self.path}: the shard {self.addresses[shard]} has fewer images than it had before")
        self._open[shard] = (position + 1, stream)
        while len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)
        return data

    def _rows(self, shard: int, start: int = 0) -> Iterator[Row]:
        """`media.shard_rows.rows`, tried again where reading fails, at each row as often.

        Raises UserError with the name of the shard.
        """
        waits = iter(RETRY_SECONDS)
        while True:
            try:
                for row in rows(self.addresses[shard], start):
                    yield row
                    start, waits = start + 1, iter(RETRY_SECONDS)
                return
            except UserError:
                raise
            except Exception as error:  # of the network, of the file, of its format: the libraries raise many kinds
                wait = next(waits, None) if may_pass(error, self.addresses[shard]) else None
                if wait is None:
                    address = printable(self.addresses[shard])
                    raise ShardReadError(
                        f"{self.path}: the shard {address} cannot be read at its image {start} "
                        f"({one_line(error) or type(error).__name__}); mend it, or leave it out"
                    ) from None
                time.sleep(wait)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict(), "_process": -1}
