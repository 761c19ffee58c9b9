"""Atomic writes: a file is complete, or it does not exist. Also names and folders of files."""

from __future__ import annotations

import difflib
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from torch_utils.errors import DiskFull, UserError

DISK_FULL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
MAX_NAME = 255  # bytes in a file's name, on common file systems
RUN_MARKER = "adaconv-run.txt"  # a file in the folder of every run, which is therefore no part of a data set around it


@contextmanager
def atomic_path(path: str | os.PathLike, sync: bool = True) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; at the end of the block, the file there is renamed to `path`.

    Readers find the old file or the new one, never a part of it, even after a crash. After an exception, the old file
    remains. With `sync`, the data is on the disk before the file is renamed, which takes milliseconds. Without it, a
    power failure may lose the file: for files that can be made again.
    """
    path = Path(path)
    end = f".{os.getpid()}-{threading.get_native_id()}.tmp"
    beside = path.with_name(f".{short_name(path.name, MAX_NAME - 1 - len(end))}{end}")
    try:
        yield beside
        if sync:
            with open(beside, "rb") as file:
                os.fsync(file.fileno())
        os.replace(beside, path)
        if sync:
            _sync_folder(path.parent)
    except BaseException:
        with suppress(FileNotFoundError):
            beside.unlink()
        raise


@contextmanager
def atomic_write(path: str | os.PathLike, sync: bool = True) -> Iterator[BinaryIO]:
    """Opens a binary file for writing, which replaces `path` at the end of the block, as in `atomic_path`."""
    with atomic_path(path, sync) as beside, open(beside, "wb") as file:
        yield file


def write_file(path: str | os.PathLike, data: bytes | memoryview, sync: bool = True) -> None:
    """Writes a file as `atomic_write` does. Creates its folder, but not the parents of that. Raises DiskFull."""
    path = Path(path)
    with _report_full_disk(path, len(data)):
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
        with atomic_write(path, sync) as file:
            file.write(data)


def append_file(path: str | os.PathLike, data: bytes) -> None:
    """Appends `data` to a file: all of it, or nothing after an error. Raises DiskFull."""
    with _report_full_disk(Path(path), len(data)), open(path, "ab", buffering=0) as file:
        end = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def make_folder(folder: Path) -> None:
    """Creates the folder of a result if it does not exist. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is not a folder" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"cannot write into {folder}: {reason}; name another place with --out") from None


def cache_folder() -> Path:
    """The folder of compiled and downloaded files: $ADACONV_CACHE, $XDG_CACHE_HOME/adaconv or ~/.cache/adaconv."""
    if folder := os.environ.get("ADACONV_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "adaconv"


def short_name(name: str, limit: int = MAX_NAME) -> str:
    """The name itself, or, where it has more than `limit` bytes, its beginning and a digest of the whole name."""
    data = os.fsencode(name)
    if len(data) <= limit:
        return name
    digest = "-" + hashlib.sha256(data).hexdigest()[:12]
    return data[: limit - len(digest)].decode(errors="ignore") + digest


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files that `atomic_write` left under `folder` when a process was killed."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def _report_full_disk(path: Path, size: int) -> Iterator[None]:
    """Raises DiskFull in place of an OSError that says that there is no room for the `size` bytes of `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL_ERRORS:
            raise
        free = shutil.disk_usage(path.parent if path.parent.exists() else path.parent.parent).free
        raise DiskFull(f"no room for {path}: {size:,} bytes needed, {free:,} free ({error.strerror})") from None


def _sync_folder(folder: Path) -> None:
    """Writes a renaming in a folder to the disk, so that it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems do not support this
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def missing(path: Path, otherwise: str) -> str:
    """A message that `path` does not exist, with a file of a similar name, or with what to do `otherwise`."""
    nearby = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    close = [name for name in nearby if Path(name).stem == path.name]
    if close := close or difflib.get_close_matches(path.name, nearby, n=1):
        return f"there is no {path}; did you mean {path.parent / close[0]}?"
    return f"there is no {path}; {otherwise}"
