"""Trains an encoder on pictures with classes. `python train_encoder.py --data cifar10.zip`"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

# Before PyTorch starts its threads: where cores are shared, those that wait should not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from networks.vgg import Classifier
from torch_utils import cli
from training import command
from training.config import ClassifierConfig, resolve_classifier
from training.dataset import ImageDataset

EXAMPLE = """\
python train_encoder.py --data cifar10-train.zip --test cifar10-test.zip
python train_encoder.py --resume
"""


@click.command(cls=cli.Command, example=EXAMPLE)
@cli.option("Data", "--data", metavar="PATH", help="A folder or ZIP of pictures with class labels.")
@cli.option("Data", "--test", metavar="PATH", help="Others of the same kind, which the accuracy is measured with.")
@cli.option("Data", "--mirror/--no-mirror", default=True, help="Flip half of the pictures left-right.")
@cli.option(
    "Data",
    "--shift",
    type=cli.Float(0, 1, max_open=True),
    help="Move pictures by up to this part of their side.  [default: 0.125]",
)
@command.run_options(kimg=500, tick=5, snap=10)
@command.machine_options(half="all layers", compiled="the steps", cpu="bf16 or fp32, whichever is faster,")
@cli.option(
    "Training", "--batch", type=click.IntRange(1, 2**16), help="Pictures a step, over all GPUs.  [default: 128]"
)
@cli.option("Training", "--lr", type=cli.Float(0, min_open=True), help="Learning rate, at its highest.  [default: 0.2]")
@cli.option("Training", "--weight-decay", type=cli.Float(0), help="Of convolutions and head.  [default: 0.0005]")
@cli.option(
    "Training",
    "--smoothing",
    type=cli.Float(0, 1, max_open=True),
    help="The part of each label that is spread over all classes.  [default: 0.1]",
)
@cli.option(
    "Model", "--width", type=cli.Float(0, 4, min_open=True), help="The channels, in those of VGG-19.  [default: 0.5]"
)
def main(outdir: str, resume: str | None, dry_run: bool, **options: Any) -> None:
    """Train an encoder: VGG-19 up to relu4_1, as part of a classifier.

    Snapshots are files for --encoder-weights. The learning rate rises for a fifth of --kimg and falls to 0 at its end.
    ^C saves and stops; --resume goes on.
    """
    command.start(SCRIPT, outdir, resume, dry_run, options)


def classification() -> type:
    from training.classify import Classification

    return Classification


def configure(given: dict[str, Any], new: bool) -> ClassifierConfig:
    """The run's configuration from the options that were given, checked against the data and the machine."""
    if "data" not in given:
        raise click.UsageError("--data is missing: name a folder or ZIP of pictures with labels")
    gpus = command.count_gpus(given)
    data = ImageDataset(given["data"], use_labels=True)
    if len(data.labels.unique()) < 2:
        raise cli.UserError(f"{data.path} has one class only; an encoder learns from telling several apart")
    if given.get("test"):
        check_test(ImageDataset(given["test"], use_labels=True), data)
    config = resolve_classifier(given, gpus)
    check_batch(config.batch_gpu, data.resolution)
    return config


def check_batch(batch: int, resolution: int) -> None:
    """Raises UserError where batch normalization has a single value of a channel, which is its own mean, at the end."""
    if batch * (resolution // Classifier.STRIDE) ** 2 < 2:
        raise cli.UserError(
            f"{batch} picture of {resolution}² at a time is too little for batch normalization; "
            "take at least 2 with --batch and --batch-gpu"
        )


def check_test(test: ImageDataset, data: ImageDataset) -> None:
    """Raises UserError where what was learned from `data` says nothing about `test`."""
    if test.resolution != data.resolution:
        raise cli.UserError(
            f"{test.path} has pictures of {test.resolution}², but {data.path} of {data.resolution}²; "
            "make them alike with dataset_tool.py convert --resolution"
        )
    if test.c_dim > data.c_dim:
        raise cli.UserError(
            f"{test.path} has classes up to {test.c_dim - 1}, but {data.path} up to {data.c_dim - 1}; "
            "name with --test pictures of the same classes"
        )


def fingerprint(config: ClassifierConfig) -> str:
    return ImageDataset(config.data, use_labels=True).fingerprint


def run_name(config: ClassifierConfig) -> str:
    return f"{Path(config.data).stem}-encoder{config.gpus or '-cpu'}"


SCRIPT = command.Script(classification, configure, fingerprint, run_name)

if __name__ == "__main__":
    cli.run(main)
