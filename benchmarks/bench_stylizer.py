"""The stylizer's speed beside a baseline that computes the same in the usual way, in the same run.

    python benchmarks/bench_stylizer.py --rounds 7

The baseline encodes content and style every time, goes through the samples of a batch one by one with a depthwise and
then a pointwise grouped `conv2d` each behind an instance normalization, and keeps everything in PyTorch's default
order. Random weights. Every candidate has its turn in every round; ratios are medians of those of the rounds, so that
they hold when the machine drifts. The floor is the time that the multiply-adds of all convolutions take at the rate of
a large matrix product, measured in every round; Winograd's algorithm needs a quarter of most, and may fall below it.
On the CPU the memory is that of all candidates so far.
"""

from __future__ import annotations

import copy
import os
import re
import resource
import statistics
import sys
from pathlib import Path
from typing import TypedDict
from unittest import mock

import click

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the other command lines do

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import DTYPES, Call, graphed, matmul_rate, seconds, set_precision, working, write_record

from networks.adaconv import AdaConvKernels, KernelPredictor
from networks.stylizer import SLOPE, DecoderStage, Stylizer, StylizerConfig, pad_to_stride
from torch_utils import cli
from torch_utils.memory import keep_freed_memory
from torch_utils.ops import native

KEPT = "own, style kept"


class Baseline(nn.Module):
    """The same model as `stylizer`, computed in the usual way: content [N, 3, H, W], style [N, 3, s, s] → images."""

    def __init__(self, stylizer: Stylizer):
        super().__init__()
        self.stylizer = copy.deepcopy(stylizer).to(memory_format=torch.contiguous_format)

    def encode(self, images: Tensor) -> Tensor:
        vgg = self.stylizer.encoder
        return vgg.features(((images + 1) / 2 - vgg.mean) / vgg.std)

    def kernels(self, features: Tensor) -> list[AdaConvKernels]:
        encoder = self.stylizer.style_encoder
        assert encoder is not None, "a stylizer with AdaConv has one"
        for conv in encoder.convs:
            features = F.avg_pool2d(F.leaky_relu(conv(features), SLOPE), 2)
        w = encoder.linear(features.flatten(1))
        w = (w * (w.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()).view(-1, *encoder.shape)
        return [predictor(stage)(w) for stage in self.stylizer.decoder.stages]

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        with mock.patch.object(native, "available", lambda device, op=None: False):  # no kernels of our own
            return self.plainly(content, style)

    def plainly(self, content: Tensor, style: Tensor) -> Tensor:
        x, kernels = self.encode(content), self.kernels(self.encode(style))
        for stage, k in zip(self.stylizer.decoder.stages, kernels, strict=True):
            if stage.up:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = one_by_one(F.instance_norm(x), k)
            for i, conv in enumerate(stage.convs):
                x = conv(x)
                if not (stage.last and i + 1 == len(stage.convs)):
                    x = F.relu(x)
        return x


def predictor(stage: DecoderStage) -> KernelPredictor:
    """What predicts the kernels of a stage of a stylizer with AdaConv."""
    assert stage.adaconv is not None and isinstance(stage.adaconv.predictor, KernelPredictor)
    return stage.adaconv.predictor


def one_by_one(x: Tensor, kernels: AdaConvKernels) -> Tensor:
    """AdaConv in a loop over the samples, depthwise and then pointwise (paper, section 3)."""
    assert kernels.bias is not None, "the stylizer's predictors predict one"
    c, group, k = kernels.depthwise.shape[1:4]
    ys = []
    for i in range(len(x)):
        y = F.pad(x[i : i + 1], [k // 2] * 4, mode="reflect")
        y = F.conv2d(y, kernels.depthwise[i], groups=c // group)
        ys.append(F.conv2d(y, kernels.pointwise[i, :, :, None, None], kernels.bias[i], groups=c // group))
    return torch.cat(ys)


def multiply_adds(model: Stylizer, height: int, width: int, batch: int) -> dict[str, float]:
    """Of the convolutions and of the style's linear layers, counted as they run."""
    counts = dict.fromkeys(("encode content", "style", "decode"), 0.0)
    part = ["encode content"]

    def count(module: nn.Conv2d | nn.Linear, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        counts[part[0]] += y[0].numel() * module.weight[0].numel() * batch

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    device = next(model.parameters()).device
    features = model.encode(pad_to_stride(torch.zeros(1, 3, height, width, device=device)))
    part[0] = "style"
    side = model.config.style_size
    pixels = torch.zeros(1, 3, side, side, device=device)
    kernels = model.kernels(pixels)
    part[0] = "decode"
    model.decoder(features, kernels)
    for hook in hooks:
        hook.remove()
    for i, stage in enumerate(model.decoder.stages):
        p = predictor(stage)
        counts["style"] += (p.depthwise_weight[0].numel() * 9 + 2 * p.pointwise_weight[0].numel()) * len(p.identity)
        counts["decode"] += batch * features[0, 0].numel() * 4**i * kernels[i].depthwise[0].numel()
    return counts


def cases(own: Stylizer, baseline: Baseline, content: Tensor, style: Tensor, graph: bool) -> dict[str, Call]:
    kernels = own.kernels(style)
    found: dict[str, Call] = {
        "baseline": lambda: baseline(content, style),
        "own": lambda: own(content, own.kernels(style)),
        KEPT: lambda: own(content, kernels),
    }
    if graph:
        try:
            found[f"{KEPT}, graph"] = graphed(found[KEPT])
        except RuntimeError as error:
            print(f"note: no CUDA graph: {' '.join(str(error).split())[:200]}", file=sys.stderr)
    return found


class Row(TypedDict):
    """The figures of a candidate at a size, "256" or "1920x1080", and batch; seconds are those of a batch."""

    size: int | str
    batch: int
    name: str
    s: float
    gmac: float
    baseline_vs: float | None  # None where the baseline does not run
    vs_floor: float
    gib: float
    images_per_s: float


class Size(click.ParamType):
    """`256x4`, side and batch, or `1920x1080x1`, width, height and batch → (width, height, batch)."""

    name = "SIDExBATCH"

    def convert(self, value, param, ctx) -> tuple[int, int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(?:([1-9]\d{1,4})x)?([1-9]\d{1,4})x([1-9]\d{0,3})", value)
        if match is None:
            self.fail(f"{value!r} is no size; write side and batch, or width, height and batch: 256x4", param, ctx)
        return int(match[1] or match[2]), int(match[2]), int(match[3])


@click.command(cls=cli.Command, example="python benchmarks/bench_stylizer.py --size 256x4 --rounds 7")
@cli.option("Options", "--device", default="cpu", type=cli.Device())
@cli.option("Options", "--width", default=1.0, type=cli.Float(0, 4, min_open=True), help="Factor on all channels.")
@cli.option(
    "Options",
    "--size",
    "asked",
    type=Size(),
    multiple=True,
    default=("256x1", "256x4", "512x1"),
    help="Side of the content, and batch; or width, height and batch. May be given again.",
)
@cli.option(
    "Options",
    "--precision",
    default="fp32",
    type=click.Choice(["fp32", "tf32", "bf16", "fp16"]),
    help="Half precision is autocast's.",
)
@cli.option("Options", "--graph", is_flag=True, help="The kept style as a CUDA graph as well.")
@cli.option("Options", "--rounds", type=click.IntRange(1), default=7)
@cli.option("Options", "--fresh-memory", is_flag=True, help="Let every result come fresh from the system.")
@cli.option("Options", "--json", "json_path", type=cli.ResultFile(), help="Write the figures there as well.")
@torch.no_grad()
def main(
    device: str,
    width: float,
    asked: tuple[tuple[int, int, int], ...],
    precision: str,
    graph: bool,
    rounds: int,
    fresh_memory: bool,
    json_path: str | None,
) -> None:
    """Seconds a batch of the stylizer and of the baseline, style images of 256²."""
    if not fresh_memory:
        keep_freed_memory()
    place, dtype = torch.device(device), set_precision(precision)
    half = torch.autocast(place.type, DTYPES[precision], enabled=dtype != torch.float32)
    torch.manual_seed(0)
    own = Stylizer(StylizerConfig(width)).to(place).eval().requires_grad_(False)  # as load_stylizer gives it
    baseline = Baseline(own)
    rows: list[Row] = []
    for wide, high, batch in asked:
        content, style = torch.rand(batch, 3, high, wide, device=place), torch.rand(batch, 3, 256, 256, device=place)
        with half:
            candidates = working(cases(own, baseline, content * 2 - 1, style * 2 - 1, graph))
        times: dict[str, list[float]] = {name: [] for name in candidates}
        rates: list[float] = []
        memory: dict[str, float] = {}
        for i in range(rounds + 1):  # the first is the warm-up
            rates.append(matmul_rate(place, dtype))
            for name, run in candidates.items():
                if place.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                with half:
                    times[name].append(seconds(run, place))
                if place.type == "cuda":
                    memory[name] = torch.cuda.max_memory_allocated() / 2**30
                if i == 0:
                    times[name].clear()
                    rates.clear()
        counts = multiply_adds(own, high, wide, batch)
        for name, values in times.items():
            adds = sum(counts.values()) - (counts["style"] if KEPT in name else 0)
            ratios = [b / v for b, v in zip(times.get("baseline", []), values, strict=False)]
            row: Row = {
                "size": wide if wide == high else f"{wide}x{high}",
                "batch": batch,
                "name": name,
                "s": statistics.median(values),
                "gmac": adds / 1e9,
                "baseline_vs": statistics.median(ratios) if ratios else None,
                "vs_floor": statistics.median(v * rate / adds for v, rate in zip(values, rates, strict=True)),
                "gib": memory.get(name, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20),
                "images_per_s": batch / statistics.median(values),
            }
            rows.append(row)
        write_record(json_path, device, {"width": width, "precision": precision, "rows": rows})
        del content, style, candidates
    print(f"width {width}, {device}, {torch.get_num_threads()} threads, {precision}")
    print_table(rows)


def print_table(rows: list[Row]) -> None:
    print(f"{'content':14}{'':24}{'s':>9}{'images/s':>12}{'× faster':>10}{'GMAC':>8}{'÷ floor':>9}{'GiB':>7}")
    for row in rows:
        size = f"{row['size']}²" if isinstance(row["size"], int) else row["size"]
        size += f" × {row['batch']}"
        print(f"{size:14}{row['name']:24}{row['s']:9.4f}{row['images_per_s']:12.1f}", end="")
        print(f"{row['baseline_vs'] or float('nan'):10.2f}{row['gmac']:8.1f}{row['vs_floor']:9.2f}{row['gib']:7.1f}")


if __name__ == "__main__":
    cli.run(main)
