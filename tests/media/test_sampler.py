"""media.loader.EndlessSampler: the order of the images, of which a resumed training sees the rest."""

import itertools
from collections import Counter

import pytest

from media.loader import EndlessSampler


def take(count: int, sampler: EndlessSampler) -> list[int]:
    return list(itertools.islice(sampler, count))


def test_every_epoch_shows_every_image_once():
    stream = take(30, EndlessSampler(10, seed=3))
    epochs = [stream[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_stream_is_a_function_of_the_seed():
    assert take(50, EndlessSampler(10, seed=3)) == take(50, EndlessSampler(10, seed=3))
    # A seed is not another seed some epochs later.
    streams = [take(100, EndlessSampler(20, seed=seed)) for seed in range(8)]
    epochs = {tuple(stream[i : i + 20]) for stream in streams for i in range(0, 100, 20)}
    assert len(epochs) == 40
    assert take(3, EndlessSampler(1)) == [0, 0, 0]


def test_every_order_is_equally_likely():
    counts = Counter(tuple(take(3, EndlessSampler(3, seed=seed))) for seed in range(1200))
    assert len(counts) == 6 and all(abs(count - 200) < 70 for count in counts.values())


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("start", [0, 14])
def test_processes_share_the_stream(world_size, start):
    whole = take(42, EndlessSampler(7, seed=1, start=start))  # six epochs
    samplers = [EndlessSampler(7, seed=1, start=start, rank=rank, world_size=world_size) for rank in range(world_size)]
    parts = [take(42 // world_size, sampler) for sampler in samplers]
    assert [entry for entries in zip(*parts, strict=True) for entry in entries] == whole
    assert Counter(entry for part in parts for entry in part) == dict.fromkeys(range(7), 6)


@pytest.mark.parametrize("start", [1, 10, 33, 12_345])
def test_a_resumed_stream_is_the_tail(start):
    whole = take(start + 40, EndlessSampler(10, seed=5))
    assert take(40, EndlessSampler(10, seed=5, start=start)) == whole[start:]
    assert take(20, EndlessSampler(10, seed=5, start=start, rank=1, world_size=2)) == whole[start + 1 :: 2]


def test_a_sampler_that_cannot_be():
    for wrong in ({"size": 0}, {"seed": -1}, {"start": -1}, {"rank": 2}, {"rank": -1}, {"world_size": 0}):
        with pytest.raises(ValueError):
            EndlessSampler(**({"size": 5, "world_size": 2} | wrong))
