"""`--labels folders`: which folders are classes."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from media.convert import convert
from media.dataset import ImageDataset
from media.labels import class_folders
from tests.media.test_convert import KEEP, RED, save, solid
from torch_utils.errors import UserError


def test_labels_from_folders(tmp_path):
    for i, name in enumerate(("dogs/b.png", "cats/a.png", "dogs/more/a.png", "stray.png", "zebras/z.png")):
        save(tmp_path / "in", name, solid((i, 0, 0)))
    done = convert(tmp_path / "in", tmp_path / "out.zip", KEEP, labels="folders")
    assert done.class_names == ("cats", "dogs", "zebras")
    assert [name for name, _ in done.skipped] == ["stray.png"]
    data = ImageDataset(tmp_path / "out.zip", use_labels=True)
    assert [int(image[0, 0, 0]) for image, _ in data] == [1, 0, 2, 4]
    assert data.labels.tolist() == [0, 1, 1, 2]
    with pytest.raises(UserError, match="only dogs"):
        save(tmp_path / "one", "dogs/a.png", solid(RED))
        convert(tmp_path / "one", tmp_path / "b.zip", KEEP, labels="folders")


@pytest.mark.parametrize("above", ["", "pets/", "data/my pets/"], ids=["top", "wrapped", "wrapped twice"])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_folder_that_wraps_the_classes_is_none(tmp_path, kind, above):
    """As archives often have one. Files that are no images may be beside it, and images beside the classes."""
    for i, name in enumerate(("cat/a.png", "dog/more/b.png", "dog/c.png")):
        save(tmp_path / "in", above + name, solid((i, 0, 0)))
    (tmp_path / "in/README.txt").write_text("pets")
    save(tmp_path / "in", f"{above}stray.png", solid(RED))
    source = tmp_path / "in"
    if kind == "zip":
        source = Path(shutil.make_archive(str(tmp_path / "in"), "zip", source))
    done = convert(source, tmp_path / "out.zip", KEEP, labels="folders")
    assert done.class_names == ("cat", "dog") and {name for name, _ in done.skipped} == {
        "README.txt",
        f"{above}stray.png",
    }
    data = ImageDataset(tmp_path / "out.zip", use_labels=True)
    assert sorted((int(image[0, 0, 0]), int(label[1])) for image, label in data) == [(0, 0), (1, 1), (2, 1)]
    assert convert(source, tmp_path / "few.zip", KEEP, labels="folders", limit=2).count == 2
    assert ImageDataset(tmp_path / "few.zip", use_labels=True).labels.tolist() in ([0, 1], [1, 0])


@pytest.mark.parametrize(
    ("names", "only"),
    [
        (["a.png", "b.png"], "none"),
        (["dogs/a.png", "dogs/b.png"], "only dogs"),
        (["pets/dogs/a.png"], "only pets/dogs"),
        (["a.png", "pets/cats/a.png", "pets/dogs/b.png"], "only pets"),  # an image beside it: it wraps not all
        (["pets/a.png", "pets/all/cats/a.png", "pets/all/dogs/b.png"], "only pets/all"),
    ],
)
def test_what_has_no_folders_of_classes_is_told(tmp_path, names, only):
    for name in names:
        save(tmp_path / "in", name, solid(RED))
    archive = shutil.make_archive(str(tmp_path / "in"), "zip", tmp_path / "in")
    for source in (tmp_path / "in", archive):
        with pytest.raises(UserError, match=f"has {only}; sort the images into a folder for each class, and name"):
            convert(source, tmp_path / "out.zip", KEEP, labels="folders")


def test_folders_of_classes_are_found_in_any_names():
    """Against a search from the top down."""
    rng = random.Random(0)
    for _ in range(3000):
        depths = rng.choices(range(5), k=rng.randint(1, 6))
        names = ["/".join([*rng.choices(["a", "ab", "b"], k=depth), rng.choice(["x.png", "y"])]) for depth in depths]
        above, level = "", [n for n in names if "/" in n or n.endswith(".png")]
        while len({n.split("/")[0] for n in level}) == 1 and all("/" in n for n in level):
            above += level[0].split("/")[0] + "/"
            level = [n.partition("/")[2] for n in level]
        found = class_folders(names)
        assert found.names == tuple(sorted({n.split("/")[0] for n in level if "/" in n})) and found.above == above
        assert {found.of(n) for n in names} - {None} == set(found.names)


def test_files_beside_folders_of_classes_are_no_classes_of_their_own(tmp_path):
    """With a limit, images are drawn from each class in turn, and from nothing else."""
    for name in [f"{folder}/{i}" for folder in "ab" for i in range(5)] + [f"loose{i}" for i in range(20)]:
        save(tmp_path / "in", f"{name}.png", solid(RED))
    done = convert(tmp_path / "in", tmp_path / "out.zip", KEEP, labels="folders", limit=6)
    labels = ImageDataset(tmp_path / "out.zip", use_labels=True).labels
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1] and len(done.skipped) <= 6


# What lies beside the images of two classes, as data sets have it, and which of it is read.
BESIDE = {
    "annotations": ["k/annotations/a.xml"],
    "notes and a listing": ["notes/a", "LICENSE", "k/list.csv", "k/images/README"],
    "deep": ["k/annotations/more/x/a.xml", "k/annotations/more/y/b.xml"],
    "a broken image beside the classes": ["k/images/broken.png"],
}


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)
def test_what_is_no_image_makes_no_folder_a_class(tmp_path, beside, kind):
    """Wherever the images lie, the folders of these alone are the classes."""
    save(tmp_path / "in", "k/images/cat/1.png", solid((1, 0, 0)))
    save(tmp_path / "in", "k/images/dog/22.png", solid((2, 0, 0)))
    for name in beside:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"text")
    source = tmp_path / "in"
    if kind == "zip":
        source = Path(shutil.make_archive(str(tmp_path / "in"), "zip", source))
    done = convert(source, tmp_path / "out.zip", KEEP, labels="folders")
    assert done.class_names == ("cat", "dog") and done.count == 2
    assert [name for name, _ in done.skipped] == sorted(beside)
    labels = ImageDataset(tmp_path / "out.zip", use_labels=True)
    assert {int(image[0, 0, 0]): int(label.argmax()) for image, label in labels} == {1: 0, 2: 1}


def test_images_need_no_extension_for_it(tmp_path):
    for name in ("cat/1", "dog/2.jpg_large"):
        save(tmp_path / "k/images", f"{name}.png", solid(RED))
        (tmp_path / "k/images" / f"{name}.png").rename(tmp_path / "k/images" / name)
    save(tmp_path / "k/images", "dog/3.png", solid(RED))
    (tmp_path / "k/notes").mkdir()
    (tmp_path / "k/notes/a.txt").write_text("text")
    assert convert(tmp_path / "k", tmp_path / "out.zip", KEEP, labels="folders").class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("good", "bad", "only"),
    [
        (["cat/1.png"], ["dog/2.png"], "cat with a usable image"),
        (["cat/1.png"], ["notes/a.txt"], "cat"),
        (["k/cat/1.png"], ["k/dog/2.png", "k/notes/a.txt"], "k/cat with a usable image"),
        (["k/images/1.png"], ["k/annotations/a.xml"], "k/images"),
        (["cat/a/1.png", "cat/b/2.png"], ["dog/3.heic"], "cat with a usable image"),  # no classes a and b
        (["cat/a/1.png", "cat/b/2.png"], ["dog/3.mp4"], "cat with a usable image"),
    ],
)
def test_one_class_with_images_is_none(tmp_path, good, bad, only):
    for name in good:
        save(tmp_path / "in", name, solid(RED))
    for name in bad:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"text")
    with pytest.raises(UserError, match=f"has only {only}; sort the images into a folder for each class, and name"):
        convert(tmp_path / "in", tmp_path / "out.zip", KEEP, labels="folders")
    assert not (tmp_path / "out.zip").exists()
