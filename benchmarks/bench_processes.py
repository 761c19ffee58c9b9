"""Training on a CPU with several processes of one thread each, or with one process of several threads.

    python benchmarks/bench_processes.py --resolution 32
    python benchmarks/bench_processes.py --resolution 64 --cbase 2048 --cmax 192

Both run `train.py --cfg demo` on drawn faces with the same batch, on as many cores, in turns. Several processes compute
each a part of the batch and average gradients; several threads share each operation. The speed is the median of the
trainings' own figures (steps a second of each tick but the first), so that starting is left out.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from measure import write_record  # noqa: E402

from media.convert import write_dataset  # noqa: E402
from media.faces import faces  # noqa: E402
from torch_utils import cli  # noqa: E402

TICKS = 4  # of which the first is not counted


def ticks_per_second(data: Path, run: Path, procs: int, threads: int, options: list[str]) -> list[float]:
    """Steps a second in each tick of a short training but the first."""
    command = [sys.executable, "train.py", "--data", str(data), "--outdir", str(run), "--cfg", "demo", *options]
    command += ["--procs", str(procs), "--workers", "1", "--gpus", "0", "--metrics", "none", "--snap", "1000"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)
    (stats,) = run.glob("*/stats.jsonl")
    return [json.loads(line)["it_per_s"] for line in stats.read_text().splitlines()][1:]


@click.command(cls=cli.Command, example="python benchmarks/bench_processes.py --resolution 32 --json processes.json")
@cli.option("Options", "--resolution", type=click.IntRange(8, 256), default=32)
@cli.option("Options", "--batch", type=click.IntRange(2), default=16)
@cli.option("Options", "--cbase", type=click.IntRange(16), default=1024)
@cli.option("Options", "--cmax", type=click.IntRange(1), default=64)
@cli.option("Options", "--cores", type=click.IntRange(2), default=2, help="Cores that each of the two ways uses.")
@cli.option("Options", "--kimg", type=cli.Float(0, min_open=True), default=1.0, help="Length of each training.")
@cli.option("Options", "--rounds", type=click.IntRange(1), default=3)
@cli.option("Options", "--json", "json_path", type=cli.ResultFile(), help="Write the figures there as well.")
def main(
    resolution: int, batch: int, cbase: int, cmax: int, cores: int, kimg: float, rounds: int, json_path: str | None
) -> None:
    """Time processes and threads in turns: seconds for a thousand images."""
    options = ["--batch", str(batch), "--cbase", str(cbase), "--cmax", str(cmax)]
    options += ["--kimg", str(kimg), "--tick", str(kimg / TICKS)]
    ways = {"processes": (cores, 1), "threads": (1, cores)}
    found: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "faces.zip"
        write_dataset(data, ((face, None) for face, _ in faces(256, resolution)))
        for turn in range(rounds):
            for name, (procs, threads) in ways.items():
                speeds = ticks_per_second(data, Path(folder) / f"{name}{turn}", procs, threads, options)
                found[name] += [1000 / batch / speed for speed in speeds]
                print(
                    f"{name}, round {turn + 1} of {rounds}: {statistics.median(found[name]):.1f} s/kimg",
                    file=sys.stderr,
                )
    medians = {name: statistics.median(values) for name, values in found.items()}
    spread = {name: statistics.stdev(values) for name, values in found.items()}
    print(f"{resolution}², batch {batch}, cbase {cbase}, cmax {cmax}, {cores} cores; seconds for a thousand images")
    for name, (procs, threads) in ways.items():
        ratio = medians[name] / medians["processes"]
        print(f"{procs} × {threads} threads: {medians[name]:6.1f} ± {spread[name]:.1f}   {ratio:.2f} × processes")
    given = {"resolution": resolution, "batch": batch, "cbase": cbase, "cmax": cmax, "cores": cores, "kimg": kimg}
    write_record(json_path, "cpu", {**given, "s_per_kimg": medians, "deviation": spread})


if __name__ == "__main__":
    cli.run(main)
