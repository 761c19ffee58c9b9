"""Makes, converts, splits and checks data sets. `python dataset_tool.py check --data data.zip`"""

from __future__ import annotations

import re
import sys
from typing import Any, Literal

import click
from tqdm import tqdm

from media.check import NO_LABEL, check_dataset
from media.convert import CROPS, FILTERS, LABELS, Conversion, convert, write_dataset
from media.faces import HAIR_COLORS, faces
from media.file_format import JPEG_QUALITY, FileFormat
from media.image_files import LABEL_FILE
from media.split import split
from torch_utils.cli import Color, Command, Group, end_on_signals, option, run, typed
from torch_utils.errors import UserError, listed, note, plural, print_notes, printable, ranges_text, show
from torch_utils.sizes import Resolution, is_possible, no_size_message, parse_resolution, size_option, size_text

MAX_LISTED = 10  # files that cannot be used; if there are thousands, the others have the same problems


class Size(click.ParamType):
    """A resolution as `64` or `96x64`, width x height."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Resolution:
        try:
            resolution = parse_resolution(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not is_possible(resolution):
            self.fail(no_size_message(resolution), param, ctx)
        return resolution


class Bytes(click.ParamType):
    """A size such as `256MB` or `1.5GB`, as a number of bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?) ?(KB|MB|GB)", str(value).upper(), re.ASCII)
        if match is None or not (size := round(float(match[1]) * 1000 ** (1 + "KMG".index(match[2][0])))):
            self.fail(f"{value!r} is not a size; write e.g. 256MB", param, ctx)
        return size


@click.group(cls=Group, default="convert")
def main() -> None:
    """Convert images to a data set, a folder or ZIP of images of one size. Other commands are listed at the end."""


@main.command(
    "faces",
    cls=Command,
    example="python dataset_tool.py faces --out faces32.zip --count 4000 --resolution 32 --seed 0",
)
@option(
    "Options",
    "--out",
    required=True,
    metavar="PATH",
    help="The data set to write: a ZIP if the name ends with .zip, or else a folder.",
)
@option("Options", "--overwrite", is_flag=True, help="Replace an existing ZIP.")
@option("Options", "--count", default=4000, type=click.IntRange(min=1), help="Number of faces to draw.")
@option("Options", "--resolution", default="32", type=Size(), help="Width and height in pixels, as one number.")
@option("Options", "--seed", default=0, type=click.IntRange(min=0), help="Seed of the random faces.")
def faces_command(out: str, overwrite: bool, count: int, resolution: Resolution, seed: int) -> None:
    """Draw cartoon faces, labelled by the colour of the hair."""
    if not isinstance(resolution, int):
        raise UserError(f"faces are drawn on squares, not on {size_text(resolution)}; write one number, e.g. 64")
    images = tqdm(
        faces(count, resolution, seed), desc="drawing", total=count, unit=" faces", file=sys.stderr, disable=None
    )
    write_dataset(out, images, overwrite=overwrite, class_names=HAIR_COLORS)
    show(f"{out}: {plural(count, 'face')} of {resolution}x{resolution} pixels")
    print("classes: " + ", ".join(f"{label} {name}" for label, name in enumerate(HAIR_COLORS)))


@main.command(
    "convert",
    cls=Command,
    example="python dataset_tool.py convert --source images --out data.zip --resolution 64 --background white",
)
@option(
    "Data",
    "--source",
    required=True,
    metavar="PATH",
    help="A ZIP of images, or a folder of images and subfolders.",
)
@option(
    "Data",
    "--out",
    required=True,
    metavar="PATH",
    help="The data set to write: a ZIP if the name ends with .zip, or else a folder.",
)
@option("Data", "--overwrite", is_flag=True, help="Replace an existing ZIP.")
@option(
    "Data",
    "--shards",
    "shard_bytes",
    type=Bytes(),
    metavar="SIZE",
    help="Write tar files of this size, such as 256MB, into the folder --out, with the images in random order. This "
    "suits data sets that are too large for one file.",
)
@option(
    "Data",
    "--labels",
    default="auto",
    type=click.Choice(LABELS),
    help="Where class labels come from. json: dataset.json. folders: one class for each folder in the source. "
    "auto: dataset.json if it exists. none: no labels.",
)
@option(
    "Data", "--max", "limit", type=click.IntRange(min=1), help="Convert this many images, drawn from all classes alike."
)
@option(
    "Data",
    "--seed",
    default=0,
    type=click.IntRange(min=0),
    help="Seed of the random choice by --max, and of the random order in --shards.",
)
@option(
    "Images",
    "--resolution",
    required=True,
    type=Size(),
    help="Size of the new images in pixels: 64 for squares, or width x height, such as 640x384.",
)
@option(
    "Images",
    "--crop",
    default="center",
    type=click.Choice(CROPS),
    help="What to do with images of another shape. center: take the largest part in the middle. pad: take all of it, "
    "in a frame of the --background, or a transparent one with --channels 4. none: skip them.",
)
@option(
    "Images",
    "--filter",
    "filter_name",
    default="lanczos",
    type=click.Choice(list(FILTERS)),
    help="Resampling filter for resizing.",
)
@option(
    "Images",
    "--channels",
    default="3",
    type=click.Choice(["1", "3", "4"]),
    help="3 for RGB, 4 for RGBA, which keeps transparency, 1 for greyscale.",
)
@option(
    "Images",
    "--background",
    default="white",
    type=Color(),
    help="Background colour of transparent images and of --crop pad: a name or #rrggbb. Not with --channels 4.",
)
@option(
    "Images",
    "--format",
    "file_format",
    default="png",
    type=click.Choice(["png", "jpeg", "webp"]),
    help="Format of the files. png and, without --quality, webp keep every pixel as it is. jpeg is smallest.",
)
@option(
    "Images",
    "--quality",
    type=click.IntRange(1, 100),
    help=f"Quality of JPEG and WebP files, 1 to 100.  [default: {JPEG_QUALITY} for jpeg, lossless for webp]",
)
def convert_command(
    source: str,
    out: str,
    overwrite: bool,
    shard_bytes: int | None,
    labels: str,
    limit: int | None,
    seed: int,
    resolution: Resolution,
    crop: str,
    filter_name: str,
    channels: str,
    background: tuple[int, int, int],
    file_format: Literal["png", "jpeg", "webp"],
    quality: int | None,
) -> None:
    """Make a data set of images of any format and size.

    They become upright, in sRGB, cropped and resized.
    """
    if channels == "4" and typed("background"):
        raise UserError("--channels 4 keeps transparency, also around --crop pad; leave it or --background out")
    how = Conversion(resolution, int(channels), crop, filter_name, background)
    stored = FileFormat(file_format, quality)
    done = convert(
        source,
        out,
        how,
        labels=labels,
        limit=limit,
        seed=seed,
        overwrite=overwrite,
        stored=stored,
        shard_bytes=shard_bytes,
    )
    show(f"{out}: {plural(done.count, 'image')} of {size_text(resolution)} pixels, {plural(int(channels), 'channel')}")
    if done.class_names:
        show("classes: " + ", ".join(f"{label} {name}" for label, name in enumerate(done.class_names)))
    if done.empty_folders:
        empty = ", ".join(map(printable, done.empty_folders))
        note(f"note: folders without a usable image, which are no classes: {empty}")
    if done.enlarged:
        note(f"note: enlarged images, smaller than {size_option(resolution)} pixels: {done.enlarged:,}")
    print_notes(done.notes)
    for line in list_problems(done.skipped):
        note(f"skipped: {line}")
    if done.skipped:
        note(f"skipped files that cannot be used: {len(done.skipped):,}")


def list_problems(problems: list[tuple[str, str]]) -> list[str]:
    """A line for each of the first ten files, with what is wrong with it, and a line with the number of the others."""
    lines = [f"{printable(name)} {reason}" for name, reason in problems[:MAX_LISTED]]
    return lines + [f"... and {len(problems) - MAX_LISTED:,} more"] * (len(problems) > MAX_LISTED)


@main.command(
    "split",
    cls=Command,
    example="python dataset_tool.py split --source data.zip --train train.zip --held-out held-out.zip",
)
@option("Data", "--source", required=True, metavar="PATH", help="The images: a folder or a ZIP.")
@option("Data", "--train", required=True, metavar="FILE", help="The ZIP to write with the images to train with.")
@option("Data", "--held-out", required=True, metavar="FILE", help="The ZIP to write with the other images.")
@option("Data", "--overwrite", is_flag=True, help="Replace existing ZIP files.")
@option(
    "Data",
    "--every",
    default=10,
    type=click.IntRange(min=2),
    help="Hold out one image of this many, the last of each group in the order of their names.",
)
def split_command(source: str, train: str, held_out: str, overwrite: bool, every: int) -> None:
    """Hold out a part of a data set, to evaluate with.

    A model is judged best by images that it was not trained with. Files are copied as they are, with their labels; the
    same source is always split alike.
    """
    kept, held = split(source, train, held_out, every=every, overwrite=overwrite)
    show(f"{train}: {plural(kept, 'image')}")
    show(f"{held_out}: {plural(held, 'image')}")


@main.command("check", cls=Command, example="python dataset_tool.py check --data data.zip")
@option("Options", "--data", required=True, metavar="PATH", help="The data set: a folder, a ZIP, or shards.")
def check_command(data: str) -> None:
    """Decode all images, read the labels, and list all problems."""
    found = check_dataset(data)
    print_notes(found.notes)
    for line in list_problems(found.problems):
        show(line)
    show(f"{data}: {plural(found.count, 'image')}, {found.kind}")
    if found.ranges is not None:
        print(f"labels of {plural(len(found.ranges), 'number')}: {ranges_text(found.ranges)}")
    elif found.classes is None:
        print("no labels")
    else:
        called = {number: f"{number} {name}" for number, name in enumerate(found.class_names)}
        counts = ", ".join(f"{called.get(label, label)}: {count:,}" for label, count in found.classes.items())
        print(f"{plural(len(found.classes), 'class', 'es')} with images{': ' * bool(counts)}{counts}")
        total = len(found.class_names) or max(found.classes, default=-1) + 1
        if unused := sorted(set(range(total)) - found.classes.keys()):
            print(f"classes without images: {listed([str(called.get(n, n)) for n in unused], MAX_LISTED)}")
    if found.label_problem:
        show(found.label_problem)
    if not found.convert:
        raise UserError(f"{data}: of its {plural(len(found.problems), 'file')} none can be used, for the reasons above")
    unlabelled = sum(reason == NO_LABEL for _, reason in found.problems)
    if len(found.problems) > unlabelled:
        labels = " --labels none" if found.label_problem or unlabelled else ""
        count = plural(len(found.problems), "file")
        raise UserError(f"{data}: {count} cannot be used unchanged; convert the images with: {found.convert}{labels}")
    if unlabelled:
        of = f"{unlabelled:,} of {plural(found.count, 'image')}"
        raise UserError(f"{data}: {of} without a label; add labels to {LABEL_FILE}, or train without --cond")
    if found.label_problem:
        raise UserError(f"{data}: only its labels cannot be used; correct {LABEL_FILE}, or train without --cond")


if __name__ == "__main__":
    end_on_signals()  # so that what is written half is removed
    run(main)
