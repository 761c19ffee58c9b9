"""Exports a trained model. `python export.py --network runs/00003-ffhq-adaconv-auto8`"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from torch import Tensor

from models import graphs
from models.convert import to_adaconv
from models.export import (
    Run,
    check_half,
    graph_runner,
    in_half,
    largest_difference,
    onnx_runner,
    program_runner,
    write_onnx,
    write_program,
)
from models.graphs import Graph
from models.snapshot import (
    GENERATOR,
    STYLIZER,
    find_snapshot,
    fits_half,
    found_text,
    kind_name,
    load_generator,
    load_stylizer,
    save_model,
)
from networks.generator import Generator
from networks.stylizer import Stylizer
from torch_utils import cli
from torch_utils.errors import Failure, UserError, note, show
from torch_utils.files import check_inputs_survive
from training.finetune import initial_weights
from training.runs import list_states

TOLERANCE = 1e-3  # between the results of a file and of PyTorch: rounding gives 1e-6 to 1e-4

EXAMPLE = """\
python export.py --network runs/00003-ffhq-adaconv-auto8 --format onnx
python export.py --model stylizer.safetensors --format onnx --precision fp16 --outdir web
python export.py --network runs --format safetensors --precision fp16 --with-discriminator
python export.py --network ffhq.pkl --format safetensors --modulation adaconv
"""


@dataclass(frozen=True)
class Target:
    """Which files to write: their format, the precision of the weights, and the number of samples if it is fixed."""

    kind: str
    precision: str
    batch: int | None
    outdir: str

    def path(self, name: str) -> Path:
        """`generator.onnx`, or with weights in float16 `generator-fp16.onnx`."""
        suffix = {"onnx": "onnx", "torch.export": "pt2", "safetensors": "safetensors"}[self.kind]
        return Path(self.outdir) / f"{name}{'-fp16' * self.half}.{suffix}"

    @property
    def half(self) -> bool:
        return self.precision == "fp16"


@click.command(cls=cli.Command, example=EXAMPLE)
@cli.network_option()
@cli.option(
    "Model",
    "--model",
    metavar="PATH",
    help="A stylizer, to export in place of a generator: a snapshot, a run, or a folder of runs.",
)
@cli.option(
    "Output",
    "--format",
    "kind",
    type=click.Choice(["onnx", "torch.export", "safetensors"]),
    default="onnx",
    help="onnx: for ONNX Runtime and other programs. torch.export: for PyTorch without this code. safetensors: a "
    "snapshot, for generate.py and stylize.py.",
)
@cli.option(
    "Output",
    "--modulation",
    type=click.Choice(["adaconv"]),
    help="Convert a generator with StyleGAN2's modulated convolution (modconv) or AdaIN into an AdaConv generator that "
    "makes the same images.  [default: no conversion]",
)
@cli.option(
    "Output",
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    help="Precision of the weights in the file. fp16 files have half the size and -fp16 in their names; they are "
    "computed in float32.",
)
@cli.option(
    "Output",
    "--batch",
    type=cli.Integer(1, 2**16),
    help="Fix the number of samples, for programs that do not support loops.  [default: any number]",
)
@cli.option(
    "Output",
    "--with-discriminator",
    is_flag=True,
    help="Add the discriminator to the snapshot, so that others can go on training from it, with --init-from.",
)
@cli.outdir_option()
@cli.gather(Target, "target")
def main(
    network: str | None, model: str | None, modulation: str | None, with_discriminator: bool, target: Target
) -> None:
    """Export a generator or a stylizer: generator.onnx, or style.onnx and content.onnx.

    Each file describes its inputs and outputs. A generator takes z, the class c if it has classes, and the truncation
    psi, and makes images from -1 to 1 with the constant noise. A stylizer becomes two files: style.onnx turns style
    images into kernels, and content.onnx applies kernels to images of any size. Every file is run and compared with
    PyTorch after it is written.
    """
    if network and model:
        raise click.UsageError("--network and --model: name only one, a generator or a stylizer")
    if model and modulation:
        raise click.UsageError("--modulation applies to generators; leave it out with --model")
    if target.kind == "safetensors" and target.batch:
        raise click.UsageError("--batch does not apply to snapshots, which take any number of images; leave it out")
    if with_discriminator and (model or target.kind != "safetensors"):
        raise click.UsageError("--with-discriminator is for a generator's snapshot; add --format safetensors")
    kind = STYLIZER if model else GENERATOR
    path = find_snapshot(model or network, kind)
    module, info = load(path, kind)
    cli.writable_folder(target.outdir)
    note(f"{'model' if model else 'network'}: {path} ({info['kimg']:g} kimg){found_text(model or network, path, kind)}")
    if "source" in info:
        note(f"note: the weights keep the licence of whoever published {info['source']['file']}")
    if modulation and isinstance(module, Generator):
        module = convert(module, path)
    if target.kind == "safetensors":
        check_inputs_survive([target.path(kind_name(kind))], [path], "name another folder with --outdir")
        export_snapshot(module, kind, info, target, discriminator_of(path) if with_discriminator else None)
    else:
        export_graphs(module, {"format": kind, "config": asdict(module.config), "info": info}, target)


def load(path: Path, kind: str) -> tuple[Generator | Stylizer, dict[str, Any]]:
    """The model of a snapshot and its info."""
    return load_stylizer(path) if kind == STYLIZER else load_generator(path)


def convert(G: Generator, path: Path) -> Generator:
    """The AdaConv generator that makes the images of another. Raises UserError if it is one already."""
    if G.config.modulation == "adaconv":
        raise UserError(f"{path} is an AdaConv generator already; leave out --modulation")
    return to_adaconv(G).eval().requires_grad_(False)


def make_graphs(module: Generator | Stylizer) -> list[Graph]:
    """The graphs of a model."""
    return graphs.of_generator(module) if isinstance(module, Generator) else graphs.of_stylizer(module)


def discriminator_of(path: Path) -> dict[str, Tensor]:
    """The weights of the discriminator that a generator was trained against.

    They are in the generator's file, as in StyleGAN2's pickles, or in the newest state of its run. Raises UserError.
    """
    for source in (path, *list_states(path.parent)[-1:]):
        if "D" in (weights := initial_weights(source, "--network")):
            note(f"discriminator: {source}")
            return weights["D"]
    raise UserError(
        f"{path} holds no discriminator, and there is no training state beside it; leave out --with-discriminator, or "
        "name the run's folder with --network"
    )


def export_snapshot(
    module: Generator | Stylizer,
    kind: str,
    info: dict[str, Any],
    target: Target,
    discriminator: dict[str, Tensor] | None,
) -> None:
    """Writes a model as a snapshot, and compares what is loaded from it with the model."""
    if target.half:
        for weights in (module.state_dict(), discriminator or {}):  # which have names in common
            check_half({name: tensor for name, tensor in weights.items() if fits_half(name)})
    path = target.path(kind_name(kind))
    save_model(path, kind, module, asdict(module.config), info, target.half, discriminator)
    show(path)
    if target.half:
        for name, value in module.state_dict().items():
            if fits_half(name):
                value.copy_(value.half())
    for graph, written in zip(make_graphs(module), make_graphs(load(path, kind)[0]), strict=True):
        compare(graph_runner(written), graph, path)


def export_graphs(module: Generator | Stylizer, about: dict[str, Any], target: Target) -> None:
    """Writes the graphs of a model, and compares the results of each file with PyTorch's."""
    for graph in make_graphs(module):
        if target.half:
            graph = in_half(graph)
        path = target.path(graph.name)
        note(f"tracing {graph.name} ...")
        (write_onnx if target.kind == "onnx" else write_program)(path, graph, about, target.batch)
        show(path)
        run = onnx_runner(path) if target.kind == "onnx" else program_runner(path)
        if run is None:
            note("note: not compared with PyTorch, which needs: pip install onnxruntime")
        else:
            compare(run, graph, path, target.batch)


def compare(run: Run, graph: Graph, path: Path, batch: int | None = None) -> None:
    """Prints how far the results of a file are from the graph's. Raises Failure if that is more than rounding."""
    difference = largest_difference(run, graph, batch)
    if not difference <= TOLERANCE:
        raise Failure(f"the results of {path} differ from PyTorch's by {difference:.2g}, more than rounding explains")
    note(f"largest difference to PyTorch: {difference:.1e}")


if __name__ == "__main__":
    cli.run(main)
