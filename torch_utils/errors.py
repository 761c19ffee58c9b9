"""Errors that one line explains better than a traceback, and how to quote foreign text in such a line."""

from __future__ import annotations

import errno
import shlex
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress


class CommandError(Exception):
    """An error that a command reports in one line, without a traceback, before it exits with `exit_code`."""

    exit_code = 1

    def __init__(self, message: str):
        lines = (line.strip(" \t") for line in message.splitlines())  # other spaces belong to quoted names
        self.message = printable(" ".join(filter(None, lines)))  # names and reasons in it may come from files
        super().__init__(self.message)


class UserError(CommandError):
    """A mistake that the user can correct: the line says what is wrong, where, and how to correct it."""

    exit_code = 2


class WorkerError(UserError):
    """A mistake that a process which reads data met.

    A DataLoader reraises an error of a worker with the whole traceback as its message, of which only the last line is
    kept.
    """

    def __init__(self, message: str):
        super().__init__(message.strip().rpartition(f".{type(self).__name__}: ")[2])


class Failure(CommandError):
    """A failure that is nobody's mistake, such as a training that diverged."""


class DiskFull(Failure):
    """There is no room for a file."""


def explained(error: Exception) -> UserError | None:
    """The mistake that is behind an error of Python or PyTorch: work that is too large, or a file that is out of reach.

    None where it may be a bug, whose traceback is needed.
    """
    from torch_utils.memory import out_of_memory  # imports PyTorch, which takes seconds that --help need not wait for

    if isinstance(error, (RuntimeError, MemoryError)) and out_of_memory(error):
        return UserError("there is not enough memory; take a smaller --batch, or fewer or smaller images")
    if isinstance(error, OSError) and error.filename is not None:
        name = printable(error.filename)
        reasons = {
            errno.ENAMETOOLONG: f"the name {name} is too long; take a shorter one",
            errno.EACCES: f"{name} may not be read or looked into; change its permissions, or name another",
        }
        if error.errno in reasons:
            return UserError(reasons[error.errno])
    return None


def printable(text: object) -> str:
    """Text from outside for a terminal: what it would obey, as `\\x1b`.

    Names in archives and headers can hold line breaks, control codes, marks that reverse text and broken Unicode.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def one_line(value: object, limit: int = 100) -> str:
    """Foreign text, such as another library's error, as one printable line of at most `limit` characters."""
    try:
        text = str(value)
    except (RecursionError, ValueError):  # a list in lists in lists; a number of thousands of digits
        text = f"a {type(value).__name__}"
    text = printable(" ".join(text.split()))
    return text if len(text) <= limit else text[: limit - 3] + "..."


def command_line(*words: object) -> str:
    """A command for a shell, of words such as paths, without those that are None."""
    return shlex.join(str(word) for word in words if word is not None)


def note(line: str) -> None:
    """Prints a line for the user on stderr; names in it may come from files.

    Where nobody reads them any more, as after ^C with `| tee`, the work that it is about goes on.
    """
    with suppress(OSError):
        print(printable(line), file=sys.stderr, flush=True)


def print_notes(notes: Iterable[str]) -> None:
    """Prints what the user should know, a line each, on stderr."""
    for text in notes:
        note(f"note: {text}")


def show(line: object) -> None:
    """Prints a result on stdout; names in it may come from files."""
    print(printable(line))


def plural(count: int, noun: str, ending: str = "s") -> str:
    """`1 image`, `2 images`, `1,000 images`; with another ending `2 classes`."""
    return f"{count:,} {noun}{ending * (count != 1)}"


def listed(words: Sequence[str], most: int) -> str:
    """`a, b, c`; of more than `most` words the first ones and the number of the others: `a, b and 1,000 more`."""
    more = f" and {len(words) - most:,} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def consecutive(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """The first and the last number of each run of consecutive ones: of 0, 1, 2, 5 they are (0, 2) and (5, 5)."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return runs


def numbers_text(numbers: Sequence[int]) -> str:
    """Sorted numbers, such as `0-3,5`."""
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in consecutive(numbers))


def ranges_text(ranges: Sequence[tuple[float, float]]) -> str:
    """What each of several numbers goes from and to, such as `0 to 1, -3.5 to 4`; the first ten of them."""
    return listed([f"{low:.6g} to {high:.6g}" for low, high in ranges], 10)
