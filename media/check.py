"""Checks a data set: decodes every image, and reads all labels."""

from __future__ import annotations

import io
import os
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass

from tqdm import tqdm

from media.dataset import (
    CHANNELS,
    SUFFIXES,
    convert_command,
    describe,
    describe_mismatch,
    open_files,
    possible_resolution,
    read_labels,
)
from media.decode import Unusable, decode_image, open_image, stored_mode
from media.labels import LabelFile
from torch_utils.errors import UserError

NONE_USABLE = "none can be used"
NO_LABEL = "has no label"  # an image that can be used without the labels


@dataclass(frozen=True)
class Check:
    """The result of `check_dataset`."""

    count: int  # number of usable images
    kind: str  # size and mode of the usable images
    classes: dict[int, int] | None  # number of usable images of each class
    problems: list[tuple[str, str]]  # files that cannot be used, with the reason
    label_problem: str | None = None  # why the labels cannot be used
    notes: tuple[str, ...] = ()  # what was left out of a folder
    class_names: tuple[str, ...] = ()
    ranges: tuple[tuple[float, float], ...] | None = None  # of each number of label vectors
    convert: str = ""  # the command that makes a data set of the images that can be decoded


def check_dataset(path: str | os.PathLike) -> Check:
    """Decodes every image and reads the labels. Raises UserError as ImageFiles does."""
    files = open_files(path, SUFFIXES)
    problems: list[tuple[str, str]] = []
    names_of: dict[tuple[tuple[int, int], str], list[str]] = defaultdict(list)
    for name in tqdm(files.names, desc="checking", unit=" images", file=sys.stderr, disable=None):
        try:
            image = open_image(io.BytesIO(files.read(name)))
            mode = stored_mode(image)
            decoded = decode_image(image, mode if mode in CHANNELS else "RGB", name=name)
            names_of[decoded.size, mode].append(name)
        except Unusable as reason:
            problems.append((name, str(reason)))
    if not names_of:
        return Check(0, NONE_USABLE, None, problems, notes=tuple(files.notes))
    (size, mode), names = max(names_of.items(), key=lambda item: len(item[1]))
    for kind, others in names_of.items():
        if kind != (size, mode):
            problems += [
                (name, f"is {describe(*kind)}, unlike the {len(names):,} of {describe(size, mode)}") for name in others
            ]
    count, shown = len(names), describe(size, mode)
    if problem := describe_mismatch(size, mode):
        problems += [(name, problem) for name in names]
        count, shown = 0, NONE_USABLE
    classes, label_problem, found = None, None, LabelFile(None)
    try:
        found = read_labels(files)
    except UserError as error:
        label_problem = error.message
    labels = found.labels
    if (by_name := found.by_name) is not None:
        problems += [(name, NO_LABEL) for name in names if name not in by_name]
    ranges = None
    if found.vectors is not None:
        columns = zip(*(found.vectors[name] for name in names if name in found.vectors), strict=True)
        ranges = tuple((min(column), max(column)) for column in columns)
    if labels is not None:
        classes = dict(sorted(Counter(labels[name] for name in names if name in labels).items()))
    remedy = convert_command(files, possible_resolution(size), CHANNELS.get(mode, 3))
    notes = tuple(files.notes)
    return Check(count, shown, classes, sorted(problems), label_problem, notes, found.class_names, ranges, remedy)
