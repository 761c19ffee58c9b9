"""The labels in `dataset.json`: classes and their names."""

from __future__ import annotations

import json

import pytest

from media.check import check_dataset
from media.convert import Conversion, convert
from media.dataset import ImageDataset
from tests.media.test_dataset import encoded, fails, image, make_folder, make_zip, numbered
from torch_utils.errors import UserError

LABELS = [[f"{i // 2:05d}/img{i:08d}.png", label] for i, label in enumerate([2, 0, 0])]


def named(names: object, labels: object = LABELS) -> dict[str, bytes]:
    return numbered(3) | {"dataset.json": json.dumps({"labels": labels, "class_names": names}).encode()}


def test_names_of_classes(tmp_path):
    """They fix the number of classes, also of those without an image, and stay where images are converted."""
    path = make_zip(tmp_path / "a.zip", named(["cat", "dog", "großer Bär", "eel"]))
    data = ImageDataset(path, use_labels=True)
    assert data.class_names == ("cat", "dog", "großer Bär", "eel") and data.c_dim == 4
    assert data.labels.tolist() == [2, 0, 0] and data[0][1].tolist() == [0, 0, 1, 0]
    assert ImageDataset(path).class_names == () and ImageDataset(path).c_dim == 0
    assert check_dataset(path).class_names == data.class_names
    convert(path, tmp_path / "b.zip", Conversion(16))
    assert ImageDataset(tmp_path / "b.zip", use_labels=True).class_names == data.class_names
    convert(path, tmp_path / "c.zip", Conversion(16), labels="none")
    assert check_dataset(tmp_path / "c.zip").class_names == ()


def test_without_names_there_are_as_many_classes_as_the_largest_says(tmp_path):
    for i, files in enumerate((named(None), numbered(3, LABELS))):
        data = ImageDataset(make_folder(tmp_path / str(i), files), use_labels=True)
        assert data.class_names == () and data.c_dim == 3


@pytest.mark.parametrize("names", ["cat", {"0": "cat"}, [], ["a", "b", ""], ["a", "b", 3], ["a", "b", "a"], ["a\n"]])
def test_names_that_are_none(tmp_path, names):
    fails(make_folder(tmp_path / "a", named(names)), "should name the classes as a list", use_labels=True)


def test_too_few_names(tmp_path):
    path = make_folder(tmp_path / "a", named(["cat", "dog"]))
    fails(path, "names 2 classes, but has the class 2; name all, or none", use_labels=True)
    assert "names 2 classes" in (check_dataset(path).label_problem or "")


def test_folders_give_their_names(tmp_path):
    """Of folders without a usable image there is no name, and names are printable."""
    one = numbered(1)["00000/img00000000.png"]
    source = make_folder(tmp_path / "in", {"cat/a.png": one, "b\x07/a.png": one, "none/x.txt": b"", "dog/a.png": one})
    convert(source, tmp_path / "out.zip", Conversion(16), labels="folders")
    data = ImageDataset(tmp_path / "out.zip", use_labels=True)
    assert data.class_names == ("b\\x07", "cat", "dog") and data.labels.tolist() == [0, 1, 2]


def test_the_file_is_json(tmp_path):
    with pytest.raises(UserError, match="is not JSON"):
        ImageDataset(make_folder(tmp_path / "a", numbered(1) | {"dataset.json": b"{"}), use_labels=True)


@pytest.mark.parametrize("names", [("a.png", "a.png"), ("b/a.png", "b\\a.png"), ("b/a.png", "./b/a.png")], ids=str)
@pytest.mark.parametrize("first, second", [(0, 1), ([0.5], [0.25])], ids=str)
def test_an_image_has_one_label(tmp_path, names, first, second):
    """By all spellings of its name; the same label twice is no mistake."""
    files = {names[0]: encoded(image(0)), "other.png": encoded(image(1))}
    for number, label in enumerate((second, first)):
        entries = [[names[0], first], ["other.png", second], [names[1], label]]
        folder = make_folder(tmp_path / str(number), files | {"dataset.json": json.dumps({"labels": entries}).encode()})
        if label == first:
            assert len(ImageDataset(folder, use_labels=True)) == 2
        else:
            with pytest.raises(UserError, match=r"dataset\.json of .* gives .*a\.png two labels"):
                ImageDataset(folder, use_labels=True)


def test_labels_that_no_reader_would_take_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("media.convert.MAX_LABEL_BYTES", 200)
    source = make_zip(tmp_path / "a.zip", {f"{'ab'[i % 2]}/{i}.png": encoded(image(i)) for i in range(10)})
    with pytest.raises(
        UserError, match=r"the labels of more than \d images are too large .* --shards 256MB.* --max.* --labels none"
    ):
        convert(source, tmp_path / "b.zip", Conversion(16), labels="folders")
    assert not (tmp_path / "b.zip").exists()
    assert convert(source, tmp_path / "tars", Conversion(16), labels="folders", shard_bytes=10_000).count == 10
    assert convert(source, tmp_path / "b.zip", Conversion(16), labels="none").count == 10
    entries = [[f"{'ab'[i % 2]}/{i}.png", [0.5, 0.25]] for i in range(10)]
    files = {name: encoded(image(i)) for i, (name, _) in enumerate(entries)}
    vectors = make_zip(tmp_path / "v.zip", files | {"dataset.json": json.dumps({"labels": entries}).encode()})
    with pytest.raises(UserError, match=r"too large for dataset\.json; take fewer images with --max, or"):
        convert(vectors, tmp_path / "c.zip", Conversion(16))
    assert convert(vectors, tmp_path / "c.zip", Conversion(16), limit=2).count == 2
