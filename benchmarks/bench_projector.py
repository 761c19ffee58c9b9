"""How well and how fast projector.py finds images again, for any of its settings.

    python benchmarks/bench_projector.py --network demo/runs --try steps=200 --try "steps=200 space=w+"

Each setting has the same targets: the model's own images of seeds, or with --data images that it has not made.
Figures: the PSNR of the results as they are in files, and the steps a second, by the clock and by the CPU's time for
this process, which holds where others work beside it.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import name_in_record, write_record

from latents.perception import PatchFeatures, VGGFeatures
from latents.projection import ProjectionConfig, project, psnr
from media.dataset import ImageDataset
from media.images import grid, save_png, to_float, to_uint8
from models.encoder import load_encoder
from models.sampling import generate_batches
from models.snapshot import find_snapshot, load_generator
from networks.generator import Generator
from torch_utils import cli
from torch_utils.memory import keep_freed_memory

GOAL = 30  # dB


class Settings(click.ParamType):
    """`steps=200 space=w+`: values of ProjectionConfig, and `patches`, their weight beside the pixels."""

    name = "settings"

    def convert(self, value, param, ctx) -> tuple[str, ProjectionConfig, dict[str, float]]:
        if isinstance(value, tuple):
            return value
        defaults = ProjectionConfig()
        kinds: dict[str, Callable[[str], str | float]] = {
            f.name: type(getattr(defaults, f.name)) for f in dataclasses.fields(defaults)
        }
        known: dict[str, Any] = {}  # of the type of each field
        weights: dict[str, float] = {}
        for part in value.split():
            name, _, text = part.partition("=")
            try:
                if name in kinds:
                    known[name] = kinds[name](text)
                elif name == "patches":
                    weights[name] = float(text)
                else:
                    raise ValueError
            except ValueError:
                self.fail(f"{part!r} is none of {', '.join(kinds)}, patches and a value", param, ctx)
        return value, ProjectionConfig(**known), weights


def targets_of(G: Generator, seeds: list[int], data: str | None) -> Tensor:
    """uint8 [N, C, H, W]: images of the seeds, or those of that number in a data set."""
    if data is not None:
        dataset = ImageDataset(data)
        return torch.stack([dataset[seed][0] for seed in seeds])
    classes = torch.tensor([seed % max(G.config.c_dim, 1) for seed in seeds])
    return torch.cat(list(generate_batches(G, seeds, 16, classes)))


@click.command(cls=cli.Command, example="python benchmarks/bench_projector.py --network demo/runs --try steps=200")
@click.option("--network", default="demo/runs", metavar="PATH")
@click.option("--seeds", default="0-15", type=cli.NumberRanges())
@click.option("--data", metavar="PATH", help="Take the images of these numbers from a data set.")
@click.option("--try", "tries", multiple=True, default=("", "space=w+"), type=Settings(), help="Steps, space, lr, …")
@click.option("--encoder-weights", metavar="FILE", help="Compare by this VGG-19; else by pixels and patches.")
@click.option("--device", default="cpu", type=cli.Device())
@click.option("--sheet", metavar="FILE", help="Write the targets, and a row of results for each setting.")
@click.option("--json", "json_path", type=cli.ResultFile(), help="Write the figures there as well.")
def main(
    network: str,
    seeds: list[int],
    data: str | None,
    tries: tuple[tuple[str, ProjectionConfig, dict[str, float]], ...],
    encoder_weights: str | None,
    device: str,
    sheet: str | None,
    json_path: str | None,
) -> None:
    """PSNR and speed of the projector."""
    keep_freed_memory()
    G, info = load_generator(find_snapshot(network), device)
    images = targets_of(G, seeds, data)
    targets = to_float(images.to(device))
    vgg = load_encoder(encoder_weights, device) if encoder_weights else None
    print(
        f"{len(seeds)} images of {data or 'the model'}, {G.config.resolution}², {info['kimg']:g} kimg, {device}, ",
        end="",
    )
    print(f"{torch.get_num_threads()} threads, by {'VGG-19' if vgg else 'pixels and patches'}")
    print(f"{'':34}{'PSNR min':>9}{'quartile':>9}{'median':>8}{'max':>7}{f'≥ {GOAL} dB':>9}{'steps/s':>9}{'CPU':>8}")
    rows, projected = [], [images]
    for text, config, weights in tries:
        features = VGGFeatures(vgg) if vgg else PatchFeatures(**weights)
        clock, cpu = time.perf_counter(), time.process_time()
        found = project(G, targets, features, config)
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
        projected.append(to_uint8(found.images).cpu())
        values = sorted(psnr(to_float(projected[-1]), to_float(images)).tolist())
        row = {
            "settings": text,
            "psnr": values,
            "found": sum(value >= GOAL for value in values),
            "steps_per_s": config.steps / clock,
            "steps_per_cpu_s": config.steps / cpu,
        }
        rows.append(row)
        print(
            f"{text or 'defaults':34}{values[0]:9.1f}{values[len(values) // 4]:9.1f}{statistics.median(values):8.1f}"
            f"{values[-1]:7.1f}{row['found']:>5}/{len(values)}{row['steps_per_s']:9.2f}{row['steps_per_cpu_s']:8.2f}",
            flush=True,
        )
    if sheet:
        save_png(grid(torch.cat(projected), len(seeds)), sheet)
    write_record(json_path, device, {"data": data and name_in_record(data), "kimg": info["kimg"], "rows": rows})


if __name__ == "__main__":
    cli.run(main)
