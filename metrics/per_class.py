"""`python -m metrics --per-class`: the metrics of each class by itself, and their mean over the classes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from media.dataset import ImageDataset
from media.labels import check_same_classes
from metrics.evaluator import PPL_EPSILON, Evaluator, NotFinite
from metrics.features import dataset_source
from metrics.request import (
    Request,
    check_classes,
    check_shape,
    make_evaluator,
    make_record,
    open_both,
    say,
    write_records,
)
from models.sampling import Fakes
from models.snapshot import find_snapshot, found_text, load_generator
from torch_utils.errors import UserError, listed


class ClassImages:
    """The images of one class of a data set, `chosen` by their numbers, as a data set of their own."""

    def __init__(self, dataset: ImageDataset, chosen: Sequence[int]):
        self.dataset, self.chosen = dataset, chosen

    @property
    def any_sizes(self) -> bool:
        """Whether the images can have several sizes."""
        return self.dataset.any_sizes

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.chosen[index]]

    def content_hash(self, indices: Sequence[int], progress: bool = False) -> str:
        """That of `ImageDataset`, by which the cache knows the images again."""
        return self.dataset.content_hash([self.chosen[index] for index in indices], progress)


def images_of_class(dataset: ImageDataset, number: int) -> ClassImages:
    """The images of one class of a data set that was opened with its labels."""
    return ClassImages(dataset, (dataset.required_labels == number).nonzero().flatten().tolist())


def evaluate_per_class(request: Request, result: Path) -> None:
    """Writes the record of all classes as `metrics.request.evaluate` writes its own. Raises UserError."""
    write_records([evaluate_classes(request)], result)


def evaluate_classes(request: Request) -> dict[str, Any]:
    """One record: `classes` has values and numbers of images of each class by its name, the record itself their means.

    A class with too few images, or without real ones, is left out; `unusable` says why, by its name. Raises UserError
    where no class is left.
    """
    if request.network is None:
        dataset, fakes = open_classes(request)
        about: dict[str, Any] = {"fakes": request.fakes, "fakes_hash": fakes.fingerprint}
        transparent = fakes.transparent
        evaluator = make_evaluator(request, dataset, len(fakes))
    else:
        snapshot = find_snapshot(request.network)
        G, info = load_generator(snapshot, request.device)
        dataset = ImageDataset(
            str(request.data),
            use_labels=True,
            mirror=request.mirror,
            background=request.background,
            model_resolution=G.config.resolution,
        )
        check_are_classes(dataset)
        truncation = request.truncations[0]
        check_shape(str(snapshot), G.config.img_channels, G.config.resolution, dataset, str(request.data))
        check_classes(snapshot, G, info, dataset, str(request.data))
        transparent = G.config.img_channels == 4
        say(f"network: {snapshot} ({info['kimg']:g} kimg){found_text(request.network, snapshot)}")
        about = {"network": str(snapshot), "kimg": info["kimg"], "noise": "random", "truncation": truncation}
        evaluator = make_evaluator(request, dataset)

    def evaluate(number: int, own: Evaluator) -> dict[str, float]:
        if request.network is None:
            images = images_of_class(fakes, number)
            return own.evaluate(dataset_source(images, own.choose_fakes(len(images)), request.workers))
        made = Fakes(G, own.count, request.seed, torch.tensor([number]), truncation, request.background)
        return own.evaluate(made.images, partial(made.path_ends, epsilon=PPL_EPSILON))

    found: dict[str, dict[str, Any]] = {}
    unusable = {} if request.network is not None else leave_out_others(fakes, dataset)
    noted = set(evaluator.notes)
    for number in range(dataset.c_dim):
        name = class_title(dataset, number)
        # Only errors that all processes meet alike leave a class out: an unreadable image, which one meets, ends all.
        try:
            count = None if request.network is not None else len(images_of_class(fakes, number))
            own = with_images(evaluator, images_of_class(dataset, number), noted, count)
        except UserError as error:
            unusable[name] = error.message
        else:
            try:
                found[name] = {**evaluate(number, own), "images": own.counts}
            except NotFinite as error:
                unusable[name] = error.message
        if name in unusable:
            say(f"warning: class {name} is left out: {unusable[name]}")
    if not found:
        raise UserError(f"no class of {request.data} can be evaluated by itself; leave out --per-class")
    record = make_record(class_means(found), evaluator, dataset, request, about, transparent)
    del record["images"]  # each class has its own, and the means are of no set of images
    return {**record, "classes": found, "unusable": unusable}


def open_classes(request: Request) -> tuple[ImageDataset, ImageDataset]:
    """The real images, and those of --fakes, with their labels. Raises UserError where these are not the same."""
    dataset, fakes = open_both(request, use_labels=True)
    check_are_classes(dataset, fakes)
    check_same_classes(str(request.fakes), fakes.class_names, str(request.data), dataset.class_names)
    return dataset, fakes


def class_title(dataset: ImageDataset, number: int) -> str:
    """The number of a class, and its name where it has one."""
    return f"{number} {dataset.class_names[number]}" if dataset.class_names else str(number)


def leave_out_others(fakes: ImageDataset, dataset: ImageDataset) -> dict[str, str]:
    """Why classes that only the fakes have are left out, by their names; prints a line that names them."""
    numbers = [number for number in fakes.required_labels.unique().tolist() if number >= dataset.c_dim]
    names = [class_title(fakes, number) for number in numbers]
    if names:
        which = f"class {names[0]} is" if len(names) == 1 else f"classes {listed(names, 10)} are"
        say(f"warning: {which} left out: {dataset.path} has no real images of such classes")
    return dict.fromkeys(names, "there is no real image")


def with_images(evaluator: Evaluator, dataset: ClassImages, noted: set[str], fakes: int | None = None) -> Evaluator:
    """An evaluator with the metrics and the loaded detectors of another, over other images.

    Prints those of its notes that are not among `noted`, and adds them. Raises UserError.
    """
    other = copy.copy(evaluator)
    other.remedy = "add some of this class"
    other.set_images(dataset, fakes)
    for line in other.notes:
        if line not in noted:
            say(line)
            noted.add(line)
    return other


def check_are_classes(*datasets: ImageDataset) -> None:
    """Raises UserError where the labels of a data set are numbers."""
    for dataset in datasets:
        if dataset.vector_labels:
            raise UserError(f"the labels of {dataset.path} are numbers, not classes; leave out --per-class")


def class_means(found: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each value over the classes."""
    rows = list(found.values())
    return {
        name: sum(row[name] for row in rows) / len(rows)
        for name, value in rows[0].items()
        if isinstance(value, float) and all(name in row for row in rows)
    }


def class_table(record: Mapping[str, Any]) -> str:
    """A row for each class with its number of real images, and a last one with the means."""
    classes: Mapping[str, Mapping[str, Any]] = record["classes"]
    columns = list(class_means(classes))
    rows = [["class", "real", *columns]]
    for name, values in classes.items():
        reals = max(counts["real"] for counts in values["images"].values())
        rows.append([name, f"{reals:,}", *(f"{values[column]:.4g}" for column in columns)])
    rows.append(["mean", "", *(f"{record[column]:.4g}" for column in columns)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)
