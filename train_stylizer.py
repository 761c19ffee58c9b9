"""Trains a stylizer. `python train_stylizer.py --content coco/ --style wikiart/ --gpus 8`"""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

# Before PyTorch starts its threads: where cores are shared, those that wait should not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from torch_utils import cli
from training import command
from training.config import cpu_precision, resolve_precision, split_batch

EXAMPLE = """\
python train_stylizer.py --content coco/ --style wikiart.zip --gpus 8
python train_stylizer.py --content photos/ --style paintings/ --width 0.5 --encoder-weights encoder.safetensors
python train_stylizer.py --resume
"""
POSITIVE = cli.Float(0, min_open=True)


@click.command(cls=cli.Command, example=EXAMPLE)
@cli.option("Data", "--content", metavar="PATH", help="A folder or ZIP of pictures of any kind and size.")
@cli.option("Data", "--style", metavar="PATH", help="The same of styles.")
@cli.option(
    "Data",
    "--size",
    type=click.IntRange(16, 2048),
    help="Contents are crops of so many pixels a side, from pictures whose shorter side is twice that.  [default: 256]",
)
@command.run_options(kimg=1280, tick=4, snap=10)
@command.machine_options(half="convolutions", compiled="the steps", cpu="bf16 or fp32, whichever is faster,")
@cli.option("Training", "--batch", type=click.IntRange(1, 2**16), help="Pairs a step, over all GPUs.  [default: 8]")
@cli.option("Training", "--lr", type=POSITIVE, help="Adam's learning rate.  [default: 0.0001]")
@cli.option("Training", "--content-weight", type=cli.Float(0), help="Of the difference at relu4_1.  [default: 1]")
@cli.option(
    "Training",
    "--normalize-content/--plain-content",
    default=False,
    help="Compare contents without their channels' means and deviations, which are the style's.",
)
@cli.option("Training", "--style-weight", type=cli.Float(0), help="Of means and deviations.  [default: 10]")
@cli.option("Training", "--identity-weight", type=cli.Float(0), help="A content in its own style stays.  [default: 0]")
@cli.option("Training", "--tv-weight", type=cli.Float(0), help="Of the total variation.  [default: 0]")
@cli.option("Training", "--ema-kimg", type=POSITIVE, help="Half-life of the averaged weights.  [default: 1]")
@cli.option(
    "Training",
    "--encoder-weights",
    metavar="FILE",
    help="VGG-19: torchvision's .pth, or what train_encoder.py made.  [default: torchvision's, downloaded once]",
)
@cli.option(
    "Training",
    "--init-from",
    metavar="FILE",
    help="A stylizer of the same size to start from; or of more style channels, the main ones of which are kept.",
)
@cli.option(
    "Model",
    "--modulation",
    type=click.Choice(["adaconv", "adain"]),
    help="What a style does: predicted kernels in four stages, or AdaIN once.  [default: adaconv]",
)
@cli.option("Model", "--width", type=cli.Float(0.01, 4), help="Factor on all channels.  [default: the encoder's]")
@cli.option(
    "Model", "--style-size", type=click.IntRange(64, 1024), help="Side of a style, a multiple of 64.  [default: 256]"
)
@cli.option(
    "Model", "--style-channels", type=click.IntRange(1, 2**13), help="Of the style map, at width 1.  [default: 512]"
)
@cli.option("Model", "--kernel-size", type=click.IntRange(1, 31), help="Of the predicted kernels.  [default: 3]")
def main(outdir: str, resume: str | None, dry_run: bool, **options: Any) -> None:
    """Train an AdaConv stylizer: contents rebuilt in the style of other pictures.

    Sheets, snapshots, figures and TensorBoard events go into a new folder under --outdir. ^C saves and stops;
    --resume goes on.
    """
    command.start(SCRIPT, outdir, resume, dry_run, options)


def task() -> type:
    from training.stylizer import StylizerTask

    return StylizerTask


def configure(given: dict[str, Any], new: bool) -> Any:
    """The run's configuration from the options that were given, checked against the machine."""
    from networks.stylizer import StylizerConfig
    from networks.vgg import STRIDE
    from training.checkpoint import load_stylizer
    from training.encoder import load_encoder
    from training.stylizer import StylizerTrainConfig

    for name in ("content", "style"):
        if name not in given:
            raise click.UsageError(f"--{name} is missing: name a folder or ZIP of pictures")
    if given.get("size", STRIDE) % STRIDE:
        raise cli.UserError(f"--size {given['size']}: take a multiple of {STRIDE}, the encoder's step")
    gpus = command.count_gpus(given)
    procs = gpus or given.get("procs", 1)
    own = {field.name for field in fields(StylizerTrainConfig)}
    values = {name: value for name, value in given.items() if name in own}
    values |= {"data": given["content"], "gpus": gpus, "procs": procs}
    values["batch"] = given.get("batch", 8)
    values["batch_gpu"] = split_batch(values["batch"], given.get("batch_gpu"), procs)
    values["precision"] = resolve_precision(given.get("precision"), gpus, cpu=cpu_precision())
    names = [field.name for field in fields(StylizerConfig)]
    if given.get("init_from") and not given.keys() >= set(names):
        given |= {**vars(load_stylizer(given["init_from"])[0].config), **given}
    elif "width" not in given:
        given["width"] = load_encoder(given.get("encoder_weights")).width  # noted, so that --resume needs no file
    network = {name: given[name] for name in names if name in given}
    try:
        config = StylizerTrainConfig(**values, stylizer=StylizerConfig(**network))
    except ValueError as error:
        raise cli.UserError(f"the model cannot be built: {error}") from None
    if config.size < (least := config.stylizer.min_size):
        raise cli.UserError(
            f"--size {config.size} is too small for kernels of {config.stylizer.kernel_size}²; "
            f"take {least + -least % STRIDE} or more"
        )
    return config


def fingerprint(config: Any) -> str:
    from training.pictures import PictureCrops

    return "-".join(PictureCrops(path).fingerprint for path in (config.data, config.style))


def run_name(config: Any) -> str:
    names = [Path(config.data).stem, Path(config.style).stem, config.stylizer.modulation]
    return "-".join([*names, f"stylizer{config.gpus or '-cpu'}"])


SCRIPT = command.Script(task, configure, fingerprint, run_name, data_options="--content and --style")

if __name__ == "__main__":
    cli.run(main)
