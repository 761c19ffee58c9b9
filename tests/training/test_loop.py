"""Training learns, moves every parameter, and a resumed run is the run that was never stopped."""

from __future__ import annotations

import json
import multiprocessing
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from models.snapshot import kimg_name
from torch_utils.errors import Failure, UserError
from training.config import ClassifierConfig, TrainConfig
from training.gan import GANTrainer
from training.loop import out_of_memory_message, train
from training.loss import PathLength
from training.optimizer import ema_beta, ramped_half_life
from training.options import resolve
from training.resume import check_resumable, kept_fields
from training.runs import find_state, load_state

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


@pytest.mark.parametrize("tick, snap, at", [(0.003, 4, (16, 24, 40, 48)), (0.001, 16, (16, 32, 48))])
def test_snapshots_are_written_where_a_step_is_longer_than_a_tick(tmp_path, faces16, tick, snap, at):
    """At the first step after every snap ticks: of 8 images, each."""
    train(GANTrainer, tiny(faces16, kimg=0.048, tick=tick, snap=snap), tmp_path)
    assert sorted(path.stem for path in tmp_path.glob("snapshot-*")) == [f"snapshot-{kimg_name(n / 1000)}" for n in at]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cond": True, "mirror": True},
        {"aug": "ada", "target": -1.0, "augpipe": "bgcfnc", "batch_gpu": 4},
        {"loss": "relativistic", "precision": "bf16"},
    ],
)
def test_a_resumed_run_equals_one_without_a_stop(tmp_path, faces16, options):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    straight.mkdir(), stopped.mkdir()
    train(GANTrainer, tiny(faces16, kimg=0.32, tick=0.08, **options), straight)
    train(GANTrainer, tiny(faces16, kimg=0.16, tick=0.08, **options), stopped)
    assert load_state(find_state(stopped))["step"] == 20
    train(GANTrainer, tiny(faces16, kimg=0.32, tick=0.08, **options), stopped, find_state(stopped))

    a, b = (load_state(find_state(run)) for run in (straight, stopped))
    assert a["step"] == b["step"] == 40
    assert_same(a, b)
    for x, y in zip(stats(straight), stats(stopped), strict=True):
        del x["it_per_s"], y["it_per_s"]
        assert x == y


def test_a_signal_in_the_last_step_is_told_to_the_launcher(tmp_path, faces16, monkeypatch):
    """It is ending its processes then, and waits for no result."""
    monkeypatch.setattr("training.loop.StopSignal", lambda: SimpleNamespace(set=True))
    assert not train(GANTrainer, tiny(faces16, kimg=0.008), tmp_path)
    monkeypatch.setattr("training.loop.StopSignal", lambda: SimpleNamespace(set=False))
    assert train(GANTrainer, tiny(faces16, kimg=0.016), tmp_path, find_state(tmp_path))


def test_records_after_the_state_are_dropped(tmp_path, faces16):
    train(GANTrainer, tiny(faces16, kimg=0.08, tick=0.08), tmp_path)
    with open(tmp_path / "stats.jsonl", "a") as file:
        file.write('{"kimg": 0.16, "step": 20}\n{"kimg": 0.2')  # what a crash leaves behind
    train(GANTrainer, tiny(faces16, kimg=0.16, tick=0.08), tmp_path, find_state(tmp_path))
    assert [values["kimg"] for values in stats(tmp_path)] == [0.08, 0.16]
    assert "loss/G" in stats(tmp_path)[-1]


@pytest.mark.slow
def test_training_learns(tmp_path, faces16):
    config = tiny(faces16, kimg=2, tick=2, batch=16, cmax=32, cbase=512, metrics=["swd500"])
    train(GANTrainer, config, tmp_path)
    swd = [json.loads(line)["swd500"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert swd[-1] < swd[0] / 2, f"SWD {swd}"


def test_a_run_without_finite_gradients_stops(tmp_path, faces16, monkeypatch):
    """Steps that are not finite change no weight; many of them name the last good model."""
    config = tiny(faces16, kimg=0.16, tick=0.16)
    train(GANTrainer, config, tmp_path)
    before = load_state(find_state(tmp_path))
    monkeypatch.setattr("training.gan.generator_loss", lambda fake, real: fake.mean() * float("nan"))
    monkeypatch.setattr("training.gan.discriminator_loss", lambda *args: args[0].mean() * float("inf"))
    monkeypatch.setattr("training.gan.gradient_penalty", lambda D, x, c: D(x, c).mean() * float("nan"))
    config = tiny(faces16, kimg=1.6, tick=0.04, pl_weight=0.0, snap=1)
    with pytest.raises(Failure, match=r"50 steps .* last good model is .*snapshot-00000\d\.?\d*\.safetensors"):
        train(GANTrainer, config, tmp_path, find_state(tmp_path))
    after = load_state(find_state(tmp_path))
    assert after["step"] > before["step"]
    assert_same(before["G"] | {"w_avg": 0}, after["G"] | {"w_avg": 0})
    assert_same(before["D"], after["D"])
    assert stats(tmp_path)[-1]["skipped"] >= 2 * 50


def test_a_path_length_that_is_not_finite_costs_one_step(tmp_path, faces16, monkeypatch):
    """Its running mean would never be finite again."""
    config = tiny(faces16, kimg=0.16, tick=0.16)
    calls, forward = [], PathLength.forward

    def once_infinite(self, images, ws):
        calls.append(images)
        return forward(self, images * (float("inf") if len(calls) == 3 else 1), ws)

    monkeypatch.setattr(PathLength, "forward", once_infinite)
    train(GANTrainer, config, tmp_path)
    state = load_state(find_state(tmp_path))
    assert len(calls) == 5 and stats(tmp_path)[-1]["skipped"] == 1
    assert state["path_length"]["mean"].isfinite() and state["path_length"]["mean"] > 0
    assert state["G_opt"]["optimizer"]["state"][0]["step"] == 20 + 5 - 1


def test_an_error_leaves_no_process_behind(tmp_path, faces16, monkeypatch):
    """The loader's ignore the signal that Python would end them by, and it waits for them."""
    monkeypatch.setattr(GANTrainer, "generator_step", lambda self, reals: 1 / 0)
    with pytest.raises(ZeroDivisionError) as error:
        train(GANTrainer, tiny(faces16, workers=1), tmp_path)
    assert error.tb is not None  # which keeps the frames of the loop alive
    assert multiprocessing.active_children() == []


def test_compiled_steps_are_the_same_steps(tmp_path, faces16, monkeypatch):
    """In one graph each, whose first losses are those of the steps as they are."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # as compiled, but for the code
    losses = []
    for i, compiled in enumerate((False, True)):
        run = tmp_path / str(i)
        run.mkdir()
        torch._dynamo.reset(), torch._dynamo.utils.counters.clear()
        train(GANTrainer, tiny(faces16, kimg=0.016, tick=0.008, compile=compiled, pl_weight=0.0), run)
        losses.append([[line[name] for name in ("loss/G", "loss/D", "loss/r1") if name in line] for line in stats(run)])
    for a, b in zip(*losses, strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"], dict(counters["graph_break"])
    assert counters["stats"]["unique_graphs"] <= 5


@pytest.mark.parametrize("on", ["cpu", "gpu"])
def test_out_of_memory_names_the_option(tmp_path, faces16, monkeypatch, on):
    def too_much(self, reals):
        if on == "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(GANTrainer, "generator_step", too_much)
    with pytest.raises(
        UserError, match=r"out of memory with 8 images at a time; take --batch-gpu 4, which.*--init-from begins"
    ):
        train(GANTrainer, tiny(faces16), tmp_path)
    with pytest.raises(
        UserError, match=r"out of memory with 1 image at a time; take a smaller model or smaller images"
    ):
        train(GANTrainer, tiny(faces16, batch_gpu=1), tmp_path)


@pytest.mark.parametrize("batch", [1, 3, 4, 6, 8, 9, 12, 15, 20, 24, 64])
def test_what_is_said_where_memory_runs_out_can_be_done(faces16, tmp_path, batch):
    """A resumed run takes the microbatches that are named, of at most half the size; where none is, it takes none."""
    sizes = [n for n in range(1, batch + 1) if batch % n == 0]
    for begun in sizes:
        old = tiny(faces16, batch=batch, batch_gpu=begun)

        def goes_on(n: int, old=old) -> TrainConfig | None:
            now = tiny(faces16, **kept_fields(old, {}), batch_gpu=n)
            try:
                check_resumable(old, tmp_path, now)
            except UserError:
                return None
            return now

        possible = {n: now for n in sizes if (now := goes_on(n))}
        assert begun in possible
        for asked, now in possible.items():
            message, smaller = out_of_memory_message(now, resumed=True), [n for n in possible if 2 * n <= asked]
            if smaller:
                assert f"; take --batch-gpu {max(smaller)}, which" in message
            else:
                assert "--batch-gpu" not in message and "; resume the run on a machine with more memory, or " in message
            new, smaller = out_of_memory_message(now, resumed=False), [n for n in sizes if 2 * n <= asked]
            assert (f"; take --batch-gpu {max(smaller)}, which" in new) if smaller else ("--batch-gpu" not in new)


def test_an_encoder_that_runs_out_of_memory_goes_on_elsewhere():
    """Its batch normalization sees a microbatch, so that --batch-gpu cannot change."""
    message = out_of_memory_message(ClassifierConfig(data="x", gpus=1), resumed=True)
    assert message.startswith(
        "out of GPU memory with 128 images at a time; resume the run on a machine with more memory, or "
    )
    assert "; take --batch-gpu 64, which" in out_of_memory_message(ClassifierConfig(data="x"), resumed=False)


def test_another_error_keeps_its_traceback(tmp_path, faces16, monkeypatch):
    monkeypatch.setattr(GANTrainer, "generator_step", lambda self, reals: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        train(GANTrainer, tiny(faces16), tmp_path)


def test_ema_has_its_half_life(faces16):
    config = tiny(faces16, ema_kimg=10.0, ema_rampup=0.05)
    steps = 10_000 / config.batch
    assert ema_beta(ramped_half_life(config, kimg=1e6), config.batch) ** steps == pytest.approx(0.5)
    assert ema_beta(ramped_half_life(config, kimg=0), config.batch) == 0
    assert ema_beta(ramped_half_life(config, kimg=100), config.batch) ** (5_000 / config.batch) == pytest.approx(0.5)


def stats(run) -> list[dict]:
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def assert_same(a, b, path="state"):
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a.keys() - {"config"}:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{i}]")
    else:
        assert a == b, path
