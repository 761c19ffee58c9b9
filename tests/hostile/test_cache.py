"""Libraries, weights and statistics that others could have put into the cache folder are not used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metrics.cache import CacheKey, read_cached, write_cached
from tests.hostile.attacks import untouched
from torch_utils.cache import NotPrivate, check_private, make_private_folder
from torch_utils.download import download
from torch_utils.errors import UserError
from torch_utils.files import open_own
from torch_utils.ops import native

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A private cache folder with a library in it, which is only a file of text."""
    monkeypatch.setenv("ADACONV_CACHE", str(tmp_path / "cache"))
    made = native.Build("cpu", (), (), "c++")
    monkeypatch.setattr(native, "plan", lambda device: made)
    make_private_folder(made.folder)
    made.library.write_bytes(b"not really a library")
    made.library.chmod(0o755)
    return tmp_path / "cache"


def foreign(path: Path, monkeypatch) -> None:
    """Gives a file or folder to another user; where that is not allowed, makes this process another one's."""
    if os.geteuid() == 0:
        os.chown(path, NOBODY, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: NOBODY)


def linked(path: Path, monkeypatch) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def writable(bits: int):
    return lambda path, monkeypatch: path.chmod(path.stat().st_mode | bits)


HARM = {"foreign": foreign, "linked": linked, "of the group": writable(0o020), "of all": writable(0o002)}


def places() -> dict[str, Path]:
    made = native.plan("cpu")
    return {"root": made.folder.parent, "folder": made.folder, "library": made.library}


@pytest.mark.parametrize("where", ["root", "folder", "library"])
@pytest.mark.parametrize("harm", HARM)
def test_a_planted_library_is_not_loaded(cache, monkeypatch, capsys, where, harm):
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    monkeypatch.setattr(native.importlib, "import_module", lambda name: pytest.fail("loaded"))
    monkeypatch.setattr(native, "_loaded", {})
    monkeypatch.delenv("ADACONV_OPS", raising=False)
    HARM[harm](places()[where], monkeypatch)
    assert not native.available("cpu") and not loaded
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: the slower reference ops for cpu are used: ") and "ADACONV_CACHE=" in line
    monkeypatch.setattr(native, "_loaded", {})
    monkeypatch.setenv("ADACONV_OPS", "native")
    with pytest.raises(UserError, match="ADACONV_CACHE="):
        native.available("cpu")


def test_a_private_library_is_loaded(cache, monkeypatch):
    """So that the test before fails where it is not the harm that is refused."""
    assert native.build("cpu") == native.plan("cpu").library
    check_private(native.plan("cpu").library)


def test_folders_are_made_for_their_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("ADACONV_CACHE", str(tmp_path / "a" / "cache"))
    before = os.umask(0)
    try:
        make_private_folder(tmp_path / "a" / "cache" / "statistics")
    finally:
        os.umask(before)
    modes = [
        path.stat().st_mode & 0o777 for path in (tmp_path / "a" / "cache", tmp_path / "a" / "cache" / "statistics")
    ]
    assert modes == [0o700, 0o700]


@pytest.mark.parametrize("name", ["lock", "log.txt"])
@pytest.mark.parametrize("link", ["symbolic", "hard", "pipe"])
def test_lock_and_log_are_not_written_through_links(cache, tmp_path, monkeypatch, name, link):
    target = tmp_path / "other" / "precious"
    target.parent.mkdir()
    target.write_text("precious")
    made = native.plan("cpu")
    made.library.unlink()
    if link == "pipe":
        os.mkfifo(made.folder / name)
    else:
        (os.symlink if link == "symbolic" else os.link)(target, made.folder / name)
    monkeypatch.setattr(native.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1))
    with untouched(target.parent), pytest.raises(native.Unavailable):
        native.build("cpu")


@pytest.mark.parametrize("where", ["root", "statistics", "file"])
@pytest.mark.parametrize("harm", HARM)
def test_planted_statistics_are_not_read_nor_written(tmp_path, monkeypatch, where, harm):
    monkeypatch.setenv("ADACONV_CACHE", str(tmp_path / "cache"))
    key = CacheKey("abc", (3, 32, 32), 10, "moments", "2048", "6726825d")
    assert write_cached(key, {"mean": torch.zeros(4)}) == "" and read_cached(key) is not None
    HARM[harm]({"root": tmp_path / "cache", "statistics": key.path.parent, "file": key.path}[where], monkeypatch)
    assert read_cached(key) is None
    problem = write_cached(key, {"mean": torch.zeros(4)})
    replaced = where == "file" and (harm != "foreign" or os.geteuid() == 0)  # by a good one
    assert not problem if replaced else "ADACONV_CACHE=" in problem


@pytest.mark.parametrize("where", ["root", "file"])
@pytest.mark.parametrize("harm", HARM)
def test_planted_weights_are_not_read(tmp_path, monkeypatch, where, harm):
    monkeypatch.setenv("ADACONV_CACHE", str(tmp_path / "cache"))
    make_private_folder(tmp_path / "cache")
    path = tmp_path / "cache" / "vgg.pth"
    path.write_bytes(b"weights")
    path.chmod(0o644)
    assert download("https://example.invalid/vgg.pth", "00", "--encoder-weights") == path
    HARM[harm](tmp_path / "cache" if where == "root" else path, monkeypatch)
    with pytest.raises(UserError, match=r"ADACONV_CACHE=, or a copy of vgg\.pth with --encoder-weights"):
        download("https://example.invalid/vgg.pth", "00", "--encoder-weights")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "c++")), reason="no C++ compiler")
def test_code_of_a_planted_library_does_not_run(tmp_path):
    """The attack as it would be made: a library whose constructor runs when it is loaded, under the right name."""
    canary, cache = tmp_path / "canary", tmp_path / "cache"
    source = tmp_path / "planted.cpp"
    source.write_text(f'#include <cstdio>\n[[gnu::constructor]] void run() {{ fclose(fopen("{canary}", "w")); }}\n')
    env = {**os.environ, "ADACONV_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    env.pop("ADACONV_OPS", None)
    ask = "from torch_utils.ops import native; print(native.plan('cpu').library)"
    run = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True, check=True)
    library = Path(run.stdout.strip())
    library.parent.mkdir(parents=True)
    subprocess.run([os.environ.get("CXX", "c++"), "-shared", "-fPIC", source, "-o", library], check=True)
    use = [sys.executable, "-c", "from torch_utils.ops import native; print(native.available('cpu'))"]
    (cache).chmod(0o777)
    run = subprocess.run(use, env=env, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout == "False\n" and not canary.exists()
    assert len(run.stderr.splitlines()) == 1 and "can be written to by other users" in run.stderr


def test_a_cache_that_is_only_read_may_belong_to_root(cache, monkeypatch):
    if os.geteuid() != 0:
        pytest.skip("needs files of root")
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    check_private(native.plan("cpu").library)
    with pytest.raises(NotPrivate, match="belongs to another user"):
        os.chown(cache, NOBODY - 1, -1)
        check_private(native.plan("cpu").library)


def test_own_files_are_created_exclusively(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    with pytest.raises(FileExistsError):
        open_own(tmp_path / "a", "xb")
    with open_own(tmp_path / "a", "ab") as file:
        file.write(b"2")
    assert (tmp_path / "a").read_bytes() == b"12"
