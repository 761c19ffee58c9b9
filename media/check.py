"""Checking a data set: every image is decoded, and all labels are read."""

from __future__ import annotations

import io
import os
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass

from tqdm import tqdm

from media.dataset import SUFFIXES, ImageFiles, describe, read_labels, unlike_the_format
from media.decode import Unusable, load_image, open_image
from torch_utils.errors import UserError


@dataclass(frozen=True)
class Check:
    """What `check_dataset` found. Kind and classes are those of the usable images."""

    count: int
    kind: str
    classes: dict[int, int] | None  # how many images each has
    problems: list[tuple[str, str]]  # a file and why it cannot be used
    label_problem: str | None = None  # why the labels cannot


def check_dataset(path: str | os.PathLike) -> Check:
    """Decodes every image and looks at the labels. Raises UserError as ImageFiles does."""
    files = ImageFiles(path, SUFFIXES)
    problems: list[tuple[str, str]] = []
    names_of = defaultdict(list)
    for name in tqdm(files.names, desc="checking", unit=" images", file=sys.stderr, disable=None):
        try:
            image = load_image(open_image(io.BytesIO(files.read(name))))
            names_of[image.size, image.mode].append(name)
        except Unusable as reason:
            problems.append((name, str(reason)))
    if not names_of:
        return Check(0, "none can be used", None, problems)
    (size, mode), names = max(names_of.items(), key=lambda item: len(item[1]))
    for kind, others in names_of.items():
        if kind != (size, mode):
            problems += [(name, f"is {describe(*kind)}, but most are {describe(size, mode)}") for name in others]
    if problem := unlike_the_format(size, mode):
        problems += [(name, problem) for name in names]
    labels, label_problem = None, None
    try:
        labels = read_labels(files)
    except UserError as error:
        label_problem = error.message
    if labels is not None:
        problems += [(name, "has no label") for name in names if name not in labels]
        labels = Counter(labels[name] for name in names if name in labels)
    classes = labels and dict(sorted(labels.items()))
    return Check(len(names), describe(size, mode), classes, sorted(problems), label_problem)
