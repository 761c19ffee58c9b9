"""Graphs as files: ONNX, and PyTorch's own exported programs.

Neither holds an operator of this project: while a graph is traced, the ops are their references in plain PyTorch (see
`torch_utils.ops`), which ONNX has standard operators for.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.func import functional_call

from models.graphs import Graph
from torch_utils.errors import UserError
from torch_utils.files import write_file

OPSET = 20  # of ONNX, 2023
META = "adaconv"  # where a file says what it is
BATCHES = (1, 2, 5)  # that a file is checked with
SIDES = ((40, 48), (33, 70), (64, 17))  # and heights and widths

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class HalfWeights(nn.Module):
    """A module whose parameters are kept in float16 and computed with in float32: half the file."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.hidden = (module,)  # its own parameters are not to be part of this module
        self.names = [name for name, _ in module.named_parameters()]
        self.weights = nn.ParameterList(nn.Parameter(p.half(), requires_grad=False) for p in module.parameters())

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        weights = {name: weight.float() for name, weight in zip(self.names, self.weights, strict=True)}
        return functional_call(self.hidden[0], weights, inputs)


def in_half(graph: Graph) -> Graph:
    """The same with weights in float16. Raises UserError where one is too large for that."""
    check_half(graph.module)
    return replace(graph, module=HalfWeights(graph.module))


def check_half(module: nn.Module) -> None:
    """Raises UserError where a weight is too large for float16."""
    if not all(parameter.half().isfinite().all() for parameter in module.parameters()):
        raise UserError("--precision fp16: there are weights beyond float16's 65504; take --precision fp32")


def trace(graph: Graph, batch: int | None = None) -> ExportedProgram:
    """The graph for any number of samples; with `batch` for that many, and then without a loop over them."""
    torch.compiler.reset()  # loops traced before, in other graphs, would become conditions on the sizes of this one
    example = graph.example(batch or 3, *SIDES[0])
    with torch.no_grad():
        return torch.export.export(graph.module, example, dynamic_shapes=(graph.open_sizes(batch),))


def description(graph: Graph, about: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of itself: `about` the model, and the names, shapes and meanings of inputs and outputs."""
    ports = {
        kind: {name: asdict(port) for name, port in getattr(graph, kind).items()} for kind in ("inputs", "outputs")
    }
    return {**about, "graph": graph.name, **ports}


def write_onnx(path: Path, graph: Graph, about: Mapping[str, Any], batch: int | None = None) -> None:
    """Writes one ONNX file with its description under "adaconv" in the metadata. Raises UserError, DiskFull."""
    try:
        import onnx_ir
        import onnx_ir.passes.common
        import onnxscript  # noqa: F401 (the exporter needs it)
    except ImportError as error:
        raise UserError(
            f"--format onnx needs {error.name}, which is not installed; install it with: pip install onnx onnxscript"
        ) from None
    program = trace(graph, batch)
    with quiet():
        model = torch.onnx.export(
            program,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=(graph.open_sizes(batch),),
            opset_version=OPSET,
            verbose=False,
        ).model
    onnx_ir.passes.common.RemoveUnusedNodesPass()(model)  # constants that optimizing left over
    for value, port in zip(
        (*model.graph.inputs, *model.graph.outputs), (*graph.inputs.values(), *graph.outputs.values()), strict=True
    ):
        value.doc_string = port.meaning
    model.producer_name, model.doc_string = "adaconv", graph.title
    model.metadata_props[META] = json.dumps(description(graph, about))
    write_file(path, onnx_ir.to_proto(model).SerializeToString())


def write_program(path: Path, graph: Graph, about: Mapping[str, Any], batch: int | None = None) -> None:
    """Writes a torch.export archive, with its description in the file "adaconv" of it. Raises DiskFull."""
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(trace(graph, batch), buffer, extra_files={META: json.dumps(description(graph, about))})
    write_file(path, buffer.getbuffer())


def onnx_runner(path: Path, threads: int = 0) -> Run | None:
    """Runs an ONNX file on the CPU, with as many threads as there are cores, or so many; None without onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, feed)]

    return run


def program_runner(path: Path) -> Run:
    """Runs a torch.export archive."""
    with quiet():
        module = torch.export.load(path).module()
    return lambda inputs: flat(module(*inputs))


@torch.no_grad()
def largest_difference(run: Run, graph: Graph, batch: int | None = None) -> float:
    """Between a file's results and the module's, over batches and image sizes other than the traced ones.

    In units of the largest value of each result, where that is above 1.
    """
    largest = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for n, (height, width) in zip(BATCHES, SIDES, strict=True):
            inputs = graph.example(batch or n, height, width)
            for got, expected in zip(run(inputs), flat(graph.module(*inputs)), strict=True):
                difference = (got - expected).abs().max() / expected.abs().max().clamp(min=1)
                largest = max(largest, float(difference.nan_to_num(torch.inf)))
    return largest


def flat(results: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [results] if isinstance(results, Tensor) else results


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' notes on their own insides."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
