"""The generator's size and speed, each modulation beside `modconv` in the same run.

    python benchmarks/bench_generator.py --resolution 256

The figures are medians over rounds in which every modulation has its turn, so that the ratios hold when the machine
drifts. The floor is the time that the multiply-adds of all convolutions take at the rate of a large matrix product in
the precision that is asked for, which the highest four resolutions have.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from pathlib import Path
from typing import Any, Literal

import click
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import Call, graphed, matmul_rate, peak_gib, seconds, set_precision, working, write_record

from networks.generator import Generator, GeneratorConfig, SynthesisLayer
from torch_utils import cli
from torch_utils.memory import keep_freed_memory
from training.gan import HALF_RESOLUTIONS


def multiply_adds(config: GeneratorConfig) -> int:
    """Of one image's convolutions: the adaptive ones and the learned ones, without ToRGB and the resampling."""
    total = 0
    for layer in Generator(config).synthesis.layers():
        out, inside = layer.weight.shape[:2]
        pixels = math.prod(layer.size) // (4 if layer.up else 1)  # of the layer's input
        total += pixels * out * inside * 9
        total += pixels * adaptive_taps(config, layer, inside)
    return total


def adaptive_taps(config: GeneratorConfig, layer: SynthesisLayer, channels: int) -> int:
    if config.modulation != "adaconv":
        return channels
    return channels * config.group(channels) * config.kernel_size**2


MODULATIONS: dict[Literal["adaconv", "modconv", "adain"], Literal["instance", "demod"]]
MODULATIONS = {"modconv": "demod", "adain": "instance", "adaconv": "demod"}  # with the normalization of each


@click.command(cls=cli.Command, example="python benchmarks/bench_generator.py --resolution 256 --batch 8")
@cli.option("Options", "--resolution", default=256, type=click.IntRange(16, 1024))
@cli.option("Options", "--batch", default=8, type=click.IntRange(1), help="Beside 1.")
@cli.option("Options", "--cbase", default=16384, type=click.IntRange(16))
@cli.option("Options", "--cmax", default=512, type=click.IntRange(1))
@cli.option("Options", "--precision", default="fp32", type=click.Choice(["fp32", "tf32", "bf16", "fp16"]))
@cli.option(
    "Options",
    "--how",
    multiple=True,
    default=("eager",),
    type=click.Choice(["eager", "compile", "graph"]),
    help="As it is, compiled, or as a CUDA graph. May be given again.",
)
@cli.option("Options", "--rounds", default=3, type=click.IntRange(1))
@cli.option("Options", "--device", default="cpu", type=cli.Device())
@cli.option("Options", "--fresh-memory", is_flag=True, help="Let every result come fresh from the system.")
@cli.option("Options", "--json", "json_path", type=cli.ResultFile(), help="Write the figures there as well.")
@torch.no_grad()
def main(
    resolution: int,
    batch: int,
    cbase: int,
    cmax: int,
    precision: str,
    how: tuple[str, ...],
    rounds: int,
    device: str,
    fresh_memory: bool,
    json_path: str | None,
) -> None:
    """Parameters and time per image of the generator, for each modulation."""
    if not fresh_memory:
        keep_freed_memory()  # as generate.py does
    place, dtype = torch.device(device), set_precision(precision)
    configs = {
        m: GeneratorConfig(resolution, cbase=cbase, cmax=cmax, modulation=m, norm=n) for m, n in MODULATIONS.items()
    }
    generators = {m: Generator(config).to(place).eval().requires_grad_(False) for m, config in configs.items()}
    if dtype != torch.float32:
        for G in generators.values():
            for block in G.synthesis.blocks[1:][-HALF_RESOLUTIONS:]:
                block.compute_dtype = dtype
    rate = matmul_rate(place, dtype)
    z = {n: torch.randn(n, 512, device=place) for n in (1, batch)}
    calls: dict[str, Call] = {}
    for m, n, way in itertools.product(MODULATIONS, z, how):
        calls[f"{m} {n} {way}"] = made(way, generators[m], z[n])
    calls = working(calls)
    gib = {name: peak_gib(call, place) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}  # with what calls in turn wait for Python
    for i in range(rounds + 1):  # the first is the warm-up
        for name, call in calls.items():
            elapsed = seconds(call, place)
            if i:
                times[name].append(elapsed)

    rows = []
    for m, way in itertools.product(MODULATIONS, how):
        adds = multiply_adds(configs[m])
        row = {"modulation": m, "how": way, "parameters": sum(p.numel() for p in generators[m].parameters())}
        row["gmac"] = adds / 1e9
        for n in z:
            if (name := f"{m} {n} {way}") in times:
                row[f"s_per_image_batch{n}"] = value = statistics.median(times[name]) / n
                if (first := f"modconv {n} {way}") in times:
                    row[f"vs_modconv_batch{n}"] = value * n / statistics.median(times[first])
                row[f"vs_floor_batch{n}"], row[f"gib_batch{n}"] = value * rate / adds, gib[name]
        rows.append(row)
    print(
        f"{resolution}², cbase {cbase}, cmax {cmax}, {device}, {torch.get_num_threads()} threads, {precision}", end="; "
    )
    print(f"matrix product {2 * rate / 1e9:.0f} GFLOP/s")
    print_table(rows, list(z))
    options = {"resolution": resolution, "batch": batch, "cbase": cbase, "precision": precision}
    write_record(json_path, device, {**options, "gflops": 2 * rate / 1e9, "rows": rows})


def print_table(rows: list[dict[str, Any]], batches: list[int]) -> None:
    header = "".join(f"{f'batch {n}: s/pic':>18}{'÷ modconv':>11}{'÷ floor':>9}" for n in batches)
    print(f"{'':19}{'parameters':>12}{'GMAC':>8}{header}")
    for row in rows:
        line = f"{row['modulation']:10}{row['how']:9}{row['parameters']:12,}{row['gmac']:8.2f}"
        for n in batches:
            values = (row.get(f"{name}_batch{n}", float("nan")) for name in ("s_per_image", "vs_modconv", "vs_floor"))
            line += "{:18.4f}{:11.2f}{:9.2f}".format(*values)
        print(line)


def made(how: str, G: Generator, z: Tensor) -> Call:
    """A call that generates from z as it is, compiled, or as a CUDA graph, which is made with the first call."""
    if how == "compile":
        compiled = torch.compile(G)
        return lambda: compiled(z, noise="const")
    if how == "graph":
        graph: list[Call] = []

        def replay() -> object:
            if not graph:
                graph.append(graphed(lambda: G(z, noise="const")))
            return graph[0]()

        return replay
    return lambda: G(z, noise="const")


if __name__ == "__main__":
    cli.run(main)
