"""Files that are whole or not there at all."""

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

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
MAX_NAME = 255  # bytes of a file's name on the usual file systems


@contextmanager
def atomic_path(path: str | os.PathLike, sync: bool = True) -> Iterator[Path]:
    """Gives a path beside `path` to write to, which takes the name `path` when everything in it is on the disk.

    A reader, or the next start after a crash, finds the old file or the new one and never half of one. On an
    exception the old file stays. Without `sync` the disk is not waited for, which takes milliseconds: for files that
    can be made again, since a power cut may cost them.
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
    """Opens a binary file for writing that is whole or not there at all, as `atomic_path` says."""
    with atomic_path(path, sync) as beside, open(beside, "wb") as file:
        yield file


def write_file(path: str | os.PathLike, data: bytes | memoryview, sync: bool = True) -> None:
    """Writes a file, and its folder if need be, as `atomic_write` does. Raises DiskFull."""
    path = Path(path)
    with _told_when_full(path, len(data)):
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
        with atomic_write(path, sync) as file:
            file.write(data)


def append_file(path: str | os.PathLike, data: bytes) -> None:
    """Writes all of `data` at the end of a file, or nothing of it. Raises DiskFull."""
    with _told_when_full(Path(path), len(data)), open(path, "ab", buffering=0) as file:
        end = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def make_folder(folder: Path) -> None:
    """Makes the folder that a result goes into, if need be. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is not a folder" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"cannot write into {folder}: {reason}; name another place with --out") from None


def cache_folder() -> Path:
    """Where what was compiled or downloaded is kept: $ADACONV_CACHE, $XDG_CACHE_HOME/adaconv or ~/.cache/adaconv."""
    if own := os.environ.get("ADACONV_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "adaconv"


def short_name(name: str, limit: int = MAX_NAME) -> str:
    """The name, or where it has more bytes than that its beginning with a digest of all of it, which differs."""
    data = os.fsencode(name)
    if len(data) <= limit:
        return name
    digest = "-" + hashlib.sha256(data).hexdigest()[:12]
    return data[: limit - len(digest)].decode(errors="ignore") + digest


def remove_leftovers(folder: Path) -> None:
    """Removes what `atomic_write` left half written under `folder` when its process was killed."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def _told_when_full(path: Path, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        free = shutil.disk_usage(path.parent if path.parent.exists() else path.parent.parent).free
        raise DiskFull(f"no room for {path}: {size:,} bytes needed, {free:,} free ({error.strerror})") from None


def _sync_folder(folder: Path) -> None:
    """Brings a change of names to the disk, so that it outlives a power cut."""
    number = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no such thing
            os.fsync(number)
    finally:
        os.close(number)


def missing(path: Path, otherwise: str) -> str:
    """That there is no `path`, and what there is instead, or what to do `otherwise`."""
    nearby = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    close = [name for name in nearby if Path(name).stem == path.name]
    if close := close or difflib.get_close_matches(path.name, nearby, n=1):
        return f"there is no {path}; did you mean {path.parent / close[0]}?"
    return f"there is no {path}; {otherwise}"
