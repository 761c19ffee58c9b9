"""What the tests of hostile files share: how a script has to refuse one, and that nothing else has happened."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.scripts import script_here
from torch_utils.errors import UserError

SECONDS = 5.0  # a reader that takes longer hangs
MAX_LINE = 1000  # characters of an error


class Hung(Exception):
    """A reader did not come back."""


@contextmanager
def no_hang(seconds: float = SECONDS) -> Iterator[None]:
    """Raises Hung where the block takes longer."""

    def stop(*_: object) -> None:
        raise Hung(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def is_clean(text: str) -> bool:
    """Whether a terminal obeys nothing in a text: no control codes but line breaks, nothing that reverses text."""
    return all(line.isprintable() for line in text.split("\n"))


def refused(name: str, *arguments: object, cwd: Path | None = None) -> str:
    """The one line in which a script refuses a file, with exit code 2."""
    with no_hang():
        result = script_here(name, *arguments, cwd=cwd)
    errors = [line for line in result.stderr.split("\n") if line.startswith("error: ")]
    assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
    assert len(errors) == 1 and "Traceback" not in result.stderr, result.stderr
    assert is_clean(result.stderr + result.stdout) and len(errors[0]) <= MAX_LINE, ascii(result.stderr)
    return errors[0]


def refusal(read: Callable[..., Any], *arguments: Any) -> str:
    """The one line with which a function refuses a file."""
    with no_hang():
        try:
            found = read(*arguments)
        except UserError as error:
            assert error.message.isprintable() and len(error.message) <= MAX_LINE, ascii(error.message)
            return error.message
    raise AssertionError(f"{arguments} was read as {str(found)[:100]!a}")


def contents(folder: Path) -> dict[str, str]:
    """A digest of all that is in a folder: kinds, links, modes and contents, by name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            what = f"link {os.readlink(path)}"
        elif path.is_file():
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            what = "folder" if path.is_dir() else "special"
        found[str(path.relative_to(folder))] = f"{path.lstat().st_mode:o} {what}"
    return found


@contextmanager
def untouched(*folders: Path) -> Iterator[None]:
    """Fails where the block changes anything in these folders."""
    before = [contents(folder) for folder in folders]
    yield
    for folder, old in zip(folders, before, strict=True):
        assert contents(folder) == old


# --- special files --------------------------------------------------------------------------------------------------


def pipe(path: Path) -> Path:
    """A named pipe, to which nobody writes: opening it blocks for ever."""
    os.mkfifo(path)
    return path


def device(path: Path) -> Path:
    """A link to a device that never ends."""
    path.symlink_to("/dev/zero")
    return path


def unix_socket(path: Path) -> Path:
    here = os.getcwd()
    os.chdir(path.parent)  # its name may have no more than 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    finally:
        os.chdir(here)
    return path


def loop(path: Path) -> Path:
    """A link to itself."""
    path.symlink_to(path.name)
    return path


SPECIAL = {"pipe": pipe, "device": device, "socket": unix_socket, "loop": loop}
