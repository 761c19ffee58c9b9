"""The time of a training step, split into its parts, each modulation in turn in the same run.

    python benchmarks/bench_training.py --resolution 256 --batch 8

A step of training is a step of the generator and one of the discriminator; the path length penalty comes with every
4th and R1 with every 16th. All are the functions of `training/`, on drawn images; data is the time to read and
decode an image, which training does in other processes at the same time. Medians over rounds in which every candidate
has its turn.

Every time is printed on stderr as it is taken; the table of medians comes last.

On a GPU it also times whole steps, one after another on that schedule, as training has them, and says for how much of
that time the GPU had nothing to do: 1 − (the time in which some kernel ran, of the same steps under PyTorch's profiler)
÷ (their time without it, as it slows Python down).

--compile adds each modulation compiled. --references adds AdaConv with the ops' plain PyTorch references. --planes adds
AdaConv with PyTorch's convolutions only, and on a CPU with tensors in planes, as they are by default in PyTorch.
--profile tells, on a CPU, what a step of the generator and one of the discriminator spend their time on.
--peer-baseline adds StyleGAN2 as others train it: modulated kernels as further groups of one convolution (Karras et al.
2020, StyleGAN2, appendix B), and plain PyTorch for filters and activations.
"""

from __future__ import annotations

import itertools
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict
from unittest import mock

import click

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as train.py does

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import DeviceType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import Call, seconds, set_precision, write_record

import networks.discriminator
import networks.generator
import networks.layers
from media.convert import write_dataset
from media.dataset import ImageDataset
from media.faces import faces
from networks.generator import MODULATIONS, SynthesisLayer
from torch_utils import cli
from torch_utils.memory import keep_freed_memory
from torch_utils.ops import native
from torch_utils.ops.bias_act import bias_act_reference
from torch_utils.ops.conv3x3 import conv3x3_reference
from torch_utils.ops.upfirdn2d import upfirdn2d_reference
from training.gan import GANTrainer
from training.options import resolve

PARTS = ("G", "path length", "D", "R1")  # as `steps` has them


def grouped_layer(layer: SynthesisLayer, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
    """A StyleGAN2 layer whose kernels are modulated, for one convolution with the samples as groups."""
    n, channels, height, width = x.shape
    scale = layer.adaconv.predictor(w).pointwise.view(n, 1, channels, 1, 1)
    weight = layer.weight * layer.weight_gain * scale
    weight = (weight * (weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).rsqrt()).to(x.dtype)
    x = x.reshape(1, n * channels, height, width)
    if layer.up:
        turned = weight.transpose(1, 2).reshape(n * channels, -1, 3, 3)
        x = F.conv_transpose2d(x, turned, stride=2, groups=n)
        x = upfirdn2d_reference(x.unflatten(1, (n, -1))[0], layer.filter, 1, 1, (1, 1, 1, 1), 4.0)
    else:
        x = F.conv2d(x, weight.flatten(0, 1), padding=1, groups=n).unflatten(1, (n, -1))[0]
    if noise is not None and layer.noise_strength is not None:
        x = x + (noise * layer.noise_strength).to(x.dtype)
    return bias_act_reference(x, layer.bias.to(x.dtype), "lrelu", 2**0.5, layer.clamp)


def with_references() -> AbstractContextManager[object]:
    """Without kernels of our own."""
    return mock.patch.object(native, "available", lambda device, op=None: False)


@contextmanager
def in_planes() -> Iterator[None]:
    """With PyTorch's convolutions, and its default order of memory."""
    with (
        mock.patch.object(networks.layers, "conv3x3", conv3x3_reference),
        mock.patch.object(networks.generator, "conv3x3", conv3x3_reference),
        mock.patch.object(networks.discriminator, "in_fast_order", lambda x: x),
        mock.patch.object(networks.generator, "in_fast_order", lambda x: x),
    ):
        yield


@contextmanager
def as_peers_do() -> Iterator[None]:
    """With the references, and with modulated kernels in groups."""
    with with_references(), mock.patch.object(SynthesisLayer, "forward", grouped_layer):
        yield


@dataclass(frozen=True)
class Candidate:
    """Options of the training, and what holds while its steps run."""

    options: dict[str, str | bool]
    context: Callable[[], AbstractContextManager[object]] = nullcontext


CANDIDATES = {
    **{m: Candidate({"modulation": m}) for m in MODULATIONS},
    **{f"{m} compiled": Candidate({"modulation": m, "compile": True}) for m in MODULATIONS},
    "in planes": Candidate({"modulation": "adaconv"}, in_planes),
    "references": Candidate({"modulation": "adaconv"}, with_references),
    "peer baseline": Candidate({"modulation": "modconv"}, as_peers_do),
}
KINDS = {  # of what a step spends its time on, by the beginning of the profiler's names
    "convolutions": (
        "aten::convolution_backward",
        "aten::_convolution",
        "aten::mkldnn_convolution",
        "adaconv::winograd",
    ),
    "matrix products": ("aten::mm", "aten::bmm", "aten::addmm"),
    "adaconv": ("adaconv::adaconv",),
    "upfirdn2d": ("adaconv::upfirdn2d",),
    "bias_act": ("adaconv::bias_act",),
    "copies": ("aten::copy_",),
}
WHOLE = 16  # steps, of which one is with R1 and every fourth with the path length penalty


class WholeSteps(TypedDict, total=False):
    """Seconds of whole steps, and the share of them in which the GPU had nothing to do; empty on the CPU."""

    s_per_step: float
    s_per_kimg_whole: float
    gpu_idle: float


class Row(WholeSteps):
    """The figures of a candidate: seconds by part for each image, to read an image, and for a thousand images."""

    name: str
    s_per_image: dict[str, float]
    data: float
    s_per_kimg: float
    without_path_length: float
    gib: float
    s_by_kind: dict[str, float]
    vs_first: float


def steps(gan: GANTrainer) -> dict[str, Call]:
    """The four kinds of step, with the first batch of the data set."""
    reals = next(gan.batches(0))
    return {
        "G": lambda: gan.generator_step(reals),
        "path length": gan.path_length_step,
        "D": lambda: gan.discriminator_step(reals),
        "R1": lambda: gan.penalty_step(reals),
    }


def whole_steps(gan: GANTrainer, count: int) -> Callable[[], None]:
    """Steps of training from 0 on, with the regularizers on their schedule; of the first batch of the data set."""
    reals = next(gan.batches(0))

    def run() -> None:
        for i in range(count):
            gan.train_step(reals, i)

    return run


def time_by_kind(gan: GANTrainer) -> dict[str, float]:
    """Of a step of the generator and one of the discriminator on a CPU, the seconds for each of KINDS, and the rest."""
    from torch.profiler import ProfilerActivity, profile

    parts = steps(gan)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        parts["G"]()
        parts["D"]()
    found = dict.fromkeys([*KINDS, "rest"], 0.0)
    for event in seen.key_averages():
        kind = next((kind for kind, names in KINDS.items() if event.key.startswith(names)), "rest")
        found[kind] += event.self_cpu_time_total / 1e6
    return found


def busy_seconds(function: Callable[[], None]) -> float:
    """For how long some kernel ran on the GPU, as PyTorch's profiler saw it; 0 where it may not see the GPU."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        function()
        torch.cuda.synchronize()
    # without the profiler's own marks, such as "Optimizer.step", which cover the gaps between kernels
    kernels = [e for e in seen.events() if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    return covered((e.time_range.start, e.time_range.end) for e in kernels) / 1e6


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length that spans (start, end) cover together."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(end - max(start, until), 0)
        until = max(until, end)
    return total


@click.command(cls=cli.Command, example="python benchmarks/bench_training.py --resolution 256 --json training.json")
@cli.option("Options", "--device", default="cpu", type=cli.Device())
@cli.option("Options", "--resolution", type=click.IntRange(8, 1024), default=256)
@cli.option("Options", "--batch", type=click.IntRange(1), default=8)
@cli.option(
    "Options",
    "--modulation",
    type=click.Choice(MODULATIONS),
    multiple=True,
    default=("modconv", "adaconv"),
    help="May be given again.",
)
@cli.option("Options", "--compile", "compiled", is_flag=True, help="Add each modulation compiled.")
@cli.option("Options", "--references", is_flag=True, help="Add AdaConv without the ops' kernels.")
@cli.option("Options", "--peer-baseline", is_flag=True, help="Add StyleGAN2 in plain PyTorch.")
@cli.option("Options", "--planes", is_flag=True, help="Add AdaConv in planes, with PyTorch's convolutions.")
@cli.option("Options", "--profile", "profiled", is_flag=True, help="Tell what the steps spend their time on; CPU only.")
@cli.option("Options", "--cbase", type=click.IntRange(16), default=16384)
@cli.option("Options", "--cmax", type=click.IntRange(1), default=512)
@cli.option("Options", "--aug", type=click.Choice(["noaug", "fixed"]), default="noaug", help="fixed: bgc with p 0.2.")
@cli.option("Options", "--precision", type=click.Choice(["fp32", "tf32", "bf16", "fp16"]), default="fp32")
@cli.option("Options", "--rounds", type=click.IntRange(1), default=3)
@cli.option("Options", "--json", "json_path", type=cli.ResultFile(), help="Write the figures there as well.")
def main(
    device: str,
    resolution: int,
    batch: int,
    modulation: tuple[str, ...],
    compiled: bool,
    references: bool,
    peer_baseline: bool,
    planes: bool,
    profiled: bool,
    cbase: int,
    cmax: int,
    aug: str,
    precision: str,
    rounds: int,
    json_path: str | None,
) -> None:
    """Times the steps of training: seconds an image and a thousand of them, with regularizers on their schedule."""
    place = torch.device(device)
    if place.type == "cpu":
        keep_freed_memory()
    set_precision(precision)
    options: dict[str, Any] = {"batch": batch, "cbase": cbase, "cmax": cmax, "aug": aug, "workers": 0, "metrics": []}
    options["precision"] = precision.replace("tf", "fp")
    if aug == "fixed":
        options["p"] = 0.2
    names = [*modulation, *[f"{m} compiled" for m in modulation if compiled]]
    names += [*["in planes"] * planes, *["references"] * references, *["peer baseline"] * peer_baseline]
    gans, reading = make_candidates(names, options, resolution, place)
    times, memory = time_steps(gans, rounds, place)
    whole = time_whole_steps(gans, rounds) if place.type == "cuda" else {}
    kinds: dict[str, dict[str, float]] = {}
    for name in names if profiled else []:
        with CANDIDATES[name].context():
            kinds[name] = time_by_kind(gans[name])

    rows: list[Row] = []
    for name, gan in gans.items():
        median = {part: statistics.median(values) for part, values in times[name].items()}
        path_length = median["path length"] / gan.config.pl_interval
        total = median["G"] + median["D"] + median["R1"] / gan.config.r1_interval + path_length
        row: Row = {
            "name": name,
            "s_per_image": median,
            "data": reading,
            "s_per_kimg": total * 1000,
            "without_path_length": total - path_length,
            "gib": memory[name],
            **whole.get(name, {}),
            "s_by_kind": kinds.get(name, {}),
            "vs_first": total * 1000 / rows[0]["s_per_kimg"] if rows else 1.0,
        }
        rows.append(row)
    print_table(rows, f"{resolution}², batch {batch}, cbase {cbase}, cmax {cmax}, {device}, {precision}, {aug}")
    asked = {"resolution": resolution, "batch": batch, "cbase": cbase, "cmax": cmax, "precision": precision, "aug": aug}
    write_record(json_path, device, {**asked, "rows": rows})


def make_candidates(
    names: Sequence[str], options: dict[str, Any], resolution: int, place: torch.device
) -> tuple[dict[str, GANTrainer], float]:
    """A trainer for each name, on drawn faces, and the seconds that reading one of them takes."""
    gans, batch = {}, options["batch"]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "faces.zip"
        progress(f"drawing {batch} images")
        write_dataset(data, ((face, None) for face, _ in faces(batch, resolution)))
        dataset = ImageDataset(data)
        reading = seconds(lambda: [dataset[i] for i in range(batch)], torch.device("cpu")) / batch
        for name in names:
            progress(f"{name}: building the networks")
            own = {**options, "data": str(data), **CANDIDATES[name].options}
            gans[name] = GANTrainer(resolve(own, resolution, 3, 0, 0), place)
    return gans, reading


def time_steps(
    gans: Mapping[str, GANTrainer], rounds: int, place: torch.device
) -> tuple[dict[str, dict[str, list[float]]], dict[str, float]]:
    """The seconds an image of each kind of step in each round, in turns, and the memory in GiB at most.

    On a CPU the memory is that of all candidates together.
    """
    times: dict[str, dict[str, list[float]]] = {name: {part: [] for part in PARTS} for name in gans}
    memory: dict[str, float] = {}
    every = {name: steps(gan) for name, gan in gans.items()}
    for i in range(rounds + 1):  # the first is the warm-up
        for name, gan in gans.items():
            if place.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            for part, step in every[name].items():
                with CANDIDATES[name].context():
                    elapsed = seconds(step, place) / gan.config.batch
                turn = f"round {i} of {rounds}" if i else "warm-up"
                progress(f"{name}, {turn}: {part} {elapsed * 1e3:.2f} ms an image")
                if i:
                    times[name][part].append(elapsed)
            if place.type == "cuda":
                memory[name] = torch.cuda.max_memory_allocated() / 2**30
    if place.type == "cpu":
        memory = dict.fromkeys(gans, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    return times, memory


def time_whole_steps(gans: Mapping[str, GANTrainer], rounds: int) -> dict[str, WholeSteps]:
    """The seconds of whole steps on a GPU, in turns, and the part of them in which it waits."""
    whole: dict[str, WholeSteps] = {}
    runs = {name: whole_steps(gan, WHOLE) for name, gan in gans.items()}
    spent: dict[str, list[float]] = {name: [] for name in gans}
    for _, name in itertools.product(range(rounds), gans):
        with CANDIDATES[name].context():
            spent[name].append(seconds(runs[name], gans[name].device) / WHOLE)
        progress(f"{name}: whole steps of {spent[name][-1] * 1e3:.1f} ms")
    for name, gan in gans.items():
        with CANDIDATES[name].context():
            busy = busy_seconds(runs[name]) / WHOLE
        s = statistics.median(spent[name])
        whole[name] = {"s_per_step": s, "s_per_kimg_whole": s / gan.config.batch * 1000}
        if busy:
            whole[name]["gpu_idle"] = 1 - busy / s
    return whole


def progress(text: str) -> None:
    """Says on stderr what has been done: the table comes last, or not at all where the time on a GPU runs out."""
    print(text, file=sys.stderr, flush=True)


def print_table(rows: list[Row], title: str) -> None:
    print(f"{title}; seconds an image")
    print(f"{'':18}" + "".join(f"{part:>13}" for part in ("data", *PARTS)) + f"{'G + D + R1/16':>15}", end="")
    print(f"{'s/kimg':>9}{'÷ ' + rows[0]['name']:>16}{'GiB':>7}")
    for row in rows:
        values = [row["data"], *(row["s_per_image"][part] for part in PARTS)]
        print(f"{row['name']:18}" + "".join(f"{value:13.4f}" for value in values), end="")
        print(f"{row['without_path_length']:15.4f}{row['s_per_kimg']:9.1f}{row['vs_first']:16.2f}{row['gib']:7.1f}")
    for row in rows:
        if row["s_by_kind"]:
            total = sum(row["s_by_kind"].values())
            shares = ", ".join(f"{kind} {100 * s / total:.0f} %" for kind, s in row["s_by_kind"].items())
            print(f"{row['name']:22}G and D, {total:.3f} s: {shares}")
    for row in rows:
        if "s_per_step" in row:
            print(f"{row['name']:22}whole steps: {row['s_per_step'] * 1e3:.1f} ms, ", end="")
            print(f"{row['s_per_kimg_whole']:.2f} s/kimg, ", end="")
            print(f"the GPU idle for {100 * row['gpu_idle']:.1f} %" if "gpu_idle" in row else "idle time not seen")


if __name__ == "__main__":
    cli.run(main)
