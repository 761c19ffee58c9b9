"""Labels of a model as users give them: classes by number or by name, and label vectors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from media.labels import are_class_names
from networks.generator import Generator, NetworkConfig
from torch_utils.errors import UserError, listed, note, one_line, plural, ranges_text

MAX_LISTED = 10  # class names in a message
NAMES_SUFFIX = ".classes.txt"
MAX_NAMES = 1 << 20  # characters that are read of a file of names


def class_names(info: Mapping[str, Any], c_dim: int) -> tuple[str, ...]:
    """The names of a model's classes from its file's `info`, which is not trusted; () if it has none that fit."""
    names: Any = info.get("class_names")
    return tuple(names) if are_class_names(names) and len(names) == c_dim else ()


def names_beside(path: str | os.PathLike, classes: int) -> list[str]:
    """The names in NAME.classes.txt beside NAME.safetensors, one in each line; [] where there is no such file.

    A note says so where they do not fit the model's number of classes.
    """
    file = Path(path).with_suffix(NAMES_SUFFIX)
    if not classes or not file.is_file():
        return []
    try:
        with open(file, encoding="utf-8-sig", errors="replace") as opened:
            names = [line.strip() for line in opened.read(MAX_NAMES).splitlines()]
    except OSError as error:
        note(f"note: {file} is not used; it cannot be read ({error.strerror or error})")
        return []
    if not are_class_names(names) or len(names) != classes:
        note(f"note: {file} is not used; it needs {plural(classes, 'line')} of printable text, no two of them alike")
        return []
    return names


def chosen_label(given: Sequence[float], G: Generator, path: str | os.PathLike) -> Tensor:
    """The label [c_dim] that `--label` gives to the model in the file `path`. Notes numbers that training did not have.

    Raises UserError.
    """
    if (vectors := G.mapping.labels) is None:
        what = "are classes; write --class" if G.config.c_dim else "are none; leave out --label"
        raise UserError(f"--label: the labels of {path} {what}")
    shown = ",".join(f"{number:g}" for number in given)
    if len(given) != G.config.c_dim:
        example = ",".join(f"{number:.4g}" for number in vectors.examples[0].tolist())
        raise UserError(f"--label {shown}: the model takes {plural(G.config.c_dim, 'number')}, such as {example}")
    ranges = vectors.ranges()
    if any(not low <= number <= high for number, (low, high) in zip(map(as_float32, given), ranges, strict=True)):
        note(f"note: --label {shown} is beyond what training has seen: {ranges_text(ranges)}")
    return torch.tensor(given, dtype=torch.float32)


def as_float32(number: float) -> float:
    """The number as labels hold it."""
    return torch.tensor(number, dtype=torch.float32).item()


def find_class(given: int | str, c_dim: int, names: Sequence[str] = ()) -> int:
    """The number of a class that is given by its number or its name; capital and small letters are alike.

    Raises ValueError, which says which classes there are.
    """
    if isinstance(given, int):
        if not 0 <= given < c_dim:
            raise ValueError(f"the model has the classes 0 to {c_dim - 1}")
        return given
    if given in names:
        return names.index(given)
    alike = [number for number, name in enumerate(names) if name.casefold() == given.casefold()]
    if len(alike) == 1:
        return alike[0]
    if not names:
        raise ValueError(f"the model does not know its classes by name; write a number from 0 to {c_dim - 1}")
    folded = {name.casefold(): name for name in names}
    if near := get_close_matches(given.casefold(), folded, n=3, cutoff=0.6):
        raise ValueError(f"the model has no class of this name; did you mean {' or '.join(folded[n] for n in near)}?")
    raise ValueError(f"the model has no class of this name; its classes are {listed(names, MAX_LISTED)}")


def chosen_class(given: int | str, config: NetworkConfig, info: Mapping[str, Any], path: str | os.PathLike) -> int:
    """The class that `--class` names, of the model in the file `path`. Raises UserError."""
    shown = one_line(given)
    if config.vector_labels:
        raise UserError(f"--class {shown}: the labels of {path} are {plural(config.c_dim, 'number')}; write --label")
    if not config.c_dim:
        raise UserError(f"--class {shown}: {path} was trained without classes; leave out --class")
    names = class_names(info, config.c_dim)
    alike = next((name for name in (shown, *names) if name in names and reads_as(name, given)), None)
    other = f"; the class with the name {alike} has the number {names.index(alike)}" if alike else ""
    try:
        number = find_class(given, config.c_dim, names)
    except ValueError as error:
        raise UserError(f"--class {shown}: {error}{other}") from None
    if alike and names[number] != alike:
        note(f"note: --class {shown} is the class of that number, named {names[number]}{other}")
    return number


def reads_as(name: str, number: int | str) -> bool:
    """Whether `--class` takes a class's name for that number, or for a range with it: `3`, or `0-9`."""
    if isinstance(number, str):
        return False
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", name, re.ASCII)
    return match is not None and int(match[1]) <= number <= int(match[2] or match[1])
