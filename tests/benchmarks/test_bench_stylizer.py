"""The baseline computes what it is compared with."""

import sys
from pathlib import Path

import pytest
import torch

from networks.stylizer import Stylizer, StylizerConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from bench_stylizer import Baseline, multiply_adds


def test_the_baseline_is_the_stylizer():
    torch.manual_seed(0)
    own = Stylizer(StylizerConfig(1 / 16, style_size=64)).double().requires_grad_(False)
    for name, parameter in own.named_parameters():
        if name.startswith("encoder.") and parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter)
    content, style = torch.rand(2, 3, 32, 40).double() * 2 - 1, torch.rand(2, 3, 64, 64).double() * 2 - 1
    y = own(content, own.kernels(style))
    torch.testing.assert_close(Baseline(own)(content, style), y, rtol=1e-9, atol=1e-9)
    assert y.std() > 0.1


def test_multiply_adds():
    """VGG-19 to relu4_1 and its mirror, by hand: 9 · inputs · outputs · pixels of each convolution."""
    with torch.no_grad():
        counts = multiply_adds(Stylizer(StylizerConfig(1 / 4)), 64, 64, 2)
    layers = [(16, 16, 1), (16, 32, 4), (32, 32, 4), (32, 64, 16), *[(64, 64, 16)] * 3, (64, 128, 64)]
    learned = 2 * 9 * 64**2 * (3 * 16 + sum(i * o / shrink for i, o, shrink in layers))
    assert counts["encode content"] == pytest.approx(learned)
    adaptive = 2 * 9 * 64**2 * sum(c * group / shrink for c, group, shrink in [(128, 1, 64), (64, 2, 16), (32, 4, 4)])
    assert counts["decode"] == pytest.approx(learned + adaptive + 2 * 9 * 64**2 * 16 * 8)
