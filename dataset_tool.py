"""Makes, converts and checks data sets."""

from __future__ import annotations

import sys

import click
from PIL import ImageColor
from tqdm import tqdm

from media.check import check_dataset
from media.convert import FILTERS, LABELS, Conversion, convert, write_dataset
from media.dataset import LABEL_FILE, RESOLUTIONS
from media.faces import HAIR_COLORS, faces
from torch_utils.cli import Command, Option, run
from torch_utils.errors import UserError, printable

LISTED = 10  # files that cannot be used; of thousands, the others are of the same kinds


class Color(click.ParamType):
    """A colour as `white` or `#rrggbb`."""

    name = "color"

    def convert(self, value, param, ctx) -> tuple[int, int, int]:
        try:
            return ImageColor.getcolor(value, "RGB")
        except (ValueError, AttributeError):
            self.fail(f"{value!r} is not a colour; write e.g. white or #a0b0c0", param, ctx)


class Resolution(click.Choice):
    """One of the resolutions of a data set, as a number."""

    def __init__(self):
        super().__init__([str(resolution) for resolution in RESOLUTIONS])

    def convert(self, value, param, ctx) -> int:
        return int(super().convert(str(value), param, ctx))


@click.group(invoke_without_command=True)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Make, convert and check data sets: folders or ZIPs of square images of one size."""
    if ctx.invoked_subcommand is None:
        raise UserError("name a command: faces, convert or check (see --help)")


@main.command(
    "faces", cls=Command, example="dataset_tool.py faces --out faces32.zip --count 4000 --resolution 32 --seed 0"
)
@click.option("--out", required=True, cls=Option, metavar="PATH", help="The new ZIP (with .zip) or folder.")
@click.option("--overwrite", is_flag=True, cls=Option, help="Replace a ZIP that is there.")
@click.option("--count", default=4000, type=click.IntRange(min=1), cls=Option, help="Number of faces.")
@click.option("--resolution", default="32", type=Resolution(), cls=Option, help="Side in pixels.")
@click.option("--seed", default=0, type=click.IntRange(min=0), cls=Option, help="Other seeds give other faces.")
def faces_command(out: str, overwrite: bool, count: int, resolution: int, seed: int) -> None:
    """Draw cartoon faces, labelled by the colour of the hair."""
    images = tqdm(
        faces(count, resolution, seed), desc="drawing", total=count, unit=" faces", file=sys.stderr, disable=None
    )
    write_dataset(out, images, overwrite=overwrite)
    print(f"{out}: {count:,} faces of {resolution}x{resolution} pixels")
    print("classes: " + ", ".join(f"{label} {name}" for label, name in enumerate(HAIR_COLORS)))


@main.command(
    "convert",
    cls=Command,
    example="dataset_tool.py convert --source images --out data.zip --resolution 64 --background white",
)
@click.option(
    "--source",
    required=True,
    cls=Option,
    group="Data",
    metavar="PATH",
    help="A folder (with all below it) or a ZIP of images.",
)
@click.option(
    "--out", required=True, cls=Option, group="Data", metavar="PATH", help="The new ZIP (with .zip) or folder."
)
@click.option("--overwrite", is_flag=True, cls=Option, group="Data", help="Replace a ZIP that is there.")
@click.option(
    "--labels",
    default="auto",
    type=click.Choice(LABELS),
    cls=Option,
    group="Data",
    help="From dataset.json; one class per folder in the source; auto: json where there is one.",
)
@click.option("--max", "limit", type=click.IntRange(min=1), cls=Option, group="Data", help="Stop after so many images.")
@click.option("--resolution", required=True, type=Resolution(), cls=Option, group="Images", help="Side in pixels.")
@click.option(
    "--crop",
    default="center",
    type=click.Choice(["center", "none"]),
    cls=Option,
    group="Images",
    help="Cut out the middle square, or take square images only.",
)
@click.option(
    "--filter",
    "filter_name",
    default="lanczos",
    type=click.Choice(list(FILTERS)),
    cls=Option,
    group="Images",
    help="For the change of size.",
)
@click.option(
    "--channels", default="3", type=click.Choice(["1", "3"]), cls=Option, group="Images", help="1 for greyscale."
)
@click.option(
    "--background",
    default="white",
    type=Color(),
    cls=Option,
    group="Images",
    help="Colour behind what is transparent: a name or #rrggbb.",
)
def convert_command(
    source: str,
    out: str,
    overwrite: bool,
    labels: str,
    limit: int | None,
    resolution: int,
    crop: str,
    filter_name: str,
    channels: str,
    background: tuple[int, int, int],
) -> None:
    """Crop, resize and flatten images of any kind into a data set."""
    how = Conversion(resolution, int(channels), crop, filter_name, background)
    done = convert(source, out, how, labels=labels, limit=limit, overwrite=overwrite)
    print(
        f"{out}: {done.count:,} images of {resolution}x{resolution} pixels, "
        f"{channels} channel{'s' if channels == '3' else ''}"
    )
    if done.class_names:
        print("classes: " + ", ".join(f"{label} {printable(name)}" for label, name in enumerate(done.class_names)))
    if done.enlarged:
        print(f"note: {done.enlarged:,} were smaller than {resolution} pixels and were enlarged", file=sys.stderr)
    for line in listed(done.skipped):
        print(f"skipped: {line}", file=sys.stderr)
    if done.skipped:
        print(f"skipped {len(done.skipped):,} files that cannot be used", file=sys.stderr)


def listed(problems: list[tuple[str, str]]) -> list[str]:
    """A line for each of the first ten files and what is wrong with them, and one for the rest."""
    lines = [f"{printable(name)} {reason}" for name, reason in problems[:LISTED]]
    return lines + [f"... and {len(problems) - LISTED:,} more"] * (len(problems) > LISTED)


@main.command("check", cls=Command, example="dataset_tool.py check --data data.zip")
@click.option("--data", required=True, cls=Option, metavar="PATH", help="A data set: a folder or a ZIP.")
def check_command(data: str) -> None:
    """Decode every image of a data set and look at the labels."""
    found = check_dataset(data)
    for line in listed(found.problems):
        print(line)
    print(f"{data}: {found.count:,} images, {found.kind}")
    if found.classes is None:
        print("no labels")
    else:
        counts = ", ".join(f"{label}: {count:,}" for label, count in found.classes.items())
        print(f"{len(found.classes):,} classes with images: {counts}")
    if found.label_problem:
        print(found.label_problem)
    if found.problems:
        labels = " --labels none" if found.label_problem else ""
        raise UserError(
            f"{data}: {len(found.problems):,} files cannot be used as they are; make a set that "
            f"can with: dataset_tool.py convert --source {data} --out NEW.zip --resolution N{labels}"
        )
    if found.label_problem:
        raise UserError(f"{data}: only its labels are of no use; mend {LABEL_FILE}, or train without --cond")


if __name__ == "__main__":
    run(main)
