"""`python -m metrics` and `train.py --metrics` as a user types them."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from media.convert import write_dataset
from media.faces import faces
from metrics import detectors
from metrics.__main__ import describe, main
from models.snapshot import save_snapshot
from networks.generator import Generator, GeneratorConfig
from tests.metrics.archives import photographs, write_images
from torch_utils.cli import run
from torch_utils.errors import UserError
from training.config import TrainConfig
from training.gan import GANTrainer
from training.loop import train
from training.options import resolve

TINY = {"cfg": "demo", "cbase": 256, "cmax": 8, "map_depth": 1, "z_dim": 16, "w_dim": 16, "style_channels": 8}
TINY |= {"batch": 8, "workers": 0, "procs": 1, "tick": 0.008, "snap": 1}


def metrics(*arguments, capsys, monkeypatch) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["metrics", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        run(main)
    captured = capsys.readouterr()
    return stopped.value.code or 0, captured.out, captured.err


@pytest.fixture
def command(capsys, monkeypatch):
    return partial(metrics, capsys=capsys, monkeypatch=monkeypatch)


@pytest.fixture
def snapshot(tmp_path) -> Path:
    torch.manual_seed(0)
    config = GeneratorConfig(resolution=16, cbase=256, cmax=8, map_depth=1, z_dim=16, w_dim=16, style_channels=8)
    save_snapshot(tmp_path / "snapshot-000001.safetensors", Generator(config), {"kimg": 1.0})
    return tmp_path / "snapshot-000001.safetensors"


def tiny(data: Path, **options) -> TrainConfig:
    return resolve({**TINY, "data": str(data), **options}, 16, 3, 0, 0)


def test_all_metrics_of_a_snapshot(small, few_dimensions, command, snapshot, inception, vgg16, tmp_path):
    write_dataset(tmp_path / "faces.zip", faces(40, 16, seed=0))
    names = ["fid20_full", "kid20", "pr203", "is20", "ppl2_wend20", "swd20"]
    files = ["--detector-weights", inception, "--detector-weights", vgg16]
    arguments = ["--metrics", ",".join(names), "--network", snapshot, "--data", tmp_path / "faces.zip", *files]
    arguments += ["--workers", 0, "--batch", 8, "--gpus", 0, "--mirror", "--trunc", 0.7]
    code, out, err = command(*arguments, "--json")
    assert code == 0, err
    found = json.loads(out)
    figures = {key for key in found if key not in ("images", "settings")}
    assert figures == {
        *("fid20_full", "kid20", "kid20_std", "pr203_precision", "pr203_recall"),
        *("is20_mean", "is20_std", "ppl2_wend20", "swd20", "swd20_16"),
    }
    assert found["images"]["fid20_full"] == {"real": 80, "fake": 20}
    assert found["images"]["pr203"] == {"real": 20, "fake": 20}
    assert found["images"]["is20"] == {"real": 0, "fake": 20}
    settings = found["settings"]
    assert {name: settings[name] for name in ("seed", "truncation", "mirror", "kimg")} == {
        "seed": 0,
        "truncation": 0.7,
        "mirror": True,
        "kimg": 1.0,
    }
    assert settings["detectors"].keys() == {"inception-v3-2015-12-05", "vgg16"}
    assert all(len(value) == 64 for value in settings["detectors"].values())
    assert settings["network"] == str(snapshot) and len(settings["data_hash"]) == 16
    assert "warning: fid20_full has 20 fake images for 2048 dimensions" in err


def test_a_line_has_a_metric_and_its_own_parts():
    figures = {"fid20": 1.5, "fid20_full": 2.0, "kid20": 0.1, "kid20_std": 0.01, "pr203_precision": 0.5}
    figures |= {"pr203_recall": 0.25, "pr203_full_precision": 0.75, "pr203_full_recall": 1.0, "images": {}}
    assert describe("fid20", figures) == "fid20 1.5"
    assert describe("fid20_full", figures) == "fid20_full 2"
    assert describe("kid20", figures) == "kid20 0.1 (std: 0.01)"
    assert describe("pr203", figures) == "pr203 precision: 0.5, recall: 0.25"
    assert describe("pr203_full", figures) == "pr203_full precision: 0.75, recall: 1"


def test_images_against_images(small, few_dimensions, command, inception, tmp_path, real_images):
    images = photographs(real_images / "cifar10-test.zip", 50)
    real, fake = write_images(tmp_path / "real", images[:30]), write_images(tmp_path / "fake", images[30:])
    arguments = ["--data", real, "--fakes", fake, "--gpus", 0, "--workers", 0, "--detector-weights", inception]
    code, out, err = command("--metrics", "fid2k_full,swd", *arguments, "--json")
    assert code == 0 and json.loads(out)["images"]["fid2k_full"] == {"real": 30, "fake": 20}
    assert "there are only 20 fake images for fid2k_full (2000)" in err
    code, out, err = command("--metrics", "ppl2_wend", *arguments)
    assert code == 2 and "name one with --network" in err


def test_list(small, command):
    code, out, _ = command("--list")
    assert code == 0
    for words in ("fid50k_full", "ppl2_wend", str(small), detectors.INCEPTION.url, detectors.VGG16.url):
        assert words in out
    small.mkdir()
    (small / detectors.VGG16.url.rpartition("/")[2]).touch()
    assert detectors.VGG16.url not in command("--list")[1]


def test_mistakes_are_one_line(small, command, snapshot, faces16, tmp_path, monkeypatch):
    monkeypatch.setattr("torch_utils.download.urllib.request.urlopen", lambda *args, **options: offline())
    both = ["--network", snapshot, "--data", faces16, "--gpus", 0]
    cases = [
        (["--metrics", "fid50k_full", *both], "cannot download https"),
        (["--metrics", "fid", *both], "no metric is called 'fid'"),
        (["--metrics", "fid20", "--detector-weights", tmp_path / "absent.pth", *both], "absent.pth cannot be read"),
        (["--metrics", "swd", "--data", faces16], "--network or --fakes"),
        (["--metrics", "swd", "--network", snapshot], "--data is missing"),
        (["--metrics", "swd", "--trunc", "nan", *both], "not a finite number"),
        (["--metrics", "swd", "--network", snapshot, "--data", faces16, "--gpus", 99], "--gpus 99"),
    ]
    for arguments, words in cases:
        code, _, err = command(*arguments)
        assert code == 2 and words in err.splitlines()[-1] and len(err.splitlines()) == 1, err


def offline():
    raise OSError("no network")


@pytest.mark.parametrize("tensor", ["synthesis.const", "w_avg"])
def test_a_broken_network_is_refused(command, faces16, tmp_path, tensor):
    config = GeneratorConfig(resolution=16, cbase=256, cmax=8, map_depth=1, z_dim=16, w_dim=16, style_channels=8)
    G = Generator(config)
    G.state_dict()[tensor].view(-1)[0] = float("nan")
    save_snapshot(tmp_path / "snapshot-000001.safetensors", G, {"kimg": 1.0})
    arguments = ["--metrics", "swd", "--network", tmp_path, "--data", faces16, "--gpus", 0]
    code, _, err = command(*arguments)
    assert code == 2 and "weights that are not finite" in err


# --- in training ----------------------------------------------------------------------------------------------------


def test_training_writes_what_the_command_finds(small, few_dimensions, command, inception, tmp_path):
    write_dataset(tmp_path / "faces.zip", faces(40, 16, seed=0))
    names = ["fid20_full", "swd20"]
    config = tiny(tmp_path / "faces.zip", metrics=names, detector_weights=[str(inception)], kimg=0.008)
    (tmp_path / "run").mkdir()
    train(GANTrainer, config, tmp_path / "run")
    first, last = (json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert first["kimg"] == 0 and last["kimg"] == 0.008
    assert last["images"]["fid20_full"] == {"real": 40, "fake": 20}
    assert last["settings"].keys() == {"seed", "detectors", "truncation", "mirror", "data_hash"}
    arguments = ["--metrics", ",".join(names), "--network", tmp_path / "run", "--data", tmp_path / "faces.zip"]
    code, out, _ = command(*arguments, "--detector-weights", inception, "--gpus", 0, "--batch", 8, "--json")
    found = json.loads(out)
    assert code == 0
    for name in names:
        assert found[name] == pytest.approx(last[name], rel=1e-6)
    assert found["settings"]["detectors"] == last["settings"]["detectors"]
    assert found["settings"]["data_hash"] == last["settings"]["data_hash"]


def test_training_goes_on_without_a_detector_and_says_so_once(small, faces16, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch_utils.download.urllib.request.urlopen", lambda *args, **options: offline())
    config = tiny(faces16, metrics=["fid20_full", "swd20"], kimg=0.024)
    train(GANTrainer, config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and all("swd20" in line and "fid20_full" not in line for line in lines)
    said = [line for line in capsys.readouterr().err.splitlines() if "going on without" in line]
    assert len(said) == 1 and "fid20_full: cannot download https" in said[0]


def test_training_goes_on_where_a_figure_is_no_number(small, faces16, tmp_path, capsys, inception):
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
    import train as script

    with pytest.raises(UserError, match=r"there is no .*absent\.pth"):
        script.configure({"data": str(faces16), "gpus": 0, "detector_weights": (str(tmp_path / "absent.pth"),)}, True)
