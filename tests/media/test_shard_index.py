"""What is measured of shards once: where it is kept, and that it is of these shards as they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from media import shards
from media.shard_rows import rows
from media.shards import ShardFiles
from tests.media.test_dataset import encoded, image
from tests.media.test_shards import make_shards, tar
from torch_utils.errors import DiskFull


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ADACONV_CACHE", str(tmp_path / "cache"))


def test_counts_and_labels_are_measured_once_and_kept_beside_the_shards(tmp_path, monkeypatch):
    pattern = make_shards(tmp_path / "set", [5, 6])
    first = ShardFiles(pattern)
    (kept,) = (tmp_path / "set").glob("*.npz")
    read = []
    monkeypatch.setattr(shards, "rows", lambda address, start=0: read.append(address) or rows(address, start))
    again = ShardFiles(pattern)
    assert read == [] and again.fingerprint == first.fingerprint and again.labels.tolist() == [i % 3 for i in range(11)]
    (tmp_path / "set").rename(tmp_path / "moved")
    shards.find_shards.cache_clear()
    moved = ShardFiles(str(tmp_path / "moved" / "*.tar"))
    assert read == [] and moved.fingerprint == first.fingerprint
    os.utime(tmp_path / "moved" / "001.tar", ns=(1, 1))
    assert ShardFiles(str(tmp_path / "moved" / "*.tar")).fingerprint == first.fingerprint and len(read) == 2
    (tmp_path / "moved" / kept.name).write_bytes(b"damaged")
    assert ShardFiles(str(tmp_path / "moved" / "*.tar")).fingerprint == first.fingerprint and len(read) == 4


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), DiskFull("no room for it")])
def test_what_was_measured_is_kept_in_the_cache_where_the_folder_is_not_writable(tmp_path, monkeypatch, error):
    pattern = make_shards(tmp_path / "set", [5])
    original = shards.write_index.__globals__["write_file"]

    def refuse(path, data, sync=True):
        if path.parent == tmp_path / "set":
            raise error
        original(path, data, sync)

    monkeypatch.setitem(shards.write_index.__globals__, "write_file", refuse)
    ShardFiles(pattern)
    assert list((tmp_path / "cache" / "shards").iterdir())
    monkeypatch.setattr(shards, "rows", None)
    assert len(ShardFiles(pattern).names) == 5


def test_shards_of_the_same_names_and_times_elsewhere_are_others(tmp_path, monkeypatch):
    """Unpacked from archives with times, in folders that are not writable: each has its own labels."""
    monkeypatch.setattr("media.shard_index.write_file", lambda path, data, sync=True: write(path, data))

    def write(path: Path, data: bytes) -> None:
        if not path.is_relative_to(tmp_path / "cache"):
            raise PermissionError(13, "denied")
        path.write_bytes(data)

    found = []
    for number, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        path = tar(tmp_path / folder / "0.tar", {"0.png": encoded(image(number)), "0.cls": b"%d" % number})
        os.utime(path, ns=(1, 1))
        files = ShardFiles(str(tmp_path / folder / "*.tar"))
        found.append((files.labels.tolist(), files.fingerprint))
    assert [labels for labels, _ in found] == [[0], [1]] and found[0][1] != found[1][1]
    assert len(list((tmp_path / "cache" / "shards").iterdir())) == 2


def test_shards_that_have_changed_on_a_server_are_measured_again(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    make_shards(tmp_path / "set", [5, 6])
    for number, source in enumerate((1, 0)):  # one shard, and then the other under the same address
        memory.pipe("/changing/a.tar", (tmp_path / "set" / f"00{source}.tar").read_bytes())
        files = ShardFiles("memory://changing/a.tar")
        assert len(files.names) == (6, 5)[number]
        assert ShardFiles("memory://changing/a.tar").fingerprint == files.fingerprint


def test_the_fingerprint_follows_contents_and_labels(tmp_path):
    prints = set()
    for number, (sizes, labelled) in enumerate([([5, 6], True), ([5, 6], False), ([6, 5], True), ([5, 5], True)]):
        prints.add(ShardFiles(make_shards(tmp_path / f"{number}", sizes, labelled)).fingerprint)
    assert len(prints) == 4
