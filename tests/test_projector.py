"""projector.py and generate.py --w as a user types them: there and back, and every mistake in one line."""

from __future__ import annotations

import re
import shlex
import shutil
import zipfile
from pathlib import Path
from unittest import mock

import click
import numpy as np
import pytest
import torch
from PIL import Image

import projector
from latents.codes import fingerprint, load_codes
from media.convert import Conversion, write_dataset
from media.video import VideoReader
from models.encoder import URL, save_encoder
from models.snapshot import load_generator, save_snapshot
from networks.generator import Generator, GeneratorConfig
from networks.vgg import VGG19
from tests.media.converting import convert_image
from tests.scripts import Result, mistake, script_here
from tests.scripts import done as finished


def done(name: str, *arguments: object) -> Result:
    """A script that works, run in this process."""
    return finished(script_here(name, *arguments))


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
    lines = result.stdout.splitlines()
    assert [line.split()[-1] for line in lines] == [
        *(f"seed010{i}.png" for i in range(3)),
        *(str(out / f"projected-seed010{i}.npz") for i in range(3)),
        *(str(out / name) for name in ("projected-images.png", "projected-images.mp4")),
    ]
    assert {path.name for path in out.iterdir()} == {Path(line).name for line in lines[3:]}  # no file is left out
    assert "pixels and patches" in result.stderr
    sheet = pixels(out / "projected-images.png")
    assert sheet.shape == (16, 6 * 16, 3)
    found = []
    for i in range(3):
        target, image = sheet[:, 32 * i : 32 * i + 16], sheet[:, 32 * i + 16 : 32 * i + 32]
        assert np.array_equal(target, pixels(place / f"images/seed010{i}.png"))
        decibel = 10 * np.log10(255**2 / np.square(target - image).mean())
        assert decibel == pytest.approx(float(lines[i].split()[0]), abs=0.06) and decibel > 25
        found.append(image)

    done("generate.py", "--network", model, "--w", out / "projected-*.npz", "--outdir", out, "--batch", 2)
    assert all(np.abs(pixels(out / f"w-seed010{i}.png") - found[i]).max() <= 1 for i in range(3))

    codes = load_codes(out / "projected-seed0101.npz", load_generator(model)[0])
    assert codes.about["targets"] == ["seed0101.png"] and len(codes.ws) == 1
    assert codes.about["psnr"] == [pytest.approx(float(lines[1].split()[0]), abs=0.06)]
    assert codes.about["projection"]["steps"] == 60 and codes.about["fingerprint"] == fingerprint(model)
    with VideoReader(out / "projected-images.mp4") as video:
        frames = list(video)
        assert video.rate == 25 and len(frames) == 2 * 60  # two batches
    assert frames[0].shape == (3, 256, 2 * 512)
    last = frames[59].permute(1, 2, 0).reshape(16, 16, 64, 16, 3).float().mean(dim=(1, 3))
    assert (last[:, 16:32] - torch.from_numpy(found[0])).abs().mean() < 6


def test_what_is_found_is_kept_when_the_search_is_stopped(place, tmp_path, monkeypatch, capsys):
    """Hundreds of photographs take hours. The latents are those of a search that goes on to its end."""
    own = ["--network", place / "model.safetensors", "--target", place / "images", "--candidates", 8, "--batch", 2]
    done("projector.py", *own, "--steps", 3, "--outdir", tmp_path / "whole")
    project, calls = projector.project, []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return project(*arguments)

    monkeypatch.setattr(projector, "project", stopped)
    with pytest.raises(click.Abort):
        projector.main([*map(str, own), "--steps", "3", "--outdir", str(tmp_path / "part")], standalone_mode=False)
    assert f"the latents of 2 of 3 images are in {tmp_path / 'part'}" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "part").iterdir()} == {f"projected-seed010{i}.npz" for i in range(2)}
    G = load_generator(place / "model.safetensors")[0]
    for i in range(2):
        whole, part = (load_codes(tmp_path / run / f"projected-seed010{i}.npz", G) for run in ("whole", "part"))
        assert torch.equal(whole.ws, part.ws) and whole.about == part.about


def test_a_sheet_of_codes_and_the_wrong_model(place, tmp_path):
    done(
        "projector.py", "--network", place / "model.safetensors", "--target", place / "images",
        *("--steps", 1, "--candidates", 4, "--outdir", tmp_path),
    )  # fmt: skip
    other = snapshot(tmp_path / "other.safetensors", seed=1)
    result = done(
        "generate.py", "--network", other, "--w", tmp_path / "projected-*.npz", "--grid", "3x1", "--outdir", tmp_path
    )
    assert "was made with another model than" in result.stderr
    assert pixels(tmp_path / "w-seed0100_seed0101_seed0102.png").shape == (16, 48, 3)


def test_other_sizes_are_cut_and_resized_as_a_data_set(place, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    image.save(tmp_path / "wide.png")
    done(
        "projector.py", "--network", place / "model.safetensors", "--target", tmp_path / "wide.png",
        *("--steps", 1, "--candidates", 4, "--outdir", tmp_path / "out"),
    )  # fmt: skip
    converted = np.asarray(convert_image(image, Conversion(16)))
    assert np.array_equal(pixels(tmp_path / "out/projected-wide.png")[:, :16], converted)


def test_what_is_enlarged_or_not_looked_at_is_said(place, tmp_path):
    for name, size in {"a.png": (16, 16), "b.png": (40, 12), "c.png": (12, 12)}.items():
        Image.new("RGB", size).save(tmp_path / name)
    (tmp_path / "more").mkdir()
    result = done(
        "projector.py", "--network", place / "model.safetensors", "--target", tmp_path,
        *("--steps", 1, "--candidates", 4, "--outdir", tmp_path / "out"),
    )  # fmt: skip
    assert "note: enlarged images, smaller than 16x16 pixels: 2\n" in result.stderr
    assert f"note: folders in {tmp_path} are not looked into: more\n" in result.stderr


def test_grey_images_of_classes_compared_by_an_encoder(tmp_path):
    model = snapshot(tmp_path / "model.safetensors", c_dim=3, img_channels=1, noise=False)
    save_encoder(tmp_path / "vgg.safetensors", VGG19(1 / 16), {})
    done("generate.py", "--network", model, "--seeds", "7", "--class", 1, "--outdir", tmp_path)
    result = done(
        "projector.py", "--network", model, "--target", tmp_path / "seed0007.png", "--class", 1, "--space", "w+",
        *("--encoder-weights", tmp_path / "vgg.safetensors", "--steps", 2, "--outdir", tmp_path),
    )  # fmt: skip
    assert "VGG-19 (vgg.safetensors)" in result.stderr
    assert pixels(tmp_path / "projected-seed0007.png").shape == (16, 32)


def test_weights_in_the_cache_are_taken_and_none_are_downloaded(place, tmp_path, monkeypatch):
    monkeypatch.setenv("ADACONV_CACHE", str(tmp_path))
    arguments = (
        "--network", place / "model.safetensors", "--target", place / "images/seed0100.png",
        "--steps", 1, "--candidates", 4, "--outdir", tmp_path / "out",
    )  # fmt: skip
    with mock.patch("urllib.request.urlopen", side_effect=AssertionError("a download")):
        (line,) = (
            line for line in done("projector.py", *arguments).stderr.splitlines() if "pixels and patches" in line
        )
        assert URL in line
        named = shlex.split(re.search(r"; (--encoder-weights \S+) compares", line)[1])  # the remedy works
        assert "VGG-19 (tiny-imagenet.safetensors)" in done("projector.py", *arguments, *named).stderr
        torch.save(VGG19(1 / 16).state_dict(), tmp_path / "vgg19-dcbb9e9d.pth")
        assert "VGG-19 (vgg19-dcbb9e9d.pth)" in done("projector.py", *arguments).stderr


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
        (
            "--target",
            image,
            "--encoder-weights",
            model,
        ): "a generator, which generate.py, projector.py, export.py and python -m metrics take",
        ("--target", image, "--encoder-weights", tmp_path / "x.pth"): "x.pth; name the file of an encoder",
    }.items():
        assert words in mistake(*common, *arguments)
    assert not (tmp_path / "out").exists()
    common = ("generate.py", "--network", model, "--outdir", tmp_path / "out")
    for arguments, words in {
        (): "--seeds",
        ("--seeds", 1, "--w", "w.npz"): "--seeds",
        ("--w", tmp_path / "w.npz"): "there is no",
        ("--w", image): "cannot be read as latents",
        ("--w", image, "--class", 0): "--class",
        ("--w", image, "--noise-mode", "random"): "--noise-mode",
    }.items():
        assert words in mistake(*common, *arguments)


QUICK = ("--steps", 1, "--candidates", 4)


def test_one_bad_target_does_not_stop_the_others(place, tmp_path):
    """It is reported, the others are projected, and the exit code says that something is missing."""
    folder = tmp_path / "targets"
    folder.mkdir()
    for name in ("a.png", "c.png"):
        Image.new("RGB", (16, 16), "red").save(folder / name)
    (folder / "b.png").write_text("no image")
    (folder / "d.png").write_bytes((folder / "a.png").read_bytes()[:45])
    arguments = ("--network", place / "model.safetensors", "--target", folder, *QUICK, "--outdir", tmp_path / "out")
    result = script_here("projector.py", *arguments)
    assert result.returncode == 2
    skipped = [line for line in result.stderr.splitlines() if line.startswith("skipped: ")]
    assert [line.split()[1] for line in skipped] == [str(folder / "b.png"), str(folder / "d.png")]
    assert result.stderr.splitlines()[-1].startswith("error: 2 of 4 targets could not be used")
    G, _ = load_generator(place / "model.safetensors")
    for name in ("a", "c"):
        assert load_codes(tmp_path / f"out/projected-{name}.npz", G).about["targets"] == [f"{name}.png"]
    assert len(list((tmp_path / "out").iterdir())) == 3  # with the sheet, projected-targets.png
    for name in ("a.png", "c.png"):
        (folder / name).unlink()
    assert "and the other 1 cannot be used either" in mistake("projector.py", *arguments)


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_a_data_set_as_target(place, tmp_path, kind):
    images = [Image.new("RGB", (16, 16), color) for color in ("red", "green", "blue")]
    data = tmp_path / ("data.zip" if kind == "zip" else "data")
    write_dataset(data, [(image, 0) for image in images])
    done("projector.py", "--network", place / "model.safetensors", "--target", data, *QUICK, "--outdir", tmp_path)
    sheet = pixels(tmp_path / "projected-data.png")
    for i, image in enumerate(images):
        assert np.array_equal(sheet[:, 32 * i : 32 * i + 16], np.asarray(image))
    G, _ = load_generator(place / "model.safetensors")
    for i in range(3):
        codes = load_codes(tmp_path / f"projected-00000_img0000000{i}.npz", G)
        assert codes.about["targets"] == [f"00000/img0000000{i}.png"]


def test_an_archive_that_is_damaged_or_empty(place, tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK no archive")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("text.txt", "no image")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("x.png", "no image")
    for name, words in (("a", "not a ZIP"), ("b", "holds no images"), ("c", "x.png is not an image")):
        arguments = ("--network", place / "model.safetensors", "--target", tmp_path / f"{name}.zip")
        assert words in mistake("projector.py", *arguments, "--outdir", tmp_path / "out")


def test_a_frame_and_a_sheet_have_a_bound(place, tmp_path, monkeypatch):
    """x264 takes 16384 pixels a side; a sheet of a thousand large images would take all memory."""
    monkeypatch.setattr(projector, "MAX_WIDTH", 64)
    monkeypatch.setattr(projector, "VIDEO_WIDTH", 64)
    white = torch.ones(20, 3, 16, 16)
    for places, shape in ((1, (32, 64)), (3, (32, 64)), (20, (64, 64))):
        sheet = projector.make_frame(white[:places], -white[:places], places)
        assert sheet.shape == (3, *shape) and (sheet[:, :16, :16] == 255).all()
    assert (sheet[:, :, 16:32] == 0).all() and (sheet[:, 48:, 32:48] == 255).all()

    monkeypatch.setattr("media.decode.MAX_PIXELS", 2 * 2 * 16 * 16)  # two pairs
    result = done(
        "projector.py", "--network", place / "model.safetensors", "--target", place / "images",
        *("--steps", 1, "--candidates", 4, "--outdir", tmp_path),
    )  # fmt: skip
    assert pixels(tmp_path / "projected-images.png").shape == (16, 4 * 16, 3)
    assert "the first 2 of 3 images" in result.stderr and len(list(tmp_path.glob("projected-*.npz"))) == 3


def test_no_target_is_replaced_and_no_search_is_lost(place, tmp_path):
    """What keeps the results from being written is found before the search."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "projected-photos.png"):  # the second one as from an earlier call
        shutil.copy(place / "images" / "seed0100.png", folder / name)
    options = ["--network", place / "model.safetensors", "--outdir", folder, "--target"]
    with mock.patch("projector.search", side_effect=AssertionError("a search")):
        message = mistake("projector.py", *options, folder)
        assert "projected-photos.png is one of the files to read and would be replaced" in message
        (folder / "projected-seed0100.npz").mkdir()
        message = mistake("projector.py", *options, place / "images" / "seed0100.png")
        assert "projected-seed0100.npz is a folder, not a file" in message


def test_results_of_one_photo_stay_when_another_is_projected(place, tmp_path):
    """Also of photos that only their extensions tell apart, in one folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, color in {"anna.png": "red", "bob.png": "green", "bob.bmp": "blue"}.items():
        Image.new("RGB", (16, 16), color).save(folder / name)
    common = (
        "projector.py",
        "--network",
        place / "model.safetensors",
        *QUICK,
        "--outdir",
        tmp_path / "out",
        "--target",
    )
    kept = {}
    for target in ("anna.png", "bob.png", "."):
        done(*common, folder / target)
        written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert kept.keys() <= written.keys()
        if target != ".":
            assert all(written[name] == data for name, data in kept.items())
        kept = written
    names = [f"projected-{name}" for name in ("anna", "bob", "bob.bmp", "bob.png", "photos")]
    assert kept.keys() == {*(f"{name}.npz" for name in names[:-1]), *(f"{names[i]}.png" for i in (0, 1, 4))}
