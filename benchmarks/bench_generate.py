"""Images per second of `generate.py --seeds`, with all that it writes, beside those of the bare network.

    python benchmarks/bench_generate.py --network demo/runs
    python benchmarks/bench_generate.py --resolution 256 --count 64 --rounds 3

Both have their turn in every round, so that the ratio holds when the machine drifts. The floor is the network's time
where cores are idle meanwhile or there is a GPU; on a busy CPU it is that plus what encoding and files cost, shared by
the cores, which is measured too.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import seconds, write_record

import generate
from latents.cli import Model, ModelOptions, open_model
from media.images import save_png
from models.sampling import generate_batches
from models.snapshot import save_snapshot
from networks.generator import Generator, GeneratorConfig
from torch_utils import cli
from torch_utils.errors import UserError
from torch_utils.memory import keep_freed_memory
from torch_utils.sizes import nominal_side, size_text


@torch.no_grad()
def network_alone(model: Model, count: int) -> None:
    """The network for so many images, of latents that are there already."""
    z, c = model.zc(range(model.batch))
    for _ in range(count // model.batch):
        model.G(z, c, noise="const")


def whole(network: str, count: int, batch: int, device: str, folder: str) -> None:
    """generate.py from the parsed command line to the last file."""
    arguments = ["--network", network, "--seeds", f"0-{count - 1}", "--batch", str(batch), "--outdir", folder]
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        generate.main.main([*arguments, "--device", device], standalone_mode=False)


def untrained(resolution: int, folder: str) -> str:
    """A snapshot of StyleGAN2's size at the resolution (cbase 16384)."""
    path = f"{folder}/untrained.safetensors"
    save_snapshot(path, Generator(GeneratorConfig(resolution, cbase=16384)), {"kimg": 0})
    return path


@click.command(cls=cli.Command, example="python benchmarks/bench_generate.py --network demo/runs")
@cli.option("Options", "--network", default="demo/runs", help="A snapshot, a run, or a folder of runs.")
@cli.option(
    "Options",
    "--resolution",
    type=click.IntRange(16, 1024),
    help="Resolution of an untrained network, measured in place of --network.",
)
@cli.option("Options", "--count", default=960, type=click.IntRange(1), help="Images, a multiple of the batch.")
@cli.option("Options", "--batch", type=click.IntRange(1), help="[default: generate.py's]")
@cli.option("Options", "--rounds", default=5, type=click.IntRange(1))
@cli.option("Options", "--device", default="cpu", type=cli.Device())
@cli.option("Options", "--json", "json_path", type=cli.ResultFile(), help="Write the figures there as well.")
def main(
    network: str, resolution: int | None, count: int, batch: int | None, rounds: int, device: str, json_path: str | None
) -> None:
    """Time of generate.py over that of its network."""
    keep_freed_memory()  # as generate.py does, before anything else
    times: dict[str, list[float]] = {"network": [], "generate.py": []}
    # file systems make files slowly just after others were removed: all stay until the end
    with tempfile.TemporaryDirectory() as folder:
        network = untrained(resolution, folder) if resolution else network
        model = open_model(ModelOptions(network, batch=batch, device=device))
        if count % model.batch:
            raise UserError(f"--count {count} is no multiple of the batch, {model.batch}")
        for i in range(rounds + 1):  # the first is the warm-up
            times["network"].append(seconds(lambda: network_alone(model, count), device))
            call = partial(whole, network, count, model.batch, device, f"{folder}/{i}")
            times["generate.py"].append(seconds(call, device))
        images = torch.cat(list(generate_batches(model.G, range(model.batch), model.batch)))
        start = time.perf_counter()
        for i, image in enumerate(images):
            save_png(image, Path(folder, f"{i}.png"), sync=False)
        file_ms = (time.perf_counter() - start) / len(images) * 1e3
    bare, full = (statistics.median(values[1:]) / count * 1e3 for values in times.values())
    ratio = statistics.median(b / a for a, b in zip(*times.values(), strict=True))
    threads = torch.get_num_threads()
    floor = bare + file_ms / threads if device == "cpu" else max(bare, file_ms / threads)
    size = size_text(model.G.config.resolution)
    print(f"{size}, batch {model.batch}, {threads} threads, {device}, medians of {rounds} rounds")
    print(f"network {bare:.3f}, generate.py {full:.3f} ms an image: {ratio:.2f} x the time, {full / floor:.2f} x the")
    print(f"floor of {floor:.3f}: the network, and {file_ms:.3f} ms on one core to encode and write an image")
    record: dict[str, float] = {
        "resolution": nominal_side(model.G.config.resolution),
        "batch": model.batch,
        "count": count,
        "rounds": rounds,
    }
    record |= {"network_ms": bare, "generate_ms": full, "ratio": ratio, "floor_ms": floor, "file_ms": file_ms}
    write_record(json_path, device, record)


if __name__ == "__main__":
    cli.run(main)
