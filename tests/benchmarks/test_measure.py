"""What figures are made of: medians of turns, what spans cover, and records that say where they come from."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import measure
from bench_ops import floors, grouped, loop
from bench_training import covered
from compare_kernels import differences
from measure import medians, name_in_record, working, write_record

from torch_utils.ops.adaconv import adaconv_reference


def test_every_candidate_has_its_turn_in_every_round(monkeypatch):
    calls, clock = [], iter([9.0, 9.0, 1.0, 5.0, 3.0, 6.0, 2.0, 50.0])  # the first round is the warm-up

    def seconds(function, device):
        function()
        return next(clock)

    monkeypatch.setattr(measure, "seconds", seconds)
    found = medians({name: lambda name=name: calls.append(name) for name in "ab"}, 3, "cpu")
    assert found == {"a": 2.0, "b": 6.0} and calls == list("abababab")


def test_what_does_not_run_is_left_out(capsys):
    def broken():
        raise RuntimeError("no\nmemory")

    assert list(working({"a": broken, "b": lambda: 1})) == ["b"]
    assert capsys.readouterr().err == "note: a is left out: no memory\n"


def test_time_is_not_counted_twice():
    assert covered([(5, 6), (0, 2), (1, 3), (1, 2), (3, 4)]) == 5
    assert covered([]) == 0


def test_floors():
    assert floors(2.0, 1, 3) == {"floor": 2.0, "floor_with_gradients": 6.0}
    assert floors(2.0, 1, 3, multiply_adds=5.0) == {"floor": 5.0, "floor_with_gradients": 15.0}


def test_the_baselines_compute_the_op():
    torch.manual_seed(0)
    x, kernel = torch.randn(3, 4, 6, 7).double(), torch.randn(3, 4, 2, 3, 3).double()
    for baseline in (loop, grouped):
        torch.testing.assert_close(baseline(x, kernel), adaconv_reference(x, kernel))


def test_differences_of_losses():
    """Of the first loss and of the means; a loss that is not in every step counts where it is."""
    a = [
        {"loss/G": 1.0 + 0.5 * (i >= 30), "loss/D": 2.0} | ({"loss/r1": 0.0} if i % 16 == 0 else {}) for i in range(40)
    ]
    b = [{"loss/G": 1.0, "loss/D": 2.002} | ({"loss/r1": 0.0} if i % 16 == 0 else {}) for i in range(40)]
    assert differences(a, b) == pytest.approx({"first_loss": 0.0, "mean": 0.125 / 1.001})
    a[0]["loss/G"] = 1.1
    assert differences(a, b)["first_loss"] == pytest.approx(0.1 / 1.001)


def test_a_record_says_where_it_comes_from(tmp_path):
    write_record(str(tmp_path / "new" / "a.json"), "cpu", {"rows": [1]})
    record = json.loads((tmp_path / "new" / "a.json").read_text())
    assert record["rows"] == [1] and record["device"] == "cpu" and record["torch"] == torch.__version__
    assert {"machine", "threads", "commit", "date"} <= record.keys()


def test_a_record_names_files_without_where_they_lie_on_this_machine():
    assert name_in_record("/data/sets/faces64.zip") == "faces64.zip"
    assert name_in_record(Path("runs/00003-x/snapshot-000100.safetensors")) == "00003-x/snapshot-000100.safetensors"
    assert name_in_record("model.safetensors") == "model.safetensors"
    for file in (Path(measure.__file__).parent / "results").glob("*.json"):
        assert not re.findall(r'"(?:/|~|[A-Z]:\\\\)[\w.-]+/[^"]*"', file.read_text()), file.name
