"""benchmarks/compare_stylizers.py: images from ZIPs and folders, pairs, and the spread over trainings."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import compare_stylizers

from media.convert import write_dataset
from media.images import to_float, to_uint8
from metrics import swd
from models.snapshot import PRETRAINED, save_stylizer
from networks.stylizer import Stylizer, StylizerConfig
from styling.apply import Settings, stylize_image
from styling.styles import CombinedStyle, Style
from tests.styling.test_apply import scene
from torch_utils.errors import UserError

MODEL = str(PRETRAINED / "stylizer-small.safetensors")


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, [64, 64, 3], dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i}.png")
    return path


def test_images_of_a_zip_may_have_any_size(tmp_path):
    """As those of a folder, which photographs have; what is no image is named."""
    (tmp_path / "images").mkdir()
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for i, size in enumerate([(70, 64), (64, 99)]):
            Image.effect_noise(size, 50).save(tmp_path / "images" / f"{i}.png")
            archive.write(tmp_path / "images" / f"{i}.png", f"{i}.png")
        archive.writestr("2.png", b"nothing")
    of_folder, of_zip = (compare_stylizers.images((str(tmp_path / n),), 2, 64) for n in ("images", "images.zip"))
    assert torch.equal(of_folder, of_zip)
    with pytest.raises(UserError, match=r"2\.png in .*images\.zip .*; leave it out of the archive"):
        compare_stylizers.images((str(tmp_path / "images.zip"),), 3, 64)


def test_a_zip_has_the_images_of_its_folder(folder, tmp_path):
    write_dataset(tmp_path / "images.zip", ((Image.open(file), None) for file in sorted(folder.glob("*.png"))))
    found = [compare_stylizers.images((str(path),), 3, 64) for path in (folder, tmp_path / "images.zip")]
    assert torch.equal(*found) and found[0].shape == (3, 3, 64, 64)
    with pytest.raises(UserError, match="3 images, 4 are needed"):
        compare_stylizers.images((str(folder),), 4, 64)


@pytest.mark.parametrize("mode, corner", [("L", 100), ("RGBA", 255)])
def test_grey_and_transparent_images_of_a_zip_have_three_channels(tmp_path, mode, corner):
    """As those of a folder: grey in all three, and transparent ones on white."""
    pixel = {"L": 100, "RGBA": (0, 0, 0, 0)}[mode]
    write_dataset(tmp_path / "images.zip", [(Image.new(mode, (64, 64), pixel), None)] * 2)
    found = compare_stylizers.images((str(tmp_path / "images.zip"),), 2, 64)
    assert found.shape == (2, 3, 64, 64)
    assert ((found + 1) * 127.5).round().unique().tolist() == [corner]


def test_trainings_are_told_apart_by_their_modulation():
    results = {
        compare_stylizers.UNCHANGED: [{"structure": 9.0}],
        "adaconv a": [{"structure": 1.0}, {"structure": 3.0}],
        "adaconv b": [{"structure": 4.0}],
        "adain c": [{"structure": 5.0}],
    }
    found = compare_stylizers.by_modulation(results)
    assert found == {"adaconv": [{"structure": 2.0}, {"structure": 4.0}], "adain": [{"structure": 5.0}]}
    lines = compare_stylizers.table(found).splitlines()
    assert [line.split() for line in lines] == [["structure"], ["adaconv", "3", "±", "1.4"], ["adain", "5"]]


def test_a_pair_is_one_content_in_one_style(folder, tmp_path, monkeypatch):
    """Of the image with itself as content and style, unchanged, nothing differs but where patches are cut."""
    monkeypatch.setattr(compare_stylizers, "REPEATS", 2)
    monkeypatch.setattr(swd, "DIRECTIONS", 32)
    record, out = tmp_path / "record.json", tmp_path / "sheet.png"
    arguments = ["--content", str(folder), "--style", str(folder), "--model", MODEL, "--size", "64", "--count", "1"]
    arguments += ["--pairs", "2", "--json", str(record), "--out", str(out)]
    compare_stylizers.main(arguments, standalone_mode=False)
    rows = json.loads(record.read_text())["all"]
    assert [len(of) for of in rows.values()] == [2, 2]
    for row in rows[compare_stylizers.UNCHANGED]:
        assert row["content loss"] == row["normalized content"] == 0 and row["style loss"] < 1e-9
        assert row["structure"] < 0.5 * rows["adaconv pretrained/stylizer-small.safetensors"][0]["structure"]
    assert Image.open(out).size == (2 * 128, 2 * 128)
    with pytest.raises(UserError, match="same name and folder"):
        compare_stylizers.main([*arguments, "--model", MODEL], standalone_mode=False)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--out", "images/1.png"], "is one of the files to read"),
        (["--json", "images/0.png"], "is one of the files to read"),
        (["--out", "a.png", "--json", "a.png"], "is the name of two results"),
        (["--out", "a.jpg"], "the sheet is a PNG"),
    ],
)
def test_mistakes_are_told_and_nothing_is_replaced(folder, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    given = ["--content", str(folder), "--style", str(folder), "--model", MODEL, "--count", "1", "--size", "64"]
    with pytest.raises(UserError, match=words):
        compare_stylizers.main([*given, *arguments], standalone_mode=False)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_with_shifts_images_are_those_of_the_command(stylizer):
    contents = to_float(torch.stack([scene(i, 64, 64) for i in range(2)]))
    image = to_float(scene(5, 64, 64)[None])
    combined = CombinedStyle((Style(Path(), stylizer.kernels(image), image),))
    for shifts in (1, 4):
        found = compare_stylizers.outputs_of(stylizer, contents, image, shifts)
        for content, made in zip(to_uint8(contents), to_uint8(found), strict=True):
            assert torch.equal(made, stylize_image(stylizer, content, combined, Settings(shifts=shifts)))
    alone = compare_stylizers.outputs_of(stylizer, contents, image, 0)
    assert torch.equal(alone, stylizer(contents, stylizer.kernels(image)).clamp(-1, 1))


def test_images_that_are_too_small_for_the_kernels_get_a_line(folder, tmp_path):
    save_stylizer(tmp_path / "wide.safetensors", Stylizer(StylizerConfig(width=0.05, kernel_size=31)), {})
    given = ["--content", str(folder), "--style", str(folder), "--count", "1", "--size", "64"]
    with pytest.raises(UserError, match=r"--size 64 is too small for the kernels of .*wide\.safetensors; take 121"):
        compare_stylizers.main([*given, "--model", str(tmp_path / "wide.safetensors")], standalone_mode=False)
