"""Kernels that are wrong on this machine are found on first use, and left to their references."""

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.scripts import script
from torch_utils.errors import UserError
from torch_utils.ops import adaconv, bias_act, check, moments, native, upfirdn2d
from torch_utils.ops.adaconv import adaconv_reference
from torch_utils.ops.bias_act import bias_act_reference
from torch_utils.ops.moments import moments_reference
from torch_utils.ops.names import OPS, OUT_OF_MEMORY
from torch_utils.ops.upfirdn2d import upfirdn2d_reference

pytest.importorskip("fcntl", reason="kernels are built on Linux and macOS only")
from torch_utils.ops import selfcheck

ROOT = Path(__file__).resolve().parents[3]

WRONG_KERNELS = """
#include <ATen/ATen.h>
#include <cstdlib>
#include <torch/library.h>
std::tuple<at::Tensor, at::Tensor> moments(const at::Tensor& x) {
  const at::Tensor zeros = at::zeros({x.size(0), x.size(1)}, x.options());
  return {zeros, zeros};
}
at::Tensor upfirdn2d(const at::Tensor&, const at::Tensor&, int64_t, int64_t, at::IntArrayRef, double) { std::abort(); }
TORCH_LIBRARY_IMPL(adaconv, CPU, m) { m.impl("moments", &moments), m.impl("upfirdn2d", &upfirdn2d); }
"""


@pytest.fixture
def kernels() -> Path:
    if not native.available("cpu"):
        pytest.skip("no kernels here: see python -m torch_utils.ops")
    return native.plan("cpu").library


def test_right_kernels_pass_in_seconds(kernels, tmp_path, capsys):
    assert selfcheck.faults("cpu", [kernels], tmp_path) == {}
    assert capsys.readouterr().err.startswith("checking the cpu ops against their references, once")
    assert json.loads(selfcheck.record_path("cpu", tmp_path).read_text()) == {}


def test_the_result_is_kept(tmp_path, monkeypatch):
    """By build, which names the folder, and by machine; a record that cannot be read is made anew."""
    runs = []

    def run(device, ops, libraries):
        runs.append(device)
        return [f"{op}: {'wrong' if op == 'moments' else ''}" for op in ops], ""

    monkeypatch.setattr(selfcheck, "_run", run)
    for _ in range(2):
        assert selfcheck.faults("cpu", [], tmp_path) == {"moments": "wrong"}
    assert len(runs) == 1
    assert selfcheck.faults("cpu", [], tmp_path, again=True) == {"moments": "wrong"}
    assert len(runs) == 2
    selfcheck.record_path("cpu", tmp_path).write_text("{")
    selfcheck.faults("cpu", [], tmp_path)
    assert len(runs) == 3
    here = selfcheck.record_path("cpu", tmp_path)
    monkeypatch.setattr(selfcheck, "_text", lambda path: "model name: another processor")
    assert selfcheck.record_path("cpu", tmp_path) != here


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
def test_wrong_and_crashing_kernels_are_found(kernels, tmp_path):
    """Planted among the CPU's own; the ops after the one that crashes are checked as well."""
    source, library = tmp_path / "wrong.cpp", tmp_path / "wrong.so"
    source.write_text(WRONG_KERNELS)
    include, lib = (Path(torch.__file__).parent / name for name in ("include", "lib"))
    command = ["c++", "-std=c++20", "-O0", "-shared", "-fPIC", f"-I{include}", f"-I{include}/torch/csrc/api/include"]
    command += [str(source), "-o", str(library), f"-L{lib}", f"-Wl,-rpath,{lib}", "-lc10", "-ltorch_cpu"]
    subprocess.run(command, check=True)
    found = selfcheck.faults("cpu", [kernels, library], tmp_path)
    assert found.keys() == {"moments", "upfirdn2d"}, found
    assert re.match(
        r"\[2, 3, 1, 1\].*float32: the result is wrong in \d+ of 6 values: at \[0, 0\] 0, not", found["moments"]
    )
    assert "ended with signal 6" in found["upfirdn2d"]


def test_a_wrong_op_is_left_to_its_reference(kernels, monkeypatch, capsys):
    monkeypatch.delenv("ADACONV_OPS", raising=False)
    monkeypatch.setattr(native, "_loaded", {})
    monkeypatch.setattr(native, "_faulty", {})
    monkeypatch.setattr(selfcheck, "faults", lambda *a: {"moments": "at [0, 0] 0, not 1"})
    assert native.available("cpu", "adaconv")
    assert not native.available("cpu", "moments")
    err = capsys.readouterr().err
    assert re.fullmatch(
        r"note: moments is left to the slower reference: its cpu kernels are wrong here: at \[0, 0\] 0, not 1; "
        r"all of it: .*/checked-\w+\.json; to check again: python -m torch_utils\.ops --check\n",
        err,
    )
    monkeypatch.setattr(torch.ops.adaconv, "moments", None)
    x = torch.arange(12.0).view(1, 1, 3, 4)
    assert moments(x)[0].item() == 5.5

    monkeypatch.setattr(native, "_loaded", {})
    monkeypatch.setenv("ADACONV_OPS", "native")
    with pytest.raises(UserError, match="ADACONV_OPS=native: moments: its cpu kernels are wrong here"):
        native.available("cpu")


@pytest.mark.parametrize("op", ["adaconv", "bias_act", "moments", "upfirdn2d"])
def test_an_op_that_is_wrong_in_channels_last_is_computed_in_channels_first(kernels, monkeypatch, capsys, op):
    """By the same kernels, which get a copy; its gradient by x is right too. Other ops get x as it is."""
    monkeypatch.delenv("ADACONV_OPS", raising=False)
    monkeypatch.setattr(native, "_loaded", {})
    monkeypatch.setattr(native, "_faulty", {})
    monkeypatch.setattr(selfcheck, "faults", lambda *a: {f"{op} in channels-last": "at [0, 0] 0, not 1"})
    assert native.available("cpu", op)
    assert capsys.readouterr().err.startswith(f"note: {op} in channels-last is computed in channels-first: its cpu ker")
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    kernel, f = torch.randn(2, 8, 1, 3, 3, dtype=torch.float64), torch.tensor([1.0, 3.0, 3.0, 1.0])
    calls = {
        "adaconv": (lambda x: adaconv(x, kernel), lambda x: adaconv_reference(x, kernel)),
        "bias_act": (lambda x: bias_act(x), lambda x: bias_act_reference(x, None, "linear", 1.0, None)),
        "moments": (lambda x: moments(x)[1], lambda x: moments_reference(x)[1]),
        "upfirdn2d": (lambda x: upfirdn2d(x, f), lambda x: upfirdn2d_reference(x, f.double(), 1, 1, (0, 0, 0, 0), 1.0)),
    }
    for name, (call, reference) in calls.items():
        own, in_channels_first = getattr(torch.ops.adaconv, name), []
        spy = lambda x, *a, own=own, seen=in_channels_first: seen.append(x.is_contiguous()) or own(x, *a)  # noqa: E731
        monkeypatch.setattr(torch.ops.adaconv, name, spy)
        y, expected = call(x), reference(x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(*(torch.autograd.grad(value.sin().sum(), x)[0] for value in (y, expected)))
        assert in_channels_first == [name == op]


def test_a_check_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(selfcheck, "SECONDS", 0.01)
    lines, end = selfcheck._run("cpu", ["moments"], [])
    assert lines == []
    assert "did not end" in end


@pytest.mark.parametrize("code", [-signal.SIGINT, -signal.SIGTERM, -signal.SIGKILL, OUT_OF_MEMORY])
def test_a_check_that_is_interrupted_says_nothing_about_the_kernels(code, kernels, tmp_path, monkeypatch, capsys):
    """The next command checks again, and until then kernels are used."""
    ended = subprocess.CompletedProcess([], code, "adaconv: \n", "")
    of_check = SimpleNamespace(run=lambda *args, **kwargs: ended, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(selfcheck, "subprocess", of_check)
    with pytest.raises(selfcheck.Interrupted, match="next command"):
        selfcheck.faults("cpu", [], tmp_path)
    assert not selfcheck.record_path("cpu", tmp_path).exists()

    monkeypatch.delenv("ADACONV_OPS", raising=False)
    monkeypatch.setattr(native, "_loaded", {})
    monkeypatch.setattr(native, "_faulty", {})
    monkeypatch.setattr(selfcheck, "record_path", lambda *args: tmp_path / "none.json")
    assert native.available("cpu", "adaconv")
    assert "note: the cpu ops are used without having been checked: " in capsys.readouterr().err


def test_what_an_interrupted_check_had_found_counts(kernels, tmp_path, monkeypatch, capsys):
    """In this command; the next one checks all of them again."""
    ended = subprocess.CompletedProcess([], OUT_OF_MEMORY, f"{next(iter(OPS['cpu']))}: at [0] 0, not 1\n", "")
    of_check = SimpleNamespace(run=lambda *args, **kwargs: ended, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(selfcheck, "subprocess", of_check)
    monkeypatch.delenv("ADACONV_OPS", raising=False)
    monkeypatch.setattr(native, "_loaded", {})
    monkeypatch.setattr(native, "_faulty", {})
    monkeypatch.setattr(selfcheck, "record_path", lambda *args: tmp_path / "none.json")
    op = next(iter(OPS["cpu"]))
    assert not native.available("cpu", op)
    assert all(native.available("cpu", other) for other in OPS["cpu"] if not other.startswith(op))
    err = capsys.readouterr().err
    assert f"{op} is left to the slower reference: its cpu kernels are wrong here: at [0] 0, not 1; to check" in err
    assert not (tmp_path / "none.json").exists()


def test_a_check_without_memory_is_no_difference(kernels, monkeypatch):
    def no_memory(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(check, "compare", no_memory)
    with pytest.raises(SystemExit) as stopped:
        check.check("moments", "cpu")
    assert stopped.value.code == OUT_OF_MEMORY


def test_every_difference_is_told(kernels):
    """Shape, dtype, a value, what is no number, and a gradient."""
    x = torch.ones(2, 3, dtype=torch.float64)

    def differs(kernel, reference=lambda x: 2 * x):
        return check.compare(check.Case("op", "what", kernel, reference, (x,)), torch.float32, "cpu")

    assert differs(lambda x: 2 * x) is None
    assert "expected torch.float32 [2, 3]" in differs(lambda x: (2 * x)[:1])
    assert "expected torch.float32 [2, 3]" in differs(lambda x: 2 * x.double())
    assert "wrong in 6 of 6 values: at [0, 0] 2.1, not 2" in differs(lambda x: 2.1 * x)
    assert "wrong in 1 of 6" in differs(lambda x: 2 * x + torch.tensor([[0, 0, float("nan")], [0, 0, 0]]))
    assert differs(lambda x: 2 * x.detach() + 0 * x).startswith("a gradient is wrong")


def test_the_command(kernels):
    run = script("-m torch_utils.ops", "--check", cwd=ROOT)
    assert run.returncode == 0, run.stderr
    for op in selfcheck.OPS["cpu"]:
        assert f"cpu: {op}: as its reference" in run.stdout
