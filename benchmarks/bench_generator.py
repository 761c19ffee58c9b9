"""The generator's size and speed, each modulation beside `modconv` in the same run.

    python benchmarks/bench_generator.py --resolution 256

The figures are medians over rounds in which every modulation has its turn, so that the ratios hold when the machine
drifts. The floor is the time that the multiply-adds of all convolutions take at the rate of a large matrix product.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from networks.generator import Generator, GeneratorConfig, SynthesisLayer
from torch_utils import cli
from torch_utils.files import atomic_write
from torch_utils.memory import keep_freed_memory


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """The time of one call, with all that it started on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matmul_rate(device: torch.device, size: int = 2048) -> float:
    """Multiply-adds a second of a float32 matrix product."""
    a = torch.randn(size, size, device=device)
    return size**3 / min(seconds(lambda: a @ a, device) for _ in range(6))


def multiply_adds(config: GeneratorConfig) -> int:
    """Of one picture's convolutions: the adaptive ones and the learned ones, without ToRGB and the resampling."""
    total = 0
    for layer in Generator(config).synthesis.layers():
        out, inside = layer.weight.shape[:2]
        resolution = layer.resolution // (2 if layer.up else 1)  # of the layer's input
        total += resolution**2 * out * inside * 9
        total += resolution**2 * adaptive_taps(config, layer, inside)
    return total


def adaptive_taps(config: GeneratorConfig, layer: SynthesisLayer, channels: int) -> int:
    if config.modulation != "adaconv":
        return channels
    return channels * config.group(channels) * config.kernel_size**2


@click.command(cls=cli.Command, example="python benchmarks/bench_generator.py --resolution 256 --batch 8")
@click.option("--resolution", default=256)
@click.option("--batch", default=8, type=click.IntRange(1))
@click.option("--cbase", default=16384)
@click.option("--cmax", default=512)
@click.option("--rounds", default=3, type=click.IntRange(1))
@click.option("--device", default="cpu", type=cli.Device())
@click.option("--fresh-memory", is_flag=True, help="Let every result come fresh from the system.")
@click.option("--json", "json_path", metavar="FILE", help="Write the figures there as well.")
def main(
    resolution: int, batch: int, cbase: int, cmax: int, rounds: int, device: str, fresh_memory: bool, json_path
) -> None:
    """Parameters and time per picture of the generator, for each modulation."""
    if not fresh_memory:
        keep_freed_memory()  # as generate.py does
    place = torch.device(device)
    modulations = {"modconv": "demod", "adain": "instance", "adaconv": "demod"}
    configs = {
        m: GeneratorConfig(resolution, cbase=cbase, cmax=cmax, modulation=m, norm=n) for m, n in modulations.items()
    }
    generators = {m: Generator(config).to(place).eval().requires_grad_(False) for m, config in configs.items()}
    rate = matmul_rate(place)
    z = {n: torch.randn(n, 512, device=place) for n in (1, batch)}
    times: dict[tuple[str, int], list[float]] = {(m, n): [] for m in modulations for n in z}
    for i in range(rounds + 1):  # the first is the warm-up
        for (m, n), values in times.items():
            elapsed = seconds(lambda m=m, n=n: generators[m](z[n], noise="const"), place) / n
            if i:
                values.append(elapsed)

    rows = []
    for m, G in generators.items():
        adds = multiply_adds(configs[m])
        row = {"modulation": m, "parameters": sum(p.numel() for p in G.parameters()), "gmac": adds / 1e9}
        for n in z:
            row[f"s_per_picture_batch{n}"] = statistics.median(times[m, n])
            row[f"vs_modconv_batch{n}"] = row[f"s_per_picture_batch{n}"] / statistics.median(times["modconv", n])
            row[f"vs_floor_batch{n}"] = row[f"s_per_picture_batch{n}"] * rate / adds
        rows.append(row)

    print(f"{resolution}², cbase {cbase}, cmax {cmax}, {device}, {torch.get_num_threads()} threads, float32; ", end="")
    print(f"matrix product {2 * rate / 1e9:.0f} GFLOP/s")
    print(
        f"{'':10}{'parameters':>12}{'GMAC':>8}"
        + "".join(f"{f'batch {n}: s/pic':>18}{'÷ modconv':>11}{'÷ floor':>9}" for n in z)
    )
    for row in rows:
        line = f"{row['modulation']:10}{row['parameters']:12,}{row['gmac']:8.2f}"
        for n in z:
            line += f"{row[f's_per_picture_batch{n}']:18.3f}"
            line += f"{row[f'vs_modconv_batch{n}']:11.2f}{row[f'vs_floor_batch{n}']:9.2f}"
        print(line)
    if json_path:
        record = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "resolution": resolution,
            "rows": rows,
        }
        with atomic_write(json_path) as file:
            file.write(json.dumps(record, indent=2).encode())


if __name__ == "__main__":
    cli.run(main)
