"""Transparent images from data to PNG: an RGBA model in every command, and the option for an RGB model instead."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from media.dataset import ImageDataset
from models.snapshot import load_generator
from tests.scripts import TINY, done, mistake, remedy, script_here


def ball(rng: np.random.Generator, side: int = 16) -> Image.Image:
    """A soft ball of any colour on nothing."""
    y, x = np.mgrid[:side, :side] - rng.uniform(5, 10, 2)[:, None, None]
    alpha = np.clip(rng.uniform(3, 6) - np.hypot(x, y), 0, 1) * 255
    color = np.broadcast_to(rng.integers(0, 256, 3), (side, side, 3))
    return Image.fromarray(np.concatenate([color, alpha[..., None]], axis=-1).astype(np.uint8))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A data set of 60 balls, and a run on it."""
    folder = tmp_path_factory.mktemp("balls")
    (folder / "data").mkdir()
    rng = np.random.default_rng(0)
    for i in range(60):
        ball(rng).save(folder / "data" / f"{i:02}.png")
    train(folder, "runs", "--aug", "ada", "--p", 1)
    return folder


def train(folder: Path, runs: str, *options: object) -> None:
    length = ["--kimg", 0.016, "--tick", 0.008, "--snap", 1, "--metrics", "swd60"]
    done(script_here("train.py", *TINY, *length, "--data", folder / "data", "--outdir", folder / runs, *options))


def newest(folder: Path) -> Path:
    return max(folder.glob("*/snapshot-*.safetensors"))


def record(run: Path) -> dict:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def test_a_run_on_transparent_images(place):
    snapshot = newest(place / "runs")
    assert load_generator(snapshot)[0].config.img_channels == 4
    measured = record(snapshot.parent)
    assert measured["swd60"] > 0 and measured["settings"]["background"] == [255, 255, 255]
    reals = Image.open(snapshot.parent / "reals.png")
    assert reals.mode == "RGB"
    # the corner of a cell shows the chequerboard through the image
    assert {reals.getpixel((0, 0)), reals.getpixel((15, 0))} == {(255,) * 3, (204,) * 3}


def test_what_is_generated(place, tmp_path):
    model = ["--network", newest(place / "runs"), "--outdir", tmp_path]
    done(script_here("generate.py", *model, "--seeds", "0-3"))
    done(script_here("generate.py", *model, "--seeds", "0-3", "--grid", "2x2"))
    done(script_here("generate.py", "mix", *model, "--rows", 0, "--cols", 1))
    done(script_here("generate.py", "kernels", *model, "--seed", 0, "--layer", 0))
    walk = ["--seeds", "0-1", "--seconds", 0.2, "--fps", 10, "--scale", 1]
    for name in ("walk.webp", "walk.apng", "walk.mp4"):
        done(script_here("generate.py", "video", *model[:2], *walk, "--out", tmp_path / name))
    assert Image.open(tmp_path / "seed0000.png").mode == "RGBA"
    assert Image.open(tmp_path / "seeds0000-0003.png").mode == "RGB"
    for name in ("walk.webp", "walk.apng"):
        animation = Image.open(tmp_path / name)
        assert animation.n_frames == 2 and animation.convert("RGBA").getextrema()[3][0] < 255

    search = ["--target", tmp_path / "seed0000.png", "--steps", 20, "--candidates", 20, "--outdir", tmp_path / "w"]
    found = done(script_here("projector.py", *model[:2], *search))
    assert float(found.stdout.split()[0]) > 12  # dB
    done(script_here("export.py", *model, "--format", "onnx"))
    output = onnx.load(tmp_path / "generator.onnx").graph.output[0]
    assert [size.dim_value for size in output.type.tensor_type.shape.dim][1:] == [4, 16, 16]
    assert "alpha" in output.doc_string


def test_metrics_lay_both_sides_on_the_background(place, tmp_path):
    """An RGBA set against itself is at distance 0 on each, and its size depends on which it is."""
    found = {}
    for color in ("white", "#204080"):
        options = ["--data", place / "data", "--metrics", "swd60", "--background", color, "--json"]
        same = script_here("metrics/__main__.py", *options, "--fakes", place / "data")
        assert json.loads(done(same).stdout)["swd60"] == 0
        model = done(script_here("metrics/__main__.py", *options, "--network", newest(place / "runs")))
        found[color] = json.loads(model.stdout)
    assert found["#204080"]["settings"]["background"] == [32, 64, 128]
    assert found["white"]["swd60"] != found["#204080"]["swd60"]


def test_a_background_gives_an_rgb_model(place):
    train(place, "opaque", "--background", "#204080")
    snapshot = newest(place / "opaque")
    assert load_generator(snapshot)[0].config.img_channels == 3
    assert record(snapshot.parent)["settings"]["background"] == [32, 64, 128]
    assert Image.open(snapshot.parent / "reals.png").getpixel((0, 0)) == (32, 64, 128)
    done(script_here("train.py", "--resume", snapshot.parent, "--kimg", 0.024))


def test_what_needs_colours_only_says_so(place, tmp_path):
    labels = {"labels": [[f"{i:02}.png", i % 2] for i in range(60)]}
    (tmp_path / "data").mkdir()
    for file in (place / "data").iterdir():
        (tmp_path / "data" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(labels))
    message = mistake("train_encoder.py", "--data", tmp_path / "data", "--outdir", tmp_path / "runs")
    assert "transparent images" in message
    name, *arguments = remedy(message)
    done(script_here(name, *arguments, cwd=tmp_path))
    converted = ImageDataset(tmp_path / "data-16.zip", use_labels=True)
    assert converted.channels == 3 and converted.c_dim == 2  # what an encoder takes
    convert = ["convert", "--source", place / "data", "--out", "a.zip", "--resolution", 16, "--channels", 4]
    assert "has no transparency" in mistake("dataset_tool.py", *convert, "--format", "jpeg")
