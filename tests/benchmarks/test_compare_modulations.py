"""benchmarks/compare_modulations.py: runs are trained once, go on where they stopped, and are evaluated afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import Mock

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import compare_modulations

from tests.scripts import done, image_zip, script
from torch_utils.errors import UserError
from training.options import resolve

SMALL = {"cbase": 256, "cmax": 8, "z_dim": 16, "w_dim": 16, "style_channels": 8, "map_depth": 1, "batch": 8}


def options(data: Path, **changes) -> dict:
    common = {"cfg": "demo", "data": str(data), "mirror": True, "kimg": 0.064, "tick": 0.032, "snap": 1, "seed": 0}
    return {**common, **SMALL, "procs": 1, "workers": 0, "metrics": ["swd50"], **changes}


@pytest.mark.parametrize(
    "name, values",
    [
        ("adaconv", {}),
        ("adain", {"modulation": "adain", "norm": "instance"}),
        ("modconv-noise", {"modulation": "modconv", "noise": True}),
        ("adaconv-instance", {"norm": "instance"}),
        ("adaconv-depthwise0.3-maplr0.5", {"depthwise_scale": 0.3, "map_lr": 0.5}),
        ("adaconv-mixing0-pointwise2", {"mixing_scale": 0.0, "pointwise_scale": 2.0}),
        ("adaconv-rank8-kernel5", {"style_channels": 8, "kernel_size": 5}),
        ("adaconv-upto8-bias", {"kernels_up_to": 8, "predict_bias": True}),
    ],
)
def test_a_variant_changes_what_it_names_and_nothing_else(name, values, faces16):
    given = {field: value for field, value in options(faces16).items() if field != "style_channels"}
    usual, config = (resolve({**given, **changes}, 16, 3, 0, 0) for changes in ({}, compare_modulations.changes(name)))
    assert asdict(config.generator) == asdict(usual.generator) | values
    assert replace(config, generator=usual.generator) == usual


@pytest.mark.parametrize(
    "part, option, value",
    [
        ("gamma0.2", "gamma", 0.2),
        ("glr0.001", "glr", 0.001),
        ("dlr0.005", "dlr", 0.005),
        ("crossover0", "mixing", 0),
        ("pl0", "pl_weight", 0),
    ],
)
def test_a_variant_can_change_an_option_of_the_training(part, option, value, faces16):
    usual, config = (
        resolve({**options(faces16), **compare_modulations.changes(name)}, 16, 3, 0, 0)
        for name in ("modconv", f"modconv-{part}")
    )
    assert config == replace(usual, **{option: value}) and getattr(usual, option) != value


def test_a_variant_can_train_in_another_precision(faces16):
    config = resolve({**options(faces16), **compare_modulations.changes("adaconv-bf16")}, 16, 3, 0, 0)
    assert config.precision == "bf16"


@pytest.fixture
def forked(monkeypatch) -> None:
    """Processes that need not import PyTorch again."""

    def python(arguments: list[str], run: Path, output: str) -> None:
        name, *others = [" ".join(arguments[:2]), *arguments[2:]] if arguments[0] == "-m" else arguments
        (run / output).write_text(done(script(name, *others, cwd=compare_modulations.ROOT)).stdout)

    monkeypatch.setattr(compare_modulations, "python", python)


def test_a_stopped_run_goes_on_and_ends_like_one_that_was_not(faces16, tmp_path, forked):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = compare_modulations.train_one(whole, options(faces16))
    compare_modulations.train_one(parts, options(faces16, kimg=0.032))
    (parts / "done").unlink()  # as if it had been stopped there
    found = compare_modulations.train_one(parts, options(faces16))
    assert list(found) == list(expected) == [0, 0.032, 0.064]
    assert [found[k]["swd50"] for k in found] == [expected[k]["swd50"] for k in expected]
    last = "snapshot-000000.064.safetensors"
    assert (parts / last).read_bytes() == (whole / last).read_bytes()


def test_a_finished_run_is_not_trained_again_and_its_snapshots_are_evaluated_once(
    faces16, tmp_path, forked, monkeypatch
):
    run, given = tmp_path / "run", options(faces16)
    first = compare_modulations.train_and_evaluate(run, given, "swd40")
    with pytest.raises(UserError, match="was trained with another depthwise_scale; name another --outdir"):
        compare_modulations.train_one(run, {**given, "depthwise_scale": 0.1})
    assert [sorted(values.keys() & {"swd50", "swd40"}) for values in first.values()] == [
        ["swd50"],
        ["swd40", "swd50"],
        ["swd40", "swd50"],
    ]
    monkeypatch.setattr(compare_modulations, "python", lambda *a: pytest.fail("something was run again"))
    assert json.dumps(compare_modulations.train_and_evaluate(run, given, "swd40")) == json.dumps(first)


@pytest.mark.parametrize("gpus", [0, 1])
def test_training_and_metrics_run_where_they_were_asked_to(gpus, faces16, tmp_path, monkeypatch):
    asked = []

    def python(arguments: list[str], run: Path, output: str) -> None:
        if arguments[0] == "-c":
            options = json.loads(arguments[3])
            asked.append((options.get("gpus", 0), options["workers"]))
            (run / "metrics.jsonl").write_text(json.dumps({"kimg": 0, "swd2k": 1.0}) + "\n")
        else:
            asked.append(arguments[arguments.index("--gpus") + 1])
            (run / output).write_text(json.dumps({"records": [{"settings": {"kimg": 0}, "swd50": 2.0}]}))

    monkeypatch.setattr(compare_modulations, "python", python)
    arguments = ["--data", str(faces16), "--variants", "adaconv", "--seeds", "0", "--final", "swd50", "--jobs", "1"]
    compare_modulations.main([*arguments, "--gpus", str(gpus), "--outdir", str(tmp_path)], standalone_mode=False)
    assert asked == [(gpus, gpus), str(gpus)]


def test_values_at_equal_time_are_those_at_fewer_kimg_of_the_dearer_variant():
    """The dearer of two takes 1.25 times as long, so that it has had 80 kimg in the time of 100."""
    curves = {
        "cheap": [{0: {"swd2k": 50.0}, 100: {"swd2k": 10.0}}],
        "dear": [{0: {"swd2k": 50.0}, 60: {"swd2k": 20.0}, 100: {"swd2k": 8.0}}] * 2,
    }
    table = compare_modulations.tabulate(curves, ["swd2k"], {"cheap": 20.0, "dear": 25.0})
    assert table["cheap"]["kimg_at_equal_time"] == 100 and table["cheap"]["swd2k at equal time"] == [10.0]
    assert table["dear"]["kimg_at_equal_time"] == 80 and table["dear"]["swd2k at equal time"] == [14.0, 14.0]
    assert table["dear"]["swd2k"] == [[50.0, 20.0, 8.0]] * 2 and table["dear"]["seconds_per_kimg"] == 25.0


def test_costs_leave_out_the_start_and_are_measured_anew_for_a_variant_that_they_lack(tmp_path, monkeypatch):
    """Of runs that take 7 s to start, and 20 or 25 s for a thousand images."""
    turns = []

    def run(command: list[str], **_) -> None:
        folder, asked = Path(command[3]), json.loads(command[4])
        turns.append((asked["modulation"], asked["kimg"]))
        speed = {"adain": 20.0, "adaconv": 25.0}[asked["modulation"]]
        (folder / "seconds").write_text(str(7 + speed * asked["kimg"]))

    monkeypatch.setattr(subprocess, "run", run)
    given = {"cheap": {"modulation": "adain"}, "dear": {"modulation": "adaconv"}}
    cheap = {"cheap": given["cheap"]}
    for _ in range(2):
        assert compare_modulations.seconds_per_kimg(tmp_path, cheap, 2) == {"cheap": pytest.approx(20)}
    assert turns == [("adain", 0.064), ("adain", 0.32)] * 2
    found = compare_modulations.seconds_per_kimg(tmp_path, given, 1)
    assert found == {"cheap": pytest.approx(20), "dear": pytest.approx(25)}
    assert [modulation for modulation, _ in turns[4:]] == ["adain", "adain", "adaconv", "adaconv"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        *(
            (["--variants", f"adaconv,{name}"], f"--variants {name}: write adaconv, modconv, adain, and behind it")
            for name in ("foo", "", "adaconv-foo", "adaconv-maplr", "adaconv-maplr1.1.1", "adaconv-rank8.5", "instance")
        ),
        (["--variants", "adaconv,modconv-instance"], "modconv"),
        (["--seeds", "0,1,0"], "--seeds has a seed twice"),
        (["--metrics", "bogus"], "bogus"),
        (["--final", "swd2k,bogus"], "bogus"),
        (["--cond"], "has no labels"),
    ],
)
def test_mistakes_are_told_before_a_training(tmp_path, monkeypatch, arguments, words):
    monkeypatch.setattr(compare_modulations, "train_and_evaluate", Mock(side_effect=AssertionError("a training")))
    data = image_zip(tmp_path / "a.zip", [(16, 16)] * 2)
    with pytest.raises(UserError, match=words):
        compare_modulations.main(["--data", str(data), *arguments], standalone_mode=False)


def test_what_a_run_that_fails_has_logged_last_is_told(tmp_path):
    with pytest.raises(UserError, match=r"run ended with 2; run this again .*log\.txt ends: error: no"):
        (tmp_path / "run").mkdir()
        code = "import sys; print('error: no', file=sys.stderr); sys.exit(2)"
        compare_modulations.python(["-c", code], tmp_path / "run", "trained.txt")
