"""Whether kernels that were built compute what they should where they run: found out on first use, and remembered.

The comparison itself (check.py) is made by a process of its own, which may crash or hang. What it found is kept beside
the library, in one file for each kind of processor or GPU and driver.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from torch_utils.errors import note
from torch_utils.files import atomic_write, open_own
from torch_utils.ops.names import IN_CHANNELS_LAST, OPS, OUT_OF_MEMORY

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300  # after which a check is taken to hang; it needs a few


class Interrupted(Exception):
    """A check that was stopped, or found no memory beside other processes; `faults` are what it had found before."""

    def __init__(self, message: str):
        super().__init__(message)
        self.faults: dict[str, str] = {}


def record_path(device: str, folder: Path) -> Path:
    """Where the result is kept: named by the architecture and the driver; `folder` is named by the build."""
    if device == "cuda":
        machine = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
        parts = [sorted(set(machine)), _text("/proc/driver/nvidia/version"), torch.version.cuda]
    else:
        model = re.search(r"model name.*", _text("/proc/cpuinfo"))
        parts = [platform.machine(), model and model[0], torch.backends.cpu.get_cpu_capability()]
    return folder / f"checked-{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}.json"


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def faults(device: str, libraries: Sequence[Path], folder: Path, again: bool = False) -> dict[str, str]:
    """The ops whose kernels are wrong here, each with what was seen; of ops that are wrong, no order by itself.

    Args:
        device: cpu or cuda.
        libraries: to be loaded for the check, in order.
        folder: of the build, where the result is kept.
        again: checks even where a result is kept.

    Raises:
        OSError: if the result cannot be written.
        Interrupted: if the check was ended by what says nothing about the kernels; no result is kept.
    """
    record = record_path(device, folder)
    with open_own(folder / "check.lock", "ab") as lock:  # one process checks for all that ask
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not again:
            try:
                kept = json.loads(record.read_text())
                return {str(op): str(fault) for op, fault in kept.items()}
            except (OSError, ValueError, AttributeError):
                pass  # there is none, or none that can be read
        note(f"checking the {device} ops against their references, once: a few seconds ...")
        found = _find(device, libraries)
        with atomic_write(record) as file:
            file.write(json.dumps(found, indent=1).encode())
    return found


def _find(device: str, libraries: Sequence[Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _one_of_each_kind(device):
        remaining = list(OPS[device])
        while remaining:  # again after a crash, without the op that crashed
            lines, end = _run(name, remaining, libraries)
            for op in list(remaining):
                answer = next((line for line in lines if line.startswith(f"{op}: ")), None)
                if answer is None:
                    break
                if fault := answer.removeprefix(f"{op}: "):
                    found.setdefault(op, fault)
                remaining.remove(op)
            if isinstance(end, Interrupted):
                end.faults = found
                raise end
            if remaining:
                found.setdefault(remaining.pop(0), end)
            remaining = [op for op in remaining if op.removesuffix(IN_CHANNELS_LAST) not in found]
    wrong = {op for op in found if not op.endswith(IN_CHANNELS_LAST)}
    return {op: fault for op, fault in found.items() if op in wrong or op.removesuffix(IN_CHANNELS_LAST) not in wrong}


def _one_of_each_kind(device: str) -> list[str]:
    """Of GPUs of several architectures the first of each."""
    if device != "cuda":
        return [device]
    kinds = {torch.cuda.get_device_capability(i): f"cuda:{i}" for i in reversed(range(torch.cuda.device_count()))}
    return sorted(kinds.values())


def _run(device: str, ops: Sequence[str], libraries: Sequence[Path]) -> tuple[list[str], str | Interrupted]:
    """The lines that a checking process printed, and how it ended: in words, or by an interruption."""
    command = [sys.executable, "-m", "torch_utils.ops.check", device, ",".join(ops), *map(str, libraries)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        run = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        return text.splitlines(), f"it did not end within {SECONDS} seconds"
    lines = run.stdout.splitlines()
    if run.returncode == OUT_OF_MEMORY:
        return lines, Interrupted("there was not enough memory to check them; the next command tries again")
    if -run.returncode in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        return lines, Interrupted("the check was interrupted; the next command checks again")
    last = (run.stderr.strip().splitlines() or ["no message"])[-1]
    how = f"signal {-run.returncode}" if run.returncode < 0 else f"exit code {run.returncode}"
    return lines, f"the process that checked it ended with {how}: {last[:200]}"
