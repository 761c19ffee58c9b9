"""Trains a generator. `python train.py --data ffhq.zip --gpus 8`"""

from __future__ import annotations

from typing import Any

import click

from networks.generator import MODULATIONS
from torch_utils import cli
from training import cli as training_cli
from training.augment import AUGPIPES
from training.presets import PRESETS

EXAMPLE = """\
python train.py --data ffhq.zip --gpus 8
python train.py --data faces32.zip --cfg demo
python train.py --resume
"""


@click.command(cls=cli.Command, example=EXAMPLE)
@cli.option(
    "Data",
    "--data",
    metavar="PATH",
    help="Training images: a folder, a ZIP, or shards such as 'shards/*.tar' or hf://owner/name (see docs/data.md).",
)
@cli.option(
    "Data",
    "--background",
    type=cli.Color(),
    help="Lay transparent images on this colour, a name or #rrggbb, and train an RGB model.  [default: transparent "
    "images give an RGBA model]",
)
@cli.option("Data", "--cond", is_flag=True, help="Train a conditional model on the data set's class labels.")
@cli.option("Data", "--mirror", is_flag=True, help="Add a left-right flipped copy of every image to the data.")
@cli.option(
    "Data",
    "--skip-unreadable",
    is_flag=True,
    help="Go on without images that cannot be decoded, such as files that are cut off: up to 1 % of the data set. The "
    "log and config.json name them.",
)
@training_cli.run_options(
    kimg="25000; 40 with --cfg demo, 100000 with --cfg cifar",
    tick="4; 1 with --cfg demo",
    snap="50; 10 with --cfg demo",
)
@cli.option(
    "Run",
    "--metrics",
    metavar="NAMES",
    help="Metrics to compute at every snapshot, such as fid50k_full,swd2k, or none. "
    "python -m metrics --list shows all.  [default: swd; swd2k with --cfg demo]",
)
@cli.option(
    "Run",
    "--keep-best",
    metavar="METRIC",
    help="Keep the model with the best value of one of --metrics as best.safetensors in the run, such as swd2k or "
    "pr10k3_recall.  [default: none]",
)
@cli.option(
    "Run",
    "--detector-weights",
    metavar="FILE",
    multiple=True,
    help="File with the weights of a metric's detector, instead of downloading them. Can be given several times.",
)
@training_cli.machine_options(
    half="the highest 4 resolutions",
    compiled="the steps without regularizers",
    procs="1; 2 with --cfg demo",
    workers="2; 1 with --cfg demo",
    batch_gpu="the GPU's share of --batch; with published presets, their number of images for each GPU",
)
@cli.option(
    "Training",
    "--cfg",
    type=click.Choice(PRESETS),
    help="Preset, which all other options override. auto: StyleGAN2's size, with batch and learning rates for the "
    "resolution and the GPUs. demo: a small network that trains in minutes at 32² on two CPU cores. r3gan: R3GAN's "
    "recipe. The others: as published for StyleGAN2 and StyleGAN2-ADA.  [default: auto]",
)
@cli.option(
    "Training",
    "--batch",
    type=cli.Integer(1, 2**16),
    help="Images of a step, over all GPUs together.  [default: set by --cfg]",
)
@cli.option(
    "Training",
    "--loss",
    type=click.Choice(["nonsaturating", "relativistic"]),
    help="nonsaturating: StyleGAN2's loss, with R1. relativistic: R3GAN's, with R1 and R2.  "
    "[default: nonsaturating; relativistic with --cfg r3gan]",
)
@cli.option(
    "Training",
    "--gamma",
    type=cli.Float(0),
    help="Weight of R1.  [default: set by --cfg; 0.0002 · width · height / batch with auto]",
)
@cli.option(
    "Training",
    "--glr",
    type=cli.Float(0, min_open=True),
    help="Learning rate of the generator.  [default: set by --cfg]",
)
@cli.option(
    "Training",
    "--dlr",
    type=cli.Float(0, min_open=True),
    help="Learning rate of the discriminator.  [default: set by --cfg]",
)
@cli.option(
    "Training",
    "--pl-weight",
    type=cli.Float(0),
    help="Weight of the path length penalty, which asks that equal steps in w change the image equally everywhere; 0 "
    "leaves it out, and steps are faster.  [default: set by --cfg]",
)
@cli.option(
    "Training",
    "--mixing",
    type=cli.Float(0, 1),
    help="Probability of style mixing: images of two latents, one for the coarse layers, one for the others.  "
    "[default: set by --cfg]",
)
@cli.option(
    "Training",
    "--ema-kimg",
    type=cli.Float(0),
    help="Half-life of the averaged weights, which snapshots hold, in kimg; with --cfg r3gan at the end of its "
    "schedule.  [default: set by --cfg]",
)
@cli.option(
    "Training",
    "--aug",
    type=click.Choice(["noaug", "ada", "fixed"]),
    help="Augment the images that the discriminator sees: ada adapts the probability to the discriminator's "
    "overfitting, fixed keeps it at --p.  [default: ada; noaug with --cfg demo, fixed with --cfg r3gan]",
)
@cli.option(
    "Training",
    "--augpipe",
    type=click.Choice(list(AUGPIPES)),
    help="Augmentations: blit, geom, color, filter, noise, cutout, the first letters of several, or r3gan for that "
    "paper's.  [default: bgc; r3gan with --cfg r3gan]",
)
@cli.option(
    "Training",
    "--target",
    type=cli.Float(-1, 1),
    help="Target of --aug ada for the mean sign of the discriminator's logits of real images.  [default: 0.6]",
)
@cli.option(
    "Training",
    "--p",
    type=cli.Float(0, 1),
    help="Probability of each augmentation with --aug fixed, which needs it, and the initial one with --aug ada.  "
    "[default: 0 with ada; with --cfg r3gan, its schedule]",
)
@cli.option(
    "Training",
    "--init-from",
    metavar="PATH",
    help="Start from the weights of a snapshot, a training state, a run, or StyleGAN2's networks (.pkl, .pt), of "
    "this resolution, half of it, or a larger one. A generator of StyleGAN2's modulation becomes an AdaConv generator "
    "of the same images, unless --modulation modconv keeps it.",
)
@cli.option(
    "Training",
    "--freezed",
    type=cli.Integer(0, 64),
    help="Keep the weights of this many of the discriminator's first layers (FreezeD).  [default: 0]",
)
@cli.option(
    "Model",
    "--modulation",
    type=click.Choice(MODULATIONS),
    help="How w changes a layer: AdaConv's predicted kernels, StyleGAN2's modulated convolution, or StyleGAN's AdaIN."
    "  [default: adaconv]",
)
@cli.option(
    "Model",
    "--norm",
    type=click.Choice(["instance", "demod"]),
    help="Normalization of a layer: of its input (instance), or by StyleGAN2's demodulation.  "
    "[default: demod; instance with --modulation adain]",
)
@cli.option(
    "Model",
    "--cbase",
    type=cli.Integer(16, 2**20),
    help="Channel base: a layer of side s has min(cbase / s, cmax) channels, where s is √(width · height) rounded to a "
    "power of two.  [default: set by --cfg]",
)
@cli.option(
    "Model",
    "--cmax",
    type=cli.Integer(1, 2**13),
    help="Largest number of channels of any layer.  [default: set by --cfg]",
)
@cli.option(
    "Model",
    "--map-depth",
    type=cli.Integer(1, 64),
    help="Number of layers of the mapping network.  [default: set by --cfg]",
)
def main(**options: Any) -> None:
    """Train a StyleGAN-style generator with AdaConv modulation.

    Sheets of images, snapshots, metrics and TensorBoard events go into a new run folder under --outdir. ^C saves the
    training state and stops; --resume continues exactly where the run stopped.
    """
    from training.options import configure_gan  # takes a second, which --help need not wait for
    from training.r3gan import trainer_of

    training_cli.start("train.py", configure_gan, trainer_of, options)


if __name__ == "__main__":
    cli.run(main)
