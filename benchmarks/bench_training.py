"""The time of a training step, split into its parts, each modulation in turn in the same run.

    python benchmarks/bench_training.py --resolution 256 --batch 8

A step of training is a step of the generator and one of the discriminator; the path length penalty comes with every
4th and R1 with every 16th. All are the functions of `training/`, on random pictures; data is the time to read and
decode a picture, which training does in other processes at the same time. Medians over rounds in which every candidate
has its turn.

--peer-baseline adds StyleGAN2 as others train it: modulated kernels as further groups of one convolution (Karras et al.
2020, StyleGAN2, appendix B), and plain PyTorch for filters and activations.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import click

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as train.py does

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_generator import seconds

from networks.discriminator import Discriminator
from networks.generator import Generator, SynthesisLayer
from torch_utils import cli
from torch_utils.files import write_file
from torch_utils.memory import keep_freed_memory
from torch_utils.ops import native
from torch_utils.ops.bias_act import bias_act_reference
from torch_utils.ops.upfirdn2d import upfirdn2d_reference
from training.augment import AugmentPipe
from training.config import resolve
from training.convert import write_dataset
from training.dataset import ImageDataset
from training.descent import Descent
from training.faces import faces
from training.gan import set_precision
from training.loss import PathLength, discriminator_loss, generator_loss, gradient_penalty, sample_ws

PARTS = ("G", "path length", "D", "R1")


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


@contextmanager
def as_peers_do() -> Iterator[None]:
    """Without kernels of our own, and with modulated kernels in groups."""
    with (
        mock.patch.object(native, "available", lambda device: False),
        mock.patch.object(SynthesisLayer, "forward", grouped_layer),
    ):
        yield


def steps(config, device: torch.device) -> dict[str, Callable[[], None]]:
    """The four steps of training a new model as `config` says."""
    torch.manual_seed(0)
    n = config.batch
    G, D = Generator(config.generator).to(device), Discriminator(config.discriminator).to(device)
    set_precision(G, D, config.precision)
    path_length, augment = PathLength().to(device), AugmentPipe(config.augpipe, config.p).to(device)
    G_opt = Descent(G, config.glr, config.pl_interval, device, config.precision == "fp16")
    D_opt = Descent(D, config.dlr, config.r1_interval, device, config.precision == "fp16")
    real = torch.randn(n, 3, *[config.generator.resolution] * 2, device=device)
    c = torch.zeros(n, 0, device=device)

    def judge(images: Tensor, c: Tensor) -> Tensor:
        return D(images if config.aug == "noaug" else augment(images), c)

    def random_ws(count: int) -> Tensor:
        return sample_ws(G, torch.randn(count, config.generator.z_dim, device=device), c[:count], config.mixing)

    def generator() -> None:
        D.requires_grad_(False)
        G_opt.step([generator_loss(judge(G.synthesis(random_ws(n)), c))])
        D.requires_grad_(True)

    def lengths() -> None:
        ws = random_ws(max(n // config.pl_shrink, 1))
        G_opt.step([path_length(G.synthesis(ws), ws)])

    def discriminator() -> None:
        with torch.no_grad():
            fake = G.synthesis(random_ws(n))
        D_opt.step([discriminator_loss(judge(real, c), judge(fake, c))])

    def penalty() -> None:
        D_opt.step([gradient_penalty(judge, real, c) * config.gamma])

    return dict(zip(PARTS, (generator, lengths, discriminator, penalty), strict=True))


def reading(resolution: int, batch: int) -> float:
    """Seconds to read and decode a batch, in one process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "faces.zip"
        write_dataset(path, faces(batch, resolution))
        dataset = ImageDataset(path)
        return seconds(lambda: [dataset[i] for i in range(batch)], torch.device("cpu"))


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
    options = {"data": "random", "batch": batch, "cbase": cbase, "aug": aug, "precision": precision}
    if aug == "fixed":
        options["p"] = 0.2
    names = [*modulation, *(["peer baseline"] if peer_baseline else [])]
    configs = {
        name: resolve({**options, "modulation": name if name in modulation else "modconv"}, resolution, 3, 0, 0)
        for name in names
    }
    times = {name: {part: [] for part in PARTS} for name in names}
    memory: dict[str, float] = {}
    every = {name: steps(config, place) for name, config in configs.items()}
    for i in range(rounds + 1):  # the first is the warm-up
        for name in names:
            if place.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            for part, step in every[name].items():
                with as_peers_do() if name == "peer baseline" else mock.patch.dict({}):
                    elapsed = seconds(step, place) / batch
                if i:
                    times[name][part].append(elapsed)
            if place.type == "cuda":
                memory[name] = torch.cuda.max_memory_allocated() / 2**30
    if place.type == "cpu":  # of all candidates together
        memory = dict.fromkeys(names, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)

    data = reading(resolution, batch) / batch
    rows = []
    for name in names:
        config = configs[name]
        median = {part: statistics.median(values) for part, values in times[name].items()}
        total = median["G"] + median["D"] + median["R1"] / config.r1_interval
        total += median["path length"] / config.pl_interval
        rows.append({"name": name, "s_per_picture": median, "data": data, "s_per_kimg": total * 1000})
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
