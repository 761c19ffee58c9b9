"""What a stream of shards does not tell: how many images each shard has, their size in bytes, labels and checksums.

It is measured in one pass over all shards, and kept beside them, or in the cache folder where that cannot be written.
"""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from media.labels import MAX_CLASSES
from media.shard_rows import Row
from torch_utils.arrays import Arrays, open_arrays
from torch_utils.cache import cache_folder, check_private, make_private_folder
from torch_utils.errors import DiskFull
from torch_utils.files import write_file

VERSION = 2  # of the file, and of what is taken for a whole shard and for a label
HUB = "hf://"
CHANGING = ("size", "ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")  # of fsspec's info


@dataclass(frozen=True)
class ShardIndex:
    """Arrays with an entry for each shard, and the labels of all images in the order of the shards."""

    addresses: tuple[str, ...]
    stamps: tuple[str, ...]  # size and time of each file, by which a changed one is noticed; empty where unknown
    counts: np.ndarray  # int64 [shards]: images
    sizes: np.ndarray  # int64 [shards]: bytes of all image files together
    checksums: np.ndarray  # uint32 [shards]: CRC32 of all image files, one after another
    labels: np.ndarray  # int32 [images]: classes; -1 where there is none

    @property
    def fingerprint(self) -> str:
        """A hash, 16 hex digits, of the contents and the labels, which stays as it is where shards are moved."""
        digest = hashlib.sha256()
        for address, count, checksum in zip(self.addresses, self.counts, self.checksums, strict=True):
            digest.update(f"{address.rpartition('/')[2]}\0{count}\0{checksum}\n".encode("utf-8", "surrogateescape"))
        digest.update(self.labels.astype("<i4").tobytes())
        return digest.hexdigest()[:16]


def measure(
    addresses: Sequence[str], rows: Callable[[int], Iterator[Row]], title: str = "counting images"
) -> ShardIndex:
    """Reads all shards. `rows(shard)` yields image files with labels. Raises what `rows` raises."""
    counts, sizes, checksums = (np.zeros(len(addresses), kind) for kind in (np.int64, np.int64, np.uint32))
    labels: list[np.ndarray] = []
    stamps = stamps_of(addresses)
    with tqdm(desc=title, unit=" images", disable=None) as bar:
        for shard in range(len(addresses)):
            crc, found = 0, []
            for data, label in rows(shard):
                crc = zlib.crc32(data, crc)
                sizes[shard] += len(data)
                found.append(label)
                bar.update()
            counts[shard], checksums[shard] = len(found), crc
            labels.append(np.array(found, np.int32))
    return ShardIndex(tuple(addresses), stamps, counts, sizes, checksums, np.concatenate(labels))


def read_index(addresses: Sequence[str]) -> ShardIndex | None:
    """What was measured of these shards before; None where nothing was, or where a shard has changed since."""
    for path in index_paths(addresses):
        with suppress(Exception):  # of nearly any kind, for a damaged file: then it is counted again
            if path.is_relative_to(cache_folder()):
                check_private(path)
            with open_arrays(path) as file:
                index = _parse(file, addresses)
            if index is not None and index.stamps == stamps_of(addresses):
                return index
    return None


def _parse(file: Arrays, addresses: Sequence[str]) -> ShardIndex | None:
    """The index in a file, which need not be ours; None if it is of other shards. Raises KeyError and ValueError."""
    shards = (len(addresses),)
    names = file.array("addresses", shards)
    if int(file.array("version", ())) != VERSION or tuple(names.tolist()) != tuple(map(_name, addresses)):
        return None
    stamps = tuple(file.array("stamps", shards).tolist())
    counts, sizes = (file.array(name, shards) for name in ("counts", "sizes"))
    checksums, labels = file.array("checksums", shards), file.array("labels", (None,))
    if [array.dtype.str[1:] for array in (counts, sizes, checksums, labels)] != ["i8", "i8", "u4", "i4"]:
        raise ValueError("numbers of other types")
    if counts.min() < 0 or sizes.min() < 0 or sum(counts.tolist()) != len(labels):
        raise ValueError("numbers of images that do not fit the labels")
    if len(labels) and not (labels.min() >= -1 and labels.max() < MAX_CLASSES):
        raise ValueError("labels that are no classes")
    return ShardIndex(tuple(addresses), stamps, counts, sizes, checksums, labels)


def write_index(index: ShardIndex) -> None:
    """Keeps what was measured in the first place that can be written; in none, it is measured again the next time."""
    buffer = io.BytesIO()
    np.savez(  # not compressed: labels that are all alike would become so small that the file looks like a bomb
        buffer,
        version=VERSION,
        addresses=np.array(list(map(_name, index.addresses))),
        stamps=np.array(index.stamps),
        counts=index.counts,
        sizes=index.sizes,
        checksums=index.checksums,
        labels=index.labels,
    )
    for path in index_paths(index.addresses):
        with suppress(OSError, DiskFull):
            if path.is_relative_to(cache_folder()):
                make_private_folder(path.parent)
            write_file(path, buffer.getbuffer())
            return


def index_paths(addresses: Sequence[str]) -> list[Path]:
    """Where an index may lie: beside the shards if they are local files of one folder, and in the cache folder.

    Beside them it is found by their names, also where the folder is moved. In the cache folder, which holds those of
    all data sets, it is found by their whole addresses.
    """
    paths = [cache_folder() / "shards" / _file_of(addresses)]
    folders = {os.path.dirname(address) for address in addresses}
    if len(folders) == 1 and "://" not in addresses[0]:
        paths.insert(0, Path(folders.pop(), _file_of(list(map(_name, addresses)))))
    return paths


def _file_of(names: Sequence[str]) -> str:
    digest = hashlib.sha256(os.fsencode("\n".join(names))).hexdigest()
    return f"adaconv-shards-{digest[:12]}.npz"


def stamps_of(addresses: Sequence[str]) -> tuple[str, ...]:
    """`stamp` of each address; servers are asked for sixteen at a time."""
    with ThreadPoolExecutor(16) as pool:
        return tuple(pool.map(stamp, addresses))


def stamp(address: str) -> str:
    """By what a changed file is noticed; "" where it is unknown.

    That is size and time of a local file, and what a server says of them. The address of a file on the Hub names the
    commit that it is of, which never changes.
    """
    if "://" not in address:
        with suppress(OSError):
            status = os.stat(address)
            return f"{status.st_size} {status.st_mtime_ns}"
    elif not address.startswith(HUB):
        import fsspec

        with suppress(Exception):  # of the network: the libraries raise many kinds, and reading the file tells of it
            filesystem, path = fsspec.url_to_fs(address)
            info = filesystem.info(path)
            return " ".join(str(info[name]) for name in CHANGING if name in info)
    return ""


def _name(address: str) -> str:
    """A local file's name without its folder, which may be moved; any other address as it is."""
    return address if "://" in address else os.path.basename(address)
