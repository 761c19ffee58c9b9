"""`python -m metrics nearest`: the training images that are nearest to generated ones, to find out about copies.

A fake is called authentic (Alaa, van Breugel, Saveliev, van der Schaar: "How Faithful is your Synthetic Data?", ICML
2022, section 3) where its nearest real image has another real image that is nearer to it than the fake. One that is not
authentic lies closer to a real image than real images lie to each other, as copies do. An image that a data set has
twice is no other image: otherwise every changed copy of it would be authentic. memorization.py has the test that
compares fakes with images that were not trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from media.alpha import Color, opaque
from media.dataset import ImageDataset
from media.decode import WHITE
from media.images import grid
from metrics import detectors, encoders
from metrics.detectors import PublishedDetector
from metrics.features import Features, Source, dataset_source, describe_images
from metrics.fld import SAME, feature_likelihood_divergence
from metrics.memorization import copying_test
from metrics.request import check_shape, open_fakes
from metrics.scores import BLOCK_ROWS
from models.classes import chosen_class
from models.sampling import SeedsOf, check_seeds, generate_batches, labels_in_turn
from models.snapshot import find_snapshot, found_text, load_generator
from torch_utils.errors import Failure, UserError, note

BLOCK_FAKES = 128  # whose distances to all real images are in memory at a time
OF_NETWORK = {  # options that --fakes leaves unused
    "seeds": "--seeds", "seeds_of": "--seeds-of", "class_name": "--class", "trunc": "--trunc"
}  # fmt: skip
FLD_NEEDS_TEST = "--fld compares with images that were not trained on; name them with --test"
MEMORIZATION = {"c_t": "C_T", "fld": "FLD"}  # the metrics that --test adds, and what they are called


@dataclass(frozen=True)
class NearestRequest:
    """The options of `python -m metrics nearest`."""

    network: str | None  # either a snapshot
    fakes: str | None  # or images
    data: str
    test: str | None  # images of the same source that were not trained on
    fld: bool  # whether to compute FLD as well, which takes long for many images
    seeds: list[int]
    seeds_of: SeedsOf
    class_name: int | str | None
    trunc: float
    detector: str
    detector_weights: tuple[str, ...]
    neighbours: int
    rows: int  # of the sheet, at most
    batch: int
    workers: int
    device: str
    background: Color = WHITE  # of transparent images


@dataclass(frozen=True)
class FakeImages:
    """What is compared with the training images: for each image its seed or file, and the images by their numbers."""

    origins: list[dict[str, Any]]
    source: Source
    about: str = ""  # a line on the generator that makes them


@dataclass(frozen=True)
class Opened:
    """What a request names, and the function from images to features of its detector."""

    dataset: ImageDataset
    fakes: FakeImages
    test: ImageDataset | None
    describe: Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Nearest:
    """For each of N fakes its `k` nearest real images, the nearest first."""

    indices: Tensor  # [N, k], into the data set, whose second half are the flipped images
    distances: Tensor  # [N, k], float64
    own_distances: Tensor  # [N], of the nearest real image to its nearest other real image that is no twin of it

    @property
    def authentic(self) -> Tensor:
        """Whether each fake is authentic, bool [N]."""
        return self.distances[:, 0] > self.own_distances

    def most_suspicious(self, count: int) -> list[int]:
        """The fakes by distance / own distance, the smallest first; all in their order where there are no more."""
        if len(self.distances) <= count:
            return list(range(len(self.distances)))
        ratios = self.distances[:, 0] / self.own_distances.clamp(min=torch.finfo(torch.float64).tiny)
        return ratios.argsort(stable=True)[:count].tolist()


@dataclass(frozen=True)
class NearestResult:
    """What a request finds."""

    sheet: Tensor  # uint8 [C, …, …]
    rows: list[dict[str, Any]]  # of all fakes, see `make_rows`
    shown: list[int]  # the fakes on the sheet
    metrics: dict[str, float]  # authentic, c_t where there are test images, and fld where it is wanted


# --- features and distances -----------------------------------------------------------------------------------------


def load_describe(name: str, files: Sequence[str], device: torch.device | str) -> Callable[[Tensor], dict[str, Tensor]]:
    """A function from images uint8 [N, C, H, W] to `features` [N, D] of a detector: a published one, or an encoder.

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
    source: Source, count: int, batch: int, describe: Callable[[Tensor], dict[str, Tensor]], title: str
) -> Tensor:
    """The features [count, D] of the images of a source. Raises Failure where they are not finite."""
    collector = Features(count)
    for part in describe_images(source, count, batch, describe, title=title):
        collector.add(part["features"])
    features = collector.finish()["features"]
    if not features.isfinite().all():
        raise Failure(f"the features of {title} are not finite; take another detector with --detector")
    return features


def find_nearest(fake: Tensor, real: Tensor, k: int, mirrored: bool = False) -> Nearest:
    """The `k` nearest of the real features [M, D] to each of the fakes' [N, D], by Euclidean distance.

    With `mirrored`, the second half of the real features is of the flipped images of the first half. An image and its
    flipped copy count once, as the nearer of the two.
    """
    images = len(real) // 2 if mirrored else len(real)
    same = math.sqrt(SAME * float(real.var(dim=0, correction=0).sum()))
    parts = [nearest_of_block(block, real, k, images, same) for block in fake.split(BLOCK_FAKES)]
    return Nearest(
        torch.cat([part.indices for part in parts]),
        torch.cat([part.distances for part in parts]),
        torch.cat([part.own_distances for part in parts]),
    )


def nearest_of_block(fake: Tensor, real: Tensor, k: int, images: int, same: float) -> Nearest:
    """`find_nearest` of a few fakes. Real images whose distance is at most `same` are one image that occurs twice."""
    distances, flips = image_distances(fake, real, images).min(dim=1)
    near = distances.topk(min(k, images), largest=False).indices
    indices = near + images * flips.gather(1, near)
    distances, order = exact_distances(fake, real, indices).sort(dim=1, stable=True)
    indices = indices.gather(1, order)

    nearest = indices[:, 0] % images
    others, flips = image_distances(real[nearest], real, images).min(dim=1)
    others[torch.arange(len(others)), nearest] = torch.inf  # an image, and its flipped copy, is no other image
    different = others.masked_fill(others <= same, torch.inf)  # nor are its twins, unless the set has nothing else
    others = different.where(different.isfinite().any(dim=1, keepdim=True), others)
    other = others.argmin(dim=1, keepdim=True)
    own = exact_distances(real[nearest], real, other + images * flips.gather(1, other))
    return Nearest(indices, distances, own[:, 0])


def image_distances(a: Tensor, real: Tensor, images: int) -> Tensor:
    """The distances of features a [N, D] to those of each image, and of its flipped copy: [N, 1 or 2, images].

    They come from products, whose rounding would hide that two images are the same: see `exact_distances`.
    """
    blocks = [torch.cdist(a.double(), part.double()) for part in real.split(BLOCK_ROWS)]
    return torch.cat(blocks, dim=1).view(len(a), -1, images)


def exact_distances(a: Tensor, real: Tensor, indices: Tensor) -> Tensor:
    """The distances of features a [N, D] to those of real images by their indices [N, k], from their differences."""
    columns = [(a.double() - real[column].double()).norm(dim=1) for column in indices.unbind(dim=1)]
    return torch.stack(columns, dim=1)


# --- requests -------------------------------------------------------------------------------------------------------


def open_request(request: NearestRequest) -> Opened:
    """All that a request names, before any work is done with it. Raises UserError."""
    if request.fld and request.test is None:
        raise UserError(FLD_NEEDS_TEST)
    dataset = ImageDataset(request.data, mirror=True, background=request.background)
    if len(dataset.names) < 2:
        raise UserError(f"{request.data} has only one image; at least 2 are needed")
    fakes = fakes_of_seeds(request, dataset) if request.fakes is None else fakes_of_files(request, dataset)
    test = open_test(request, dataset)
    return Opened(dataset, fakes, test, load_describe(request.detector, request.detector_weights, request.device))


@detectors.no_tf32()  # also for the generator
def nearest_images(request: NearestRequest) -> NearestResult:
    """What `python -m metrics nearest` shows and prints. Raises UserError."""
    opened = open_request(request)
    dataset, fakes, test, describe = opened.dataset, opened.fakes, opened.test, opened.describe
    if fakes.about:
        note(fakes.about)
    everything = dataset_source(dataset, range(len(dataset)), request.workers)
    real = collect(everything, len(dataset), request.batch, describe, "real images")
    fake = collect(fakes.source, len(fakes.origins), request.batch, describe, "fake images")
    found = find_nearest(fake, real, request.neighbours, mirrored=True)
    metrics = {"authentic": float(found.authentic.double().mean())}
    if test is not None:
        source = dataset_source(test, range(len(test)), request.workers)
        new = collect(source, len(test), request.batch, describe, "test images")
        distances = find_nearest(new, real, 1, mirrored=True).distances[:, 0]
        versions = real.view(2, len(dataset.names), -1)  # the images, and flipped
        metrics["c_t"] = copying_test(versions[0], new, fake, distances, found.distances[:, 0])
        if request.fld:
            metrics["fld"] = feature_likelihood_divergence(versions, new, fake)
    shown = found.most_suspicious(request.rows)
    images = torch.cat(list(cast(Iterator[Tensor], fakes.source([shown]))))  # here all have one size
    sheet, rows = nearest_sheet(images, dataset, found, shown), make_rows(fakes.origins, dataset, found)
    return NearestResult(sheet, rows, shown, metrics)


def fakes_of_seeds(request: NearestRequest, dataset: ImageDataset) -> FakeImages:
    """The images of the seeds. Raises UserError."""
    check_seeds(request.seeds, request.seeds_of)
    snapshot = find_snapshot(request.network)
    G, info = load_generator(snapshot, torch.device(request.device))
    given = request.class_name
    chosen = None if given is None else chosen_class(given, G.config, info, snapshot)
    check_shape(str(snapshot), G.config.img_channels, G.config.resolution, dataset, request.data)

    def generate(batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        for numbers in batches:
            seeds = [request.seeds[number] for number in numbers]
            # as generate.py: without a class, the seeds take them in turn
            classes = labels_in_turn(G, seeds) if chosen is None else torch.full([len(seeds)], chosen)
            for images in generate_batches(G, seeds, request.batch, classes, request.trunc, of=request.seeds_of):
                yield opaque(images, request.background)

    about = f"network: {snapshot} ({info['kimg']:g} kimg){found_text(request.network, snapshot)}"
    return FakeImages([{"seed": seed} for seed in request.seeds], generate, about)


def fakes_of_files(request: NearestRequest, dataset: ImageDataset) -> FakeImages:
    """The images of --fakes. Raises UserError."""
    assert request.fakes is not None
    fakes = open_fakes(request.fakes, request.background, dataset.resolution)
    check_shape(request.fakes, fakes.channels, fakes.resolution, dataset, request.data, fakes.files)
    return FakeImages(
        [{"file": name} for name in fakes.names], dataset_source(fakes, range(len(fakes)), request.workers)
    )


def open_test(request: NearestRequest, dataset: ImageDataset) -> ImageDataset | None:
    """The images of --test. Raises UserError."""
    if request.test is None:
        return None
    test = ImageDataset(request.test, background=request.background)
    check_shape(request.data, dataset.channels, dataset.resolution, test, request.test)
    if test.fingerprint == dataset.fingerprint:
        raise UserError("--test and --data are the same images; name images that were not trained on with --test")
    if request.fakes is not None and ImageDataset(request.fakes, background=request.background).fingerprint == (
        test.fingerprint
    ):
        raise UserError("--test and --fakes are the same images; name real images that were not trained on with --test")
    return test


def nearest_sheet(fakes: Tensor, dataset: ImageDataset, found: Nearest, shown: Sequence[int]) -> Tensor:
    """One image uint8 [C, …, …]: in each row one of the fakes shown, a white gap, and its nearest real images."""
    gap = torch.full_like(fakes[0], 255)
    rows = []
    for fake, indices in zip(fakes, found.indices[list(shown)].tolist(), strict=True):
        rows += [fake, gap, *(dataset[index][0] for index in indices)]
    return grid(torch.stack(rows), 2 + found.indices.shape[1])


def make_rows(origins: list[dict[str, Any]], dataset: ImageDataset, found: Nearest) -> list[dict[str, Any]]:
    """For each fake its seed or file, its nearest image and the distances."""
    return [
        {
            **origin,
            "nearest": dataset.names[index % len(dataset.names)],
            "flipped": index >= len(dataset.names),
            "distance": float(found.distances[n, 0]),
            "nearest_to_another": float(found.own_distances[n]),
            "authentic": bool(found.authentic[n]),
        }
        for n, (origin, index) in enumerate(zip(origins, found.indices[:, 0].tolist(), strict=True))
    ]


def row_names(row: dict[str, Any]) -> tuple[str, str]:
    """A row of `make_rows` in words: the fake, and its nearest image."""
    fake = row["file"] if "file" in row else f"seed {row['seed']}"
    return fake, row["nearest"] + (", flipped" if row["flipped"] else "")
