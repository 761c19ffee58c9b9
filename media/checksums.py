"""Checksums of the files in a folder. Each is read once; after that, its size and its time tell whether it changed.

The checksums are kept in the cache folder, one file for each folder of images.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from media.decode import Unusable
from torch_utils.cache import cache_folder, check_private, make_private_folder
from torch_utils.errors import DiskFull, one_line, printable
from torch_utils.files import open_regular, write_file
from torch_utils.schema import read_json

MAX_CACHE_BYTES = 1 << 30
CHUNK = 1 << 20  # bytes that are read at a time
SETTLED_NS = 2 * 10**9  # a file that was written so shortly ago can change once more within one tick of its time

Kept = dict[str, list[int]]  # by a file's name: its size, its time of modification in nanoseconds, and its CRC32


def folder_checksums(folder: Path, paths: Mapping[str, str], progress: bool = False) -> dict[str, int]:
    """The CRC32 of each file of `paths`, from the name that it gets in the result to its path within `folder`.

    A progress bar is shown where `progress` is set or many files have to be read. Raises Unusable.
    """
    cache = cache_folder() / "checksums" / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:24]}.json"
    kept = _read(cache)
    found: dict[str, int] = {}
    fresh: Kept = {}
    bar = tqdm(paths.items(), desc="checksums", unit=" images", delay=0 if progress else 3, disable=None)
    for name, path in bar:
        try:
            status = os.stat(folder / path)
            size, written = status.st_size, status.st_mtime_ns
            match kept.get(path):
                case [old_size, old_written, int(crc)] if (old_size, old_written) == (size, written):
                    found[name] = crc
                    continue
            found[name] = crc32(folder / path)
        except OSError as error:
            raise Unusable(f"{printable(name)} cannot be read ({one_line(error.strerror or error)})") from None
        if time.time_ns() - written > SETTLED_NS:
            fresh[path] = [size, written, found[name]]
    if fresh:
        with suppress(OSError, DiskFull):  # without a cache, files are read again the next time
            make_private_folder(cache.parent)
            still = {path: entry for path, entry in kept.items() if os.path.lexists(folder / path)}
            write_file(cache, json.dumps(still | fresh).encode(), sync=False)
    return found


def crc32(path: Path) -> int:
    """The CRC32 of a file, of which one chunk at a time is in memory. Raises OSError."""
    crc = 0
    with open_regular(path) as file:
        while chunk := file.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def _read(cache: Path) -> Kept:
    """What was kept; nothing where there is no such file, or where it is damaged."""
    try:
        check_private(cache)
        kept = read_json(cache, MAX_CACHE_BYTES)
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
