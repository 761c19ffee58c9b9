"""Class labels of a data set, as `dataset.json` holds them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from media.decode import ALL_SUFFIXES
from torch_utils.errors import UserError, one_line
from torch_utils.schema import parse_json

MAX_CLASSES = 100_000
MAX_CLASS_NAME = 1000  # characters
MAX_VECTOR = 1024  # numbers in a label
FORM = '{"labels": [["name.png", 0], ...]}'


Label = int | tuple[float, ...]  # a class, or numbers
L = TypeVar("L", int, tuple[float, ...])


@dataclass(frozen=True)
class ClassFolders:
    """The folders that are classes, beside each other in the folder `above`: "", or "name/" and so on."""

    above: str
    names: tuple[str, ...]  # in the order of the classes

    def of(self, name: str) -> str | None:
        """The folder in which a file lies somewhere; None for a file beside the folders."""
        folder, slash, _ = name.removeprefix(self.above).partition("/")
        return folder if slash and name.startswith(self.above) else None


def class_folders(names: Iterable[str]) -> ClassFolders:
    """The folders of files with these names: those at the top, or those in a single folder that wraps all the others.

    Beside a wrapping folder there may be files, but no images by their names. Fewer than two folders are no classes.
    """
    names = [name for name in names if "/" in name or name.lower().endswith(ALL_SUFFIXES)]
    # What the first and the last of them begin with is what all begin with.
    common = os.path.commonprefix([min(names, default=""), max(names, default="")]).rpartition("/")[0]
    found = ClassFolders(f"{common}/" if common else "", ())
    return replace(found, names=tuple(sorted({folder for name in names if (folder := found.of(name)) is not None})))


@dataclass(frozen=True)
class LabelFile:
    """What a `dataset.json` says: a class for each file, and the names of the classes if it has them; or vectors."""

    labels: dict[str, int] | None  # by the file's name as it stands there; None where the labels are null, or vectors
    class_names: tuple[str, ...] = ()
    vectors: dict[str, tuple[float, ...]] | None = None  # where a label is one number or more

    @property
    def by_name(self) -> Mapping[str, Label] | None:
        """The class or the vector of each file by its name; None if there are no labels."""
        return self.labels if self.vectors is None else self.vectors


def parse_labels(data: bytes, where: str) -> LabelFile:
    """The content of a `dataset.json`; `where` is what messages call it. Raises UserError if it is malformed."""
    try:
        content = parse_json(data.decode("utf-8-sig"), nan=True)  # some editors begin a file with a mark
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({one_line(error)}); correct it, or remove it") from None
    entries = content.get("labels") if isinstance(content, dict) else content
    if entries is None:
        return LabelFile(None)
    if not isinstance(entries, list):
        raise UserError(f"{where} holds no list of labels; it should read {FORM}")
    names = content.get("class_names") if isinstance(content, dict) else None
    if any(isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], (list, float)) for entry in entries):
        if names is not None:
            raise UserError(f"{where} names classes, but its labels are numbers; remove class_names")
        return LabelFile(None, vectors=_parse_vectors(entries, where))
    labels: dict[str, int] = {}
    for entry in entries:
        match entry:
            case [str(name), int(label)] if not isinstance(label, bool) and 0 <= label < MAX_CLASSES:
                add_label(labels, name, label, where)
            case _:
                raise UserError(
                    f"{where} has the label {one_line(entry)}; it should read {FORM}, "
                    f"with classes from 0 to {MAX_CLASSES - 1}"
                )
    return LabelFile(labels, _check_class_names(names, labels, where))


def add_label(labels: dict[str, L], name: str, label: L, where: str) -> None:
    """Adds the label of a file. Raises UserError where it has another one already."""
    if labels.setdefault(name, label) != label:
        raise UserError(f"{where} gives {one_line(name)} two labels, {labels[name]} and {label}; keep one of them")


def _parse_vectors(entries: list[Any], where: str) -> dict[str, tuple[float, ...]]:
    """The label vector of each file, all of one length. Raises UserError."""
    vectors: dict[str, tuple[float, ...]] = {}
    for entry in entries:
        match entry:
            case [str(name), list(numbers)] if 0 < len(numbers) <= MAX_VECTOR and all(map(_is_number, numbers)):
                add_label(vectors, name, tuple(map(float, numbers)), where)
            case [str(name), number] if _is_number(number):
                add_label(vectors, name, (float(number),), where)
            case _:
                raise UserError(
                    f"{where} has the label {one_line(entry)} beside labels of numbers; it should read "
                    f'["name.png", [0.2, 0.7]], with up to {MAX_VECTOR} numbers'
                )
    lengths = sorted({len(vector) for vector in vectors.values()})
    if len(lengths) > 1:
        raise UserError(f"{where} has labels of {lengths[0]} and of {lengths[-1]} numbers; give all as many")
    return vectors


def _is_number(value: Any) -> bool:
    """Whether a value from JSON is a number that float32 can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def _check_class_names(names: Any, labels: dict[str, int], where: str) -> tuple[str, ...]:
    """The names of the classes; () if there are none. Raises UserError if they do not fit the labels."""
    if names is None:
        return ()
    if not are_class_names(names):
        raise UserError(
            f"{where} should name the classes as a list of different names, in the order of their numbers: "
            '{"class_names": ["cat", "dog"], "labels": [...]}'
        )
    if (last := max(labels.values(), default=-1)) >= len(names):
        raise UserError(f"{where} names {len(names):,} classes, but has the class {last}; name all, or none")
    return tuple(names)


def are_class_names(names: Any) -> bool:
    """Whether a value from a file is a list of class names: printable, not empty, and all different."""
    return (
        isinstance(names, list)
        and 0 < len(names) <= MAX_CLASSES
        and all(isinstance(n, str) and n and n.isprintable() and len(n) <= MAX_CLASS_NAME for n in names)
        and len(set(names)) == len(names)
    )


def check_same_classes(first: str, names: Sequence[str], second: str, others: Sequence[str]) -> None:
    """Raises UserError where the classes of two files or data sets have names, and a number stands for two of them.

    Folders of classes are numbered by their names, so that a data set without one of them has other numbers.
    """
    for number, (name, other) in enumerate(zip(names, others, strict=False)):
        if name != other:
            raise UserError(
                f"class {number} of {first} is {name!r}, but of {second} {other!r}; number their classes alike, as "
                "python dataset_tool.py split does, which divides one data set"
            )


def dump_labels(names: Sequence[str], labels: Sequence[Label | None], class_names: Sequence[str] = ()) -> bytes:
    """The content of a `dataset.json` for files with these labels, all of which are None if there are none."""
    if None in labels and any(label is not None for label in labels):
        raise ValueError("some images have a label and some have none")
    entries = None if None in labels else [list(entry) for entry in zip(names, labels, strict=True)]
    content: dict[str, Any] = {"labels": entries}
    if entries is not None and class_names:
        content["class_names"] = list(class_names)
    return json.dumps(content).encode()
