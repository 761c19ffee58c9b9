"""A run's metrics over what it was trained on, or over time, as an image: `pip install matplotlib` first.

python benchmarks/plot_metrics.py --out curve.png runs/00000-cifar10-adaconv-demo-cpu runs/00001-…

With --hours there is a second panel over the time of training, which leaves out starting and evaluating.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torch_utils import cli
from torch_utils.errors import UserError
from training.log import read_records


def read(run: Path, metric: str) -> tuple[list[float], list[float]]:
    """kimg and values of a metric, as metrics.jsonl has them."""
    lines = read_records(run / "metrics.jsonl")
    if not lines:
        raise UserError(f"{run} has no metrics.jsonl; name the folder of a run")
    try:
        return [line["kimg"] for line in lines], [line[metric] for line in lines]
    except KeyError:
        raise UserError(f"{run} was not judged by {metric}; name another with --metric") from None


def hours(run: Path, kimg: list[float]) -> list[float]:
    """The hours of training after which a run had come so far: each tick at its own speed, as stats.jsonl has it."""
    seconds, before, reached = 0.0, 0, [(0.0, 0.0)]
    for tick in read_records(run / "stats.jsonl"):
        if tick["step"] > before:  # of a tick that was trained again after a stop, the first time counts
            seconds += (tick["step"] - before) / tick["it_per_s"]
            before = tick["step"]
            reached.append((tick["kimg"], seconds / 3600))
    return [reached[bisect_right(reached, (k, float("inf"))) - 1][1] for k in kimg]


@click.command(cls=cli.Command, example="python benchmarks/plot_metrics.py --out curve.png runs/00000-faces32-demo")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@cli.option("Options", "--metric", default="swd", help="Metric to plot, by its name in --metrics of train.py.")
@cli.option("Options", "--hours", "over_time", is_flag=True, help="Add the same curves over hours of training.")
@cli.option("Options", "--log", is_flag=True, help="Draw the metric on a logarithmic scale.")
@cli.option("Options", "--out", type=cli.ResultFile(), metavar="PNG", required=True, help="The image.")
def main(runs: tuple[Path, ...], metric: str, over_time: bool, log: bool, out: str) -> None:
    """Draws a metric's curve for each of some runs."""
    curves = {run: read(run, metric) for run in runs}
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("matplotlib is not installed; pip install matplotlib") from None
    panels = ["kimg", "hours"] if over_time else ["kimg"]
    figure = Figure(figsize=(6 if len(panels) == 1 else 9, 3.5), layout="constrained")
    for axes, label in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axes, curves, label, metric, log)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(out, dpi=120)


def draw(axes: Any, curves: dict[Path, tuple[list[float], list[float]]], label: str, metric: str, log: bool) -> None:
    """Each run's curve over kimg or hours; on a logarithmic scale without the value before training."""
    for run, (kimg, values) in curves.items():
        start = int(log and kimg[0] == 0)
        x = hours(run, kimg) if label == "hours" else kimg
        axes.plot(x[start:], values[start:], marker="o", markersize=3, label=run.name)
    axes.set(xlabel=label, ylabel=metric)
    axes.set(yscale="log") if log else axes.set(ylim=(0, None))
    axes.grid(alpha=0.3, which="both")


if __name__ == "__main__":
    cli.run(main)
