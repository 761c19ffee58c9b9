"""A snapshot, or a folder of images, judged against the real ones of a data set, by all processes together."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from media.dataset import ImageDataset
from metrics import PPL_EPSILON, Evaluator, choose, dataset_source
from models.sampling import Fakes
from models.snapshot import find_snapshot, load_generator
from torch_utils import distributed
from torch_utils.errors import UserError
from torch_utils.files import atomic_write


@dataclass(frozen=True)
class Job:
    """What is to be judged, and how."""

    names: list[str]
    network: str | None
    fakes: str | None
    data: str
    mirror: bool
    trunc: float
    seed: int
    batch: int
    workers: int
    gpus: int
    detector_weights: tuple[str, ...]


def check_shape(what: str, channels: int, resolution: int, dataset: ImageDataset, data: str) -> None:
    """Raises UserError where images of `what` cannot be compared with those of the data set."""
    if (channels, resolution) != (dataset.channels, dataset.resolution):
        raise UserError(
            f"{what} gives images of {resolution}×{resolution} with {channels} channels, {data} of "
            f"{dataset.resolution}×{dataset.resolution} with {dataset.channels}: they cannot be compared"
        )


def judge(job: Job, result: Path | None = None) -> dict[str, Any]:
    """The figures of a job, and all that they depend on; in rank 0, which writes them to the file `result` as well."""
    device = torch.device("cuda", torch.cuda.current_device()) if job.gpus else torch.device("cpu")
    judge_one = judge_images if job.network is None else judge_network
    record = judge_one(job, device)
    if result and distributed.rank() == 0:
        with atomic_write(result) as file:
            file.write(json.dumps(record).encode())
    return record


def judge_network(job: Job, device: torch.device) -> dict[str, Any]:
    """Of images that a snapshot generates, with the frequencies of the data set's classes if it has classes."""
    snapshot = distributed.on_rank_0(find_snapshot, job.network)
    G, info = load_generator(snapshot, device)
    if not all(tensor.isfinite().all() for tensor in G.state_dict().values()):
        raise UserError(f"{snapshot} has weights that are not finite: its training had failed; name an earlier one")
    dataset = ImageDataset(job.data, use_labels=G.config.c_dim > 0, mirror=job.mirror)
    check_shape(str(snapshot), G.config.img_channels, G.config.resolution, dataset, job.data)
    if dataset.c_dim != G.config.c_dim:
        raise UserError(f"{snapshot} knows {G.config.c_dim} classes, {job.data} has {dataset.c_dim}")
    evaluator = evaluator_of(job, dataset, device)
    fakes = Fakes(G, evaluator.count, job.seed, dataset.labels, job.trunc)
    figures = evaluator.evaluate(fakes.images, partial(fakes.path_ends, epsilon=PPL_EPSILON))
    about = {"network": str(snapshot), "kimg": info["kimg"], "truncation": job.trunc}
    return record_of(figures, evaluator, dataset, job, about)


def judge_images(job: Job, device: torch.device) -> dict[str, Any]:
    """Of the images in a folder or ZIP."""
    dataset, fakes = ImageDataset(job.data, mirror=job.mirror), ImageDataset(job.fakes)
    check_shape(job.fakes, fakes.channels, fakes.resolution, dataset, job.data)
    evaluator = evaluator_of(job, dataset, device, len(fakes))
    source = dataset_source(fakes, choose(len(fakes), evaluator.count, job.seed), job.workers)
    figures = evaluator.evaluate(source)
    return record_of(figures, evaluator, dataset, job, {"fakes": job.fakes, "fakes_hash": fakes.fingerprint})


def evaluator_of(job: Job, dataset: ImageDataset, device: torch.device, fakes: int | None = None) -> Evaluator:
    evaluator = Evaluator(
        job.names,
        dataset,
        fakes=fakes,
        batch=job.batch,
        workers=job.workers,
        seed=job.seed,
        device=device,
        weights=job.detector_weights,
        progress=True,
    )
    if distributed.rank() == 0:
        for note in evaluator.notes:
            print(note, file=sys.stderr)
    return evaluator


def record_of(
    figures: dict[str, float], evaluator: Evaluator, dataset: ImageDataset, job: Job, about: dict[str, Any]
) -> dict[str, Any]:
    data = {"data": job.data, "data_hash": dataset.fingerprint, "mirror": job.mirror}
    return {**figures, "images": evaluator.counts, "settings": {**evaluator.settings(), **about, **data}}
