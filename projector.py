"""The codes of images. `python projector.py --target photo.png`"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import click

# Before PyTorch starts its threads: where cores are shared, those that wait should not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from latents.codes import Codes, fingerprint, save_codes
from latents.perception import Features, PatchFeatures, VGGFeatures
from latents.projection import Projection, ProjectionConfig, project, psnr
from latents.targets import find_targets, read_targets
from media.decode import MAX_PIXELS
from media.images import grid, save_png, to_float, to_uint8
from media.video import VideoWriter
from models.encoder import cached_weights, load_encoder
from models.sampling import check_class
from models.snapshot import find_snapshot, load_generator
from torch_utils import cli
from torch_utils.errors import UserError, printable
from torch_utils.memory import keep_freed_memory

CODES, SHEET, VIDEO = "projected_w.npz", "projected.png", "projected.mp4"
WIDEST = 4096  # pixels of the sheet, where it has a choice; and the most that a frame of the video has a side
FRAMES, RATE = 250, 25  # of the video, about so many in all, and a second
VIDEO_WIDTH = 1024  # small images are enlarged to about that, side by side

EXAMPLE = """\
python projector.py --target photo.png
python projector.py --network runs/00003-ffhq-adaconv-auto8 --target portraits/ --space w+ --video
python generate.py --w out/projected_w.npz
"""


@click.command(cls=cli.Command, example=EXAMPLE)
@cli.option(
    "Model",
    "--network",
    metavar="PATH",
    help="A snapshot, a run, a folder of runs, or a network pickle of StyleGAN2 (.pkl).  [default: the newest under "
    "runs, else the shipped one]",
)
@cli.option(
    "Images",
    "--target",
    required=True,
    metavar="PATH",
    help="An image or a folder of them. The middle square of each is taken, and resized.",
)
@cli.option(
    "Images",
    "--class",
    "class_number",
    type=click.IntRange(0),
    help="Start from codes of this class.  [default: from those of all]",
)
@cli.option(
    "Search",
    "--space",
    type=click.Choice(["w", "w+"]),
    default=ProjectionConfig.space,
    help="w: one code for all layers, which can be edited best; w+: one for each, which comes nearer.",
)
@cli.option(
    "Search", "--steps", type=click.IntRange(1, 10**6), default=ProjectionConfig.steps, help="Steps of the descent."
)
@cli.option(
    "Search",
    "--lr",
    type=cli.Float(0, 100, min_open=True),
    default=ProjectionConfig.lr,
    help="Learning rate at its highest.",
)
@cli.option(
    "Search",
    "--candidates",
    type=click.IntRange(0, 10_000),
    default=ProjectionConfig.candidates,
    help="Start from the nearest of so many random codes; 0: from the mean code.",
)
@cli.option(
    "Search",
    "--starts",
    type=click.IntRange(1, 1000),
    default=ProjectionConfig.starts,
    help="Try so many of the nearest, and keep the best result.",
)
@cli.option(
    "Search",
    "--noise-mode",
    type=click.Choice(["optimize", "const"]),
    default=ProjectionConfig.noise,
    help="Look for the noise maps as well, or take the model's own, for codes that do without a file of noise.",
)
@cli.option("Search", "--seed", type=click.IntRange(0, 2**63 - 1), default=0, help="Other seeds search elsewhere.")
@cli.option(
    "Search",
    "--encoder-weights",
    metavar="FILE",
    help="VGG-19 that images are compared by: a .pth of torchvision or a .safetensors of train_encoder.py.  "
    "[default: torchvision's, if an earlier command has downloaded them; else pixels and patches]",
)
@cli.option("Output", "--outdir", default="out", help=f"Where {CODES} and {SHEET} go.")
@cli.option("Output", "--video", is_flag=True, help=f"Show the search, target beside result, in {VIDEO}.")
@cli.option("Machine", "--batch", type=click.IntRange(1, 2**16), default=16, help="Targets at a time.")
@cli.option("Machine", "--device", type=cli.Device(), help="cpu, cuda or cuda:1.  [default: a GPU if there is one]")
def main(
    network: str | None,
    target: str,
    class_number: int | None,
    space: str,
    steps: int,
    lr: float,
    candidates: int,
    starts: int,
    noise_mode: str,
    seed: int,
    encoder_weights: str | None,
    outdir: str,
    video: bool,
    batch: int,
    device: str | None,
) -> None:
    """Find the codes with which the model makes given images, or what comes nearest."""
    keep_freed_memory()
    if starts > max(candidates, 1):
        raise UserError(f"--starts {starts} needs as many --candidates to choose from, not {candidates}")
    config = ProjectionConfig(
        space=space, steps=steps, lr=lr, candidates=candidates, starts=starts, noise=noise_mode, seed=seed
    )
    paths = find_targets(target)
    path = find_snapshot(network)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    G, info = load_generator(path, device)
    check_class(class_number, G.config.c_dim, path)
    wanted = read_targets(paths, G.config.resolution, G.config.img_channels)
    features, compared = find_features(encoder_weights, device)
    folder = cli.writable_folder(outdir)
    print(f"network: {path} ({info['kimg']:g} kimg)", file=sys.stderr)
    hint = "" if isinstance(features, VGGFeatures) else "; by VGG-19 with --encoder-weights FILE"
    print(f"compared by {compared}{hint}", file=sys.stderr)

    found = []
    with VideoWriter(folder / VIDEO, RATE) if video else nullcontext() as writer:
        for start in range(0, len(wanted), batch):
            targets = to_float(wanted[start : start + batch].to(device))
            with progress_bar(start, len(wanted), targets, config, writer, batch) as progress:
                found.append(on_cpu(project(G, targets, features, config, class_number, progress)))
    images = torch.cat([to_uint8(part.images) for part in found])
    likeness = psnr(to_float(images), to_float(wanted)).tolist()
    about = {
        "network": str(path),
        "fingerprint": fingerprint(path),
        "targets": [file.name for file in paths],
        "class": class_number,
        "compared_by": compared,
        "projection": asdict(config),
        "distance": torch.cat([part.distance for part in found]).tolist(),
        "psnr": likeness,
    }
    save_codes(folder / CODES, joined(found, about))
    shown = max(MAX_PIXELS // (2 * G.config.resolution**2), 1)
    if len(wanted) > shown:
        print(f"note: {SHEET} has room for the first {shown} of {len(wanted)} images", file=sys.stderr)
    save_png(side_by_side(wanted[:shown], images[:shown]), folder / SHEET)
    for file, decibel in zip(paths, likeness, strict=True):
        print(f"{decibel:5.1f} dB  {printable(file.name)}")
    print(folder / CODES)


def find_features(weights: str | None, device: torch.device) -> tuple[Features, str]:
    """What images are compared by, and its name. Nothing is downloaded."""
    if weights is None and not cached_weights().is_file():
        return PatchFeatures(), "pixels and patches at several scales"
    file = Path(weights) if weights is not None else cached_weights()
    return VGGFeatures(load_encoder(file, device)), f"the features of VGG-19 ({file.name})"


@contextmanager
def progress_bar(
    start: int, total: int, targets: Tensor, config: ProjectionConfig, writer: VideoWriter | None, batch: int
) -> Iterator:
    """What shows the loss and PSNR of a batch while it is searched for, and adds frames to the video."""
    last = start + len(targets)
    name = f"images {start + 1}-{last} of {total}" if total > len(targets) else None
    every = max(config.steps // FRAMES, 1)
    with tqdm(total=config.steps, desc=name, unit=" steps", file=sys.stderr, disable=None) as bar:

        def progress(step: int, loss: Tensor, images: Tensor) -> None:
            if not bar.disable and step % 10 == 0:
                bar.set_postfix_str(f"loss {loss.mean():.4f}  PSNR {psnr(images, targets).mean():.1f} dB")
            if writer is not None and (step % every == 0 or step == config.steps - 1):
                writer.write(frame(targets, images, min(batch, total)))
            bar.update()

        yield progress


def columns(count: int, side: int) -> int:
    """Of a sheet of so many pairs of images."""
    return max(min(count, 8, WIDEST // (2 * side)), 1)


def side_by_side(targets: Tensor, images: Tensor) -> Tensor:
    """uint8 [N, C, H, W] each → one image of pairs, the target on the left."""
    return grid(torch.cat([targets, images], dim=3), columns(len(targets), targets.shape[3]))


def frame(targets: Tensor, images: Tensor, places: int) -> Tensor:
    """The sheet of a moment as an image [3, H, W] of the video, which has so many places for pairs, or what fits."""
    side = targets.shape[3]
    places = min(places, columns(places, side) * max(WIDEST // side, 1))
    pairs = torch.full([2, places, *targets.shape[1:]], 255, dtype=torch.uint8)
    for row, some in zip(pairs, (targets[:places], images[:places]), strict=True):
        row[: len(some)] = to_uint8(some)
    sheet = side_by_side(*pairs)
    larger = max(VIDEO_WIDTH // sheet.shape[2], 1)
    return F.interpolate(sheet[None], scale_factor=larger)[0].expand(3, -1, -1)


def on_cpu(found: Projection) -> Projection:
    """The same, off the GPU: the noise of many images would fill it."""
    noise = found.noise and [maps.cpu() for maps in found.noise]
    return Projection(found.ws.cpu(), noise, found.images.cpu(), found.distance.cpu())


def joined(found: list[Projection], about: dict) -> Codes:
    noise = None
    if found[0].noise is not None:
        noise = [torch.cat(maps) for maps in zip(*(part.noise for part in found), strict=True)]
    return Codes(torch.cat([part.ws for part in found]), noise, about)


if __name__ == "__main__":
    cli.run(main)
