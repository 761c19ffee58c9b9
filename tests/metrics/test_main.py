"""`python -m metrics`: what a user types and what comes back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from PIL import Image

from media.dataset import ImageDataset
from metrics import Evaluator, choose, dataset_source
from metrics.__main__ import main
from models.sampling import Fakes
from models.snapshot import save_snapshot
from networks.generator import Generator, GeneratorConfig
from torch_utils.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def few_directions(monkeypatch):
    monkeypatch.setattr("metrics.swd.DIRECTIONS", 64)


def write_images(folder: Path, count: int, size: int = 16, channels: int = 3, smooth: int = 4) -> Path:
    """Random images that are smooth over `smooth` pixels, the first half of class 0, the others of class 1."""
    rng = np.random.default_rng(count)
    folder.mkdir()
    for i in range(count):
        coarse = rng.integers(0, 256, (size // smooth, size // smooth, channels), dtype=np.uint8)
        pixels = coarse.repeat(smooth, axis=0).repeat(smooth, axis=1)
        Image.fromarray(pixels if channels == 3 else pixels[:, :, 0]).save(folder / f"{i:04d}.png")
    labels = [[f"{i:04d}.png", int(i >= count // 2)] for i in range(count)]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


def write_snapshot(path: Path, **config) -> Generator:
    torch.manual_seed(0)
    G = Generator(GeneratorConfig(**{"resolution": 16, "cbase": 128, "cmax": 8, "map_depth": 2, **config}))
    save_snapshot(path, G, {})
    return G.eval()


def judge(*arguments) -> None:
    main.main(["--workers", "0", *map(str, arguments)], standalone_mode=False)


def mistake(*arguments) -> str:
    with pytest.raises(UserError) as error:
        judge(*arguments)
    return error.value.message


def test_images_against_images(tmp_path, capsys):
    real = write_images(tmp_path / "real", 24)
    fakes = write_images(tmp_path / "fakes", 25, smooth=2)
    judge("--data", real, "--fakes", fakes, "--metrics", "swd20, swd", "--json")
    captured = capsys.readouterr()
    assert (
        captured.err.count("\n") == 1
        and "note: there are only 24 real and 24 fake images for swd (8192);" in captured.err
    )
    figures = json.loads(captured.out)
    both = {name: {"real": count, "fake": count} for name, count in (("swd20", 20), ("swd", 24))}
    assert figures.pop("images") == both
    assert figures.pop("settings")["fakes"] == str(fakes)
    evaluator = Evaluator(["swd20", "swd"], ImageDataset(real))
    assert figures == evaluator.evaluate(dataset_source(ImageDataset(fakes), choose(25, 24, 0)))
    assert list(figures) == ["swd20", "swd20_16", "swd", "swd_16"]

    judge("--data", real, "--fakes", fakes, "--metrics", "swd20,swd", "--batch", 7)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{name} {figures[name]:.4g} (16: {figures[name + '_16']:.4g})" for name in ("swd20", "swd")]

    judge("--data", real, "--fakes", fakes, "--metrics", "swd20", "--seed", 1, "--json")
    other = json.loads(capsys.readouterr().out)["swd20"]
    assert other != figures["swd20"]
    assert other == pytest.approx(figures["swd20"], rel=0.5)


def test_images_against_themselves(tmp_path, capsys):
    real = write_images(tmp_path / "real", 12, channels=1)
    judge("--data", real, "--fakes", real)
    assert capsys.readouterr().out == "swd 0 (16: 0)\n"


def test_fewer_fakes_than_asked_for_are_mentioned(tmp_path, capsys):
    real, fakes = write_images(tmp_path / "real", 12), write_images(tmp_path / "fakes", 10)
    judge("--data", real, "--fakes", fakes, "--metrics", "swd12,swd8", "--json")
    captured = capsys.readouterr()
    counts = json.loads(captured.out)["images"]
    assert counts == {"swd12": {"real": 12, "fake": 10}, "swd8": {"real": 8, "fake": 8}}
    assert captured.err.startswith("note: ") and "only 10 fake images" in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("c_dim", [0, 2])
def test_network(tmp_path, capsys, c_dim):
    real = write_images(tmp_path / "real", 12)
    G = write_snapshot(tmp_path / "snapshot-000001.safetensors", c_dim=c_dim)
    judge("--data", real, "--network", tmp_path, "--metrics", "swd10", "--seed", 2, "--json")
    figures = json.loads(capsys.readouterr().out)
    assert figures.pop("images") == {"swd10": {"real": 10, "fake": 10}} and figures.pop("settings")["seed"] == 2
    dataset = ImageDataset(real, use_labels=c_dim > 0)
    fakes = Fakes(G, 10, 2, dataset.labels)
    assert figures == pytest.approx(Evaluator(["swd10"], dataset, seed=2).evaluate(fakes.images), rel=1e-3)
    assert set(fakes.classes.tolist()) == set(range(max(c_dim, 1)))


def test_stopped_processes_are_no_bug(tmp_path, monkeypatch):
    """After ^C the launcher returns, and there is no result."""
    monkeypatch.setattr("torch_utils.distributed.launch", lambda *args, **options: None)
    with pytest.raises(click.Abort):
        judge("--data", "real", "--fakes", "fakes", "--procs", 2)


def test_mistakes(tmp_path):
    real, one = write_images(tmp_path / "real", 4), write_images(tmp_path / "one", 1)
    large, grey = write_images(tmp_path / "large", 4, size=32), write_images(tmp_path / "grey", 4, channels=1)
    snapshot, classes = tmp_path / "plain.safetensors", tmp_path / "classes.safetensors"
    write_snapshot(snapshot)
    write_snapshot(classes, c_dim=3)
    assert "name --network or --fakes:" in mistake("--data", real)
    assert "name --network or --fakes, not both" in mistake("--data", real, "--fakes", one, "--network", snapshot)
    assert "no metric is called 'fid'" in mistake("--data", real, "--fakes", real, "--metrics", "fid")
    assert "32×32 with 3 channels" in mistake("--data", real, "--fakes", large)
    assert "16×16 with 1 channels" in mistake("--data", real, "--fakes", grey)
    assert "16×16 with 3 channels" in mistake("--data", large, "--network", snapshot)
    assert "with 1: they cannot be compared" in mistake("--data", grey, "--network", snapshot)
    assert "3 classes" in mistake("--data", real, "--network", classes)
    assert "only one image" in mistake("--data", one, "--fakes", real)
    assert "only 1 fake images" in mistake("--data", real, "--fakes", one)
    assert "absent" in mistake("--data", tmp_path / "absent", "--fakes", real)
    assert "absent" in mistake("--data", real, "--network", tmp_path / "absent")


@pytest.mark.parametrize("option", [("--workers", 9999), ("--seed", 10**30), ("--batch", 0), ("--batch", 10**30)])
def test_numbers_out_of_range(tmp_path, option):
    with pytest.raises(click.BadParameter, match="not in the range"):
        main.main(["--data", "real", "--fakes", "fakes", *map(str, option)], standalone_mode=False)


def test_as_a_command(tmp_path):
    real = write_images(tmp_path / "real", 4)
    command = [sys.executable, "-m", "metrics", "--data", real, "--fakes", tmp_path / "absent"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
