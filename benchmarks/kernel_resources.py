"""What the compiler made of the CUDA kernels: registers, shared memory, spills, and how many threads an SM can hold.

    make ops; python benchmarks/kernel_resources.py ~/.cache/adaconv/cuda-*/adaconv_cuda.so --json resources-sm90.json

Reads a built library or object files with cuobjdump (of the CUDA toolkit); no GPU is needed. Shared memory is what is
declared in the kernel: AdaConv's forward takes 2.5 to 4 KB more when it is launched.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import write_record

from torch_utils import cli
from torch_utils.errors import UserError

THREADS, SMALL_BLOCKS = 256, {"adaconv_channels": 128}  # of a block, and of kernels whose names begin so
REGISTERS, SM_THREADS = 65536, 2048  # of an SM of compute capability 8.0 and 9.0


def occupancy(registers: int, threads: int = THREADS) -> float:
    """The part of an SM's threads that its registers allow; a warp gets them in blocks of 256."""
    of_block = -(-registers * 32 // 256) * 256 * threads // 32
    return min(REGISTERS // of_block * threads, SM_THREADS) / SM_THREADS


def parse(text: str, architecture: str) -> list[dict]:
    """The kernels of an architecture in what `cuobjdump --dump-resource-usage` prints, with names made readable.

    Of a file that has one architecture alone, it prints none.
    """
    rows, found, name = [], None, ""
    for line in text.splitlines():
        if match := re.search(r"arch = (\w+)", line):
            found = match[1]
        elif match := re.search(
            r"Function (?:void )?(?:adaconv::)?(?:\(anonymous namespace\)::)?([\w:]+<[^>]*>)", line
        ):
            name = re.sub(r"c10::|\(\(anonymous namespace\)::\w+\)|\(adaconv::\w+\)", "", match[1])
        elif found in (None, architecture) and (
            match := re.search(r"REG:(\d+) STACK:\d+ SHARED:(\d+) LOCAL:(\d+)", line)
        ):
            registers, shared, spills = map(int, match.groups())
            threads = next((count for begin, count in SMALL_BLOCKS.items() if name.startswith(begin)), THREADS)
            row = {"kernel": name, "registers": registers, "shared": shared, "spills": spills, "threads": threads}
            rows.append({**row, "occupancy": occupancy(registers, threads)})
    return rows


@click.command(cls=cli.Command, example="python benchmarks/kernel_resources.py adaconv_cuda.so --json resources.json")
@click.argument("files", nargs=-1, required=True)
@cli.option("Options", "--architecture", default="sm_90")
@cli.option(
    "Options",
    "--all",
    "everything",
    is_flag=True,
    help="Also float64, float16, which is as bfloat16, and what large or odd tensors take.",
)
@cli.option("Options", "--json", "json_path", type=cli.ResultFile(), help="Write the figures there as well.")
def main(files: tuple[str, ...], architecture: str, everything: bool, json_path: str | None) -> None:
    """Lists the resources of the kernels in built libraries or object files."""
    if shutil.which("cuobjdump") is None or shutil.which("c++filt") is None:
        raise UserError("cuobjdump or c++filt is missing; put those of the CUDA toolkit and of binutils on the PATH")
    rows = []
    for path in files:
        dump = subprocess.run(["cuobjdump", "--dump-resource-usage", path], capture_output=True, text=True)
        if dump.returncode:
            raise UserError(f"{path} cannot be read: {' '.join(dump.stderr.split())[:200]}; name a built library")
        plain = subprocess.run(["c++filt", "-t"], input=dump.stdout, capture_output=True, text=True, check=True).stdout
        rows += parse(plain, architecture)
    rows = [
        row for row in rows if everything or not re.search(r"double|Half|long|(float|16), 1, unsigned", row["kernel"])
    ]
    for row in rows:
        print(f"{row['kernel']:36}{row['registers']:5} registers{row['spills']:6} bytes spilled", end="")
        print(f"{100 * row['occupancy']:6.0f} % of the threads of an SM")
    write_record(json_path, "cpu", {"machine": f"compiled for {architecture}, not run", "rows": rows})


if __name__ == "__main__":
    cli.run(main)
