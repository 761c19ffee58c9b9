"""What stylizers make of the same contents and styles: a sheet, and a table of losses and of structure.

    python benchmarks/compare_stylizers.py --content photos/ --style paintings/ --model a.safetensors --out sheet.png

Content and style losses are those of training, with the encoder of the first model for all; normalized, the content
loss leaves out the means and deviations of channels, which belong to the style. Structure is the sliced Wasserstein
distance of normalized 7 × 7 patches (metrics/swd.py) between the outputs and the style: colours and contrast do not
count, only what they do from pixel to pixel. The contents as they are show where it begins.

Images are those of the model alone, or with --shifts those of `stylize.py`, which continues contents at their borders.

The table is of --count contents in as many styles, which are those of the sheet; or with --pairs 60 of the first
content in the first style, the second in the second, and so on. Several --model of one modulation are trainings of it:
the table ends with the mean ± standard deviation over them.
"""

from __future__ import annotations

import io
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import click

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import name_in_record, spread, write_record

from media.decode import ALL_SUFFIXES, Unusable
from media.files import list_images, read_image, read_pixels
from media.image_files import ImageFiles
from media.images import grid, save_png, to_float, to_uint8
from metrics.swd import PatchDescriptors, sliced_wasserstein
from models.snapshot import load_stylizer
from networks.stylizer import Stylizer, channel_statistics, resize_square
from networks.vgg import VGG19
from styling.apply import Settings, stylize_image
from styling.shifts import SHIFTS
from styling.styles import CombinedStyle, Style
from torch_utils import cli
from torch_utils.errors import UserError, plural
from torch_utils.files import check_inputs_survive
from training.stylizer import content_loss, style_loss

UNCHANGED = "content as it is"
Figures = dict[str, float]  # of one style: the losses and the structure
REPEATS = 32  # of an image, with patches cut at other places


def images(paths: tuple[str, ...], count: int, size: int) -> Tensor:
    """The first `count` images of files, folders and ZIPs, squares from the middle: [count, 3, size, size] in −1..1."""
    there = [image for path in paths for image in readers(Path(path))]
    if len(there) < count:
        raise UserError(
            f"{', '.join(paths)}: {len(there)} images, {count} are needed; name more, or lower --count and --pairs"
        )
    return torch.cat([resize_square(to_float(image()[None]), size) for image in there[:count]])


def files(paths: tuple[str, ...]) -> list[Path]:
    """The files that `images` may read, a ZIP as one."""
    return [file for path in map(Path, paths) for file in (list_images(path) if path.is_dir() else [path])]


def readers(path: Path) -> list[Callable[[], Tensor]]:
    """For each image at the path, what reads it: uint8 [3, H, W]."""
    if path.suffix.lower() == ".zip":
        archive = ImageFiles(path, ALL_SUFFIXES)
        return [partial(read_member, archive, name) for name in archive.names]
    return [partial(read_image, file) for file in (list_images(path) if path.is_dir() else [path])]


def read_member(archive: ImageFiles, name: str) -> Tensor:
    """As `media.files.read_image`, of a file in a ZIP."""
    try:
        return read_pixels(io.BytesIO(archive.read(name)))
    except Unusable as reason:
        raise UserError(f"{name} in {archive.path} {reason}; leave it out of the archive") from None


def patches(images: Tensor) -> dict[int, Tensor]:
    """What `sliced_wasserstein` compares, of REPEATS looks at uint8 [N, 3, H, W]."""
    descriptors = PatchDescriptors(len(images) * REPEATS)
    for _ in range(REPEATS):
        descriptors.add(images)
    return descriptors.finish()


def outputs_of(model: Stylizer, contents: Tensor, style: Tensor, shifts: int) -> Tensor:
    """Contents [N, 3, H, W] in one style [1, 3, h, w], by the model alone, or with `shifts` as stylize.py does."""
    kernels = model.kernels(style)
    if not shifts:
        return model(contents, kernels).clamp(-1, 1)
    combined, settings = CombinedStyle((Style(Path(), kernels, style),)), Settings(shifts=shifts)
    return to_float(torch.stack([stylize_image(model, one, combined, settings) for one in to_uint8(contents)]))


class Goal:
    """What contents [N, 3, H, W] and one style [1, 3, h, w] ask for, with which any outputs can be compared."""

    def __init__(self, encoder: VGG19, contents: Tensor, style: Tensor):
        self.encoder, self.content, self.patches = encoder, encoder(contents)[-1], patches(to_uint8(style))
        n, found = len(contents), map(channel_statistics, encoder(style))
        self.style = [(mean.expand(n, -1), std.expand(n, -1)) for mean, std in found]

    def measure(self, outputs: Tensor) -> Figures:
        """Losses and structure of outputs [N, 3, H, W]."""
        taps = self.encoder(outputs)
        return {
            "content loss": float(content_loss(taps[-1], self.content)),
            "normalized content": float(content_loss(taps[-1], self.content, normalize=True)),
            "style loss": float(style_loss(taps, self.style)),
            "structure": sliced_wasserstein(self.patches, patches(to_uint8(outputs)))["swd"],
        }


def means(rows: Sequence[Figures]) -> Figures:
    return {key: statistics.mean(row[key] for row in rows) for key in rows[0]}


def by_modulation(results: Mapping[str, Sequence[Figures]]) -> dict[str, list[Figures]]:
    """For each modulation, the first word of a model's name, the means of each of its trainings."""
    found: dict[str, list[Figures]] = {}
    for name, rows in results.items():
        if name != UNCHANGED:
            found.setdefault(name.split()[0], []).append(means(rows))
    return found


def table(rows: Mapping[str, Sequence[Figures]]) -> str:
    """A line for each name: the mean ± standard deviation of its rows."""
    keys = list(next(iter(rows.values()))[0])
    cells = [["", *keys], *([name, *(spread([row[key] for row in of]) for key in keys)] for name, of in rows.items())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(f"{cell:{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells)


@click.command(
    cls=cli.Command, example="python benchmarks/compare_stylizers.py --content a/ --style b/ --model m.safetensors"
)
@cli.option("Options", "--content", multiple=True, required=True, help="Content images, folders or ZIPs of them.")
@cli.option("Options", "--style", multiple=True, required=True, help="Style images, folders or ZIPs of them.")
@cli.option("Options", "--model", "models", multiple=True, required=True, help="Stylizers, one beneath the other.")
@cli.option("Options", "--count", type=click.IntRange(1), default=4, help="Contents and styles of the sheet.")
@cli.option("Options", "--pairs", type=click.IntRange(1), help="Pairs of a content and a style for the table.")
@cli.option("Options", "--size", type=click.IntRange(64), default=256, help="Side of the images.")
@cli.option(
    "Options", "--shifts", type=click.Choice(list(map(str, SHIFTS))), help="Stylize as stylize.py --shifts does."
)
@cli.option("Options", "--out", type=cli.ResultFile(), help="Write the sheet there, a PNG.")
@cli.option("Options", "--json", "json_path", type=cli.ResultFile(), help="Write the figures there as well.")
@torch.no_grad()
def main(
    content: tuple[str, ...],
    style: tuple[str, ...],
    models: tuple[str, ...],
    count: int,
    pairs: int | None,
    size: int,
    shifts: str | None,
    out: str | None,
    json_path: str | None,
) -> None:
    """Compare stylizers on the same images."""
    check_inputs_survive([path for path in (out, json_path) if path], [*models, *files(content), *files(style)])
    if out and Path(out).suffix.lower() != ".png":
        raise UserError(f"--out {out}: the sheet is a PNG; name a file that ends with .png")
    most = max(count, pairs or 0)
    contents, styles = images(content, most, size), images(style, most, size)
    loaded = [load_stylizer(path)[0] for path in models]
    for path, model in zip(models, loaded, strict=True):
        if size < (least := model.config.min_size):
            raise UserError(f"--size {size} is too small for the kernels of {path}; take {least} or more")
    named = {
        f"{model.config.modulation} {name_in_record(path)}": model for model, path in zip(loaded, models, strict=True)
    }
    if len(named) < len(models):
        raise UserError("two --model have the same name and folder; give them different names")
    encoder = loaded[0].encoder

    # the contents of each style: one where there are pairs, else all of the sheet
    of_style = [contents[i : i + 1] for i in range(pairs)] if pairs else [contents[:count]] * count
    results: dict[str, list[Figures]] = {name: [] for name in (UNCHANGED, *named)}
    for one, its_contents in zip(styles.split(1), of_style, strict=False):
        goal = Goal(encoder, its_contents, one)
        results[UNCHANGED].append(goal.measure(its_contents))
        for name, model in named.items():
            results[name].append(goal.measure(outputs_of(model, its_contents, one, int(shifts or 0))))
    print(f"mean ± standard deviation over {plural(len(of_style), 'pair' if pairs else 'style')}")
    print(table(results))
    print("\nmean ± standard deviation over trainings")
    print(table(trainings := by_modulation(results)))
    if json_path:
        given = {"count": count, "pairs": pairs, "size": size, "shifts": int(shifts or 0)}
        record = {**given, "rows": {n: means(r) for n, r in results.items()}, "trainings": trainings, "all": results}
        write_record(json_path, "cpu", record)
    if out:
        images_of_sheet = sheet(contents[:count], styles[:count], named, int(shifts or 0))
        save_png(grid(to_uint8(images_of_sheet), count + 1), out)


def sheet(contents: Tensor, styles: Tensor, models: Mapping[str, Stylizer], shifts: int = 0) -> Tensor:
    """The images of a sheet of 128² cells: the styles on top, and for each content a row of each model."""
    made = {
        name: [outputs_of(model, contents, one, shifts) for one in styles.split(1)] for name, model in models.items()
    }
    lines = [torch.ones_like(contents[:1]), styles]
    for i in range(len(contents)):
        for of_styles in made.values():
            lines += [contents[i : i + 1], *(outputs[i : i + 1] for outputs in of_styles)]
    return F.interpolate(torch.cat(lines), size=(128, 128), mode="area")


if __name__ == "__main__":
    cli.run(main)
