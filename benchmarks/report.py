"""The records of benchmarks/results as tables in docs/performance.md: times, floors, and how far they are apart.

    python benchmarks/report.py
    python benchmarks/report.py --plot docs/performance.png      # pip install matplotlib first

What stands between the two marks in the document is written anew; the rest of it is left alone.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torch_utils import cli
from torch_utils.errors import UserError
from torch_utils.files import write_file

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- figures: written by benchmarks/report.py -->", "<!-- end of figures -->"

Record = dict[str, Any]
Table = list[list[str]]  # the first row is the header


def read(folder: Path) -> dict[str, Record]:
    """The records by the names of their files. Raises UserError where one is no JSON object."""
    records = {}
    for path in sorted(folder.glob("*.json")):
        try:
            records[path.stem] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as a record ({error}); measure it again") from None
        if not isinstance(records[path.stem], dict):
            raise UserError(f"{path} is no record of a benchmark; remove it")
    return records


def number(value: float | None, form: str = "") -> str:
    """Three figures, or in a form of its own; nothing for what was not measured."""
    if value is None:
        return ""
    if form:
        return format(value, form)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def ms(seconds: float | None) -> str:
    return number(None if seconds is None else 1e3 * seconds)


def ratio(a: float | None, b: float | None) -> str:
    return number(a / b) if a and b else ""


def ops(record: Record) -> Table:
    table = [["op", "batch", "precision", "ms", "floor", "÷", "loop ×", "grouped or reference ×"]]
    table[0] += ["with gradients: ms", "floor", "÷", "loop ×", "grouped or reference ×", "GiB"]
    for row in [*record["adaconv"], *record["others"]]:
        line = [row["op"], str(row["batch"]), row.get("precision", "fp32")]
        for times, floor in (("forward", "floor"), ("forward_and_gradients", "floor_with_gradients")):
            own, floor = row[times].get("demod", row[times].get("own")), row.get(floor)
            other = row[times].get("grouped", row[times].get("reference"))
            line += [ms(own), ms(floor), ratio(own, floor), ratio(row[times].get("loop"), own), ratio(other, own)]
        table.append([*line, number(row.get("gib"))])
    return table


def generator(record: Record) -> Table:
    table = [["generator", "batch", "ms an image", "images/s", "floor", "÷", "÷ modconv", "GiB"]]
    title = f"{record['resolution']}² {record.get('precision', 'fp32')}"
    for row in record["rows"]:
        for key in [key for key in row if key.startswith("s_per_image_batch")]:
            n, time = key.removeprefix("s_per_image_batch"), row[key]
            over = row[f"vs_floor_batch{n}"]
            line = [" ".join([title, row["modulation"], row.get("how", "eager")]), n, ms(time), number(1 / time)]
            line += [ms(time / over), number(over), number(row.get(f"vs_modconv_batch{n}"))]
            table.append([*line, number(row.get(f"gib_batch{n}"))])
    return table


def training(record: Record) -> Table:
    table = [["training", "batch", "G", "path length", "D", "R1", "s/kimg", "÷ first", "whole steps: s/kimg"]]
    table[0] += ["GPU idle", "GiB"]
    title = f"{record['resolution']}² cbase {record['cbase']} {record['precision']} {record['aug']}"
    for row in record["rows"]:
        parts = [ms(row["s_per_image"][part]) for part in ("G", "path length", "D", "R1")]
        idle = row.get("gpu_idle")
        line = [f"{title} {row['name']}", str(record["batch"]), *parts, number(row["s_per_kimg"])]
        line += [number(row["vs_first"]), number(row.get("s_per_kimg_whole"))]
        table.append([*line, "" if idle is None else f"{100 * idle:.0f} %", number(row["gib"])])
    return table


def stylizer(record: Record) -> Table:
    table = [["stylizer", "batch", "ms", "images/s", "floor", "÷", "baseline ×", "GiB"]]
    for row in record["rows"]:
        size = f"{row['size']}²" if isinstance(row["size"], int) else row["size"]
        line = [f"{size} {record.get('precision', 'fp32')} {row['name']}", str(row["batch"]), ms(row["s"])]
        line += [number(row["batch"] / row["s"]), ms(row["s"] / row["vs_floor"]), number(row["vs_floor"])]
        table.append([*line, number(row["baseline_vs"]), number(row["gib"])])
    return table


def generating(record: Record) -> Table:
    table = [
        ["generate.py", "batch", "network: ms an image", "with files", "÷ network", "floor", "÷", "a file on a core"]
    ]
    line = [f"{record['resolution']}²", str(record["batch"]), number(record["network_ms"])]
    line += [number(record["generate_ms"]), number(record["ratio"]), number(record["floor_ms"])]
    table.append([*line, ratio(record["generate_ms"], record["floor_ms"]), number(record["file_ms"])])
    return table


def exports(record: Record) -> Table:
    names = ("native", "reference", "onnx loop", "onnx shifted", "onnx unfolded", "onnx")
    table = [
        ["exported", "batch", "PyTorch, kernels", "references", "loop", "shifted", "unfolded", "whole", "÷ PyTorch"]
    ]
    for row in record["rows"]:
        times = [ms(row.get(name)) for name in names]
        table.append(
            [row["op"], str(row["batch"]), *times, ratio(row.get("onnx", row.get("onnx loop")), row["native"])]
        )
    return table


def comparison(record: Record) -> Table:
    table = [["kernels beside references", "difference", "bound"]]
    for name, difference in record["differences"].items():
        what = f"{name.replace('_', ' ')}, {record['steps']} steps in {record['precision']}"
        table.append([what, f"{difference:.1e}", f"{record['bounds'][name]:.1e}"])
    return table


def resources(record: Record) -> Table:
    table = [["kernel", "registers", "shared memory: bytes", "spills: bytes", "threads", "of an SM's threads, at most"]]
    for row in record["rows"]:
        line = [f"`{row['kernel']}`", *(str(row[n]) for n in ("registers", "shared", "spills", "threads"))]
        table.append([*line, f"{100 * row['occupancy']:.0f} %"])
    return table


KINDS: dict[str, tuple[str, Callable[[Record], Table]]] = {  # by the beginning of a record's name
    "ops": ("Times of ops in ms", ops),
    "generator": ("The generator", generator),
    "generate": ("`generate.py --seeds` beside its network alone", generating),
    "training": ("Training steps, ms an image", training),
    "stylizer": ("The stylizer", stylizer),
    "export": ("Exported graphs in onnxruntime, ms", exports),
    "kernels": ("Training with the kernels and without", comparison),
    "resources": ("What the compiler made of the kernels", resources),
}


def kind_of(name: str) -> str:
    return name.partition("-")[0]


def origin(record: Record) -> str:
    """One line on where a record was measured."""
    known = [record.get("machine") or record.get("device"), f"PyTorch {record['torch']}" if "torch" in record else None]
    known += [f"CUDA {record['cuda']}" if record.get("cuda") else None, record.get("compiler")]
    known += [f"{record['threads']} threads" if record.get("device") == "cpu" and "threads" in record else None]
    known += [f"copy {record['copy_gb_per_s']:,.0f} GB/s" if record.get("copy_gb_per_s") else None]
    rates = record.get("gflops_of") or {record.get("precision", "fp32"): record.get("gflops")}
    known += [f"matrix product {rate:,.0f} GFLOP/s in {name}" for name, rate in rates.items() if rate]
    short = re.sub(r"^([0-9a-f]{7})[0-9a-f]+", r"\1", record.get("commit") or "")
    known += [f"commit {short}" if short else None, record.get("date")]
    return ", ".join(str(part) for part in known if part)


def markdown(table: Table) -> Iterable[str]:
    used = [
        i for i in range(len(table[0])) if any(row[i] for row in table[1:])
    ]  # not those that nothing was measured of
    head, *rows = ([row[i] for i in used] for row in table)
    for row in (head, ["---"] * len(used), *rows):
        yield "| " + " | ".join(row) + " |"


def figures(records: dict[str, Record]) -> str:
    """The tables of all records, those of a kind together."""
    lines = []
    for kind, (title, table) in KINDS.items():
        of_kind = {name: record for name, record in records.items() if kind_of(name) == kind}
        if of_kind:
            lines += ["", f"### {title}"]
        for name, record in of_kind.items():
            lines += ["", f"`{name}.json`: {origin(record)}.", "", *markdown(table(record))]
    return "\n".join(lines) + "\n"


def replaced(text: str, new: str) -> str:
    """The document with `new` between the marks. Raises UserError where they are not there."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"the document has no place for the figures; put the lines {BEGIN} and {END} into it")
    return f"{before}{BEGIN}\n{new}\n{END}{after}"


def distances(records: dict[str, Record]) -> list[tuple[str, float]]:
    """What was measured, and how many times its floor it takes: of each table that has a column ÷."""
    found = []
    for name, record in records.items():
        if kind_of(name) in KINDS:
            head, *rows = KINDS[kind_of(name)][1](record)
            for column in [i for i, title in enumerate(head) if title == "÷"]:
                what = " with gradients" if "with gradients: ms" in head[:column] else ""
                for row in rows:
                    if row[column]:
                        label = f"{name}: {row[0]}{what}, batch {row[1]}"
                        found.append((label, float(row[column].replace(",", ""))))
    return found


def plot(records: dict[str, Record], path: str) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("a plot needs matplotlib; install it with: pip install matplotlib") from None
    found = distances(records)[::-1]
    if not found:
        raise UserError("no record has a floor to be compared with; measure one with make bench")
    figure = Figure([9, 1 + 0.2 * len(found)], layout="constrained")
    axes = figure.subplots()
    axes.barh([label for label, _ in found], [value for _, value in found], color="#4a7ba6", height=0.7)
    axes.axvline(1, color="black", linewidth=1)
    axes.axvline(2, color="black", linewidth=1, linestyle=":")
    axes.set_xlabel("time ÷ floor: the copy of the same bytes, or the multiply-adds as a matrix product")
    axes.tick_params(labelsize=7)
    axes.margins(y=0.01)
    figure.savefig(path, dpi=110)


@click.command(cls=cli.Command, example="python benchmarks/report.py --plot docs/performance.png")
@cli.option("Options", "--results", default=str(ROOT / "benchmarks" / "results"), help="The folder of the records.")
@cli.option("Options", "--document", default=str(ROOT / "docs" / "performance.md"), help="The document to write into.")
@cli.option("Options", "--plot", "plot_path", metavar="FILE", help="Draw how far all are from their floors.")
def main(results: str, document: str, plot_path: str | None) -> None:
    """Writes tables of the records into the document."""
    records = read(Path(results))
    path = Path(document)
    if not path.is_file():
        raise UserError(f"there is no {path}; name the document with --document")
    write_file(path, replaced(path.read_text(), figures(records)).encode())
    if plot_path:
        plot(records, plot_path)
    print(path)


if __name__ == "__main__":
    cli.run(main)
