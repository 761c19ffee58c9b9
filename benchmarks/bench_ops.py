"""Each op and direction beside plain PyTorch, in one run: ratios, and how far from what the hardware can do.

    python benchmarks/bench_ops.py --device cpu
    python benchmarks/bench_ops.py --device cuda --precision bf16 --precision fp32 --resolution 256 --resolution 1024

The shapes are those of the layers of a generator. The floor of an op is the larger of two times, both measured in the
same run: its bytes at the rate of a plain copy of its input that allocates its result, and its multiply-adds at the
rate of a large matrix product of that type. Bytes are those that have to be read and written once; with gradients
those of forward, gradient by x and gradient by the kernel. In half precision a further table has each kernel by itself
beside float32, in both memory orders, with its floor in bytes and multiply-adds. On the CPU freed memory is kept for
all alike (`torch_utils/memory.py`); --fresh-memory leaves it to the system.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import Call, about, copy_rate, matmul_rate, medians, peak_gib, set_precision, working, write_record

from networks.adaconv import fold_instance_norm
from torch_utils import cli
from torch_utils.memory import keep_freed_memory
from torch_utils.ops import adaconv, bias_act, native, setup_filter, upfirdn2d
from torch_utils.ops.bias_act import bias_act_reference
from torch_utils.ops.upfirdn2d import upfirdn2d_reference

# channels and resolution of the largest layers of generators, cbase 16384 and 32768; C/G = 512 / channels
SHAPES = {
    256: [(512, 32), (256, 64), (128, 128), (64, 256)],
    1024: [(512, 64), (256, 128), (128, 256), (64, 512), (32, 1024)],
}
Op = Callable[..., Tensor]
CANDIDATES = ("demod", "instance", "loop", "grouped")


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
    kernel, bias = fold_instance_norm(x, kernel, None)
    return adaconv(x, kernel, bias.to(x.dtype), padding_mode="reflect")


def leaf(*size: int, device: str, dtype: torch.dtype) -> Tensor:
    """A tensor of normal values, by which gradients can be taken."""
    return torch.randn(*size, device=device, dtype=dtype, requires_grad=True)


def with_gradients(function: Op, inputs: list[Tensor], dy: Tensor) -> Call:
    return lambda: torch.autograd.grad(function(*inputs), inputs, dy)


def bench_adaconv(batch: int, resolution: int, precision: str, rounds: int, device: str) -> list[dict]:
    dtype, rows = set_precision(precision), []
    rate = matmul_rate(device, dtype)
    for channels, side in SHAPES[resolution]:
        x = leaf(batch, channels, side, side, device=device, dtype=dtype)
        kernel = leaf(batch, channels, 512 // channels, 3, 3, device=device, dtype=dtype)
        dy = torch.randn_like(x)
        forwards: dict[str, Op] = {"demod": adaconv, "instance": instance, "loop": loop, "grouped": grouped}
        with torch.no_grad():
            calls: dict[str, Call] = {name: partial(f, x, kernel) for name, f in forwards.items()}
            forward = medians(working(calls | {"copy": x.clone}), rounds, device)
        candidates = {name: with_gradients(f, [x, kernel], dy) for name, f in forwards.items()}
        both = medians(working(candidates), rounds, device)
        multiply_adds = x.numel() * kernel.shape[2] * 9 / rate
        row = {"op": f"adaconv {channels}ch {side}²", "batch": batch, "precision": precision, "forward": forward}
        row |= {"forward_and_gradients": both, "multiply_adds": multiply_adds}
        row |= floors(forward["copy"], 1, 3, multiply_adds)
        rows.append({**row, "gib": peak_gib(candidates["demod"], device)})
    return rows


def floors(copy: float, forward: float, both: float, multiply_adds: float = 0.0) -> dict[str, float]:
    """Of an op that moves so many times the bytes of a copy, forward and with gradients: these take three products."""
    return {
        "floor": max(forward * copy, multiply_adds),
        "floor_with_gradients": max(both * copy, 3 * multiply_adds),
    }


def bench_others(batch: int, precision: str, rounds: int, device: str) -> list[dict]:
    """upfirdn2d and bias_act at 64 channels of 256², against their references."""
    dtype = set_precision(precision)
    x, bias = leaf(batch, 64, 256, 256, device=device, dtype=dtype), leaf(64, device=device, dtype=dtype)
    f = setup_filter([1, 3, 3, 1]).to(device)
    pairs: dict[str, tuple[Op, Op, list[Tensor]]] = {  # the op, its reference, and what gradients are taken by
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
    # what is read and written, in copies of x: of the filters' x and y forward and backward; of bias_act x and y, then
    # dy, y and dx, which is summed up for the bias as it is made
    moved = {"upfirdn2d up 2": (2.5, 5), "upfirdn2d down 2": (0.625, 1.25), "bias_act lrelu": (1, 2.5)}
    rows = []
    for name, (own, reference, inputs) in pairs.items():
        with torch.no_grad():
            candidates: dict[str, Call] = {"own": partial(own, *inputs), "reference": partial(reference, *inputs)}
            candidates["copy"] = x.clone
            if device == "cuda":
                last = inputs[0].contiguous(memory_format=torch.channels_last)
                candidates["channels-last"] = partial(own, last, *inputs[1:])
            forward = medians(candidates, rounds, device)
            dy = torch.randn_like(own(*inputs))
        both = medians(
            {"own": with_gradients(own, inputs, dy), "reference": with_gradients(reference, inputs, dy)}, rounds, device
        )
        row = {"op": name, "batch": batch, "precision": precision, "forward": forward, "forward_and_gradients": both}
        rows.append({**row, **floors(forward["copy"], *moved[name])})
    return rows


def single_ops(batch: int, channels: int, side: int, device: str, dtype: torch.dtype, last: bool) -> dict[str, Call]:
    """Each kernel by itself, forward and gradients, at [batch, channels, side, side]."""
    ops = torch.ops.adaconv

    def draw(size: int) -> Tensor:
        x = torch.randn(batch, channels, size, size, device=device).to(dtype)
        return x.contiguous(memory_format=torch.channels_last) if last else x

    x, dy, small = draw(side), draw(side), draw(side // 2)
    kernel = torch.randn(batch, channels, 512 // channels, 3, 3, device=device).to(dtype)
    bias, f = torch.randn(channels, device=device).to(dtype), setup_filter([1, 3, 3, 1]).to(device, dtype)
    return {
        "bias_act": lambda: ops.bias_act(x, bias, 2, 2**0.5, 256.0),
        "bias_act_grad": lambda: ops.bias_act_grad(dy, x, 2, 2**0.5, 256.0),
        "upfirdn2d up 2": lambda: ops.upfirdn2d(small, f, 2, 1, (2, 1, 2, 1), 4.0),
        "upfirdn2d down 2": lambda: ops.upfirdn2d(x, f, 1, 2, (1, 1, 1, 1), 1.0),
        "upfirdn2d": lambda: ops.upfirdn2d(x, f, 1, 1, (2, 1, 2, 1), 1.0),
        "moments": lambda: ops.moments(x),
        "adaconv": lambda: ops.adaconv(x, kernel, None, False),
        "adaconv_grad_x": lambda: ops.adaconv_grad_x(dy, kernel, False),
        "adaconv_grad_kernel": lambda: ops.adaconv_grad_kernel(x, dy, kernel.shape, False),
    }


def work(name: str, group: int) -> tuple[float, float]:
    """What an op has to read and write, and multiply and add, for each value of the larger of x and y."""
    if name.startswith("adaconv"):
        return 2, 9 * group
    return {
        "bias_act": (2, 0),
        "bias_act_grad": (3, 0),
        "upfirdn2d up 2": (1.25, 3),
        "upfirdn2d down 2": (1.25, 3),
        "upfirdn2d": (2, 8),
        "moments": (1, 0),
    }[name]


def bench_half(batch: int, resolution: int, precision: str, rounds: int, device: str) -> list[dict]:
    """Each kernel in half precision, in both memory orders, beside float32; all take turns.

    The floor is that of half precision: its bytes at the rate of a copy, or its multiply-adds at the rate of a matrix
    product, whichever takes longer. The CPU's kernels multiply in float32, those of GPUs on tensor cores.
    """
    dtype, rows = set_precision(precision), []
    rate, bytes_a_second = matmul_rate(device, dtype if device == "cuda" else torch.float32), copy_rate(device)
    for channels, side in SHAPES[resolution]:
        columns = {
            "fp32": (torch.float32, False),
            precision: (dtype, False),
            f"{precision} channels-last": (dtype, True),
        }
        ops = {name: single_ops(batch, channels, side, device, *how) for name, how in columns.items()}
        for name in ops[precision]:
            with torch.no_grad():
                times = medians({column: ops[column][name] for column in columns}, rounds, device)
            values, multiply_adds = work(name, 512 // channels)
            count = batch * channels * side**2
            moved, products = values * count * dtype.itemsize, multiply_adds * count
            row = {"op": f"{name} {channels}ch {side}²", "batch": batch, "precision": precision, "times": times}
            row |= {"bytes": moved, "multiply_adds": products, "floor": max(moved / bytes_a_second, products / rate)}
            rows.append(row)
    return rows


def ms(value: float) -> str:
    return f"{value * 1e3:.2f}" if value < 0.01 else f"{value * 1e3:.1f}"


def print_adaconv(rows: list[dict]) -> None:
    title = f"adaconv, batch {rows[0]['batch']}, {rows[0]['precision']}"
    print(f"\n{title}: ms, and how many times as fast as the loop over samples")
    print(f"{'':22}{'forward':>9}{'÷ floor':>9}{'loop':>8}{'×':>6}{'grouped':>9}{'instance':>10}{'÷ demod':>9}", end="")
    print(f"{'+ gradients':>14}{'÷ floor':>9}{'loop':>8}{'×':>6}{'grouped':>9}")
    total: dict = {
        key: {name: sum(row[key].get(name, float("nan")) for row in rows) for name in CANDIDATES}
        for key in ("forward", "forward_and_gradients")
    }
    total |= {key: sum(row[key] for row in rows) for key in ("floor", "floor_with_gradients")}
    for row in [*rows, {"op": "all", **total}]:
        f, b = ({name: row[key].get(name, float("nan")) for name in CANDIDATES} for key in total if "forward" in key)
        print(f"{row['op']:22}{ms(f['demod']):>9}{f['demod'] / row['floor']:9.2f}{ms(f['loop']):>8}", end="")
        print(f"{f['loop'] / f['demod']:6.1f}{ms(f['grouped']):>9}{ms(f['instance']):>10}", end="")
        print(f"{f['instance'] / f['demod']:9.2f}{ms(b['demod']):>14}", end="")
        print(f"{b['demod'] / row['floor_with_gradients']:9.2f}{ms(b['loop']):>8}{b['loop'] / b['demod']:6.1f}", end="")
        print(f"{ms(b['grouped']):>9}")


def print_others(rows: list[dict]) -> None:
    title = f"batch {rows[0]['batch']}, {rows[0]['precision']}, 64 channels of 256²"
    print(f"\n{title}: ms, and how many times as fast as the reference")
    print(f"{'':22}{'forward':>9}{'÷ floor':>9}{'reference':>11}{'×':>6}{'copy':>8}", end="")
    print(f"{'+ gradients':>14}{'÷ floor':>9}{'reference':>11}{'×':>6}")
    for row in rows:
        f, b = row["forward"], row["forward_and_gradients"]
        print(f"{row['op']:22}{ms(f['own']):>9}{f['own'] / row['floor']:9.2f}{ms(f['reference']):>11}", end="")
        print(f"{f['reference'] / f['own']:6.1f}{ms(f['copy']):>8}{ms(b['own']):>14}", end="")
        print(f"{b['own'] / row['floor_with_gradients']:9.2f}{ms(b['reference']):>11}", end="")
        print(f"{b['reference'] / b['own']:6.1f}")


def print_half(rows: list[dict]) -> None:
    precision = rows[0]["precision"]
    print(f"\n{precision} beside float32, batch {rows[0]['batch']}: MB and 10⁹ multiply-adds that it takes, ms")
    print(f"{'':30}{'MB':>7}{'G':>7}{'floor':>8}{'fp32':>8}{precision:>8}{'÷ floor':>9}{'÷ fp32':>8}", end="")
    print(f"{'channels-last':>15}{'÷ floor':>9}{'÷ fp32':>8}")
    for row in rows:
        plain, *others = row["times"].values()
        print(f"{row['op']:30}{row['bytes'] / 1e6:7.1f}{row['multiply_adds'] / 1e9:7.2f}", end="")
        print(f"{ms(row['floor']):>8}{ms(plain):>8}", end="")
        for time, width in zip(others, (8, 15), strict=True):
            print(f"{ms(time):>{width}}{time / row['floor']:9.2f}{time / plain:8.2f}", end="")
        print()


@click.command(cls=cli.Command, example="python benchmarks/bench_ops.py --device cpu --json ops.json")
@cli.option("Options", "--device", type=click.Choice(["cpu", "cuda"]), default="cpu")
@cli.option(
    "Options",
    "--batch",
    type=click.IntRange(1),
    multiple=True,
    help="May be given again.  [default: 8 and 1; 32 on a GPU]",
)
@cli.option(
    "Options",
    "--resolution",
    type=click.Choice(["256", "1024"]),
    multiple=True,
    default=("256",),
    help="Resolution of the generator whose shapes are measured. Can be given several times.",
)
@cli.option(
    "Options",
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    multiple=True,
    default=("fp32",),
    help="May be given again.",
)
@cli.option("Options", "--rounds", type=click.IntRange(1), default=9)
@cli.option("Options", "--fresh-memory", is_flag=True, help="Let every result come fresh from the system.")
@cli.option("Options", "--json", "json_path", type=cli.ResultFile(), help="Write the figures there as well.")
def main(
    device: str,
    batch: tuple[int, ...],
    resolution: tuple[str, ...],
    precision: tuple[str, ...],
    rounds: int,
    fresh_memory: bool,
    json_path: str | None,
) -> None:
    """Times AdaConv, upfirdn2d and bias_act, forward and with gradients, beside plain PyTorch."""
    if not fresh_memory:
        keep_freed_memory()
    if not native.available(device):
        print("the kernels are not there: this compares the references with each other", file=sys.stderr)
    batch = batch or ((32,) if device == "cuda" else (8, 1))
    rates = {name: 2 * matmul_rate(device, set_precision(name)) / 1e9 for name in precision}
    copy = copy_rate(device) / 1e9
    tables: dict[str, list[dict]] = {"adaconv": [], "others": [], "half": []}  # which grow in the record
    record: dict[str, object] = {"gflops_of": rates, "gflops": rates.get("fp32"), "copy_gb_per_s": copy}
    record |= {"fresh_memory": fresh_memory, **tables}
    print(f"{about(device)['machine']}, PyTorch {torch.__version__}; copy {copy:.0f} GB/s", end="")
    print("; matrix product " + ", ".join(f"{rate:.0f} GFLOP/s in {name}" for name, rate in rates.items()))
    for name in precision:
        for size in resolution:
            for n in batch:
                rows = bench_adaconv(n, int(size), name, rounds, device)
                print_adaconv(rows)
                tables["adaconv"] += rows
                write_record(json_path, device, record)  # what there is, should the next not fit or the time end
        rows = bench_others(max(batch), name, rounds, device)
        print_others(rows)
        tables["others"] += rows
        write_record(json_path, device, record)
        if name != "fp32" and native.available(device):
            for size in resolution:
                rows = bench_half(max(batch), int(size), name, rounds, device)
                print_half(rows)
                tables["half"] += rows
                write_record(json_path, device, record)


if __name__ == "__main__":
    cli.run(main)
