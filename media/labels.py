"""Class labels of a data set, as `dataset.json` holds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch_utils.errors import UserError, one_line
from torch_utils.schema import parse_json

MAX_CLASSES = 100_000
MAX_CLASS_NAME = 1000  # characters
FORM = '{"labels": [["name.png", 0], ...]}'


@dataclass(frozen=True)
class LabelFile:
    """What a `dataset.json` says: a class for each file, and the names of the classes if it has them."""

    labels: dict[str, int] | None  # by the file's name as it stands there; None where the labels are null
    class_names: tuple[str, ...] = ()


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
    labels = {}
    for entry in entries:
        match entry:
            case [str(name), int(label)] if not isinstance(label, bool) and 0 <= label < MAX_CLASSES:
                labels[name] = label
            case _:
                raise UserError(
                    f"{where} has the label {one_line(entry)}; it should read {FORM}, "
                    f"with classes from 0 to {MAX_CLASSES - 1}"
                )
    names = content.get("class_names") if isinstance(content, dict) else None
    return LabelFile(labels, _check_class_names(names, labels, where))


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


def dump_labels(names: Sequence[str], labels: Sequence[int | None], class_names: Sequence[str] = ()) -> bytes:
    """The content of a `dataset.json` for files with these labels, all of which are None if there are none."""
    if None in labels and any(label is not None for label in labels):
        raise ValueError("some images have a label and some have none")
    entries = None if None in labels else [list(entry) for entry in zip(names, labels, strict=True)]
    content: dict[str, Any] = {"labels": entries}
    if entries is not None and class_names:
        content["class_names"] = list(class_names)
    return json.dumps(content).encode()
