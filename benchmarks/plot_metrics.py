"""A run's metrics over what it was trained on, as an image: `pip install matplotlib` first.

python benchmarks/plot_metrics.py --out curve.png runs/00000-cifar10-adaconv-demo-cpu runs/00001-…
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torch_utils import cli
from torch_utils.errors import UserError


def read(run: Path, metric: str) -> tuple[list[float], list[float]]:
    """kimg and values of a metric, as metrics.jsonl has them."""
    try:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [line["kimg"] for line in lines], [line[metric] for line in lines]
    except FileNotFoundError:
        raise UserError(f"{run} has no metrics.jsonl; name the folder of a run") from None
    except KeyError:
        raise UserError(f"{run} was not judged by {metric}; name another with --metric") from None


@click.command(cls=cli.Command, example="python benchmarks/plot_metrics.py --out curve.png runs/00000-faces32-demo")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@cli.option("Options", "--metric", default="swd", help="As train.py's --metrics calls it.")
@cli.option("Options", "--out", metavar="PNG", required=True, help="The image.")
def main(runs: tuple[Path, ...], metric: str, out: str) -> None:
    """Draws a metric's curve for each of some runs."""
    curves = {run.name: read(run, metric) for run in runs}
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("matplotlib is not installed; pip install matplotlib") from None
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, (kimg, values) in curves.items():
        axes.plot(kimg, values, marker="o", label=name)
    axes.set(xlabel="kimg", ylabel=metric, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    cli.run(main)
