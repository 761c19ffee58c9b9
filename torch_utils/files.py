"""Files: opening them without blocking or following links, atomic writes, names and folders.

What a user names may be a link, as to a data set on another disk. What this project writes by itself (temporary files,
records of a run, the cache) is created exclusively, and never written through a link that someone else may have made.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from torch_utils.errors import DiskFull, UserError

DISK_FULL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
ADDRESS = re.compile("([a-z][a-z0-9+.-]+):/+(.*)", re.ASCII | re.IGNORECASE | re.DOTALL)  # a Path has one slash
MAX_NAME = 255  # bytes in a file's name, on common file systems
RUN_MARKER = "adaconv-run.txt"  # a file in the folder of every run, which is therefore no part of a data set around it

# --- reading --------------------------------------------------------------------------------------------------------


def regular(path: str | os.PathLike) -> Path:
    """The path, for a library that opens files itself, if a regular file is there, or a link to one.

    Raises OSError for anything else: a pipe or a device would block for ever, or never end.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, and only files are read", os.fspath(path))
    return Path(path)


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a regular file, or a link to one, for reading. Raises OSError as `regular` does."""
    return open(regular(path), "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def read_regular(path: str | os.PathLike, limit: int) -> bytes:
    """The content of a regular file of up to `limit` bytes. Raises OSError, also for a larger file."""
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes", os.fspath(path))
    return data


# --- writing --------------------------------------------------------------------------------------------------------


def open_own(path: str | os.PathLike, mode: str) -> BinaryIO:
    """Opens a file that this project has made itself, unbuffered: "xb" creates it, "ab" appends to it.

    Raises OSError where something else has been put in its place, such as a link to a file elsewhere, by a symbolic
    or a hard link: nothing is written through it.
    """

    def opener(name: str, flags: int) -> int:
        descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            os.close(descriptor)
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
        return descriptor

    try:
        return cast(BinaryIO, open(path, mode, buffering=0, opener=opener))
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # ENXIO: a pipe that nobody reads
            error.strerror = "it is a link or a pipe, through which nothing is written"
        raise


def check_own_folder(folder: Path) -> None:
    """Raises UserError where a folder of this project's own making is a link to one elsewhere, or no folder."""
    with suppress(OSError):  # it is not there, or reading it reports the error
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise UserError(f"{folder} is a link or a file instead of a folder; move the folder itself there")


def check_own_file(path: Path) -> None:
    """Raises UserError where a file that this project appends to is a link to one elsewhere, or no regular file."""
    with suppress(OSError):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise UserError(
                f"{path} is a link, a pipe or a folder, and would be written to; put a copy of the file there"
            )


def real_path(path: str | os.PathLike) -> Path:
    """Where a result is that may be named by a link, as to another disk: it is written there, and the link stays.

    Raises UserError for links in a circle.
    """
    real = Path(os.path.realpath(path))
    if any(os.path.islink(part) for part in (real, *real.parents)):
        raise UserError(f"{path} is a link that leads to itself, or lies behind one; name another path")
    return real


@contextmanager
def atomic_path(path: str | os.PathLike, sync: bool = True, replace: bool = True) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; at the end of the block, the file there is renamed to `path`.

    Readers find the old file or the new one, never a part of it, even after a crash. After an exception, the old file
    remains. The temporary file is new, under a name that nobody can foresee. With `sync`, the data is on the disk
    before the file is renamed, which takes milliseconds. Without it, a power failure may lose the file: for files that
    can be made again. Raises UserError where `path` is a folder.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise UserError(f"cannot write {path}: it is a folder; move it, or name another file")
    beside = temporary_path(path)
    os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield beside
        if sync:
            with open(beside, "rb") as file:
                os.fsync(file.fileno())
        if replace:
            os.replace(beside, path)
        else:
            _move_to_free_name(beside, path)
        if sync:
            _sync_folder(path.parent)
    except BaseException:
        with suppress(FileNotFoundError):
            beside.unlink()
        raise


def _move_to_free_name(beside: Path, path: Path) -> None:
    """Renames a file unless there is another one of that name, for which a second name is what alone is atomic."""
    try:
        os.link(beside, path)
        beside.unlink()
    except OSError as error:  # the name is not free, or the file system has one name for each file
        if isinstance(error, FileExistsError) or os.path.lexists(path):
            raise UserError(
                f"{path} was made meanwhile by another program, and stays as it is; name another file, or replace it "
                "with --overwrite"
            ) from None
        os.replace(beside, path)


def temporary_path(path: Path) -> Path:
    """A hidden name beside `path`, that nobody can foresee and `remove_leftovers` knows."""
    end = f".{secrets.token_hex(8)}.tmp"
    return path.with_name(f".{short_name(path.name, MAX_NAME - 1 - len(end))}{end}")


@contextmanager
def atomic_write(path: str | os.PathLike, sync: bool = True, replace: bool = True) -> Iterator[BinaryIO]:
    """Opens a binary file for writing, which replaces `path` at the end of the block, as in `atomic_path`."""
    with atomic_path(path, sync, replace) as beside, open(beside, "wb") as file:
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
    """Appends `data` to a file of our own: all of it, or nothing after an error. Raises DiskFull and UserError."""
    check_own_file(Path(path))
    with _report_full_disk(Path(path), len(data)), open_own(path, "ab") as file:
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


def short_name(name: str, limit: int = MAX_NAME) -> str:
    """The name itself, or, where it has more than `limit` bytes, its beginning and a digest of the whole name."""
    data = os.fsencode(name)
    if len(data) <= limit:
        return name
    digest = "-" + hashlib.sha256(data).hexdigest()[:12]
    return data[: limit - len(digest)].decode(errors="ignore") + digest


def as_typed(path: Path) -> str:
    """A path as one would type it in the current folder."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def check_inputs_survive(
    outs: Iterable[str | os.PathLike], inputs: Iterable[str | os.PathLike], remedy: str = "name another file"
) -> None:
    """Raises UserError, ending with the remedy, if a result would replace a file that is read, or another result."""
    sources, written = {os.path.realpath(path) for path in inputs}, set[str]()
    for out in outs:
        real = os.path.realpath(out)
        if real in sources:
            raise UserError(f"{out} is one of the files to read and would be replaced; {remedy}")
        if real in written:
            raise UserError(f"{out} is the name of two results; {remedy} for one of them")
        written.add(real)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files that `atomic_write` left under `folder` when a process was killed."""
    for path in folder.rglob(".*.tmp"):
        if not path.is_dir():
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


def missing_message(path: Path, otherwise: str) -> str:
    """A message that `path` does not exist, with a file of a similar name, or with what to do `otherwise`."""
    if address := ADDRESS.match(str(path)):
        scheme, rest = address.groups()
        if scheme.lower() == "file":
            return f"{scheme}://{rest} is an address; name the file by its path, without {scheme}://"
        is_hub = scheme.lower() == "hf" or rest.lower().startswith("huggingface.co/")
        remedy = otherwise if is_hub else "download it, and name the file"
        return f"{scheme}://{rest} is an address, and not a file here; {remedy}"
    if os.path.islink(path):  # False for names that are too long, where Path raises
        return f"{path} is a link that leads nowhere; {otherwise}"
    nearby: list[str] = []
    with suppress(OSError):  # no such folder, or one that may not be read
        nearby = sorted(os.listdir(path.parent))
    close = [name for name in nearby if Path(name).stem == path.name]
    if close := close or [name for name in similar(path.name, nearby) if same_kind(path, name)]:
        return f"there is no {path}; did you mean {path.parent / close[0]}?"
    if not nearby and path.parent.name:  # a folder with a wrong name
        with suppress(OSError):
            for folder in similar(path.parent.name, sorted(os.listdir(path.parent.parent))):
                if os.path.exists(meant := path.parent.parent / folder / path.name):
                    return f"there is no {path}; did you mean {meant}?"
    return f"there is no {path}; {otherwise}"


def similar(name: str, names: Sequence[str]) -> list[str]:
    """Those of `names` that `name` may have been meant for, the most similar one first."""
    return difflib.get_close_matches(name, names, cutoff=0.75)


def same_kind(path: Path, name: str) -> bool:
    """Whether a name has the extension of a path, or one of them has none."""
    return len({path.suffix.lower(), Path(name).suffix.lower()} - {""}) < 2
