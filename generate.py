"""Generates images from seeds, mixes of styles, videos, and views of kernels. `python generate.py --seeds 0-99`"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click
from torch import Tensor
from tqdm import tqdm

from latents import cli as latents_cli
from latents import kernel_views, names, sheets, walks
from latents.cli import GridSize, Model, ModelOptions, Numbers, collect, in_turn, open_model
from latents.codes import generate_codes, join_codes, noise_of
from latents.direction_options import DirectionOptions, new_directions, read_directions
from latents.directions import METHODS, check_numbers, edit_sheet, generate_edits, save_directions
from latents.mixing import Part, check_layers, generate_mixes, mixing_sheet
from latents.names import sheet_name
from latents.paths import VideoOptions, WalkOptions, check_walk, find_path
from latents.start import check_options, codes_option, read_codes
from media.animation import check_animation, check_side, write_animation
from media.images import preview_grid, save_png, write_pngs
from models.sampling import check_seeds, generate_batches
from torch_utils import cli
from torch_utils.errors import UserError, numbers_text, plural, show
from torch_utils.files import write_file
from torch_utils.sizes import width_and_height

VIDEO_SIDE = 128  # pixels that small images are enlarged to in videos

IMAGES = """\
python generate.py --seeds 0-99
python generate.py --network runs/00003-ffhq-adaconv-auto8 --seeds 0-63 --grid 8x8 --trunc 0.7
python generate.py --w out/projected-photo.npz
"""
MIX = """\
python generate.py mix --rows 1-4 --cols 10-16 --layers 0-3
python generate.py mix --rows 1-4 --cols 10-16 --part structure
python generate.py mix --rows-w out/projected-photo.npz --cols 10-16
"""
VIDEO = """\
python generate.py video --seeds 0-7 --seconds 8 --grid 3x2
python generate.py video --seeds 0-7 --part channels --layers 4-6 --out out/channels.gif
python generate.py video --w out/projected-photo.npz --seeds 3 --open --out out/photo-to-3.gif
python generate.py video --network pretrained/faces32.safetensors --seeds 5 --class 0-5 --out out/classes.mp4
"""
KERNELS = """\
python generate.py kernels --seed 3
python generate.py kernels --compare 3,4 --layer 2-5
"""
DIRECTIONS = """\
python generate.py directions --seeds 0,1
python generate.py directions --edit out/directions-pca.npz --direction 0-2 --seeds 0-3 --amount -3,0,3
python generate.py directions --w out/projected-photo.npz
"""


@click.group(cls=cli.Group, default="images")
def main() -> None:
    """Generate images: a PNG file for each seed, or one sheet with --grid. Other commands are listed at the end."""


# --- images ---------------------------------------------------------------------------------------------------------


@main.command("images", example=IMAGES)
@latents_cli.seeds_option("--seeds", help="Seeds and ranges of seeds, such as 0-99,200,3.")
@codes_option("--w", "files", use="in place of --seeds")
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
    files: tuple[str, ...],
    options: ModelOptions,
    grid_size: tuple[int, int] | None,
    outdir: str,
) -> None:
    """Generate images: a PNG file for each seed, or one sheet with --grid."""
    if (seeds is None) != bool(files):
        both = "" if seeds is None else ", not with both"
        raise UserError(f"name the images with --seeds, e.g. 0-99, or with --w FILE{both} (see --help)")
    check_options("--w", files, seeds, options)
    file_names = [] if seeds is None else names.image_names(seeds, options.labels)
    if file_names and not grid_size:
        names.check_names(file_names)
    model = open_model(options)
    if seeds is None:
        start = read_codes(files, model)
        file_names, sheet = start.image_names, sheet_name(f"w-{start.text}")
    else:
        check_seeds(seeds, options.seeds_of)
        shares, sheet = model.shares(seeds), names.seeds_sheet_name(seeds, options.labels)
        centers = model.centers(shares)

    def images(part: slice = slice(None)) -> Iterator[Tensor]:
        if seeds is None:
            return generate_codes(model.G, start.codes[part], model.batch, model.psi, options.noise_mode)
        toward, of = None if centers is None else centers[part], options.seeds_of
        return generate_batches(
            model.G, seeds[part], model.batch, shares[part], model.psi, options.noise_mode, toward, of
        )

    if grid_size and len(file_names) > grid_size[0] * grid_size[1]:
        raise UserError(
            f"--grid {grid_size[0]}x{grid_size[1]} has no room for {len(file_names)} images; take a larger one"
        )
    if grid_size:
        sheets.check_grid(len(file_names), grid_size[0], model.G.config.resolution)
    folder = cli.writable_folder(outdir)
    model.announce()
    if grid_size:
        path = folder / f"{sheet}.png"
        save_png(preview_grid(collect(images(), len(file_names)), min(grid_size[0], len(file_names))), path)
        show(path)
        return
    paths = [folder / f"{name}.png" for name in file_names]
    with tqdm(total=len(paths), unit="image", disable=not sys.stderr.isatty()) as bar:
        for count in write_pngs(images, paths, model.batch, model.G.w_avg.device):
            bar.update(count)
    show(f"{plural(len(paths), 'image')} in {folder.resolve()}")


# --- style mixing ---------------------------------------------------------------------------------------------------


@main.command("mix", example=MIX)
@latents_cli.seeds_option("--rows", help="Seeds of the rows, whose images are changed.")
@codes_option("--rows-w", use="of rows, before those of --rows")
@latents_cli.seeds_option("--cols", help="Seeds of the columns, from which the change is taken.")
@codes_option("--cols-w", use="of columns, before those of --cols")
@latents_cli.model_options
@latents_cli.layers_option(default="the coarser half; with --part, all")
@latents_cli.part_option()
@cli.outdir_option()
@latents_cli.scale_option(sheets.MIN_SIDE)
def mix_command(
    rows: list[int] | None, rows_w: tuple[str, ...], cols: list[int] | None, cols_w: tuple[str, ...],
    options: ModelOptions, layers: list[int] | None, part: Part, outdir: str, scale: int | None,
) -> None:  # fmt: skip
    """Mix styles: a sheet of the rows' images with the styles of the columns.

    --part structure replaces only the depthwise kernels, channels the pointwise kernels, bias the biases.
    """
    for name, seeds, files in (("--rows", rows, rows_w), ("--cols", cols, cols_w)):
        if not seeds and not files:
            what = "rows" if name == "--rows" else "columns"
            raise UserError(f"there are no {what}; name seeds, e.g. {name} 1-4, or latents with {name}-w FILE")
        check_options(f"{name}-w", files, [*(rows or []), *(cols or [])], options)
    rows, cols = rows or [], cols or []
    model = open_model(options)
    coarser = range(model.G.config.num_ws // 2) if part == "all" else None  # of all layers, a mix is its column's image
    chosen = check_layers(model.G.config, layers or coarser, part)
    left, top = read_codes(rows_w, model), read_codes(cols_w, model)
    height, width = len(left.names) + len(rows), len(top.names) + len(cols)  # of the sheet, in images
    scale = check_sheet(model, width + 1, height + 1, scale)
    folder = cli.writable_folder(outdir)
    model.announce()

    ws = model.ws([*rows, *cols])  # together: labels in turn go on from the rows to the columns
    left, top = left.with_seeds(model, rows, ws[: len(rows)]), top.with_seeds(model, cols, ws[len(rows) :])
    mode = options.noise_mode
    both = join_codes(model.G, [left.codes, top.codes])
    own = collect(generate_codes(model.G, both, model.batch, noise=mode), height + width)
    noise = noise_of(left.codes, mode)
    pairs = generate_mixes(model.G, left.codes.ws, top.codes.ws, chosen, part, noise, model.batch)
    mixed = collect(pairs, height * width)
    path = folder / f"{sheet_name(f'mix-{left.text}-{top.text}', part, layers, options.labels)}.png"
    title = f"rows, with the columns' {'style' if part == 'all' else part} in layers {numbers_text(chosen)}"
    sheets.save_sheet(mixing_sheet(own, mixed, left.names, top.names, title, scale), path)
    show(path)


def check_sheet(model: Model, columns: int, rows: int, scale: int | None) -> int:
    """The factor by which a sheet of so many images enlarges them: --scale or the default. Raises UserError."""
    resolution = model.G.config.resolution
    scale = scale or sheets.enlargement(resolution)
    width, height = width_and_height(resolution)
    sheets.check_size(scale * width * columns, scale * height * rows)
    return scale


# --- videos ---------------------------------------------------------------------------------------------------------


@main.command("video", example=VIDEO)
@latents_cli.seeds_option(
    "--seeds", help="Seeds, such as 0-7, whose latents the walk passes through before it returns to the first one."
)
@codes_option("--w", "files", use="that the walk passes through before those of --seeds")
@latents_cli.model_options
@cli.option("Walk", "--space", type=click.Choice(["w", "z"]), default="w", help="Space in which the walk goes.")
@cli.option(
    "Walk",
    "--interp",
    "interpolation",
    type=click.Choice(walks.INTERPOLATIONS),
    default="spline",
    help="spline: smooth, also at the images. slerp: along arcs, which suits z. linear: straight from image to image.",
)
@cli.option(
    "Walk", "--open", "is_open", is_flag=True, help="End at the last image, in place of returning to the first."
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
    "Output",
    "--seconds",
    type=cli.Float(0.1, 3600),
    help="Length of the video.  [default: one second from each image to the next]",
)
@cli.option("Output", "--fps", type=cli.Float(1, 120), default=30.0, help="Frames per second.")
@cli.option(
    "Output",
    "--grid",
    "cells",
    type=GridSize(),
    default="1x1",
    help="Columns and rows, such as 3x2, of cells with the same walk; each starts one image after the cell before.",
)
@latents_cli.scale_option(VIDEO_SIDE)
@cli.gather(WalkOptions, "walk")
@cli.gather(VideoOptions, "video")
def video_command(
    seeds: list[int] | None, files: tuple[str, ...], options: ModelOptions, walk: WalkOptions, video: VideoOptions
) -> None:
    """Make a video of a walk through latents.

    It is closed, so that it can be repeated without a jump, unless --open is given. With --layers or --part, only these
    follow the walk; all else stays as it is for the first image.
    """
    check_animation(video.out, video.fps)
    check_options("--w", files, seeds, options)
    if files and walk.space == "z":
        raise UserError("--space z walks between the z of seeds, which the latents of --w do not have; leave it out")
    seeds = in_turn(seeds or [], len(options.labels)) if seeds else []
    if not files:
        check_walk(len(seeds), walk, video)  # before the model is loaded
    model = open_model(options)
    chosen = check_layers(model.G.config, walk.layers, walk.part)
    codes = read_codes(files, model).codes
    count = check_walk(len(codes.ws) + len(seeds), walk, video)
    scale = video.scale or sheets.enlargement(model.G.config.resolution, VIDEO_SIDE)
    resolution = model.G.config.resolution
    width, height = (n * scale * side for n, side in zip(video.cells, width_and_height(resolution), strict=True))
    sheets.check_size(width, height)
    check_side(video.out, max(width, height), "use a smaller --grid or --scale")
    cli.writable_file(video.out, "--out")
    model.announce()

    path = find_path(model, codes, seeds, walk)
    frames = walks.frames(
        model.G,
        path.walk,
        count,
        path.keys,
        cells=video.cells,
        psi=model.psi,
        layers=chosen,
        part=walk.part,
        noise=path.noise if options.noise_mode == "const" else "none",
        batch=model.batch,
        scale=scale,
        centers=path.centers,
        half=walk.is_open,
    )
    with tqdm(frames, total=count, unit="frame", disable=not sys.stderr.isatty()) as bar:
        write_animation(video.out, iter(bar), count, video.fps)
    length = count / video.fps
    show(f"{video.out}: {plural(count, 'frame')}, {length:g} second{'s' * (length != 1)}")


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


@main.command("directions", example=DIRECTIONS)
@latents_cli.seeds_option(
    "--seeds", help="Seeds of the images that are moved along the directions.  [default: 0; none with --w]"
)
@codes_option("--w", "files", use="that are moved, before those of --seeds")
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
    seeds: list[int] | None, files: tuple[str, ...], options: ModelOptions, choice: DirectionOptions, outdir: str,
    scale: int | None,
) -> None:  # fmt: skip
    """Find the main directions of w, or edit images along those of a file.

    The directions are shown on sheets and saved as .npz files. pca is GANSpace; sefa is SeFa in closed form, for the
    kernels in --layers and --part. With --edit, these two options replace what the file says.
    """
    if choice.edit and (choice.method or choice.count):
        raise UserError("--method and --count find new directions, but --edit uses those of a file; leave them out")
    check_options("--w", files, seeds, options)
    seeds = seeds or ([] if files else [0])
    model = open_model(options)
    found = read_directions(model, choice) if choice.edit else new_directions(model, choice)
    folder = cli.writable_folder(outdir)
    model.announce()

    given = read_codes(files, model)
    start = given.with_seeds(model, seeds, model.ws(seeds))
    titles, noise = [*given.names, *(f"seed {seed}" for seed in seeds)], noise_of(start.codes, options.noise_mode)
    for name, directions in found.items():
        numbers = check_numbers(directions, choice.numbers or ([0] if choice.edit else None))
        rows, columns = len(titles) * len(numbers), len(choice.amounts)
        scale = check_sheet(model, columns, rows, scale)
        edits = generate_edits(model.G, start.codes.ws, directions, numbers, choice.amounts, noise, model.batch)
        images = collect(edits, rows * columns)
        sheet = edit_sheet(images, directions, numbers, choice.amounts, titles, directions.title, scale)
        own = f"{name}-{start.text}" if files else name
        path = folder / f"{sheet_name(own, choice.part, choice.layers, options.labels)}.png"
        sheets.save_sheet(sheet, path)
        show(path)
        if not choice.edit:
            file = folder / f"{sheet_name(name, choice.part, choice.layers)}.npz"
            save_directions(file, directions)
            show(file)


if __name__ == "__main__":
    cli.run(main)
