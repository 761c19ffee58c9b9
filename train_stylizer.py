"""Trains a stylizer. `python train_stylizer.py --content coco/ --style wikiart/ --gpus 8`"""

from __future__ import annotations

from typing import Any

import click

from torch_utils import cli
from training import cli as training_cli

EXAMPLE = """\
python train_stylizer.py --content coco/ --style wikiart.zip --gpus 8
python train_stylizer.py --content photos/ --style paintings/ --width 0.5 --encoder-weights encoder.safetensors
python train_stylizer.py --resume
"""
POSITIVE = cli.Float(0, min_open=True)


@click.command(cls=cli.Command, example=EXAMPLE)
@cli.option("Data", "--content", metavar="PATH", help="Folder or ZIP of content images, of any kind and size.")
@cli.option("Data", "--style", metavar="PATH", help="Folder or ZIP of style images, of any kind and size.")
@cli.option(
    "Data",
    "--size",
    type=cli.Integer(16, 2048),
    help="Side of the content crops in pixels.  [default: 256]",
)
@cli.option(
    "Data",
    "--resize",
    type=cli.Integer(16, 4096),
    help="Scale the shorter side of all images to this number of pixels before crops are taken from them. Images that "
    "are enlarged for it are blurred.  [default: twice --size, and for styles twice --style-size]",
)
@cli.option(
    "Data",
    "--style-scales",
    type=cli.Float(1, 4),
    help="Scale each style image by a random factor before the crop is taken, from one over this number to this number "
    "but at least by half, so that strokes of several sizes are learned.  [default: 1]",
)
@training_cli.run_options(kimg="1280", tick="4", snap="10")
@training_cli.machine_options(half="convolutions", compiled="the steps", cpu="bf16 or fp32, whichever is faster,")
@cli.option(
    "Training",
    "--batch",
    type=cli.Integer(1, 2**16),
    help="Pairs of content and style of a step, over all GPUs together.  [default: 8]",
)
@cli.option("Training", "--lr", type=POSITIVE, help="Learning rate of Adam.  [default: 0.0001]")
@cli.option(
    "Training",
    "--content-weight",
    type=cli.Float(0),
    help="Weight of the content loss, the difference of features at relu4_1.  [default: 1]",
)
@cli.option(
    "Training",
    "--normalize-content/--plain-content",
    default=False,
    help="Compare contents without their channels' means and standard deviations, which belong to the style.",
)
@cli.option(
    "Training",
    "--style-weight",
    type=cli.Float(0),
    help="Weight of the style loss, the difference of the features' means and standard deviations.  [default: 10]",
)
@cli.option(
    "Training",
    "--covariance-weight",
    type=cli.Float(0),
    help="Weight of the covariance loss, which compares how features vary together and so moves strokes.  [default: 0]",
)
@cli.option(
    "Training",
    "--identity-weight",
    type=cli.Float(0),
    help="Weight of the identity loss: a content in its own style should stay the same.  [default: 0]",
)
@cli.option(
    "Training",
    "--equivariance-weight",
    type=cli.Float(0),
    help="Weight of the equivariance loss: a content moved by a few pixels gives the same image, moved.  [default: 0]",
)
@cli.option(
    "Training",
    "--tv-weight",
    type=cli.Float(0),
    help="Weight of the total variation loss, which smooths even areas; too much of it blurs images.  [default: 0]",
)
@cli.option("Training", "--ema-kimg", type=POSITIVE, help="Half-life of the averaged weights, in kimg.  [default: 1]")
@cli.option(
    "Training",
    "--encoder-weights",
    metavar="FILE",
    help="Weights of VGG-19: torchvision's .pth or a snapshot of train_encoder.py.  [default: torchvision's, which "
    "are downloaded once]",
)
@cli.option(
    "Training",
    "--init-from",
    metavar="FILE",
    help="Start from the weights of a stylizer of the same size. Of one with more style channels, those of the main "
    "directions of its style maps are kept.",
)
@cli.option(
    "Model",
    "--modulation",
    type=click.Choice(["adaconv", "adain"]),
    help="What a style changes: predicted kernels in four stages (adaconv), or means and deviations once (adain)."
    "  [default: adaconv]",
)
@cli.option(
    "Model",
    "--width",
    type=cli.Float(0.01, 4),
    help="Channels of all layers, as a factor on those of VGG-19.  [default: the encoder's]",
)
@cli.option(
    "Model",
    "--style-size",
    type=cli.Integer(64, 1024),
    help="Side of a style image in pixels, a multiple of 64.  [default: 256]",
)
@cli.option(
    "Model",
    "--style-channels",
    type=cli.Integer(1, 2**13),
    help="Channels of the style map, before --width.  [default: 512]",
)
@cli.option("Model", "--kernel-size", type=cli.Integer(1, 31), help="Side of the predicted kernels.  [default: 3]")
def main(**options: Any) -> None:
    """Train a stylizer, which rebuilds contents in the style of other images with AdaConv.

    Sheets of images, snapshots, losses and TensorBoard events go into a new run folder under --outdir. ^C saves the
    training state and stops; --resume continues exactly where the run stopped.
    """
    from training.options import configure_stylizer  # takes a second, which --help need not wait for
    from training.stylizer import StylizerTrainer

    training_cli.start("train_stylizer.py", configure_stylizer, lambda config: StylizerTrainer, options)


if __name__ == "__main__":
    cli.run(main)
