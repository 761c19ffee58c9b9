"""app.py under load: how long requests take with 1, 8 and 60 pages at once, and whether any is lost or mixed up.

    python benchmarks/bench_app.py --json benchmarks/results/app-cpu.json

Every client does mixed work without a pause: images of seeds (each compared with what the library makes), mixes, edits,
kernels, and short videos. The server is started for it at 127.0.0.1, and nothing else is reached.
"""

from __future__ import annotations

import io
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import write_record
from page_client import Client, Refused, Server, serve

from adaconv import Generator
from models.sampling import generate_batches
from models.snapshot import PRETRAINED, save_snapshot
from networks.generator import Generator as PlainGenerator
from networks.generator import GeneratorConfig
from torch_utils import cli

SHARES = {"image": 70, "mix": 12, "edit": 10, "kernels": 3, "video": 5}  # of the requests


@dataclass
class Counts:
    """What happened to the requests."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    lost: int = 0
    wrong: int = 0
    longest_queue: int = 0


def request(client: Client, kind: str, rng: random.Random, G: Generator) -> bool:
    """One request; whether the result is the right one."""
    seed = rng.randrange(2**31)
    if kind == "mix":
        client.call("mix-psi", "change", mix_a=seed, mix_b=seed + 1)
    elif kind == "edit":
        client.call("edit-psi", "change", edit_seed=seed, edit_0=2.0)
    elif kind == "kernels":
        client.call("kernels-psi", "change", kernels_a=seed)
    elif kind == "video":
        client.call(
            "walk-make", "click", walk_seeds=f"{seed % 1000}-{seed % 1000 + 1}", walk_seconds=1, walk_file=".gif"
        )
    else:
        file = client.call("seed", "change", seed=seed)[0]
        image = np.asarray(Image.open(io.BytesIO(client.fetch(file))), dtype=int)
        right = next(generate_batches(G, [seed], classes=torch.tensor([seed % 6])))[0].permute(1, 2, 0).numpy()
        return bool(np.abs(image - right).max() <= 1)
    return True


def load(server: Server, clients: int, seconds: float, G: Generator) -> Counts:
    """Mixed work of several clients for some time."""
    counts, lock = Counts(), threading.Lock()
    end = time.monotonic() + seconds

    def work(number: int) -> None:
        client, rng = Client(server.url, timeout=300), random.Random(number)
        while time.monotonic() < end:
            kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
            start = time.monotonic()
            try:
                right = request(client, kind, rng, G)
            except (Refused, OSError) as error:
                print(f"lost: {kind}: {error}", file=sys.stderr)
                counts.lost += 1
                continue
            with lock:
                counts.seconds[kind].append(time.monotonic() - start)
                counts.wrong += not right
                counts.longest_queue = max([counts.longest_queue, *client.ranks])

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(work, range(clients)))
    return counts


def summary(counts: Counts) -> dict[str, Any]:
    """The numbers of a load."""
    rows: dict[str, Any] = {"lost": counts.lost, "wrong": counts.wrong, "longest_queue": counts.longest_queue}
    for kind, seconds in counts.seconds.items():
        cuts = statistics.quantiles(seconds, n=100) if len(seconds) > 1 else seconds * 99
        rows[kind] = {"requests": len(seconds), "p50": cuts[49], "p95": cuts[94], "p99": cuts[98]}
    return rows


def slider_64(folder: Path) -> Path:
    """An untrained generator of 64 × 64 pixels with the demo's widths, to time the slider with."""
    G = PlainGenerator(GeneratorConfig(64, 3, cbase=4096, cmax=128, z_dim=128, w_dim=128)).eval()
    path = folder / "untrained64.safetensors"
    save_snapshot(path, G, {"kimg": 0.0})
    return path


def slider_times(server: Server, model: str, count: int = 50) -> dict[str, float]:
    """Milliseconds from a move of the slider to the image, for one client, with all of the transport.

    "cpu_ms" is how long the cores work for it, which is what it takes where nothing else works on them.
    """
    client = Client(server.url)
    client.call("psi", "change", model=model)  # loads the model
    times, before = [], server.cpu_seconds
    for i in range(count):
        start = time.perf_counter()
        file = client.call("psi", "change", model=model, psi=round(1 - i / count, 2))[0]
        client.fetch(file)
        times.append(1000 * (time.perf_counter() - start))
    cpu = 1000 * (server.cpu_seconds - before) / count
    return {"p50_ms": statistics.median(times), "p95_ms": statistics.quantiles(times, n=20)[18], "cpu_ms": cpu}


@click.command(cls=cli.Command)
@cli.option(
    "Load", "--clients", type=cli.NumberRanges(), default="1,8,60", help="Numbers of pages at once, one by one."
)
@cli.option(
    "Load", "--seconds", type=cli.Float(1, 3600), default=60.0, help="Seconds of work for each number of pages."
)
@cli.option("Output", "--json", "record", type=cli.ResultFile(), help="Write the measurements as JSON.")
def main(clients: list[int], seconds: float, record: str | None) -> None:
    """Measure app.py with several pages at once: latencies, lost and mixed up requests, and memory."""
    G = Generator.from_pretrained(PRETRAINED / "faces32.safetensors")
    loads: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        model = slider_64(Path(name))
        with serve(Path(name), "--network", str(model)) as server:
            idle = server.memory
            first = Client(server.url)
            shipped = str(PRETRAINED / "faces32.safetensors")
            first.call("walk-make", "click", model=shipped, walk_file=".gif")
            request(first, "kernels", random.Random(0), G)
            one_job = server.memory
            slider = {"64": slider_times(server, model.name), "32": slider_times(server, shipped)}
            print(f"slider: {slider}", flush=True)
        with serve(Path(name)) as server:
            for number in clients:
                loads[str(number)] = {**summary(load(server, number, seconds, G)), "memory": server.memory}
                print(f"{number} clients: {loads[str(number)]}", flush=True)
            faults = server.tracebacks()
    result = {"memory_idle": idle, "memory_one_job": one_job, "slider": slider, "seconds": seconds, "clients": loads}
    write_record(record, "cpu", {**result, "tracebacks": bool(faults)})


if __name__ == "__main__":
    cli.run(main)
