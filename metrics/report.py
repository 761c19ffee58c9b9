"""`python -m metrics report`: all that is known of a snapshot on one page, an HTML file that needs no other."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from media.alpha import Color, opaque
from media.dataset import ImageDataset
from media.decode import WHITE
from media.images import encode_png, grid
from metrics.evaluator import choose
from metrics.names import parse_metric, values_of
from metrics.nearest import NearestResult, row_names
from metrics.plot import stacked
from metrics.series import Record, best_record, curve, precision_against_recall, ranked_values
from models.sampling import generate_batches
from models.snapshot import load_generator
from torch_utils.errors import UserError, printable
from torch_utils.files import read_regular
from torch_utils.schema import MAX_JSON_BYTES, parse_json

SHEET = 640  # pixels, of the width of a sheet of images, about
ROWS = 6  # of such a sheet

STYLE = """
body { font: 15px/1.45 sans-serif; max-width: 1040px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; } th, td { padding: 3px 10px; text-align: left; border-bottom: 1px solid #e4e4e4; }
td.number { text-align: right; font-variant-numeric: tabular-nums; } code { overflow-wrap: anywhere; }
figure { display: inline-block; margin: 0 1.5em 1em 0; vertical-align: top; max-width: 100%; }
figcaption, .note { color: #555; font-size: 0.9em; } img { max-width: 100%; image-rendering: pixelated; }
"""


@dataclass(frozen=True)
class Page:
    """What the page shows."""

    records: list[Record]  # of one snapshot at one truncation or more; the first is in the table of metrics
    history: list[Record]  # of the run's training
    found: NearestResult | None  # the nearest training images
    detector: str  # in whose features they are near
    note: str  # why there are none, or ""
    background: Color = WHITE  # of transparent images


# --- parts ----------------------------------------------------------------------------------------------------------


def html_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Floats are rounded to four digits."""

    def cell(value: Any) -> str:
        if not isinstance(value, (int, float)):
            return f"<td>{escape(printable(value))}</td>"
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        return f'<td class="number">{text}</td>'

    lines = ["<tr>" + "".join(f"<th>{escape(text)}</th>" for text in head) + "</tr>"] if head else []
    lines += ["<tr>" + "".join(cell(value) for value in row) + "</tr>" for row in rows]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{escape(printable(caption))}</figcaption></figure>"


def inline_image(image: Tensor, caption: str) -> str:
    """A figure of an image uint8 [C, H, W], shown at twice its size where it is small."""
    data = base64.b64encode(encode_png(image)).decode()
    width = image.shape[2] * (2 if image.shape[2] <= SHEET // 2 else 1)
    return figure(
        f'<img width="{width}" alt="{escape(printable(caption))}" src="data:image/png;base64,{data}">', caption
    )


def read_history(snapshot: Path) -> list[Record]:
    """The metrics that the training of a snapshot's run recorded, as records; [] where the file has no run."""
    path = snapshot.parent / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        lines = [parse_json(line, nan=True) for line in read_regular(path, MAX_JSON_BYTES).splitlines()]
        return [{**line, "settings": {**line.get("settings", {}), "kimg": line["kimg"]}} for line in lines]
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise UserError(f"{path} is damaged; move it elsewhere for a report without curves") from None


# --- the page -------------------------------------------------------------------------------------------------------


def metrics_table(record: Record) -> str:
    """Every value of a record, with the numbers of images that it is of."""
    rows = []
    for name, counts in record["images"].items():
        rankings = parse_metric(name).rankings()
        for suffix, value in values_of(name, record).items():
            full_name = parse_metric(name).value_name(suffix)
            better = {True: "higher", False: "lower", None: ""}[rankings.get(full_name)]
            rows.append([full_name, value, better, counts["real"], counts["fake"]])
    table = html_table(["metric", "value", "better if", "real images", "generated images"], rows)
    left_out = [f"{name}: {reason}" for name, reason in record.get("left_out", {}).items()]
    left_out += [record["failed"]] if "failed" in record else []
    return table + "".join(f'<p class="note">Left out: {escape(line)}</p>' for line in left_out)


def settings_table(record: Record) -> str:
    settings = dict(record["settings"])
    detectors = settings.pop("detectors")
    rows = [[name, str(value)] for name, value in settings.items()]
    rows += [[f"SHA-256 of {name}", value] for name, value in detectors.items()]
    return html_table([], rows)


def history_figures(history: Sequence[Record]) -> str:
    """The curve of each value that models are ranked by, with its best point."""
    names = list(dict.fromkeys(name for record in history for name in record.get("images", {})))
    values = ranked_values(history, names)
    curves = [curve(history, "kimg", value, best_record(history, value, higher)) for value, higher in values.items()]
    return "".join(f"<figure>{chart}</figure>" for chart in curves)


def truncation_section(records: Sequence[Record]) -> str:
    names = list(records[0]["images"])
    values = list(ranked_values(records, names))
    rows = [[record["settings"]["truncation"], *(record.get(value, "–") for value in values)] for record in records]
    charts = precision_against_recall(records, names) or [curve(records, "truncation", value) for value in values]
    return html_table(["truncation ψ", *values], rows) + f"<figure>{stacked(charts)}</figure>"


def nearest_section(page: Page) -> str:
    """The sheet of nearest training images, and the metrics of memorization."""
    if page.found is None:
        return f'<p class="note">Left out: {escape(page.note)}</p>'
    found = page.found
    authentic = found.metrics["authentic"]
    text = f"{authentic:.1%} of {len(found.rows):,} generated images are authentic: "
    text += "their nearest training image has another training image that is nearer to it."
    if "c_t" in found.metrics:
        text += f" C_T is {found.metrics['c_t']:.2f}; far below 0, training images are copied."
    if "fld" in found.metrics:
        text += f" FLD is {found.metrics['fld']:.2f}; 0 means as good as training images, and copies raise it."
    rows = []
    for number in found.shown:
        row = found.rows[number]
        verdict = "" if row["authentic"] else "not authentic"
        rows.append([*row_names(row), row["distance"], row["nearest_to_another"], verdict])
    head = ["generated", "nearest training image", "distance", "its distance to another", ""]
    caption = f"Generated images (left) and the training images nearest to them, in the features of {page.detector}"
    return f"<p>{escape(text)}</p>" + inline_image(found.sheet, caption) + html_table(head, rows)


def image_sheets(snapshot: Path, data: str, truncation: float, background: Color, device: str) -> str:
    """Generated and real images beside each other, as the metrics see them: transparent ones on the background.

    Of a model with classes, the generated images have those of the real ones.
    """
    G, _ = load_generator(snapshot, torch.device(device))
    dataset = ImageDataset(data, use_labels=G.config.c_dim > 0, background=background)
    width = dataset[0][0].shape[2]
    columns = max(min(SHEET // 2 // width, 10), 3)
    chosen = choose(len(dataset), columns * ROWS, seed=0)
    reals = torch.stack([dataset[number][0] for number in chosen])
    classes = None if dataset.labels is None else dataset.labels[chosen]
    fakes = torch.cat(list(generate_batches(G, range(len(chosen)), 16, classes, truncation)))
    fakes = opaque(fakes, background)
    generated = inline_image(grid(fakes, columns), f"Generated images, seeds 0 to {len(chosen) - 1}, ψ {truncation:g}")
    return generated + inline_image(grid(reals, columns), "Real images")


def write_page(page: Page, device: str) -> str:
    """The HTML of a page."""
    record = page.records[0]
    settings = record["settings"]
    snapshot = Path(settings["network"])
    title = f"{snapshot.parent.name or 'model'}, {settings['kimg']:g} kimg"
    sections = [("Metrics", metrics_table(record))]
    if len(page.records) > 1:
        sections.append(("Truncation", truncation_section(page.records)))
    if page.history:
        sections.append(("Over training", history_figures(page.history)))
    sheets = image_sheets(snapshot, settings["data"], settings["truncation"], page.background, device)
    sections.append(("Images", sheets))
    sections.append(("Nearest training images", nearest_section(page)))
    sections.append(("Settings", settings_table(record)))
    body = "\n".join(f"<h2>{escape(name)}</h2>\n{content}" for name, content in sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )
