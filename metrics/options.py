"""The options that `python -m metrics` and `python -m metrics report` share."""

from __future__ import annotations

from collections.abc import Callable

import click

from metrics.detectors import OPTION
from torch_utils.cli import Color, Floats, option

BACKGROUND = option(
    "How",
    "--background",
    default="white",
    type=Color(),
    help="Colour that transparent images, real and generated ones, are laid on, since metrics see colours only.",
)
OPTIONS = (  # of all that evaluates
    option(
        "What",
        "--metrics",
        metavar="NAME,…",
        default="swd",
        help="Metrics to compute, e.g. fid50k_full,kid50k_full,pr50k3_full,is50k,ppl2_wend,swd. "
        "python -m metrics --list explains all.",
    ),
    option(
        "What",
        "--network",
        metavar="PATH",
        help="Snapshot to evaluate, or StyleGAN2's networks (.pkl, .pt). For a run or a folder of runs, its newest "
        "snapshot is evaluated.",
    ),
    option(
        "What",
        "--data",
        metavar="PATH",
        help="Folder, ZIP or shards of the real images. Beside --fakes, they can have any sizes, except for SWD. For "
        "Fréchet distances, also an .npz file of their statistics, mu and sigma.",
    ),
    BACKGROUND,
    option("How", "--mirror", is_flag=True, help="Add a left-right flipped copy of every real image."),
    option(
        "How",
        "--trunc",
        type=Floats(-10, 10),
        help="Truncation psi of the snapshot's images. Several, such as 0.5,0.7,1, give a table, and a plot "
        "of precision against recall in --plot.  [default: 1, none]",
    ),
    option(
        "How",
        "--extrapolate",
        is_flag=True,
        help="Add to each Fréchet distance what it tends to as the number of generated images grows (FID∞), as _inf.",
    ),
    option(
        "How",
        "--seed",
        type=click.IntRange(0, 2**30),
        default=0,
        help="Seed for the choice of images, the latents, and SWD's patches and directions.",
    ),
    option(
        "How",
        OPTION,
        metavar="FILE",
        multiple=True,
        help="File with the weights of a published detector, such as Inception-v3 or VGG-16, instead of downloading "
        "them. Can be given for each.",
    ),
    option(
        "How",
        "--batch",
        type=click.IntRange(1, 2**16),
        default=64,
        help="Batch size of each process. It changes the memory that is needed, not the metrics.",
    ),
    option(
        "How",
        "--workers",
        type=click.IntRange(0, 64),
        default=2,
        help="Number of processes that read images; 0 reads them in the process that computes.",
    ),
    option("How", "--gpus", type=click.IntRange(0), help="Number of GPUs; 0 computes on the CPU.  [default: all]"),
    option("How", "--procs", type=click.IntRange(1), default=1, help="Number of processes on the CPU, with --gpus 0."),
)


def evaluation_options(command: Callable) -> Callable:
    """The options of all that evaluates."""
    for add in reversed(OPTIONS):
        command = add(command)
    return command
