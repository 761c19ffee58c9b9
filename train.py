"""Trains a generator. `python train.py --data ffhq.zip --gpus 8`"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

# Before PyTorch starts its threads: where cores are shared, those that wait should not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from torch_utils import cli
from torch_utils.files import missing
from training import command
from training.augment import AUGPIPES
from training.config import PRESETS, TrainConfig, resolve
from training.dataset import ImageDataset
from training.transfer import find_initial

EXAMPLE = """\
python train.py --data ffhq.zip --gpus 8
python train.py --data faces32.zip --cfg demo
python train.py --resume
"""


@click.command(cls=cli.Command, example=EXAMPLE)
@cli.option("Data", "--data", metavar="PATH", help="A folder or ZIP of square pictures (see dataset_tool.py).")
@cli.option("Data", "--cond", is_flag=True, help="Train with the data set's class labels.")
@cli.option("Data", "--mirror", is_flag=True, help="Show every picture flipped left-right as well.")
@command.run_options(kimg=25000, tick=4, snap=50)
@cli.option(
    "Run",
    "--metrics",
    metavar="NAMES",
    help="Metrics at snapshots, e.g. fid50k_full,swd2k; or none (python -m metrics --list).  [default: swd]",
)
@cli.option(
    "Run",
    "--detector-weights",
    metavar="FILE",
    multiple=True,
    help="Weights that FID and others need, in place of downloading them.",
)
@command.machine_options(half="the highest 4 resolutions", compiled="the steps without regularizers")
@cli.option(
    "Training",
    "--cfg",
    type=click.Choice(PRESETS),
    help="Preset that the other options change. auto: StyleGAN2's size, with batch and learning rates for the "
    "resolution and the GPUs. demo: small and short, minutes on two CPU cores at 32². The others: as published, "
    "for StyleGAN2 and StyleGAN2-ADA.  [default: auto]",
)
@cli.option("Training", "--batch", type=click.IntRange(1, 2**16), help="Pictures a step, over all GPUs.")
@cli.option(
    "Training",
    "--loss",
    type=click.Choice(["nonsaturating", "relativistic"]),
    help="nonsaturating: StyleGAN2's, with R1. relativistic: R3GAN's, with R1 and R2.  [default: nonsaturating]",
)
@cli.option("Training", "--gamma", type=cli.Float(0), help="Weight of R1.  [default: 0.0002 · resolution² / batch]")
@cli.option("Training", "--glr", type=cli.Float(0, min_open=True), help="The generator's learning rate.")
@cli.option("Training", "--dlr", type=cli.Float(0, min_open=True), help="The discriminator's learning rate.")
@cli.option(
    "Training",
    "--aug",
    type=click.Choice(["noaug", "ada", "fixed"]),
    help="Augment what the discriminator sees: ada finds out how much, fixed takes --p.  [default: noaug]",
)
@cli.option(
    "Training",
    "--augpipe",
    type=click.Choice(list(AUGPIPES)),
    help="Transforms: blit, geom, color, filter, noise, cutout, or the first letters of several.  [default: bgc]",
)
@cli.option("Training", "--target", type=cli.Float(-1, 1), help="ada's target for E[sign(D(real))].  [default: 0.6]")
@cli.option("Training", "--p", type=cli.Float(0, 1), help="Probability of each transform; for ada, the first.")
@cli.option(
    "Training",
    "--init-from",
    metavar="PATH",
    help="Start from the weights of a snapshot, a state or a run, of this resolution or half of it.",
)
@cli.option(
    "Training",
    "--freezed",
    type=click.IntRange(0, 64),
    help="Layers of the discriminator, from the picture on, that keep their weights.  [default: 0]",
)
@cli.option(
    "Model",
    "--modulation",
    type=click.Choice(["adaconv", "modconv", "adain"]),
    help="What w does to a layer.  [default: adaconv]",
)
@cli.option(
    "Model",
    "--norm",
    type=click.Choice(["instance", "demod"]),
    help="Normalization of a layer.  [default: demod; instance for adain]",
)
@cli.option(
    "Model", "--cbase", type=click.IntRange(16, 2**20), help="Channels at a resolution: min(cbase / resolution, cmax)."
)
@cli.option("Model", "--cmax", type=click.IntRange(1, 2**13), help="... at most.")
@cli.option("Model", "--map-depth", type=click.IntRange(1, 64), help="Layers of the mapping network.")
def main(outdir: str, resume: str | None, dry_run: bool, **options: Any) -> None:
    """Train a StyleGAN-style generator with AdaConv modulation.

    Pictures, snapshots, figures and TensorBoard events go into a new folder under --outdir. ^C saves and stops;
    --resume goes on.
    """
    command.start(SCRIPT, outdir, resume, dry_run, options)


def gan() -> type:
    from training.gan import GAN

    return GAN


def configure(given: dict[str, Any], new: bool) -> TrainConfig:
    """The configuration of a run, new or to go on, from the options given, checked against data and machine."""
    if "data" not in given:
        raise click.UsageError("--data is missing: name a folder or ZIP of pictures")
    if "metrics" in given:
        given["metrics"] = parse_metrics(given["metrics"])
    for path in given.get("detector_weights", []):
        if not Path(path).is_file():
            raise cli.UserError(missing(Path(path), "name the file with --detector-weights"))
    if new and given.get("init_from"):  # a run that goes on has what it began with
        given["init_from"] = str(find_initial(given["init_from"]))  # for the record, which one it was
    gpus = command.count_gpus(given)
    dataset = ImageDataset(given["data"], use_labels=given.get("cond", False))
    return resolve(given, dataset.resolution, dataset.channels, dataset.c_dim, gpus)


def parse_metrics(text: str | list[str]) -> list[str]:
    from metrics import parse_metric

    if not isinstance(text, str):  # of a run that goes on
        return text
    names = [] if text == "none" else [name.strip() for name in text.split(",")]
    for name in names:
        parse_metric(name)
    return names


def fingerprint(config: TrainConfig) -> str:
    return ImageDataset(config.data, use_labels=config.cond).fingerprint


def run_name(config: TrainConfig) -> str:
    cfg = f"{config.cfg}{config.gpus or '-cpu'}"
    return "-".join([Path(config.data).stem, config.generator.modulation, cfg])


def note(config: TrainConfig) -> str:
    if config.precision == "fp16" and not config.gpus:
        return "CPUs are slow with fp16; take --precision bf16 or fp32"
    if config.cfg == "auto" and not config.gpus:
        return "--cfg auto is meant for GPUs, a CPU takes months; --cfg demo trains in minutes"
    return ""


SCRIPT = command.Script(gan, configure, fingerprint, run_name, note)

if __name__ == "__main__":
    cli.run(main)
