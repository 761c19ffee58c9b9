"""Summaries of real images are kept by content."""

from __future__ import annotations

import pytest
import torch

from media.convert import write_dataset
from media.dataset import ImageDataset
from media.faces import faces
from metrics.cache import CacheKey, read_cached, write_cached
from tests.metrics.archives import write_images


@pytest.fixture
def key(tmp_path, monkeypatch) -> CacheKey:
    monkeypatch.setenv("ADACONV_CACHE", str(tmp_path / "cache"))
    return CacheKey("abc", (3, 32, 32), 10, "moments", "2048", "6726825d")


TENSORS = {"mean": torch.rand(4).double(), "covariance": torch.rand(4, 4).double()}


def test_tensors_come_back(key, tmp_path):
    assert read_cached(key) is None
    assert write_cached(key, TENSORS) == ""
    found = read_cached(key)
    assert found.keys() == TENSORS.keys() and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    assert list((tmp_path / "cache" / "statistics").iterdir()) == [key.path]  # nothing half written


@pytest.mark.parametrize("field", ["content", "shape", "count", "kind", "layer", "detector", "version"])
def test_the_key_is_all_that_they_depend_on(key, field):
    values = {"shape": (1, 32, 32), "count": 11, "version": 2}
    other = CacheKey(**{**vars(key), field: values.get(field, "other")})
    write_cached(key, TENSORS)
    assert read_cached(other) is None
    key.path.rename(other.path)  # nor by another name
    assert read_cached(other) is None


@pytest.mark.parametrize("at", [0, 300, -1])
def test_damaged_files_are_not_read(key, at):
    write_cached(key, TENSORS)
    data = bytearray(key.path.read_bytes())
    data[at] ^= 1
    key.path.write_bytes(data)
    assert read_cached(key) is None
    key.path.write_bytes(data[: len(data) // 2])
    assert read_cached(key) is None


def test_the_reason_why_the_cache_cannot_be_written(key, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ADACONV_CACHE", str(tmp_path / "file"))
    assert str(tmp_path / "file") in write_cached(key, TENSORS)


def test_content_is_images_and_flips_not_names(tmp_path):
    images = list(faces(6, 16, seed=0))
    write_dataset(tmp_path / "a.zip", images)
    dataset = ImageDataset(tmp_path / "a.zip")
    write_images(tmp_path / "folder", torch.stack([dataset[i][0] for i in range(6)]))
    folder, names = tmp_path / "folder", [f"{i:04d}.png" for i in range(6)]
    for name, member in zip(names, dataset.names, strict=True):
        (folder / name).write_bytes(dataset.files.read(member))
    other = ImageDataset(folder)
    everything = range(6)
    assert dataset.content_hash(everything) == other.content_hash(everything)
    assert dataset.content_hash([0, 1]) != dataset.content_hash([1, 0])

    mirrored = ImageDataset(folder, mirror=True)
    assert mirrored.content_hash(everything) == other.content_hash(everything)
    assert mirrored.content_hash(range(6, 12)) != other.content_hash(everything)

    data = bytearray((folder / names[3]).read_bytes())  # of the same size and name
    data[-20] ^= 1
    (folder / names[3]).write_bytes(data)
    assert ImageDataset(folder).content_hash(everything) != other.content_hash([0, 1, 2, 4, 5])
    assert ImageDataset(folder).content_hash(everything) != dataset.content_hash(everything)
    assert ImageDataset(folder).content_hash([0, 1, 2]) == dataset.content_hash([0, 1, 2])
