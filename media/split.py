"""Splits a data set into the images that a model is trained with and those that it is held to afterwards."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from media.convert import archive_member
from media.dataset import open_files, read_labels
from media.decode import ALL_SUFFIXES, Unusable
from media.image_files import LABEL_FILE, ImageFiles
from media.labels import dump_labels
from torch_utils.errors import UserError, plural, print_notes, printable
from torch_utils.files import atomic_write, real_path


def split(
    source: str | os.PathLike,
    train: str | os.PathLike,
    held_out: str | os.PathLike,
    *,
    every: int = 10,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Writes two ZIP files with the image files of a folder or ZIP as they are, and returns how many each holds.

    In the order of their names, the last of each `every` files is held out, so that both sets have all folders and
    classes, and the same source is always split alike. Labels go with their files.

    Raises:
        UserError: if the source cannot be read or has fewer than `every` images, or a file cannot be written.
    """
    files = open_files(source, ALL_SUFFIXES)
    if not isinstance(files, ImageFiles):
        raise UserError(f"{files.path} is in shards, which are not split; make the data set again from its images")
    print_notes(files.notes)
    if len(files.names) < 2:
        raise UserError(f"{files.path} has 1 image, and two parts need at least 2; name a larger data set")
    if len(files.names) < every:
        raise UserError(
            f"{files.path} has {plural(len(files.names), 'image')}, fewer than --every {every}; name a smaller one"
        )
    train_file, held_file = real_path(train), real_path(held_out)
    if train_file == held_file:
        raise UserError(f"{train} cannot hold both parts; name two different files")
    if Path(os.path.realpath(source)) in (train_file, held_file):
        raise UserError(f"{source} is what is split, and stays as it is; name other files for its parts")
    for out in (Path(train), Path(held_out)):
        if out.suffix.lower() != ".zip":
            raise UserError(f"{out} is not the name of a ZIP file; let it end with .zip")
    check_free(train, held_out, overwrite)
    held = files.names[every - 1 :: every]
    kept = sorted(set(files.names) - set(held))
    found = read_labels(files)
    by_name = found.by_name or {}
    if by_name and (without := [name for name in files.names if name not in by_name]):
        text = f"{files.path}: {printable(without[0])} has no label in {LABEL_FILE}, but other files have"
        raise UserError(f"{text}; add the label, or remove the file")
    for name in files.names:
        if not is_text(name):
            raise UserError(
                f"{files.path}: the name {printable(name)} is no UTF-8, as names in a ZIP are; rename that file"
            )
    with ExitStack() as both:  # the two files, or none
        for out, file, names in ((Path(train), train_file, kept), (Path(held_out), held_file, held)):
            labels = dump_labels(names, [by_name.get(name) for name in names], found.class_names)
            try:
                out.parent.mkdir(parents=True, exist_ok=True)
                write_files(both.enter_context(atomic_write(file, replace=overwrite)), files, names, labels)
            except OSError as error:
                raise UserError(f"cannot write {out}: {error.strerror or error}; name another path") from None
        check_free(train, held_out, overwrite)  # before one of them has its name
    return len(kept), len(held)


def check_free(train: str | os.PathLike, held_out: str | os.PathLike, overwrite: bool) -> None:
    """Raises UserError where one of the parts exists, and is not to be replaced."""
    if there := [out for out in (train, held_out) if os.path.exists(out) and not overwrite]:
        raise UserError(f"{there[0]} exists; name another file, or replace both with --overwrite")


def is_text(name: str) -> bool:
    """Whether a file's name was UTF-8: Python keeps other bytes as halves of characters, which cannot be encoded."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_files(out: BinaryIO, files: ImageFiles, names: Sequence[str], labels: bytes) -> None:
    """Writes some files of a data set to a ZIP, beside their dataset.json. Raises UserError."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            try:
                archive.writestr(archive_member(name), files.read(name))
            except Unusable as reason:
                raise UserError(f"{files.path}: {printable(name)} {reason}; remove it, or copy it again") from None
        archive.writestr(archive_member(LABEL_FILE), labels)
