"""torch_utils.memory: whether memory is kept, by the page faults that it costs not to."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import resource, sys, torch
from torch_utils.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(16 << 20).add_(1)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()  # the first ones are new to the process
print(int(kept), faults())
"""


def test_kept_memory_costs_no_page_faults():
    kept, faults = {}, {}
    for how in ("keep", "give back"):
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, how], cwd=ROOT, capture_output=True, text=True, check=True
        )
        kept[how], faults[how] = map(int, result.stdout.split())
    if not kept["keep"]:
        pytest.skip("the C library cannot be asked")
    assert faults["keep"] < faults["give back"] / 10
