"""Training learns, moves every parameter, and a resumed run is the run that was never stopped."""

from __future__ import annotations

import json

import pytest
import torch

from networks.discriminator import Discriminator
from networks.generator import Generator
from training.checkpoint import find_state, load_generator, load_state
from training.config import TrainConfig, resolve
from training.loop import ema_beta, lazy_adam, train

TINY = {
    "cfg": "demo",
    "cbase": 256,
    "cmax": 16,
    "z_dim": 16,
    "w_dim": 16,
    "style_channels": 8,
    "workers": 0,
    "metrics": [],
    "procs": 1,
}


def tiny(data, **options) -> TrainConfig:
    c_dim = 6 if options.get("cond") else 0
    return resolve({**TINY, "data": str(data), "batch": 8, **options}, 16, 3, c_dim, 0)


@pytest.mark.parametrize(
    "modulation, norm", [("adaconv", "demod"), ("adaconv", "instance"), ("modconv", "demod"), ("adain", "instance")]
)
def test_one_step_changes_every_parameter(tmp_path, faces16, modulation, norm):
    config = tiny(faces16, modulation=modulation, norm=norm, kimg=0.008, cond=True)
    torch.manual_seed(config.seed)
    before = {"G": Generator(config.generator), "D": Discriminator(config.discriminator)}
    train(config, tmp_path)
    state = load_state(find_state(tmp_path))
    assert state["step"] == 1
    for name, module in before.items():
        for parameter, old in module.named_parameters():
            assert not torch.equal(state[name][parameter], old), f"{name}.{parameter} did not learn"


@pytest.mark.parametrize("options", [{}, {"cond": True, "mirror": True}])
def test_a_resumed_run_equals_one_without_a_stop(tmp_path, faces16, options):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    straight.mkdir(), stopped.mkdir()
    train(tiny(faces16, kimg=0.32, tick=0.08, **options), straight)
    train(tiny(faces16, kimg=0.16, tick=0.08, **options), stopped)
    assert load_state(find_state(stopped))["step"] == 20
    train(tiny(faces16, kimg=0.32, tick=0.08, **options), stopped, find_state(stopped))

    a, b = (load_state(find_state(run)) for run in (straight, stopped))
    assert a["step"] == b["step"] == 40
    assert_same(a, b)
    for x, y in zip(stats(straight), stats(stopped), strict=True):
        del x["it_per_s"], y["it_per_s"]
        assert x == y


def test_records_after_the_state_are_dropped(tmp_path, faces16):
    train(tiny(faces16, kimg=0.08, tick=0.08), tmp_path)
    with open(tmp_path / "stats.jsonl", "a") as file:
        file.write('{"kimg": 0.16, "step": 20}\n{"kimg": 0.2')  # what a crash leaves behind
    train(tiny(faces16, kimg=0.16, tick=0.08), tmp_path, find_state(tmp_path))
    assert [values["kimg"] for values in stats(tmp_path)] == [0.08, 0.16]
    assert "loss/G" in stats(tmp_path)[-1]


@pytest.mark.slow
def test_training_learns(tmp_path, faces16):
    config = tiny(faces16, kimg=8, tick=4, batch=16, cmax=32, cbase=512, metrics=["swd500"])
    train(config, tmp_path)
    swd = [json.loads(line)["swd500"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert swd[-1] < swd[0] / 2, f"SWD {swd}"


def test_the_snapshot_is_the_averaged_generator(tmp_path, faces16):
    train(tiny(faces16, kimg=0.08, cond=True), tmp_path)
    G, info = load_generator(tmp_path / "snapshot-000000.08.safetensors")
    state = load_state(find_state(tmp_path))
    for name, value in G.state_dict().items():
        assert torch.equal(value, state["G_ema"][name])
    assert info["kimg"] == pytest.approx(0.08)


def test_lazy_adam_is_corrected_as_in_stylegan2():
    optimizer = lazy_adam(torch.nn.Linear(1, 1), lr=0.0025, interval=16)
    group = optimizer.param_groups[0]
    assert group["lr"] == pytest.approx(0.0025 * 16 / 17)
    assert group["betas"] == pytest.approx((0.0, 0.99 ** (16 / 17)))


def test_ema_has_its_half_life(faces16):
    config = tiny(faces16, ema_kimg=10.0, ema_rampup=0.05)
    steps = 10_000 / config.batch
    assert ema_beta(config, kimg=1e6) ** steps == pytest.approx(0.5)
    assert ema_beta(config, kimg=0) == 0
    assert ema_beta(config, kimg=100) ** (5_000 / config.batch) == pytest.approx(0.5)


def stats(run) -> list[dict]:
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def assert_same(a, b, path="state"):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            if key != "config":
                assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{i}]")
    else:
        assert a == b, path
