"""A trained model as a file for other programs. `python export.py --network runs/00003-ffhq-adaconv-auto8`"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from models import graphs
from models.convert import to_adaconv
from models.export import (
    check_half,
    in_half,
    largest_difference,
    onnx_runner,
    program_runner,
    write_onnx,
    write_program,
)
from models.snapshot import GENERATOR, STYLIZER, find_snapshot, load_generator, load_stylizer, save_model
from networks.generator import Generator
from networks.stylizer import Stylizer
from torch_utils import cli
from torch_utils.errors import Failure, UserError

TOLERANCE = 1e-3  # of a file's results and PyTorch's: rounding gives 1e-6 to 1e-4

EXAMPLE = """\
python export.py --network runs/00003-ffhq-adaconv-auto8 --format onnx
python export.py --model stylizer.safetensors --format onnx --precision fp16 --outdir web
python export.py --network runs --format safetensors --precision fp16
python export.py --network ffhq.pkl --format safetensors --modulation adaconv
"""


@click.command(cls=cli.Command, example=EXAMPLE)
@cli.option(
    "Model",
    "--network",
    metavar="PATH",
    help="A generator: a snapshot, a run, a folder of runs, or a network pickle of StyleGAN2 (.pkl).  [default: the "
    "newest under runs, else the shipped one]",
)
@cli.option("Model", "--model", metavar="PATH", help="A stylizer in place of a generator; likewise.")
@cli.option(
    "Output",
    "--format",
    "kind",
    type=click.Choice(["onnx", "torch.export", "safetensors"]),
    default="onnx",
    help="onnx: for ONNX Runtime and others; torch.export: for PyTorch without this code; "
    "safetensors: a snapshot, for generate.py and stylize.py.",
)
@cli.option(
    "Output",
    "--modulation",
    type=click.Choice(["adaconv"]),
    help="Make a generator of StyleGAN2's modulated convolution (modconv) or of AdaIN an AdaConv generator of the same "
    "images.  [default: as it is]",
)
@cli.option(
    "Output",
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    help="Of the weights in the file; fp16 is half as large. Computed with is float32.",
)
@cli.option(
    "Output",
    "--batch",
    type=click.IntRange(1, 2**16),
    help="Fixes the number of samples, for programs that know no loops.  [default: any number]",
)
@cli.option("Output", "--outdir", default="out", help="Where the files go.")
def main(
    network: str | None,
    model: str | None,
    kind: str,
    modulation: str | None,
    precision: str,
    batch: int | None,
    outdir: str,
) -> None:
    """Export a generator or a stylizer: generator.onnx, or style.onnx and content.onnx.

    What goes in and comes out is said in the file. A generator takes z, with classes c, and the truncation psi, and
    gives images of -1 to 1 with the fixed noise. A stylizer is two files: style gives the kernels of style images,
    which content applies to images of any size. Each is run and compared with PyTorch when it is written.
    """
    if network and model:
        raise click.UsageError("--network and --model: name one, a generator or a stylizer")
    if model and modulation:
        raise click.UsageError("--modulation is of generators; leave it out with --model")
    if kind == "safetensors" and batch:
        raise click.UsageError("--batch: a snapshot takes any number of images; leave it out")
    what = STYLIZER if model else GENERATOR
    path = find_snapshot(model or network, what)
    module, info = (load_stylizer if model else load_generator)(path)
    folder = cli.writable_folder(outdir)
    print(f"{'model' if model else 'network'}: {path} ({info['kimg']:g} kimg)", file=sys.stderr)
    if "source" in info:
        print(f"note: the weights keep the licence of whoever published {info['source']['file']}", file=sys.stderr)
    if modulation and isinstance(module, Generator):
        if module.config.modulation == modulation:
            raise UserError(f"{path} is an AdaConv generator already; leave out --modulation")
        module = to_adaconv(module).eval().requires_grad_(False)
    about = {"format": what, "config": asdict(module.config), "info": info}
    if kind == "safetensors":
        if precision == "fp16":
            check_half(module)
        target = folder / f"{what.removeprefix('adaconv-')}.safetensors"
        save_model(target, what, module, about["config"], info, half=precision == "fp16")
        print(target)
        return
    export(module, about, folder, kind, precision, batch)


def export(
    module: Generator | Stylizer, about: dict[str, Any], folder: Path, kind: str, precision: str, batch: int | None
) -> None:
    """Writes each graph of a model, and says how far its results are from PyTorch's."""
    for graph in graphs.of_generator(module) if isinstance(module, Generator) else graphs.of_stylizer(module):
        if precision == "fp16":
            graph = in_half(graph)
        if kind == "onnx":
            target, write, runner = folder / f"{graph.name}.onnx", write_onnx, onnx_runner
        else:
            target, write, runner = folder / f"{graph.name}.pt2", write_program, program_runner
        print(f"tracing {graph.name} ...", file=sys.stderr)
        write(target, graph, about, batch)
        print(target)
        run = runner(target)
        if run is None:
            print("note: not compared with PyTorch, for which: pip install onnxruntime", file=sys.stderr)
            continue
        difference = largest_difference(run, graph, batch)
        if not difference <= TOLERANCE:
            raise Failure(f"{target} gives other results than PyTorch: they differ by {difference:.2g}")
        print(f"largest difference to PyTorch: {difference:.1e}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
