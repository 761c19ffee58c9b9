"""Stylizes images and videos. `python stylize.py --content photo.jpg --style painting.jpg`"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

# Must be set before PyTorch starts its threads. Where cores are shared, waiting threads should not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from torch import Tensor

from latents.kernel_views import style_sheet
from media.excerpt import Excerpt
from media.files import check_side, read_image
from media.resize import smaller_size
from media.video import VideoReader
from models.snapshot import STYLIZER, find_snapshot, found_text, load_stylizer
from networks.stylizer import Stylizer, resize_square
from styling.apply import Settings
from styling.cli import SMOOTH, Options, Tile, Weights, check_other_options, check_style_options
from styling.frames import check_frames
from styling.mask import read_mask
from styling.shifts import SHIFTS
from styling.styles import CombinedStyle, read_style, save_style
from styling.tasks import Task, Worker, find_contents, names_folder, plan_file, plan_folder, plan_sequence
from torch_utils import cli
from torch_utils.errors import UserError, listed, note, show
from torch_utils.files import check_inputs_survive, short_name, write_file
from torch_utils.memory import keep_freed_memory

OUT = "out"  # the folder of the results without --out

EXAMPLE = """\
python stylize.py --content photo.jpg --style painting.jpg
python stylize.py --content photos/ --style a.jpg --style b.jpg --mix 0.7,0.3 --strength 0.8 --out stylized/
python stylize.py --content film.mp4 --style painting.jpg --style-scale 2 --preserve-color luminance --out out.mp4
python stylize.py --content film.mp4 --style painting.jpg --max-side 480 --start 60 --length 5 --out preview.mp4
python stylize.py --content photo.jpg --style sky.jpg --style ground.jpg --mask sky-mask.png --feather 8 --out out.jpg
python stylize.py --content frames/ --sequence --style painting.jpg --out stylized-frames/
python stylize.py --style painting.jpg --save-style painting.safetensors
"""


@dataclass(frozen=True)
class Plan:
    """What is written: a file for each task, in `folder`, or the only one anywhere with `folder` None."""

    tasks: list[Task]
    folder: Path | None
    sequence: bool = False  # whether the contents are the frames of one film


@click.command(cls=cli.Command, example=EXAMPLE)
@cli.option(
    "Input",
    "--model",
    metavar="PATH",
    help="Snapshot of a stylizer, run folder, or folder of runs.  [default: the newest stylizer under runs, or the one "
    "that comes with the code]",
)
@cli.option("Input", "--content", metavar="PATH", help="Image, video, or folder of images and videos to stylize.")
@cli.option(
    "Input",
    "--style",
    multiple=True,
    metavar="FILE",
    help="Image of the style, or file that --save-style wrote. Repeat it for one result per style, or combine several "
    "with --mix or --mask.",
)
@cli.option(
    "Input",
    "--sequence",
    is_flag=True,
    help="Take the images of the folder --content, in the order of the numbers in their names, as the frames of one "
    "film: stylized without flicker, and written under the same names.",
)
@cli.option(
    "Input",
    "--max-side",
    type=cli.Integer(16, 1 << 20),
    metavar="N",
    help="Make the content smaller first, so that its longer side has at most N pixels, which is faster. Strokes keep "
    "their size, so that they are larger in the picture. Videos and sequences get even sizes.",
)
@cli.option(
    "Input",
    "--start",
    type=cli.Float(0, 1e6),
    metavar="SECONDS",
    help="Begin a video at this second, with its sound.  [default: 0]",
)
@cli.option(
    "Input",
    "--length",
    type=cli.Float(0.001, 1e6),
    metavar="SECONDS",
    help="Stylize only so many seconds of a video, for a preview.  [default: all of it]",
)
@cli.option(
    "Style", "--mix", type=Weights(), help="Mix all --style into one, with weights that sum to 1, such as 0.7,0.3."
)
@cli.option(
    "Style",
    "--structure-from",
    metavar="FILE",
    help="Take the depthwise kernels from this style (AdaConv models only); needs --statistics-from and replaces "
    "--style.",
)
@cli.option(
    "Style",
    "--statistics-from",
    metavar="FILE",
    help="Take the pointwise kernels and biases from this style; needs --structure-from and replaces --style.",
)
@cli.option(
    "Style",
    "--style-scale",
    type=cli.Float(0.5, 4),
    default=1.0,
    help="Size of the strokes relative to the style image: 2 doubles it, 0.5 halves it.",
)
@cli.option(
    "Style", "--save-style", metavar="FILE", help="Save the style as predicted kernels, in a .safetensors file."
)
@cli.option(
    "Style",
    "--show-kernels",
    metavar="PNG",
    help="Draw the kernels that one or two styles predict, layer by layer, and their differences. Needs no --content.",
)
@cli.option(
    "Look",
    "--strength",
    type=cli.Float(0, 1),
    default=1.0,
    help="Strength of the style, from 0 (the content's own) to 1.",
)
@cli.option(
    "Look",
    "--preserve-color",
    type=click.Choice(["luminance", "histogram"]),
    help="Keep the content's colours: stylize only the luminance, or give the style image the content's colours first.",
)
@cli.option(
    "Look",
    "--mask",
    metavar="FILE",
    help="Apply the first of two styles where this image is white, and the second where it is black. For a film, it "
    "is stretched to the size of the frames, and is the same for all of them.",
)
@cli.option(
    "Look",
    "--feather",
    type=cli.Float(0, 1000),
    help="Soften the edges of the mask by this number of pixels.  [default: 0]",
)
@cli.option(
    "Look",
    "--smooth",
    type=cli.Float(0, 1),
    default=SMOOTH,
    help="Reduce flicker from frame to frame of videos and of a --sequence, from 0 (not at all) to 1 (most).",
)
@cli.option(
    "Look",
    "--shifts",
    type=click.Choice([str(number) for number in SHIFTS]),
    default="1",
    help="Average over the content in this many places on the encoder's grid of 8 pixels: with 4, the regular pattern "
    "(weave) of even areas becomes weaker, strokes a little softer, and it takes 4 times as long.",
)
@cli.option(
    "Output",
    "--out",
    metavar="PATH",
    help="File to write, or folder for files named content-style.png.  [default: out, where results are replaced; with "
    "--sequence, a folder named content-style in it]",
)
@cli.option(
    "Output",
    "--format",
    type=click.Choice(["png", "jpg", "webp"]),
    help="File format of images that are written to a folder.  [default: png; with --sequence, that of each frame]",
)
@cli.option(
    "Output",
    "--overwrite",
    is_flag=True,
    help="Replace results in a folder that --out names, which are kept otherwise, and saved styles or kernels.",
)
@cli.option(
    "Machine",
    "--tile",
    type=Tile(),
    default="auto",
    help="Side in pixels of the tiles that large images are divided into, to save memory.",
)
@cli.option(
    "Machine",
    "--batch",
    type=cli.Integer(1, 1024),
    help="Frames of a film that are stylized together.  [default: 1, or on a GPU by their size]",
)
@cli.inference_precision_option()
@cli.device_option()
def main(**given: Any) -> None:
    """Stylize an image, a video, or a folder of them."""
    keep_freed_memory()
    options = Options(**given)
    check_style_options(options)
    check_other_options(options)
    plan = plan_results(options)
    snapshot = find_snapshot(options.model, STYLIZER)
    check_inputs_survive(outputs(options, plan), inputs(options, plan, snapshot))
    tasks = unfinished(options, plan)
    if not tasks and options.save_style is None and options.show_kernels is None:
        return report(tasks, plan.folder)
    mask = check_inputs(options, plan)
    model, styles = load(options, snapshot)
    if options.save_style is not None:
        cli.writable_file(options.save_style, "--save-style")
        save_style(options.save_style, model, styles[0].kernels())
        show(options.save_style)
    if options.show_kernels is not None:
        cli.writable_file(options.show_kernels, "--show-kernels")
        draw_kernels(Path(options.show_kernels), styles, model.config.style_size)
    if plan.tasks:
        cli.writable_folder(plan.folder or plan.tasks[0].out.parent, "--out")
        look = options.strength, options.preserve_color, options.tile, options.smooth, options.precision
        settings = Settings(*look, int(options.shifts), options.feather or 0, options.max_side)
        excerpt = Excerpt(options.start or 0, options.length)
        stylize(Worker(model, styles, settings, mask=mask, batch=options.batch, excerpt=excerpt), tasks, plan)


def plan_results(options: Options) -> Plan:
    """Which content in which style is written to which file. Raises UserError if --content or --out do not allow it."""
    if options.content is None:
        return Plan([], None)
    contents, results = find_contents(options.content), options.results
    if options.sequence:
        return plan_film(options, contents)
    is_folder = Path(options.content).is_dir()
    suffix = f".{options.format or 'png'}"
    if options.out is None and len(contents) == len(results) == 1 and not is_folder:
        return Plan(plan_folder(contents, results, Path(OUT), suffix), None)
    out = OUT if options.out is None else options.out
    if names_folder(out):
        check_other_folder(options.content, out)
        return Plan(plan_folder(contents, results, Path(out), suffix), Path(out))
    if is_folder or len(results) > 1:
        why = f"{options.content} is a folder" if is_folder else f"there are {len(results)} styles without --mix"
        raise UserError(f"--out {out} names a file, but {why}; name a folder")
    if options.format is not None:
        raise UserError(
            f"--format {options.format} is for folders; the extension of --out {out} chooses the format of a file"
        )
    return Plan([plan_file(contents[0], Path(out))], None)


def plan_film(options: Options, frames: list[Path]) -> Plan:
    """The frames of a folder as one film. Raises UserError if --content, --out or the styles do not allow it."""
    content = Path(options.content or "")
    if not content.is_dir():
        raise UserError(f"--sequence is for a folder of images, and {content} is none; name a folder, or leave it out")
    if (count := len(options.results)) > 1:
        raise UserError(f"--sequence makes one film, and there are {count} styles; mix them with --mix, or name one")
    out = options.out
    if out is None:
        names = "-".join(file.stem for file in options.style_files)
        out = os.path.join(OUT, short_name(f"{content.resolve().name}-{names}"))
    elif not names_folder(out):
        raise UserError(f"--out {out} names a file, but --sequence writes as many images as it reads; name a folder")
    check_other_folder(content, out)
    suffix = f".{options.format}" if options.format else None
    return Plan(plan_sequence(frames, Path(out), suffix), Path(out), sequence=True)


def check_other_folder(content: str | os.PathLike, out: str) -> None:
    """Raises UserError if the results would be written into the folder of the contents."""
    if Path(content).is_dir() and Path(content).resolve() == Path(out).resolve():
        raise UserError(
            f"--out {out} is the folder of the contents, so the next run would stylize the results; name another folder"
        )


def outputs(options: Options, plan: Plan) -> list[Path]:
    """The files that are written."""
    return [task.out for task in plan.tasks] + [
        Path(name) for name in [options.save_style, options.show_kernels] if name
    ]


def inputs(options: Options, plan: Plan, snapshot: Path) -> list[Path]:
    """The files that are read."""
    contents = [task.content for task in plan.tasks]
    return [
        snapshot,
        *options.style_files,
        *contents,
        *(Path(name) for name in (options.content, options.mask) if name),
    ]


def unfinished(options: Options, plan: Plan) -> list[Task]:
    """The tasks to do: in a folder that --out names, those whose files do not exist yet, unless --overwrite.

    The default folder may hold results of other contents or options, so these are always replaced. Raises UserError if
    there is a part of a sequence, which cannot be gone on with.
    """
    if plan.folder is None or options.out is None or options.overwrite:
        return plan.tasks
    missing = [task for task in plan.tasks if not os.path.exists(task.out)]
    if plan.sequence and 0 < len(missing) < len(plan.tasks):
        there = len(plan.tasks) - len(missing)
        raise UserError(
            f"{plan.folder} holds {there:,} of {len(plan.tasks):,} frames already, and each follows from those before; "
            "stylize all of them again with --overwrite, or name another folder"
        )
    return missing


def draw_kernels(path: Path, styles: list[CombinedStyle], size: int) -> None:
    """Writes the sheet of one or two styles' kernels, for contents of size² pixels."""
    parts = {part.path: part for style in styles for part in style.styles}
    stems = Counter(file.stem for file in parts)
    label = {file: file.stem if stems[file.stem] == 1 else str(file) for file in parts}
    names = [" + ".join(dict.fromkeys(label[part.path] for part in style.styles)) for style in styles]
    images = {label[file]: resize_square(part.image, 128) for file, part in parts.items() if part.image is not None}
    write_file(path, style_sheet(names, images, [style.kernels() for style in styles], size))
    show(path)


def check_inputs(options: Options, plan: Plan) -> Tensor | None:
    """Reads a single content, so that errors are reported before the model is loaded, and the mask, if there is one."""
    contents = {task.content: task.video for task in plan.tasks}
    if (given := options.of_videos) and contents and not any(contents.values()):
        verb, them = ("is", "it") if len(given) == 1 else ("are", "them")
        raise UserError(f"{' and '.join(given)} {verb} for videos, and {options.content} has none; leave {them} out")
    if options.format is not None and contents and all(contents.values()):
        raise UserError(f"--format {options.format} is for images, and {options.content} has none; leave it out")
    size = None
    if plan.sequence:
        check_frames(list(contents))
    elif len(contents) == 1:
        ((content, video),) = contents.items()
        if video:
            VideoReader(content).close()
        else:
            _, height, width = read_image(content).shape
            size = height, width
            for task in plan.tasks:
                check_side(task.out, *reversed(smaller_size(height, width, options.max_side)))
    if options.mask is None:
        return None
    if len(plan.tasks) != 1 and not plan.sequence:
        raise UserError(
            "--mask is for a single image or video as --content, or a --sequence, not for a folder of several"
        )
    return read_mask(options.mask, size)


def load(options: Options, snapshot: Path) -> tuple[Stylizer, list[CombinedStyle]]:
    """The model and the styles, each file of which is read once."""
    model, _ = load_stylizer(snapshot, cli.choose_device(options.device))
    about = f"{model.config.modulation}, width {model.config.width:g}"
    note(f"model: {snapshot} ({about}){found_text(options.model, snapshot, STYLIZER)}")
    if options.structure_from and model.style_encoder is None:
        raise UserError(
            "--structure-from and --statistics-from take predicted kernels apart, and AdaIN has none; name a model "
            "with AdaConv, or one --style"
        )
    read = {file: read_style(model, file, options.style_scale) for file in dict.fromkeys(options.style_files)}
    return model, [CombinedStyle(tuple(read[file] for file in files), options.mix) for files in options.styles]


def stylize(worker: Worker, tasks: Sequence[Task], plan: Plan) -> None:
    """Does the tasks and reports the results. In a folder, a content that fails does not stop the others."""
    if plan.sequence:
        if tasks:
            worker.do_sequence(tasks)
        return report(tasks, plan.folder)
    failed = worker.do_all(tasks, keep_going=plan.folder is not None)
    for reason in dict.fromkeys(failed.values()):
        note(f"not stylized: {reason}")
    report([task for task in tasks if task not in failed], plan.folder)
    if failed:
        contents = dict.fromkeys(task.content for task in failed)
        total = len({task.content for task in plan.tasks})
        names = listed([path.name for path in contents], 5)
        raise UserError(f"{len(contents)} of {total} contents could not be stylized: {names}")


def report(done: Sequence[Task], folder: Path | None) -> None:
    """Prints the file, or the number of results in the folder."""
    if folder is None:
        for task in done:
            show(task.out)
        return
    counts = Counter("video" if task.video else "image" for task in done)
    parts = [f"{count} {name}{'s' * (count > 1)}" for name, count in sorted(counts.items())]
    what = " and ".join(parts) or "nothing new (--overwrite replaces what is there)"
    show(f"{what} in {folder.resolve()}")


if __name__ == "__main__":
    cli.run(main)
