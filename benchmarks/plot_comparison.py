"""The curves of records of compare_modulations.py over what was trained and over time: `pip install matplotlib` first.

    python benchmarks/plot_comparison.py benchmarks/results/modulations-faces32.json --metric swd2k --out curves.png

A line is the mean over the seeds, its band the standard deviation. Time is that of one core, or of the GPU, at the cost
that the record has for a thousand images (--cost-rounds); without it there is no second panel. Of several records, a
variant is drawn from the first that has it.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torch_utils import cli
from torch_utils.errors import UserError
from torch_utils.schema import read_json


def mean_and_deviation(runs: list[list[float]]) -> tuple[list[float], list[float]]:
    """At each point of runs of equal length: the mean over the runs, and the deviation (0 of a single run)."""
    points = list(zip(*runs, strict=True))
    means = [statistics.mean(point) for point in points]
    return means, [statistics.stdev(point) if len(point) > 1 else 0.0 for point in points]


def draw(axes: Any, variants: dict[str, dict[str, Any]], metric: str, over_time: bool) -> None:
    """Lines with bands over kimg or hours, of the evaluations after training began that have the metric."""
    for name, row in variants.items():
        has = [i for i, k in enumerate(row["kimg"]) if k > 0 and all(run[i] is not None for run in row[metric])]
        means, deviations = mean_and_deviation([[run[i] for i in has] for run in row[metric]])
        scale = row["seconds_per_kimg"] / 3600 if over_time else 1.0
        x = [row["kimg"][i] * scale for i in has]
        low = [m - d for m, d in zip(means, deviations, strict=True)]
        high = [m + d for m, d in zip(means, deviations, strict=True)]
        axes.plot(x, means, marker="o", markersize=3, label=f"{name} ({len(row[metric])})")
        axes.fill_between(x, low, high, alpha=0.2)
    axes.set(xlabel="hours" if over_time else "kimg", ylabel=metric, yscale="log")
    axes.grid(alpha=0.3, which="both")


def curves_of(row: dict[str, Any]) -> list[str]:
    """The metrics of a variant that have a curve for each seed."""
    return [key for key, value in row.items() if isinstance(value, list) and value and isinstance(value[0], list)]


def variants_of(record: str, metric: str) -> dict[str, dict[str, Any]]:
    """The variants of a record, all of which have the metric. Raises UserError."""
    try:
        content = read_json(record)
    except (OSError, ValueError):
        content = None
    variants = content.get("variants") if isinstance(content, dict) else None
    if not isinstance(variants, dict) or not variants or not all(isinstance(row, dict) for row in variants.values()):
        raise UserError(f"{record} is no record of compare_modulations.py; name one that its --json wrote")
    for name, row in variants.items():
        if metric not in curves_of(row):
            raise UserError(f"{record} has no {metric} of {name}; --metric can be {', '.join(curves_of(row))}")
    return variants


@click.command(
    cls=cli.Command,
    example="python benchmarks/plot_comparison.py benchmarks/results/modulations-faces32.json --metric swd2k "
    "--out curves.png",
)
@click.argument("records", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@cli.option("Options", "--metric", default="swd2k", help="One of the records' metrics.")
@cli.option("Options", "--out", type=cli.ResultFile(), metavar="PNG", required=True, help="The image.")
def main(records: tuple[str, ...], metric: str, out: str) -> None:
    """Draw a metric of all variants of records, with bands over the seeds."""
    variants: dict[str, dict[str, Any]] = {}
    for record in records:
        for name, row in variants_of(record, metric).items():
            variants.setdefault(name, row)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("matplotlib is not installed; pip install matplotlib") from None
    panels = [False, True] if all("seconds_per_kimg" in row for row in variants.values()) else [False]
    figure = Figure(figsize=(5 * len(panels), 3.5), layout="constrained")
    for axes, over_time in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axes, variants, metric, over_time)
    figure.axes[0].legend(fontsize=8, title="variant (seeds)", title_fontsize=8)
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    cli.run(main)
