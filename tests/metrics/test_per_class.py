"""`python -m metrics --per-class`: each class by itself is what metrics of its images alone are."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from media.mixed import MixedImages
from metrics import features
from metrics.features import dataset_source
from metrics.per_class import class_table, images_of_class
from tests.metrics.test_main import evaluate, few_directions, mistake, write_images, write_snapshot  # noqa: F401
from tests.scripts import ROOT, script


def write_classes(folder, counts, first=0, names=None):
    """A folder of smooth random images with so many of each class."""
    total = sum(counts)
    write_images(folder, total + first)
    for number in range(first):
        (folder / f"{number:04d}.png").unlink()
    classes = [number for number, count in enumerate(counts) for _ in range(count)]
    labels = [[f"{first + i:04d}.png", number] for i, number in enumerate(classes)]
    content = {"labels": labels, **({"class_names": names} if names else {})}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def part(folder, to, number):
    """A folder with the images of one class."""
    to.mkdir()
    for name, label in json.loads((folder / "dataset.json").read_text())["labels"]:
        if label == number:
            shutil.copy(folder / name, to)
    return to


def test_images_by_class(tmp_path, capsys):
    """The values of a class are those of its images in folders of their own; a class with one image is left out."""
    real = write_classes(tmp_path / "real", [12, 1, 15], names=["cat", "dog", "eel"])
    fakes = write_classes(tmp_path / "fakes", [14, 5, 11], first=3)
    evaluate("--data", real, "--fakes", fakes, "--metrics", "swd10", "--per-class", "--json")
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    few = "there is only one real image, and the metrics need at least 2; add some of this class"
    assert f"warning: class 1 dog is left out: {few}" in captured.err
    assert "images" not in record  # each class has its own
    assert list(record["classes"]) == ["0 cat", "2 eel"] and list(record["unusable"]) == ["1 dog"]
    for number, name in ((0, "0 cat"), (2, "2 eel")):
        alone = [part(folder, tmp_path / f"{folder.name}{number}", number) for folder in (real, fakes)]
        evaluate("--data", alone[0], "--fakes", alone[1], "--metrics", "swd10", "--json")
        expected = json.loads(capsys.readouterr().out)
        assert record["classes"][name]["swd10"] == pytest.approx(expected["swd10"], rel=1e-5)
        assert record["classes"][name]["images"] == expected["images"]
    mean = np.mean([values["swd10"] for values in record["classes"].values()])
    assert record["swd10"] == pytest.approx(mean)

    evaluate("--data", real, "--fakes", fakes, "--metrics", "swd10", "--per-class")
    lines = capsys.readouterr().out.splitlines()
    assert lines == class_table(record).splitlines()
    assert [line.split()[0] for line in lines] == ["class", "0", "2", "mean"]
    assert f"{record['swd10']:.4g}" in lines[-1].split() and len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("names", [None, ["cat", "dog", "eel", "fox", "gnu"]])
def test_classes_that_only_the_fakes_have_are_named(tmp_path, capsys, names):
    real = write_classes(tmp_path / "real", [8, 8], names=names and names[:2])
    fakes = write_classes(tmp_path / "fakes", [8, 8, 3, 0, 4], first=3, names=names)
    others = ["2 eel", "4 gnu"] if names else ["2", "4"]
    evaluate("--data", real, "--fakes", fakes, "--metrics", "swd8", "--per-class", "--json")
    captured = capsys.readouterr()
    line = f"warning: classes {', '.join(others)} are left out: {real} has no real images of such classes"
    assert captured.err.splitlines().count(line) == 1
    record = json.loads(captured.out)
    assert record["unusable"] == dict.fromkeys(others, "there is no real image") and len(record["classes"]) == 2


def test_photographs_of_a_class_are_handed_over_in_small_numbers(tmp_path, monkeypatch):
    """As those of all classes are: each may be large."""
    labels = []
    for number in range(12):
        Image.new("RGB", (20 + number, 20), (number, 0, 0)).save(tmp_path / f"{number:02d}.png")
        labels.append([f"{number:02d}.png", number % 2])
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    handed, pack = [], features.pack
    monkeypatch.setattr(features, "pack", lambda items: handed.append(len(items)) or pack(items))
    source = dataset_source(images_of_class(MixedImages(tmp_path, use_labels=True), 1), range(6))
    (batch,) = source([range(6)])
    assert [int(image[0, 0, 0]) for image in batch] == [1, 3, 5, 7, 9, 11]
    assert sum(handed) == 6 and max(handed) <= features.AT_ONCE


def test_a_generator_by_class(tmp_path, capsys):
    """Each class has images of that class: a generator of which one class is white is bad at that class only."""
    data = write_classes(tmp_path / "data", [12, 12])
    write_snapshot(tmp_path / "snapshot.safetensors", c_dim=2)
    options = ["--data", data, "--network", tmp_path / "snapshot.safetensors", "--metrics", "swd20", "--per-class"]
    evaluate(*options, "--json")
    first = json.loads(capsys.readouterr().out)
    assert list(first["classes"]) == ["0", "1"] and first["settings"]["truncation"] == 1
    for name in ("0000.png", "0005.png", "0011.png"):  # of class 0
        Image.new("RGB", (16, 16), "white").save(data / name)
    evaluate(*options, "--json")
    second = json.loads(capsys.readouterr().out)
    assert second["classes"]["1"]["swd20"] == pytest.approx(first["classes"]["1"]["swd20"], rel=1e-6)
    assert second["classes"]["0"]["swd20"] != pytest.approx(first["classes"]["0"]["swd20"], rel=1e-3)


def test_what_cannot_be_evaluated_by_class(tmp_path):
    plain = write_images(tmp_path / "plain", 8)
    (plain / "dataset.json").unlink()
    data, few = write_classes(tmp_path / "data", [8, 8]), write_classes(tmp_path / "few", [1, 1])
    numbers = write_classes(tmp_path / "numbers", [4, 4])
    labels = json.loads((numbers / "dataset.json").read_text())["labels"]
    (numbers / "dataset.json").write_text(json.dumps({"labels": [[name, label + 0.5] for name, label in labels]}))
    for words, real, fake in (
        ("has no labels", plain, data),
        ("has no labels", data, plain),
        ("are numbers, not classes", numbers, data),
        ("are numbers, not classes", data, numbers),
        ("no class of", few, data),
    ):
        assert words in mistake("--data", real, "--fakes", fake, "--metrics", "swd4", "--per-class"), (words, real)
    assert "leave out --all" in mistake("--data", data, "--network", tmp_path, "--per-class", "--all")


def test_classes_are_compared_by_their_names(tmp_path):
    """Where a folder of a class is missing, all after it have other numbers."""
    data = write_classes(tmp_path / "data", [8, 8, 8], names=["ant", "bee", "cat"])
    fakes = write_classes(tmp_path / "fakes", [8, 8], names=["bee", "cat"])
    write_snapshot(tmp_path / "snapshot.safetensors", c_dim=3, info={"class_names": ["ant", "cat", "bee"]})
    for words, *of in (
        (f"class 0 of {fakes} is 'bee', but of {data} 'ant'; number", "--fakes", fakes, "--per-class"),
        ("class 1 of .* is 'cat', but of .* 'bee'; number", "--network", tmp_path / "snapshot.safetensors"),
        ("class 1 of .* is 'cat', but of .* 'bee'", "--network", tmp_path / "snapshot.safetensors", "--per-class"),
    ):
        assert re.search(words, mistake("--data", data, "--metrics", "swd4", *of)), words


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_an_image_that_cannot_be_read_ends_all_processes(tmp_path, processes):
    """One of two meets it, and the other is not left to wait."""
    real = write_classes(tmp_path / "real", [12, 12])
    fakes = write_classes(tmp_path / "fakes", [12, 12], first=3)
    (real / "0005.png").write_bytes((real / "0005.png").read_bytes()[:-40])
    arguments = ["--metrics", "swd10", "--per-class", "--gpus", 0, "--procs", processes, "--workers", 0, "--batch", 4]
    result = script("-m metrics", "--data", real, "--fakes", fakes, *arguments, cwd=ROOT, seconds=60)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 2 and len(lines) == 1 and "0005.png" in lines[0], result.stderr
