"""Builds the CUDA kernels for the CPU and puts them in place of the CPU's own: in a process that does nothing else.

Schemas, derivatives and checks are those of the CPU's library, which are the same for both devices.

    python -m pytest -p tests.emulation.emulate tests/torch_utils/ops    # the ops' tests, with the emulated kernels

EMULATED_SANITIZER=address or thread takes a build with that sanitizer, whose library must be preloaded;
EMULATED_LIBRARY names a library that is built already; EMULATED_ORDERS=1 runs threads forward only, and
EMULATED_SEED chooses other random orders.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

from tests.emulation import bugs, rewrite
from torch_utils.ops import native

LOADED = pytest.StashKey["Emulation"]()
SANITIZERS = {
    "": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
}


RUNTIMES = {"address": "libasan.so", "thread": "libtsan.so"}


def build(sanitizer: str = "") -> Path:
    """The library of the emulated ops, from the cache or compiled. The bugs of bugs.py are built in, all turned off.

    Raises:
        native.Unavailable: where it cannot be compiled.
    """
    cpu = native.plan("cpu")
    # FMA and the conversions of half precision; the wider vectors of a CPU would say nothing of a GPU
    flags = ["-O1", "-g1", "-fno-omit-frame-pointer", "-Wno-unknown-pragmas", "-Wno-attributes", "-Wno-psabi"]
    flags += [*native.CPU_FLAGS["AVX2"]] if "-mfma" in cpu.flags else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = rewrite.write_sources(folder, bugs.edits())
        made = native.Build(
            "emulated", tuple(sources), (*flags, *SANITIZERS[sanitizer]), cpu.compiler, source_folder=folder
        )
        return native.build(made)


def preload(sanitizer: str) -> dict[str, str]:
    """What a process needs that loads a library with a sanitizer."""
    if not sanitizer:
        return {}
    compiler = os.environ.get("CXX") or "c++"
    command = [*compiler.split(), f"-print-file-name={RUNTIMES[sanitizer]}"]
    runtime = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return {
        "LD_PRELOAD": runtime,
        "EMULATED_SANITIZER": sanitizer,
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:ignore_noninstrumented_modules=1",
    }


class Emulation:
    """The loaded library, in place of the CPU's kernels from then on."""

    def __init__(self, library: Path) -> None:
        torch.ops.load_library(native.build("cpu"))
        native.register_fakes()
        torch.ops.load_library(library)
        self.library = ctypes.CDLL(str(library))
        for name in ("launches", "threads", "trips"):
            getattr(self.library, f"emulated_{name}").restype = ctypes.c_int64
        native._loaded.update({"cpu": True, "cuda": False})
        native.on_gpu = lambda x: True

    def orders(self, count: int) -> None:
        """In how many orders of threads every op is run: forward; reverse; at random, mostly warp by warp."""
        self.library.emulated_orders(count)

    def seed(self, seed: int) -> None:
        """Of the random order."""
        self.library.emulated_seed(seed)

    def select(self, blocks: list[int]) -> None:
        """Runs only these blocks of every launch, for tensors that are too large to run all; of [] all."""
        self.library.emulated_select(ctypes.c_int64(len(blocks)), (ctypes.c_int64 * len(blocks))(*blocks))

    def plant(self, bug: int) -> None:
        """Turns on a bug of bugs.py, by its place from 1 on; 0: none."""
        self.library.emulated_plant(bug)

    def launches(self) -> int:
        return self.library.emulated_launches()

    def threads(self) -> int:
        """That have been run."""
        return self.library.emulated_threads()

    def trips(self, file: str, line: int) -> int:
        """How often the body of a loop was run, by all threads; the loop must not be unrolled."""
        return self.library.emulated_trips(rewrite.loop_number(file, line))


def pytest_configure(config) -> None:  # as a plugin of pytest
    library = os.environ.get("EMULATED_LIBRARY")
    emulation = Emulation(Path(library) if library else build(os.environ.get("EMULATED_SANITIZER", "")))
    emulation.seed(int(os.environ.get("EMULATED_SEED", "0")))
    config.stash[LOADED] = emulation


def pytest_terminal_summary(terminalreporter, exitstatus, config) -> None:
    terminalreporter.write_line(f"the emulated kernels were launched {config.stash[LOADED].launches()} times")
