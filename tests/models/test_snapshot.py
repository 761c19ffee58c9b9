"""Snapshots and states that are not what they say are refused in one line; the newest is found."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import safetensors.torch
import torch

from models.snapshot import (
    GENERATOR,
    STYLIZER,
    TAKEN_BY,
    find_snapshot,
    kimg_name,
    load_discriminator,
    load_generator,
    load_stylizer,
    save_model,
    save_snapshot,
    save_stylizer,
)
from networks.generator import Generator, GeneratorConfig
from networks.stylizer import Stylizer, StylizerConfig
from tests.test_docs import command_of, options_of, subcommands
from torch_utils.errors import UserError
from torch_utils.tensors import what_it_seems
from training.runs import find_state, load_state, new_run, save_state

CONFIG = GeneratorConfig(16, cbase=128, cmax=8, map_depth=2, z_dim=8, w_dim=8, style_channels=4)


def test_names_are_in_the_order_of_time():
    moments = [0, 0.008, 0.04, 0.5, 0.504, 1, 9.999, 10, 10.01, 200, 200.016, 999999]
    names = [kimg_name(kimg) for kimg in moments]
    assert names[3:6] == ["000000.5", "000000.504", "000001"] and names[9] == "000200"
    assert sorted(names) == names and len(set(names)) == len(names)


def test_the_newest_state_is_found_and_the_others_go(tmp_path):
    for kimg in (9.5, 10, 10.25, 10.5):
        save_state(tmp_path, {"kimg": kimg}, kimg, keep=2)
    assert {p.name for p in (tmp_path / "state").iterdir()} == {"state-000010.25.pt", "state-000010.5.pt"}
    assert find_state(tmp_path).name == "state-000010.5.pt"
    save_state(tmp_path, {}, 11)
    assert find_state(tmp_path).name == "state-000011.pt"


def test_the_newest_snapshot_of_one_moment(tmp_path):
    for kimg in (3, 3.5, 2.25):
        path = tmp_path / f"snapshot-{kimg_name(kimg)}.safetensors"
        path.touch()
        os.utime(path, (1, 1))
    assert find_snapshot(tmp_path).name == "snapshot-000003.5.safetensors"


def test_a_copy_has_the_same_newest_snapshot(tmp_path):
    """Copying gives files other times, in any order: of runs and of snapshots the numbers count."""
    names = ["00001-a/snapshot-000012", "00002-b/snapshot-000004", "00002-b/snapshot-000002", "other/snapshot-000050"]
    for i, name in enumerate(names):
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        write(path, {"format": GENERATOR}, {"a": torch.zeros(1)})
        os.utime(path, (100 - 50 * (i < 3) - i, 100 - 50 * (i < 3) - i))
    assert find_snapshot(tmp_path) == tmp_path / f"{names[1]}.safetensors"
    assert find_snapshot(tmp_path / "00002-b") == tmp_path / f"{names[1]}.safetensors"
    assert find_snapshot(tmp_path / "other") == tmp_path / f"{names[3]}.safetensors"


def test_the_search_is_for_one_kind(tmp_path):
    """Runs of both kinds lie in one folder; the newest snapshot may be of the other kind, or of an encoder."""
    kinds = [GENERATOR, STYLIZER, GENERATOR, STYLIZER, "adaconv-encoder", None]
    paths = []
    for i, kind in enumerate(kinds):
        paths.append(tmp_path / f"0000{i}-run" / f"snapshot-00000{i}.safetensors")
        paths[-1].parent.mkdir()
        write(paths[-1], {"format": kind} if kind else "{}", {"a": torch.zeros(1)})
        os.utime(paths[-1], (i, i))
    assert find_snapshot(tmp_path) == find_snapshot(tmp_path, GENERATOR) == paths[2]
    assert find_snapshot(tmp_path, STYLIZER) == paths[3]
    with pytest.raises(UserError, match=r"no snapshot of a stylizer under .*train_stylizer\.py.*--model"):
        find_snapshot(paths[0].parent, STYLIZER)
    with pytest.raises(UserError, match=r"no snapshot of a generator under .*train\.py.*--network"):
        find_snapshot(paths[1].parent)
    for meta in ("[" * 100_000, "{"):  # what cannot be read is not passed over: loading it says why
        write(paths[5], meta, {"a": torch.zeros(1)})
        os.utime(paths[5], (5, 5))
        assert find_snapshot(tmp_path) == find_snapshot(tmp_path, STYLIZER) == paths[5]


@pytest.mark.parametrize(("kind", "name"), [(GENERATOR, "faces64"), (STYLIZER, "stylizer-small")])
def test_without_a_path(tmp_path, monkeypatch, kind, name):
    """The newest under runs, or the one that comes with the project, or a line that says what to do."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("models.snapshot.PRETRAINED", tmp_path / "pretrained")
    with pytest.raises(UserError, match=rf"no .* under runs, and .*{name}\.safetensors is not there; train one with"):
        find_snapshot(None, kind)
    (tmp_path / "pretrained").mkdir()
    shipped = tmp_path / "pretrained" / f"{name}.safetensors"
    shipped.touch()
    assert find_snapshot(None, kind) == shipped
    (tmp_path / "runs" / "00000-x").mkdir(parents=True)
    assert find_snapshot(None, kind) == shipped
    own = write(tmp_path / "runs" / "00000-x" / "snapshot-000001.safetensors", {"format": kind}, {"a": torch.zeros(1)})
    assert tmp_path / find_snapshot(None, kind) == own


def write(path: Path, meta: object, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """A snapshot with any metadata."""
    tensors = dict(Generator(CONFIG).state_dict()) if tensors is None else tensors
    safetensors.torch.save_file(
        tensors, path, metadata={"adaconv": meta if isinstance(meta, str) else json.dumps(meta)}
    )
    return path


def described(info: object = None, **config) -> dict:
    meta = {"format": "adaconv-generator", "version": 1, "config": {**asdict(CONFIG), **config}}
    return meta if info is None else {**meta, "info": info}


def test_a_snapshot_comes_back(tmp_path):
    torch.manual_seed(0)
    G = Generator(CONFIG)
    save_snapshot(tmp_path / "a.safetensors", G, {"kimg": 3, "data": "x"})
    loaded, info = load_generator(tmp_path / "a.safetensors")
    assert info == {"kimg": 3.0, "data": "x"} and loaded.config == CONFIG
    assert all(torch.equal(value, G.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert load_generator(write(tmp_path / "b.safetensors", described(clamp=None)))[1] == {"kimg": 0.0}


@pytest.mark.parametrize(
    "meta",
    [
        "[" * 100_000,
        "{",
        "[1]",
        {"format": "adaconv-generator"},
        {**described(), "version": "1"},
        {**described(), "config": [1]},
        described(info=[1]),
        described(info={"kimg": "many"}),
        described(cbase=10**12, cmax=10**9),
        described(w_dim=10**15),
        described(w_dim=-1),
        described(map_depth=10**9),
        described(cbase=2**45, resolution=2**40),
        described(resolution=10**400),
        described(resolution=2048),
        described(resolution="16"),
        described(cmax=0),
        described(z_dim=0),
        described(kernel_size=0),
        described(img_channels=2),
        described(clamp="none"),
        described(depthwise_scale=None),
        described(noise=False),
        described(unknown=1),
    ],
    ids=lambda meta: str(meta)[-60:],
)
def test_a_snapshot_that_describes_another_model_is_refused(tmp_path, meta):
    with pytest.raises(UserError, match=r"a\.safetensors") as error:
        load_generator(write(tmp_path / "a.safetensors", meta))
    assert len(error.value.message) < 500


def test_a_snapshot_with_other_tensors_is_refused(tmp_path):
    tensors = dict(Generator(CONFIG).state_dict())
    for name, others in {
        "w_avg": {**tensors, "w_avg": torch.zeros(9)},
        "extra": {**tensors, "extra": torch.zeros(1)},
        "synthesis.const": {k: v for k, v in tensors.items() if k != "synthesis.const"},
    }.items():
        with pytest.raises(UserError, match=f"{name} is missing, unexpected"):
            load_generator(write(tmp_path / "a.safetensors", described(), others))


def test_what_is_no_state_is_refused(tmp_path):
    snapshot = write(tmp_path / "snapshot-000001.safetensors", described())
    with pytest.raises(UserError, match="is a snapshot, not a training state"):
        load_state(snapshot)
    torch.save({"G": {}}, tmp_path / "other.pt")
    torch.save([1], tmp_path / "list.pt")
    for name in ("other.pt", "list.pt"):
        with pytest.raises(UserError, match="holds no training state"):
            load_state(tmp_path / name)
    (tmp_path / "text.pt").write_text("no state")
    with pytest.raises(UserError, match="cannot be read as a training state"):
        load_state(tmp_path / "text.pt")


def test_a_run_that_cannot_be_made(tmp_path):
    with pytest.raises(UserError, match="cannot make the folder"):
        new_run(tmp_path, "x" * 300)


def test_runs_that_start_in_the_same_moment_get_numbers_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("training.runs.list_runs", lambda folder: [])  # as none was there when each looked
    names = [new_run(tmp_path, description).name for description in ("a", "b", "a")]
    assert names == ["00000-a", "00001-b", "00002-a"] and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("modulation", ["adaconv", "adain"])
@pytest.mark.parametrize("half", [False, True])
def test_a_stylizer_comes_back(tmp_path, modulation, half):
    model = Stylizer(StylizerConfig(width=1 / 16, modulation=modulation, style_size=64)).eval()
    save_stylizer(tmp_path / "a.safetensors", model, {"kimg": 3}, half)
    loaded, info = load_stylizer(tmp_path / "a.safetensors")
    assert loaded.config == model.config and info["kimg"] == 3
    content, style = torch.rand(2, 2, 3, 32, 40) * 2 - 1
    if half:  # of random weights, images may change much: those of the rounded weights have to be the same
        model.load_state_dict({name: value.half().float() for name, value in model.state_dict().items()})
    with torch.no_grad():
        expected, got = (m(content, m.kernels(style)) for m in (model, loaded))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    save_snapshot(tmp_path / "b.safetensors", Generator(CONFIG), {})
    with pytest.raises(UserError, match=rf"name a file with --model, such as {tmp_path}/a\.safetensors"):
        find_snapshot(tmp_path, STYLIZER)
    with pytest.raises(UserError, match=rf"name a file with --network, such as {tmp_path}/b\.safetensors"):
        find_snapshot(tmp_path)
    with pytest.raises(UserError, match=r"stylize\.py and export\.py take with --model; name the file of a generator"):
        load_generator(tmp_path / "a.safetensors")


def test_the_commands_that_take_a_kind_of_model_have_that_option():
    """What a message says of a file of another kind than the one that is asked for."""
    for kind, text in TAKEN_BY.items():
        programs, option = text.partition("which ")[2].split(" with ")
        for program in re.findall(r"\w+\.py|-m \w+", programs):
            command = command_of(program)
            command = subcommands(command).get(getattr(command, "default", ""), command)
            assert option in options_of(command), (kind, program)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"# A heading\n\nand text\n", "it is text, not a"),
        ("# Überschrift\n".encode(), "it is text, not a"),
        (b"PK\x03\x04 and more", "it is a ZIP, not a"),
        (b"\x89PNG\r\n\x1a\n", "it is a PNG image, not a"),
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "fetch the file itself with: git lfs pull"),
    ],
)
def test_what_is_no_safetensors_file_is_called_what_it_is(tmp_path, content, what):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=what) as error:
        load_generator(tmp_path / "file")
    assert "header" not in error.value.message


def test_a_safetensors_file_that_is_cut_off_is_not_called_something_else(tmp_path):
    save_snapshot(tmp_path / "a.safetensors", Generator(CONFIG), {})
    data = (tmp_path / "a.safetensors").read_bytes()
    for size in (len(data) // 2, 100, 9):
        (tmp_path / "b.safetensors").write_bytes(data[:size])
        assert what_it_seems(tmp_path / "b.safetensors") is None


def test_statistics_of_labels_keep_their_digits_in_half_precision(tmp_path):
    """Also the discriminator's: prices would become infinite."""
    G = Generator(GeneratorConfig(16, cbase=128, cmax=8, z_dim=8, w_dim=8))
    prices = {"mapping.labels.high": torch.tensor([200_000.0]), "fromrgb.weight": torch.full((2,), 1 / 3)}
    path = tmp_path / "a.safetensors"
    save_model(path, GENERATOR, G, asdict(G.config), {"kimg": 1}, half=True, discriminator=prices)
    found = load_discriminator(path)
    assert torch.equal(found["mapping.labels.high"], prices["mapping.labels.high"])
    assert found["fromrgb.weight"][0] == torch.tensor(1 / 3).half().float()
