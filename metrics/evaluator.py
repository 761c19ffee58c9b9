"""Works out metrics of a generator's images, or of others, against the real ones of a data set."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from metrics import detectors, scores, swd
from metrics.detectors import INCEPTION, LAYERS, VGG16, Detector, Weights
from metrics.features import COLLECTORS, CacheKey, Source, dataset_source, described, read_cached, write_cached
from metrics.frechet import frechet_distance
from metrics.names import Metric, parse_metric
from metrics.swd import PatchDescriptors, packed, sliced_wasserstein, unpacked
from torch_utils import distributed
from torch_utils.errors import Failure, UserError

PPL_EPSILON = 1e-4  # between the two ends of a path (StyleGAN, CVPR 2019, section 4.1)
DIMENSIONS = 2048  # of the features that FID takes the covariance of
LEAST_KEPT = 1000  # images: the patches of fewer are sooner cut again than read


class NotFinite(Failure):
    """A metric came out as no number. `figures` are those that did not."""

    def __init__(self, message: str, figures: dict[str, float] | None = None):
        super().__init__(message)
        self.figures = figures or {}


@dataclass(frozen=True)
class Statistic:
    """What a metric compares: of the first `count` images, moments or features of a detector's layer, or patches."""

    kind: str
    layer: str
    count: int


def statistic(metric: Metric, count: int) -> Statistic:
    kind, layer = {
        "fid": ("moments", "2048"),
        "kid": ("features", "2048"),
        "pr": ("features", "fc2_relu"),
        "is": ("features", "logits_unbiased"),
        "swd": ("patches", ""),
    }[metric.kind]
    return Statistic(kind, layer, count)


class Evaluator:
    """The metrics `names` of fake images against the real ones of `dataset`, the same for any number of processes.

    Make one in every process, and call `evaluate` as often as there are fakes to judge: the real side is worked out at
    the first call and kept, also for the next time (in the cache folder, where the data set has a `content_hash`).
    `notes` holds what a user should know before.

    With `optional`, metrics whose detector is not to be had are left out, and a note says so; else that raises.

    Raises:
        UserError: for an unknown name, too few images, or a detector that is not to be had.
    """

    def __init__(
        self,
        names: Sequence[str],
        dataset: Dataset,
        *,
        fakes: int | None = None,  # how many there are; None: any number can be made
        batch: int = 64,
        workers: int = 0,
        seed: int = 0,
        device: torch.device | str = "cpu",
        weights: Sequence[str | Path] = (),  # files of --detector-weights
        optional: bool = False,
        progress: bool = False,
    ):
        self.metrics = [parse_metric(name) for name in dict.fromkeys(names)]
        if self.metrics and len(dataset) < 2:
            raise UserError("the data set has only one image; the metrics need at least 2")
        self.dataset, self.batch, self.workers = dataset, batch, workers
        self.seed, self.device, self.progress = seed, device, progress
        self.notes: list[str] = []
        self._load_detectors(weights, optional)
        self.counts = {
            metric.name: {"real": metric.reals(len(dataset)), "fake": metric.fakes(len(dataset), fakes)}
            for metric in self.metrics
        }
        self.count = max((counts["fake"] for counts in self.counts.values()), default=0)
        for metric in self.metrics:
            self._check_counts(metric)
        self._real: dict[Statistic, Any] | None = None

    def _check_counts(self, metric: Metric) -> None:
        real, fake = self.counts[metric.name].values()
        for side, count in (("real", real), ("fake", fake)):
            if count < metric.least and not (side == "real" and count == 0):
                raise UserError(f"{metric.name}: there are only {count} {side} images, {metric.least} are needed")
            if metric.kind == "fid" and count <= DIMENSIONS:
                self.notes.append(
                    f"warning: {metric.name} has {count} {side} images for {DIMENSIONS} dimensions: the covariance "
                    "of so few is singular, and the figure too high; compare at equal numbers only"
                )
        short = [f"{real} real"] if not metric.full and 0 < real < metric.count else []
        short += [f"{fake} fake"] if fake < metric.count else []
        if short:
            self.notes.append(
                f"note: there are only {' and '.join(short)} images for {metric.name} ({metric.count}); "
                "figures change with the number of images: compare at equal numbers only"
            )

    # --- detectors ----------------------------------------------------------------------------------------------

    def _load_detectors(self, files: Sequence[str | Path], optional: bool) -> None:
        """Loads what the metrics need, read by rank 0. `self.records` says which files they are of."""
        self.networks: dict[Detector, torch.nn.Module] = {}
        self.lpips: Callable[[Tensor, Tensor], Tensor] | None = None
        self.records: dict[str, str] = {}  # name → SHA-256
        needed = {metric.name: detector_of(metric) for metric in self.metrics}
        given: dict[Detector, Weights] = {}
        wanted = [detector for detector in (INCEPTION, VGG16) if detector in needed.values()]
        found = distributed.on_rank_0(find_weights, wanted, files)
        for detector in wanted:
            weights, asked = found[detector], [name for name, other in needed.items() if other is detector]
            if isinstance(weights, str):
                problem = f"{', '.join(asked)}: {weights}"
                if not optional:
                    raise UserError(problem)
                self.notes.append(f"warning: going on without {problem}")
                self.metrics = [metric for metric in self.metrics if metric.name not in asked]
                continue
            given[detector] = weights
            self.records[detector.name] = weights.sha256
            if not detectors.is_published(detector, weights):
                self.notes.append(
                    f"note: the weights of {detector.name} are not the published ones; figures by them compare with "
                    "each other only"
                )
        with torch.random.fork_rng(devices=[]):  # weights are drawn for nothing, and training's numbers stay
            for detector, weights in given.items():
                layers = {statistic(m, 0).layer for m in self.metrics if m.kind != "ppl"}
                layers = [layer for layer in LAYERS if layer in layers and LAYERS[layer] is detector]
                if layers:
                    self.networks[detector] = detectors.load_detector(detector, weights, layers, self.device)
                if any(m.kind == "ppl" and detector is VGG16 for m in self.metrics):
                    self.lpips = detectors.load_lpips(weights, self.device)

    @torch.no_grad()
    def _describe(self, images: Tensor, patches: bool, layers: set[str]) -> dict[str, Tensor]:
        """What the layers, and with "" the patches, are taken from: features [N, D], or the images themselves."""
        found = {"": images} if patches else {}
        images = detectors.rgb(images.to(self.device, non_blocking=True))
        with detectors.exact_products():
            for network in self.networks.values():
                if layers & set(network.features_list):
                    found |= zip(network.features_list, network(images), strict=True)
        return found

    # --- figures ------------------------------------------------------------------------------------------------

    def evaluate(self, fakes: Source, paths: Source | None = None) -> dict[str, float]:
        """The figures for `fakes`, whose images are uint8 [N, C, H, W] of the data set's shape; {} except in rank 0.

        `paths` makes images of both ends of paths in W for PPL: float [2N, C, H, W] in −1..1, first N at t = 0, then
        N at t = PPL_EPSILON. A metric has its figure under its name, and parts after an underscore: `swd2k_32`,
        `is50k_mean`, `pr50k3_full_recall`.

        Raises:
            NotFinite: where a figure is no number.
            UserError: for PPL without `paths`.
        """
        if not self.metrics:
            return {}
        if paths is None and any(metric.kind == "ppl" for metric in self.metrics):
            raise UserError("PPL is of a generator, not of images; name one with --network, or leave ppl2_wend out")
        if self._real is None:
            self._real = self._real_statistics()
        wanted = {statistic(m, self.counts[m.name]["fake"]) for m in self.metrics if m.kind != "ppl"}
        fake = self._collect(wanted, fakes, "fake images")
        lengths = {m.name: self._distances(m, paths) for m in self.metrics if m.kind == "ppl"}
        if distributed.rank():
            return {}
        figures, broken = {}, []  # from here on one process works, and may raise
        for metric in self.metrics:
            try:
                if metric.kind == "ppl":
                    found = scores.path_length(lengths[metric.name], PPL_EPSILON)
                else:
                    found = self._compare(metric, fake)
            except NotFinite as error:
                broken.append(error.message)
                continue
            named = {metric.name + part: value for part, value in found.items()}
            if wrong := [name for name, value in named.items() if not math.isfinite(value)]:
                broken.append(f"{', '.join(wrong)} came out as no number")
            else:
                figures |= named
        if broken:
            raise NotFinite("; ".join(broken), figures)
        return figures

    def settings(self) -> dict[str, Any]:
        """What, beside the fakes and the counts, the figures depend on."""
        return {"seed": self.seed, "detectors": self.records}

    def _compare(self, metric: Metric, fake: dict[Statistic, Any]) -> dict[str, float]:
        """The figures of a metric by the part of their names that follows the metric's."""
        counts = self.counts[metric.name]
        b = fake[statistic(metric, counts["fake"])]
        a = self._real[statistic(metric, counts["real"])] if counts["real"] else {}
        for side, tensors in (("real", a), ("fake", b)):
            if not finite(tensors):
                raise NotFinite(f"{metric.name} is no number: what is known of the {side} images is not finite")
        if metric.kind == "is":
            return scores.inception_score(b["features"])
        match metric.kind:
            case "fid":
                return {"": frechet_distance(a, b)}
            case "kid":
                return scores.kernel_distance(a["features"], b["features"])
            case "pr":
                self._say(f"{metric.name}: distances of {counts['real']} and {counts['fake']} images ...")
                return scores.precision_recall(a["features"], b["features"], "distances" if self.progress else "")
            case "swd":
                return {key.removeprefix("swd"): value for key, value in sliced_wasserstein(a, b).items()}
        raise AssertionError(metric.kind)

    def _distances(self, metric: Metric, paths: Source) -> Tensor:
        """LPIPS of both ends of the paths, in rank 0."""

        @torch.no_grad()
        def distance(images: Tensor) -> dict[str, Tensor]:
            with detectors.exact_products():
                return {"distance": self.lpips(*images.to(self.device).chunk(2))}

        title = "paths" if self.progress else ""
        found = described(paths, self.counts[metric.name]["fake"], max(self.batch // 2, 1), distance, title)
        return torch.cat([torch.empty(0), *(part["distance"] for part in found)])

    def _real_statistics(self) -> dict[Statistic, Any]:
        """Of the data set, kept from another time or worked out now."""
        wanted = {statistic(m, self.counts[m.name]["real"]) for m in self.metrics if self.counts[m.name]["real"]}
        found: dict[Statistic, Any] = {}
        for count in sorted({s.count for s in wanted}):
            chosen = choose(len(self.dataset), count, self.seed)
            keys = distributed.on_rank_0(self._keys, [s for s in wanted if s.count == count], chosen)
            if distributed.rank() == 0:
                kept = {s: tensors for s, key in keys.items() if (tensors := read_cached(key)) is not None}
                found |= {s: tensors if s.layer else unpacked(tensors) for s, tensors in kept.items()}
            missing = {s for s in wanted if s.count == count} - distributed.on_rank_0(set, found)
            source = dataset_source(self.dataset, chosen, self.workers)
            new = self._collect(missing, source, "real images")
            for s in new.keys() & keys.keys():
                if not finite(new[s]):
                    continue  # it will be said; and it may have been by chance
                if problem := write_cached(keys[s], new[s] if s.layer else packed(new[s])):
                    self._say(f"warning: {problem}; it will have to be worked out again the next time")
            found |= new
        return found

    def _keys(self, statistics: Sequence[Statistic], chosen: Sequence[int]) -> dict[Statistic, CacheKey]:
        """Under what the statistics of the chosen images are kept, of those that are."""
        statistics = [s for s in statistics if s.layer or s.count >= LEAST_KEPT]
        if not statistics or not hasattr(self.dataset, "content_hash"):
            return {}
        content = self.dataset.content_hash(chosen, progress=self.progress)
        shape = tuple(self.dataset[0][0].shape)
        patches = f"seed {self.seed}, {swd.PATCHES} patches, {swd.DIRECTIONS} directions"
        by = {s: self.records[LAYERS[s.layer].name] if s.layer else patches for s in statistics}
        return {s: CacheKey(content, shape, s.count, s.kind, s.layer, by[s]) for s in statistics}

    def _collect(self, wanted: set[Statistic], source: Source, title: str) -> dict[Statistic, Any]:
        """The statistics of a set of images, each described by what needs it; in rank 0, {} in the others."""
        collectors = {
            s: COLLECTORS[s.kind](s.count) if s.layer else PatchDescriptors(s.count, seed=self.seed, device=self.device)
            for s in sorted(wanted, key=str)
            if distributed.rank() == 0
        }
        options = {"title": title} if self.progress else {}
        first = 0
        for count in sorted({s.count for s in wanted}):
            layers = {s.layer for s in wanted if s.count >= count}
            describe = partial(self._describe, patches="" in layers, layers=layers)
            turn = {"turn": 1} if "" in layers else {}  # the images themselves travel
            for part in described(source, count, self.batch, describe, first=first, **turn, **options):
                for s, collector in collectors.items():
                    if s.count >= count:
                        collector.add(part[s.layer])
            first = count
        return {s: collector.finish() for s, collector in collectors.items()}

    def _say(self, line: str) -> None:
        if self.progress:
            print(line, file=sys.stderr, flush=True)


def finite(tensors: dict[Any, Tensor]) -> bool:
    return all(tensor.isfinite().all() for tensor in tensors.values())


def detector_of(metric: Metric) -> Detector | None:
    """The network that a metric is by."""
    if metric.kind == "ppl":
        return VGG16
    return LAYERS.get(statistic(metric, 0).layer)


def find_weights(wanted: Sequence[Detector], files: Sequence[str | Path]) -> dict[Detector, Weights | str]:
    """The weights of those detectors, or the line that says why they are not to be had."""
    if not wanted:
        return {}
    try:
        detectors.check_installed()
        given = detectors.given_weights(files)
    except UserError as error:
        return dict.fromkeys(wanted, error.message)
    return {detector: given.get(detector) or published_or_why(detector) for detector in wanted}


def published_or_why(detector: Detector) -> Weights | str:
    try:
        return detectors.published_weights(detector)
    except UserError as error:
        return error.message


def choose(there: int, count: int, seed: int) -> list[int]:
    """The numbers of `count` of the images `there`, drawn by `seed`; all of them in their order where it takes all.

    A smaller `count` gives the beginning of the same choice.
    """
    if count >= there:
        return list(range(there))
    return np.random.default_rng(seed).permutation(there)[:count].tolist()


def tensor_source(images: Tensor) -> Source:
    """The images [N, C, H, W] of a tensor."""

    def read(batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        return (images[list(numbers)] for numbers in batches)

    return read
