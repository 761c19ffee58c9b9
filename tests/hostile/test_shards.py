"""Shards made by others: they fill no memory, take no time without end, and what is counted beside them is checked."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import lzma
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from media.shard_index import read_index, write_index
from media.shards import ShardFiles
from tests.hostile.attacks import SPECIAL, no_hang, refusal, refused, untouched
from tests.media.test_dataset import encoded, image
from tests.media.test_shards import tar, write_parquet
from tests.scripts import ROOT, TINY

PNG = encoded(image(1))
GIB = 1 << 30


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ADACONV_CACHE", str(tmp_path / "cache"))


def member(name: str, data: bytes = b"", **fields: object) -> bytes:
    """A member of a tar file with these fields of its header, which need not be true."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    head = tarfile.TarInfo.create_gnu_header(info, info.get_info(), "utf-8", "surrogateescape")
    return head + data + bytes(-len(data) % 512)


GOOD = member("0.png", PNG) + member("0.json", b'{"label": 1}')
END = bytes(1024)


def pax(**records: str) -> bytes:
    """A header that says something of the next member."""
    data = b""
    for key, value in records.items():
        text = f" {key}={value}\n".encode()
        length = next(n for n in itertools.count(len(text)) if len(str(n)) + len(text) == n)
        data += str(length).encode() + text
    return member("pax", data, type=tarfile.XHDTYPE)


def endless(compress: type, size: int = 8 * GIB) -> bytes:
    """A member of zeros that unpacks to a thousand times of what it takes."""
    packer, zeros, parts = compress(), bytes(1 << 24), []
    parts.append(packer.compress(GOOD + member("1.bin", size=size)))
    parts += [packer.compress(zeros) for _ in range(16)]  # 256 MiB are enough: it is refused before they are read
    return b"".join([*parts, packer.flush()])


class GzipCompressor:
    """`lzma.LZMACompressor` for gzip."""

    def __init__(self) -> None:
        self.buffer = io.BytesIO()
        self.file = gzip.GzipFile(fileobj=self.buffer, mode="wb", compresslevel=9)

    def compress(self, data: bytes) -> bytes:
        self.file.write(data)
        return b""

    def flush(self) -> bytes:
        self.file.close()
        return self.buffer.getvalue()


BROKEN_TARS = {  # these have to be refused, in one line that names the shard
    "no tar at all": lambda: b"hello " * 1000,
    "nothing": lambda: b"",
    "zeros": lambda: bytes(10240),
    "a member that claims 8 exbibytes": lambda: GOOD + member("1.png", size=2**63 - 1),
    "a member of less than nothing": lambda: GOOD + member("1.png", size=-512) + END,
    "a member of much less than nothing": lambda: GOOD + member("1.png", size=-(2**40)) + END,
    "a pax header of less than nothing": lambda: GOOD + pax(size="-512") + member("1.png") + END,
    "a pax header of no number": lambda: GOOD + pax(size="cat") + member("1.png", PNG) + END,
    "a pax header that is no text": lambda: GOOD + member("pax", b"999999999999 a=b\n", type=tarfile.XHDTYPE) + END,
    "a name without an end": lambda: GOOD + member("long", b"a" * 512, type=tarfile.GNUTYPE_LONGNAME),
    "a name of a tebibyte": lambda: GOOD + member("long", type=tarfile.GNUTYPE_LONGNAME, size=2**40),
    "gzip without an end": lambda: endless(GzipCompressor),
    "xz without an end": lambda: endless(lzma.LZMACompressor),
    "gzip that is cut off": lambda: gzip.compress(GOOD * 20)[:-40],
    "a name of 2 MiB": lambda: member("x", b"a" * (2 << 20), type=tarfile.GNUTYPE_LONGNAME) + GOOD + END,
    "a link's name of 2 MiB": lambda: member("x", b"a" * (2 << 20), type=tarfile.GNUTYPE_LONGLINK) + GOOD + END,
    "a header of 2 MiB": lambda: pax(comment="a" * (2 << 20)) + GOOD + END,
}


@pytest.mark.parametrize("name", BROKEN_TARS)
def test_tars_that_are_refused(tmp_path, name):
    path = tmp_path / "a.tar"
    path.write_bytes(BROKEN_TARS[name]())
    message = refusal(ShardFiles, str(path))
    assert "a.tar" in message and ("cannot be read" in message or "holds no images" in message)


def test_a_large_file_in_a_plain_tar_is_no_bomb(tmp_path):
    """Neither one that is no image, nor in a compressed tar one that is not larger than an image can be."""
    for name, mode in (("a.tar", "w"), ("b.tar", "w:gz")):
        tar(tmp_path / name, {"0.mp4": bytes(80 << 20), "1.png": PNG}, mode)
        assert ShardFiles(str(tmp_path / name)).read_number(0) == PNG


ODD_TARS = {  # these are read: the image that is there, and nothing of what the odd member asks for
    "a link to a file elsewhere": member("1.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link": member("1.png", type=tarfile.LNKTYPE, linkname="0.png"),
    "a device": member("1.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "a pipe": member("1.png", type=tarfile.FIFOTYPE),
    "a folder": member("1.png", type=tarfile.DIRTYPE),
    "a name that leaves the folder": member("../../../1.bin", b"x"),
    "an absolute name": member("/etc/cron.d/1.bin", b"x"),
    "a label that is a program": member("0.cls", b"__import__('os').system('touch here')"),
    "a label that is a pickle": member("0.cls", b"cos\nsystem\n(S'touch here'\ntR."),
    "a label of many brackets": member("0.cls", b"[" * 500_000),
    "a label of many digits": member("0.cls", b"9" * 500_000),
    "control codes in a name": member("\x1b[2J\x1b]0;owned\x07.txt", b"x"),
    "a name that is no UTF-8": member("\udcff\udcfe.txt", b"x"),
    "a sparse file": member("1.bin", type=tarfile.GNUTYPE_SPARSE),
}


@pytest.mark.parametrize("name", ODD_TARS)
def test_tars_that_are_read_without_their_odd_members(tmp_path, name, monkeypatch):
    (tmp_path / "around").mkdir()
    monkeypatch.chdir(tmp_path / "around")
    (tmp_path / "a.tar").write_bytes(member("0.png", PNG) + ODD_TARS[name] + END)
    with untouched(tmp_path / "around"), no_hang():
        files = ShardFiles(str(tmp_path / "a.tar"))
        assert files.read_number(0) == PNG and len(files.names) == 1 and files.labels is None


def peak_memory(command: str, *arguments: object) -> int:
    """The memory in bytes that a Python program takes at most, which may have 6 GiB, and 20 s."""
    code = f"import resource\nresource.setrlimit(resource.RLIMIT_AS, ({6 * GIB}, {6 * GIB}))\n{command}\n"
    code += "print(*(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=env, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return int(run.stdout.split()[-2]) << 10


READ = "import sys\nfrom itertools import islice\nfrom media.shard_rows import rows\n"


@pytest.mark.parametrize("nested", [False, True])
def test_many_rows_that_share_one_large_value_are_not_in_memory_at_once(tmp_path, nested):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array([bytes(160 << 20)]))
    if nested:
        values = pa.StructArray.from_arrays([values], ["bytes"])
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": values}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 1 << 20
    code = READ + "assert [len(data) for data, _ in islice(rows(sys.argv[1]), 3)] == [160 << 20] * 3"
    assert peak_memory(code, path) < 1.5 * GIB


BROKEN_PARQUET = {
    "no Parquet": lambda data: b"PAR1" + b"hello" * 100 + b"PAR1",
    "nothing": lambda data: b"",
    "a footer that is longer than the file": lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1",
    "a footer of nothing": lambda data: data[:-8] + bytes(4) + b"PAR1",
    "no end": lambda data: data[:-4],
    "no beginning": lambda data: data[len(data) // 2 :],
    "other pages": lambda data: data[:4] + b"\xff" * (len(data) // 2) + data[4 + len(data) // 2 :],
}


@pytest.mark.parametrize("name", BROKEN_PARQUET)
def test_parquet_files_that_are_refused(tmp_path, name):
    path = write_parquet(tmp_path / "a.parquet", {"image": [PNG] * 30, "label": [1] * 30})
    path.write_bytes(BROKEN_PARQUET[name](path.read_bytes()))
    assert "a.parquet cannot be read" in refusal(ShardFiles, str(path))


COLUMNS = {  # of a Parquet file: what is in memory, printed or taken for a label
    "no images": {"text": ["a"]},
    "control codes in a name": {"\x1b[2J\x1b[31mimage": ["a"]},
    "images that are numbers": {"image": [1, 2, 3]},
    "images that are names of files": {"image": [{"path": "/etc/passwd"}]},
    "images that are lists": {"image": [[b"a"]]},
    "no rows": {"image": []},
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_that_hold_no_images(tmp_path, name):
    path = write_parquet(tmp_path / "a.parquet", COLUMNS[name])
    refused("dataset_tool.py", "check", "--data", path, cwd=tmp_path)


@pytest.mark.parametrize("label", ["cat", 1.5, True, [1], {"a": 1}, -1, 2**40, b"\x00"])
def test_columns_that_hold_no_classes(tmp_path, label):
    path = write_parquet(tmp_path / "a.parquet", {"image": [PNG] * 3, "label": [label] * 3})
    assert ShardFiles(str(path)).labels is None


@pytest.mark.parametrize(
    "metadata", [b"[" * 100_000, b"null", b'{"info": 1}', b'{"info": {"features": {"image": 3}}}', b"\xff\xfe"]
)
def test_metadata_that_is_nonsense(tmp_path, metadata):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"image": [PNG] * 3}).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "a.parquet")
    with no_hang():
        files = ShardFiles(str(tmp_path / "a.parquet"))
    assert len(files.names) == 3 and files.class_names == ()


# --- what is counted ------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(tmp_path) -> Path:
    """The file with the counts that lies beside a shard of 40 images."""
    folder = tmp_path / "set"
    folder.mkdir()
    tar(folder / "a.tar", {name: data for i in range(40) for name, data in ((f"{i}.png", PNG), (f"{i}.cls", b"1"))})
    ShardFiles(str(folder / "a.tar"))
    (path,) = folder.glob("*.npz")
    return path


def rewrite(path: Path, **arrays: object) -> None:
    with np.load(path) as file:
        found = {name: file[name] for name in file.files}
    np.savez_compressed(path, **{**found, **arrays})


class Harm:
    def __reduce__(self):
        return os.system, ("touch canary",)


COUNTS = {
    "another version": {"version": 99},
    "other shards": {"addresses": np.array(["b.tar"])},
    "more images than labels": {"counts": np.array([41])},
    "fewer than none": {"counts": np.array([-40])},
    "counts that overflow": {"counts": np.array([2**63 - 1])},
    "counts that are not whole": {"counts": np.array([40.0])},
    "counts that are none": {"counts": np.array([np.nan])},
    "two counts": {"counts": np.array([20, 20])},
    "no shape": {"counts": np.array(40)},
    "sizes of less than nothing": {"sizes": np.array([-1])},
    "labels that are no class": {"labels": np.full(40, 100_000, np.int32)},
    "labels below none": {"labels": np.full(40, -2, np.int32)},
    "labels in rows": {"labels": np.ones((40, 1), np.int32)},
    "labels that are real": {"labels": np.ones(40)},
    "a pickle": {"labels": np.array([Harm()] * 40, dtype=object)},
    "stamps that are numbers": {"stamps": np.array([1])},
    "an infinite version": {"version": np.inf},
    "a version of two parts": {"version": 1j},
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_that_are_not_believed(counted, name, monkeypatch):
    monkeypatch.chdir(counted.parent)
    shard = str(counted.parent / "a.tar")
    assert read_index([shard]) is not None
    rewrite(counted, **COUNTS[name])
    with no_hang():
        assert read_index([shard]) is None
        files = ShardFiles(shard)  # counts again
    assert files.index.counts.tolist() == [40] and files.labels.tolist() == [1] * 40
    assert not (counted.parent / "canary").exists()


@pytest.mark.parametrize("bit", [1, 8, 64])
def test_counts_with_damage_to_the_archive(counted, bit):
    """Also flags of encryption, and methods that zipfile does not know."""
    data, shard = counted.read_bytes(), str(counted.parent / "a.tar")
    for place in [*range(4, 12), *(data.rindex(b"PK\x01\x02") + i for i in range(6, 14))]:
        counted.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
        with no_hang():
            found = read_index([shard])
        assert found is None or found.labels.tolist() == [1] * 40


def test_counts_that_would_fill_the_memory(counted):
    """A file of a megabyte, of 134 million labels."""
    with np.load(counted) as file:
        found = {name: file[name] for name in file.files}
    shard = str(counted.parent / "a.tar")
    index = read_index([shard])
    assert index is not None
    rewrite(counted, labels=np.zeros(1 << 27, np.int32), counts=np.array([1 << 27]))
    assert counted.stat().st_size < 4 << 20
    code = "import sys\nfrom media.shard_index import read_index\n"
    assert peak_memory(f"{code}assert read_index(sys.argv[1:]) is None", shard) < peak_memory(code) + GIB / 8
    write_index(index)
    assert read_index([shard]).labels.tolist() == found["labels"].tolist()


@pytest.mark.parametrize("kind", SPECIAL)
def test_something_else_in_the_place_of_the_counts(counted, kind):
    counted.unlink()
    SPECIAL[kind](counted)
    shard = str(counted.parent / "a.tar")
    with no_hang():
        assert read_index([shard]) is None
        assert ShardFiles(shard).index.counts.tolist() == [40]


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_something_else_in_the_place_of_a_shard(tmp_path, kind, suffix):
    path = SPECIAL[kind](tmp_path / f"a.{suffix}")
    assert path.name in refusal(ShardFiles, str(path))


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
@pytest.mark.parametrize("script", ["train", "check", "convert", "metrics"])
def test_every_script_that_reads_shards(tmp_path, place, script, suffix):
    (tmp_path / f"a.{suffix}").write_bytes(b"hello " * 1000)
    data, out = str(tmp_path / f"a.{suffix}"), tmp_path / "out"
    line = refused(
        *{
            "train": ("train.py", "--data", data, "--outdir", out, *TINY),
            "check": ("dataset_tool.py", "check", "--data", data),
            "convert": ("dataset_tool.py", "convert", "--source", data, "--resolution", 16, "--out", out / "a.zip"),
            "metrics": (
                "metrics/__main__.py",
                "--metrics",
                "swd10",
                "--gpus",
                0,
                "--data",
                data,
                "--network",
                place.model,
            ),
        }[script]
    )
    assert f"a.{suffix}" in line


def test_names_of_classes_from_beside_a_shard(tmp_path):
    tar(tmp_path / "a.tar", {"0.png": PNG, "0.cls": b"0"})
    for text in ("[" * 100_000, '{"class_names": ["\x1b[2J"]}', '{"class_names": 3}', json.dumps({"class_names": []})):
        (tmp_path / "dataset.json").write_text(text)
        with no_hang():
            assert ShardFiles(str(tmp_path / "a.tar")).class_names == ()
