"""`python -m metrics`: judges a snapshot, or a folder of images, against the real ones of a data set."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from metrics.detectors import INCEPTION, OPTION, VGG16
from metrics.judge import Job, judge
from metrics.names import LISTED, parse_metric
from torch_utils import distributed
from torch_utils.cli import Command, Float, option, run
from torch_utils.errors import UserError
from torch_utils.files import cache_folder

EXAMPLE = """\
python -m metrics --metrics fid50k_full,kid50k_full,pr50k3_full --network runs --data ffhq.zip --gpus 8
python -m metrics --metrics fid5k_full,swd --fakes my_images/ --data faces32.zip --json
"""


def describe(name: str, figures: dict[str, Any]) -> str:
    """A metric and its parts in one line: `swd 97.32 (32: 101.2, 16: 93.4)`."""
    own = {key: value for key, value in figures.items() if key.startswith(name + "_")}
    parts = {key.removeprefix(name + "_"): value for key, value in own.items() if not key.startswith(name + "_full")}
    text = ", ".join(f"{key}: {value:.4g}" for key, value in parts.items() if isinstance(value, float))
    if name not in figures:
        return f"{name} {text}"
    return f"{name} {figures[name]:.4g}" + (f" ({text})" if text else "")


def list_metrics() -> None:
    """What there is, and where the detectors are or will be."""
    width = max(map(len, LISTED))
    for name, what in LISTED.items():
        print(f"{name:{width}}  {what}")
    print(
        "\nAny number of images can stand in a name: fid5k_full, kid2k, pr10k3, swd500, ppl2_wend5k.\n"
        "_full: against all real images; without, against as many real ones as fakes."
    )
    print(f"\nDetectors (or {OPTION}), in {cache_folder()} (ADACONV_CACHE names another):")
    for detector, used in ((INCEPTION, "fid, kid, is"), (VGG16, "pr, ppl")):
        file = detector.url.rpartition("/")[2]
        there = "there" if (cache_folder() / file).exists() else f"to be downloaded from {detector.url}"
        print(f"{detector.name:{24}}{used:14}{file}: {there}")


@click.command(cls=Command, example=EXAMPLE)
@option(
    "What",
    "--metrics",
    metavar="NAME,…",
    default="swd",
    help="Figures to work out, e.g. fid50k_full,kid50k_full,pr50k3_full,is50k,ppl2_wend,swd, with any numbers.",
)
@option(
    "What",
    "--network",
    metavar="PATH",
    help="Snapshot to judge, a run or a folder of runs: its newest one; or a network pickle of StyleGAN2 (.pkl).",
)
@option("What", "--fakes", metavar="PATH", help="Folder or ZIP of images to judge in place of --network.")
@option("What", "--data", metavar="PATH", help="Real images: a folder or ZIP.")
@option("What", "--list", "listed", is_flag=True, help="Say which metrics there are, and where the detectors are.")
@option("How", "--mirror", is_flag=True, help="Count every real image flipped left-right as well.")
@option("How", "--trunc", type=Float(-10, 10), default=1.0, help="Truncation psi of the fakes; 1 is none.")
@option(
    "How",
    "--seed",
    type=click.IntRange(0, 2**30),
    default=0,
    help="Of the choice of images, the latents, and the random patches and directions.",
)
@option(
    "How",
    OPTION,
    metavar="FILE",
    multiple=True,
    help="Weights of a detector, in place of downloading them: .pth or .safetensors. Can be given for each.",
)
@option(
    "How",
    "--batch",
    type=click.IntRange(1, 2**16),
    default=64,
    help="Images at a time in each process; changes the memory, not the figures.",
)
@option(
    "How",
    "--workers",
    type=click.IntRange(0, 64),
    default=2,
    help="Processes that read images; 0 reads in this one.",
)
@option("How", "--gpus", type=click.IntRange(0), help="0 for the CPU.  [default: all that are there]")
@option("How", "--procs", type=click.IntRange(1), default=1, help="Processes on the CPU, one thread each if several.")
@option("How", "--json", "as_json", is_flag=True, help="Print one JSON object, with all that the figures depend on.")
def main(
    metrics: str,
    listed: bool,
    data: str | None,
    gpus: int | None,
    procs: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Compares generated images, or a folder of images, with real ones."""
    if listed:
        return list_metrics()
    if data is None:
        raise click.UsageError("--data is missing: name a folder or ZIP of real images")
    if (options["network"] is None) == (options["fakes"] is None):
        both = "" if options["network"] is None else ", not both"
        raise UserError(f"name --network or --fakes{both}: what is to be judged")
    names = list(dict.fromkeys(name.strip() for name in metrics.split(",")))
    for name in names:
        if parse_metric(name).kind == "ppl" and options["network"] is None:
            raise UserError(f"{name} is of a generator, not of images; name one with --network, or leave it out")
    gpus = distributed.count_gpus(gpus)
    job = Job(names=names, data=data, gpus=gpus, **options)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        distributed.launch(judge, job, result, processes=gpus or procs, gpus=gpus > 0)
        if not result.exists():
            raise KeyboardInterrupt  # which, like SIGTERM, ends several processes without a word
        figures = json.loads(result.read_text())
    if as_json:
        print(json.dumps(figures))
    else:
        for name in names:
            print(describe(name, figures))


if __name__ == "__main__":
    run(main)
