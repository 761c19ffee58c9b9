"""The long check of the emulated CUDA kernels: `make emulate`. It ends with 1 where anything is wrong.

The tests of the ops with other random orders of threads; every bug of bugs.py, planted and found; and the inputs of the
self-check, and the bugs again, in builds with the sanitizers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.emulation import emulate
from torch_utils.ops import native, selfcheck

ROOT = Path(__file__).resolve().parents[2]
TESTS = ["test_adaconv", "test_bias_act", "test_half_precision", "test_kernels", "test_memory_order", "test_upfirdn2d"]


def run(what: str, *arguments: str, sanitizer: str = "", **variables: str) -> bool:
    """Runs Python with the build for a sanitizer; whether it ended well."""
    start = time.monotonic()
    environment = {
        **os.environ,
        "EMULATED_LIBRARY": str(emulate.build(sanitizer)),
        **emulate.preload(sanitizer),
        **variables,
    }
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    verdict = "right" if done.returncode == 0 else f"WRONG (exit code {done.returncode})"
    print(f"{what}: {verdict}, {time.monotonic() - start:.0f} s", flush=True)
    if done.returncode:
        print(done.stdout[-6000:] + done.stderr[-6000:], flush=True)
    return done.returncode == 0


def main() -> int:
    compiling = ["tests/torch_utils/ops/test_native.py", "-k", "test_the_cuda_kernels_compile"]
    results = [run("compiled by nvcc", "-m", "pytest", *compiling, TORCH_CUDA_ARCH_LIST=native.DEFAULT_ARCHITECTURES)]
    for test in TESTS:
        arguments = ["-m", "pytest", "-p", "tests.emulation.emulate", f"tests/torch_utils/ops/{test}.py"]
        results.append(run(test, *arguments, "-m", "not gpu", "-k", "not reference", EMULATED_SEED="1"))
    results.append(run("planted bugs", "-m", "tests.emulation.find_bugs"))
    for sanitizer in ("address", "thread"):
        watched = ["-m", "tests.emulation.watch", ",".join(selfcheck.OPS["cuda"])]
        results.append(run(f"sanitizer: {sanitizer}", *watched, sanitizer=sanitizer))
        bugs = ["-m", "tests.emulation.find_bugs", sanitizer]
        results.append(run(f"planted bugs that the sanitizer reports: {sanitizer}", *bugs))
    results.append(run("training", "-m", "tests.emulation.train", "200"))
    return not all(results)


if __name__ == "__main__":
    raise SystemExit(main())
