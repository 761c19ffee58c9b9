"""What the CUDA kernels cost at best, from their compiled code: a prediction, made without a GPU.

    make ops; python benchmarks/kernel_cost.py ~/.cache/adaconv/cuda-*/adaconv_cuda.so --json kernel-cost-sm90.json

It counts the instructions of a thread in the SASS of a built library: those outside of loops once, and those of a loop
as often as the table CASES says that it is run, which a test compares with what the emulated kernels run. Code that
only pixels near the border reach is counted for all, so that the counts are upper bounds. At perfect issue an SM starts
4 × 32 of them in each cycle. That time, divided by the time of copying the same bytes, is the ratio: 1 or less
means that memory is the limit.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import write_record

from torch_utils import cli
from torch_utils.errors import UserError
from torch_utils.ops import native


@dataclass(frozen=True)
class GPU:
    """By data sheet: bytes per second, and instructions of a thread that all SMs start per second."""

    name: str
    bandwidth: float
    issue: float


H100 = GPU("H100 SXM", 3.35e12, 132 * 4 * 32 * 1.755e9)
A100 = GPU("A100 80 GB", 2.04e12, 108 * 4 * 32 * 1.41e9)
TYPES = {"fp32": ("f", 4), "bf16": ("N3c108BFloat16E", 2)}


@dataclass(frozen=True)
class Loop:
    """A loop that stays one in compiled code: its first line in the source, and how often a thread runs it on average.

    The compiler may make `copies` of a loop, of which a thread runs one.
    """

    line: str
    trips: float
    copies: int = 1


@dataclass(frozen=True)
class Case:
    """A kernel, and what a thread of it computes.

    `kernel` is a pattern of the mangled name, in which S stands for the type. The loops are in the order of their first
    instruction. `values` is how many outputs a thread makes (None: those of 16 bytes), and `moved` how many values are
    read and written for each, in the least.
    """

    what: str
    kernel: str
    loops: tuple[Loop, ...]
    values: int | None
    moved: float

    @property
    def trips(self) -> tuple[float, ...]:
        """Of the loops in compiled code."""
        return tuple(trips for loop in self.loops for trips in (loop.trips, *[0.0] * (loop.copies - 1)))


# AdaConv at 256², batch 32, 64 channels: with C/G 8, a block of 256 threads brings 576 weights into shared memory, and
# each thread runs 8 inputs; for the gradient by the kernel, a warp takes a sixteenth of an image.
GROUPED = (
    Loop("for (int i0 = 0; i0 < group; i0 += kInputs) {", 1),
    Loop("for (int j = threadIdx.x; j < inputs * taps * O; j += blockDim.x) {", 2.25, copies=2),
    Loop("for (int i = 0; i < inputs; i++, input += plane)", 8),
)
SINGLE = (Loop("for (int i = 0; i < group; i++, input += plane) {", 1),)
CORRELATE = (Loop("while (top < shape.height) {", 32),)
# On tensor cores, in half precision and channels-last memory: a warp goes down a strip of 32 rows, 16 columns and 16
# channels, and reads a row above and one below. A product of matrices counts as one instruction.
STRIP = (Loop("for (int m = top - pad; m < bottom + pad; m++) {", 34),)
PACKS = "for (Index j = Index(blockIdx.x) * kThreads + threadIdx.x; j < count; j += Index(gridDim.x) * kThreads) {"

CASES = (
    Case("adaconv, C/G 8", r"adaconv_rowsISLi8ELi3ELN\w+BorderE0E", GROUPED, 64, 2),
    Case("adaconv, C/G 8, reflect", r"adaconv_rowsISLi8ELi3ELN\w+BorderE1E", GROUPED, 64, 2),
    Case("its gradient by x, C/G 8, reflect", r"adaconv_rowsISLi8ELi3ELN\w+BorderE2E", GROUPED, 64, 2),
    Case("adaconv, C/G 1", r"adaconv_rowsISLi1ELi3ELN\w+BorderE0E", SINGLE, 8, 2),
    Case("adaconv, C/G 1, reflect", r"adaconv_rowsISLi1ELi3ELN\w+BorderE1E", SINGLE, 8, 2),
    Case("its gradient by x, C/G 1, reflect", r"adaconv_rowsISLi1ELi3ELN\w+BorderE2E", SINGLE, 8, 2),
    # 4 of 8 × 8 pairs of an input and an output: a sixteenth of the work of 8 values, for 4 pixels
    Case("its gradient by the kernel, C/G 8", r"adaconv_correlateISLi4ELi3ELN\w+BorderE0E", CORRELATE, 64, 2),
    Case("its gradient by the kernel, C/G 8, reflect", r"adaconv_correlateISLi4ELi3ELN\w+BorderE1E", CORRELATE, 64, 2),
    Case("its gradient by the kernel, C/G 1", r"adaconv_correlateISLi1ELi3ELN\w+BorderE0E", CORRELATE, 128, 2),
    Case("its gradient by the kernel, C/G 1, reflect", r"adaconv_correlateISLi1ELi3ELN\w+BorderE1E", CORRELATE, 128, 2),
    Case("adaconv, tensor cores, C/G 8", r"adaconv_channelsISLi3ELN\w+BorderE0E", STRIP, 256, 2),
    Case("adaconv, tensor cores, C/G 8, reflect", r"adaconv_channelsISLi3ELN\w+BorderE1E", STRIP, 256, 2),
    Case("its gradient by x, tensor cores, C/G 8, reflect", r"adaconv_channelsISLi3ELN\w+BorderE2E", STRIP, 256, 2),
    Case("upfirdn2d, 4 taps, up 2", r"upfirdn2d_rowsISLi2ELi1ELb1ELi1E", (), 8, 1.25),
    Case("upfirdn2d, 4 taps, down 2", r"upfirdn2d_rowsISLi1ELi2ELb1ELi1E", (), 8, 5),
    Case("upfirdn2d, 4 taps, up 1, down 1", r"upfirdn2d_rowsISLi1ELi1ELb1ELi1E", (), 8, 2),
    Case("upfirdn2d, 4 taps, up 2, down 2", r"upfirdn2d_rowsISLi2ELi2ELb1ELi1E", (), 8, 2),
    Case("upfirdn2d, 4 taps, up 1, down 1, channels-last", r"upfirdn2d_rowsISLi1ELi1ELb0ELi2E", (), 16, 2),
    Case("the same, an odd number of channels", r"upfirdn2d_rowsISLi1ELi1ELb0ELi1E", (), 8, 2),
    Case(
        "bias_act, linear or lrelu", r"bias_act_forwardISLi[48]EjLN\w+KindE0ELN\w+ShiftE1E", (Loop(PACKS, 1),), None, 2
    ),
    Case("the same, channels-last", r"bias_act_forwardISLi[48]EjLN\w+KindE0ELN\w+ShiftE2E", (Loop(PACKS, 1),), None, 2),
    Case("bias_act, relu", r"bias_act_forwardISLi[48]EjLN\w+KindE1ELN\w+ShiftE1E", (Loop(PACKS, 1),), None, 2),
    # with a clamp and without
    Case("its gradient", r"bias_act_gradientISLi[48]EjLN\w+KindE0E", (Loop(PACKS, 1, copies=2),), None, 3),
)


def functions(sass: str) -> dict[str, list[str]]:
    """The instructions and labels of each kernel in what nvdisasm prints."""
    result: dict[str, list[str]] = {}
    body: list[str] = []
    for line in sass.splitlines():
        text = line.strip()
        if match := re.match(r"\.text\.(\S+):", text):
            body = result.setdefault(match[1], [])
        elif re.match(r"\.L_x_\d+:", text):
            body.append(text)
        elif match := re.match(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", text):
            body.append(match[1].strip())
    return result


def count(body: list[str], trips: tuple[float, ...]) -> float:
    """The instructions that a thread executes, with loops run `trips` times.

    Raises:
        ValueError: if there are not as many loops as trips.
    """
    code: list[str] = []
    labels: dict[str, int] = {}
    for line in body:
        if line.startswith(".L_x_"):
            labels[line.rstrip(":")] = len(code)
        else:
            code.append(line)
    loops = []
    for at, instruction in enumerate(code):
        match = re.search(r"\bBRA\b.*?(\.L_x_\d+)", instruction)
        if match and labels[match[1]] < at:
            loops.append((labels[match[1]], at))
    loops.sort()
    if len(loops) != len(trips):
        raise ValueError(f"{len(loops)} loops, where {len(trips)} are expected")
    padding = {at for label, at in labels.items() if at < len(code) and re.match(rf"BRA\b.*{label}\b", code[at])}
    total = 0.0
    for at, instruction in enumerate(code):
        # kernels are padded, and end with a branch to itself
        if instruction.startswith("NOP") or at in padding:
            continue
        times = 1.0
        for (first, last), trip in zip(loops, trips, strict=True):
            times *= trip if first <= at <= last else 1
        total += times
    return total


def disassemble(library: Path, architecture: str) -> str:
    """The SASS of a library, by the tools of the CUDA toolkit, or those that come with Triton."""
    folders = [Path(sys.prefix) / f"lib/python3.{sys.version_info.minor}/site-packages/triton/backends/nvidia/bin"]
    with contextlib.suppress(native.Unavailable):
        folders.insert(0, native.find_cuda_home() / "bin")
    tools = {}
    for name in ("cuobjdump", "nvdisasm"):
        found = shutil.which(name) or next((str(f / name) for f in folders if (f / name).exists()), None)
        if found is None:
            raise UserError(f"{name} is missing; put that of the CUDA toolkit on the PATH")
        tools[name] = found
    if library.suffix == ".cubin":
        return _run([tools["nvdisasm"], "-c", str(library)])
    with tempfile.TemporaryDirectory() as folder:
        _run([tools["cuobjdump"], "-xelf", architecture, str(library.resolve())], cwd=folder)
        cubins = sorted(Path(folder).glob("*.cubin"))
        if not cubins:
            raise UserError(f"{library} has no code for {architecture}; build it with TORCH_CUDA_ARCH_LIST=9.0")
        return "\n".join(_run([tools["nvdisasm"], "-c", str(path)]) for path in cubins)


def _run(command: list[str], cwd: str | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        raise UserError(f"{Path(command[0]).name} fails: {' '.join(done.stderr.split())[:200]}")
    return done.stdout


def ratio(instructions: float, moved: float, size: int, gpu: GPU) -> float:
    """The time of the instructions of a value at perfect issue, divided by that of copying its bytes."""
    return instructions / gpu.issue / (moved * size / gpu.bandwidth)


@click.command(cls=cli.Command, example="python benchmarks/kernel_cost.py adaconv_cuda.so --json kernel-cost-sm90.json")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@cli.option("Options", "--architecture", default="sm_90", help="GPU architecture whose code is read.")
@cli.option("Options", "--json", "json_path", type=cli.ResultFile(), help="Write the figures there as well.")
def main(files: tuple[Path, ...], architecture: str, json_path: str | None) -> None:
    """Predicts from compiled code how far the kernels are from the time of a copy."""
    kernels: dict[str, list[str]] = {}
    for path in files:
        kernels |= functions(disassemble(path, architecture))
    rows = []
    for case in CASES:
        for dtype, (mangled, size) in TYPES.items():
            pattern = case.kernel.replace("IS", f"I{mangled}")
            body = next((body for name, body in kernels.items() if re.search(pattern, name)), None)
            if body is None:
                continue
            instructions = count(body, case.trips) / (case.values or 16 // size)
            row = {"kernel": case.what, "dtype": dtype, "instructions": round(instructions, 1), "trips": case.trips}
            for gpu in (H100, A100):
                row[gpu.name] = round(ratio(instructions, case.moved, size, gpu), 2)
            rows.append(row)
            print(f"{case.what:48}{dtype:6}{instructions:8.1f} per value", end="")
            print(f"{row[H100.name]:8.2f} × a copy on {H100.name}{row[A100.name]:8.2f} on {A100.name}")
    if not rows:
        raise UserError("none of these kernels is in the files; name a library that make ops built")
    write_record(json_path, "cpu", {"machine": f"compiled for {architecture}, not run", "rows": rows})


if __name__ == "__main__":
    cli.run(main)
