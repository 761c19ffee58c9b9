"""Shards: tar files of WebDataset and Parquet files, read as streams; every epoch has every image once."""

from __future__ import annotations

import io
import itertools
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from media import shards
from media.check import check_dataset
from media.convert import Conversion, convert
from media.dataset import ImageDataset
from media.loader import endless_batches
from media.shard_rows import rows
from media.shard_stream import Lane, ShardStream
from media.shard_writer import write_shards
from media.shards import ShardFiles
from metrics import Evaluator
from tests.media.test_dataset import encoded, image, make_zip
from torch_utils.errors import UserError

CPU = torch.device("cpu")
SIZES = [7, 1, 30, 12, 25, 3]  # images of the shards


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setenv("ADACONV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shards, "RETRY_SECONDS", (0, 0))


def number_of(pixels: torch.Tensor) -> int:
    return int(pixels[0, 0, 0])


def make_shards(folder: Path, sizes: list[int], labelled: bool = True) -> str:
    """Tar files of so many images each: image i, whose first value is i, has the class i % 3."""
    numbers = iter(range(sum(sizes)))
    for shard, size in enumerate(sizes):
        samples = [(encoded(image(i)), "png", i % 3 if labelled else None) for i in itertools.islice(numbers, size)]
        write_shards(folder / "new", samples, 10**9)
        (folder / "new" / "00000.tar").rename(folder / f"{shard:03d}.tar")
    return str(folder / "*.tar")


def tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


# --- the order ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("lanes", [1, 2, 3, 4, 7])
def test_no_image_comes_twice_in_an_epoch_and_only_the_rest_of_the_division_is_missing(lanes, mirror):
    total = sum(SIZES)
    length = total // lanes * (1 + mirror)
    missing = set()
    streams = [Lane(SIZES, lane, lanes, seed=5, block=9, mirror=mirror).indices() for lane in range(lanes)]
    for _ in range(3):
        epoch = [index for stream in streams for index in itertools.islice(stream, length)]
        assert len(set(epoch)) == len(epoch) == length * lanes
        assert max(epoch) < total * (1 + mirror)
        left_out = {i % total for i in set(range(total * (1 + mirror))) - set(epoch)}
        assert len(left_out) <= (lanes - 1) * (1 + mirror)
        missing |= left_out
    if total % lanes > 1:
        assert len(missing) > total % lanes  # others in each epoch


@pytest.mark.parametrize("mirror", [False, True])
def test_the_stream_goes_on_at_any_position(mirror):
    for lane in range(2):
        order = Lane(SIZES, lane, 2, seed=1, block=8, mirror=mirror)
        straight = list(itertools.islice(order.indices(), 200))
        for start in range(0, 180, 7):
            assert list(itertools.islice(order.indices(start), 20)) == straight[start : start + 20]


def test_the_order_is_mixed_and_depends_on_the_seed():
    counts = [100] * 10
    first = list(itertools.islice(Lane(counts, 0, 1, seed=0, block=256).indices(), 2000))
    other = list(itertools.islice(Lane(counts, 0, 1, seed=1, block=256).indices(), 1000))
    assert first[:1000] != first[1000:] and first[:1000] != other and sorted(first[:1000]) == sorted(other)
    assert len({index // 100 for index in first[:64]}) >= 3  # of several shards
    follows = sum(b == a + 1 for a, b in itertools.pairwise(first))
    assert follows < 20


# --- reading --------------------------------------------------------------------------------------------------------


def test_converted_shards_hold_what_a_zip_does(tmp_path):
    files = {f"{'abc'[i % 3]}/{i:03d}.png": encoded(image(i)) for i in range(100)}
    source = make_zip(tmp_path / "source.zip", files)
    done = convert(source, tmp_path / "set.zip", Conversion(16), labels="folders")
    assert convert(source, tmp_path / "tars", Conversion(16), labels="folders", shard_bytes=40_000).count == done.count
    paths = sorted((tmp_path / "tars").glob("*.tar"))
    assert len(paths) > 3 and all(path.stat().st_size <= 40_000 for path in paths)
    plain, data = (
        ImageDataset(tmp_path / "set.zip", use_labels=True),
        ImageDataset(f"{tmp_path}/tars/*.tar", use_labels=True),
    )
    assert data.class_names == plain.class_names == ("a", "b", "c")
    assert (len(data), data.c_dim, data.resolution, data.channels, data.name) == (100, 3, 16, 3, "tars")
    expected = {number_of(pixels): (pixels, label.tolist()) for pixels, label in plain}
    for index in np.random.default_rng(0).permutation(100):
        pixels, label = data[int(index)]
        assert torch.equal(pixels, expected[number_of(pixels)][0]) and label.tolist() == expected[number_of(pixels)][1]
    order = [number_of(pixels) for pixels, _ in data]
    assert sorted(order) == list(range(100)) and sum(b == a + 1 for a, b in itertools.pairwise(order)) < 10
    found = check_dataset(f"{tmp_path}/tars/*.tar")
    assert found.count == 100 and found.classes == {0: 34, 1: 33, 2: 33} and not found.problems
    back = convert(f"{tmp_path}/tars/*.tar", tmp_path / "back.zip", Conversion(16))
    assert back.count == 100 and ImageDataset(tmp_path / "back.zip", use_labels=True).c_dim == 3


FORMS = {
    "jpg and cls": lambda i: {f"{i:04d}.jpg": encoded(image(i), "JPEG"), f"{i:04d}.cls": b"%d" % (i % 2)},
    "folders": lambda i: {
        f"./a/b.c/{i}.PNG": encoded(image(i)),
        f"./a/b.c/{i}.json": b'{"cls": %d, "x": []}' % (i % 2),
    },
    "label first": lambda i: {f"{i}.json": b'{"label": %d}' % (i % 2), f"{i}.webp": encoded(image(i), "WEBP")},
    "more": lambda i: {
        f"{i}.txt": b"a",
        f"{i}.png": encoded(image(i)),
        f"{i}.seg.png": b"",
        f"{i}.cls": b"%d" % (i % 2),
    },
}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("form", FORMS)
def test_tars_as_people_have_them(tmp_path, form, mode):
    members = {"README.md": b"hello", "._x.png": b"broken"}
    for i in range(6):
        members |= FORMS[form](i)
    found = list(rows(str(tar(tmp_path / "a.tar", members, mode))))
    assert [label for _, label in found] == [0, 1] * 3
    assert [data for data, _ in found] == [
        data
        for name, data in members.items()
        if name.lower().endswith(("jpg", "png", "webp")) and data[:3] not in (b"", b"bro")
    ]
    for start in range(7):
        assert list(rows(str(tmp_path / "a.tar"), start)) == found[start:]


@pytest.mark.parametrize(
    "label", [b"-1", b"1.5", b"true", b'"cat"', b"100000", b"[1]", b"{", b"[" * 10**5, b"9" * 5000]
)
def test_a_label_that_is_no_class_is_none(tmp_path, label):
    path = tar(
        tmp_path / "a.tar", {"0.png": encoded(image(0)), "0.cls": label, "1.png": encoded(image(1)), "1.cls": b"2"}
    )
    assert [label for _, label in rows(str(path))] == [-1, 2]
    with pytest.raises(UserError, match="1 of 2 images have no label"):
        ImageDataset(path, use_labels=True)
    assert len(ImageDataset(path)) == 2


def write_parquet(path: Path, columns: dict[str, list], metadata: dict | None = None, rows_of_group: int = 10) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table(columns)
    if metadata:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, path, row_group_size=rows_of_group)
    return path


def test_parquet_in_the_forms_of_the_hub(tmp_path):
    pytest.importorskip("pyarrow.parquet")
    files = [encoded(image(i)) for i in range(25)]
    struct = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(files)]
    kinds = {
        "info": {"features": {"photo": {"_type": "Image"}, "colour": {"_type": "ClassLabel", "names": ["a", "b"]}}}
    }
    forms = {
        "hub": write_parquet(tmp_path / "a.parquet", {"colour": [i % 2 for i in range(25)], "photo": struct}, kinds),
        "plain": write_parquet(tmp_path / "b.parquet", {"image": files, "label": [i % 2 for i in range(25)]}),
    }
    for path in forms.values():
        found = list(rows(str(path)))
        assert found == [(data, i % 2) for i, data in enumerate(files)]
        for start in range(26):
            assert list(rows(str(path), start)) == found[start:]
    data = ImageDataset(tmp_path / "a.parquet", use_labels=True)
    assert data.class_names == ("a", "b")
    assert len(data) == 25 and data.c_dim == 2 and number_of(data[24][0]) == 24
    write_parquet(tmp_path / "c.parquet", {"image": [{"bytes": None, "path": "/etc/passwd"}] * 2})  # only names files
    with pytest.raises(UserError, match=r"c\.parquet#0 is empty"):
        ImageDataset(tmp_path / "c.parquet")
    write_parquet(tmp_path / "d.parquet", {"text": ["a"]})
    with pytest.raises(UserError, match="no column holds images; its columns are text"):
        ImageDataset(tmp_path / "d.parquet")


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    """The library finds the shards of a folder as it finds those of a repository; only the address is exchanged."""
    datasets = pytest.importorskip("datasets")
    (folder := tmp_path / "repository" / "data").mkdir(parents=True)
    for shard in range(2):
        files = [{"bytes": encoded(image(10 * shard + i)), "path": ""} for i in range(10)]
        write_parquet(folder / f"train-0000{shard}-of-00002.parquet", {"image": files, "label": [shard] * 10})
    write_parquet(folder / "test-00000-of-00001.parquet", {"image": files, "label": [5] * 10})
    asked, original = [], datasets.load_dataset_builder

    def load_dataset_builder(path, name=None, revision=None):
        asked.append((path, name, revision))
        return original(str(tmp_path / "repository"))

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    shards.find_shards.cache_clear()
    data = ImageDataset("hf://owner/faces@v1", use_labels=True)
    assert asked == [("owner/faces", None, "v1")] and data.name == "faces@v1"
    assert len(data) == 20 and data.c_dim == 2 and [number_of(data[i][0]) for i in (0, 19)] == [0, 19]


@pytest.mark.parametrize("path", ["nothing/*.tar", "hf://owner", "no.parquet"])
def test_shards_that_are_not_there(path, tmp_path):
    with pytest.raises(UserError, match=path.replace("*", r"\*")):
        ImageDataset(path)


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_a_damaged_shard_is_named(tmp_path, suffix):
    if suffix == "tar":
        pattern = make_shards(tmp_path / "set", [10, 10])
    else:
        (tmp_path / "set").mkdir()
        for name in ("000", "001"):
            write_parquet(tmp_path / "set" / f"{name}.parquet", {"image": [encoded(image(i)) for i in range(10)]})
        pattern = str(tmp_path / "set" / "*.parquet")
    whole = ImageDataset(pattern)
    assert len(whole) == 20
    path = tmp_path / "set" / f"001.{suffix}"
    data = path.read_bytes()
    for length in range(512, len(data) // 2 + 1, 512 if suffix == "tar" else 1000):
        path.write_bytes(data[:length])  # also between two samples
        with pytest.raises(UserError, match=f"the shard {path} cannot be read"):
            ImageDataset(pattern)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(
        UserError, match=rf"the shard {path} cannot be read at its image \d+ \(.*\); mend it, or leave it out"
    ):
        ImageDataset(pattern)
    with pytest.raises(UserError, match=f"001.{suffix}"):  # one that is damaged while it is used
        list(whole)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=f"001.{suffix}"):
        ImageDataset(pattern)
    path.unlink()
    assert len(ImageDataset(str(path.with_name(f"000.{suffix}")))) == 10


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_is_damaged_during_a_training_is_one_line(tmp_path, workers):
    data = ImageDataset(make_shards(tmp_path / "set", [40]))
    path = tmp_path / "set" / "000.tar"
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(UserError, match=f"the shard {path} cannot be read") as error:
        batches(data, 0, workers, 1)
    assert "\n" not in error.value.message


@pytest.mark.parametrize("bad, length", [(7, 70), (0, 70), (0, 5)])
def test_a_bad_image_in_a_shard_can_be_skipped(tmp_path, bad, length):
    """Also the first one, which says how large all are, and one that has not even a header."""
    members = {f"{i:03d}.png": encoded(image(i)) for i in range(120)}
    members[f"{bad:03d}.png"] = members[f"{bad:03d}.png"][:length]
    data = ImageDataset(tar(tmp_path / "a.tar", members), skip_unreadable=True)
    found = [number_of(pixels) for some in batches(data, 0, 0, 15) for pixels in some]
    assert sorted(found) == sorted([*({*range(120)} - {bad}), bad + 1])
    assert data.unreadable.nonzero().flatten().tolist() == [bad]


def test_a_shard_is_tried_again(tmp_path, monkeypatch):
    pattern, failures = make_shards(tmp_path / "set", [10, 10]), iter([3, 5])

    def flaky(address, start=0):
        for position, row in enumerate(rows(address, start), start):
            if position == (fails_at if address.endswith("1.tar") and (fails_at := next(failures, None)) else None):
                raise ConnectionError("reset by peer")
            yield row

    expected = [data for data, _ in rows(str(tmp_path / "set" / "001.tar"))]
    monkeypatch.setattr(shards, "rows", flaky)
    files = ShardFiles(pattern)
    assert len(files.names) == 20 and [files.read_number(10 + i) for i in range(10)] == expected


def test_a_network_that_fails_often_is_tried_again_as_long_as_it_goes_on(tmp_path, monkeypatch):
    """Each image has its tries; where none comes, there is an end."""
    pattern, failures = make_shards(tmp_path / "set", [12]), []

    def flaky(address, start=0):
        for position, row in enumerate(rows(address, start), start):
            if failures.count(position) < (2 if position < 8 else limit):
                failures.append(position)
                raise ConnectionError("reset by peer")
            yield row

    monkeypatch.setattr(shards, "rows", flaky)
    limit = 2
    assert len(ShardFiles(pattern).names) == 12 and len(failures) == 24
    limit, failures[:] = 3, []
    os.utime(tmp_path / "set" / "000.tar", ns=(1, 1))
    with pytest.raises(UserError, match=r"000\.tar cannot be read at its image 8 \(reset by peer\)"):
        ShardFiles(pattern)
    assert len(failures) == 8 * 2 + 3


def test_two_shards_of_one_name_are_told_before_they_are_read(tmp_path, monkeypatch):
    folders = [Path(make_shards(tmp_path / name, [2])).parent for name in "ab"]
    with monkeypatch.context() as patch:
        patch.setattr(shards, "rows", None)
        with pytest.raises(
            UserError, match=r"two shards have the name 000\.tar; rename one of them, or name one folder"
        ):
            ShardFiles(f"{tmp_path}/*/*.tar")
    assert len(ShardFiles(f"{folders[0]}/*.tar").names) == 2
    (folders[0] / "000.tar").rename(folders[0] / "001.tar")
    shards.find_shards.cache_clear()
    assert len(ShardFiles(f"{tmp_path}/*/*.tar").names) == 4


def test_a_bad_image_in_a_shard_is_named(tmp_path):
    path = tar(tmp_path / "a.tar", {"0.png": encoded(image(0)), "1.png": encoded(image(1))[:60], "2.png": b""})
    data = ImageDataset(path)
    for index in (1, 2):
        with pytest.raises(UserError, match=f"a.tar#{index} is"):
            data[index]
    assert [name for name, _ in check_dataset(path).problems] == ["a.tar#1", "a.tar#2"]


def test_evaluations_read_few_shards(tmp_path):
    """With `mirror` each image comes with its flip."""
    dataset = ImageDataset(make_shards(tmp_path / "set", [20, 20, 20]), mirror=True)
    chosen = Evaluator(["swd20"], dataset)._choose(dataset, 31)
    assert sorted(n % 60 for n in chosen) == sorted([n for n in chosen if n < 60] + [n - 60 for n in chosen if n >= 60])
    assert len(set(chosen)) == 31 and sum(n >= 60 for n in chosen) == 15
    assert len({n % 60 // 20 for n in chosen}) == 1
    assert len(Evaluator(["swd80"], dataset)._choose(dataset, 80)) == 80


# --- the loader -----------------------------------------------------------------------------------------------------


def batches(data: ImageDataset, step: int, workers: int, count: int) -> list[torch.Tensor]:
    stream = endless_batches(data, batch=8, step=step, seed=3, workers=workers, device=CPU)
    found = [images for images, _ in itertools.islice(stream, count)]
    stream.close()
    return found


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_the_loader_goes_on_at_any_step(tmp_path, workers):
    data = ImageDataset(make_shards(tmp_path / "set", SIZES), mirror=True)
    straight = batches(data, 0, workers, 40)
    for step in (1, 2, 17, 30):
        assert all(map(torch.equal, straight[step : step + 8], batches(data, step, workers, 8)))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_an_epoch(tmp_path, processes):
    data = ImageDataset(make_shards(tmp_path / "set", SIZES), use_labels=True)

    def share(rank: int, step: int) -> list[int]:
        stream = ShardStream(data, seed=0, step=step, share=2, rank=rank, world_size=processes, workers=0)
        items = list(itertools.islice(stream, sum(SIZES) // processes - 2 * step))
        assert all(int(label.argmax()) == number_of(pixels) % 3 for pixels, label in items)
        return [number_of(pixels) for pixels, _ in items]

    shares = [share(rank, 0) for rank in range(processes)]
    everything = [number for some in shares for number in some]
    assert len(set(everything)) == len(everything) == sum(SIZES) // processes * processes
    assert all(share(rank, 5) == shares[rank][10:] for rank in range(processes))


def test_more_readers_than_images(tmp_path):
    data = ImageDataset(make_shards(tmp_path / "set", [3]))
    with pytest.raises(UserError, match="3 images for 4 processes that read; take fewer --workers"):
        ShardStream(data, seed=0, step=0, share=1, rank=0, world_size=2, workers=2)


def test_the_core_imports_no_library_of_shards():
    import subprocess
    import sys

    code = "import sys, train, dataset_tool, metrics, training.gan; print({'datasets', 'pyarrow'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
