"""Images from seeds or found codes, and mixes, walks, views. `python generate.py --seeds 0-99`"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
from click.core import ParameterSource
from torch import Tensor
from tqdm import tqdm

from latents import cli as shared
from latents import kernel_views, sheets, walks
from latents.cli import GridSize, Model, Numbers, collected, numbers_name, open_model
from latents.codes import Codes, fingerprint, generate_codes, load_codes
from latents.directions import (
    METHODS,
    check_numbers,
    edit_sheet,
    edits,
    find_directions,
    load_directions,
    sample_w,
    save_directions,
)
from latents.mixing import check_layers, mixes, mixing_sheet, numbers_text
from media.animation import check_animation, check_side, write_animation
from media.images import grid, save_png, write_pngs
from models.sampling import generate_batches, images_of
from torch_utils import cli
from torch_utils.errors import UserError
from torch_utils.files import write_file

EXAMPLE = """\
python generate.py --seeds 0-99
python generate.py --network runs/00003-ffhq-adaconv-auto8 --seeds 0-63 --grid 8x8 --trunc 0.7
python generate.py --w out/projected_w.npz
"""
MIX = """\
python generate.py mix --rows 1-4 --cols 10-16 --layers 0-3
python generate.py mix --rows 1-4 --cols 10-16 --part structure
"""
VIDEO = """\
python generate.py video --seeds 0-7 --seconds 8 --grid 3x2
python generate.py video --seeds 0-7 --part channels --layers 4-20 --out out/channels.gif
python generate.py video --seeds 5 --class 0-5 --out out/classes.mp4
"""
KERNELS = """\
python generate.py kernels --seed 3
python generate.py kernels --compare 3,4 --layer 2-5
"""
DIRECTIONS = """\
python generate.py directions --seeds 0,1
python generate.py directions --edit out/directions-pca.npz --direction 0-2 --seeds 0-3 --amount -3,0,3
"""


def seeds_option(*names: str, **settings):
    return cli.option("Images", *names, type=cli.NumberRanges(), **settings)


scale_option = cli.option(
    "Output", "--scale", type=click.IntRange(1, 64), help="Enlarge images so many times.  [default: to 64 pixels]"
)


@click.command(cls=cli.Script, example=EXAMPLE)
@shared.network
@seeds_option("--seeds", help="Seeds and ranges of seeds, e.g. 0-99,200,3.")
@cli.option("Images", "--w", "code_file", metavar="FILE", help="In their place, codes that projector.py has found.")
@shared.trunc
@shared.classes
@cli.option(
    "Images",
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
@shared.batch
@shared.device
def main(network, seeds, code_file, trunc, classes, noise_mode, outdir, grid_size, batch, device) -> None:
    """Generate images: seed0000.png, … , or one sheet with --grid."""
    if (seeds is None) == (code_file is None):
        both = "" if seeds is None else ", not with both"
        raise UserError(f"name the images with --seeds, e.g. 0-99, or with --w FILE{both} (see --help)")
    model = open_model(network, device, trunc, classes, batch)
    if code_file is not None:
        codes = read_codes(code_file, model, noise_mode)
        names = [f"w{number:04d}" for number in range(len(codes.ws))]
    else:
        names = [f"seed{seed:04d}" for seed in seeds]
        shares = model.shares(seeds)

    def images(part: slice = slice(None)) -> Iterator[Tensor]:
        if code_file is not None:
            return generate_codes(model.G, codes[part], model.batch, model.psi, noise_mode)
        return generate_batches(model.G, seeds[part], model.batch, shares[part], model.psi, noise_mode)

    if grid_size and len(names) > grid_size[0] * grid_size[1]:
        raise UserError(f"--grid {grid_size[0]}x{grid_size[1]} has no room for {len(names)} images; take a larger one")
    folder = cli.writable_folder(outdir)
    model.announce()

    if grid_size:
        numbers = numbers_name(range(len(names)) if seeds is None else seeds, single=False)
        sheet = folder / f"{'w' if seeds is None else 'seeds'}{numbers}.png"
        save_png(grid(collected(images(), len(names)), min(grid_size[0], len(names))), sheet)
        print(sheet)
        return
    paths = [folder / f"{name}.png" for name in names]
    with tqdm(total=len(paths), unit="pic", disable=not sys.stderr.isatty()) as bar:
        for count in write_pngs(images, paths, model.batch, model.G.w_avg.device):
            bar.update(count)
    print(f"{len(names)} images in {Path(folder).resolve()}")


def read_codes(file: str, model: Model, noise_mode: str) -> Codes:
    """The codes of --w. Raises UserError where an option does not go with them."""
    if model.classes is not None:
        raise UserError("--class goes with --seeds; codes of --w have theirs in them")
    if noise_mode == "random":
        raise UserError("--noise-mode random is drawn from --seeds; take const or none with --w")
    codes = load_codes(file, model.G)
    if codes.about.get("fingerprint") not in (None, fingerprint(model.path)):
        print(f"note: the codes of {file} were found for another model than {model.path}", file=sys.stderr)
    return codes


@main.command("mix", example=MIX)
@seeds_option("--rows", required=True, help="Seeds of the rows, which keep what is not taken from the columns.")
@seeds_option("--cols", required=True, help="Seeds of the columns.")
@shared.common
@shared.layers
@shared.part
@shared.outdir
@scale_option
def mix_command(rows, cols, network, trunc, classes, noise_mode, batch, device, layers, part, outdir, scale) -> None:
    """A sheet of style mixes: each row's image with layers, or a part of them, of each column's.

    --part structure takes the depthwise kernels only, channels the pointwise kernels, bias the biases.
    """
    model = open_model(network, device, trunc, classes, batch)
    chosen = check_layers(model.G.config, layers, part)
    scale = scale or sheets.enlargement(model.G.config.resolution)
    side = scale * model.G.config.resolution
    sheets.check_size(side * (len(cols) + 1), side * (len(rows) + 1))
    folder = cli.writable_folder(outdir)
    model.announce()

    seeds = [*rows, *cols]
    ws = model.ws(seeds)
    own = collected(images_of(model.G, ws, noise_mode, model.batch), len(seeds))
    pairs = mixes(model.G, ws[: len(rows)], ws[len(rows) :], chosen, part, noise_mode, model.batch)
    mixed = collected(pairs, len(rows) * len(cols))
    path = folder / f"mix-{numbers_name(rows)}-{numbers_name(cols)}-{part}.png"
    title = f"rows, with the columns' {'codes' if part == 'all' else part} in layers {numbers_text(chosen)}"
    sheets.save_sheet(mixing_sheet(own, mixed, rows, cols, title, scale), path)
    print(path)


@main.command("video", example=VIDEO)
@seeds_option("--seeds", required=True, help="The walk goes through their codes and back to the first.")
@shared.common
@cli.option("Walk", "--space", type=click.Choice(["w", "z"]), default="w", help="Where the walk goes.")
@cli.option(
    "Walk",
    "--interp",
    "interpolation",
    type=click.Choice(walks.INTERPOLATIONS),
    default="spline",
    help="spline: smooth also at the seeds; slerp: along arcs, for z; linear: straight from seed to seed.",
)
@shared.layers
@shared.part
@cli.option("Output", "--out", default="out/walk.mp4", help=".mp4, .m4v, .mov, .mkv, .gif or .webp.")
@cli.option("Output", "--seconds", type=cli.Float(0.1, 3600), help="Length.  [default: one second for each seed]")
@cli.option("Output", "--fps", type=cli.Float(1, 120), default=30.0, help="Frames a second.")
@cli.option(
    "Output",
    "--grid",
    "cells",
    type=GridSize(),
    default="1x1",
    help="So many columns and rows of walks, each starting a seed later than the one before.",
)
@cli.option(
    "Output", "--scale", type=click.IntRange(1, 64), help="Enlarge images so many times.  [default: to 128 pixels]"
)
def video_command(
    seeds, network, trunc, classes, noise_mode, batch, device, space, interpolation, layers, part,
    out, seconds, fps, cells, scale,
) -> None:  # fmt: skip
    """A closed walk through codes, as a video that can be repeated without a jump.

    With --layers or --part only these move, and everything else stays what the first code says.
    """
    check_animation(out, fps)
    seeds = [seeds[i % len(seeds)] for i in range(max(len(seeds), len(classes or [])))]
    count = round((seconds or len(seeds)) * fps)
    if len(seeds) < 2:
        raise UserError("a walk needs two seeds, or two classes with --class; write e.g. --seeds 0-7")
    if cells[0] * cells[1] > len(seeds):
        raise UserError(
            f"--grid {cells[0]}x{cells[1]} has more places than there are seeds ({len(seeds)}), which would repeat; "
            "take a smaller one"
        )
    if count < 2:
        raise UserError(f"--seconds {seconds:g} at --fps {fps:g} are {count} frames; take two or more")
    model = open_model(network, device, trunc, classes, batch)
    chosen = check_layers(model.G.config, layers, part)
    scale = scale or sheets.enlargement(model.G.config.resolution, 128)
    sides = [n * scale * model.G.config.resolution for n in cells]
    sheets.check_size(*sides)
    check_side(out, max(sides))
    cli.writable_folder(Path(out).parent, "--out")
    model.announce()

    walk = walks.w_walk(model.G, *model.zc(seeds), space, interpolation)
    frames = walks.frames(
        model.G, walk, count, len(seeds), cells=cells, psi=model.psi, layers=chosen, part=part, noise=noise_mode,
        batch=model.batch, scale=scale,
    )  # fmt: skip
    with tqdm(frames, total=count, unit="frame", disable=not sys.stderr.isatty()) as bar:
        write_animation(out, iter(bar), count, fps)
    print(f"{out}: {count} frames, {count / fps:g} seconds")


@main.command("kernels", example=KERNELS)
@cli.option("Images", "--seed", type=click.IntRange(0), help="Whose kernels.")
@cli.option("Images", "--compare", type=cli.NumberRanges(), help="Two seeds, e.g. 3,4: what differs between them.")
@shared.common
@cli.option("Images", "--layer", "layers", type=cli.NumberRanges(), help="Which, e.g. 0-3,5.  [default: all]")
@shared.outdir
def kernels_command(seed, compare, network, trunc, classes, noise_mode, batch, device, layers, outdir) -> None:
    """The kernels that a code predicts, layer by layer, as a PNG sheet and an HTML page.

    Structure is the depthwise kernels, channels the pointwise kernels.
    """
    if (seed is None) == (compare is None):
        raise UserError("name one seed with --seed, or two with --compare 3,4")
    if compare is not None and len(compare) != 2:
        raise UserError(f"--compare takes two seeds, not {len(compare)}; write e.g. --compare 3,4")
    seeds = [seed] if compare is None else compare
    model = open_model(network, device, trunc, classes, batch)
    chosen = check_layers(model.G.config, layers, "channels", "--layer")
    folder = cli.writable_folder(outdir)
    model.announce()

    names = [f"seed {number}" for number in seeds]
    shown = kernel_views.kernel_views(model.G, model.ws(seeds), names, chosen, noise_mode)
    path = folder / f"kernels-{'-'.join(f'{number:04d}' for number in seeds)}.png"
    sheets.save_sheet(kernel_views.kernel_sheet(shown), path)
    write_file(path.with_suffix(".html"), kernel_views.kernel_page(shown).encode())
    print(path)
    print(path.with_suffix(".html"))


@main.command("directions", example=DIRECTIONS)
@seeds_option("--seeds", default="0", help="Whose images are shown along the directions.")
@shared.common
@cli.option(
    "Directions",
    "--method",
    "methods",
    type=click.Choice([*METHODS, "both"]),
    help="pca: where w varies; sefa: what moves the predicted kernels most.  [default: both]",
)
@cli.option("Directions", "--count", type=click.IntRange(1, 512), help="How many are kept.  [default: 8]")
@cli.option("Directions", "--edit", metavar="FILE", help="Apply those of an .npz that this command wrote.")
@cli.option(
    "Directions",
    "--direction",
    "numbers",
    type=cli.NumberRanges(),
    help="Which of them are shown, e.g. 0-2.  [default: all; of --edit the first]",
)
@cli.option(
    "Directions",
    "--amount",
    "amounts",
    type=Numbers(-1000, 1000),
    default="-3,-1.5,0,1.5,3",
    help="How far, in standard deviations of w along the direction.",
)
@shared.layers
@shared.part
@shared.outdir
@scale_option
def directions_command(
    seeds, network, trunc, classes, noise_mode, batch, device, methods, count, edit, numbers, amounts, layers, part,
    outdir, scale,
) -> None:  # fmt: skip
    """The main directions of w, as sheets and .npz files; or images edited along those of a file.

    pca is GANSpace's, sefa SeFa's in closed form, of the kernels in --layers and of a --part of them. With --edit,
    either option goes over what the file says.
    """
    if edit and (methods or count):
        raise UserError(
            "--method and --count are for finding directions, --edit applies those of a file; leave them out"
        )
    model = open_model(network, device, trunc, classes, batch)
    if edit:
        kept = load_directions(edit, model.G)
        given = click.get_current_context().get_parameter_source("part") is not ParameterSource.DEFAULT
        part = part if given else kept.part
        kept = replace(kept, layers=tuple(check_layers(model.G.config, layers or kept.layers, part)), part=part)
        found, shown = {f"edit-{Path(edit).stem}": kept}, numbers or [0]
    else:
        chosen = check_layers(model.G.config, layers, part)
        w = sample_w(model.G)
        found = find_directions(
            model.G, w, METHODS if methods in (None, "both") else [methods], count or 8, chosen, part
        )
        shown = numbers
    folder = cli.writable_folder(outdir)
    model.announce()

    scale = scale or sheets.enlargement(model.G.config.resolution)
    ws = model.ws(seeds)
    for name, directions in found.items():
        which = check_numbers(directions, shown)
        side = scale * model.G.config.resolution
        sheets.check_size(side * len(amounts), side * len(seeds) * len(which))
        images = collected(
            edits(model.G, ws, directions, which, amounts, noise_mode, model.batch),
            len(seeds) * len(which) * len(amounts),
        )
        sheet = edit_sheet(images, directions, which, amounts, seeds, directions.title, scale)
        sheets.save_sheet(sheet, folder / f"{name}.png")
        print(folder / f"{name}.png")
        if not edit:
            save_directions(folder / f"{name}.npz", directions)
            print(folder / f"{name}.npz")


if __name__ == "__main__":
    cli.run(main)
