"""Building and loading the kernels, and what happens where that fails."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.scripts import join, script, start
from torch_utils.errors import UserError
from torch_utils.ops import native
from torch_utils.ops.__main__ import describe

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    """A cache with nothing in it, and nothing loaded."""
    monkeypatch.delenv("ADACONV_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "_loaded", {})
    monkeypatch.delenv("ADACONV_OPS", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Puts a one-file library of the given text in place of the kernels."""

    def put(text: str) -> None:
        (tmp_path / "csrc").mkdir(exist_ok=True)
        (tmp_path / "csrc" / "ops.cpp").write_text(text)
        monkeypatch.setattr(native, "SOURCES", tmp_path / "csrc")
        monkeypatch.setattr(native, "CPU_SOURCES", ["ops.cpp"])

    return put


needs_compiler = pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "c++")), reason="no C++ compiler")


def test_reference_builds_nothing(empty_cache, monkeypatch):
    monkeypatch.setenv("ADACONV_OPS", "reference")
    assert not native.available("cpu")
    assert not empty_cache.exists()


def test_the_references_pass_the_tests_of_ops_and_networks():
    """What somebody without a compiler runs. Cases that name the reference are the same with a compiler."""
    tests = [ROOT / "tests" / name for name in ("networks", "torch_utils/ops")]
    choice = ["-m", "not slow and not gpu and not emulated", "-k", "not test_native and not reference"]
    run = script("-m pytest", *tests, *choice, "-p", "no:cacheprovider", "-x", cwd=ROOT, ADACONV_OPS="reference")
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]


def test_an_unknown_mode_is_the_users_mistake(empty_cache, monkeypatch):
    monkeypatch.setenv("ADACONV_OPS", "fast")
    with pytest.raises(UserError, match=r"ADACONV_OPS='fast' .*auto, native and reference"):
        native.available("cpu")


def test_without_a_compiler_one_line_says_so(empty_cache, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not native.available("cpu")
    assert not native.available("cpu")  # asked again, it stays quiet
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"note: the slower reference ops for cpu .* no-such-compiler does not run; install .*\n", err)

    monkeypatch.setattr(native, "_loaded", {})
    with ThreadPoolExecutor(8) as threads:  # such as those that write the images of generate.py
        assert not any(threads.map(native.available, ["cpu"] * 8))
    assert len(capsys.readouterr().err.splitlines()) == 1

    monkeypatch.setattr(native, "_loaded", {})
    monkeypatch.setenv("ADACONV_OPS", "native")
    with pytest.raises(UserError, match="ADACONV_OPS=native: the compiler no-such-compiler"):
        native.available("cpu")


@needs_compiler
def test_a_failed_build_names_its_log_and_is_not_repeated(empty_cache, sources, capsys):
    sources("#error this cannot be compiled\n")
    assert not native.available("cpu")
    err = capsys.readouterr().err
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert "this cannot be compiled" in notes[0]
    log = Path(notes[0].split("all messages: ")[1])
    assert "#error this cannot be compiled" in log.read_text()

    log.unlink()
    with pytest.raises(native.Unavailable, match="this cannot be compiled"):
        native.build("cpu")
    assert not log.exists()  # nothing was compiled
    with pytest.raises(native.Unavailable, match="this cannot be compiled"):
        native.build("cpu", again=True)
    assert log.exists()


@needs_compiler
@pytest.mark.parametrize(
    "code, messages",
    [(-2, ""), (1, "Traceback ...\nKeyboardInterrupt\n"), (255, "ninja: build stopped: interrupted by user.")],
)
def test_a_build_that_is_interrupted_is_repeated(empty_cache, monkeypatch, code, messages):
    run, folder = subprocess.run, native.plan("cpu").folder

    def stopped(command, **options):
        if native.BUILDER not in command:  # which compiler there is
            return run(command, **options)
        options["stdout"].write(messages.encode())
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(native.subprocess, "run", stopped)
    with pytest.raises(native.Unavailable, match="interrupted; the next command compiles again"):
        native.build("cpu")
    assert (folder / "log.txt").exists() and not (folder / "failed").exists()


@needs_compiler
def test_a_library_that_does_not_load_is_built_again(empty_cache, sources, monkeypatch):
    sources("// nothing\n")
    no_ops = SimpleNamespace(register=lambda: None)
    monkeypatch.setattr(native, "importlib", SimpleNamespace(import_module=lambda name: no_ops))
    monkeypatch.setattr(native, "_self_check", lambda device: {})
    library = native.build("cpu")
    whole = library.read_bytes()
    library.write_bytes(b"of another machine")
    (library.parent / "build-killed").mkdir()
    assert native.available("cpu")
    assert len(library.read_bytes()) == len(whole)
    assert not list(library.parent.glob("build-*"))


def test_processes_that_find_the_same_damaged_library_do_not_fail(empty_cache, tmp_path, monkeypatch):
    """Another one takes it away between this one's attempt to load it and its own."""
    library, loaded = tmp_path / "library.so", []
    library.touch()

    def load(path):
        if not loaded:
            loaded.append("damaged")
            path.unlink()
            raise OSError("file too short")
        loaded.append(path)

    monkeypatch.setattr(native, "build", lambda device: library)
    monkeypatch.setattr(native, "_self_check", lambda device: {})
    monkeypatch.setattr(native.torch.ops, "load_library", load)
    monkeypatch.setattr(native, "importlib", SimpleNamespace(import_module=lambda name: SimpleNamespace(register=int)))
    assert native.available("cpu")
    assert loaded == ["damaged", library]


@needs_compiler
def test_a_changed_source_is_another_library(empty_cache, sources):
    sources("int adaconv_test() { return 1; }\n")
    first = native.build("cpu")
    time = first.stat().st_mtime_ns
    assert native.build("cpu") == first
    assert first.stat().st_mtime_ns == time
    sources("int adaconv_test() { return 2; }\n")
    assert native.plan("cpu").library != first


@needs_compiler
def test_many_processes_compile_once(empty_cache, sources, tmp_path):
    sources("int adaconv_test() { return 1; }\n")
    program = (
        "import sys; from pathlib import Path; from torch_utils.ops import native\n"
        f"native.SOURCES, native.CPU_SOURCES = Path({str(tmp_path / 'csrc')!r}), ['ops.cpp']\n"
        "print(native.build('cpu'))"
    )
    folders = [tmp_path / f"process {i}" for i in range(3)]
    for folder in folders:
        folder.mkdir()
    for process in [start(folder, "-c", program) for folder in folders]:
        join(process)
    named = {(folder / "stdout").read_text() for folder in folders}
    assert len(named) == 1 and Path(named.pop().strip()).exists()
    assert sum("compiling" in (folder / "stderr").read_text() for folder in folders) == 1
    assert sorted(p.name for p in native.plan("cpu").folder.iterdir()) == ["adaconv_cpu.so", "lock", "log.txt"]


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ADACONV_CACHE", str(tmp_path / "file"))
    with pytest.raises(native.Unavailable, match=r"cannot write to .*ADACONV_CACHE="):
        native.build("cpu")


# The CUDA toolkit.


def toolkit(folder: Path) -> Path:
    """A folder that looks like a CUDA toolkit, with an nvcc that says where it is."""
    (folder / "bin").mkdir(parents=True)
    (folder / "include").mkdir()
    (folder / "include" / "cuda_runtime.h").touch()
    (folder / "bin" / "nvcc").write_text(
        f'#!/bin/sh\necho "#$ _HERE_={folder}/bin" >&2\necho "#$ TOP={folder}/bin/.." >&2\n'
    )
    (folder / "bin" / "nvcc").chmod(0o755)
    return folder


@pytest.mark.parametrize("how", ["CUDA_HOME", "path", "link", "wrapper"])
def test_the_toolkit_is_found(how, tmp_path, monkeypatch):
    home = toolkit(tmp_path / "cuda")
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    elsewhere = tmp_path / "bin"
    elsewhere.mkdir()
    if how == "CUDA_HOME":
        monkeypatch.setenv("CUDA_HOME", str(home))
    elif how == "path":
        elsewhere = home / "bin"
    elif how == "link":
        (elsewhere / "nvcc").symlink_to(home / "bin" / "nvcc")
    else:
        (elsewhere / "nvcc").write_text(f'#!/bin/sh\nexec {home}/bin/nvcc "$@"\n')
        (elsewhere / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{elsewhere}{os.pathsep}{os.environ['PATH']}")
    assert native.find_cuda_home() == home


def test_a_folder_that_is_no_toolkit_is_passed_over(tmp_path, monkeypatch):
    home = toolkit(tmp_path / "cuda")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert native.find_cuda_home() == home


@pytest.mark.slow
def test_the_cuda_kernels_compile_for_their_gpus(monkeypatch):
    """Though there may be no GPU here to run them: for Hopper, or those that TORCH_CUDA_ARCH_LIST names.

    `make emulate` names all that the library is built for where there is no GPU.
    """
    if torch.version.cuda is None:
        pytest.skip("this PyTorch is built without CUDA, and has no headers to compile against")
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", architectures)
    try:
        library = native.build("cuda", again=True)
    except native.Unavailable as error:
        if "compiling failed" in str(error):
            raise
        pytest.skip(str(error))
    torch.ops.load_library(library)
    log = (library.parent / "log.txt").read_text()
    for number, suffix in re.findall(r"(\d+\.\d+)(\+PTX)?", architectures):
        kinds = ("sm", "compute") if suffix else ("sm",)
        assert all(f"code={kind}_{number.replace('.', '')}" in log for kind in kinds)


@needs_compiler
def test_make_ops_fails_where_compiling_does(empty_cache, sources, monkeypatch):
    def no_toolkit():
        raise native.Unavailable("no toolkit")

    monkeypatch.setattr(native, "find_cuda_home", no_toolkit)
    sources("#error this cannot be compiled\n")
    line, there = describe("cpu", build=True)
    assert "this cannot be compiled" in line and not there
    line, there = describe("cuda", build=True)
    assert line.startswith("cuda: none") and there  # nothing that a user of the CPU has to mend


def messages(source: str) -> list[tuple[str, list[str]]]:
    """Of every check in C++ code, its line and the arguments after the condition."""
    found = []
    for match in re.finditer(r"\bTORCH_(?:INTERNAL_ASSERT|CHECK|WARN)\w*\(", source):
        text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', source[match.end() :])
        depth, parts = 1, [""]
        for letter in text:
            depth += (letter in "([{") - (letter in ")]}")
            if depth == 0:
                break
            parts = [*parts, ""] if depth == 1 and letter == "," else [*parts[:-1], parts[-1] + letter]
        found.append((source[: match.start()].count("\n") + 1, [part.strip() for part in parts[1:]]))
    return found


def test_a_message_with_two_parts_is_seen():
    source = 'a;\nTORCH_CHECK_VALUE(f(a, b) && c, "x, y(: ", g(1, 2));\nTORCH_CHECK(a, "b" + text(c, d));'
    assert messages(source) == [(2, ['""', "g(1, 2)"]), (3, ['"" + text(c, d)'])]


@pytest.mark.parametrize("path", sorted(native.SOURCES.iterdir()), ids=lambda path: path.name)
def test_messages_are_put_together_without_streams(path):
    """A stream that formats a number crashes where the linker puts a copy of the C++ library into ours.

    PyTorch's checks put several parts of a message together with a stream; one string they take as it is.
    """
    source = path.read_text()
    for line, parts in messages(source):
        assert len(parts) == 1, f"{path.name}:{line}: give one string, with text() and std::to_string()"
    assert not re.search(r"\b(?:\w*stringstream|c10::str|iostream|ostream|std::cout|std::cerr|AT_ERROR)\b", source)
