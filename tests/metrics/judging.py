"""Images in folders, judged in this process or in several."""

from __future__ import annotations

import json
from pathlib import Path

from media.dataset import ImageDataset
from metrics import Evaluator, dataset_source, evaluator, scores
from tests.metrics import weights
from torch_utils import distributed

ALL = ["fid60_full", "kid60_full", "pr603_full", "is60", "swd60"]


def judge(names: list[str], real: Path, fake: Path, files: list[Path], **options) -> dict[str, float]:
    dataset, fakes = ImageDataset(real), ImageDataset(fake)
    judging = Evaluator(names, dataset, fakes=len(fakes), weights=files, batch=16, **options)
    return judging.evaluate(dataset_source(fakes, range(len(fakes))))


def judge_and_write(names: list[str], real: Path, fake: Path, files: list[Path], result: Path) -> None:
    """As the fixture `judged`, but each process writes what it gets."""
    weights.make_small()
    scores.SUBSET_SIZE, evaluator.LEAST_KEPT = 20, 20
    found = judge(names, real, fake, files)
    result.with_suffix(f".{distributed.rank()}").write_text(json.dumps(found))
