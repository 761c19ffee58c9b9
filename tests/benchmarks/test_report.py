"""Tables of records by known ones, and the committed document by the committed records."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from kernel_resources import occupancy, parse
from report import BEGIN, END, ROOT, distances, figures, origin, read, replaced

from torch_utils.errors import UserError

OPS = {
    "device": "cuda",
    "adaconv": [
        {
            "op": "adaconv 8ch 4²", "batch": 2, "precision": "bf16", "floor": 0.001, "floor_with_gradients": 0.004,
            "forward": {"demod": 0.002, "loop": 0.03, "grouped": 0.01, "copy": 0.001},
            "forward_and_gradients": {"demod": 0.005, "loop": 0.06},
        }
    ],
    "others": [],
}  # fmt: skip


def test_a_table():
    lines = figures({"ops-cuda": OPS}).splitlines()
    assert "| 2.00 | 1.00 | 2.00 | 15.0 | 5.00 | 5.00 | 4.00 | 1.25 | 12.0 |" in lines[-1]
    assert lines[-1].startswith("| adaconv 8ch 4² | 2 | bf16 |") and "GiB" not in lines[-3]  # of which there is none
    assert [value for _, value in distances({"ops-cuda": OPS})] == [2.0, 1.25]


def test_a_rate_has_the_precision_that_it_was_measured_in():
    rates = [{"precision": "bf16", "gflops": 8e5}, {"gflops": 5e4}, {"gflops_of": {"fp32": 1e3, "bf16": 2e3}}, {}]
    said = ["800,000 GFLOP/s in bf16", "50,000 GFLOP/s in fp32", "1,000 GFLOP/s in fp32", ""]
    assert [origin(record).removeprefix("matrix product ").partition(", matrix")[0] for record in rates] == said


def test_what_is_not_between_the_marks_stays():
    assert replaced(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\nnew\n{END}\nb"
    with pytest.raises(UserError, match="no place for the figures"):
        replaced("a", "new")


def test_the_document_has_the_records():
    text = (ROOT / "docs" / "performance.md").read_text()
    assert replaced(text, figures(read(ROOT / "benchmarks" / "results"))) == text


def test_a_broken_record_is_named(tmp_path):
    (tmp_path / "ops-x.json").write_text("{")
    with pytest.raises(UserError, match=r"ops-x\.json cannot be read as a record"):
        read(tmp_path)


def test_occupancy():
    """By NVIDIA's rules: 32 registers fill an SM of 2048 threads; 106 are 112, of which 2 blocks of 256 fit."""
    assert [occupancy(r) for r in (16, 32, 33, 64, 106)] == [1, 1, 0.75, 0.5, 0.25]
    assert [occupancy(r, 128) for r in (126, 147)] == [0.25, 0.1875]


def test_resources_of_one_architecture():
    text = "\n".join(
        f"arch = {arch}\n Function void (anonymous namespace)::f<c10::BFloat16, 8, 3>(int):\n  "
        f"REG:{registers} STACK:0 SHARED:1024 LOCAL:16 CONSTANT[0]:590"
        for arch, registers in (("sm_80", 40), ("sm_90", 106))
    )
    (row,) = parse(text, "sm_90")
    assert row == {
        "kernel": "f<BFloat16, 8, 3>", "registers": 106, "shared": 1024, "spills": 16, "threads": 256, "occupancy": 0.25
    }  # fmt: skip
