"""Projection: finds the latents with which a generator makes given images. `python projector.py --target photo.png`"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

# Before PyTorch starts its threads: on shared cores, threads that wait should not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from latents.cli import Numbers
from latents.codes import Codes, fingerprint, save_codes
from latents.names import target_names
from latents.perception import Features, VGGFeatures, find_features
from latents.projection import Progress, Projection, ProjectionConfig, project, psnr
from latents.targets import Targets, find_targets, read_targets
from media.decode import MAX_PIXELS
from media.images import preview_grid, save_png, to_float, to_uint8
from media.video_writer import VideoWriter
from models.classes import chosen_class, chosen_label
from models.encoder import URL
from models.hub import NETWORK_HELP, find_model
from models.sampling import one_hot
from models.snapshot import PRETRAINED, found_text, load_generator
from networks.generator import Generator
from torch_utils import cli
from torch_utils.cli import choose_device
from torch_utils.errors import UserError, command_line, note, plural, show
from torch_utils.files import as_typed, check_inputs_survive
from torch_utils.memory import keep_freed_memory
from torch_utils.sizes import size_text

MAX_WIDTH = 4096  # pixels of a sheet that could be narrower; also the largest width and height of the video
FRAMES, FPS = 250, 25  # approximate number of frames of the video, and their rate per second
VIDEO_WIDTH = 1024  # pixels that a video of small images is enlarged to, approximately

EXAMPLE = """\
python projector.py --target photo.png
python projector.py --network runs/00003-ffhq-adaconv-auto8 --target portraits/ --space w+ --video
python generate.py --w out/projected-photo.npz
"""


@dataclass(frozen=True)
class Request:
    """Which images are projected, with which model, and where the results go."""

    network: str | None
    target: str
    class_name: int | str | None
    label: tuple[float, ...] | None
    encoder_weights: str | None
    outdir: str
    video: bool
    batch: int
    device: str | None


@click.command(cls=cli.Command, example=EXAMPLE)
@cli.network_option(help=NETWORK_HELP)
@cli.option(
    "Images",
    "--target",
    required=True,
    metavar="PATH",
    help="An image, a folder of images, or a data set. The middle of each image, in the shape of the generator's "
    "images, is resized to their size. Frame a photo as the model's training images were.",
)
@cli.option(
    "Images",
    "--class",
    "class_name",
    type=cli.ClassName(),
    help="Class, by number or by name, whose latents the search starts from.  [default: all classes in turn]",
)
@cli.option("Images", "--label", type=Numbers(-1e30, 1e30), help="Label, such as 0.2,0.7, in place of a class.")
@cli.option(
    "Search",
    "--space",
    type=click.Choice(["w", "w+"]),
    default=ProjectionConfig.space,
    help="w: one w for all layers, which can be edited best. w+: one for each layer, which comes nearer to the target.",
)
@cli.option(
    "Search", "--steps", type=cli.Integer(1, 10**6), default=ProjectionConfig.steps, help="Steps of the optimizer."
)
@cli.option(
    "Search",
    "--lr",
    type=cli.Float(0, 100, min_open=True),
    default=ProjectionConfig.lr,
    help="Largest learning rate of the schedule.",
)
@cli.option(
    "Search",
    "--candidates",
    type=cli.Integer(0, 10_000),
    default=ProjectionConfig.candidates,
    help="Number of random w, of which the search starts from the nearest; 0 starts from the mean w.",
)
@cli.option(
    "Search",
    "--starts",
    type=cli.Integer(1, 1000),
    default=ProjectionConfig.starts,
    help="Number of the nearest candidates to start from; the best result is kept.",
)
@cli.option(
    "Search",
    "--noise-mode",
    "noise",
    type=click.Choice(["optimize", "const"]),
    default=ProjectionConfig.noise,
    help="optimize: search for the noise maps as well. const: keep the model's constant noise.",
)
@cli.option(
    "Search", "--seed", type=cli.Integer(0, 2**63 - 1), default=0, help="Seed of the candidates and of the noise on w."
)
@cli.option(
    "Search",
    "--encoder-weights",
    metavar="FILE",
    help="VGG-19 to compare images by: a .pth file of torchvision or a .safetensors file of train_encoder.py.  "
    "[default: torchvision's, if it is in the cache; otherwise images are compared by pixels and patches]",
)
@cli.outdir_option()
@cli.option(
    "Output", "--video", is_flag=True, help="Write a video of the search, projected-….mp4, with targets beside results."
)
@cli.option("Machine", "--batch", type=cli.Integer(1, 2**16), default=16, help="Images that are optimized at a time.")
@cli.device_option()
@cli.gather(Request, "request")
@cli.gather(ProjectionConfig, "config")
def main(request: Request, config: ProjectionConfig) -> None:
    """Find the latents with which a model makes given images, or images near them.

    The results for photo.jpg are projected-photo.npz, the latents for generate.py --w, and projected-photo.png, the
    target beside the result. Several targets have an .npz file each, and one .png file called as what --target names.
    """
    keep_freed_memory()
    if config.starts > max(config.candidates, 1):
        raise UserError(
            f"--starts {config.starts} needs at least as many --candidates to choose from, not {config.candidates}"
        )
    files = find_targets(request.target)
    path, device = find_model(request.network), torch.device(choose_device(request.device))
    G, info = load_generator(path, device)
    class_number, label = None, None
    if request.class_name is not None:
        class_number = chosen_class(request.class_name, G.config, info, path)
        label = one_hot(torch.tensor([class_number]), G.config.c_dim)[0]
    if request.label is not None:
        label = chosen_label(request.label, G, path)
    targets = read_targets(files, G.config.resolution, G.config.img_channels)
    identity = fingerprint(path)  # now: the search may take longer than a running training keeps this file
    features, compared = find_features(request.encoder_weights, device)
    folder = cli.writable_folder(request.outdir)
    codes, sheet = result_paths(folder, request.target, targets.names)
    video = sheet.with_name(f"{sheet.stem}.mp4") if request.video else None
    outs = [cli.writable_file(path, "--outdir") for path in (*codes, sheet, *([video] if video else []))]
    check_inputs_survive(outs, [file.path for file in files], "name another folder with --outdir")
    for reason in targets.skipped:
        note(f"skipped: {reason}")
    if targets.enlarged:
        note(f"note: enlarged images, smaller than {size_text(G.config.resolution)} pixels: {targets.enlarged:,}")
    note(f"network: {path} ({info['kimg']:g} kimg){found_text(request.network, path)}")
    note(f"images are compared by {compared}{'' if isinstance(features, VGGFeatures) else vgg_hint()}")

    about = {
        "network": str(path),
        "fingerprint": identity,
        "class": class_number,
        "label": request.label,
        "compared_by": compared,
        "projection": asdict(config),
    }
    batches = search(G, targets, features, config, label, request, video)
    ratios, images = save_each(batches, targets, codes, about)
    save_sheet(targets, images, sheet)
    for name, decibel in zip(targets.names, ratios, strict=True):
        show(f"{decibel:5.1f} dB  {name}")
    for out in outs:
        show(out)
    if targets.skipped:
        raise UserError(
            f"{len(targets.skipped)} of {plural(len(files), 'target')} could not be used, as listed above; the others "
            "were projected"
        )


def vgg_hint() -> str:
    """How to compare by VGG-19 where there are no weights."""
    shipped = command_line("--encoder-weights", as_typed(PRETRAINED / "tiny-imagenet.safetensors"))
    return f"; {shipped} compares by a small VGG-19 that is shipped, {URL} has ImageNet's weights for --encoder-weights"


def result_paths(folder: Path, target: str, names: Sequence[str]) -> tuple[list[Path], Path]:
    """The .npz file of each target, and the .png file of all, which is called as the only one, or else as --target."""
    own = target_names(names)
    given = Path(target).resolve()
    (together,) = own if len(own) == 1 else target_names([given.name if given.is_dir() else given.stem])
    return [folder / f"projected-{name}.npz" for name in own], folder / f"projected-{together}.png"


def search(
    G: Generator,
    targets: Targets,
    features: Features,
    config: ProjectionConfig,
    label: Tensor | None,
    request: Request,
    video: Path | None,
) -> Iterator[Projection]:
    """Projects the targets, batch by batch. The results are on the CPU, with uint8 images."""
    total, device = len(targets.images), G.w_avg.device
    with VideoWriter(video, FPS) if video else nullcontext() as writer:
        for start in range(0, total, request.batch):
            some = to_float(targets.images[start : start + request.batch].to(device))
            with progress_bar(start, total, some, config, writer, request.batch) as progress:
                found = to_cpu(project(G, some, features, config, label, progress))
            yield found


def save_each(
    batches: Iterator[Projection], targets: Targets, files: Sequence[Path], about: dict[str, Any]
) -> tuple[list[float], Tensor]:
    """Writes the latents of each batch as soon as they are found; returns the PSNR of each image in dB, and the images.

    Says how many are written when it is stopped.
    """
    ratios: list[float] = []
    images = []
    try:
        for found in batches:
            first = len(ratios)
            some = targets.images[first : first + len(found.images)]
            ratios += psnr(to_float(found.images), to_float(some)).tolist()
            images.append(found.images)
            for i, file in enumerate(files[first : len(ratios)]):
                own = {"targets": [targets.names[first + i]], "distance": [float(found.distance[i])]}
                own["psnr"] = [ratios[first + i]]
                save_codes(file, Codes(found.ws, found.noise, {**about, **own})[i : i + 1])
    except KeyboardInterrupt:
        note(f"the latents of {len(ratios):,} of {plural(len(files), 'image')} are in {files[0].parent}")
        raise
    return ratios, torch.cat(images)


@contextmanager
def progress_bar(
    start: int, total: int, targets: Tensor, config: ProjectionConfig, writer: VideoWriter | None, batch: int
) -> Iterator[Progress]:
    """Gives a function that shows the loss and the PSNR of a batch, and adds frames to the video."""
    last = start + len(targets)
    name = f"images {start + 1}-{last} of {total}" if total > len(targets) else None
    every = max(config.steps // FRAMES, 1)
    with tqdm(total=config.steps, desc=name, unit="step", file=sys.stderr, disable=None) as bar:

        def progress(step: int, loss: Tensor, images: Tensor) -> None:
            if not bar.disable and step % 10 == 0:
                bar.set_postfix_str(f"loss {loss.mean():.4f}  PSNR {psnr(images, targets).mean():.1f} dB")
            if writer is not None and (step % every == 0 or step == config.steps - 1):
                writer.write(make_frame(targets, images, min(batch, total)))
            bar.update()

        yield progress


def to_cpu(found: Projection) -> Projection:
    """The projection on the CPU, as the noise of many images would fill a GPU, with uint8 images."""
    noise = found.noise and [maps.cpu() for maps in found.noise]
    return Projection(found.ws.cpu(), noise, to_uint8(found.images).cpu(), found.distance.cpu())


# --- the sheet and the video ----------------------------------------------------------------------------------------


def count_columns(pairs: int, width: int) -> int:
    """The number of columns of a sheet of pairs of images of this width."""
    return max(min(pairs, 8, MAX_WIDTH // (2 * width)), 1)


def side_by_side(targets: Tensor, images: Tensor) -> Tensor:
    """One image of all pairs from uint8 [N, C, H, W] each, with the target on the left."""
    return preview_grid(torch.cat([targets, images], dim=3), count_columns(len(targets), targets.shape[3]))


def save_sheet(targets: Targets, images: Tensor, path: Path) -> None:
    """Writes the sheet of targets and results, of as many as an image may hold."""
    count = len(images)
    shown = max(MAX_PIXELS // (2 * images.shape[2] * images.shape[3]), 1)
    if count > shown:
        note(f"note: {path.name} has room for only the first {shown} of {count} images")
    save_png(side_by_side(targets.images[:shown], images[:shown]), path)


def make_frame(targets: Tensor, images: Tensor, places: int) -> Tensor:
    """A frame [3, H, W] of the video, with places for so many pairs, or for as many as fit."""
    height, width = targets.shape[2:]
    places = min(places, count_columns(places, width) * max(MAX_WIDTH // height, 1))
    pairs = torch.full([2, places, *targets.shape[1:]], 255, dtype=torch.uint8)
    for row, some in zip(pairs, (targets[:places], images[:places]), strict=True):
        row[: len(some)] = to_uint8(some)
    sheet = side_by_side(pairs[0], pairs[1])
    factor = max(VIDEO_WIDTH // sheet.shape[2], 1)
    return F.interpolate(sheet[None], scale_factor=factor)[0].expand(3, -1, -1)


if __name__ == "__main__":
    cli.run(main)
