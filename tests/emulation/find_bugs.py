"""Plants the bugs of bugs.py one after the other, and tells what finds each.

python -m tests.emulation.find_bugs            # those that the plain build shows
python -m tests.emulation.find_bugs sample     # of those, one of each file
python -m tests.emulation.find_bugs thread     # or address: those that the sanitizer reports
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.emulation.bugs import BUGS, Bug
from tests.emulation.emulate import Emulation, build, preload
from torch_utils.ops import check
from torch_utils.ops.names import IN_CHANNELS_LAST


def first_error(emulation: Emulation, bug: Bug, number: int) -> str | None:
    """What the inputs of the self-check, and two extreme ones, show of a bug; None where it is not found.

    In a child of this process, which the bug may crash. With the number 0 no bug is turned on.
    """
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        emulation.plant(number)
        os.write(write, (_first_error(emulation, bug) or "").encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        message = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return f"it ended with signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else message or None


def op_of(bug: Bug) -> str:
    """The op whose inputs show a bug."""
    op = bug.file.split(".")[0].removesuffix("_grad_kernel").removesuffix("_channels")
    if op == "reorder":
        return "adaconv"
    if op == "cuda":
        return "moments" if "launch" in bug.what or "block sum" in bug.what else "adaconv"
    return op


def _first_error(emulation: Emulation, bug: Bug) -> str | None:
    op = op_of(bug)
    if error := check.check(op, "cpu") or check.check(op + IN_CHANNELS_LAST, "cpu"):
        return error
    try:
        {"adaconv": many_groups, "upfirdn2d": many_values}.get(op, lambda emulation: None)(emulation)
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return None


def many_groups(emulation: Emulation) -> None:
    """More groups than the second dimension of a grid holds, of which the first two of each launch are computed."""
    emulation.orders(1)
    emulation.select([0, 1])
    x, kernel = torch.ones(1, 65537, 1, 1), torch.full((1, 65537, 1, 1, 1), 2.0)
    y = torch.ops.adaconv.adaconv(x, kernel, None, False)
    assert (y[0, [0, 1, 65535, 65536]] == 2).all(), "not all groups were computed"


def many_values(emulation: Emulation) -> None:
    """More than 2³¹ values, of which one block computes the last ones; memory that nobody touches costs nothing."""
    emulation.orders(1)
    x = torch.empty(1, 2**15 + 2, 256, 256, dtype=torch.bfloat16)
    x[0, -1] = 3.0
    blocks_of_a_plane = (256 // 8) * 256 // 256
    emulation.select([(x.shape[1] - 1) * blocks_of_a_plane])
    y = torch.ops.adaconv.upfirdn2d(x, torch.ones(4).bfloat16(), 1, 1, [2, 1, 2, 1], 1.0)
    assert (y[0, -1, 3, 3:-3] == 16 * 3).all(), "values beyond 2³¹ are wrong"


def chosen(which: str = "") -> dict[int, Bug]:
    """The bugs that are planted, by number: those that a plain build shows or a sample of them, or a sanitizer's."""
    numbered = dict(enumerate(BUGS, start=1))
    if which not in ("", "sample", "address", "thread"):
        raise ValueError(f"{which}: expected sample, address, thread or nothing")
    if which in ("address", "thread"):
        return {n: bug for n, bug in numbered.items() if (bug.race if which == "thread" else bug.by == "address")}
    plain = {n: bug for n, bug in numbered.items() if bug.by != "address"}
    if which == "sample":
        first = {bug.file: n for n, bug in reversed(plain.items())}
        return {n: plain[n] for n in sorted(first.values())}
    return plain


def main(which: str = "") -> int:
    """Plants the bugs of `chosen`; how many nothing found."""
    missed, sound = 0, dict[str, str | None]()
    sanitized = which in ("address", "thread")
    emulation = None if sanitized else Emulation(Path(os.environ.get("EMULATED_LIBRARY") or build()))
    for number, bug in chosen(which).items():
        if emulation is None:
            error = report(which, number, bug)
        else:
            if (op := op_of(bug)) not in sound:
                sound[op] = first_error(emulation, bug, 0)
            if sound[op]:
                print(f"{op} is wrong without a bug: {sound[op]}", flush=True)
                return len(BUGS)
            error = first_error(emulation, bug, number)
        missed += error is None
        print(f"{'found' if error else 'MISSED'}: {bug.what}: {error}", flush=True)
    return missed


def report(sanitizer: str, number: int, bug: Bug) -> str | None:
    """The line in which a sanitizer tells of a bug, in a process of its own, which that ends."""
    command = [sys.executable, "-m", "tests.emulation.watch", f"{op_of(bug)},{op_of(bug)}{IN_CHANNELS_LAST}"]
    environment = {**os.environ, **preload(sanitizer), "EMULATED_BUG": str(number)}
    environment["EMULATED_LIBRARY"] = str(build(sanitizer))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    begins = {"address": "ERROR: AddressSanitizer", "thread": "WARNING: ThreadSanitizer: data race"}[sanitizer]
    return next((line for line in done.stderr.splitlines() if begins in line), None)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
