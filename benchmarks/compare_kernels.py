"""Training with the kernels beside training with the references, step by step from the same start.

    python benchmarks/compare_kernels.py --device cuda --steps 200

Both draw the same numbers, so that the first loss, before any weight has changed, differs by rounding alone: a close
bound. From then on differences grow, whatever they come from: Adam(0, 0.99) turns a gradient that is nothing but
rounding into a full step up or down by its sign. How far they go says a third training, with the references from
weights that are changed by a little more than rounding (one part in 2^20): the mean losses of all steps, with kernels
and with references, may differ by so many times the difference of these two. Exit code 1 beyond.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from unittest import mock

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import set_precision, write_record
from tqdm import tqdm

from media.convert import write_dataset
from media.dataset import ImageDataset
from media.faces import faces
from torch_utils import cli
from torch_utils.errors import Failure, UserError
from torch_utils.memory import keep_freed_memory
from torch_utils.ops import native
from training.gan import GANTrainer
from training.options import resolve

ROUNDING = 2.0**-20
APART = 0.02  # added to all weights: with those that begin as 0, some gradients would be 0 but for rounding
LOSSES = ("loss/G", "loss/D", "loss/r1", "loss/path_length")
Losses = list[dict[str, float]]


def losses(config, device: torch.device, steps: int, how: str) -> Losses:
    """The losses of each step of a training from a fixed start, with `how` kernels, references or rounding."""
    torch.manual_seed(0)
    found = []
    available = native.available if how == "kernels" else lambda device, op=None: False
    with mock.patch.object(native, "available", available):
        gan = GANTrainer(config, device)
        generator = torch.Generator().manual_seed(1)
        for weight in (*gan.G.parameters(), *gan.D.parameters()):
            first, second = torch.rand(2, *weight.shape, generator=generator).to(device) - 0.5
            weight.data += APART * first
            if how == "rounding":
                weight.data *= 1 + ROUNDING * second
        batches = gan.batches(0)
        for step in tqdm(range(steps), desc=how, disable=None):
            gan.train_step(next(batches), step)
            taken = gan.averages.take()
            found.append({name: taken[name] for name in LOSSES if name in taken})
    return found


def differences(a: Losses, b: Losses) -> dict[str, float]:
    """The relative differences of the first loss, and of the means over all steps: the largest of all losses.

    A loss that is not in every step counts where it is.
    """

    def apart(x: float, y: float) -> float:
        return abs(x - y) / (abs(y) + 1e-3)

    means = []
    for name in LOSSES:
        x, y = ([step[name] for step in run if name in step] for run in (a, b))
        if x:
            means.append(apart(sum(x) / len(x), sum(y) / len(y)))
    return {"first_loss": apart(a[0]["loss/G"], b[0]["loss/G"]), "mean": max(means)}


@click.command(cls=cli.Command, example="python benchmarks/compare_kernels.py --device cuda --precision bf16")
@cli.option("Options", "--device", default="cpu", type=cli.Device())
@cli.option("Options", "--steps", type=click.IntRange(50), default=200)
@cli.option("Options", "--resolution", type=click.Choice(["16", "32", "64", "128"]), default="32")
@cli.option("Options", "--batch", type=click.IntRange(1), default=16)
@cli.option("Options", "--precision", type=click.Choice(["fp32", "bf16"]), default="fp32")
@cli.option("Options", "--first", type=cli.Float(0), help="Bound of the first loss.  [default: 1e-5, with bf16 0.05]")
@cli.option(
    "Options",
    "--times",
    type=cli.Float(1),
    default=4.0,
    help="Bound of the means: so many times the difference that rounding makes.",
)
@cli.option("Options", "--json", "json_path", type=cli.ResultFile(), help="Write the figures there as well.")
def main(
    device: str,
    steps: int,
    resolution: str,
    batch: int,
    precision: str,
    first: float | None,
    times: float,
    json_path: str | None,
) -> None:
    """Compares the losses of a training with the kernels and of one with the references."""
    place = torch.device(device)
    if place.type == "cpu":
        keep_freed_memory()
    set_precision(precision)
    first = first if first is not None else 1e-5 if precision == "fp32" else 0.05
    if not native.available(place.type):
        raise UserError(f"there are no kernels for {place.type} here; `make ops` says why")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "faces.zip"
        write_dataset(data, faces(1000, int(resolution)))
        options = {"cfg": "demo", "data": str(data), "batch": batch, "precision": precision, "workers": 0, "procs": 1}
        shape = ImageDataset(data)
        config = resolve(options, shape.resolution, shape.channels, 0, 0)
        runs = {how: losses(config, place, steps, how) for how in ("kernels", "references", "rounding")}
    found = differences(runs["kernels"], runs["references"])
    bounds = {"first_loss": first, "mean": times * differences(runs["rounding"], runs["references"])["mean"]}
    names = ("the first loss", f"the mean losses of {steps} steps")
    for name, key in zip(names, found, strict=True):
        print(f"{name}: differ by {found[key]:.2g} of their size; the bound is {bounds[key]:.2g}")
    record = {"steps": steps, "resolution": int(resolution), "batch": batch, "precision": precision}
    write_record(json_path, place, {**record, "differences": found, "bounds": bounds, **runs})
    if any(found[key] > bounds[key] for key in found):
        raise Failure("training with the kernels is not that with the references")


if __name__ == "__main__":
    cli.run(main)
