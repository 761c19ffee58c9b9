"""How often the emulated kernels run the loops whose trips benchmarks/kernel_cost.py states.

    EMULATED_LIBRARY=... python -m tests.emulation.trips

Prints, as JSON, the trips of a thread on average: kernel → those of each loop. The ops get the shapes of that table: 32
samples of 64 channels at 256². One block of every launch is run, so that most of the memory is never touched.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from tests.emulation.emulate import Emulation
from torch_utils.ops import native

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from kernel_cost import CASES, Case

N, C, SIZE = 32, 64, 256


def call_of(case: Case) -> Callable[[], object]:
    """The op that launches the kernel of a case, with as much as its name says."""
    ops, tensor_cores = torch.ops.adaconv, "tensor cores" in case.what
    dtype = torch.bfloat16 if tensor_cores else torch.float32
    x_order = torch.channels_last if tensor_cores else torch.contiguous_format
    x, group = torch.empty(N, C, SIZE, SIZE, dtype=dtype, memory_format=x_order), 8 if "C/G 8" in case.what else 1
    kernel, reflect = torch.empty(N, C, group, 3, 3, dtype=dtype), "reflect" in case.what
    if case.what.startswith("adaconv"):
        return lambda: ops.adaconv(x, kernel, None, reflect)
    if "gradient by x" in case.what:
        return lambda: ops.adaconv_grad_x(x, kernel, reflect)
    if "gradient by the kernel" in case.what:
        return lambda: ops.adaconv_grad_kernel(x, x, list(kernel.shape), reflect)
    if case.what == "its gradient":
        return lambda: ops.bias_act_grad(x, x, 0, 1.0, -1.0, False)
    order = torch.channels_last if "channels-last" in case.what else torch.contiguous_format
    act = 1 if "relu" in case.what.split(", ") else 0
    return lambda: ops.bias_act(x.to(memory_format=order), torch.ones(C), act, 1.0, -1.0)


def line_of(kernel: str, first_line: str) -> tuple[str, int]:
    """File and line of a loop of a kernel.

    Raises:
        ValueError: if the kernel has no such loop.
    """
    for path in native.SOURCES.glob("*.cu"):
        lines = path.read_text().splitlines()
        begins = [number for number, line in enumerate(lines) if line.startswith(f"    {kernel}(")]
        if begins:
            found = [number for number, line in enumerate(lines) if number > begins[0] and first_line in line]
            if found:
                return path.name, found[0] + 1
    raise ValueError(f"{kernel} has no loop {first_line!r}; adjust benchmarks/kernel_cost.py")


def main() -> None:
    torch.set_num_threads(1)
    emulation = Emulation(Path(os.environ["EMULATED_LIBRARY"]))
    emulation.orders(1)
    emulation.select([0])
    result = {}
    for case in CASES:
        if not case.loops:
            continue
        places = [line_of(case.kernel.split("IS")[0], loop.line) for loop in case.loops]
        call = call_of(case)
        before = [emulation.threads(), *(emulation.trips(*place) for place in places)]
        call()
        after = [emulation.threads(), *(emulation.trips(*place) for place in places)]
        threads, *trips = (now - then for now, then in zip(after, before, strict=True))
        result[case.what] = [count / threads for count in trips]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
