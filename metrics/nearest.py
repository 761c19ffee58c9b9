"""`python -m metrics nearest`: the training images that are nearest to generated ones, to find out about copies.

A fake is called authentic (Alaa, van Breugel, Saveliev, van der Schaar: "How Faithful is your Synthetic Data?", ICML
2022, section 3) where its nearest real image has another real image that is nearer to it than the fake. One that is not
authentic lies closer to a real image than real images lie to each other, as copies do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from media.dataset import ImageDataset
from media.images import grid
from metrics import detectors, encoders
from metrics.detectors import PublishedDetector
from metrics.features import Features, Source, dataset_source, describe_images, tensor_source
from metrics.request import check_shape, load_finite_generator
from metrics.scores import BLOCK_ROWS
from models.sampling import check_class, generate_batches
from models.snapshot import find_snapshot
from torch_utils.errors import Failure, UserError


@dataclass(frozen=True)
class NearestRequest:
    """The options of `python -m metrics nearest`."""

    network: str | None
    data: str
    seeds: list[int]
    number: int | None  # of the class
    trunc: float
    detector: str
    detector_weights: tuple[str, ...]
    neighbours: int
    batch: int
    workers: int
    device: str


@dataclass(frozen=True)
class Nearest:
    """For each of N fakes its `k` nearest real images, the nearest first."""

    indices: Tensor  # [N, k], into the data set, whose second half are the flipped images
    distances: Tensor  # [N, k], float64
    own_distances: Tensor  # [N], of the nearest real image to its nearest other real image

    @property
    def authentic(self) -> Tensor:
        """Whether each fake is authentic, bool [N]."""
        return self.distances[:, 0] > self.own_distances


def load_describe(name: str, files: Sequence[str], device: torch.device | str) -> Callable[[Tensor], dict[str, Tensor]]:
    """A function from images uint8 [N, C, H, W] to `features` [N, D] of a detector: of PUBLISHED, or an encoder.

    Raises UserError where it cannot be had.
    """
    detector = detectors.find_detector(name)
    layer = detector.layer if isinstance(detector, PublishedDetector) else encoders.LAYER
    weights = detectors.find_weights([detector], files)[detector]
    if isinstance(weights, str):
        raise UserError(weights)
    network = detectors.load_detector(detector, weights, [layer], device)

    @torch.no_grad()
    def describe(images: Tensor) -> dict[str, Tensor]:
        with detectors.no_tf32():
            return {"features": network(detectors.rgb(images.to(device)))[0]}

    return describe


def collect(
    source: Source, count: int, batch: int, describe: Callable[[Tensor], dict[str, Tensor]], title: str = ""
) -> Tensor:
    """The features [count, D] of the images of a source."""
    collector = Features(count)
    for part in describe_images(source, count, batch, describe, title=title):
        collector.add(part["features"])
    return collector.finish()["features"]


def find_nearest(fake: Tensor, real: Tensor, k: int, mirrored: bool = False) -> Nearest:
    """The `k` nearest of the real features [M, D] to each of the fakes' [N, D], by Euclidean distance.

    With `mirrored`, the second half of the real features is of the flipped images of the first half. An image and its
    flipped copy count once, as the nearer of the two.
    """
    images = len(real) // 2 if mirrored else len(real)
    both = image_distances(fake, real, images)
    distances, indices = both.min(dim=1)  # over the flips: [N, images]
    found = distances.topk(min(k, images), largest=False)
    flips = indices.gather(1, found.indices)

    nearest = found.indices[:, 0]
    own = image_distances(real[nearest], real, images).amin(dim=1)
    own[torch.arange(len(own)), nearest] = torch.inf
    return Nearest(found.indices + flips * images, found.values, own.amin(dim=1))


def image_distances(a: Tensor, real: Tensor, images: int) -> Tensor:
    """The distances of features a [N, D] to those of each image, and of its flipped copy: [N, 1 or 2, images]."""
    # The differences themselves, not products, whose rounding would hide that two images are the same.
    exact = "donot_use_mm_for_euclid_dist"
    blocks = [torch.cdist(a.double(), part.double(), compute_mode=exact) for part in real.split(BLOCK_ROWS)]
    return torch.cat(blocks, dim=1).view(len(a), -1, images)


def nearest_sheet(fakes: Tensor, dataset: ImageDataset, found: Nearest) -> Tensor:
    """One image uint8 [C, …, …]: in each row a fake, a white gap, and its nearest real images."""
    gap = torch.full_like(fakes[0], 255)
    rows = []
    for fake, indices in zip(fakes, found.indices.tolist(), strict=True):
        rows += [fake, gap, *(dataset[index][0] for index in indices)]
    return grid(torch.stack(rows), 2 + found.indices.shape[1])


def make_rows(seeds: list[int], dataset: ImageDataset, found: Nearest) -> list[dict[str, Any]]:
    """For each fake its seed, its nearest image and the distances."""
    return [
        {
            "seed": seed,
            "nearest": dataset.names[index % len(dataset.names)],
            "flipped": index >= len(dataset.names),
            "distance": float(found.distances[n, 0]),
            "nearest_to_another": float(found.own_distances[n]),
            "authentic": bool(found.authentic[n]),
        }
        for n, (seed, index) in enumerate(zip(seeds, found.indices[:, 0].tolist(), strict=True))
    ]


def nearest_images(request: NearestRequest) -> tuple[Tensor, list[dict[str, Any]]]:
    """The sheet of a request, and its `make_rows`. Raises UserError."""
    snapshot = find_snapshot(request.network)
    G, _ = load_finite_generator(snapshot, torch.device(request.device))
    check_class(request.number, G.config.c_dim, snapshot)
    dataset = ImageDataset(request.data, mirror=True)
    check_shape(str(snapshot), G.config.img_channels, G.config.resolution, dataset, request.data)
    if len(dataset.names) < 2:
        raise UserError(f"{request.data} has only one image; at least 2 are needed")
    describe = load_describe(request.detector, request.detector_weights, request.device)
    classes = None if request.number is None else torch.full([len(request.seeds)], request.number)
    fakes = torch.cat(list(generate_batches(G, request.seeds, request.batch, classes, request.trunc)))
    everything = dataset_source(dataset, range(len(dataset)), request.workers)
    real = collect(everything, len(dataset), request.batch, describe, "real images")
    fake = collect(tensor_source(fakes), len(fakes), request.batch, describe)
    if not (real.isfinite().all() and fake.isfinite().all()):
        raise Failure(f"the features of {request.detector} are not finite; take another with --detector")
    found = find_nearest(fake, real, request.neighbours, mirrored=True)
    return nearest_sheet(fakes, dataset, found), make_rows(request.seeds, dataset, found)
