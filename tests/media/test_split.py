"""A data set, split into a part to train with and a part that is held out."""

from __future__ import annotations

import io
import json
import os
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from media.dataset import ImageDataset
from media.image_files import ImageFiles
from media.split import split
from torch_utils.errors import UserError
from torch_utils.files import RUN_MARKER


def image_bytes(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, shade, shade)).save(buffer, "png")
    return buffer.getvalue()


def write_source(path: Path, count: int, labels: bool = True, missing: int = -1) -> dict[str, bytes]:
    """A ZIP of `count` images in two folders; without the label of image `missing`."""
    content = {f"{'ab'[i % 2]}/{i:03d}.png": image_bytes(i) for i in range(count)}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
        if labels:
            found = [[name, int(name[2:5]) % 3] for name in content if int(name[2:5]) != missing]
            archive.writestr("dataset.json", json.dumps({"labels": found, "class_names": ["x", "y", "z"]}))
    return content


def images_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name != "dataset.json"}


@pytest.mark.parametrize(("count", "every"), [(40, 10), (43, 10), (9, 2)])
def test_each_image_is_in_one_of_the_two_sets_as_it_was(count, every, tmp_path):
    source, train, held = (tmp_path / name for name in ("all.zip", "train.zip", "held.zip"))
    content = write_source(source, count)
    counts = split(source, train, held, every=every)
    kept, left_out = images_of(train), images_of(held)
    assert counts == (len(kept), len(left_out)) == (count - count // every, count // every)
    assert kept | left_out == content and not kept.keys() & left_out.keys()
    assert sorted(left_out) == sorted(content)[every - 1 :: every]


def test_labels_go_with_their_files(tmp_path):
    write_source(tmp_path / "all.zip", 40)
    split(tmp_path / "all.zip", tmp_path / "train.zip", tmp_path / "held.zip")
    for name in ("train.zip", "held.zip"):
        dataset = ImageDataset(tmp_path / name, use_labels=True)
        assert dataset.class_names == ("x", "y", "z")
        for image, label in dataset:
            assert int(label.argmax()) == int(image[0, 0, 0]) % 3  # its shade is its number


def test_a_set_without_labels_stays_without(tmp_path):
    write_source(tmp_path / "all.zip", 20, labels=False)
    split(tmp_path / "all.zip", tmp_path / "train.zip", tmp_path / "held.zip")
    with pytest.raises(UserError, match="label"):
        ImageDataset(tmp_path / "train.zip", use_labels=True)


def test_the_same_source_gives_the_same_bytes(tmp_path):
    write_source(tmp_path / "all.zip", 40)
    for run in "12":
        split(tmp_path / "all.zip", tmp_path / f"train{run}.zip", tmp_path / f"held{run}.zip")
    assert (tmp_path / "train1.zip").read_bytes() == (tmp_path / "train2.zip").read_bytes()
    assert (tmp_path / "held1.zip").read_bytes() == (tmp_path / "held2.zip").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "train"}, "let it end with .zip"),
        ({"train": "there.zip"}, "--overwrite"),
        ({"held_out": "there.zip"}, "--overwrite"),
        ({"held_out": "train.zip"}, "two different files"),
        ({"held_out": "x/../train.zip"}, "two different files"),
        ({"train": "all.zip", "overwrite": True}, "stays as it is"),
        ({"held_out": "./all.zip", "overwrite": True}, "stays as it is"),
        ({"every": 41}, "fewer than --every 41"),
        ({"source": "there.zip", "every": 2}, "other"),
        ({"train": "loop.zip", "overwrite": True}, "loop.zip is a link that leads to itself"),
        ({"held_out": "loop.zip/x.zip"}, "x.zip is a link that leads to itself, or lies behind one; name another"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x").mkdir()
    Path("loop.zip").symlink_to("loop.zip")
    write_source(Path("all.zip"), 40)
    write_source(Path("there.zip"), 5, missing=2)
    before = {path: path.read_bytes() for path in Path().rglob("*.zip") if path.is_file()}
    with pytest.raises(UserError, match=message):
        split(**{"source": "all.zip", "train": "train.zip", "held_out": "held.zip", **changes})
    assert {path: path.read_bytes() for path in Path().rglob("*.zip") if path.is_file()} == before
    assert len(list(Path().iterdir())) == len(before) + 2


def test_both_parts_are_written_or_none(tmp_path):
    write_source(tmp_path / "all.zip", 20)
    with pytest.raises(UserError, match=r"cannot write /dev/null/held\.zip: "):
        split(tmp_path / "all.zip", tmp_path / "train.zip", "/dev/null/held.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["all.zip"]


@pytest.mark.parametrize("name", ["train.zip", "held.zip"])
def test_what_appears_during_the_work_is_not_replaced(tmp_path, monkeypatch, name):
    write_source(tmp_path / "all.zip", 20)
    read = ImageFiles.read

    def and_write(self, *args):
        (tmp_path / name).write_bytes(b"another")
        return read(self, *args)

    monkeypatch.setattr(ImageFiles, "read", and_write)
    with pytest.raises(UserError, match=f"{name} exists; name another file, or replace both with --overwrite"):
        split(tmp_path / "all.zip", tmp_path / "train.zip", tmp_path / "held.zip")
    assert (tmp_path / name).read_bytes() == b"another"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["all.zip", name])


def test_links_to_the_parts_stay_links(tmp_path):
    write_source(tmp_path / "all.zip", 20)
    (tmp_path / "disk").mkdir()
    for name in ("train.zip", "held.zip"):
        (tmp_path / name).symlink_to(f"disk/{name}")
    split(tmp_path / "all.zip", tmp_path / "train.zip", tmp_path / "held.zip")
    split(tmp_path / "all.zip", tmp_path / "train.zip", tmp_path / "held.zip", overwrite=True)
    assert all((tmp_path / name).is_symlink() for name in ("train.zip", "held.zip"))
    assert len(images_of(tmp_path / "disk" / "train.zip")) == 18


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are UTF-8 there")
def test_a_name_that_is_no_utf8_is_named(tmp_path):
    for i in range(10):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{i}.png").write_bytes(image_bytes(i))
    os.rename(os.fsencode(tmp_path / "in" / "3.png"), os.fsencode(tmp_path / "in") + b"/\xff3.png")
    with pytest.raises(UserError, match=r"the name .*3\.png is no UTF-8.*; rename that file"):
        split(tmp_path / "in", tmp_path / "train.zip", tmp_path / "held.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_left_out_folders_of_runs_are_told(tmp_path, capsys):
    for i in range(20):
        path = tmp_path / "in" / ("run" if i < 10 else "") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(i))
    (tmp_path / "in" / "run" / RUN_MARKER).touch()
    assert split(tmp_path / "in", tmp_path / "train.zip", tmp_path / "held.zip") == (9, 1)
    assert "left out folders of training runs: 1" in capsys.readouterr().err
