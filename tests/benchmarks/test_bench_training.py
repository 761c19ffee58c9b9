"""The baseline computes what it is compared with."""

import sys
from pathlib import Path

import pytest
import torch

from networks.generator import Generator, GeneratorConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from bench_training import as_peers_do, steps

from training.config import resolve
from training.descent import Descent


def test_the_peer_baseline_is_the_modulated_convolution():
    torch.manual_seed(0)
    G = Generator(GeneratorConfig(16, cbase=256, cmax=16, w_dim=16, z_dim=16, modulation="modconv")).double()
    z = torch.randn(3, 16, dtype=torch.float64)
    own = G(z, noise="const")
    with as_peers_do():
        peers = G(z, noise="const")
    torch.testing.assert_close(own, peers)
    assert not torch.equal(own, peers)  # another way of computing it


@pytest.mark.parametrize("part", ["G", "path length", "D", "R1"])
def test_each_step_trains(part):
    config = resolve({"cfg": "demo", "data": "x", "batch": 4, "procs": 1, "cbase": 256, "cmax": 16}, 16, 3, 0, 0)
    step = steps(config, torch.device("cpu"))[part]
    descent = next(c.cell_contents for c in step.__closure__ if isinstance(c.cell_contents, Descent))
    before = [p.clone() for p in descent.parameters]
    step()
    assert any(not torch.equal(a, b) for a, b in zip(before, descent.parameters, strict=True))
