"""The memory that a training from shards takes, with data sets of any number of tiny images.

    python benchmarks/bench_shards.py --images 2000000 --folder /tmp/tiny

The images are drawn into the folder, in tar files of 50 MB, where they are not there yet. Two trainings follow: the
first one measures the shards, the second one finds what was measured beside them. Linux only: the memory is that of all
processes together, where pages that several share count once.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from media.shard_writer import Sample, write_shards
from torch_utils import cli
from torch_utils.files import write_file

ROOT = Path(__file__).resolve().parent.parent
SHARD_BYTES = 50_000_000
DRAWN = 10_000
TRAINING = "--cfg demo --cbase 256 --cmax 8 --map-depth 1 --metrics none --gpus 0 --procs 1".split()  # noqa: SIM905


def draw(count: int) -> Iterator[Sample]:
    """Images of 16², each of four random colours; there are DRAWN different ones."""
    files = []
    for number in range(min(count, DRAWN)):
        colors = np.random.default_rng(number).integers(0, 256, (2, 2, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(colors.repeat(8, 0).repeat(8, 1)).save(buffer, "PNG")
        files.append(buffer.getvalue())
    for number in range(count):
        yield files[number % DRAWN], "png", None


def processes_below(process: int) -> list[int]:
    """A process and all that it has started, and those that they have."""
    found = [process]
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:  # it has ended
            continue
        found += [below for child in children for below in processes_below(int(child))]
    return found


def shared_bytes(process: int) -> int:
    """The memory of a process; of pages that it shares, its share."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def run_watched(command: list[str]) -> dict[str, float]:
    """Runs a command, and returns its seconds and the most bytes that it took at one time."""
    start, most = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=ROOT)
    ended = threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(1):
            most = max(most, sum(map(shared_bytes, processes_below(process.pid))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    ended.set()
    watcher.join()
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return {"seconds": time.perf_counter() - start, "peak_bytes": most}


@click.command(cls=cli.Command, example="python benchmarks/bench_shards.py --images 100000 --folder /tmp/tiny")
@click.option("--images", default=2_000_000, type=click.IntRange(100), help="Number of images.")
@click.option("--folder", required=True, metavar="PATH", help="Where the shards are drawn, or are already.")
@click.option("--kimg", default=0.1, type=cli.Float(0, min_open=True), help="Length of each training.")
@click.option("--workers", default=2, type=click.IntRange(0, 64), help="Processes that read.")
@click.option("--json", "json_path", type=cli.ResultFile(), help="Write the figures there as well.")
def main(images: int, folder: str, kimg: float, workers: int, json_path: str | None) -> None:
    """Peak memory of two trainings from shards: one that measures them, and one that need not."""
    start = time.perf_counter()
    if not Path(folder).exists():
        write_shards(Path(folder), draw(images), SHARD_BYTES)
    record: dict[str, object] = {"images": images, "drawing_seconds": time.perf_counter() - start}
    train = [sys.executable, "train.py", "--data", f"{folder}/*.tar", *TRAINING, "--workers", str(workers)]
    for name in ("first", "second"):
        with tempfile.TemporaryDirectory() as outdir:
            found = run_watched([*train, "--kimg", str(kimg), "--outdir", outdir])
        print(f"{name} training: {found['seconds']:,.0f} s, at most {found['peak_bytes'] / 2**20:,.0f} MiB")
        record[name] = found
    if json_path:
        write_file(json_path, json.dumps(record, indent=2).encode())


if __name__ == "__main__":
    cli.run(main)
