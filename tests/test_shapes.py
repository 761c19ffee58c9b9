"""Images that are not square, through every command: the size of what comes out, and what is read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from media.convert import write_dataset
from models.snapshot import load_generator, save_snapshot
from networks.generator import Generator, GeneratorConfig
from tests.scripts import TINY, done, mistake, script_here

WIDTH, HEIGHT = 48, 32


def size(path: Path) -> tuple[int, int]:
    return Image.open(path).size


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Photos of many shapes, made a data set of 48 × 32, and a run of three steps on it."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        shape = rng.integers(40, 90, 2)
        coarse = Image.fromarray(rng.integers(0, 255, (4, 5, 3), dtype=np.uint8))
        coarse.resize(tuple(int(side) for side in shape)).save(folder / "photos" / f"{i}.png")
    converted = ["convert", "--source", folder / "photos", "--out", folder / "data.zip", "--resolution", "48x32"]
    assert "40 images of 48x32 pixels" in done(script_here("dataset_tool.py", *converted)).stdout
    train = ["--data", folder / "data.zip", "--outdir", folder / "runs", "--kimg", 0.024, "--tick", 0.008, "--snap", 1]
    options = ["--metrics", "swd40", "--aug", "ada", "--p", 1, "--augpipe", "bgcfnc"]
    done(script_here("train.py", *TINY, *train, *options))
    return folder


@pytest.fixture(scope="module")
def snapshot(place) -> Path:
    return max((place / "runs").glob("*/snapshot-*.safetensors"))


def test_a_run(place, snapshot):
    run = snapshot.parent
    assert json.loads((run / "config.json").read_text())["generator"]["resolution"] == [48, 32]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"swd40", "swd40_32", "swd40_16"} < metrics[-1].keys()
    sheet = Image.open(run / "reals.png")
    assert sheet.width % WIDTH == sheet.height % HEIGHT == 0
    assert load_generator(snapshot)[0].config.resolution == (48, 32)
    done(script_here("train.py", "--resume", run, "--kimg", 0.032))


def test_images_grids_mixes_and_kernels(snapshot, tmp_path):
    options = ["--network", snapshot, "--outdir", tmp_path]
    done(script_here("generate.py", *options, "--seeds", "1-2"))
    done(script_here("generate.py", *options, "--seeds", "0-5", "--grid", "3x2"))
    done(script_here("generate.py", "mix", *options, "--rows", "1", "--cols", "2,3", "--scale", 1))
    done(script_here("generate.py", "kernels", *options, "--seed", 1, "--layer", "0,2"))
    done(script_here("generate.py", "directions", *options, "--count", 1, "--method", "sefa", "--scale", 1))
    assert size(tmp_path / "seed0001.png") == (WIDTH, HEIGHT)
    assert size(tmp_path / "seeds0000-0005.png") == (3 * WIDTH, 2 * HEIGHT)
    grid, single = (np.asarray(Image.open(tmp_path / name)) for name in ("seeds0000-0005.png", "seed0001.png"))
    assert np.abs(grid[:HEIGHT, WIDTH : 2 * WIDTH].astype(int) - single).max() <= 1
    mix = np.asarray(Image.open(tmp_path / "mix-0001-0002-0003.png"))
    rows = [mix[y : y + HEIGHT, x : x + WIDTH] for y in range(len(mix) - 31) for x in range(mix.shape[1] - 47)]
    assert any(np.abs(part.astype(int) - single).max() <= 1 for part in rows)


@pytest.mark.parametrize("name", ["walk.webp", "walk.gif", "walk.mp4"])
def test_walks(snapshot, tmp_path, name):
    walk = ["--seeds", "0-1", "--seconds", 0.2, "--fps", 10, "--grid", "2x1", "--scale", 1, "--out", tmp_path / name]
    done(script_here("generate.py", "video", "--network", snapshot, *walk))
    if name.endswith("mp4"):
        import av

        with av.open(str(tmp_path / name)) as video:
            assert (video.streams.video[0].width, video.streams.video[0].height) == (2 * WIDTH, HEIGHT)
    else:
        assert size(tmp_path / name) == (2 * WIDTH, HEIGHT)


def test_export_and_projection(snapshot, tmp_path):
    done(script_here("export.py", "--network", snapshot, "--format", "onnx", "--outdir", tmp_path))
    session = onnxruntime.InferenceSession(tmp_path / "generator.onnx")
    assert session.get_outputs()[0].shape[1:] == [3, HEIGHT, WIDTH]
    G, _ = load_generator(snapshot)
    z = torch.randn(2, G.config.z_dim)
    (images,) = session.run(None, {"z": z.numpy(), "psi": np.array(1, np.float32)})
    torch.testing.assert_close(torch.from_numpy(images), G(z, noise="const"), rtol=1e-3, atol=1e-3)

    done(script_here("generate.py", "--network", snapshot, "--seeds", 7, "--outdir", tmp_path))
    search = ["--target", tmp_path / "seed0007.png", "--steps", 40, "--candidates", 50, "--video"]
    found = done(script_here("projector.py", "--network", snapshot, *search, "--outdir", tmp_path / "found"))
    assert float(found.stdout.split()[0]) > 15  # dB
    assert size(tmp_path / "found" / "projected-seed0007.png") == (2 * WIDTH, HEIGHT)
    codes = ["--w", tmp_path / "found" / "projected-seed0007.npz", "--outdir", tmp_path / "again"]
    done(script_here("generate.py", "--network", snapshot, *codes))
    assert size(tmp_path / "again" / "w-seed0007.png") == (WIDTH, HEIGHT)


def test_what_does_not_fit_is_one_line(snapshot, faces16, tmp_path):
    assert "of 48x32 with 3 channels" in mistake("metrics/__main__.py", "--network", snapshot, "--data", faces16)
    write_dataset(tmp_path / "labels.zip", [(Image.new("RGB", (48, 32)), i % 2) for i in range(4)])
    message = mistake("train_encoder.py", "--data", tmp_path / "labels.zip", "--outdir", tmp_path / "runs")
    assert "an encoder learns from squares" in message
    assert "faces are drawn on squares" in mistake(
        "dataset_tool.py", "faces", "--out", "a.zip", "--resolution", "48x32"
    )


@pytest.mark.parametrize("resolution", [(96, 64), (640, 384)])
def test_networks_of_other_shapes_come_back_from_their_file(tmp_path, resolution):
    torch.manual_seed(0)
    config = GeneratorConfig(resolution, cbase=1024, cmax=4, z_dim=8, w_dim=8, style_channels=4, map_depth=1)
    G = Generator(config)
    save_snapshot(tmp_path / "a.safetensors", G, {})
    loaded, _ = load_generator(tmp_path / "a.safetensors")
    assert loaded.config == config
    with torch.no_grad():
        images = loaded(torch.randn(1, 8), noise="const")
    assert images.shape == (1, 3, resolution[1], resolution[0]) and images.isfinite().all()
