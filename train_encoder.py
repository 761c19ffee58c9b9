"""Trains an encoder on images with classes. `python train_encoder.py --data cifar10.zip`"""

from __future__ import annotations

from typing import Any

import click

from torch_utils import cli
from training import cli as training_cli

EXAMPLE = """\
python train_encoder.py --data cifar10-train.zip --test cifar10-test.zip
python train_encoder.py --resume
"""


@click.command(cls=cli.Command, example=EXAMPLE)
@cli.option("Data", "--data", metavar="PATH", help="Folder or ZIP of training images with class labels.")
@cli.option("Data", "--test", metavar="PATH", help="Folder or ZIP of other images, to measure the accuracy on.")
@cli.option("Data", "--mirror/--no-mirror", default=True, help="Flip a random half of the images left-right.")
@cli.option(
    "Data",
    "--shift",
    type=cli.Float(0, 1, max_open=True),
    help="Largest random shift of an image, as a fraction of its side.  [default: 0.125]",
)
@cli.option(
    "Data",
    "--crop",
    type=cli.Float(0, 1, min_open=True),
    help="Smallest area of the random crops that training enlarges to the whole image, as a fraction of it; less is "
    "for small data sets.  [default: 1, no crops]",
)
@cli.option(
    "Data",
    "--sizes",
    type=cli.Integers(1, 2**16),
    help="Sides that training reduces its images to, such as 32,48 for the first and the second half of the run: "
    "faster, and with --crop often better.  [default: the side of the images]",
)
@training_cli.run_options(kimg="500", tick="5", snap="10")
@training_cli.machine_options(half="all layers", compiled="the steps", cpu="bf16 or fp32, whichever is faster,")
@cli.option(
    "Training",
    "--batch",
    type=cli.Integer(1, 2**16),
    help="Images of a step, over all GPUs together.  [default: 128]",
)
@cli.option("Training", "--lr", type=cli.Float(0, min_open=True), help="Highest learning rate.  [default: 0.2]")
@cli.option(
    "Training",
    "--weight-decay",
    type=cli.Float(0),
    help="Weight decay of the convolutions and the head.  [default: 0.0005]",
)
@cli.option(
    "Training",
    "--smoothing",
    type=cli.Float(0, 1, max_open=True),
    help="Label smoothing: the part of each label that is spread over all classes.  [default: 0.1]",
)
@cli.option(
    "Training",
    "--cutmix",
    type=cli.Float(0, 1),
    help="Probability of CutMix, which puts a rectangle of another image into each; for small data sets.  [default: 0]",
)
@cli.option(
    "Model",
    "--width",
    type=cli.Float(0, 4, min_open=True),
    help="Channels of all layers, as a factor on those of VGG-19.  [default: 0.5]",
)
def main(**options: Any) -> None:
    """Train an encoder: the layers of VGG-19 up to relu4_1, as part of a classifier.

    Its snapshots are files for --encoder-weights of train_stylizer.py and projector.py, and detectors for metrics, as
    in fd5k_full@encoder.safetensors. The learning rate rises for a fifth of --kimg and falls to 0 at its end. ^C saves
    the training state and stops; --resume continues exactly where the run stopped.
    """
    from training.classifier import ClassifierTrainer  # takes a second, which --help need not wait for
    from training.options import configure_classifier

    training_cli.start("train_encoder.py", configure_classifier, lambda config: ClassifierTrainer, options)


if __name__ == "__main__":
    cli.run(main)
