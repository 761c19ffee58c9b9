"""files.atomic_write: the new file, or the old one, and nothing beside it."""

import errno
import os
from pathlib import Path

import pytest

from torch_utils.errors import DiskFull, UserError
from torch_utils.files import append_file, atomic_write, missing_message, remove_leftovers, short_name, write_file


def test_writes_a_new_file_and_replaces_an_old_one(tmp_path):
    path = tmp_path / "a.bin"
    for content in (b"first, and longer", b"second"):
        with atomic_write(path) as file:
            file.write(content[:3])
            file.write(content[3:])
        assert path.read_bytes() == content
        assert os.listdir(tmp_path) == ["a.bin"]


def test_the_name_appears_only_at_the_end(tmp_path):
    path = tmp_path / "a.bin"
    with atomic_write(str(path)) as file:
        file.write(b"new")
        file.flush()
        assert not path.exists()
        assert [(tmp_path / name).read_bytes() for name in os.listdir(tmp_path)] == [b"new"]
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_no_debris(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"half of the n")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_goal_that_cannot_be_replaced_leaves_no_debris(tmp_path):
    goal = tmp_path / "folder"
    goal.mkdir()
    with pytest.raises(UserError, match="folder: it is a folder"), atomic_write(goal) as file:
        file.write(b"new")
    assert os.listdir(tmp_path) == ["folder"]


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "none" / "a.bin"):
        pass


def test_an_append_that_finds_no_room_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "log"
    append_file(path, b"one\n")
    monkeypatch.setattr(os, "fsync", lambda number: os.open("/dev/null/none", 0))  # another error is no full disk
    with pytest.raises(NotADirectoryError):
        append_file(path, b"two\n")

    def full(number):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match=r"no room for .*log: 6 bytes needed, .* free \(Disk quota exceeded\)"):
        append_file(path, b"three\n")
    with pytest.raises(DiskFull):
        write_file(path, b"three\n")
    assert path.read_bytes() == b"one\n" and os.listdir(tmp_path) == ["log"]


def test_leftovers_are_removed(tmp_path):
    for name in ("a/.b.pt.7.tmp", ".c.png.7.tmp", "a/b.pt", ".hidden"):
        write_file(tmp_path / name, b"")
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".hidden", "a", "b.pt"]


def test_the_longest_names_are_written_too(tmp_path):
    for name in ("x" * 255, "é" * 127):
        write_file(tmp_path / name, b"whole")
        assert (tmp_path / name).read_bytes() == b"whole"
    assert len(os.listdir(tmp_path)) == 2


def test_short_names_differ_as_long_ones_do():
    assert short_name("a" * 255) == "a" * 255
    long = ["é" * 140 + end for end in ("a", "b")] + ["e" * 256]
    short = [short_name(name) for name in long]
    assert len(set(short)) == 3 and all(200 < len(os.fsencode(name)) <= 255 for name in short)
    assert all(name.startswith("é" * 110) for name in short[:2]) and short == [short_name(name) for name in long]


@pytest.mark.parametrize(
    "address, remedy",
    [
        ("https://example.com/ffhq.pkl", "and not a file here; download it, and name the file"),
        ("S3://bucket/ffhq.zip", "and not a file here; download it, and name the file"),
        ("https://huggingface.co/owner/name", "and not a file here; name one"),
        ("hf://owner/name", "and not a file here; name one"),
    ],
)
def test_an_address_is_no_missing_file(address, remedy):
    assert missing_message(Path(address), "name one") == f"{address} is an address, {remedy}"
    assert missing_message(Path("nowhere.pkl"), "name one") == "there is no nowhere.pkl; name one"
    assert "by its path, without file://" in missing_message(Path("file:///home/me/ffhq.pkl"), "name one")


@pytest.mark.parametrize("name", ["a" * 300 + "/x", "x" * 300, "no/such/folder/x", "locked/x"])
def test_a_missing_file_is_told_wherever_it_should_be(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("locked").mkdir(mode=0)
    assert missing_message(Path(name), "name one") == f"there is no {name}; name one"
