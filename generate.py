"""Generates images from seeds, mixes of styles, videos, and views of kernels. `python generate.py --seeds 0-99`"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import click
from torch import Tensor
from tqdm import tqdm

from latents import cli as latents_cli
from latents import kernel_views, sheets, walks
from latents.cli import GridSize, Model, ModelOptions, Numbers, collect, in_turn, open_model, sheet_name
from latents.codes import Codes, fingerprint, generate_codes, load_codes
from latents.directions import (
    METHODS,
    Directions,
    Method,
    check_numbers,
    edit_sheet,
    find_directions,
    generate_edits,
    load_directions,
    sample_w,
    save_directions,
)
from latents.mixing import Part, check_layers, generate_mixes, mixing_sheet
from media.animation import check_animation, check_side, write_animation
from media.images import preview_grid, save_png, write_pngs
from models.sampling import generate_batches, images_of
from torch_utils import cli
from torch_utils.errors import UserError, numbers_text, plural, show
from torch_utils.files import write_file
from torch_utils.sizes import width_and_height

VIDEO_SIDE = 128  # pixels that small images are enlarged to in videos

IMAGES = """\
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
python generate.py video --network pretrained/faces32.safetensors --seeds 5 --class 0-5 --out out/classes.mp4
"""
KERNELS = """\
python generate.py kernels --seed 3
python generate.py kernels --compare 3,4 --layer 2-5
"""
DIRECTIONS = """\
python generate.py directions --seeds 0,1
python generate.py directions --edit out/directions-pca.npz --direction 0-2 --seeds 0-3 --amount -3,0,3
"""


@click.group(cls=cli.Group, default="images")
def main() -> None:
    """Generate images: a PNG file for each seed, or one sheet with --grid. Other commands are listed at the end."""


# --- images ---------------------------------------------------------------------------------------------------------


@main.command("images", example=IMAGES)
@latents_cli.seeds_option("--seeds", help="Seeds and ranges of seeds, such as 0-99,200,3.")
@cli.option(
    "Images", "--w", "code_file", metavar="FILE", help="A projected_w.npz of projector.py, in place of --seeds."
)
@latents_cli.with_model_options(
    "const: the model's constant noise, or the noise in --w. random: drawn from each seed. none: no noise.",
    *("const", "random", "none"),
)
@cli.option(
    "Output",
    "--grid",
    "grid_size",
    type=GridSize(),
    help="Write one sheet of so many columns and rows, such as 8x4, in place of single files.",
)
@cli.outdir_option()
def images_command(
    seeds: list[int] | None,
    code_file: str | None,
    options: ModelOptions,
    grid_size: tuple[int, int] | None,
    outdir: str,
) -> None:
    """Generate images: a PNG file for each seed, or one sheet with --grid."""
    if (seeds is None) == (code_file is None):
        both = "" if seeds is None else ", not with both"
        raise UserError(f"name the images with --seeds, e.g. 0-99, or with --w FILE{both} (see --help)")
    names = [] if seeds is None else latents_cli.image_names(seeds, options.labels)
    if names and not grid_size:
        latents_cli.check_names(names)
    model = open_model(options)
    if code_file is not None:
        codes = read_codes(code_file, model, options.noise_mode)
        names = [f"w{number:04d}" for number in range(len(codes.ws))]
    else:
        assert seeds is not None
        shares = model.shares(seeds)
        centers = model.centers(shares)

    def images(part: slice = slice(None)) -> Iterator[Tensor]:
        if seeds is None:
            return generate_codes(model.G, codes[part], model.batch, model.psi, options.noise_mode)
        toward = None if centers is None else centers[part]
        return generate_batches(model.G, seeds[part], model.batch, shares[part], model.psi, options.noise_mode, toward)

    if grid_size and len(names) > grid_size[0] * grid_size[1]:
        raise UserError(f"--grid {grid_size[0]}x{grid_size[1]} has no room for {len(names)} images; take a larger one")
    if grid_size:
        sheets.check_grid(len(names), grid_size[0], model.G.config.resolution)
    folder = cli.writable_folder(outdir)
    model.announce()
    if grid_size:
        path = folder / f"{latents_cli.images_sheet_name(seeds, len(names), options)}.png"
        save_png(preview_grid(collect(images(), len(names)), min(grid_size[0], len(names))), path)
        show(path)
        return
    paths = [folder / f"{name}.png" for name in names]
    with tqdm(total=len(paths), unit="image", disable=not sys.stderr.isatty()) as bar:
        for count in write_pngs(images, paths, model.batch, model.G.w_avg.device):
            bar.update(count)
    show(f"{plural(len(names), 'image')} in {folder.resolve()}")


def read_codes(file: str, model: Model, noise_mode: str) -> Codes:
    """The latents of --w. Raises UserError if an option does not apply to them."""
    if model.classes is not None or model.labels is not None:
        given = "--label" if model.classes is None else "--class"
        raise UserError(f"{given} applies to --seeds; the latents of --w have their labels in them; leave it out")
    if model.trunc_class:
        raise UserError("--trunc-class applies to --seeds; the class of the latents of --w is not known; leave it out")
    if noise_mode == "random":
        raise UserError("--noise-mode random draws noise from --seeds; take const or none with --w")
    codes = load_codes(file, model.G)
    model.compare_origin(file, codes.about.get("fingerprint"))
    return codes


# --- style mixing ---------------------------------------------------------------------------------------------------


@main.command("mix", example=MIX)
@latents_cli.seeds_option("--rows", required=True, help="Seeds of the rows, whose images are changed.")
@latents_cli.seeds_option("--cols", required=True, help="Seeds of the columns, from which the change is taken.")
@latents_cli.model_options
@latents_cli.layers_option()
@latents_cli.part_option()
@cli.outdir_option()
@latents_cli.scale_option(sheets.MIN_SIDE)
def mix_command(
    rows: list[int], cols: list[int], options: ModelOptions, layers: list[int] | None, part: Part, outdir: str,
    scale: int | None,
) -> None:  # fmt: skip
    """Mix styles: a sheet of the rows' images with the styles of the columns.

    --part structure replaces only the depthwise kernels, channels the pointwise kernels, bias the biases.
    """
    model = open_model(options)
    config = model.G.config
    chosen = check_layers(config, layers, part)
    scale = scale or sheets.enlargement(config.resolution)
    width, height = (scale * side for side in width_and_height(config.resolution))
    sheets.check_size(width * (len(cols) + 1), height * (len(rows) + 1))
    folder = cli.writable_folder(outdir)
    model.announce()

    seeds = [*rows, *cols]
    ws = model.ws(seeds)
    own = collect(images_of(model.G, ws, options.noise_mode, model.batch), len(seeds))
    pairs = generate_mixes(model.G, ws[: len(rows)], ws[len(rows) :], chosen, part, options.noise_mode, model.batch)
    mixed = collect(pairs, len(rows) * len(cols))
    name = f"mix-{latents_cli.seeds_name(rows)}-{latents_cli.seeds_name(cols)}"
    path = folder / f"{sheet_name(name, part, layers, options.labels)}.png"
    title = f"rows, with the columns' {'style' if part == 'all' else part} in layers {numbers_text(chosen)}"
    sheets.save_sheet(mixing_sheet(own, mixed, rows, cols, title, scale), path)
    show(path)


# --- videos ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WalkOptions:
    """Where a walk goes, and what follows it."""

    space: walks.Space
    interpolation: walks.Interpolation
    layers: list[int] | None
    part: Part


@dataclass(frozen=True)
class VideoOptions:
    """The file of a video."""

    out: str
    seconds: float | None
    fps: float
    cells: tuple[int, int]
    scale: int | None


@main.command("video", example=VIDEO)
@latents_cli.seeds_option(
    "--seeds", required=True, help="Seeds, such as 0-7, whose latents the walk passes through before it returns."
)
@latents_cli.model_options
@cli.option("Walk", "--space", type=click.Choice(["w", "z"]), default="w", help="Space in which the walk goes.")
@cli.option(
    "Walk",
    "--interp",
    "interpolation",
    type=click.Choice(walks.INTERPOLATIONS),
    default="spline",
    help="spline: smooth, also at the seeds. slerp: along arcs, which suits z. linear: straight from seed to seed.",
)
@latents_cli.layers_option()
@latents_cli.part_option()
@cli.option(
    "Output",
    "--out",
    default="out/walk.mp4",
    help="File of the video: .mp4, .m4v, .mov, .mkv, .gif, .webp or .apng. Only .webp and .apng can be transparent.",
)
@cli.option(
    "Output", "--seconds", type=cli.Float(0.1, 3600), help="Length of the video.  [default: one second for each seed]"
)
@cli.option("Output", "--fps", type=cli.Float(1, 120), default=30.0, help="Frames per second.")
@cli.option(
    "Output",
    "--grid",
    "cells",
    type=GridSize(),
    default="1x1",
    help="Columns and rows, such as 3x2, of cells with the same walk; each starts one seed later than the cell before.",
)
@latents_cli.scale_option(VIDEO_SIDE)
@cli.gather(WalkOptions, "walk")
@cli.gather(VideoOptions, "video")
def video_command(seeds: list[int], options: ModelOptions, walk: WalkOptions, video: VideoOptions) -> None:
    """Make a video of a closed walk through latents.

    It can be repeated without a jump. With --layers or --part, only these follow the walk; all else stays as it is for
    the first seed.
    """
    check_animation(video.out, video.fps)
    seeds = in_turn(seeds, len(options.labels))
    count = round((video.seconds or len(seeds)) * video.fps)
    check_walk(seeds, count, video)
    model = open_model(options)
    chosen = check_layers(model.G.config, walk.layers, walk.part)
    scale = video.scale or sheets.enlargement(model.G.config.resolution, VIDEO_SIDE)
    resolution = model.G.config.resolution
    width, height = (n * scale * side for n, side in zip(video.cells, width_and_height(resolution), strict=True))
    sheets.check_size(width, height)
    check_side(video.out, max(width, height), "use a smaller --grid or --scale")
    cli.writable_file(video.out, "--out")
    model.announce()

    z, c = model.zc(seeds)
    frames = walks.frames(
        model.G,
        walks.w_walk(model.G, z, c, walk.space, walk.interpolation),
        count,
        len(seeds),
        cells=video.cells,
        psi=model.psi,
        layers=chosen,
        part=walk.part,
        noise=options.noise_mode,
        batch=model.batch,
        scale=scale,
        centers=model.centers(c),
    )
    with tqdm(frames, total=count, unit="frame", disable=not sys.stderr.isatty()) as bar:
        write_animation(video.out, iter(bar), count, video.fps)
    length = count / video.fps
    show(f"{video.out}: {plural(count, 'frame')}, {length:g} second{'s' * (length != 1)}")


def check_walk(seeds: list[int], count: int, video: VideoOptions) -> None:
    """Raises UserError if a walk through the seeds in `count` frames makes no sense."""
    columns, rows = video.cells
    if len(seeds) < 2:
        raise UserError("a walk needs two seeds, or two classes with --class; write e.g. --seeds 0-7")
    if columns * rows > len(seeds):
        raise UserError(
            f"--grid {columns}x{rows} has more cells than there are seeds ({len(seeds)}), so that cells would repeat; "
            "take a smaller one"
        )
    if count < 2:
        raise UserError(
            f"--seconds {video.seconds:g} at --fps {video.fps:g} is {plural(count, 'frame')}; take two or more"
        )


# --- kernels --------------------------------------------------------------------------------------------------------


@main.command("kernels", example=KERNELS)
@cli.option("Images", "--seed", type=cli.Integer(0, 10**18 - 1), help="Seed of the latent whose kernels are shown.")
@cli.option("Images", "--compare", type=cli.NumberRanges(), help="Two seeds, such as 3,4, whose kernels are compared.")
@latents_cli.model_options
@latents_cli.layers_option("--layer", "--layers", use="show")
@cli.outdir_option()
def kernels_command(
    seed: int | None, compare: list[int] | None, options: ModelOptions, layers: list[int] | None, outdir: str
) -> None:
    """Show the kernels that a latent predicts, as a PNG sheet and an HTML page.

    There is a row for each layer. Structure is the depthwise kernels, channels the pointwise kernels.
    """
    if (seed is None) == (compare is None):
        raise UserError("name one seed with --seed, or two with --compare 3,4")
    if compare is not None and len(compare) != 2:
        raise UserError(f"--compare takes two seeds, not {len(compare)}; write e.g. --compare 3,4")
    seeds = compare or [seed or 0]
    model = open_model(options)
    chosen = check_layers(model.G.config, layers, "channels", "--layer")
    folder = cli.writable_folder(outdir)
    model.announce()

    names = [f"seed {number}" for number in seeds]
    shown = kernel_views.kernel_views(model.G, model.ws(seeds), names, chosen, options.noise_mode)
    name = f"kernels-{'-'.join(f'{number:04d}' for number in seeds)}"
    path = folder / f"{sheet_name(name, layers=layers, labels=options.labels)}.png"
    sheets.save_sheet(kernel_views.kernel_sheet(shown), path)
    write_file(path.with_suffix(".html"), kernel_views.kernel_page(shown).encode())
    show(path)
    show(path.with_suffix(".html"))


# --- directions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DirectionOptions:
    """Which directions are found or read, and what of them is shown."""

    method: Method | Literal["both"] | None
    count: int | None
    edit: str | None
    numbers: list[int] | None
    amounts: tuple[float, ...]
    layers: list[int] | None
    part: Part


@main.command("directions", example=DIRECTIONS)
@latents_cli.seeds_option("--seeds", default="0", help="Seeds of the images that are moved along the directions.")
@latents_cli.model_options
@cli.option(
    "Directions",
    "--method",
    type=click.Choice([*METHODS, "both"]),
    help="pca: along which w varies most. sefa: along which the predicted kernels change most.  [default: both]",
)
@cli.option(
    "Directions", "--count", type=cli.Integer(1, 512), help="Number of directions to find and save.  [default: 8]"
)
@cli.option(
    "Directions", "--edit", metavar="FILE", help="Use the directions of an .npz file that this command has written."
)
@cli.option(
    "Directions",
    "--direction",
    "numbers",
    type=cli.NumberRanges(),
    help="Directions to show, such as 0-2.  [default: all; with --edit the first]",
)
@cli.option(
    "Directions",
    "--amount",
    "amounts",
    type=Numbers(-1000, 1000),
    default="-3,-1.5,0,1.5,3",
    help="Distances to move by, in standard deviations of w along the direction.",
)
@latents_cli.layers_option()
@latents_cli.part_option()
@cli.outdir_option()
@latents_cli.scale_option(sheets.MIN_SIDE)
@cli.gather(DirectionOptions, "choice")
def directions_command(
    seeds: list[int], options: ModelOptions, choice: DirectionOptions, outdir: str, scale: int | None
) -> None:
    """Find the main directions of w, or edit images along those of a file.

    The directions are shown on sheets and saved as .npz files. pca is GANSpace; sefa is SeFa in closed form, for the
    kernels in --layers and --part. With --edit, these two options replace what the file says.
    """
    if choice.edit and (choice.method or choice.count):
        raise UserError("--method and --count find new directions, but --edit uses those of a file; leave them out")
    model = open_model(options)
    found = read_directions(model, choice) if choice.edit else new_directions(model, choice)
    folder = cli.writable_folder(outdir)
    model.announce()

    scale = scale or sheets.enlargement(model.G.config.resolution)
    width, height = (scale * side for side in width_and_height(model.G.config.resolution))
    ws = model.ws(seeds)
    for name, directions in found.items():
        numbers = check_numbers(directions, choice.numbers or ([0] if choice.edit else None))
        rows, columns = len(seeds) * len(numbers), len(choice.amounts)
        sheets.check_size(width * columns, height * rows)
        edits = generate_edits(model.G, ws, directions, numbers, choice.amounts, options.noise_mode, model.batch)
        images = collect(edits, rows * columns)
        sheet = edit_sheet(images, directions, numbers, choice.amounts, seeds, directions.title, scale)
        path = folder / f"{sheet_name(name, choice.part, choice.layers, options.labels)}.png"
        sheets.save_sheet(sheet, path)
        show(path)
        if not choice.edit:
            file = folder / f"{sheet_name(name, choice.part, choice.layers)}.npz"
            save_directions(file, directions)
            show(file)


def new_directions(model: Model, choice: DirectionOptions) -> dict[str, Directions]:
    """Directions by the chosen methods, under the names of their files."""
    layers = check_layers(model.G.config, choice.layers, choice.part)
    methods = METHODS if choice.method is None or choice.method == "both" else [choice.method]
    found = find_directions(model.G, sample_w(model.G), methods, choice.count or 8, layers, choice.part)
    return {name: replace(directions, origin=fingerprint(model.path)) for name, directions in found.items()}


def read_directions(model: Model, choice: DirectionOptions) -> dict[str, Directions]:
    """The directions of --edit, under the name of the sheet; --layers and --part replace what the file says."""
    assert choice.edit is not None
    read = load_directions(choice.edit, model.G)
    part = choice.part if cli.typed("part") else read.part
    layers = tuple(check_layers(model.G.config, choice.layers or read.layers, part))
    model.compare_origin(choice.edit, read.origin)
    return {f"edit-{Path(choice.edit).stem}": replace(read, layers=layers, part=part)}


if __name__ == "__main__":
    cli.run(main)
