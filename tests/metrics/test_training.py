"""`train.py --metrics`: what a run records, and how it goes on without a metric."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from media.convert import write_dataset
from media.faces import faces
from metrics import Evaluator, NotFinite
from models.snapshot import find_snapshot, load_generator
from networks.generator import SynthesisBlock
from tests.metrics.test_encoders import write_encoder
from tests.metrics.test_main import snapshot  # noqa: F401 (a fixture)
from torch_utils.errors import DiskFull, UserError
from training.config import TrainConfig
from training.gan import GANTrainer
from training.loop import train
from training.options import configure_gan, resolve
from training.runs import find_state

TINY = {"cfg": "demo", "cbase": 256, "cmax": 8, "map_depth": 1, "z_dim": 16, "w_dim": 16, "style_channels": 8}
TINY |= {"batch": 8, "workers": 0, "procs": 1, "tick": 0.008, "snap": 1}


def tiny(data: Path, **options) -> TrainConfig:
    return resolve({**TINY, "data": str(data), **options}, 16, 3, 0, 0)


def test_training_writes_what_the_command_finds(small, few_dimensions, command, inception, tmp_path):
    write_dataset(tmp_path / "faces.zip", faces(40, 16, seed=0))
    names = ["fid20_full", "swd20"]
    config = tiny(tmp_path / "faces.zip", metrics=names, detector_weights=[str(inception)], kimg=0.008)
    (tmp_path / "run").mkdir()
    train(GANTrainer, config, tmp_path / "run")
    first, last = (json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert first["kimg"] == 0 and last["kimg"] == 0.008
    assert last["images"]["fid20_full"] == {"real": 40, "fake": 20}
    assert last["settings"].keys() == {"seed", "detectors", "truncation", "noise", "mirror", "data_hash"}
    arguments = ["--metrics", ",".join(names), "--network", tmp_path / "run", "--data", tmp_path / "faces.zip"]
    code, out, _ = command(*arguments, "--detector-weights", inception, "--gpus", 0, "--batch", 8, "--json")
    found = json.loads(out)
    assert code == 0
    for name in names:
        assert found[name] == pytest.approx(last[name], rel=1e-6)
    assert found["settings"]["detectors"] == last["settings"]["detectors"]
    assert found["settings"]["data_hash"] == last["settings"]["data_hash"]


@pytest.fixture
def tf32(monkeypatch) -> list[tuple[bool, bool]]:
    """Whether TF32 is allowed in matrix products, and in convolutions, whenever a generator makes images."""
    seen, forward = [], SynthesisBlock.forward

    def watched(self, *args, **kwargs):
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(SynthesisBlock, "forward", watched)
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
        monkeypatch.setattr(backend, "allow_tf32", True)
    return seen


@pytest.mark.parametrize("kind", ["evaluate", "nearest"])
def test_commands_make_images_without_tf32(small, command, snapshot, vgg16, faces16, tmp_path, tf32, kind):  # noqa: F811
    """As PyTorch's defaults would have it, convolutions of GPUs compute in TF32, which rounds PPL's ends together."""
    names = ["--metrics", "ppl2_wend4,swd8", "--detector-weights", vgg16, "--gpus", 0]
    arguments = {"evaluate": names, "nearest": ["--seeds", "0-3", "--out", tmp_path / "sheet.png"]}[kind]
    code, _, err = command(kind, "--network", snapshot, "--data", faces16, *arguments, "--workers", 0)
    assert code == 0, err
    assert tf32 and set(tf32) == {(False, False)}
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32


def test_training_with_tf32_computes_its_metrics_without(small, vgg16, faces16, tmp_path, tf32):
    config = tiny(faces16, metrics=["ppl2_wend4", "swd8"], detector_weights=[str(vgg16)])
    trainer = GANTrainer(config, torch.device("cpu"), fresh=True)
    assert trainer.compute_metrics()
    assert tf32 and set(tf32) == {(False, False)}
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32  # for the steps that follow


def test_training_goes_on_without_a_detector_and_says_so_once(small, faces16, tmp_path, no_network, capsys):
    config = tiny(faces16, metrics=["fid20_full", "swd20"], kimg=0.024)
    train(GANTrainer, config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and all("swd20" in line and "fid20_full" not in line for line in lines)
    said = [line for line in capsys.readouterr().err.splitlines() if "going on without" in line]
    assert len(said) == 1 and "fid20_full: cannot download https" in said[0]


def test_training_goes_on_where_a_metric_is_no_number(small, faces16, tmp_path, capsys, inception, monkeypatch):
    monkeypatch.setattr("metrics.detectors.is_finite", lambda tensor: True)  # as of a network that overflows
    state = torch.load(inception, weights_only=True)
    state["Mixed_7c.branch1x1.bn.bias"][0] = float("nan")
    torch.save(state, tmp_path / "broken.pth")
    (tmp_path / "run").mkdir()
    config = tiny(faces16, metrics=["fid20_full", "swd20"], detector_weights=[str(tmp_path / "broken.pth")], kimg=0.008)
    train(GANTrainer, config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all("swd20" in line and "fid20_full" not in line for line in lines)
    assert "warning: fid20_full is no number" in capsys.readouterr().err
    assert not list(small.glob("statistics/*"))  # nothing broken is kept


def test_a_file_of_weights_that_is_not_there_is_a_mistake(faces16, tmp_path):
    options = {"data": str(faces16), "gpus": 0, "detector_weights": (str(tmp_path / "absent.pth"),)}
    with pytest.raises(UserError, match=r"there is no .*absent\.pth"):
        configure_gan(options, True)


def test_keep_best(faces16, tmp_path, monkeypatch, capsys):
    """The model of the lowest value is kept, also when a run is resumed; a NaN is not the best."""
    values = iter([5.0, 7.0, 4.0, 4.0, math.nan, 6.0])

    def evaluate(self, fakes, paths=None):
        value = next(values)
        if math.isnan(value):
            raise NotFinite("swd20 is no number", {"is20_mean": 1.0})
        return {"swd20": value, "swd20_16": 1.0}

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    best, kept = tmp_path / "best.safetensors", []
    config = tiny(faces16, metrics=["swd20"], keep_best="swd20", kimg=0.016, keep=10)
    train(GANTrainer, config, tmp_path)
    kept.append(load_generator(best)[1]["kimg"])
    train(GANTrainer, dataclasses.replace(config, kimg=0.04), tmp_path, find_state(tmp_path))
    kept.append(load_generator(best)[1]["kimg"])
    assert kept == [0.016, 0.016]
    expected = load_generator(tmp_path / "snapshot-000000.016.safetensors")[0].state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in load_generator(best)[0].state_dict().items())
    assert find_snapshot(tmp_path).name == "snapshot-000000.04.safetensors"  # the newest, as always


@pytest.mark.parametrize("keep_best", ["fid50k_full", "swd20_16", "swd", "nonsense"])
def test_keep_best_is_one_of_the_metrics(faces16, keep_best):
    options = {"data": str(faces16), "gpus": 0, "metrics": "swd20,pr203", "keep_best": keep_best}
    with pytest.raises(UserError, match=f"{keep_best}.* --metrics gives swd20, pr203_precision, pr203_recall"):
        configure_gan(options)


def test_an_encoder_that_is_not_there_is_a_mistake(faces16):
    with pytest.raises(UserError, match=r"nowhere/encoder\.safetensors"):
        configure_gan({"data": str(faces16), "gpus": 0, "metrics": "fd20@nowhere/encoder.safetensors"})


def test_training_with_an_encoder(small, tmp_path):
    write_dataset(tmp_path / "faces.zip", faces(40, 16, seed=0))
    name = f"kd20@{write_encoder(tmp_path / 'encoder.safetensors')}"
    (tmp_path / "run").mkdir()
    train(GANTrainer, tiny(tmp_path / "faces.zip", metrics=[name, "swd20"], kimg=0.008), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(math.isfinite(line[name]) for line in lines)


def test_a_best_model_that_was_set_aside_is_no_bar(faces16, tmp_path, monkeypatch):
    """What counts is the value of the model that is kept."""
    values = iter([9.0, 8.0, 3.0, 5.0, 4.0, 6.0])
    monkeypatch.setattr(Evaluator, "evaluate", lambda self, fakes, paths=None: {"swd20": next(values)})
    best = tmp_path / "best.safetensors"
    config = tiny(faces16, metrics=["swd20"], keep_best="swd20", kimg=0.016, keep=10)
    train(GANTrainer, config, tmp_path)
    assert load_generator(best)[1]["kimg"] == 0.016
    best.replace(tmp_path / "abandoned-best.safetensors")
    kept = []
    for kimg in (0.024, 0.032, 0.04):
        train(GANTrainer, dataclasses.replace(config, kimg=kimg), tmp_path, find_state(tmp_path))
        kept.append(load_generator(best)[1]["kimg"])
    assert kept == [0.024, 0.032, 0.032]


def test_a_best_model_by_a_metric_that_is_left_out_is_told(faces16, tmp_path, no_network, capsys):
    config = tiny(faces16, metrics=["swd20", "fid20"], keep_best="fid20", kimg=0.016)
    train(GANTrainer, config, tmp_path)
    assert "warning: no best.safetensors will be kept: --keep-best fid20 is left out" in capsys.readouterr().err


def test_a_best_model_that_finds_no_room_is_tried_again(faces16, tmp_path, monkeypatch, capsys):
    """Its metrics are kept, and the evaluation is not taken for a complete one."""
    values = iter([9.0, 8.0, 8.0])
    monkeypatch.setattr(Evaluator, "evaluate", lambda self, fakes, paths=None: {"swd20": next(values)})
    save, best = GANTrainer.save, tmp_path / "best.safetensors"

    def no_room(self, path, kimg):
        if path == best and kimg > 0:
            raise DiskFull(f"no room for {path}")
        save(self, path, kimg)

    config = tiny(faces16, metrics=["swd20"], keep_best="swd20", kimg=0.008)
    with monkeypatch.context() as patch:
        patch.setattr(GANTrainer, "save", no_room)
        train(GANTrainer, config, tmp_path)
    assert "no room for" in capsys.readouterr().err and load_generator(best)[1]["kimg"] == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["swd20"] for line in lines] == [9.0, 8.0]
    train(GANTrainer, config, tmp_path, find_state(tmp_path))
    assert load_generator(best)[1]["kimg"] == 0.008 and (tmp_path / "fakes000000.008.png").exists()
