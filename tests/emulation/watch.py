"""Runs the inputs of the self-check, for a sanitizer to watch. What it reports ends it with an error, or a wrong value.

    EMULATED_LIBRARY=... python -m tests.emulation.watch adaconv,moments

ThreadSanitizer watches the threads run forward, in float32: in what order they run, and on what type they compute,
changes nothing about which accesses are ordered by barriers.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

from tests.emulation.emulate import Emulation
from torch_utils.ops import check


def main(ops: str) -> None:
    torch.set_num_threads(1)
    emulation = Emulation(Path(os.environ["EMULATED_LIBRARY"]))
    races = os.environ.get("EMULATED_SANITIZER") == "thread"
    if races:
        emulation.orders(1)
    for op in ops.split(","):
        start, inputs = time.monotonic(), 0
        for case in check.cases(op):
            for dtype in [torch.float32] if races else case.dtypes:
                inputs += 1
                if difference := check.compare(case, dtype, "cpu"):
                    raise SystemExit(f"{case.what}, {dtype}: {difference}")
        print(f"{op}: {inputs} inputs, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
