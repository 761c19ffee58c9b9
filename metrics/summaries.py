"""What metrics have to know of a set of images: moments, features, patches, and by which detector's layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metrics import encoders
from metrics.detectors import INCEPTION, PUBLISHED, VGG16, Detector, Layer
from metrics.names import CLEAN, FRECHET, Metric

Tensors = dict[Any, Tensor]  # the content of a summary


@dataclass(frozen=True)
class Summary:
    """What a metric has to know of the first `count` images of a set."""

    kind: str  # moments or features of a detector's layer, or patches of the images
    layer: Layer | None  # None for patches
    count: int


def layer_of(metric: Metric) -> Layer | None:
    """The layer whose features a metric compares; None for SWD, which needs no detector, and for PPL."""
    if metric.kind in ("swd", "ppl"):
        return None
    match metric.kind:
        case "cleanfid":
            return Layer(INCEPTION, CLEAN)
        case "is":
            return Layer(INCEPTION, "logits_unbiased")
    name = metric.detector or ("inception" if metric.kind in ("fid", "kid") else "vgg16")
    if published := PUBLISHED.get(name):
        return Layer(published, published.layer)
    return Layer(Detector(name), encoders.LAYER)


def detector_of(metric: Metric) -> Detector | None:
    """The detector that a metric needs."""
    if metric.kind == "ppl":
        return VGG16
    layer = layer_of(metric)
    return layer.detector if layer else None


def summary_of(metric: Metric, count: int) -> Summary:
    """What a metric other than PPL has to know of a set of `count` images."""
    kind = "moments" if metric.kind in FRECHET else "patches" if metric.kind == "swd" else "features"
    return Summary(kind, layer_of(metric), count)


def finite(tensors: Tensors) -> bool:
    """Whether no number is NaN or infinite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())
