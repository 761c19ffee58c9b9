"""projector.py and generate.py --w as a user types them: there and back, and every mistake in one line."""

from __future__ import annotations

import io
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import projector
from latents.codes import fingerprint, load_codes
from media.convert import Conversion, convert_image
from media.video import VideoReader
from models.encoder import save_encoder
from models.snapshot import load_generator, save_snapshot
from networks.generator import Generator, GeneratorConfig
from networks.vgg import VGG19

ROOT = Path(__file__).resolve().parent.parent


def script(name: str, *arguments) -> SimpleNamespace:
    """Runs a script in this process, which has everything imported already: exit code, stdout and stderr."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = [str(ROOT / name), *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err), mock.patch.object(sys, "argv", argv):
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as stopped:
        code = stopped.code or 0
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())


def done(name: str, *arguments) -> SimpleNamespace:
    result = script(name, *arguments)
    assert result.code == 0, result.err
    return result


def mistake(name: str, *arguments) -> str:
    result = script(name, *arguments)
    assert result.code == 2 and result.err.count("\n") == 1 and result.err.startswith("error: "), result.err
    return result.err


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def snapshot(path: Path, seed: int = 0, **config) -> Path:
    """A generator of random weights whose images use most of the range."""
    torch.manual_seed(seed)
    sizes = {"cbase": 128, "cmax": 16, "map_depth": 2, "z_dim": 16, "w_dim": 16, "style_channels": 8}
    G = Generator(GeneratorConfig(16, **{**sizes, **config})).eval().requires_grad_(False)
    c = torch.eye(max(G.config.c_dim, 1))[:1, : G.config.c_dim].expand(32, -1)
    spread = G(torch.randn(32, 16), c, noise="const").std()
    for block in G.synthesis.blocks:
        block.torgb.weight *= 0.5 / spread
    for layer in G.synthesis.layers():
        if G.config.noise:
            layer.noise_strength.fill_(0.1)
    save_snapshot(path, G, {"kimg": 1.0})
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a model, and three of its images in a folder."""
    folder = tmp_path_factory.mktemp("projector")
    model = snapshot(folder / "model.safetensors")
    done("generate.py", "--network", model, "--seeds", "100-102", "--outdir", folder / "images")
    return folder


def test_there_and_back(place, tmp_path):
    model, out = place / "model.safetensors", tmp_path / "out"
    result = done(
        "projector.py", "--network", model, "--target", place / "images",
        *("--steps", 60, "--candidates", 64, "--batch", 2, "--video", "--outdir", out),
    )  # fmt: skip
    lines = result.out.splitlines()
    assert [line.split()[-1] for line in lines] == [
        *(f"seed010{i}.png" for i in range(3)),
        str(out / "projected_w.npz"),
    ]
    assert "pixels and patches" in result.err
    sheet = pixels(out / "projected.png")
    assert sheet.shape == (16, 6 * 16, 3)
    found = []
    for i in range(3):
        target, image = sheet[:, 32 * i : 32 * i + 16], sheet[:, 32 * i + 16 : 32 * i + 32]
        assert np.array_equal(target, pixels(place / f"images/seed010{i}.png"))
        decibel = 10 * np.log10(255**2 / np.square(target - image).mean())
        assert decibel == pytest.approx(float(lines[i].split()[0]), abs=0.06) and decibel > 25
        found.append(image)

    done("generate.py", "--network", model, "--w", out / "projected_w.npz", "--outdir", out, "--batch", 2)
    assert all(np.abs(pixels(out / f"w000{i}.png") - found[i]).max() <= 1 for i in range(3))

    codes = load_codes(out / "projected_w.npz", load_generator(model)[0])
    assert codes.about["targets"] == [f"seed010{i}.png" for i in range(3)]
    assert codes.about["projection"]["steps"] == 60 and codes.about["fingerprint"] == fingerprint(model)
    with VideoReader(out / "projected.mp4") as video:
        frames = list(video)
        assert video.rate == 25 and len(frames) == 2 * 60  # two batches
    assert frames[0].shape == (3, 256, 2 * 512)
    last = frames[59].permute(1, 2, 0).reshape(16, 16, 64, 16, 3).float().mean(dim=(1, 3))
    assert (last[:, 16:32] - torch.from_numpy(found[0])).abs().mean() < 6


def test_a_sheet_of_codes_and_the_wrong_model(place, tmp_path):
    done(
        "projector.py", "--network", place / "model.safetensors", "--target", place / "images",
        *("--steps", 1, "--candidates", 4, "--outdir", tmp_path),
    )  # fmt: skip
    other = snapshot(tmp_path / "other.safetensors", seed=1)
    result = done(
        "generate.py", "--network", other, "--w", tmp_path / "projected_w.npz", "--grid", "3x1", "--outdir", tmp_path
    )
    assert "note: the codes" in result.err and pixels(tmp_path / "w0000-0002.png").shape == (16, 48, 3)


def test_other_sizes_are_cut_and_resized_as_a_data_set(place, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    image.save(tmp_path / "wide.png")
    done(
        "projector.py", "--network", place / "model.safetensors", "--target", tmp_path / "wide.png",
        *("--steps", 1, "--candidates", 4, "--outdir", tmp_path / "out"),
    )  # fmt: skip
    converted = np.asarray(convert_image(image, Conversion(16)))
    assert np.array_equal(pixels(tmp_path / "out/projected.png")[:, :16], converted)


def test_grey_images_of_classes_compared_by_an_encoder(tmp_path):
    model = snapshot(tmp_path / "model.safetensors", c_dim=3, img_channels=1, noise=False)
    save_encoder(tmp_path / "vgg.safetensors", VGG19(1 / 16), {})
    done("generate.py", "--network", model, "--seeds", "7", "--class", 1, "--outdir", tmp_path)
    result = done(
        "projector.py", "--network", model, "--target", tmp_path / "seed0007.png", "--class", 1, "--space", "w+",
        *("--encoder-weights", tmp_path / "vgg.safetensors", "--steps", 2, "--outdir", tmp_path),
    )  # fmt: skip
    assert "VGG-19 (vgg.safetensors)" in result.err
    assert pixels(tmp_path / "projected.png").shape == (16, 32)


def test_weights_in_the_cache_are_taken_and_none_are_downloaded(place, tmp_path, monkeypatch):
    monkeypatch.setenv("ADACONV_CACHE", str(tmp_path))
    arguments = (
        "--network", place / "model.safetensors", "--target", place / "images/seed0100.png",
        "--steps", 1, "--candidates", 4, "--outdir", tmp_path / "out",
    )  # fmt: skip
    with mock.patch("urllib.request.urlopen", side_effect=AssertionError("a download")):
        assert "pixels and patches" in done("projector.py", *arguments).err
        torch.save(VGG19(1 / 16).state_dict(), tmp_path / "vgg19-dcbb9e9d.pth")
        assert "VGG-19 (vgg19-dcbb9e9d.pth)" in done("projector.py", *arguments).err


def test_mistakes_get_one_line(place, tmp_path):
    model, image = place / "model.safetensors", place / "images/seed0100.png"
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    common = ("projector.py", "--network", model, "--outdir", tmp_path / "out")
    for arguments, words in {
        (): "--target",
        ("--target", tmp_path / "none.png"): "there is no",
        ("--target", tmp_path / "empty"): "holds no images",
        ("--target", tmp_path / "text.png"): "is not an image",
        ("--target", image, "--class", 1): "without classes",
        ("--target", image, "--starts", 4, "--candidates", 2): "--candidates",
        ("--target", image, "--starts", 2, "--candidates", 0): "--candidates",
        ("--target", image, "--lr", 0): "--lr",
        ("--target", image, "--steps", 0): "--steps",
        ("--target", image, "--space", "z"): "--space",
        ("--target", image, "--encoder-weights", model): "holds a model of kind 'generator'; name the",
        ("--target", image, "--encoder-weights", tmp_path / "x.pth"): "cannot be read",
    }.items():
        assert words in mistake(*common, *arguments)
    assert not (tmp_path / "out").exists()
    common = ("generate.py", "--network", model, "--outdir", tmp_path / "out")
    for arguments, words in {
        (): "--seeds",
        ("--seeds", 1, "--w", "w.npz"): "--seeds",
        ("--w", tmp_path / "w.npz"): "there is no",
        ("--w", image): "cannot be read as codes",
        ("--w", image, "--class", 0): "--class",
        ("--w", image, "--noise-mode", "random"): "--noise-mode",
    }.items():
        assert words in mistake(*common, *arguments)


def test_a_frame_and_a_sheet_have_a_bound(place, tmp_path, monkeypatch):
    """x264 takes 16384 pixels a side; a sheet of a thousand large images would take all memory."""
    monkeypatch.setattr(projector, "WIDEST", 64)
    monkeypatch.setattr(projector, "VIDEO_WIDTH", 64)
    white = torch.ones(20, 3, 16, 16)
    for places, shape in ((1, (32, 64)), (3, (32, 64)), (20, (64, 64))):
        sheet = projector.frame(white[:places], -white[:places], places)
        assert sheet.shape == (3, *shape) and (sheet[:, :16, :16] == 255).all()
    assert (sheet[:, :, 16:32] == 0).all() and (sheet[:, 48:, 32:48] == 255).all()

    monkeypatch.setattr("media.decode.MAX_PIXELS", 2 * 2 * 16 * 16)  # two pairs
    result = done(
        "projector.py", "--network", place / "model.safetensors", "--target", place / "images",
        *("--steps", 1, "--candidates", 4, "--outdir", tmp_path),
    )  # fmt: skip
    assert pixels(tmp_path / "projected.png").shape == (16, 4 * 16, 3)
    assert "the first 2 of 3 images" in result.err and np.load(tmp_path / "projected_w.npz")["w"].shape[0] == 3
