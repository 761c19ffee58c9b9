"""Pictures per second of `generate.py --seeds`, with all that it writes, beside those of the bare network.

    python benchmarks/bench_generate.py --network demo/runs --seeds 0-999

Both have their turn in every round, so that the ratio holds when the machine drifts.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import generate
from benchmarks.bench_generator import seconds
from latents.command import open_model
from torch_utils import cli


@torch.no_grad()
def bare(network: str, seeds: int, batch: int, device: str) -> float:
    """Seconds of the network alone for so many pictures, of latents that are there already."""
    model = open_model(network, device, (1.0,), None)
    z, c = (x[:batch] for x in model.zc(range(batch)))
    model.G(z, c, noise="const")
    return seconds(lambda: [model.G(z, c, noise="const") for _ in range(seeds // batch)], torch.device(device))


def whole(network: str, seeds: int, batch: int, device: str, folder: str) -> float:
    """Seconds of generate.py from the parsed command line to the last file."""
    arguments = ["--network", network, "--seeds", f"0-{seeds - 1}", "--batch", str(batch), "--outdir", folder]
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        return seconds(
            lambda: generate.main.main([*arguments, "--device", device], standalone_mode=False), torch.device(device)
        )


@click.command(cls=cli.Command, example="python benchmarks/bench_generate.py --network demo/runs")
@click.option("--network", default="demo/runs", help="A snapshot, a run, or a folder of runs.")
@click.option("--count", default=992, type=click.IntRange(16), help="Pictures, a multiple of the batch.")
@click.option("--batch", default=16, type=click.IntRange(1))
@click.option("--rounds", default=5, type=click.IntRange(1))
@click.option("--device", default="cpu", type=cli.Device())
def main(network: str, count: int, batch: int, rounds: int, device: str) -> None:
    """Time of generate.py over that of its network."""
    if count % batch:
        raise cli.UserError(f"--count {count} is no multiple of --batch {batch}")
    network_s, script_s = [], []
    # file systems make files slowly just after others were removed: all stay until the end
    with tempfile.TemporaryDirectory() as folder:
        for i in range(rounds + 1):  # the first is the warm-up
            network_s.append(bare(network, count, batch, device))
            script_s.append(whole(network, count, batch, device, f"{folder}/{i}"))
    network_s, script_s = network_s[1:], script_s[1:]
    a, b = statistics.median(network_s), statistics.median(script_s)
    ratio = statistics.median(y / x for x, y in zip(network_s, script_s, strict=True))
    print(f"network {count / a:.0f}, generate.py {count / b:.0f} pictures a second: {ratio:.2f} x the time", end="; ")
    print(f"{torch.get_num_threads()} threads, batch {batch}, medians of {rounds} rounds")


if __name__ == "__main__":
    cli.run(main)
