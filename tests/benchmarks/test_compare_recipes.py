"""benchmarks/compare_recipes.py: each arm is trained by the recipe of its preset, as train.py trains it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from compare_modulations import train_one

SMALL = {"batch": 8, "cbase": 256, "cmax": 8, "z_dim": 16, "w_dim": 16, "style_channels": 8, "map_depth": 1}


def test_an_arm_follows_its_presets_schedules(faces16, tmp_path):
    """R3GAN's p rises from 0 along half a cosine; at half of the training it is half of its last value."""
    options = {**SMALL, "cfg": "r3gan", "data": str(faces16), "kimg": 0.064, "tick": 0.032, "metrics": ["swd50"]}
    train_one(tmp_path / "run", {**options, "procs": 1, "workers": 0, "noise": False})
    lines = [json.loads(line) for line in (tmp_path / "run" / "stats.jsonl").read_text().splitlines()]
    assert lines[0]["ada/p"] < lines[-1]["ada/p"] == pytest.approx(0.55, abs=0.03)
    assert all("loss/path_length" not in line and "loss/r2" in line for line in lines)
