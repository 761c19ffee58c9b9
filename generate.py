"""Pictures from seeds. `python generate.py --seeds 0-99`"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click
import torch
from tqdm import tqdm

from torch_utils import cli
from torch_utils.memory import keep_freed_memory
from training.checkpoint import find_snapshot, load_generator
from training.images import grid, save_png
from training.sampling import generate_batches

EXAMPLE = """\
python generate.py --seeds 0-99
python generate.py --network runs/00003-ffhq-adaconv-auto8 --seeds 0-63 --grid 8x8 --trunc 0.7
"""


class GridSize(click.ParamType):
    """Columns and rows as `8x4`."""

    name = "WxH"

    def convert(self, value, param, ctx) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})", value.lower())
        if match is None:
            self.fail(f"{value!r} is no size; write columns x rows, each up to 9999, e.g. 8x4", param, ctx)
        return int(match[1]), int(match[2])


@click.command(cls=cli.Script, example=EXAMPLE)
@cli.option(
    "Model",
    "--network",
    metavar="PATH",
    help="A snapshot, a run, or a folder of runs.  [default: the newest snapshot under runs]",
)
@cli.option(
    "Pictures", "--seeds", type=cli.NumberRanges(), required=True, help="Seeds and ranges of seeds, e.g. 0-99,200,3."
)
@cli.option(
    "Pictures",
    "--trunc",
    type=cli.Float(-9, 9),
    default=1.0,
    help="Truncation psi: 1 none, towards 0 the mean picture.",
)
@cli.option(
    "Pictures",
    "--class",
    "class_number",
    type=click.IntRange(0),
    help="Class of all pictures.  [default: each seed's own]",
)
@cli.option(
    "Pictures",
    "--noise-mode",
    type=click.Choice(["const", "random", "none"]),
    default="const",
    help="const: the model's fixed noise; random: drawn from each seed.",
)
@cli.option("Output", "--outdir", default="out", help="Where the PNG files go.")
@cli.option(
    "Output",
    "--grid",
    "grid_size",
    type=GridSize(),
    help="One sheet of so many columns and rows instead of single files.",
)
@cli.option(
    "Machine", "--batch", type=click.IntRange(1, 2**16), default=16, help="Pictures at a time; changes no picture."
)
@cli.option("Machine", "--device", type=cli.Device(), help="cpu, cuda or cuda:1.  [default: a GPU if there is one]")
def main(
    network: str | None,
    seeds: list[int],
    trunc: float,
    class_number: int | None,
    noise_mode: str,
    outdir: str,
    grid_size: tuple[int, int] | None,
    batch: int,
    device: str | None,
) -> None:
    """Generate pictures: seed0000.png, … , or one sheet with --grid."""
    keep_freed_memory()
    path = find_snapshot(network or "runs")
    G, info = load_generator(path, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    classes = None
    if G.config.c_dim:
        if class_number is not None and class_number >= G.config.c_dim:
            raise cli.UserError(f"--class {class_number}: the model has the classes 0 to {G.config.c_dim - 1}")
        classes = torch.tensor([seed % G.config.c_dim if class_number is None else class_number for seed in seeds])
    elif class_number is not None:
        raise cli.UserError(f"--class {class_number}: {path} was trained without classes; leave it out")
    if grid_size and len(seeds) > grid_size[0] * grid_size[1]:
        raise cli.UserError(
            f"--grid {grid_size[0]}x{grid_size[1]} has no room for {len(seeds)} seeds; take a larger one"
        )
    folder = cli.writable_folder(outdir)
    print(f"network: {path} ({info['kimg']:g} kimg)", file=sys.stderr)

    pictures = []
    bar = tqdm(total=len(seeds), unit="pic", disable=not sys.stderr.isatty())
    batches = generate_batches(G, seeds, batch, classes, trunc, noise_mode)
    for start, images in zip(range(0, len(seeds), batch), batches, strict=True):
        if grid_size:
            pictures.append(images)
        else:
            for seed, image in zip(seeds[start:], images, strict=False):
                save_png(image, folder / f"seed{seed:04d}.png")
        bar.update(len(images))
    bar.close()
    if grid_size:
        sheet = folder / f"seeds{seeds[0]:04d}-{seeds[-1]:04d}.png"
        save_png(grid(torch.cat(pictures), min(grid_size[0], len(seeds))), sheet)
        print(sheet)
    else:
        print(f"{len(seeds)} pictures in {Path(folder).resolve()}")


if __name__ == "__main__":
    cli.run(main)
