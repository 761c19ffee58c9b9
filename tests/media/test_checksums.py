"""Checksums of folders: they follow the contents, and unchanged files are not read again."""

from __future__ import annotations

import json
import os
import zlib

import pytest

from media import checksums
from media.checksums import folder_checksums
from media.decode import Unusable
from torch_utils.cache import cache_folder
from torch_utils.errors import DiskFull

OLD_NS = 10**18  # a time long before now


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ADACONV_CACHE", str(tmp_path / "cache"))


def write(folder, name: str, data: bytes, time_ns: int | None = OLD_NS) -> None:
    (folder / name).write_bytes(data)
    if time_ns:
        os.utime(folder / name, ns=(time_ns, time_ns))


def test_unchanged_files_are_read_once(tmp_path, monkeypatch):
    (folder := tmp_path / "images").mkdir()
    paths = {f"{i}": f"{i}" for i in range(3)}
    for i in range(3):
        write(folder, f"{i}", bytes([i]))
    expected = {f"{i}": zlib.crc32(bytes([i])) for i in range(3)}
    assert folder_checksums(folder, paths) == expected
    read = []
    monkeypatch.setattr(checksums, "crc32", lambda path: read.append(path.name) or 7)
    assert folder_checksums(folder, paths) == expected and read == []
    write(folder, "1", b"x", OLD_NS + 1)  # of the same size, but of another time
    write(folder, "2", b"longer", OLD_NS)
    assert folder_checksums(folder, paths) == expected | {"1": 7, "2": 7} and read == ["1", "2"]


def test_files_that_are_gone_are_forgotten(tmp_path):
    (folder := tmp_path / "images").mkdir()
    for name in ("a", "b"):
        write(folder, name, name.encode())
    folder_checksums(folder, {"a": "a", "b": "b"})
    (folder / "a").unlink()
    write(folder, "c", b"c")
    folder_checksums(folder, {"c": "c"})
    (cache,) = (tmp_path / "cache" / "checksums").iterdir()
    assert set(json.loads(cache.read_text())) == {"b", "c"}


def test_a_file_written_a_moment_ago_is_read_again(tmp_path):
    (folder := tmp_path / "images").mkdir()
    write(folder, "a", b"1", None)
    before = folder_checksums(folder, {"a": "a"})
    status = (folder / "a").stat()
    write(folder, "a", b"2", None)
    os.utime(folder / "a", ns=(status.st_mtime_ns,) * 2)  # as if within one tick of the file system's clock
    assert folder_checksums(folder, {"a": "a"}) != before


DAMAGED = [b"", b"[1]", b'{"a": 3}', b'{"a": [1, 1000000000000000000, "x"]}', b"[" * 10**5]


@pytest.mark.parametrize("content", DAMAGED, ids=range(5))
def test_a_damaged_cache_is_written_anew(tmp_path, content):
    (folder := tmp_path / "images").mkdir()
    write(folder, "a", b"1")
    folder_checksums(folder, {"a": "a"})
    (cache,) = (cache_folder() / "checksums").iterdir()
    good = cache.read_bytes()
    cache.write_bytes(content)
    assert folder_checksums(folder, {"a": "a"}) == {"a": zlib.crc32(b"1")} and cache.read_bytes() == good


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(Unusable, match="a cannot be read"):
        folder_checksums(tmp_path, {"a": "a"})


def test_a_full_cache_costs_nothing_but_time(tmp_path, monkeypatch):
    (folder := tmp_path / "images").mkdir()
    write(folder, "0", b"x")

    def full(*args, **kwargs):
        raise DiskFull("no room for it")

    monkeypatch.setattr(checksums, "write_file", full)
    assert folder_checksums(folder, {"0": "0"}) == {"0": zlib.crc32(b"x")}
