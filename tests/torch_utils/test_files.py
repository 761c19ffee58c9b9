"""files.atomic_write: the new file, or the old one, and nothing beside it."""

import os

import pytest

from torch_utils.files import atomic_write


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
    with pytest.raises(OSError), atomic_write(goal) as file:
        file.write(b"new")
    assert os.listdir(tmp_path) == ["folder"]


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "none" / "a.bin"):
        pass
