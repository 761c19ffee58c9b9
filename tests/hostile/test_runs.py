"""Runs of somebody else's: options, configuration, states and records have to be such as training writes."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import pytest
import torch

import train
import train_encoder
import train_stylizer
from tests.hostile.attacks import refusal, refused, untouched
from tests.scripts import done, script_here
from torch_utils.files import RUN_MARKER
from torch_utils.schema import Within
from training.augment import AUGPIPES
from training.config import AugPipe, TrainConfig
from training.presets import PRESETS
from training.resume import SCRIPTS
from training.runs import list_states, load_state

NAN = float("nan")
DEEP = "[" * 100_000 + "]" * 100_000
LONGER = ("--kimg", 0.024)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


OPTIONS = {
    "data list": {"data": ["a"]},
    "data none": {"data": None},
    "batch text": {"batch": "8"},
    "batch true": {"batch": True},
    "batch 0": {"batch": 0},
    "batch negative": {"batch": -8},
    "batch large": {"batch": 2**40},
    "batch 8.0": {"batch": 8.0},
    "kimg NaN": {"kimg": NAN},
    "kimg infinite": {"kimg": float("inf")},
    "kimg 10^400": {"kimg": 10**400},
    "tick 0": {"tick": 0},
    "tick text": {"tick": "1"},
    "snap 0": {"snap": 0},
    "keep list": {"keep": [1]},
    "workers many": {"workers": 10**6},
    "procs many": {"procs": 10**9},
    "gpus negative": {"gpus": -1},
    "cfg unknown": {"cfg": "other"},
    "cfg list": {"cfg": []},
    "metrics text": {"metrics": [1]},
    "metrics unknown": {"metrics": ["../x"]},
    "augpipe": {"augpipe": "eval"},
    "aug dict": {"aug": {}},
    "cbase text": {"cbase": "x"},
    "cmax large": {"cmax": 10**12},
    "map_depth large": {"map_depth": 10**9},
    "unknown": {"no_such_option": 1},
    "a network": {"generator": {}},
    "seed": {"seed": 2**70},
    "weights": {"detector_weights": "x"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(run, name):
    change(run / "options.json", **OPTIONS[name])
    with untouched(run):
        refused("train.py", "--resume", run, *LONGER if "kimg" not in OPTIONS[name] else ())


@pytest.mark.parametrize("text", [DEEP, "", "{", "[]", "1", '"a"', "null", "\xff", '{"a": NaN}', "9" * 5000])
@pytest.mark.parametrize("file", ["options.json", "config.json"])
def test_records_that_are_no_objects(run, file, text):
    (run / file).write_bytes(text.encode("latin1"))
    with untouched(run):
        refused("train.py", "--resume", run, *LONGER)


@pytest.mark.parametrize(
    "about", [[], None, {"script": "../../evil.py"}, {"script": ["train.py"]}, {"script": "\x1b[2J"}]
)
def test_what_config_says(run, about):
    change(run / "config.json", about=about)
    assert "evil" not in refused("train.py", "--resume", run, *LONGER).replace("../../evil.py", "", 1) or about is None


@pytest.mark.parametrize("kind", ["a link", "a folder"])
def test_the_marker_of_a_run(run, tmp_path, kind):
    """It is written to where it is missing, and locked."""
    marker = run / RUN_MARKER
    marker.unlink()
    if kind == "a link":
        marker.symlink_to(tmp_path / "elsewhere")
    else:
        marker.mkdir()
    assert f"{RUN_MARKER} is a link, a pipe or a folder" in refused("train.py", "--resume", run, *LONGER)
    assert not (tmp_path / "elsewhere").exists()


def test_a_run_of_another_script(run):
    change(run / "config.json", about={"script": "train_encoder.py"})
    assert "python train_encoder.py --resume" in refused("train.py", "--resume", run, *LONGER)


@pytest.mark.parametrize(
    "line", ["{}", "[]", "1", "x", DEEP, '{"kimg": "1"}', '{"kimg": NaN}', '{"kimg": [1]}', "\x1b[2J"]
)
@pytest.mark.parametrize("name", ["stats.jsonl", "metrics.jsonl"])
def test_lines_of_records(run, name, line):
    (run / name).write_text(line + "\n")
    assert name in refused("train.py", "--resume", run, *LONGER)


# --- states ---------------------------------------------------------------------------------------------------------


def first(values: dict) -> str:
    return next(name for name, value in values.items() if isinstance(value, torch.Tensor) and value.ndim)


def set_weight(change_tensor):
    def change_state(state):
        name = first(state["G"])
        state["G"][name] = change_tensor(state["G"][name])

    return change_state


def set_moment(change_tensor, name="exp_avg"):
    def change_state(state):
        moments = next(iter(state["D_opt"]["optimizer"]["state"].values()))
        moments[name] = change_tensor(moments[name])

    return change_state


STATES = {
    "NaN weights": set_weight(lambda t: t * NAN),
    "infinite weights": set_weight(lambda t: t + float("inf")),
    "integer weights": set_weight(lambda t: t.long()),
    "double weights": set_weight(lambda t: t.double()),
    "complex weights": set_weight(lambda t: t.to(torch.complex64)),
    "float8 weights": set_weight(lambda t: t.to(torch.float8_e5m2)),
    "sparse weights": set_weight(lambda t: t.to_sparse()),
    "another shape": set_weight(lambda t: t[None]),
    "no tensor": set_weight(lambda t: 1),
    "a missing weight": lambda s: s["G"].pop(first(s["G"])),
    "one weight more": lambda s: s["G"].update(more=torch.zeros(1)),
    "NaN moments": set_moment(lambda t: t * NAN),
    "moments of another shape": set_moment(lambda t: t[None]),
    "moments of one number": set_moment(lambda t: t.mean()),
    "squares of one number": set_moment(lambda t: t.mean(), "exp_avg_sq"),
    "a step for each weight": set_moment(lambda t: t.expand(4), "step"),
    "negative steps": set_moment(lambda t: -t, "step"),
    "moments without steps": lambda s: s["D_opt"]["optimizer"]["state"][0].pop("step"),
    "moments of another optimizer": lambda s: s["D_opt"]["optimizer"]["state"].update(
        {0: {"momentum_buffer": s["D_opt"]["optimizer"]["state"][0]["exp_avg"]}}
    ),
    "moments of integers": set_moment(lambda t: t.long()),
    "moments of text": set_moment(lambda t: "x"),
    "moments of no parameter": lambda s: s["G_opt"]["optimizer"]["state"].update({10**6: {}}),
    "no optimizer": lambda s: s.pop("G_opt"),
    "an optimizer's text": lambda s: s.update(G_opt="x"),
    "an optimizer without state": lambda s: s["G_opt"].update(optimizer={}),
    "NaN learning rate": lambda s: s["G_opt"]["optimizer"]["param_groups"][0].update(lr=NAN),
    "a learning rate of text": lambda s: s["G_opt"]["optimizer"]["param_groups"][0].update(lr="1"),
    "beta of 1": lambda s: s["G_opt"]["optimizer"]["param_groups"][0].update(betas=(0.0, 1.0)),
    "another eps": lambda s: s["G_opt"]["optimizer"]["param_groups"][0].update(eps=NAN),
    "groups": lambda s: s["G_opt"]["optimizer"].update(param_groups=[]),
    "groups of text": lambda s: s["G_opt"]["optimizer"].update(param_groups=["x"]),
    "a NaN counter": lambda s: s["G_opt"].update(scale=torch.tensor(NAN)),
    "a counter of text": lambda s: s["G_opt"].update(skipped="1"),
    "NaN p": lambda s: s["augment"].update(p=torch.tensor(NAN)),
    "a negative step": lambda s: s.update(step=-1),
    "a step of text": lambda s: s.update(step="2"),
    "half a step": lambda s: s.update(step=2.5),
    "10^400 steps": lambda s: s.update(step=10**400),
    "NaN steps": lambda s: s.update(step=NAN),
    "evaluating": lambda s: s.update(evaluating="yes"),
    "random text": lambda s: s.update(random="x"),
    "random of nobody": lambda s: s.update(random=[]),
    "random of two": lambda s: s.update(random=s["random"] * 2),
    "random numbers": lambda s: s.update(random=[{"cpu": torch.zeros(7)}]),
    "random zeros": lambda s: s.update(random=[{"cpu": torch.zeros_like(s["random"][0]["cpu"])}]),
    "random none": lambda s: s.update(random=[{}]),
    "averages": lambda s: s.update(averages={"counts": {"a": 1}, "sums": []} | {"x": 1}),
    "averages of text": lambda s: s.update(averages={"counts": {"a": "1"}, "sums": [torch.zeros(1)]}),
    "averages of others": lambda s: s.update(averages={"counts": {"a": 1}, "sums": [torch.zeros(2)]}),
    "averages of another process": lambda s: s.update(averages={"counts": {"a": 1}, "sums": [torch.zeros(1)] * 2}),
    "config none": lambda s: s.update(config=None),
    "config empty": lambda s: s.update(config={}),
    "config batch": lambda s: s["config"].update(batch="8"),
    "config NaN": lambda s: s["config"].update(glr=NAN),
    "config primes": lambda s: s["config"]["generator"].update(cmax=999_999_999_989),
    "config deep": lambda s: s["config"]["generator"].update(map_depth=10**9),
    "config unknown": lambda s: s["config"].update(more=1),
    "config list": lambda s: s["config"].update(discriminator=[]),
    "no config": lambda s: s.pop("config"),
}


@pytest.mark.parametrize("name", STATES)
def test_states(run, name):
    (path,) = list_states(run)
    state = torch.load(path, weights_only=True)
    STATES[name](state)
    torch.save(state, path)
    with untouched(run / "state"):
        refused("train.py", "--resume", run, *LONGER)


class Harm:
    def __init__(self, function: Any, *args: Any):
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["system", "bytearray", "getattr", "storage"])
def test_states_that_call(run, tmp_path, name, zipped):
    """What PyTorch would refuse with advice to execute it, and what it would allow: 64 GiB of zeros."""
    canary = tmp_path / "canary"
    harm = {
        "system": Harm(os.system, f"touch {canary}"),
        "bytearray": Harm(bytearray, 1 << 36),
        "getattr": Harm(getattr, "a", "upper"),
        "storage": Harm(torch.UntypedStorage, 1 << 36),
    }[name]
    (path,) = list_states(run)
    state = torch.load(path, weights_only=True)
    torch.save({**state, "harm": harm}, path, _use_new_zipfile_serialization=zipped)
    line = refused("train.py", "--resume", run, *LONGER)
    assert "weights_only" not in line and not canary.exists()


def repack(path: Path, *, compressed: bool = False, edit: Any = None) -> None:
    """Writes the archive of a state again, with other members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (edit or dict)(members)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


PICKLE = "archive/data.pkl"
ARCHIVES = {
    "compressed": {"compressed": True},
    "without a pickle": {"edit": lambda m: m.pop(PICKLE)},
    "two pickles": {"edit": lambda m: m.update({"other/data.pkl": m[PICKLE]})},
    "an empty pickle": {"edit": lambda m: m.update({PICKLE: b""})},
    "a pickle of 16 MiB": {"edit": lambda m: m.update({PICKLE: m[PICKLE] + bytes(1 << 24)})},
    "a pickle that loops": {"edit": lambda m: m.update({PICKLE: b"\x80\x02" + b"N0" * 2_000_000 + b"N."})},
    "storages cut off": {"edit": lambda m: m.update({n: d[:4] for n, d in m.items() if "/data/" in n})},
    "no storages": {"edit": lambda m: [m.pop(n) for n in list(m) if "/data/" in n]},
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_of_states(run, name):
    (path,) = list_states(run)
    repack(path, **ARCHIVES[name])
    refusal(load_state, path)


def test_states_that_expand(run):
    """One number, repeated by its strides to gigabytes."""
    (path,) = list_states(run)
    state = torch.load(path, weights_only=True)
    state["G"]["w_avg"] = torch.zeros(1).expand(1 << 20, 1 << 20)
    torch.save(state, path)
    refusal(load_state, path)


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\x03\x04" + bytes(100), b"\x80\x02.", pickle.dumps({}), bytes(1000)])
def test_files_that_are_no_states(tmp_path, data):
    (tmp_path / "state-000001.pt").write_bytes(data)
    assert "weights_only" not in refusal(load_state, tmp_path / "state-000001.pt")


@pytest.mark.parametrize("value", [[], "x", 1, None, {}, {"config": {}}])
def test_values_that_are_no_states(tmp_path, value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    (tmp_path / "a.pt").write_bytes(buffer.getvalue())
    refusal(load_state, tmp_path / "a.pt")


def test_what_is_right_is_resumed(run):
    done(script_here("train.py", "--resume", run, *LONGER))
    assert list_states(run)[-1].name == "state-000000.024.pt"


# --- the command line has the same bounds ---------------------------------------------------------------------------


@pytest.mark.parametrize("module", [train, train_encoder, train_stylizer], ids=lambda module: module.__name__)
def test_files_are_held_to_the_bounds_of_the_command_line(module):
    config, compared = SCRIPTS[f"{module.__name__}.py"], 0
    for param in module.main.params:
        for owner in (config, *config.networks):
            hints = get_type_hints(owner, include_extras=True)
            if param.name in {field.name for field in fields(owner)} and isinstance(
                param.type, click.types._NumberRangeBase
            ):
                hint = hints[param.name]  # Annotated, or a union with None of it
                parts = [part for each in (hint, *get_args(hint)) for part in get_args(each)]
                (bounds,) = [part for part in parts if isinstance(part, Within)]
                least, most = param.type.min, param.type.max
                assert least is None or bounds.least <= least, param.name
                assert most is None or most <= bounds.most <= 4 * most, param.name
                compared += 1
                break
    assert compared > 8


def test_choices_are_all_known():
    hints = get_type_hints(TrainConfig, include_extras=True)
    assert get_args(AugPipe) == tuple(AUGPIPES) and set(get_args(hints["cfg"])) == set(PRESETS)
