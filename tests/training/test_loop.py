"""Training learns, moves every parameter, and a resumed run is the run that was never stopped."""

from __future__ import annotations

import json
import multiprocessing
from functools import partial

import pytest
import torch

from models.snapshot import load_generator
from networks.discriminator import Discriminator
from networks.generator import Generator
from torch_utils.errors import Failure, UserError
from training.config import TrainConfig
from training.gan import GANTrainer, ema_beta, set_precision
from training.loop import train
from training.loss import PathLength
from training.optimizer import GuardedOptimizer
from training.options import resolve
from training.presets import PRESETS
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


@pytest.mark.parametrize(
    "modulation, norm", [("adaconv", "demod"), ("adaconv", "instance"), ("modconv", "demod"), ("adain", "instance")]
)
def test_one_step_changes_every_parameter(tmp_path, faces16, modulation, norm):
    config = tiny(faces16, modulation=modulation, norm=norm, kimg=0.008, cond=True)
    torch.manual_seed(config.seed)
    before = {"G": Generator(config.generator), "D": Discriminator(config.discriminator)}
    train(GANTrainer, config, tmp_path)
    state = load_state(find_state(tmp_path))
    assert state["step"] == 1
    for name, module in before.items():
        for parameter, old in module.named_parameters():
            assert not torch.equal(state[name][parameter], old), f"{name}.{parameter} did not learn"


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


def test_records_after_the_state_are_dropped(tmp_path, faces16):
    train(GANTrainer, tiny(faces16, kimg=0.08, tick=0.08), tmp_path)
    with open(tmp_path / "stats.jsonl", "a") as file:
        file.write('{"kimg": 0.16, "step": 20}\n{"kimg": 0.2')  # what a crash leaves behind
    train(GANTrainer, tiny(faces16, kimg=0.16, tick=0.08), tmp_path, find_state(tmp_path))
    assert [values["kimg"] for values in stats(tmp_path)] == [0.08, 0.16]
    assert "loss/G" in stats(tmp_path)[-1]


@pytest.mark.slow
def test_training_learns(tmp_path, faces16):
    config = tiny(faces16, kimg=4, tick=2, batch=16, cmax=32, cbase=512, metrics=["swd500"])
    train(GANTrainer, config, tmp_path)
    swd = [json.loads(line)["swd500"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert swd[-1] < swd[0] / 2, f"SWD {swd}"


def test_the_snapshot_is_the_averaged_generator(tmp_path, faces16):
    train(GANTrainer, tiny(faces16, kimg=0.08, cond=True), tmp_path)
    G, info = load_generator(tmp_path / "snapshot-000000.08.safetensors")
    state = load_state(find_state(tmp_path))
    for name, value in G.state_dict().items():
        assert torch.equal(value, state["G_ema"][name])
    assert info["kimg"] == pytest.approx(0.08)


def test_ada_follows_the_sign_of_the_logits(tmp_path, faces16):
    """With a target that is always passed, p goes up by 1/500 a kimg; the fixed one stays."""
    for aug, expected in (("ada", 0.32 / 500), ("fixed", 0.3)):
        run = tmp_path / aug
        run.mkdir()
        options = {"target": -1.0} if aug == "ada" else {"p": 0.3}
        # a target of -1 is below every mean of signs, unless all are -1
        train(GANTrainer, tiny(faces16, kimg=0.32, tick=0.16, aug=aug, **options), run)
        assert load_state(find_state(run))["augment"]["p"] == pytest.approx(expected, rel=0.3)
        assert stats(run)[-1]["ada/p"] == pytest.approx(expected, rel=0.3)


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


def test_regularizers_have_the_weight_of_the_steps_that_they_stand_for(faces16, monkeypatch):
    """R1 is taken every 16th time and weighs 16 · γ/2, the path length every 4th and weighs 4 · 2."""
    gan = GANTrainer(tiny(faces16, gamma=3.0), torch.device("cpu"))
    monkeypatch.setattr("training.gan.gradient_penalty", lambda D, x, c: D(x, c).mean() * 0 + 1)
    gan.path_length.forward = lambda images, ws: images.mean() * 0 + 1
    taken = []
    monkeypatch.setattr(GuardedOptimizer, "backward", lambda self, loss, microbatches: taken.append(loss.item()))
    gan.penalty_step(next(gan.batches(0)))
    gan.path_length_step()
    assert taken == [16 * 3 / 2, 4 * 2]


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
    with pytest.raises(UserError, match="out of memory with 8 images at a time; halve --batch-gpu"):
        train(GANTrainer, tiny(faces16), tmp_path)


def test_another_error_keeps_its_traceback(tmp_path, faces16, monkeypatch):
    monkeypatch.setattr(GANTrainer, "generator_step", lambda self, reals: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        train(GANTrainer, tiny(faces16), tmp_path)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_the_whole(faces16, precision):
    config = tiny(faces16)
    torch.manual_seed(0)
    G, D = Generator(config.generator), Discriminator(config.discriminator)
    z = torch.randn(4, config.generator.z_dim)
    dtypes = []
    G.synthesis.blocks[-1].conv1.register_forward_hook(lambda module, args, y: dtypes.append(y.dtype))
    D.blocks[0].conv0.register_forward_hook(lambda module, args, y: dtypes.append(y.dtype))

    def images_logits_and_gradient():
        G.zero_grad()
        images = G(z, noise="const")
        logits = D(images)
        logits.sum().backward()
        return images.detach(), logits.detach(), G.synthesis.const.grad.clone()

    whole = images_logits_and_gradient()
    set_precision(G, D, precision)
    half = images_logits_and_gradient()
    kind = torch.bfloat16 if precision == "bf16" else torch.float16
    assert dtypes == [torch.float32] * 2 + [kind] * 2
    for a, b in zip(whole, half, strict=True):
        assert b.dtype == torch.float32
        assert 0 < (a - b).norm() / a.norm() < (0.05 if precision == "bf16" else 0.02)


def test_presets_have_the_published_values():
    """StyleGAN2-ADA, appendix D, table of hyperparameters; cbase 32768 is 1 ×, 16384 0.5 × the channels."""
    table = {  # batch, cbase, learning rate, gamma, EMA, mapping, minibatch std
        "stylegan2": (32, 32768, 0.002, 10, 10, 8, 4),
        "paper256": (64, 16384, 0.0025, 1, 20, 8, 8),
        "paper512": (64, 32768, 0.0025, 0.5, 20, 8, 8),
        "paper1024": (32, 32768, 0.002, 2, 10, 8, 4),
        "cifar": (64, 32768, 0.0025, 0.01, 500, 2, 32),
    }
    assert set(PRESETS) == {"auto", "demo", *table}
    for cfg, values in table.items():
        c = resolve({"cfg": cfg, "data": "x"}, 32, 3, 0, 0)
        assert (c.batch, c.generator.cbase, c.glr, c.gamma, c.ema_kimg) == values[:5]
        assert (c.generator.map_depth, c.discriminator.mbstd_group) == values[5:]
        assert c.dlr == c.glr
    assert resolve({"cfg": "cifar", "data": "x", "gamma": 1.0}, 32, 3, 0, 0).gamma == 1.0


@pytest.mark.parametrize(
    "options, words",
    [
        ({"batch_gpu": 3}, "--batch-gpu 3 does not divide the 8 images"),
        ({"p": 0.5}, "--p without augmentation"),
        ({"aug": "fixed"}, "--aug fixed needs --p"),
        ({"freezed": 3}, "--freezed without --init-from"),
    ],
)
def test_options_that_do_not_go_together(faces16, options, words):
    with pytest.raises(UserError, match=words):
        tiny(faces16, **options)


def test_ema_has_its_half_life(faces16):
    config = tiny(faces16, ema_kimg=10.0, ema_rampup=0.05)
    steps = 10_000 / config.batch
    assert ema_beta(config, kimg=1e6) ** steps == pytest.approx(0.5)
    assert ema_beta(config, kimg=0) == 0
    assert ema_beta(config, kimg=100) ** (5_000 / config.batch) == pytest.approx(0.5)


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
