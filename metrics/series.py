"""Several evaluations beside each other: of the snapshots of a run, or of one snapshot at several truncations."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metrics.names import Metric, higher_is_better, parse_metric
from metrics.plot import Point, line_chart, stacked
from torch_utils.errors import UserError, printable
from torch_utils.files import write_file

BEST = "best"  # the name of the link to the best model, before its suffix

Record = dict[str, Any]  # the values of an evaluation and its settings, see request.make_record


def ranked_values(records: Sequence[Record], names: Sequence[str]) -> dict[str, bool]:
    """The values that models are ranked by and that one of the records has; whether the higher is better."""
    rankings = {value: higher for name in names for value, higher in parse_metric(name).rankings().items()}
    return {value: higher for value, higher in rankings.items() if any(value in record for record in records)}


def best_record(records: Sequence[Record], value: str, higher_is_better: bool) -> int:
    """The number of the record with the best value. Raises UserError where none has it."""
    having = [number for number, record in enumerate(records) if value in record]
    if not having:
        raise UserError(f"no snapshot has a value of {value}; take another with --best")
    sign = -1 if higher_is_better else 1
    return min(having, key=lambda number: sign * records[number][value])


def table(records: Sequence[Record], setting: str, names: Sequence[str], best: int | None = None) -> str:
    """A Markdown table: a row for each record, with its setting (kimg, truncation) and values; the best is marked.

    Where two snapshots have the same kimg, as pickles without a number in their names, rows begin with names of files.
    """
    values = list(ranked_values(records, names))
    settings = [f"{record['settings'][setting]:g}" for record in records]
    if setting == "kimg" and len(set(settings)) < len(settings):
        setting, settings = "network", [Path(record["settings"]["network"]).name for record in records]
    rows = [[setting, *values]]
    for number, record in enumerate(records):
        texts = [f"{record[value]:.4g}" if value in record else "–" for value in values]
        rows.append([settings[number] + (" (best)" if number == best else ""), *texts])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(lines)


def curve(records: Sequence[Record], setting: str, value: str, best: int | None = None) -> str:
    """An SVG of a value over a setting, with the best one marked."""
    points = [
        (float(record["settings"][setting]), float(record[value]), "best" if number == best else "")
        for number, record in enumerate(records)
        if value in record
    ]
    return line_chart({value: points}, value, setting, value)


def precision_against_recall(records: Sequence[Record], names: Sequence[str]) -> list[str]:
    """An SVG of precision against recall, and of density against coverage, with truncation at the points."""
    kinds = {"pr": ("recall", "precision"), "dc": ("coverage", "density")}
    metrics: list[Metric] = [parse_metric(name) for name in names]
    charts = []
    for kind, (x, y) in kinds.items():
        lines: dict[str, list[Point]] = {}
        for metric in metrics:
            if metric.kind == kind and any(metric.value_name(f"_{x}") in record for record in records):
                lines[metric.name] = [
                    (
                        record[metric.value_name(f"_{x}")],
                        record[metric.value_name(f"_{y}")],
                        f"ψ {record['settings']['truncation']:g}",
                    )
                    for record in records
                    if metric.value_name(f"_{x}") in record and metric.value_name(f"_{y}") in record
                ]
        if lines:
            charts.append(line_chart(lines, f"{y} against {x}", x, y))
    return charts


def charts(records: Sequence[Record], setting: str, names: Sequence[str], best: tuple[str, int] | None = None) -> str:
    """One SVG of all curves, below each other; of truncations, precision against recall first."""
    found = precision_against_recall(records, names) if setting == "truncation" else []
    for value in ranked_values(records, names):
        found.append(curve(records, setting, value, best[1] if best and best[0] == value else None))
    return stacked(found)


def link_best(snapshot: Path) -> Path:
    """Makes `best.safetensors` beside a snapshot (or `best.pkl` beside a pickle) a link to it, replacing an older link.

    Raises UserError where that is a file, which `train.py --keep-best` has written: it may be a model of its own.
    """
    link = snapshot.with_name(BEST + snapshot.suffix)
    if link.exists() and not link.is_symlink():
        raise UserError(f"{link} is no link but a model, such as --keep-best of train.py writes; move it elsewhere")
    beside = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        beside.symlink_to(snapshot.name)
        beside.replace(link)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"cannot link {link} to {snapshot.name}: {error.strerror}") from None
    return link


def print_series(
    records: Sequence[Record], names: Sequence[str], setting: str, best: str | None, as_json: bool, plot: str
) -> list[str]:
    """Prints a table of snapshots by kimg, or of truncations, and writes their curves.

    The snapshot with the best value of `best` is linked; returns what kept it from that.
    """
    number, link, problems = None, None, []
    if best is not None:
        try:
            number = best_record(records, best, higher_is_better(best, names))
            link = link_best(Path(records[number]["settings"]["network"]))
        except UserError as error:
            problems.append(error.message)
    write_file(plot, charts(records, setting, names, None if number is None else (str(best), number)).encode())
    if as_json:
        network = None if number is None else records[number]["settings"]["network"]
        print(json.dumps({"records": records, "plot": plot, **({"best": network} if network else {})}))
    else:
        print("\n".join(printable(line) for line in table(records, setting, names, number).splitlines()))
        print(f"\nThe curves are in {plot}.")
        if link:
            print(f"The best snapshot by {best} is {link.readlink()}, linked as {link}.")
    return problems
