"""What each part of a code carries: how far a mix of one part goes from one image towards another.

    python benchmarks/compare_parts.py --network pretrained/faces32.safetensors

For pairs of seeds a and b, the image of a with a part of b's kernels, m: the share of the way from a to b is
⟨m − a, b − a⟩ / ‖b − a‖², 0 for a's own image and 1 for b's; of the brightness, and of what is left without it, the
colours. ToRGB's scales stay a's; with "all" only the last one's do. Below, how much each layer's kernels vary with the
code: the root mean square distance to their mean, beside that mean's norm.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import write_record

from latents.cli import ModelOptions, open_model
from latents.mixing import Part, check_layers, generate_mix
from torch_utils import cli
from torch_utils.errors import numbers_text

PARTS: tuple[Part, ...] = ("structure", "channels", "all")


def brightness_and_colour(x: Tensor) -> tuple[Tensor, Tensor]:
    """[N, 3, H, W] → its mean over the channels [N, 1, H, W], and the rest [N, 3, H, W]."""
    mean = x.mean(dim=1, keepdim=True)
    return mean, x - mean


def way(m: Tensor, a: Tensor, b: Tensor) -> float:
    """The mean share of the way from a to b that m has gone; each [N, …]."""
    moved, whole = (m - a).flatten(1), (b - a).flatten(1)
    return float((moved * whole).sum() / (whole * whole).sum())


def variation(values: Tensor) -> float:
    """Of kernels [N, …]: the root mean square distance to their mean, in units of its norm."""
    mean = values.mean(dim=0)
    return float((values - mean).flatten(1).norm(dim=1).square().mean().sqrt() / mean.norm())


@click.command(cls=cli.Command, example="python benchmarks/compare_parts.py --network demo/runs")
@cli.option("Options", "--network", default="pretrained/faces32.safetensors", help="A snapshot, or a run.")
@cli.option("Options", "--pairs", default=128, type=click.IntRange(2), help="Of seeds: 0 and 1, 2 and 3, …")
@cli.option("Options", "--device", default="cpu", type=cli.Device())
@cli.option("Options", "--json", "json_path", type=cli.ResultFile(), help="Write the figures there as well.")
@torch.no_grad()
def main(network: str, pairs: int, device: str, json_path: str | None) -> None:
    """How far mixes of one part go, and how much the kernels of each layer vary."""
    model = open_model(ModelOptions(network, device=device))
    G = model.G
    ws = model.ws(range(2 * pairs))
    a_ws, b_ws = ws[::2], ws[1::2]
    a, b = G.synthesis(a_ws), G.synthesis(b_ws)
    every = check_layers(G.config, None, "structure")
    third = -(-len(every) // 3)
    rows = []
    for layers in (every, *(every[i : i + third] for i in range(0, len(every), third))):
        for part in PARTS:
            m = generate_mix(G, a_ws, b_ws, layers, part)
            brightness, colour = (way(*three) for three in zip(*map(brightness_and_colour, (m, a, b)), strict=True))
            rows.append({"layers": numbers_text(layers), "part": part, "brightness": brightness, "colour": colour})
            print(f"layers {rows[-1]['layers']:5}{part:10} brightness {brightness:5.2f}  colour {colour:5.2f}")
    kernels = []
    for number, (layer, own) in enumerate(zip(G.synthesis.layers(), G.synthesis.kernels(ws), strict=True)):
        row: dict[str, float] = {"layer": number, "resolution": max(layer.size)}
        row |= {"structure": variation(own.depthwise), "channels": variation(own.pointwise)}
        kernels.append(row)
        print(f"layer {number} {max(layer.size):4}²  structure varies by {row['structure']:.2f}", end="  ")
        print(f"channels by {row['channels']:.2f}")
    record = {"network": Path(network).name, "kimg": model.kimg, "pairs": pairs, "parts": rows, "kernels": kernels}
    write_record(json_path, device, record)


if __name__ == "__main__":
    cli.run(main)
