"""Every image is described once and in order."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from media.dataset import ImageDataset
from media.mixed import MixedImages
from metrics import features
from metrics.evaluator import choose
from metrics.features import Features, dataset_source, describe_images, tensor_source, watched
from torch_utils import distributed


def numbered(count: int) -> torch.Tensor:
    return torch.arange(count).view(-1, 1, 1, 1)


def collect(count: int, batch: int) -> list[int]:
    parts = list(describe_images(tensor_source(numbered(count)), count, batch, lambda x: {"x": x.flatten(1)}))
    return torch.cat([part["x"] for part in parts]).flatten().tolist()


@pytest.mark.parametrize("count, batch, size", [(1, 8, 1), (100, 7, 8), (64, 8, 3), (65, 8, 1), (7, 64, 8)])
def test_every_image_is_described_once_and_in_order(monkeypatch, count, batch, size):
    monkeypatch.setattr(features, "BATCHES_PER_TURN", size)
    assert collect(count, batch) == list(range(count))


@pytest.mark.parametrize("count, batch, world", [(100, 7, 2), (5, 8, 3), (64, 8, 2), (65, 8, 4), (1, 1, 2)])
def test_processes_share_the_images_without_duplicates(monkeypatch, count, batch, world):
    """Each process by itself, with what it hands over kept; then put together as gathering does."""
    handed: list[list[dict]] = [[] for _ in range(world)]
    sizes, seen = [], []

    def describe(x: torch.Tensor) -> dict[str, torch.Tensor]:
        sizes.append(tuple(x.flatten().tolist()))
        return {"x": x.flatten(1)}

    monkeypatch.setattr(distributed, "world_size", lambda: world)
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "gather_on_rank_0", lambda part, rank=rank: handed[rank].append(part) or [])
        source = watched(tensor_source(numbered(count)), lambda x, first: seen.append((first, *x.flatten().tolist())))
        assert list(describe_images(source, count, batch, describe)) == []
    assert len({len(parts) for parts in handed}) == 1  # they meet equally often
    together = [part["x"] for turn in zip(*handed, strict=True) for part in turn if part]
    assert torch.cat(together).flatten().tolist() == list(range(count))
    # the batches are those of one process
    assert sorted(sizes) == [tuple(range(count))[i : i + batch] for i in range(0, count, batch)]
    assert seen == [(own[0], *own) for own in sizes]  # by each process, before it describes them


def test_it_goes_on_where_it_stopped():
    parts = describe_images(tensor_source(numbered(50)), 50, 7, lambda x: {"x": x.flatten(1)}, first=20)
    assert torch.cat([part["x"] for part in parts]).flatten().tolist() == list(range(20, 50))


def test_features_take_no_more_than_asked_for():
    collector = Features(10)
    for part in torch.arange(24.0).view(-1, 2).split(5):
        collector.add(part)
    assert torch.equal(collector.finish()["features"], torch.arange(20.0).view(-1, 2))


def test_the_choice_of_images():
    assert choose(10, 10, seed=1) == choose(10, 20, seed=2) == list(range(10))
    some = choose(100, 20, seed=1)
    assert len(set(some)) == 20 and choose(100, 5, seed=1) == some[:5] and choose(100, 20, seed=2) != some


def test_images_of_any_sizes_are_handed_over_in_small_numbers(tmp_path, monkeypatch):
    """They may be whole photographs, of which a batch would fill the memory of each worker several times."""
    for number in range(21):
        Image.new("RGB", (20 + number // 5, 20), (number, 0, 0)).save(tmp_path / f"{number:02d}.png")
    handed, pack = [], features.pack
    monkeypatch.setattr(features, "pack", lambda items: handed.append(len(items)) or pack(items))
    source = dataset_source(MixedImages(tmp_path), [*range(20, -1, -1)])
    batches = list(source([range(0, 16), range(16, 21)]))
    assert [int(image[0, 0, 0]) for batch in batches for image in batch] == [*range(20, -1, -1)]
    assert [len(batch) for batch in batches] == [16, 5] and max(handed) <= features.AT_ONCE
    assert isinstance(batches[0], list) and batches[0][0].shape == (3, 20, 24)
    assert isinstance(batches[1], torch.Tensor)  # the five of one size


def test_images_of_a_data_set_in_the_order_asked_for(faces16):
    dataset = ImageDataset(faces16)
    source = dataset_source(dataset, [5, 3, 400, 7, 8])
    found = torch.cat(list(source([range(0, 2), range(4, 5)])))
    assert torch.equal(found, torch.stack([dataset[i][0] for i in (5, 3, 8)]))
