"""benchmarks/compare_spectra.py: stripes are found where they were drawn."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from compare_spectra import main, power, stripes

from models.snapshot import PRETRAINED
from tests.scripts import image_zip
from torch_utils.errors import UserError


@pytest.mark.parametrize(("down", "across"), [(21, 0), (0, 21), (12, 1), (31, 0)])
def test_stripes_are_found_where_they_are(down, across):
    """White noise of deviation 1, and stripes of amplitude a at random phases: at their frequency, the window with the
    squared sum Σw² spreads 64² · Σw² / 64² = Σw² of the noise, and gathers (a Σw / 2)² of the stripes."""
    torch.manual_seed(0)
    real, noise = torch.randn(1000, 1, 64, 64), torch.randn(1000, 1, 64, 64)
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    phase = 2 * math.pi * torch.rand(1000, 1, 1, 1)
    drawn = noise + 0.2 * torch.cos(2 * math.pi * (down * y + across * x) / 64 + phase)
    found = stripes(power(drawn), power(real))
    window = torch.hann_window(64, periodic=False)
    window = window[:, None] * window
    expected = 1 + (0.2 * float(window.sum()) / 2) ** 2 / float(window.square().sum())
    assert (found["down"], found["across"]) == (down, across)
    assert found["ratio"] == pytest.approx(expected, rel=0.2)
    assert found["median"] == pytest.approx(1, abs=0.05)


def test_two_sets_of_the_same_kind_have_no_stripes():
    torch.manual_seed(0)
    assert stripes(power(torch.randn(2000, 3, 32, 32)), power(torch.randn(2000, 3, 32, 32)))["ratio"] < 1.3


@pytest.mark.parametrize("count, side, words", [(1, 32, "has one image"), (4, 16, "cannot be compared")])
def test_images_that_cannot_be_compared_are_named(tmp_path, count, side, words):
    data, network = image_zip(tmp_path / "a.zip", [(side, side)] * count), PRETRAINED / "faces32.safetensors"
    with pytest.raises(UserError, match=words):
        main(["--data", str(data), "--network", str(network), "--images", "2"], standalone_mode=False)
