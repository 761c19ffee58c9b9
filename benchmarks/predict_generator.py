"""Predicts the time of the generator on a GPU, from what its kernels cost: no GPU is needed, and nothing is run.

    python benchmarks/predict_generator.py benchmarks/results/kernel-cost-sm90.json --resolution 256

The record is what kernel_cost.py writes of a built library. The generator runs on PyTorch's meta device, which computes
shapes alone. Every operation takes the time in which the memory moves its inputs and outputs once; this project's
kernels that time their ratio to a copy, where it is more than 1; convolutions and matrix products that of their
multiply-adds at the rate of the data sheet, where that is longer. So it is what a GPU could do at best: launches,
waiting and caches are left out.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kernel_cost import A100, H100

from networks.generator import Generator, GeneratorConfig
from torch_utils import cli
from torch_utils.errors import UserError
from torch_utils.ops import native
from training.gan import HALF_RESOLUTIONS

# FLOP per second of dense matrix products, by data sheet: float32 as TF32, and half precision.
PRODUCTS = {
    (H100.name, 4): 494.7e12,
    (H100.name, 2): 989.4e12,
    (A100.name, 4): 156e12,
    (A100.name, 2): 312e12,
}
NAMES = {
    "adaconv": "adaconv",
    "bias_act": "bias_act",
    "upfirdn2d": "upfirdn2d",
    "moments": "moments",
    "convolution": "learned convolutions",
    "mm": "linear layers",
    "addmm": "linear layers",
    "bmm": "linear layers",
}


def kernel_of(name: str, arguments: tuple[Any, ...]) -> tuple[str, float]:
    """The row of kernel_cost.py for a call of one of this project's ops, and how many times its instructions.

    ("", 1) for ops that are not in it. Between one channel per group and eight, eight are taken: an upper bound.
    """
    if name == "adaconv":
        _, kernel, _, reflect = arguments
        group = kernel.shape[2]
        return f"adaconv, C/G {8 if group > 1 else 1}{', reflect' if reflect else ''}", max(1.0, group / 8)
    if name == "bias_act":
        return "bias_act, relu" if arguments[2] == 1 else "bias_act, linear or lrelu", 1.0
    if name == "upfirdn2d":
        _, _, up, down, *_ = arguments
        factors = {(2, 1): "up 2", (1, 2): "down 2", (1, 1): "up 1, down 1", (2, 2): "up 2, down 2"}
        return f"upfirdn2d, 4 taps, {factors[up, down]}", 1.0
    return "", 1.0


class Clock(TorchDispatchMode):
    """Adds up the predicted seconds of all operations that are called, by their name and by GPU."""

    def __init__(self, ratios: dict[tuple[str, str, str], float]) -> None:
        super().__init__()
        self.ratios = ratios
        self.seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        if any(r.alias_info and not r.alias_info.is_write for r in returns):  # a view moves nothing
            return result
        name = func._overloadpacket.__name__
        outputs = list(_tensors(result))
        moved = sum(t.numel() * t.element_size() for t in [*_tensors((args, kwargs)), *outputs])
        size = min((t.element_size() for t in outputs), default=4)
        flops = flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result) if _counts(func) else 0
        for gpu in (H100, A100):
            time = moved / gpu.bandwidth
            if func.namespace == "adaconv":
                kernel, times = kernel_of(name, args)
                ratio = self.ratios.get((kernel, "fp32" if size == 4 else "bf16", gpu.name), 1.0)
                time *= max(1.0, times * ratio)
            if flops:
                time = max(time, flops / PRODUCTS[gpu.name, size])
            self.seconds[NAMES.get(name, "everything else")][gpu.name] += time
        return result


def _counts(func: Any) -> bool:
    return func.namespace == "aten" and func.overloadpacket in flop_registry


def _tensors(values: Any) -> Iterator[Tensor]:
    return (t for t in tree_flatten(values)[0] if isinstance(t, Tensor))


def read_ratios(path: Path) -> dict[tuple[str, str, str], float]:
    """(kernel, dtype, GPU) → its time divided by that of a copy, from a record of kernel_cost.py."""
    try:
        rows = json.loads(path.read_text())["rows"]
        return {(row["kernel"], row["dtype"], gpu.name): row[gpu.name] for row in rows for gpu in (H100, A100)}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a record of kernel_cost.py; write one with its --json") from None


def predict(config: GeneratorConfig, batch: int, half: bool, ratios: dict[tuple[str, str, str], float]) -> Clock:
    """The seconds of one pass of the generator, for images of that precision in its highest resolutions."""
    torch.ops.load_library(native.build("cpu"))  # for the ops' names and shapes
    native.register_fakes()
    native._loaded["meta"] = True
    with torch.device("meta"):
        generator = Generator(config).eval().requires_grad_(False)
        z = torch.empty(batch, config.z_dim)
    if half:
        for block in generator.synthesis.blocks[1:][-HALF_RESOLUTIONS:]:
            block.compute_dtype = torch.bfloat16
    clock = Clock(ratios)
    with torch.no_grad(), clock:
        generator(z)
    return clock


@click.command(cls=cli.Command, example="python benchmarks/predict_generator.py kernel-cost-sm90.json --resolution 256")
@click.argument("record", type=click.Path(path_type=Path))
@cli.option("Options", "--resolution", default=256, type=click.IntRange(16, 1024))
@cli.option("Options", "--batch", default=32, type=click.IntRange(1))
@cli.option("Options", "--cbase", default=16384, type=click.IntRange(16))
def main(record: Path, resolution: int, batch: int, cbase: int) -> None:
    """Predicts the milliseconds of a batch of images, by operation."""
    ratios, config = read_ratios(record), GeneratorConfig(resolution, cbase=cbase)
    for precision in ("fp32", "bf16"):
        seconds = predict(config, batch, precision == "bf16", ratios).seconds
        total = {gpu.name: math.fsum(part[gpu.name] for part in seconds.values()) for gpu in (H100, A100)}
        for name, of in [*sorted(seconds.items(), key=lambda item: -item[1][H100.name]), ("all", total)]:
            times = "".join(f"{1e3 * of[gpu.name]:10.2f} ms on {gpu.name}" for gpu in (H100, A100))
            print(f"{name:24}{precision:6}{times}")


if __name__ == "__main__":
    cli.run(main)
