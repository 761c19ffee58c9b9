"""benchmarks/plot_metrics.py: the hours of a training at the speed of its ticks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from plot_metrics import hours, read

from torch_utils.errors import UserError


def test_hours_are_those_of_the_ticks_and_a_tick_that_was_repeated_counts_once(tmp_path):
    """1000 steps of 16 images at 1 step a second, then 1000 at 0.5; the second tick was trained twice."""
    ticks = [(16.0, 1000, 1.0), (32.0, 2000, 0.5), (32.0, 2000, 2.0), (48.0, 3000, 0.5)]
    lines = [json.dumps({"kimg": kimg, "step": step, "it_per_s": speed}) for kimg, step, speed in ticks]
    (tmp_path / "stats.jsonl").write_text("\n".join(lines))
    found = hours(tmp_path, [0.0, 16.0, 32.0, 48.0])
    assert found == pytest.approx([0, 1000 / 3600, 3000 / 3600, 5000 / 3600])


def test_records_that_cannot_be_drawn_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"has no metrics\.jsonl; name the folder of a run"):
        read(tmp_path, "swd2k")
    (tmp_path / "metrics.jsonl").write_text('{"kimg": 1, "swd2k": 3}\n{"kimg": 2, "sw')
    with pytest.raises(UserError, match=r"metrics\.jsonl"):  # as a training writes it that was killed
        read(tmp_path, "swd2k")
    (tmp_path / "metrics.jsonl").write_text('{"kimg": 1, "swd2k": 3}\n')
    assert read(tmp_path, "swd2k") == ([1], [3])
    with pytest.raises(UserError, match="was not judged by fid"):
        read(tmp_path, "fid")
