"""Pictures from seeds, or from codes that were found. `python generate.py --seeds 0-99`"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click
import torch
from torch import Tensor
from tqdm import tqdm

from latents.codes import Codes, fingerprint, generate_codes, load_codes
from networks.generator import Generator
from torch_utils import cli
from torch_utils.memory import keep_freed_memory
from training.checkpoint import find_snapshot, load_generator
from training.images import grid, save_png
from training.sampling import check_class, generate_batches

EXAMPLE = """\
python generate.py --seeds 0-99
python generate.py --network runs/00003-ffhq-adaconv-auto8 --seeds 0-63 --grid 8x8 --trunc 0.7
python generate.py --w out/projected_w.npz
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
@cli.option("Pictures", "--seeds", type=cli.NumberRanges(), help="Seeds and ranges of seeds, e.g. 0-99,200,3.")
@cli.option("Pictures", "--w", "code_file", metavar="FILE", help="In their place, codes that projector.py has found.")
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
    help="const: the model's fixed noise, or that of --w; random: drawn from each seed.",
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
    seeds: list[int] | None,
    code_file: str | None,
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
    if (seeds is None) == (code_file is None):
        raise cli.UserError("name the pictures with --seeds, e.g. 0-99, or with --w FILE (see --help)")
    path = find_snapshot(network or "runs")
    G, info = load_generator(path, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if code_file is not None:
        codes = read_codes(code_file, G, path, class_number, noise_mode)
        names = [f"w{number:04d}" for number in range(len(codes.ws))]
        batches = generate_codes(G, codes, batch, trunc, noise_mode)
    else:
        names = [f"seed{seed:04d}" for seed in seeds]
        batches = generate_batches(G, seeds, batch, classes_of(seeds, class_number, G, path), trunc, noise_mode)
    if grid_size and len(names) > grid_size[0] * grid_size[1]:
        raise cli.UserError(
            f"--grid {grid_size[0]}x{grid_size[1]} has no room for {len(names)} pictures; take a larger one"
        )
    folder = cli.writable_folder(outdir)
    print(f"network: {path} ({info['kimg']:g} kimg)", file=sys.stderr)

    pictures = []
    bar = tqdm(total=len(names), unit="pic", disable=not sys.stderr.isatty())
    for start, images in zip(range(0, len(names), batch), batches, strict=True):
        if grid_size:
            pictures.append(images)
        else:
            for name, image in zip(names[start:], images, strict=False):
                save_png(image, folder / f"{name}.png")
        bar.update(len(images))
    bar.close()
    if grid_size:
        kind = "seeds" if code_file is None else "w"
        first, last = (name.removeprefix(kind.removesuffix("s")) for name in (names[0], names[-1]))
        sheet = folder / f"{kind}{first}-{last}.png"
        save_png(grid(torch.cat(pictures), min(grid_size[0], len(names))), sheet)
        print(sheet)
    else:
        print(f"{len(names)} pictures in {Path(folder).resolve()}")


def classes_of(seeds: list[int], number: int | None, G: Generator, path: Path) -> Tensor | None:
    """The class of each picture; None for a model without classes."""
    check_class(number, G.config.c_dim, path)
    if not G.config.c_dim:
        return None
    return torch.tensor([seed % G.config.c_dim if number is None else number for seed in seeds])


def read_codes(file: str, G: Generator, path: Path, class_number: int | None, noise_mode: str) -> Codes:
    """The codes of --w. Raises UserError where an option does not go with them."""
    if class_number is not None:
        raise cli.UserError("--class goes with --seeds; codes of --w have theirs in them")
    if noise_mode == "random":
        raise cli.UserError("--noise-mode random is drawn from --seeds; take const or none with --w")
    codes = load_codes(file, G)
    if codes.about.get("fingerprint") not in (None, fingerprint(path)):
        print(f"note: the codes of {file} were found for another model than {path}", file=sys.stderr)
    return codes


if __name__ == "__main__":
    cli.run(main)
