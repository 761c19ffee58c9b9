"""Images in the style of others. `python stylize.py --content photo.jpg --style painting.jpg`"""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

# Before PyTorch starts its threads: where cores are shared, those that wait should not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

from media.files import read_image
from media.video import VideoReader
from models.snapshot import STYLIZER, find_snapshot, load_stylizer
from networks.stylizer import Kernels, Stylizer
from styling.apply import Settings
from styling.jobs import Job, check_kept, find_contents, means_folder, plan_file, plan_folder, work
from styling.mask import read_mask
from styling.styles import SUFFIX, Look, read_style, save_style
from torch_utils import cli
from torch_utils.errors import UserError
from torch_utils.memory import keep_freed_memory

OUT = "out"  # the folder of the results where --out names none
TOLERANCE = 0.002  # of weights that sum to 1: three times 0.333 do

EXAMPLE = """\
python stylize.py --content photo.jpg --style painting.jpg
python stylize.py --content photos/ --style a.jpg --style b.jpg --mix 0.7,0.3 --strength 0.8 --out stylized/
python stylize.py --content film.mp4 --style painting.jpg --preserve-color luminance --out stylized.mp4
python stylize.py --content photo.jpg --style sky.jpg --style ground.jpg --mask sky-mask.png --feather 8 --out out.jpg
python stylize.py --style painting.jpg --save-style painting.safetensors
"""


class Weights(click.ParamType):
    """Numbers from 0 to 1 as `0.7,0.3`, which sum to 1."""

    name = "weights"

    def convert(self, value, param, ctx) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            weights = tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} are no numbers; write one for each style, e.g. 0.7,0.3", param, ctx)
        if not all(0 <= weight <= 1 for weight in weights):
            self.fail(f"{value!r}: each is a share, from 0 to 1", param, ctx)
        if abs(math.fsum(weights) - 1) > TOLERANCE:
            self.fail(f"{value!r} sum to {math.fsum(weights):g}; make it 1", param, ctx)
        return weights


class Tile(click.ParamType):
    """`auto`, `none` or the side of a tile in pixels."""

    name = "auto|none|N"

    def convert(self, value, param, ctx) -> int | str:
        if isinstance(value, int) or value in ("auto", "none"):
            return value
        if not (value.isascii() and value.isdigit() and len(value) < 7) or int(value) < 16 or int(value) % 8:
            self.fail(f"{value!r} is no tile; write auto, none or a multiple of 8 from 16", param, ctx)
        return int(value)


@click.command(cls=cli.Command, example=EXAMPLE)
@cli.option(
    "Input",
    "--model",
    "model_path",
    metavar="PATH",
    help="A stylizer, a run, or a folder of runs.  [default: the newest stylizer under runs, else the shipped one]",
)
@cli.option("Input", "--content", metavar="PATH", help="An image, a video, or a folder of them.")
@cli.option(
    "Input",
    "--style",
    "styles",
    multiple=True,
    metavar="FILE",
    help="An image, or what --save-style wrote. Several, unmixed, give one result each.",
)
@cli.option("Style", "--mix", type=Weights(), help="Several styles as one, by weights that sum to 1: 0.7,0.3.")
@cli.option("Style", "--structure-from", metavar="FILE", help="The style of the spatial structure, ...")
@cli.option("Style", "--statistics-from", metavar="FILE", help="... and that of the statistics, in place of --style.")
@cli.option(
    "Style", "--save-style", metavar="FILE", help="Keep the style, mixed if so, as kernels of the model: .safetensors."
)
@cli.option("Look", "--strength", type=cli.Float(0, 1), default=1.0, help="1 the style, towards 0 the content's own.")
@cli.option(
    "Look",
    "--preserve-color",
    type=click.Choice(["luminance", "histogram"]),
    help="The content's colours: under the stylized luminance, or for the style before it is read.",
)
@cli.option("Look", "--mask", metavar="FILE", help="The first of two styles where it is white, else the second.")
@cli.option(
    "Look", "--feather", type=cli.Float(0, 1000), help="Soften the mask's edge by so many pixels.  [default: 0]"
)
@cli.option(
    "Look", "--smooth", type=cli.Float(0, 1), default=0.8, help="Calm from frame to frame of videos: 0 off, 1 most."
)
@cli.option(
    "Output",
    "--out",
    metavar="PATH",
    help="A file; or a folder, whose files are named photo-style.png.  [default: so named in the folder out]",
)
@cli.option(
    "Output",
    "--format",
    "kind",
    type=click.Choice(["png", "jpg", "webp"]),
    help="Of images whose file --out does not name.  [default: png]",
)
@cli.option("Output", "--overwrite", is_flag=True, help="Make anew what is in the folder of --out already.")
@cli.option("Machine", "--tile", type=Tile(), default="auto", help="Side of the tiles that large images are cut into.")
@cli.option(
    "Machine",
    "--batch",
    type=click.IntRange(1, 1024),
    help="Frames of a video at a time.  [default: 1, on a GPU what suits their size]",
)
@cli.option("Machine", "--device", type=cli.Device(), help="cpu, cuda or cuda:1.  [default: a GPU if there is one]")
def main(
    model_path: str | None,
    content: str | None,
    styles: tuple[str, ...],
    mix: tuple[float, ...] | None,
    structure_from: str | None,
    statistics_from: str | None,
    save_style: str | None,
    strength: float,
    preserve_color: str | None,
    mask: str | None,
    feather: float | None,
    smooth: float,
    out: str | None,
    kind: str | None,
    overwrite: bool,
    tile: int | str,
    batch: int | None,
    device: str | None,
) -> None:
    """Stylize an image, a video or a folder of them."""
    keep_freed_memory()
    files = style_files(styles, mix, structure_from, statistics_from, mask)
    as_one = bool(mix or structure_from)
    groups = [files] if as_one or mask else [[file] for file in files]  # what each result is named after
    check_options(files, groups, content, out, mask, feather, preserve_color, save_style, overwrite)

    jobs, folder = plan(content, out, groups, kind)
    snapshot = find_snapshot(model_path, STYLIZER)
    outs = [job.out for job in jobs] + [Path(name) for name in [save_style] if name]
    check_kept(outs, [snapshot, *files, *(Path(name) for name in (content, mask) if name)])
    # what the user named a folder for is gone on with; what lies in the default one may be of other contents or options
    anew = folder is None or out is None or overwrite
    todo = [job for job in jobs if anew or not os.path.exists(job.out)]
    if not todo and save_style is None:
        return report(todo, folder)
    region = read_inputs(jobs, folder, mask, feather or 0)
    model, _ = load_stylizer(snapshot, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    print(f"model: {snapshot} ({model.config.modulation}, width {model.config.width:g})", file=sys.stderr)
    known = {file: read_style(model, file) for file in dict.fromkeys(files)}
    looks = [Look(tuple(known[file] for file in group), mix) for group in ([files] if as_one else [[f] for f in files])]

    if save_style is not None:
        write_style(save_style, model, looks[0].kernels())
        print(save_style)
    if not jobs:
        return
    cli.writable_folder(folder or jobs[0].out.parent, "--out")
    settings = Settings(strength, preserve_color, tile, smooth)
    bad = work(todo, model, looks, settings, mask=region, batch=batch, go_on=folder is not None)
    for reason in dict.fromkeys(bad.values()):
        print(f"not stylized: {reason}", file=sys.stderr)
    report([job for job in todo if job not in bad], folder)
    if bad:
        contents = dict.fromkeys(job.content for job in bad)
        raise UserError(f"{len(contents)} of {len({job.content for job in jobs})} contents are bad: {names(contents)}")


def style_files(
    styles: Sequence[str],
    mix: tuple[float, ...] | None,
    structure_from: str | None,
    statistics_from: str | None,
    mask: str | None,
) -> list[Path]:
    """The styles that the options name, in their order. Raises UserError where the options contradict each other."""
    if structure_from or statistics_from:
        if not (structure_from and statistics_from):
            raise UserError("--structure-from and --statistics-from belong together; name both, or take --style")
        if styles or mix:
            raise UserError(
                "--structure-from and --statistics-from stand in place of --style and --mix; leave these out"
            )
        styles = [structure_from, statistics_from]
    if not styles:
        raise UserError("--style is missing; name an image, or a style that --save-style wrote (see --help)")
    if mix and len(styles) == 1:
        raise UserError("--mix is for several styles, but there is one; name more with --style, or leave it out")
    if mix and len(mix) != len(styles):
        raise UserError(f"--mix has {len(mix)} weights for {len(styles)} styles; write one for each --style")
    if mask and (mix or structure_from or len(styles) != 2):
        raise UserError("--mask takes two --style, the first inside and the second outside, and no other way to mix")
    return [Path(style) for style in styles]


def check_options(
    files: list[Path],
    groups: list[list[Path]],
    content: str | None,
    out: str | None,
    mask: str | None,
    feather: float | None,
    preserve_color: str | None,
    save_style: str | None,
    overwrite: bool,
) -> None:
    """Raises UserError for what does not go together and can be told without reading a file."""
    if feather is not None and mask is None:
        raise UserError("--feather softens the edge of a mask; name one with --mask, or leave it out")
    kept = [file for file in files if file.suffix.lower() == SUFFIX]
    if kept and preserve_color == "histogram":
        raise UserError(
            f"--preserve-color histogram changes the style's colours before it is read, which {kept[0]} has been; "
            "name the image, or take luminance"
        )
    if save_style is not None:
        if len(groups) > 1 or mask:
            raise UserError(
                f"--save-style keeps one style, but there are {len(files)}; name one, or mix them with --mix"
            )
        if Path(save_style).suffix.lower() != SUFFIX:
            raise UserError(f"--save-style {save_style}: styles are written as {SUFFIX}; name such a file")
        if os.path.exists(save_style) and not overwrite:
            raise UserError(f"--save-style {save_style} is there already; name another, or replace it with --overwrite")
    if content is None and (out is not None or save_style is None):
        raise UserError("--content is missing; only --save-style, without --out, needs none (see --help)")


def plan(
    content: str | None, out: str | None, groups: list[list[Path]], kind: str | None
) -> tuple[list[Job], Path | None]:
    """What is to be done, and the folder that the results go into; None where --out names the only one's file."""
    if content is None:
        return [], None
    contents = find_contents(content)
    if out is None and len(contents) == len(groups) == 1 and not Path(content).is_dir():
        return plan_folder(contents, groups, Path(OUT), f".{kind or 'png'}"), None
    out = OUT if out is None else out
    if means_folder(out):
        if Path(content).is_dir() and Path(content).resolve() == Path(out).resolve():
            raise UserError(
                f"--out {out} is the folder of the contents, and the results would be taken for such the next time; "
                "name another"
            )
        return plan_folder(contents, groups, Path(out), f".{kind or 'png'}"), Path(out)
    if Path(content).is_dir() or len(groups) > 1:
        what = f"{content} is a folder" if Path(content).is_dir() else f"there are {len(groups)} styles without --mix"
        raise UserError(f"--out {out} names a file, but {what}; name a folder")
    if kind is not None:
        raise UserError(f"--format {kind} is for folders; the extension of --out {out} says how a file is written")
    return [plan_file(contents[0], Path(out))], None


def read_inputs(jobs: list[Job], folder: Path | None, mask: str | None, feather: float) -> Tensor | None:
    """Looks at a single content, so that a bad one is told before the model is read; and reads the mask."""
    if mask is not None and (len(jobs) != 1 or jobs[0].video):
        raise UserError("--mask is for a single image as --content, not for folders and videos")
    size = None
    if len({job.content for job in jobs}) == 1:
        content = jobs[0].content
        if jobs[0].video:
            VideoReader(content).close()
        else:
            size = tuple(read_image(content).shape[1:])
    return read_mask(mask, size, feather=feather) if mask is not None else None


def write_style(path: str, model: Stylizer, kernels: Kernels) -> None:
    cli.writable_folder(Path(path).parent, "--save-style")
    save_style(path, model, kernels)


def report(done: list[Job], folder: Path | None) -> None:
    """Prints what there is now."""
    if folder is None:
        for job in done:
            print(job.out)
        return
    counts = Counter("video" if job.video else "image" for job in done)
    parts = [f"{count} {name}{'s' * (count > 1)}" for name, count in sorted(counts.items())]
    what = " and ".join(parts) or "nothing new (--overwrite makes what is there anew)"
    print(f"{what} in {folder.resolve()}")


def names(paths: Iterable[Path]) -> str:
    """Some of the names, for one line."""
    known = [path.name for path in paths]
    return ", ".join(known[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")


if __name__ == "__main__":
    cli.run(main)
