"""`metrics.compute`: metrics of images in folders, archives, tensors and iterators, by one call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from media.alpha import Color
from media.dataset import ImageDataset
from media.decode import WHITE
from media.images import to_uint8
from media.mixed import open_images
from metrics.evaluator import Evaluator
from metrics.features import Images, ImageSet, Source, dataset_source
from metrics.names import Metric, parse_metric
from metrics.reference import Reference, is_reference, read_reference
from torch_utils import distributed
from torch_utils.errors import UserError, note

GivenImages = str | os.PathLike | Tensor | Iterable[Any]  # see `compute`
FAR_OUT = 30.0  # floats so many ranges above theirs are of another range


def compute(
    names: str | Sequence[str],
    *,
    fake: GivenImages,
    real: GivenImages | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
    background: Color = WHITE,
    batch: int = 64,
    workers: int = 0,
    seed: int = 0,
    device: torch.device | str | None = None,
    weights: Sequence[str | Path] = (),
    extrapolate: bool = False,
    progress: bool = False,
) -> dict[str, float]:
    """The values of metrics, by the names that `python -m metrics --json` gives them.

    `names` are those of `python -m metrics --list`, as a list or as "fid50k_full,kid50k_full". `fake` and `real` are

    - a folder or a ZIP of images of any sizes (of one size for SWD); of `real`, what is computed is kept in the cache
      folder for the next call, so that a training loop had better name one;
    - a tensor of images [N, C, H, W] with 1 or 3 channels, uint8, or float in `value_range`, or a list of such;
    - an iterable of such tensors, such as a generator or a DataLoader, which may give tuples that begin with one. Of
      `fake`, as many images are read as the metrics ask for, and none is kept, so that it may be endless; all of `real`
      are kept in memory, as bytes;
    - and `real` a file of statistics for Fréchet distances (metrics/reference.py), or None for metrics without it.

    `weights` are files of --detector-weights. What a user should know about the numbers of images is printed on stderr.
    In a process group, the process that calls it computes by itself, and waits for no other.

    Raises:
        UserError: for unknown metrics, too few images, unusable ones, or a detector that cannot be had.
        NotFinite: where a metric is NaN or infinite.
    """
    wanted = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    pixels = [name for name in wanted if of_images(parse_metric(name)).compares_pixels]
    with distributed.alone():
        reals = None if real is None else open_set("real", real, value_range, background, bool(pixels))
        known = isinstance(fake, (str, os.PathLike, Tensor, list, tuple))  # how many there are
        fakes = open_set("fake", fake, value_range, background, bool(pixels)) if known else None
        if isinstance(fakes, Reference):
            raise UserError(f"{fakes.path}: fakes are images; name a folder or ZIP of them")
        evaluator = Evaluator(
            wanted, reals, fakes=None if fakes is None else len(fakes), batch=batch, workers=workers, seed=seed,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"), weights=weights,
            extrapolate=extrapolate, progress=progress,
        )  # fmt: skip
        for line in evaluator.notes:
            note(line)
        source: Source
        if fakes is None:
            source = Stream(images_of("fake", cast(Iterable[Any], fake), value_range)).images
        else:
            source = dataset_source(fakes, evaluator.choose_fakes(len(fakes)), workers)
        return evaluator.evaluate(of_one_shape(source, evaluator.dataset, pixels))


def of_images(metric: Metric) -> Metric:
    """The metric itself. Raises UserError for one of a generator."""
    if metric.kind == "ppl":
        raise UserError(f"{metric.name} is of a generator, not of images; python -m metrics --network computes it")
    return metric


def open_set(
    side: str, given: GivenImages, value_range: tuple[float, float], background: Color, one_size: bool
) -> ImageSet | Reference:
    """The images of a side, `fake` or `real`, or what is known of them. Raises UserError."""
    if isinstance(given, (str, os.PathLike)):
        if is_reference(given):
            return read_reference(given)
        return (ImageDataset if one_size else open_images)(given, background=background)
    return list(images_of(side, [given] if isinstance(given, Tensor) else given, value_range))


def images_of(side: str, batches: Iterable[Any], value_range: tuple[float, float]) -> Iterator[Tensor]:
    """The images uint8 [C, H, W] of batches as `compute` takes them, on the CPU. Raises UserError."""
    for number, item in enumerate(batches):
        images = item if isinstance(item, Tensor) else item[0] if isinstance(item, (tuple, list)) and item else item
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3):
            found = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise UserError(
                f"{side}: expected batches of images [N, C, H, W] with 1 or 3 channels, got {found}; "
                "images[None] is a batch of one"
            )
        if images.numel():
            yield from to_bytes(side, images.detach(), value_range, first=number == 0).cpu()


def to_bytes(side: str, images: Tensor, value_range: tuple[float, float], first: bool = False) -> Tensor:
    """Images [N, C, H, W], uint8 or float in a range, as uint8; values beyond the range are clamped.

    The `first` ones are looked at for a range that is not theirs. Raises UserError for what cannot be in it.
    """
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise UserError(f"{side}: images are uint8 or float, not {str(images.dtype)[6:]}; convert them with .byte()")
    low, high = value_range
    if not low < high:
        raise UserError(f"value_range={value_range}: the first number is black, the second white; give them in order")
    least, most = (float(value) for value in images.float().aminmax())
    if not (least == least and most - high <= FAR_OUT * (high - low)):  # NaN is not itself
        raise UserError(
            f"{side}: floats from {least:.4g} to {most:.4g} are no images in {low:g} to {high:g}; name their own "
            "value_range"
        )
    if first and low < 0 <= least:
        note(
            f"warning: the first float images of {side} are nowhere darker than {least:.3g}, in a range from {low:g} "
            f"to {high:g}; if theirs is another, give value_range=(0, 1) for example"
        )
    scale = 2 / (high - low)
    return to_uint8(images.float() * scale - (1 + low * scale))


class Stream:
    """Images that are read one after the other, each once."""

    def __init__(self, images: Iterator[Tensor]):
        self._images, self.seen = images, 0

    def images(self, batches: Sequence[Sequence[int]]) -> Iterator[Images]:
        """A `Source`, for consecutive numbers. Raises UserError where there are no more images."""
        for numbers in batches:
            some = list(islice(self._images, len(numbers)))
            self.seen += len(some)
            if len(some) < len(numbers):
                raise UserError(
                    f"fake has given {self.seen:,} images, and a metric asks for more; write their number in its name, "
                    f"as fid{self.seen}_full, or give more"
                )
            yield torch.stack(some) if len({image.shape for image in some}) == 1 else some


def of_one_shape(source: Source, reals: ImageSet | None, names: Sequence[str]) -> Source:
    """The same images; for metrics that compare pixels, they must have the shape of the real ones. Raises UserError."""
    if not names or reals is None or not len(reals):
        return source
    what = f"{', '.join(names)} compares pixels, and needs images of one size"
    first = reals[0]
    shape = (first if isinstance(first, Tensor) else first[0]).shape
    if isinstance(reals, list) and (others := {image.shape for image in reals} - {shape}):
        raise UserError(f"{what}: real images are {list(shape)} and {list(others.pop())}; resize them")

    def read(batches: Sequence[Sequence[int]]) -> Iterator[Images]:
        for images in source(batches):
            found = next((image.shape for image in images if image.shape != shape), shape)
            if found != shape:
                raise UserError(f"{what}: fakes are {list(found)}, real images {list(shape)}; resize them")
            yield images

    return read
