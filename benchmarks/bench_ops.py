"""Each op and direction beside plain PyTorch, in one run: ratios, and how far from what the hardware can do.

    python benchmarks/bench_ops.py --device cpu

Every candidate has its turn in every round, and the medians are compared, so that the ratios hold when the machine
drifts. The floor of an op is the larger of two times, both measured in the same run: a plain copy of its input that
allocates its result, and its multiply-adds at the rate of a large matrix product. On the CPU freed memory is kept for
all alike (`torch_utils/memory.py`); --fresh-memory leaves it to the system.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from networks.adaconv import fold_instance_norm
from torch_utils import cli
from torch_utils.files import atomic_write
from torch_utils.memory import keep_freed_memory
from torch_utils.ops import adaconv, bias_act, native, setup_filter, upfirdn2d
from torch_utils.ops.bias_act import bias_act_reference
from torch_utils.ops.upfirdn2d import upfirdn2d_reference

SHAPES = [(512, 32), (256, 64), (128, 128), (64, 256)]  # channels, resolution; C/G = 512 / channels


def seconds(function: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def medians(candidates: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Seconds of each candidate: one round to warm up, then the median of the others."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, function in candidates.items():
            times[name].append(seconds(function, device))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def loop(x: Tensor, kernel: Tensor) -> Tensor:
    """One conv2d for each sample: what implementations without an op of their own do."""
    groups = x.shape[1] // kernel.shape[2]
    return torch.cat(
        [F.conv2d(a[None], k, padding=k.shape[-1] // 2, groups=groups) for a, k in zip(x, kernel, strict=True)]
    )


def grouped(x: Tensor, kernel: Tensor) -> Tensor:
    """The samples as further groups of one conv2d."""
    n, c, h, w = x.shape
    groups = n * c // kernel.shape[2]
    y = F.conv2d(x.reshape(1, n * c, h, w), kernel.flatten(0, 1), padding=kernel.shape[-1] // 2, groups=groups)
    return y.view(x.shape)


def instance(x: Tensor, kernel: Tensor) -> Tensor:
    """With the statistics of x folded into the kernel."""
    return adaconv(x, *fold_instance_norm(x, kernel, None), padding_mode="reflect")


def with_gradients(function: Callable[..., Tensor], inputs: list[Tensor], dy: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(function(*inputs), inputs, dy)


def bench_adaconv(batch: int, rounds: int, device: str, rate: float) -> list[dict]:
    rows = []
    for channels, resolution in SHAPES:
        x = torch.randn(batch, channels, resolution, resolution, device=device, requires_grad=True)
        kernel = torch.randn(batch, channels, 512 // channels, 3, 3, device=device, requires_grad=True)
        dy = torch.randn_like(x)
        forwards = {"demod": adaconv, "instance": instance, "loop": loop, "grouped": grouped}
        with torch.no_grad():
            candidates = {name: partial(f, x, kernel) for name, f in forwards.items()}
            forward = medians(candidates | {"copy": x.clone}, rounds, device)
        candidates = {name: with_gradients(f, [x, kernel], dy) for name, f in forwards.items()}
        both = medians(candidates, rounds, device)
        multiply_adds = x.numel() * kernel.shape[2] * 9 / rate
        rows.append(
            {
                "op": f"adaconv {channels}ch {resolution}²",
                "batch": batch,
                "forward": forward,
                "forward_and_gradients": both,
                "multiply_adds": multiply_adds,
                "floor": max(forward["copy"], multiply_adds),
            }
        )
    return rows


def bench_others(batch: int, rounds: int, device: str) -> list[dict]:
    """upfirdn2d and bias_act at 64 channels of 256², against their references."""
    x = torch.randn(batch, 64, 256, 256, device=device, requires_grad=True)
    bias = torch.randn(64, device=device, requires_grad=True)
    f = setup_filter([1, 3, 3, 1]).to(device)
    pairs = {
        "upfirdn2d up 2": (
            lambda x: upfirdn2d(x, f, up=2, padding=(2, 1, 2, 1), gain=4),
            lambda x: upfirdn2d_reference(x, f.flip(0), 2, 1, (2, 1, 2, 1), 4.0),
            [x],
        ),
        "upfirdn2d down 2": (
            lambda x: upfirdn2d(x, f, down=2, padding=1),
            lambda x: upfirdn2d_reference(x, f.flip(0), 1, 2, (1, 1, 1, 1), 1.0),
            [x],
        ),
        "bias_act lrelu": (
            lambda x, b: bias_act(x, b, "lrelu", clamp=256.0),
            lambda x, b: bias_act_reference(x, b, "lrelu", 2**0.5, 256.0),
            [x, bias],
        ),
    }
    rows = []
    for name, (own, reference, inputs) in pairs.items():
        with torch.no_grad():
            candidates = {"own": partial(own, *inputs), "reference": partial(reference, *inputs), "copy": x.clone}
            forward = medians(candidates, rounds, device)
            dy = torch.randn_like(own(*inputs))
        both = medians(
            {"own": with_gradients(own, inputs, dy), "reference": with_gradients(reference, inputs, dy)}, rounds, device
        )
        rows.append({"op": name, "batch": batch, "forward": forward, "forward_and_gradients": both})
    return rows


def ms(value: float) -> str:
    return f"{value * 1e3:.2f}" if value < 0.01 else f"{value * 1e3:.1f}"


def print_adaconv(rows: list[dict]) -> None:
    print(f"\nadaconv, batch {rows[0]['batch']}: ms, and how many times as fast as the loop over samples")
    print(f"{'':22}{'forward':>9}{'÷ floor':>9}{'loop':>8}{'×':>6}{'grouped':>9}{'instance':>10}{'÷ demod':>9}", end="")
    print(f"{'+ gradients':>14}{'loop':>8}{'×':>6}")
    total = {
        key: {name: sum(row[key][name] for row in rows) for name in rows[0][key]}
        for key in ("forward", "forward_and_gradients")
    }
    for row in [*rows, {"op": "all", "floor": sum(row["floor"] for row in rows), **total}]:
        f, b = row["forward"], row["forward_and_gradients"]
        print(f"{row['op']:22}{ms(f['demod']):>9}{f['demod'] / row['floor']:9.2f}{ms(f['loop']):>8}", end="")
        print(f"{f['loop'] / f['demod']:6.1f}{ms(f['grouped']):>9}{ms(f['instance']):>10}", end="")
        print(f"{f['instance'] / f['demod']:9.2f}{ms(b['demod']):>14}{ms(b['loop']):>8}{b['loop'] / b['demod']:6.1f}")


def print_others(rows: list[dict]) -> None:
    print(f"\nbatch {rows[0]['batch']}, 64 channels of 256²: ms, and how many times as fast as the reference")
    print(f"{'':22}{'forward':>9}{'reference':>11}{'×':>6}{'copy':>8}{'+ gradients':>14}{'reference':>11}{'×':>6}")
    for row in rows:
        f, b = row["forward"], row["forward_and_gradients"]
        print(f"{row['op']:22}{ms(f['own']):>9}{ms(f['reference']):>11}{f['reference'] / f['own']:6.1f}", end="")
        print(f"{ms(f['copy']):>8}{ms(b['own']):>14}{ms(b['reference']):>11}{b['reference'] / b['own']:6.1f}")


@click.command(cls=cli.Command, example="python benchmarks/bench_ops.py --device cpu --json ops.json")
@cli.option("Options", "--device", type=click.Choice(["cpu", "cuda"]), default="cpu")
@cli.option("Options", "--batch", type=click.IntRange(1), multiple=True, default=(8, 1), help="May be given again.")
@cli.option("Options", "--rounds", type=click.IntRange(1), default=9)
@cli.option("Options", "--fresh-memory", is_flag=True, help="Let every result come fresh from the system.")
@cli.option("Options", "--json", "json_path", metavar="FILE", help="Write the figures there as well.")
def main(device: str, batch: tuple[int, ...], rounds: int, fresh_memory: bool, json_path: str | None) -> None:
    """Times AdaConv, upfirdn2d and bias_act, forward and with gradients, beside plain PyTorch."""
    if not fresh_memory:
        keep_freed_memory()
    if not native.available(device):
        print("the kernels are not there: this compares the references with each other", file=sys.stderr)
    if device == "cuda":
        # the copies and matrix products of the floor, and the convolutions beside it, in full float32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    a = torch.randn(2048 if device == "cpu" else 8192, 2048 if device == "cpu" else 8192, device=device)
    rate = a.shape[0] ** 3 / medians({"matmul": lambda: a @ a}, 5, device)["matmul"]
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, PyTorch {torch.__version__}, float32; matrix product {2 * rate / 1e9:.0f} GFLOP/s")
    result = {"device": name, "torch": torch.__version__, "gflops": 2 * rate / 1e9, "fresh_memory": fresh_memory}
    result["adaconv"] = []
    for n in batch:
        rows = bench_adaconv(n, rounds, device, rate)
        print_adaconv(rows)
        result["adaconv"] += rows
    result["others"] = bench_others(max(batch), rounds, device)
    print_others(result["others"])
    if json_path:
        with atomic_write(json_path) as file:
            file.write(json.dumps(result, indent=2).encode())


if __name__ == "__main__":
    cli.run(main)
