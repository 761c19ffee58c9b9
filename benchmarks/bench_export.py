"""AdaConv in exported graphs: three formulations that take any batch, and whole models, in onnxruntime and PyTorch.

    python benchmarks/bench_export.py --rounds 7

An exported convolution has a fixed number of groups, and with a batch of any size the N·G groups of one call are not. A
loop over the samples (ONNX's Scan, what is exported), shifted images each times a matrix and summed, and one
product of matrices with the image unfolded are compared. Every candidate has its turn in every round, in one thread;
the figures are medians, to be read as ratios.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import click

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the other command lines do

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import Call, medians, write_record

from models import graphs
from models.export import OPSET, onnx_runner, quiet, write_onnx
from networks.generator import Generator, GeneratorConfig
from networks.stylizer import Stylizer, StylizerConfig
from torch_utils import cli
from torch_utils.memory import keep_freed_memory
from torch_utils.ops.adaconv import adaconv, adaconv_reference

SHAPES = ((512, 1, 32), (256, 2, 64), (128, 4, 128), (64, 8, 256))  # channels, C/G, side: the stylizer's


def shifted(x: Tensor, kernel: Tensor) -> Tensor:
    """Σ over taps: kernel of the tap, [C/G, C/G] for each group, times the shifted image."""
    n, c, group, size, _ = kernel.shape
    height, width = x.shape[2:]
    padded = F.pad(x, [size // 2] * 4)
    y: Tensor | int = 0
    for i in range(size):
        for j in range(size):
            part = padded[:, :, i : i + height, j : j + width]
            if group == 1:
                y = y + part * kernel[:, :, 0, i, j, None, None]
            else:
                matrices = kernel[..., i, j].reshape(n, c // group, group, group)
                y = y + (matrices @ part.reshape(n, c // group, group, height * width)).view(n, c, height, width)
    assert isinstance(y, Tensor), "a kernel has taps"
    return y


def unfolded(x: Tensor, kernel: Tensor) -> Tensor:
    """The kernels [C/G, C/G·k·k] of each group times the image's neighbourhoods."""
    n, c, group, size, _ = kernel.shape
    height, width = x.shape[2:]
    padded = F.pad(x, [size // 2] * 4)
    parts = [padded[:, :, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    columns = torch.stack(parts, dim=2).reshape(n, c // group, group * size**2, height * width)
    return (kernel.reshape(n, c // group, group, group * size**2) @ columns).view(n, c, height, width)


class Op(nn.Module):
    """A function of image and kernel as a module."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, kernel: Tensor) -> Tensor:
        return self.function(x, kernel)


def exported(function: Callable[[Tensor, Tensor], Tensor], inputs: tuple[Tensor, Tensor]) -> Callable[[], object]:
    """The function in onnxruntime, on these inputs."""
    import onnxruntime

    batch = graphs.BATCH
    example = tuple(t[:1].expand(3, *t.shape[1:]).contiguous() for t in inputs)
    torch.compiler.reset()
    program = torch.export.export(Op(function), example, dynamic_shapes=({0: batch}, {0: batch}))
    with quiet():
        converted = torch.onnx.export(program, opset_version=OPSET, verbose=False)
        assert converted is not None, "the exporter returned no program"
        model = converted.model_proto
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {value.name: tensor.numpy() for value, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: session.run(None, feed)


def bench_op(batch: int, rounds: int) -> Iterator[dict[str, str | float]]:
    for channels, group, side in SHAPES:
        inputs = torch.randn(batch, channels, side, side), torch.randn(batch, channels, group, 3, 3)
        candidates: dict[str, Call] = {
            "native": partial(adaconv, *inputs),
            "reference": partial(adaconv_reference, *inputs),
            "onnx loop": exported(adaconv, inputs),
            "onnx shifted": exported(shifted, inputs),
            "onnx unfolded": exported(unfolded, inputs),
        }
        yield {"op": f"{channels}ch {side}²", "batch": batch, **medians(candidates, rounds, "cpu")}


def bench_models(batch: int, rounds: int, resolution: int) -> Iterator[dict[str, str | float]]:
    G = Generator(GeneratorConfig(resolution, cbase=16384)).eval().requires_grad_(False)
    model = Stylizer(StylizerConfig()).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        for graph in (*graphs.of_generator(G), *graphs.of_stylizer(model)):
            path = Path(folder) / f"{graph.name}.onnx"
            write_onnx(path, graph, {})
            run, inputs = onnx_runner(path, threads=1), graph.example(batch, resolution, resolution)
            assert run is not None, "onnxruntime is missing"
            candidates: dict[str, Call] = {"native": partial(graph.module, *inputs), "onnx": partial(run, inputs)}
            yield {"op": graph.name, "batch": batch, **medians(candidates, rounds, "cpu")}


@click.command(cls=cli.Command, example="python benchmarks/bench_export.py --rounds 7")
@click.option("--batch", default=4, type=click.IntRange(1))
@click.option("--rounds", default=3, type=click.IntRange(1))
@click.option("--resolution", default=256, help="Of the models' images; 0 leaves them out.")
@click.option("--json", "json_path", type=cli.ResultFile(), help="Write the figures there as well.")
@torch.no_grad()
def main(batch: int, rounds: int, resolution: int, json_path: str | None) -> None:
    """Time of AdaConv and of whole models in onnxruntime, beside PyTorch with this project's kernels."""
    keep_freed_memory()
    torch.set_num_threads(1)
    rows = []
    for row in chain(bench_op(batch, rounds), bench_models(batch, rounds, resolution) if resolution else ()):
        rows.append(row)
        times = {name: value for name, value in row.items() if isinstance(value, float)}
        print(f"{row['op']:12} batch {row['batch']}", end="")
        print(
            "".join(f"  {name} {1000 * t:.1f} ms ({t / times['native']:.2f})" for name, t in times.items()), flush=True
        )
    import onnxruntime

    settings = {"onnxruntime": onnxruntime.__version__, "resolution": resolution, "rounds": rounds}
    write_record(json_path, "cpu", {**settings, "rows": rows})


if __name__ == "__main__":
    cli.run(main)
