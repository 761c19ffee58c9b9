"""Tensors come out of a TorchScript archive as PyTorch reads them, and nothing of the archive is executed."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from models.inert_torchscript import is_torchscript, read_torchscript


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4))
        self.scale = nn.Parameter(torch.randn(2, 3).T)  # not in the order of its numbers
        self.short = nn.Parameter(torch.randn(5).half())
        self.register_buffer("count", torch.tensor(7))

    def forward(self, x):
        return self.first(x) * self.scale.sum() * self.short.sum() + self.count


@pytest.fixture
def archive(tmp_path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Model().eval(), torch.zeros(1, 3, 8, 8)).save(tmp_path / "model.pt")
    return tmp_path / "model.pt"


def rewritten(archive: Path, **changed: bytes) -> Path:
    """A copy with other contents of the members whose names end so; dots are written as two underscores."""
    path = archive.with_name("changed.pt")
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = next((d for end, d in changed.items() if name.endswith(end.replace("__", "."))), old.read(name))
            new.writestr(name, data)
    return path


def test_tensors_are_pytorchs(archive):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.jit.load(archive).state_dict()
    found = read_torchscript(archive)
    assert found.keys() == expected.keys() and len(found) == 10
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_it_is_known_by_its_parts(archive, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "plain.pt")
    (tmp_path / "text.pt").write_text("text")
    assert is_torchscript(archive)
    assert not is_torchscript(tmp_path / "plain.pt") and not is_torchscript(tmp_path / "text.pt")
    with pytest.raises(OSError):
        is_torchscript(tmp_path / "absent.pt")


class Touch:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_is_executed(archive, tmp_path):
    path = rewritten(archive, data__pkl=pickle.dumps(Touch(tmp_path / "touched"), 2))
    with pytest.raises(ValueError, match="it asks for 'posix mkdir"):
        read_torchscript(path)
    program = rewritten(archive, __py=b"what is no program")
    assert read_torchscript(program).keys() == read_torchscript(archive).keys()
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("change", ["short", "compressed", "no pickle", "truncated"])
def test_damage_is_one_line(archive, change):
    if change == "short":
        path = rewritten(archive, **{"/data/0": b"1234567"})
    elif change == "no pickle":
        path = rewritten(archive, data__pkl=b"nothing")
    elif change == "truncated":
        path = archive.with_name("changed.pt")
        path.write_bytes(archive.read_bytes()[:-200])
    else:
        path = archive.with_name("changed.pt")
        with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
    with pytest.raises(ValueError, match="not a TorchScript archive of tensors") as error:
        read_torchscript(path)
    assert "\n" not in str(error.value)


class Shared(nn.Module):
    """Many tensors that are one in the file."""

    def __init__(self, count: int = 300):
        super().__init__()
        numbers = torch.randn(1000)
        for i in range(count):
            self.register_buffer(f"b{i}", numbers.view(-1))

    def forward(self, x):
        return x + self.b0.sum()


def test_tensors_that_would_be_much_more_than_the_file_are_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Shared()).save(tmp_path / "shared.pt")
    assert (tmp_path / "shared.pt").stat().st_size < 300 * 4000 / 4
    with pytest.raises(ValueError, match="share more numbers than the archive has bytes"):
        read_torchscript(tmp_path / "shared.pt")


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        ({20: 1 << 30, 24: 1 << 30}, "overlap"),
        ({24: 1 << 30}, "claim more bytes than are stored"),
        ({10: zipfile.ZIP_DEFLATED, 24: 1 << 30}, "share more numbers than the archive has bytes"),
        ({20: 1 << 30}, "overlap"),
        ("again", "overlap"),
    ],
)
def test_members_that_are_not_read_cannot_claim_bytes_either(tmp_path, claim, reason):
    """Else tensors that share their numbers would seem to be as many as an archive can hold."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Shared()).save(tmp_path / "shared.pt")
    path = tmp_path / "claims.pt"
    with zipfile.ZipFile(tmp_path / "shared.pt") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        for _ in range(2 if claim == "again" else 1):
            new.writestr("shared/unread", b"x" * 1000)
    if isinstance(claim, dict):
        data = bytearray(path.read_bytes())
        entry = data.rindex(b"PK\x01\x02")  # the last member's, in the directory at the end
        for offset, value in claim.items():  # 10: how it is compressed; 20, 24: its bytes in the file and in truth
            size = 2 if offset == 10 else 4
            data[entry + offset : entry + offset + size] = value.to_bytes(size, "little")
        path.write_bytes(data)
    with pytest.raises(ValueError, match=reason):
        read_torchscript(path)


def test_a_compressed_program_is_no_matter(archive):
    """PyTorch compresses the longer files of the program."""
    path = archive.with_name("changed.pt")
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            kind = zipfile.ZIP_DEFLATED if "/code/" in name else zipfile.ZIP_STORED
            new.writestr(name, old.read(name), kind)
    assert read_torchscript(path).keys() == read_torchscript(archive).keys()
