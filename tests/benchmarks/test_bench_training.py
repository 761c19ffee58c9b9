"""The baseline computes what it is compared with."""

import sys
from pathlib import Path

import pytest
import torch

from networks.generator import Generator, GeneratorConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from bench_training import CANDIDATES, as_peers_do, in_planes, steps, time_by_kind

from training.gan import GANTrainer
from training.options import resolve


def test_the_peer_baseline_is_the_modulated_convolution():
    torch.manual_seed(0)
    G = Generator(GeneratorConfig(16, cbase=256, cmax=16, w_dim=16, z_dim=16, modulation="modconv")).double()
    z = torch.randn(3, 16, dtype=torch.float64)
    own = G(z, noise="const")
    with as_peers_do():
        peers = G(z, noise="const")
    torch.testing.assert_close(own, peers)
    assert not torch.equal(own, peers)  # another way of computing it


@pytest.mark.parametrize("name", list(CANDIDATES))
def test_every_candidate_trains_in_half_precision(faces16, name):
    """Each step, the path length's second derivatives included, with layers in bfloat16."""
    candidate = CANDIDATES[name]
    own = {"cfg": "demo", "data": str(faces16), "batch": 4, "procs": 1, "workers": 0, "cbase": 256, "cmax": 16}
    own |= {"precision": "bf16", **candidate.options, "compile": False}
    gan = GANTrainer(resolve(own, 16, 3, 0, 0), torch.device("cpu"))
    assert any(block.compute_dtype == torch.bfloat16 for block in gan.G.synthesis.blocks)
    before = [p.clone() for p in (*gan.G.parameters(), *gan.D.parameters())]
    with candidate.context():
        for step in steps(gan).values():
            step()
    after = [*gan.G.parameters(), *gan.D.parameters()]
    assert all(p.isfinite().all() for p in after)
    assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) > len(after) / 2


def test_planes_are_another_way_to_the_same_images():
    torch.manual_seed(0)
    G = Generator(GeneratorConfig(32, cbase=512, cmax=32, w_dim=16, z_dim=16))
    z = torch.randn(4, 16)
    own = G(z, noise="const")
    with in_planes():
        planes = G(z, noise="const")
    torch.testing.assert_close(own, planes, rtol=1e-4, atol=1e-4)
    assert not torch.equal(own, planes)


@pytest.mark.parametrize("part, name", [("G", "G_opt"), ("path length", "G_opt"), ("D", "D_opt"), ("R1", "D_opt")])
def test_each_step_trains(faces16, part, name):
    own = {"cfg": "demo", "data": str(faces16), "batch": 4, "procs": 1, "workers": 0, "cbase": 256, "cmax": 16}
    gan = GANTrainer(resolve(own, 16, 3, 0, 0), torch.device("cpu"))
    descent = gan.optimizers[name]
    before = [p.clone() for p in descent.parameters]
    steps(gan)[part]()
    assert any(not torch.equal(a, b) for a, b in zip(before, descent.parameters, strict=True))


def test_the_time_of_a_step_is_told_by_kind(faces16):
    own = {"cfg": "demo", "data": str(faces16), "batch": 4, "procs": 1, "workers": 0, "cbase": 256, "cmax": 16}
    gan = GANTrainer(resolve(own, 16, 3, 0, 0), torch.device("cpu"))
    seconds = time_by_kind(gan)
    assert all(value > 0 for value in seconds.values()) and sum(seconds.values()) < 30
