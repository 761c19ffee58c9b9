"""`dataset_tool.py convert` of shards: in one pass, whatever the order of the results."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from media.convert import Conversion, convert
from media.dataset import ImageDataset
from media.shards import ShardFiles
from media.spool import Spool
from tests.media.test_dataset import encoded, image
from tests.media.test_shards import SIZES, make_shards, number_of, tar
from torch_utils.errors import UserError


@pytest.mark.parametrize(
    "options", [{"limit": 20}, {"shard_bytes": 10_000}, {"limit": 20, "shard_bytes": 4_000}], ids=str
)
def test_shards_are_converted_in_one_pass(tmp_path, monkeypatch, options):
    """In their order, whatever the order of the results: each image anew would read its shard from the beginning."""
    source = make_shards(tmp_path, SIZES)
    started, read = [], ShardFiles._rows
    monkeypatch.setattr(
        ShardFiles, "_rows", lambda self, shard, start=0: started.append(shard) or read(self, shard, start)
    )
    done = convert(
        source, out := tmp_path / ("out" if "shard_bytes" in options else "out.zip"), Conversion(16), **options
    )
    assert done.count == options.get("limit", sum(SIZES)) and len(started) <= 2 * len(SIZES)  # once to count
    data = ImageDataset(f"{out}/*.tar" if "shard_bytes" in options else out, use_labels=True)
    numbers = [number_of(pixels) for pixels, _ in data]
    assert len(set(numbers)) == done.count
    assert [int(label.argmax()) for _, label in data] == [number % 3 for number in numbers]
    if "limit" in options:  # equally many of each class
        assert sorted(np.bincount([number % 3 for number in numbers])) == [6, 7, 7]
    if "shard_bytes" in options:
        assert sum(b == a + 1 for a, b in itertools.pairwise(numbers)) < done.count / 5


def test_what_cannot_be_used_in_shards_is_replaced_by_others(tmp_path):
    members = {f"{i:03d}.png": encoded(image(i)) if i % 4 else b"broken" for i in range(40)}
    source = str(tar(tmp_path / "a.tar", members))
    assert convert(source, tmp_path / "a.zip", Conversion(16), limit=30).count == 30
    assert convert(source, tmp_path / "tars", Conversion(16), limit=30, shard_bytes=10_000).count == 30


def test_where_shards_cannot_be_written_is_told_before_they_are_read(tmp_path, monkeypatch):
    source = make_shards(tmp_path, [4])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    monkeypatch.setattr("media.spool.Spool", None)
    for name, words in (
        ("full", "is not an empty folder"),
        ("a.zip", "is the name of one file"),
        ("a.tar", "of a shard"),
    ):
        with pytest.raises(UserError, match=words):
            convert(source, tmp_path / name, Conversion(16), shard_bytes=10_000)
    with pytest.raises(UserError, match=r"cannot copy the images of the shards to /dev/null/x: .* --out"):
        Spool(ShardFiles(source), [], Path("/dev/null/x"))
