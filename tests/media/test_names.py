"""Names of files in folders and archives, in all the ways in which people's programs write them."""

from __future__ import annotations

import json
import unicodedata

import pytest

from media.check import check_dataset
from media.convert import Conversion, convert
from media.dataset import ImageDataset
from media.image_files import ImageFiles, normal_name
from tests.media.test_dataset import encoded, image, make_folder, make_zip

NAMES = ["cats/é0.png", "cats/1.png", "dogs/2.png"]
SPELLINGS = {
    "backslashes": lambda name: name.replace("/", "\\"),
    "dot": lambda name: f"./{name}",
    "decomposed": lambda name: unicodedata.normalize("NFD", name),
    "doubled": lambda name: name.replace("/", "//"),
}


def labels_of(names: list[str]) -> bytes:
    return json.dumps({"labels": [[name, i] for i, name in enumerate(names)]}).encode()


@pytest.mark.parametrize("of_labels", ["plain", *SPELLINGS])
@pytest.mark.parametrize("of_members", ["plain", *SPELLINGS])
def test_members_and_labels_meet_in_every_spelling(tmp_path, of_members, of_labels):
    spell = {"plain": str, **SPELLINGS}
    files = {spell[of_members](name): encoded(image(i)) for i, name in enumerate(NAMES)}
    files["dataset.json"] = labels_of([spell[of_labels](name) for name in NAMES])
    path = make_zip(tmp_path / "a.zip", files)
    data = ImageDataset(path, use_labels=True)
    assert data.names == sorted(NAMES)
    assert [data.labels[data.names.index(name)].item() for name in NAMES] == [0, 1, 2]
    assert all((data[i][0].permute(1, 2, 0).numpy() == image(NAMES.index(n))).all() for i, n in enumerate(data.names))
    assert check_dataset(path).problems == []


@pytest.mark.parametrize("make", [make_zip, make_folder])
def test_a_folder_that_wraps_everything(tmp_path, make):
    files = {f"my data/{name}": encoded(image(i)) for i, name in enumerate(NAMES)}
    files |= {"__MACOSX/my data/._x.png": b"broken", "my data/.DS_Store": b""}
    data = ImageDataset(make(tmp_path / "a.zip", files | {"my data/dataset.json": labels_of(NAMES)}), use_labels=True)
    assert data.names == sorted(NAMES) and data.c_dim == 3
    done = convert(tmp_path / "a.zip", tmp_path / "out", Conversion(16), labels="folders")
    assert done.class_names == ("cats", "dogs")


def test_a_folder_that_is_a_class_or_part_of_the_format_is_kept(tmp_path):
    for name in ("cats/a.png", "00000/img00000000.png"):
        path = make_zip(tmp_path / "a.zip", {name: encoded(image())})
        assert ImageFiles(path).names == [name]


def test_a_byte_order_mark_before_the_labels(tmp_path):
    files = {name: encoded(image(i)) for i, name in enumerate(NAMES)}
    path = make_zip(tmp_path / "a.zip", files | {"dataset.json": b"\xef\xbb\xbf" + labels_of(NAMES)})
    assert ImageDataset(path, use_labels=True).c_dim == 3


def test_the_normal_form():
    for name in ("a/b.png", "./a/b.png", "a\\b.png", ".\\a\\b.png", "/a//b.png", "a/./b.png"):
        assert normal_name(name) == "a/b.png"
    assert normal_name("../b.png") == "../b.png"
