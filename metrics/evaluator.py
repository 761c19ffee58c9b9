"""Computes metrics of a generator's images, or of other images, against the real ones of a data set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from media.dataset import ImageDataset
from metrics import detectors, scores, swd
from metrics.cache import CacheKey, read_cached, write_cached
from metrics.detectors import VGG16, Detector, DetectorWeights, Layer, PublishedDetector, PublishedWeights, no_tf32
from metrics.features import Features, Images, ImageSet, Source, dataset_source, describe_images, watched
from metrics.frechet import Moments, extrapolated_distance, frechet_distance, moments_of
from metrics.lpips import LPIPS, check_size
from metrics.names import FRECHET, Metric, parse_metric
from metrics.reference import Reference
from metrics.summaries import Summary, Tensors, detector_of, finite, layer_of, summary_of
from metrics.swd import PatchDescriptors, packed, sliced_wasserstein, unpacked
from torch_utils import distributed
from torch_utils.errors import Failure, UserError, note, plural

PPL_EPSILON = 1e-4  # between the two ends of a path (StyleGAN, CVPR 2019, section 4.1)
MIN_CACHED_IMAGES = 1000  # the patches of fewer images are faster cut again than read


class NotFinite(Failure):
    """Some metrics came out as NaN or infinite. `values` are those of the others."""

    def __init__(self, message: str, values: dict[str, float] | None = None):
        super().__init__(message)
        self.values = values or {}


class Evaluator:
    """The metrics `names` of fake images against the real ones of `dataset`, the same for any number of processes.

    Make one in every process, and call `evaluate` as often as there are sets of fakes to evaluate: what is to be known
    of the real images is computed at the first call, and kept in the cache folder for the next time where the data set
    has a `content_hash`. `notes` are lines that a user should read before. In place of real images, Fréchet distances
    take a `Reference`, and metrics of the fakes alone None.

    With `extrapolate`, Fréchet distances have a further value, `_inf`: what they tend to as the number of fakes grows.
    With `optional`, metrics whose published detector cannot be had are left out: `left_out` says why, by name.

    Raises:
        UserError: for an unknown name, too few images, or a detector that cannot be had.
    """

    def __init__(
        self,
        names: Sequence[str],
        dataset: ImageSet | Reference | None,
        *,
        fakes: int | None = None,  # how many there are; None: any number can be made
        batch: int = 64,
        workers: int = 0,
        seed: int = 0,
        device: torch.device | str = "cpu",
        weights: Sequence[str | Path] = (),  # files of --detector-weights
        optional: bool = False,
        extrapolate: bool = False,
        progress: bool = False,
        remedy: str = "add some",  # what to do about too few real images
    ):
        self.metrics, self.remedy = [parse_metric(name) for name in dict.fromkeys(names)], remedy
        check_reals(self.metrics, dataset, remedy)
        self.batch, self.workers = batch, workers
        self.seed, self.device, self.progress, self.extrapolate = seed, device, progress, extrapolate
        self.notes: list[str] = []
        self.left_out: dict[str, str] = {}
        self._load_detectors(weights, optional)
        self.set_images(dataset, fakes)

    def set_images(self, dataset: ImageSet | Reference | None, fakes: int | None = None) -> None:
        """Takes the real images of another data set, and for a folder of fakes their number. Raises UserError."""
        check_reals(self.metrics, dataset, self.remedy)
        self.notes = list(self.notes)  # a list of its own: per_class copies evaluators
        self.reference = dataset if isinstance(dataset, Reference) else None
        self.dataset = None if isinstance(dataset, Reference) else dataset
        reals = 0 if self.dataset is None else len(self.dataset)
        self.counts = {
            metric.name: {"real": metric.reals(reals), "fake": metric.fakes(reals, fakes)} for metric in self.metrics
        }
        self.count = max((counts["fake"] for counts in self.counts.values()), default=0)
        for metric in self.metrics:
            if self.reference and (layer := layer_of(metric)) and metric.takes_reals:
                self.reference.check(metric.name, layer, self._dimensions(metric), self.records[layer.detector.name])
                self.counts[metric.name]["real"] = self.reference.images
            self._check_counts(metric)
            if metric.kind == "ppl" and self.dataset is not None:
                first = self.dataset[0]
                check_size(metric.name, (first if isinstance(first, Tensor) else first[0]).shape[1:])
        if self.reference and not self.reference.layer:
            self.notes.append(
                f"warning: the images of {self.reference.path} were resized by the program that made this file; values "
                "compare with that program's only"
            )
        self.fake_order: list[int] = []  # in which the fakes are taken, where it is by chance
        self._real: dict[Summary, Tensors] | None = None

    def _check_counts(self, metric: Metric) -> None:
        real, fake = self.counts[metric.name].values()
        dimensions = self._dimensions(metric)
        for side, count in (("real", real), ("fake", fake)):
            images = plural(count, f"{side} image")
            if side == "real" and count == 0:  # none are needed, or their number is not known
                continue
            if count < metric.least:
                raise UserError(f"{metric.name} cannot be computed from {images}; it needs at least {metric.least}")
            if count <= dimensions:
                self.notes.append(
                    f"warning: {metric.name} has {images} for {dimensions} dimensions: the covariance "
                    "of so few is singular, and the distance too large; compare at equal numbers of images only"
                )
        short = [f"{real} real"] if not metric.full and 0 < real < metric.count else []
        short += [f"{fake} fake"] if fake < metric.count else []
        if short:
            self.notes.append(
                f"note: there are only {' and '.join(short)} images for {metric.name} ({metric.count}); "
                "metrics change with the number of images: compare at equal numbers only"
            )

    def _dimensions(self, metric: Metric) -> int:
        """The size of the covariance that a metric is computed of, or 0."""
        layer = layer_of(metric)
        if layer is None or metric.kind not in FRECHET:
            return 0
        network: Any = self.networks[layer.detector]
        return network.dimensions

    # --- detectors ----------------------------------------------------------------------------------------------

    def _load_detectors(self, files: Sequence[str | Path], optional: bool) -> None:
        """Loads the networks that the metrics need, from files that rank 0 reads."""
        self.networks: dict[Detector, nn.Module] = {}
        self.layers: dict[Detector, list[Layer]] = {}  # of each network, in the order of its outputs
        self.lpips: LPIPS | None = None
        self.records: dict[str, str] = {}  # SHA-256 of each detector's file, by its name
        needed = {metric.name: detector for metric in self.metrics if (detector := detector_of(metric))}
        wanted = list(dict.fromkeys(needed.values()))
        found = distributed.on_rank_0(detectors.find_weights, wanted, list(files))
        if files and not any(isinstance(detector, PublishedDetector) for detector in wanted):
            self.notes.append(f"note: {detectors.OPTION} is not used: none of the metrics has a published detector")
        for detector in wanted:
            weights, names = found[detector], [name for name, other in needed.items() if other == detector]
            if not isinstance(weights, str):
                self._load_detector(detector, weights)
                continue
            problem = f"{', '.join(names)}: {weights}"
            if not (optional and isinstance(detector, PublishedDetector)):  # a wrong name of an encoder is a mistake
                raise UserError(problem)
            self.notes.append(f"warning: going on without {problem}")
            self.left_out |= dict.fromkeys(names, weights)
            self.metrics = [metric for metric in self.metrics if metric.name not in names]

    def _load_detector(self, detector: Detector, weights: DetectorWeights) -> None:
        self.records[detector.name] = weights.sha256
        if not detectors.is_published(detector, weights):
            self.notes.append(
                f"note: the weights of {detector.name} are not the published ones; metrics computed with them "
                "compare with each other only"
            )
        layers = {layer for m in self.metrics if (layer := layer_of(m)) and layer.detector == detector}
        with torch.random.fork_rng(devices=[]):  # weights are drawn and replaced, and training's random numbers stay
            if layers:
                self.layers[detector] = sorted(layers, key=str)
                names = [layer.name for layer in self.layers[detector]]
                self.networks[detector] = detectors.load_detector(detector, weights, names, self.device)
            if any(m.kind == "ppl" for m in self.metrics) and isinstance(weights, PublishedWeights):
                self.lpips = detectors.load_lpips(weights, self.device) if detector == VGG16 else self.lpips

    @torch.no_grad()
    def _describe(self, images: Tensor, wanted: set[str]) -> dict[str, Tensor]:
        """The features [N, D] of those detectors that have a layer among `wanted`, by the names of their layers."""
        found: dict[str, Tensor] = {}
        images = detectors.rgb(images.to(self.device, non_blocking=True))
        for detector, network in self.networks.items():
            layers = [str(layer) for layer in self.layers[detector]]
            if wanted & set(layers):
                found |= zip(layers, network(images), strict=True)
        return found

    # --- metrics ------------------------------------------------------------------------------------------------

    @no_tf32()  # also for the generator, whose images the sources make: TF32 would round PPL's ε away
    def evaluate(self, fakes: Source, paths: Source | None = None) -> dict[str, float]:
        """The metrics of `fakes`, images uint8 [N, C, H, W] of the data set's shape; {} except in rank 0.

        `paths` makes images of both ends of paths in W for PPL: float [2N, C, H, W] in −1..1, first N at t = 0, then
        N at t = PPL_EPSILON. A metric has its value under its name, and further ones with an underscore: `swd2k_32`,
        `is50k_mean`, `pr50k3_full_recall`.

        Raises:
            NotFinite: where a metric is NaN or infinite.
            UserError: for PPL without `paths`.
        """
        if not self.metrics:
            return {}
        path_metrics = [metric for metric in self.metrics if metric.kind == "ppl"]
        if path_metrics and paths is None:
            raise UserError("PPL is of a generator, not of images; name one with --network, or leave ppl2_wend out")
        real = self.summarize_real()
        wanted = {self._fake_summary(m) for m in self.metrics if m.kind != "ppl"}
        fake = {
            s: self._as_in_the_files(s, found) for s, found in self._summarize(wanted, fakes, "fake images").items()
        }
        distances = {m.name: self._path_distances(m, paths) for m in path_metrics if paths is not None}
        if distributed.rank():
            return {}
        values: dict[str, float] = {}
        problems = []  # from here on one process works, and may raise
        for metric in self.metrics:
            try:
                values |= self._compute(metric, real, fake, distances)
            except NotFinite as error:
                problems.append(error.message)
        if problems:
            raise NotFinite("; ".join(problems), values)
        return values

    def _fake_summary(self, metric: Metric) -> Summary:
        """What a metric has to know of the fakes: to extrapolate, the features themselves."""
        summary = summary_of(metric, self.counts[metric.name]["fake"])
        return replace(summary, kind="features") if self.extrapolate and summary.kind == "moments" else summary

    def settings(self) -> dict[str, Any]:
        """What the metrics depend on beside the images and their numbers."""
        return {"seed": self.seed, "detectors": self.records}

    def _compute(
        self,
        metric: Metric,
        real: dict[Summary, Tensors],
        fake: dict[Summary, Tensors],
        distances: dict[str, Tensor],
    ) -> dict[str, float]:
        """The values of one metric by their names. Raises NotFinite."""
        if metric.kind == "ppl":
            found = scores.path_length(distances[metric.name], PPL_EPSILON)
        else:
            a = real[summary_of(metric, self.counts[metric.name]["real"])] if metric.takes_reals else {}
            b = fake[self._fake_summary(metric)]
            for side, tensors in (("real", a), ("fake", b)):
                if not finite(tensors):
                    raise NotFinite(f"{metric.name} is no number: the features of the {side} images are not finite")
            found = self._compare(metric, a, b)
        values = {metric.value_name(suffix): value for suffix, value in found.items()}
        if wrong := [name for name, value in values.items() if not math.isfinite(value)]:
            raise NotFinite(f"{', '.join(wrong)} came out as no number")
        return values

    def _compare(self, metric: Metric, real: Tensors, fake: Tensors) -> dict[str, float]:
        """The values of a metric of two summaries, by what follows the metric's name in theirs."""
        title = "distances" if self.progress else ""
        if metric.kind in ("pr", "dc", "cmmd"):
            self._say(f"{metric.name}: distances of {len(real['features'])} and {len(fake['features'])} images ...")
        match metric.kind:
            case "fid" | "cleanfid" | "fd":
                if not self.extrapolate:
                    return {"": frechet_distance(real, fake)}
                features = fake["features"]
                values = {"": frechet_distance(real, moments_of(features))}
                self._say(f"{metric.name}: extrapolation ...")
                return {**values, "_inf": extrapolated_distance(real, features, self.seed)}
            case "kid" | "kd":
                return scores.kernel_distance(real["features"], fake["features"])
            case "cmmd":
                return {"": scores.cmmd(real["features"], fake["features"], title)}
            case "pr":
                return scores.precision_recall(real["features"], fake["features"], title)
            case "dc":
                return scores.density_coverage(real["features"], fake["features"], title)
            case "is":
                return scores.inception_score(fake["features"])
            case "swd":
                return {name.removeprefix("swd"): value for name, value in sliced_wasserstein(real, fake).items()}
        raise AssertionError(metric.kind)

    def _path_distances(self, metric: Metric, paths: Source) -> Tensor:
        """LPIPS of the two ends of each path [count], in rank 0; [0] in the others."""
        lpips = self.lpips
        assert lpips is not None

        @torch.no_grad()
        def distance(images: Tensor) -> dict[str, Tensor]:
            first, second = images.to(self.device).chunk(2)
            return {"distance": lpips(first, second)}

        title, count = "paths" if self.progress else "", self.counts[metric.name]["fake"]
        found = describe_images(paths, count, max(self.batch // 2, 1), distance, title=title)
        return torch.cat([torch.empty(0), *(part["distance"] for part in found)])

    # --- summaries ----------------------------------------------------------------------------------------------

    @no_tf32()
    def summarize_real(self) -> dict[Summary, Tensors]:
        """What the metrics have to know of the real images; in rank 0, {} in the others."""
        if self._real is None:
            wanted = {summary_of(m, self.counts[m.name]["real"]) for m in self.metrics if m.takes_reals}
            if self.dataset is not None:
                self._real = self._summarize_dataset(self.dataset, wanted)
            else:
                self._real = dict.fromkeys(wanted, self.reference.moments) if self.reference else {}
        return self._real

    def _summarize_dataset(self, dataset: ImageSet, wanted: set[Summary]) -> dict[Summary, Tensors]:
        """Those summaries of a data set, from the cache or computed now; in rank 0, {} in the others."""
        found: dict[Summary, Tensors] = {}
        for count in sorted({s.count for s in wanted}):
            chosen = self._choose(dataset, count)
            keys = distributed.on_rank_0(self._cache_keys, dataset, [s for s in wanted if s.count == count], chosen)
            if distributed.rank() == 0:
                cached = {s: tensors for s, key in keys.items() if (tensors := read_cached(key)) is not None}
                found |= {s: unpacked(tensors) if s.layer is None else tensors for s, tensors in cached.items()}
            missing = {s for s in wanted if s.count == count} - distributed.on_rank_0(set, found)
            source = dataset_source(dataset, chosen, self.workers)
            new = self._summarize(missing, source, "real images")
            for s in new.keys() & keys.keys():
                if not finite(new[s]):
                    continue  # an error follows, and the next time it may be right
                if problem := write_cached(keys[s], packed(new[s]) if s.layer is None else new[s]):
                    self._say(f"warning: {problem}; it will have to be computed again the next time")
            found |= new
        return found

    def choose_fakes(self, available: int) -> list[int]:
        """The numbers of the images that the metrics take of `available` fakes, in the order in which they take them.

        Each metric takes the first ones of this order, so that it is by chance where one of them does not take all. The
        others come out the same, but for SWD, which cuts its patches from other places then.
        """
        takes_all = all(counts["fake"] >= available for counts in self.counts.values())
        if takes_all:
            return list(range(available))
        self.fake_order = np.random.default_rng(self.seed).permutation(available).tolist()
        return self.fake_order[: self.count]

    def _as_in_the_files(self, s: Summary, found: Tensors) -> Tensors:
        """Features of all fakes in the order of their files, on which subsets and splits depend."""
        if s.kind != "features" or s.count != len(self.fake_order):
            return found
        return {"features": found["features"][torch.tensor(self.fake_order).argsort()]}

    def _choose(self, dataset: ImageSet, count: int) -> list[int]:
        """`choose` of the data set; of shards, where it is not all images, those of as few shards as hold so many.

        Of shards with `mirror`, half as many images, each with its flip.
        """
        if count >= len(dataset) or not isinstance(dataset, ImageDataset) or dataset.files.random_access:
            return choose(len(dataset), count, self.seed)
        if not dataset.mirror:
            return dataset.choose(count, self.seed)
        chosen = dataset.choose(-(-count // 2), self.seed)
        return [*chosen, *(number + len(dataset.names) for number in chosen)][:count]

    def _cache_keys(
        self, dataset: ImageSet, summaries: Iterable[Summary], chosen: Sequence[int]
    ) -> dict[Summary, CacheKey]:
        """The keys of those summaries of the chosen images that are worth keeping."""
        summaries = [s for s in summaries if s.layer or s.count >= MIN_CACHED_IMAGES]
        content_hash = getattr(dataset, "content_hash", None)
        if not summaries or content_hash is None:
            return {}
        content = content_hash(chosen, progress=self.progress)
        shape = tuple(dataset[0][0].shape)
        patches = f"seed {self.seed}, {swd.PATCHES} patches, {swd.DIRECTIONS} directions"
        keys = {}
        for s in summaries:
            layer, detector = (s.layer.name, self.records[s.layer.detector.name]) if s.layer else ("", patches)
            keys[s] = CacheKey(content, shape, s.count, s.kind, layer, detector)
        return keys

    def _summarize(self, wanted: set[Summary], source: Source, title: str) -> dict[Summary, Tensors]:
        """The summaries of a set of images, which no detector sees more of than it needs; {} except in rank 0.

        Each process keeps the patches of the images that it has; features are gathered in rank 0.
        """
        ordered = sorted(wanted, key=str)
        patches = {s: PatchDescriptors(s.count, seed=self.seed, device=self.device) for s in ordered if s.layer is None}
        features: dict[Summary, Moments | Features] = {}
        if distributed.rank() == 0:
            features = {s: (Moments if s.kind == "moments" else Features)(s.count) for s in ordered if s.layer}

        def keep_patches(images: Images, number: int) -> None:
            for descriptors in patches.values():
                descriptors.add(cast(Tensor, images), number)  # images of several sizes have no metric by patches

        source, first = watched(source, keep_patches), 0
        for count in sorted({s.count for s in wanted}):
            described = describe_images(
                source,
                count,
                self.batch,
                partial(self._describe, wanted={str(s.layer) for s in wanted if s.layer and s.count >= count}),
                first=first,
                title=title if self.progress else "",
            )
            for part in described:
                for s, collector in features.items():
                    if s.count >= count:
                        collector.add(part[str(s.layer)])
            first = count
        found = {s: collector.finish() for s, collector in features.items()}
        of_patches = {s: descriptors.finish() for s, descriptors in patches.items()}
        return {**found, **of_patches} if distributed.rank() == 0 else {}

    def _say(self, line: str) -> None:
        if self.progress:
            note(line)


def check_reals(metrics: Sequence[Metric], dataset: ImageSet | Reference | None, remedy: str) -> None:
    """Raises UserError for metrics of real images without any, with one alone, or with too little about them."""
    names = [metric.name for metric in metrics if metric.takes_reals]
    if dataset is None and names:
        raise UserError(f"{', '.join(names)}: real images to compare with are missing; name some")
    if isinstance(dataset, Reference):
        if names := [metric.name for metric in metrics if metric.takes_reals and metric.kind not in FRECHET]:
            raise UserError(
                f"{', '.join(names)}: the real images themselves are needed, and {dataset.path} holds only their mean "
                "and covariance, for Fréchet distances; name a folder or ZIP of them"
            )
    elif dataset is not None and metrics and len(dataset) < 2:
        count = "only one real image" if len(dataset) else "no real image"
        raise UserError(f"there is {count}, and the metrics need at least 2; {remedy}")


def choose(available: int, count: int, seed: int) -> list[int]:
    """The numbers of `count` of the `available` images, drawn by `seed`; all in their order where it takes all."""
    if count >= available:
        return list(range(available))
    return np.random.default_rng(seed).permutation(available)[:count].tolist()
