"""Images in folders, evaluated in this process or in several."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import torch
from torch.utils.data import TensorDataset

from media.dataset import ImageDataset
from metrics import Evaluator, dataset_source, evaluator, scores
from metrics.features import tensor_source
from tests.metrics import weights
from torch_utils import distributed

ALL = ["fid60_full", "kid60_full", "pr603_full", "dc605_full", "is60", "swd60"]


def evaluate(names: list[str], real: Path, fake: Path, files: list[Path], **options) -> dict[str, float]:
    dataset, fakes = ImageDataset(real), ImageDataset(fake)
    evaluator = Evaluator(names, dataset, fakes=len(fakes), weights=files, batch=16, **options)
    return evaluator.evaluate(dataset_source(fakes, range(len(fakes))))


def evaluate_and_write(names: list[str], real: Path, fake: Path, files: list[Path], result: Path) -> None:
    """As the fixture `evaluated`, but each process writes its result."""
    weights.make_small()
    scores.KID_SUBSET_SIZE, evaluator.MIN_CACHED_IMAGES = 20, 20
    found = evaluate(names, real, fake, files)
    result.with_suffix(f".{distributed.rank()}").write_text(json.dumps(found))


def compare_and_write(names: list[str], images: Path, result: Path) -> None:
    """Each process writes the metrics of the second of two sets, kept by `torch.save`, by 64 directions."""
    real, fake = torch.load(images, weights_only=True)
    with mock.patch("metrics.swd.DIRECTIONS", 64):
        found = Evaluator(names, TensorDataset(real), batch=16).evaluate(tensor_source(fake))
    result.with_suffix(f".{distributed.rank()}").write_text(json.dumps(found))
