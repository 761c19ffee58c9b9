"""The rows of tar files: the class of each sample, and whether the file is whole."""

from __future__ import annotations

import gzip
import itertools
import lzma
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from media.shard_rows import ShardError, label_number, rows
from media.shards import ShardFiles
from tests.media.test_dataset import encoded, image
from tests.media.test_shards import tar
from torch_utils.errors import UserError

PNG = encoded(image(1))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ADACONV_CACHE", str(tmp_path / "cache"))


# --- classes --------------------------------------------------------------------------------------------------------

CLASS_OF = {  # members of a sample beside its image, and its class
    "a caption in JSON": ({"json": b'{"caption": "a cat"}', "cls": b"3"}, 3),
    "a null before": ({"json": b'{"label": null, "cls": 3}'}, 3),
    "text before": ({"json": b'{"label": "cat", "labels": [1], "class": 3}'}, 3),
    "an order": ({"json": b'{"class": 4, "cls": 3}'}, 3),
    "zeros in front": ({"cls": b"03"}, 3),
    "a line": ({"cls": b" 3\n"}, 3),
    "broken JSON": ({"json": b"{", "cls": b"3"}, 3),
    "a number too large": ({"json": b'{"label": 100000}', "cls": b"3"}, 3),
    "no class at all": ({"json": b'{"label": true}', "cls": b"three"}, -1),
    "a fraction": ({"cls": b"3.0"}, -1),
    "Python's own way": ({"cls": b"1_0"}, -1),
    "JSON in .cls": ({"cls": b'{"label": 3}'}, 3),
}


@pytest.mark.parametrize("backwards", [False, True], ids=["", "backwards"])
@pytest.mark.parametrize("name", CLASS_OF)
def test_a_class_is_found_beside_what_is_none(tmp_path, name, backwards):
    members, expected = CLASS_OF[name]
    found = {f"0.{suffix}": data for suffix, data in {"png": PNG, **members}.items()}
    if backwards:
        found = dict(reversed(found.items()))
    path = tar(tmp_path / "a.tar", found | {"1.png": PNG, "1.cls": b"5"})
    assert [label for _, label in rows(str(path))] == [expected, 5]


def test_the_first_class_counts():
    assert label_number({"class": 1, "label": None, "labels": 2, "cls": 3}) == 2


# --- whole files ----------------------------------------------------------------------------------------------------


def some_tar(path: Path, count: int = 60) -> Path:
    return tar(path, {f"{i:03d}.png": encoded(image(i)) * 3 for i in range(count)})


PROGRAMS = {  # how programs end a tar file
    "Python": lambda folder, out: tar(out, {path.name: path.read_bytes() for path in sorted(folder.iterdir())}),
    "Python, gzip": lambda folder, out: tar(out, {p.name: p.read_bytes() for p in sorted(folder.iterdir())}, "w:gz"),
    "Python, xz": lambda folder, out: tar(out, {p.name: p.read_bytes() for p in sorted(folder.iterdir())}, "w:xz"),
    **{
        f"tar {' '.join(options)}": lambda folder, out, options=options: subprocess.run(
            ["tar", *options, "-cf", out, "-C", folder, "."], check=True
        )
        for options in ([], ["-b1"], ["-b128"], ["-b512"], ["-b2048"], ["-z"], ["-zb128"], ["--format=pax"])
    },
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("count", [1, 19, 20, 60])
def test_a_whole_file_is_taken_whoever_wrote_it(tmp_path, program, count):
    if program.startswith("tar") and not shutil.which("tar"):
        pytest.skip("needs tar")
    (tmp_path / "in").mkdir()
    for i in range(count):
        (tmp_path / "in" / f"{i:03d}.png").write_bytes(encoded(image(i)))
    PROGRAMS[program](tmp_path / "in", tmp_path / "a.tar")
    assert len(list(rows(str(tmp_path / "a.tar")))) == count


@pytest.mark.parametrize("blocks", [1, 2, 3, 20, 21])
def test_an_end_of_a_few_blocks_is_one(tmp_path, blocks):
    """As of programs that know of no records; the format wants two, and one is what everybody takes."""
    data = some_tar(tmp_path / "a.tar").read_bytes().rstrip(b"\0")
    end = -(-len(data) // 512) * 512
    (tmp_path / "a.tar").write_bytes(data.ljust(end + 512 * blocks, b"\0"))
    assert len(list(rows(str(tmp_path / "a.tar")))) == 60


def test_a_hole_is_noticed_wherever_it_is(tmp_path):
    """The number of samples stays what it was, with an image that is damaged, or the file is refused."""
    data = some_tar(tmp_path / "a.tar").read_bytes()
    end = len(data.rstrip(b"\0"))
    draw, refused = random.Random(0), 0
    for start in range(0, end, 512):
        for size in (512, draw.randrange(512, 20_000)):
            hole = min(size, end - start)
            (tmp_path / "a.tar").write_bytes(data[:start] + bytes(hole) + data[start + hole :])
            try:
                assert len(list(rows(str(tmp_path / "a.tar")))) == 60
            except (ShardError, tarfile.TarError):
                refused += 1
    assert refused > 60


def test_a_download_that_stopped_in_a_file_of_full_size_is_noticed(tmp_path):
    """All but what the zeros of a last record can be is missed."""
    data = some_tar(tmp_path / "a.tar").read_bytes()
    whole = len(list(rows(str(tmp_path / "a.tar"))))
    refused = 0
    for start in range(0, len(data), 1000):
        (tmp_path / "a.tar").write_bytes(data[:start].ljust(len(data), b"\0"))
        try:
            found = len(list(rows(str(tmp_path / "a.tar"))))
        except (ShardError, tarfile.TarError):
            refused += 1
        else:
            assert found == whole or len(data) - start < tarfile.RECORDSIZE + 2048
    assert refused > 0.8 * len(data) / 1000


@pytest.mark.parametrize("zeros", [0, 1, 64])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_several_files_in_one_are_noticed(tmp_path, pack, zeros):
    data = pack(some_tar(tmp_path / "b.tar", 20).read_bytes())
    (tmp_path / "a.tar").write_bytes(data + bytes(512 * zeros) + data)
    with pytest.raises(UserError, match=r"a\.tar cannot be read at its image \d+ .*mend it, or leave it out"):
        ShardFiles(str(tmp_path / "a.tar"))


def test_a_hole_at_the_beginning_is_no_empty_file(tmp_path):
    data = some_tar(tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(bytes(512) + data[512:])
    with pytest.raises(ShardError, match="it is damaged, or several tar files in one"):
        list(rows(str(tmp_path / "a.tar")))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("blocks", [1, 20, 10_000])
def test_a_tar_without_a_file_is_refused(tmp_path, blocks, pack):
    (tmp_path / "a.tar").write_bytes(pack(bytes(512 * blocks)))
    with pytest.raises(UserError, match=r"a\.tar cannot be read at its image 0 \(there is no file in it\)"):
        ShardFiles(str(tmp_path / "a.tar"))


def test_the_end_costs_no_more_than_the_last_record(tmp_path):
    """Whatever follows a file: it may come over a network, or be a bomb."""

    class Counted:
        def __init__(self, data: bytes):
            self.chunks, self.read_bytes = itertools.chain([data], itertools.repeat(bytes(10240))), 0
            self.rest = b""

        def read(self, size: int) -> bytes:
            while len(self.rest) < size:
                self.rest += next(self.chunks)
            data, self.rest = self.rest[:size], self.rest[size:]
            self.read_bytes += len(data)
            return data

        def tell(self) -> int:
            return self.read_bytes

    from media.shard_rows import tar_rows

    data = some_tar(tmp_path / "a.tar").read_bytes()
    endless = Counted(data)
    with pytest.raises(ShardError, match="its end is zeros"):
        list(tar_rows(endless))
    assert endless.read_bytes < len(data) + (2 << 20)
