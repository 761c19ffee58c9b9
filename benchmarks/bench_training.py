"""The time of a training step, split into its parts, each modulation in turn in the same run.

    python benchmarks/bench_training.py --resolution 256 --batch 8

A step of training is a step of the generator and one of the discriminator; the path length penalty comes with every
4th and R1 with every 16th. All are the functions of `training/`, on drawn pictures; data is the time to read and
decode a picture, which training does in other processes at the same time. Medians over rounds in which every candidate
has its turn.

--references adds AdaConv with the ops' plain PyTorch references. --peer-baseline adds StyleGAN2 as others train it:
modulated kernels as further groups of one convolution (Karras et al. 2020, StyleGAN2, appendix B), and plain PyTorch
for filters and activations.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import click

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as train.py does

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_generator import seconds

from networks.generator import SynthesisLayer
from torch_utils import cli
from torch_utils.files import write_file
from torch_utils.memory import keep_freed_memory
from torch_utils.ops import native
from torch_utils.ops.bias_act import bias_act_reference
from torch_utils.ops.upfirdn2d import upfirdn2d_reference
from training.config import resolve
from training.convert import write_dataset
from training.dataset import ImageDataset
from training.faces import faces
from training.gan import GAN

PARTS = ("G", "path length", "D", "R1")  # as `steps` has them


def grouped_layer(layer: SynthesisLayer, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
    """A StyleGAN2 layer whose kernels are modulated, for one convolution with the samples as groups."""
    n, channels, height, width = x.shape
    scale = layer.adaconv.predictor(w).pointwise.view(n, 1, channels, 1, 1)
    weight = layer.weight * layer.weight_gain * scale
    weight = weight * (weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    x = x.reshape(1, n * channels, height, width)
    if layer.up:
        turned = weight.transpose(1, 2).reshape(n * channels, -1, 3, 3)
        x = F.conv_transpose2d(x, turned, stride=2, groups=n)
        x = upfirdn2d_reference(x.unflatten(1, (n, -1))[0], layer.filter, 1, 1, (1, 1, 1, 1), 4.0)
    else:
        x = F.conv2d(x, weight.flatten(0, 1), padding=1, groups=n).unflatten(1, (n, -1))[0]
    if noise is not None:
        x = x + noise * layer.noise_strength
    return bias_act_reference(x, layer.bias, "lrelu", 2**0.5, layer.clamp)


def with_references() -> AbstractContextManager:
    """Without kernels of our own."""
    return mock.patch.object(native, "available", lambda device: False)


@contextmanager
def as_peers_do() -> Iterator[None]:
    """With the references, and with modulated kernels in groups."""
    with with_references(), mock.patch.object(SynthesisLayer, "forward", grouped_layer):
        yield


CANDIDATES = {  # name → modulation, and the circumstances of its steps
    "modconv": ("modconv", nullcontext),
    "adaconv": ("adaconv", nullcontext),
    "adain": ("adain", nullcontext),
    "references": ("adaconv", with_references),
    "peer baseline": ("modconv", as_peers_do),
}


def steps(gan: GAN) -> dict[str, Callable[[], None]]:
    """The four kinds of step, with the first batch of the data set."""
    reals = next(gan.batches(0))
    return {
        "G": lambda: gan.generator_step(reals),
        "path length": gan.path_length_step,
        "D": lambda: gan.discriminator_step(reals),
        "R1": lambda: gan.penalty_step(reals),
    }


@click.command(cls=cli.Command, example="python benchmarks/bench_training.py --resolution 256 --json training.json")
@cli.option("Options", "--device", default="cpu", type=cli.Device())
@cli.option("Options", "--resolution", type=click.IntRange(8, 1024), default=256)
@cli.option("Options", "--batch", type=click.IntRange(1), default=8)
@cli.option(
    "Options",
    "--modulation",
    type=click.Choice(["adaconv", "modconv", "adain"]),
    multiple=True,
    default=("modconv", "adaconv"),
    help="May be given again.",
)
@cli.option("Options", "--references", is_flag=True, help="Add AdaConv without the ops' kernels.")
@cli.option("Options", "--peer-baseline", is_flag=True, help="Add StyleGAN2 in plain PyTorch.")
@cli.option("Options", "--cbase", type=click.IntRange(16), default=16384)
@cli.option("Options", "--aug", type=click.Choice(["noaug", "fixed"]), default="noaug", help="fixed: bgc with p 0.2.")
@cli.option("Options", "--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32")
@cli.option("Options", "--rounds", type=click.IntRange(1), default=3)
@cli.option("Options", "--json", "json_path", metavar="FILE", help="Write the figures there as well.")
def main(
    device: str,
    resolution: int,
    batch: int,
    modulation: tuple[str, ...],
    references: bool,
    peer_baseline: bool,
    cbase: int,
    aug: str,
    precision: str,
    rounds: int,
    json_path: str | None,
) -> None:
    """Times the steps of training: seconds a picture and a thousand of them, with regularizers on their schedule."""
    place = torch.device(device)
    if place.type == "cpu":
        keep_freed_memory()
    options = {"batch": batch, "cbase": cbase, "aug": aug, "precision": precision, "workers": 0}
    if aug == "fixed":
        options["p"] = 0.2
    names = [*modulation, *["references"] * references, *["peer baseline"] * peer_baseline]
    times = {name: {part: [] for part in PARTS} for name in names}
    memory: dict[str, float] = {}
    every, configs = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "faces.zip"
        write_dataset(data, faces(batch, resolution))
        dataset = ImageDataset(data)
        reading = seconds(lambda: [dataset[i] for i in range(batch)], torch.device("cpu")) / batch
        for name in names:
            own = {**options, "data": str(data), "modulation": CANDIDATES[name][0]}
            configs[name] = resolve(own, resolution, 3, 0, 0)
            every[name] = steps(GAN(configs[name], place))
    for i in range(rounds + 1):  # the first is the warm-up
        for name in names:
            if place.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            for part, step in every[name].items():
                with CANDIDATES[name][1]():
                    elapsed = seconds(step, place) / batch
                if i:
                    times[name][part].append(elapsed)
            if place.type == "cuda":
                memory[name] = torch.cuda.max_memory_allocated() / 2**30
    if place.type == "cpu":  # of all candidates together
        memory = dict.fromkeys(names, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)

    rows = []
    for name in names:
        config = configs[name]
        median = {part: statistics.median(values) for part, values in times[name].items()}
        total = median["G"] + median["D"] + median["R1"] / config.r1_interval
        total += median["path length"] / config.pl_interval
        rows.append({"name": name, "s_per_picture": median, "data": reading, "s_per_kimg": total * 1000})
        rows[-1] |= {"without_path_length": total - median["path length"] / config.pl_interval, "gib": memory[name]}
    for row in rows:
        row["vs_first"] = row["s_per_kimg"] / rows[0]["s_per_kimg"]
    print_table(rows, f"{resolution}², batch {batch}, cbase {cbase}, {device}, {precision}, {aug}")
    if json_path:
        about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": device}
        about |= {"resolution": resolution, "batch": batch, "cbase": cbase, "precision": precision, "aug": aug}
        write_file(json_path, json.dumps({**about, "rows": rows}, indent=2).encode())


def print_table(rows: list[dict], title: str) -> None:
    print(f"{title}; seconds a picture")
    print(f"{'':14}" + "".join(f"{part:>13}" for part in ("data", *PARTS)) + f"{'G + D + R1/16':>15}", end="")
    print(f"{'s/kimg':>9}{'÷ ' + rows[0]['name']:>16}{'GiB':>7}")
    for row in rows:
        values = [row["data"], *(row["s_per_picture"][part] for part in PARTS)]
        print(f"{row['name']:14}" + "".join(f"{value:13.4f}" for value in values), end="")
        print(f"{row['without_path_length']:15.4f}{row['s_per_kimg']:9.1f}{row['vs_first']:16.2f}{row['gib']:7.1f}")


if __name__ == "__main__":
    cli.run(main)
