"""media.image_files: which files a data set has, under which names, and what is said of those that it leaves out."""

import json
import shlex
import unicodedata
import zipfile

import numpy as np
import pytest

from media import image_files
from media.check import check_dataset
from media.convert import Conversion, convert, write_dataset
from media.dataset import ImageDataset
from media.faces import faces
from media.image_files import ImageFiles
from media.shards import find_shards
from tests.media.test_dataset import encoded, fails, image, make_folder, make_zip, numbered
from torch_utils.errors import UserError
from training.runs import mark


@pytest.mark.parametrize("make", [make_zip, make_folder])
def test_names_are_compared_in_one_form(tmp_path, make):
    """Whatever spelling members and labels have, each image has its label; a wrapping folder changes nothing."""
    names = ["a/é.png", "b/c.png"]
    labels = [[names[0], 1], [names[1], 0]]
    files = {name: encoded(image(i)) for i, name in enumerate(names)}
    table = {"dataset.json": json.dumps({"labels": labels}).encode()}
    spellings = {
        "plain": files | table,
        "decomposed": {unicodedata.normalize("NFD", name): data for name, data in files.items()} | table,
        "wrapped": {f"set/{name}": data for name, data in (files | table).items()},
    }
    if make is make_zip:
        spellings["dots"] = {f"./{name}": data for name, data in (files | table).items()}
        spellings["backslashes"] = {name.replace("/", "\\"): data for name, data in files.items()} | table
        spellings["macos"] = spellings["wrapped"] | {"__MACOSX/set/._c.png": b"", "set/.DS_Store": b""}
    other = [[unicodedata.normalize("NFD", ".\\a\\é.png"), 1], ["./b//c.png", 0]]
    spellings["labels"] = files | {"dataset.json": json.dumps({"labels": other}).encode()}
    for spelling, members in spellings.items():
        data = ImageDataset(make(tmp_path / f"{spelling}.zip", members), use_labels=True)
        assert (data.names, data.labels.tolist()) == (names, [1, 0]), spelling
        assert all(np.array_equal(data[i][0], np.array(image(i)).transpose(2, 0, 1)) for i in (0, 1))
        assert check_dataset(data.path).problems == []


def test_two_spellings_of_one_name_are_refused(tmp_path):
    fails(make_zip(tmp_path / "a.zip", {"a/b.png": encoded(image()), "./a/b.png": encoded(image(1))}), "one name")


def test_links_to_folders_are_followed_and_cycles_noticed(tmp_path):
    make_folder(tmp_path / "elsewhere", {"x.png": encoded(image(0)), "in/y.png": encoded(image(1))})
    make_folder(tmp_path / "set", {"a/z.png": encoded(image(2))})
    (tmp_path / "set/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/a/up").symlink_to(tmp_path / "set")
    (tmp_path / "elsewhere/in/self").symlink_to("../in")
    (tmp_path / "set/gone").symlink_to(tmp_path / "nowhere")
    files = ImageFiles(tmp_path / "set")
    assert files.names == ["a/z.png", "b/in/y.png", "b/x.png"]
    assert sorted(files.cycles) == ["a/up", "b/in/self"]
    assert len(ImageDataset(tmp_path / "set")) == 3


@pytest.mark.parametrize("shape", ["ladder", "all to all", "empty"])
def test_links_that_multiply_are_refused_at_once(tmp_path, shape):
    """Thirty folders, each with links to others: the ways through them are more than any program could go."""
    make_folder(tmp_path / "set", {} if shape == "empty" else {"x.png": encoded(image(0))})
    for i in range(30):
        (tmp_path / f"set/{i:02}").mkdir(parents=True)
    for i in range(30):
        for link, to in [("a", i + 1), ("b", i + 1)] if shape != "all to all" else [(f"to{k}", k) for k in range(30)]:
            if to < 30:
                (tmp_path / f"set/{i:02}/{link}").symlink_to(f"../{to:02}")
    with pytest.raises(UserError, match=r"lead to one folder in more than 100 ways, .*; remove such links") as error:
        ImageFiles(tmp_path / "set")
    last = str(error.value).rpartition("is ")[2].partition(";")[0]
    assert (tmp_path / "set" / last).is_symlink()
    for link in (tmp_path / "set").glob("*/*"):
        if link.name != "a":
            link.unlink()
    if shape == "ladder":
        assert len(ImageFiles(tmp_path / "set").names) == 1


def test_a_folder_may_be_linked_often(tmp_path):
    make_folder(tmp_path / "set", {"one/x.png": encoded(image(0))})
    for i in range(99):
        (tmp_path / f"set/link{i}").symlink_to("one")
    assert len(ImageFiles(tmp_path / "set").names) == 100


@pytest.mark.parametrize("what", ["files", "links that lead nowhere", "links in a circle", "runs"])
def test_no_more_is_listed_than_the_limit(tmp_path, monkeypatch, what):
    monkeypatch.setattr(image_files, "MAX_FILES", 100)
    make_folder(tmp_path / "set", numbered(2))
    for i in range(90):
        if what == "files":
            (tmp_path / f"set/{i:03}.txt").write_text("")
        elif what == "runs":
            (tmp_path / f"set/{i:03}").mkdir()
            mark(tmp_path / f"set/{i:03}")
        else:
            (tmp_path / f"set/{i:03}").symlink_to("." if "circle" in what else "nowhere")
    assert len(ImageFiles(tmp_path / "set", (".png",)).names) == 2
    for i in range(100):
        (tmp_path / f"set/more{i}.txt").write_text("")
    with pytest.raises(UserError, match="more than 100 files and folders, the limit; name a part of it"):
        ImageFiles(tmp_path / "set", (".png",))


def test_folders_of_runs_are_left_out_with_a_note(tmp_path):
    make_folder(tmp_path / "set", numbered(2) | {"runs/00000-x/fakes.png": encoded(image(9))})
    assert len(ImageFiles(tmp_path / "set", (".png",)).names) == 3
    mark(tmp_path / "set" / "runs" / "00000-x")
    files = ImageFiles(tmp_path / "set", (".png",))
    assert len(files.names) == 2 and files.runs == ["runs/00000-x"] and "runs/00000-x" in files.notes[0]
    named = ImageFiles(tmp_path / "set" / "runs" / "00000-x", (".png",))  # a run that is named itself is meant
    assert named.names == ["fakes.png"] and named.notes == []


def test_notes_about_labels(tmp_path):
    names = sorted(numbered(3))[:3]
    path = make_zip(tmp_path / "a.zip", numbered(3, [[names[0], 1], [names[1], 3], [names[2], 6]]))
    assert ImageDataset(path, use_labels=True).notes == [f"classes of {path} without an image: 0,2,4-5"]
    assert ImageDataset(path).notes == [f"{path} has labels, which are not used without --cond"]
    for labels in (None, [["x.png", "cat"]]):
        assert ImageDataset(make_zip(tmp_path / "b.zip", numbered(3, labels))).notes == []


def test_names_in_archives_that_are_no_text(tmp_path):
    """A ZIP that says its names are UTF-8, and they are not; found by damaging files at random."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("é.png", b"x")
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(data.replace("é".encode(), b"\xff\xff"))
    with pytest.raises(UserError, match="is not a ZIP file"):
        ImageDataset(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("start", "told"),
    [
        (b"\x89PNG\r\n\x1a\n", "a PNG image, not a ZIP; name a folder or ZIP of images"),
        (b"# A heading\n", "text, not a ZIP; name a folder or ZIP of images"),
        (b"", "empty; name a folder or ZIP of images"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a pointer of Git LFS; fetch the file itself with: git lfs pull",
        ),
        (
            b"PK\x03\x04",
            "not a ZIP file, or is cut off (File is not a zip file); copy it again, or name a folder of images",
        ),
    ],
)
def test_what_is_no_archive_is_called_what_it_is(tmp_path, start, told):
    (tmp_path / "a").write_bytes(start)
    with pytest.raises(UserError) as error:
        ImageDataset(tmp_path / "a")
    assert error.value.message == f"{tmp_path / 'a'} is {told}"


@pytest.mark.parametrize("says_so", [True, False])
def test_names_in_utf8_are_read_whether_an_archive_says_so_or_not(tmp_path, says_so):
    """Some programs do not set the flag; then `zipfile` reads the bytes as characters of DOS."""
    path = tmp_path / "a.zip"
    names = ["Größe/Bär.png", "plain.png", "日本.png"]
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    if not says_so:
        data = bytearray(path.read_bytes())
        for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            at = data.find(signature)
            while at >= 0:
                data[at + flags + 1] &= ~0x08
                at = data.find(signature, at + 1)
        path.write_bytes(data)
        assert [m.flag_bits for m in zipfile.ZipFile(path).infolist()] == [0, 0, 0]
    files = ImageFiles(path)
    assert files.names == sorted(names)
    assert [files.read(name).decode() for name in files.names] == files.names


def test_a_name_in_the_characters_of_dos_stays(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("aaa.png", b"x")
    data = (tmp_path / "a.zip").read_bytes().replace(b"aaa.png", "aéa.png".encode("cp437"))
    (tmp_path / "a.zip").write_bytes(data)
    assert ImageFiles(tmp_path / "a.zip").names == ["aéa.png"]


def test_the_pattern_that_is_advised_finds_the_shards(tmp_path):
    folder = tmp_path / "sh[1] *?"
    write_dataset(folder, ((image, None) for image, _ in faces(4, 16, seed=0)), shard_bytes=100_000)
    with pytest.raises(UserError, match=r"holds no images .* but shards") as error:
        ImageFiles(folder, (".png",))
    (pattern,) = shlex.split(error.value.message.split("--data ")[-1])
    assert find_shards(pattern) == (str(folder / "00000.tar"),)
    assert find_shards(str(folder / "00000.tar")) == (str(folder / "00000.tar"),)


@pytest.mark.parametrize("number", range(5))
def test_a_null_byte_in_a_name_is_no_end_of_the_program(tmp_path, number):
    """Wherever it is. Before it, the name ends, and at the beginning there is none."""
    path = make_zip(tmp_path / "a.zip", {"abcde.png": b"text", "good.png": encoded(image(1))})
    path.write_bytes(path.read_bytes().replace(b"abcde", b"abcde"[:number] + b"\0" + b"abcde"[number + 1 :]))
    assert ImageDataset(path).names == ["good.png"]
    assert convert(path, tmp_path / "b.zip", Conversion(16)).count == 1
    assert check_dataset(path).count == 1
