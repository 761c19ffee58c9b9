"""One request of `python -m metrics`: a snapshot, or a folder of images, against the real images of a data set."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from media.alpha import Color
from media.dataset import ImageDataset, NoLabels, SizesDiffer, convert_command
from media.decode import WHITE
from media.image_files import ImageFiles
from media.labels import check_same_classes
from media.mixed import open_images
from media.shards import ShardFiles
from metrics.evaluator import PPL_EPSILON, Evaluator, NotFinite
from metrics.features import dataset_source
from metrics.lpips import check_size
from metrics.names import parse_metric
from metrics.reference import Reference, is_reference, read_reference, write_reference
from metrics.summaries import finite, layer_of
from models.classes import class_names
from models.sampling import Fakes
from models.snapshot import find_snapshot, found_text, load_generator
from models.stylegan2 import kimg_of_name
from networks.generator import Generator
from torch_utils import distributed
from torch_utils.errors import UserError, note, plural
from torch_utils.files import atomic_write, missing_message
from torch_utils.sizes import Resolution, size_option, size_text, width_and_height

Reals = ImageDataset | Reference | None  # the real images, what is known of them, or nothing where no metric needs them


@dataclass(frozen=True)
class Request:
    """What is to be evaluated, by which metrics, and how: the options of `python -m metrics`."""

    names: list[str]
    network: str | None  # either a snapshot, or all of a run
    all_snapshots: bool
    fakes: str | None  # or images
    data: str | None  # images, or the statistics of some in a file
    mirror: bool
    truncations: list[float]  # of the snapshot's images
    extrapolate: bool
    seed: int
    batch: int
    workers: int
    gpus: int
    detector_weights: tuple[str, ...]
    background: Color = WHITE  # of transparent images
    save_stats: str | None = None  # the file for the statistics of the real images

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return torch.device("cuda", torch.cuda.current_device()) if self.gpus else torch.device("cpu")


def evaluate(request: Request, result: Path) -> None:
    """Writes the metrics and all that they depend on to the file `result`, as JSON; all processes call it together.

    It is a list of records, of each snapshot and truncation. Metrics whose detector cannot be had are left out, and
    `left_out` says why. Raises UserError.
    """
    records = [evaluate_images(request)] if request.network is None else evaluate_networks(request)
    write_records(records, result)


def write_records(records: list[dict[str, Any]], result: Path) -> None:
    """Writes records to the file `result`, as JSON; in rank 0 only."""
    if distributed.rank() == 0:
        with atomic_write(result) as file:
            file.write(json.dumps(records).encode())


def evaluate_networks(request: Request) -> list[dict[str, Any]]:
    """Of the images of one snapshot or more, which share the evaluator. A bad one among several is left out.

    A snapshot with classes gets those of the data set, with their frequencies. Of several, those that do not fit the
    data set are left out.
    """
    evaluator, records = None, []
    dataset: Reals = None
    if request.all_snapshots and request.data is not None and not is_reference(request.data):
        ImageDataset(request.data, background=request.background)  # so that a mistake in --data is told once
    for snapshot in distributed.on_rank_0(find_snapshots, request.network, request.all_snapshots):
        try:
            G, info = load_generator(snapshot, request.device)
            if evaluator is None:  # with the first that fits the data set
                dataset = open_data(request, G)
            check_generator(snapshot, G, info, dataset, request)
        except UserError as error:
            if not request.all_snapshots:
                raise
            say(f"warning: {error.message}; it is left out")
            continue
        evaluator = evaluator or make_evaluator(request, dataset)
        say(f"network: {snapshot} ({info['kimg']:g} kimg){found_text(request.network, snapshot)}")
        about = {"network": str(snapshot), "kimg": info["kimg"], "noise": "random"}
        for truncation in request.truncations:
            labels = dataset.labels if isinstance(dataset, ImageDataset) else None
            fakes = Fakes(G, evaluator.count, request.seed, labels, truncation, request.background)
            paths = partial(fakes.path_ends, epsilon=PPL_EPSILON)
            single = len(request.truncations) == 1 and not request.all_snapshots
            values, failed = finite_values(str(snapshot), partial(evaluator.evaluate, fakes.images, paths), single)
            settings = {**about, "truncation": truncation}
            record = make_record(values, evaluator, dataset, request, settings, G.config.img_channels == 4)
            records.append(record | failed)
    if not records:
        raise UserError(f"{request.network} has no snapshot that can be evaluated; name another run with --network")
    return records


def find_snapshots(network: str | None, all_snapshots: bool) -> list[Path]:
    """The snapshot that --network names, or with --all, those of the run that it is in, by their kimg.

    With --all, a folder with network pickles and no snapshots is such a run too. Raises UserError where there are none.
    """
    if not all_snapshots:
        return [find_snapshot(network)]
    if network is not None and Path(network).is_file():
        raise UserError(f"--all evaluates the snapshots of a run, {network} is a file; name the run's folder")
    if network is not None and not any(Path(network).glob("snapshot-*")) and (pickles := find_pickles(Path(network))):
        return pickles
    newest = find_snapshot(network, hint="name the folder of a run with --network")
    return sorted(newest.parent.glob("snapshot-*.safetensors"), key=lambda path: path.stem)


def find_pickles(folder: Path) -> list[Path]:
    """The network pickles in a folder by the kimg in their names, then by the names; without links to one of them."""
    files = {path.resolve() for path in folder.glob("*.pkl") if not path.is_symlink()}
    found = [path for path in folder.glob("*.pkl") if not path.is_symlink() or path.resolve() not in files]
    return sorted(found, key=lambda path: (kimg_of_name(path), path.name))


def say(line: str) -> None:
    """Prints a line about the evaluation; in rank 0 only."""
    if distributed.rank() == 0:
        note(line)


def evaluate_images(request: Request) -> dict[str, Any]:
    """Of the images in a folder or ZIP."""
    assert request.fakes is not None
    dataset: Reals = None
    if request.data is not None and not is_reference(request.data):
        dataset, fakes = open_both(request)
    else:
        check_fakes(request.fakes)
        fakes = open_images(request.fakes, background=request.background)
        dataset = None if request.data is None else read_reference(request.data)
        note_sizes(fakes)
    evaluator = make_evaluator(request, dataset, len(fakes))
    source = dataset_source(fakes, evaluator.choose_fakes(len(fakes)), request.workers)
    values, failed = finite_values(request.fakes, partial(evaluator.evaluate, source), single=True)
    about = {"fakes": request.fakes, "fakes_hash": fakes.fingerprint}
    return make_record(values, evaluator, dataset, request, about, fakes.transparent) | failed


def save_statistics(request: Request, result: Path) -> None:
    """Writes mean and covariance of the real images' features to the file of --save-stats, as `evaluate` is called.

    The request has one metric, a Fréchet distance; the images can have any sizes. Raises UserError and Failure.
    """
    assert request.data is not None and request.save_stats is not None
    dataset = open_images(request.data, mirror=request.mirror, background=request.background)
    evaluator = make_evaluator(request, dataset)
    found = evaluator.summarize_real()
    if distributed.rank() == 0:
        (metric,), (moments,) = evaluator.metrics, found.values()
        layer = layer_of(metric)
        if layer is None or not finite(moments):
            raise NotFinite(f"{metric.name}: the features of the real images are not finite")
        count = evaluator.counts[metric.name]["real"]
        write_reference(request.save_stats, moments, layer, evaluator.records[layer.detector.name], count)
        note(f"{request.save_stats} holds the statistics of {plural(count, 'image')} for {metric.name}")
    write_records([], result)


def finite_values(
    what: str, evaluate: Callable[[], dict[str, float]], single: bool
) -> tuple[dict[str, float], dict[str, str]]:
    """The values of an evaluation that are numbers, and what is recorded if some are not: `failed` says which.

    The other values may have taken hours. One evaluation of several is warned about. Raises NotFinite where a `single`
    one has no value.
    """
    try:
        return evaluate(), {}
    except NotFinite as error:
        if single and not error.values:
            raise
        if not single:
            say(f"warning: {what}: {error.message}")
        return error.values, {"failed": error.message}


def open_data(request: Request, G: Generator) -> Reals:
    """The data set for a generator, with labels if it has classes, or what stands in its place. Raises UserError."""
    if request.data is None or is_reference(request.data):
        return None if request.data is None else read_reference(request.data)
    try:
        return ImageDataset(
            request.data,
            use_labels=G.config.c_dim > 0,
            mirror=request.mirror,
            background=request.background,
            model_resolution=G.config.resolution,
        )
    except NoLabels as error:
        raise UserError(f"{needs_labels(G)}; {error.message}") from None


def needs_labels(G: Generator) -> str:
    """That a generator needs the labels of the real images, for a message."""
    known = "labels of numbers" if G.config.vector_labels else plural(G.config.c_dim, "class", "es")
    return f"the model has {known}, and metrics draw those of its images from the labels of --data"


def make_evaluator(request: Request, dataset: Reals, fakes: int | None = None) -> Evaluator:
    """The request's evaluator, whose notes are printed. Raises UserError where no metric is left."""
    evaluator = Evaluator(
        request.names,
        dataset,
        fakes=fakes,
        batch=request.batch,
        workers=request.workers,
        seed=request.seed,
        device=request.device,
        weights=request.detector_weights,
        optional=True,
        extrapolate=request.extrapolate,
        progress=True,
        remedy="name more with --data",
    )
    if not evaluator.metrics:
        raise UserError(left_out_line(evaluator.left_out))
    if distributed.rank() == 0:
        for line in evaluator.notes:
            note(line)
    return evaluator


def make_record(
    values: dict[str, float],
    evaluator: Evaluator,
    dataset: Reals,
    request: Request,
    about: dict[str, Any],
    transparent: bool,
) -> dict[str, Any]:
    """The values with what they depend on: `about` the fakes, and the background where these, or real images, need it.

    `transparent` says whether the fakes do.
    """
    data: dict[str, Any] = {}
    if dataset is not None:
        data = {"data": request.data, "data_hash": dataset.fingerprint, "mirror": request.mirror}
    always = transparent or (isinstance(dataset, ImageDataset) and dataset.transparent)
    if always or request.background != WHITE:  # others can have a colour that is transparent
        data["background"] = request.background
    counts = evaluator.counts
    if isinstance(dataset, Reference) and not dataset.images:  # their number is not known
        counts = {name: {"fake": count["fake"]} for name, count in counts.items()}
    record = {**values, "images": counts, "settings": {**evaluator.settings(), **about, **data}}
    return {**record, "left_out": evaluator.left_out} if evaluator.left_out else record


def left_out_line(left_out: dict[str, str]) -> str:
    """Which metrics are missing, and why, in one line."""
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        names_by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in names_by_reason.items())


# --- what is evaluated ----------------------------------------------------------------------------------------------


def open_both(request: Request, use_labels: bool = False) -> tuple[ImageDataset, ImageDataset]:
    """The real images, and those of --fakes. Raises UserError.

    A detector resizes each image by itself, so that they can have any sizes. Where a metric compares pixels, all must
    have one size.
    """
    assert request.fakes is not None and request.data is not None
    names = [name for name in request.names if parse_metric(name).compares_pixels]
    if not names:
        check_fakes(request.fakes)
        options: dict[str, Any] = {"background": request.background, "use_labels": use_labels}
        dataset, fakes = (
            open_images(request.data, mirror=request.mirror, **options),
            open_images(request.fakes, **options),
        )
        note_sizes(fakes, dataset)
        return dataset, fakes
    try:
        dataset = ImageDataset(
            request.data, use_labels=use_labels, mirror=request.mirror, background=request.background
        )
        fakes = open_fakes(request.fakes, request.background, dataset.resolution, use_labels)
        check_shape(request.fakes, fakes.channels, fakes.resolution, dataset, request.data, fakes.files)
    except SizesDiffer as error:
        raise UserError(
            f"{', '.join(names)} compares pixels, and needs images of one size (metrics of a detector take any): "
            f"{error.message}"
        ) from None
    return dataset, fakes


def note_sizes(fakes: ImageDataset, dataset: ImageDataset | None = None) -> None:
    """Says where images of several sizes are compared, and what was left out of the folders."""
    sets = [fakes] if dataset is None else [fakes, dataset]
    for images in sets:
        for line in images.files.notes:
            say(f"note: {images.path}: {line}")
    if len({images.size for images in sets}) > 1 or not all(images.resolution for images in sets):
        found = ", ".join(f"{images.path} {'has images ' * (images is fakes)}of {images.size}" for images in sets)
        say(f"note: {found}; the detectors resize each to their own size")


def check_fakes(path: str) -> None:
    """Raises UserError where there is nothing that --fakes names."""
    if not Path(path).exists():
        raise UserError(missing_message(Path(path), "name a folder or ZIP of generated images with --fakes"))


def open_fakes(path: str, background: Color, resolution: Resolution, use_labels: bool = False) -> ImageDataset:
    """The images of --fakes, on a background where they are transparent, for data of a resolution. Raises UserError."""
    check_fakes(path)
    return ImageDataset(path, background=background, model_resolution=resolution, use_labels=use_labels)


def check_shape(
    what: str,
    channels: int,
    resolution: Resolution,
    dataset: ImageDataset,
    data: str,
    files: ImageFiles | ShardFiles | None = None,
) -> None:
    """Raises SizesDiffer where images of `what` cannot be compared with those of the data set.

    The message has a command that makes larger images smaller, those of the data set or of `files`, which `what` is if
    given: enlarged images would be compared by their blur.
    """
    channels = min(channels, 3)  # transparent images are laid on a background
    if (channels, resolution) == (dataset.channels, dataset.resolution):
        return
    if math.prod(width_and_height(dataset.resolution)) >= math.prod(width_and_height(resolution)):
        remedy = f"convert the latter with: {convert_command(dataset.files, resolution, channels)}"
    elif files is not None:
        remedy = f"convert the former with: {convert_command(files, dataset.resolution, dataset.channels)}"
    else:
        remedy = f"convert the images that {data} was made of again, with --resolution {size_option(resolution)}"
    raise SizesDiffer(
        f"{what} gives images of {size_text(resolution)} with {plural(channels, 'channel')}, {data} of "
        f"{size_text(dataset.resolution)} with {dataset.channels}: they cannot be compared; {remedy}"
    )


def check_generator(snapshot: Path, G: Generator, info: Mapping[str, Any], dataset: Reals, request: Request) -> None:
    """Raises UserError where the images of a generator cannot be compared with the real ones, or by these metrics."""
    if isinstance(dataset, ImageDataset):
        check_shape(str(snapshot), G.config.img_channels, G.config.resolution, dataset, str(request.data))
        check_classes(snapshot, G, info, dataset, str(request.data))
        return
    if G.config.c_dim:
        raise UserError(f"{needs_labels(G)}; name the images that it was trained on with --data")
    for name in request.names:
        if parse_metric(name).kind == "ppl":
            check_size(name, width_and_height(G.config.resolution)[::-1])


def check_classes(snapshot: Path, G: Generator, info: Mapping[str, Any], dataset: ImageDataset, data: str) -> None:
    """Raises UserError where a generator, whose file has that `info`, and a data set have other classes."""
    if dataset.vector_labels != G.config.vector_labels:
        raise UserError(
            f"of {snapshot} and {data}, only one has labels that are numbers; name its own data with --data"
        )
    if dataset.c_dim != G.config.c_dim:
        known = plural(G.config.c_dim, "class", "es")
        raise UserError(f"{snapshot} knows {known}, {data} has {dataset.c_dim}; name its own data with --data")
    check_same_classes(str(snapshot), class_names(info, G.config.c_dim), data, dataset.class_names)
