"""Writing graphs as ONNX files and as PyTorch's exported programs, and running them for comparison.

The files hold no operators of this project: while a graph is traced, each op is replaced by its reference in plain
PyTorch (see `torch_utils.ops`), for which ONNX has standard operators.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.func import functional_call

from models.graphs import Graph, Port
from torch_utils.errors import UserError
from torch_utils.files import write_file

OPSET = 20  # of ONNX, released in 2023
META = "adaconv"  # the entry of a file's metadata with its description
BATCHES = (1, 2, 5)  # the numbers of samples that a file is compared with
SIDES = ((40, 48), (33, 70), (64, 17))  # ... and the heights and widths of their images

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class HalfWeights(nn.Module):
    """A module whose parameters are stored in float16, for a file of half the size, and used in float32."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.hidden = (module,)  # in a tuple, so that its float32 parameters are not registered as well
        self.names = [name for name, _ in module.named_parameters()]
        self.weights = nn.ParameterList(nn.Parameter(p.half(), requires_grad=False) for p in module.parameters())

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        weights = {name: weight.float() for name, weight in zip(self.names, self.weights, strict=True)}
        return functional_call(self.hidden[0], weights, inputs)


def in_half(graph: Graph) -> Graph:
    """The graph with weights in float16. Raises UserError if one is too large for that."""
    check_half(dict(graph.module.named_parameters()))
    return replace(graph, module=HalfWeights(graph.module))


def check_half(weights: Mapping[str, Tensor]) -> None:
    """Raises UserError if a weight is too large for float16."""
    if not all(tensor.half().isfinite().all() for tensor in weights.values()):
        raise UserError("--precision fp16: some weights are beyond float16's limit of 65504; take --precision fp32")


def trace(graph: Graph, batch: int | None = None) -> ExportedProgram:
    """The graph for any number of samples or, with `batch`, for that number, which needs no loop over samples."""
    torch.compiler.reset()  # loops in graphs that were traced before would constrain the sizes of this one
    example = graph.example(batch or 3, *(max(side, graph.least + i) for i, side in enumerate(SIDES[0])))
    with torch.no_grad():
        return torch.export.export(graph.module, example, dynamic_shapes=(graph.open_sizes(batch),))


def description(graph: Graph, about: Mapping[str, Any], batch: int | None = None) -> dict[str, Any]:
    """A file's metadata: `about` the model, and names, shapes and meanings of inputs and outputs.

    Sizes that stay open appear by name in the shapes. `batch` is the number of samples, if the file fixes it.
    """

    def describe(ports: Mapping[str, Port]) -> dict[str, Any]:
        return {
            name: {
                "shape": [batch or size if size == "batch" else size for size in port.shape],
                "meaning": port.meaning,
            }
            for name, port in ports.items()
        }

    return {**about, "graph": graph.name, "inputs": describe(graph.inputs), "outputs": describe(graph.outputs)}


def write_onnx(path: Path, graph: Graph, about: Mapping[str, Any], batch: int | None = None) -> None:
    """Writes an ONNX file with its description in the metadata. Raises UserError, DiskFull.

    UserError names a package that is not installed.
    """
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
        exported = torch.onnx.export(
            program,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=(graph.open_sizes(batch),),
            opset_version=OPSET,
            verbose=False,
        )
    assert exported is not None  # it is None only where a file is named to it
    model = exported.model
    onnx_ir.passes.common.RemoveUnusedNodesPass()(model)  # the exporter's optimizer leaves unused constants
    for value, port in zip(
        (*model.graph.inputs, *model.graph.outputs), (*graph.inputs.values(), *graph.outputs.values()), strict=True
    ):
        value.doc_string = port.meaning
    model.producer_name, model.doc_string = "adaconv", graph.title
    model.metadata_props[META] = json.dumps(description(graph, about, batch))
    write_file(path, onnx_ir.to_proto(model).SerializeToString())


def write_program(path: Path, graph: Graph, about: Mapping[str, Any], batch: int | None = None) -> None:
    """Writes a torch.export archive, with its description as the extra file "adaconv". Raises DiskFull."""
    buffer = io.BytesIO()
    extra = {META: json.dumps(description(graph, about, batch))}
    with quiet():
        torch.export.save(trace(graph, batch), buffer, extra_files=extra)
    write_file(path, buffer.getbuffer())


def onnx_runner(path: Path, threads: int = 0) -> Run | None:
    """A function that runs an ONNX file on the CPU; None if onnxruntime is not installed.

    `threads` is their number; 0 takes one for each core.
    """
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
    """A function that runs a torch.export archive."""
    with quiet():
        module = torch.export.load(path).module()
    return lambda inputs: as_list(module(*inputs))


def graph_runner(graph: Graph) -> Run:
    """A function that runs the graph itself."""
    return lambda inputs: as_list(graph.module(*inputs))


@torch.no_grad()
def largest_difference(run: Run, graph: Graph, batch: int | None = None) -> float:
    """The largest difference between a file's results and the module's, relative where values are above 1.

    It is compared at several numbers of samples and image sizes, other than those of the trace.
    """
    largest = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for n, (height, width) in zip(BATCHES, SIDES, strict=True):
            inputs = graph.example(batch or n, max(height, graph.least), max(width, graph.least))
            for got, expected in zip(run(inputs), as_list(graph.module(*inputs)), strict=True):
                difference = (got - expected).abs().max() / expected.abs().max().clamp(min=1)
                largest = max(largest, float(difference.nan_to_num(torch.inf)))
    return largest


def as_list(results: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    """The results of a module, which are one tensor or several."""
    return [results] if isinstance(results, Tensor) else results


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' warnings about their own internals."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
