"""The models that the page offers: the shipped ones, those of runs, and the files that app.py was given."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latents.cli import Classes, Model, ModelOptions, Numbers, prepare_model, set_precision
from models.card import SAMPLE_SHEET, facts_of_run, model_card
from models.classes import class_names
from models.foreign import is_foreign
from models.snapshot import (
    GENERATOR,
    PRETRAINED,
    SHIPPED,
    STYLIZER,
    find_snapshot,
    list_runs,
    load_generator,
    load_stylizer,
    read_description,
    run_number,
)
from networks.generator import Generator, GeneratorConfig
from networks.stylizer import Stylizer
from torch_utils.errors import UserError
from torch_utils.files import as_typed
from torch_utils.precision import COMPUTE_DTYPES
from torch_utils.tensors import read_metadata
from training.runs import sheet_path
from web.terms import explain

LOADED = 3  # models that stay in memory
RUNS = Path("runs")


@dataclass(frozen=True)
class Entry:
    """A model that can be chosen."""

    name: str  # what a command line calls it, and the address of the page
    label: str
    source: Path  # a file, a run, or a folder of runs
    path: Path  # the snapshot


class Shelf:
    """Finds models and keeps the last used ones loaded, on one device."""

    def __init__(self, files: Sequence[str] = (), device: str = "cpu"):
        """`files` are further models: whatever `--network` of generate.py or `--model` of stylize.py takes."""
        self.files, self.device = [Path(file) for file in files], device
        self._known: dict[tuple[str, str], Entry] = {}
        self._lock = threading.Lock()
        self._loaded: OrderedDict[tuple, tuple[Any, dict[str, Any]]] = OrderedDict()

    def entries(self, kind: str) -> list[Entry]:
        """The models of a kind: the given files, the runs from the newest on, and the shipped ones.

        Of these, the first is the one that commands take where none is named.
        """
        given = [path for path in self.files if kind_of(path) == kind]
        found = [Entry(as_typed(path), path.name, path, find_snapshot(path, kind)) for path in given]
        for run in sorted(list_runs(RUNS), key=run_number, reverse=True):
            try:
                snapshot = find_snapshot(run, kind)
            except UserError:
                continue  # no snapshot yet, or of the other kind
            found.append(Entry(as_typed(run), f"{run.name}{metric_text(snapshot)}", run, snapshot))
        for path in sorted(PRETRAINED.glob("*.safetensors"), key=lambda path: (path.name != SHIPPED[kind], path)):
            if kind_of(path) == kind:
                found.append(Entry(as_typed(path), f"{path.stem} (comes with the project)", path, path))
        self._known.update({(kind, entry.name): entry for entry in found})
        return found

    def entry(self, name: str, kind: str) -> Entry:
        """The model of that name, of a run with its newest snapshot. Raises UserError if it cannot be chosen."""
        if (kind, name) not in self._known:
            self.entries(kind)
        try:
            entry = self._known[kind, name]
            return replace(entry, path=find_snapshot(entry.source, kind))
        except (KeyError, UserError):
            raise UserError("there is no such model any more; choose another one above") from None

    def generator(
        self, name: str, precision: str = "fp32", trunc: str = "1", classes: str = "", trunc_class: bool = False
    ) -> Model:
        """A generator with its truncation and classes, as `generate.py` takes them: see `Numbers` and `Classes`.

        `trunc_class` counts where there is something to truncate: with labels, and a truncation other than 1.
        """
        entry = self.entry(name, GENERATOR)
        G, info = self._load(entry, GENERATOR, precision)
        shares = Classes().convert(classes, None, None) if classes else None
        psi = Numbers(-9, 9).convert(trunc, None, None)
        trunc_class = trunc_class and G.config.c_dim > 0 and any(number != 1 for number in psi)
        return prepare_model(G, info, entry.path, ModelOptions(trunc=psi, trunc_class=trunc_class, classes=shares))

    def config(self, name: str) -> GeneratorConfig:
        """How a generator is built."""
        return self._load(self.entry(name, GENERATOR), GENERATOR, "fp32")[0].config

    def stylizer(self, name: str) -> Stylizer:
        """A stylizer."""
        return self._load(self.entry(name, STYLIZER), STYLIZER, "fp32")[0]

    def card(self, name: str, kind: str) -> str:
        """What is known about a model, in Markdown: its card, without the front matter, and what the terms mean."""
        entry = self.entry(name, kind)
        model, info = self._load(entry, kind, "fp32")
        card = model_card(model, {**facts_of_run(entry.path), **info}, entry.name, entry.name)
        body = card.split("---\n", 2)[2]
        text = "\n".join(line for line in body.splitlines() if not line.startswith("!["))
        return f"{text}\n\n## What the terms mean\n\n{explain(text)}"

    def sheet(self, name: str, kind: str) -> Path | None:
        """A sheet of the model's images: the one of its run's last evaluation, or the one beside its card."""
        path = self.entry(name, kind).path
        kimg = path.stem.removeprefix("snapshot-")
        sheets = [path.with_name(SAMPLE_SHEET)]
        if kimg.replace(".", "", 1).isdigit():
            sheets.insert(0, sheet_path(path.parent, "fakes", float(kimg)))
        return next((sheet for sheet in sheets if sheet.is_file()), None)

    def class_names(self, name: str) -> list[str]:
        """The numbers and names of a generator's classes, as its file or NAME.classes.txt beside it says."""
        G, info = self._load(self.entry(name, GENERATOR), GENERATOR, "fp32")
        if not (names := class_names(info, G.config.classes)):
            return [f"class {i}" for i in range(G.config.classes)]
        return [f"{i}: {text[:60]}" for i, text in enumerate(names)]

    def _load(self, entry: Entry, kind: str, precision: str) -> tuple[Any, dict[str, Any]]:
        if precision not in COMPUTE_DTYPES:
            raise UserError(f"there is no precision {precision}; choose one of {', '.join(COMPUTE_DTYPES)}")
        key = entry.path, entry.path.stat().st_mtime_ns, precision
        with self._lock:  # so that two requests do not load the same model
            if key not in self._loaded:
                while len(self._loaded) >= LOADED:
                    self._loaded.popitem(last=False)
                load = load_generator if kind == GENERATOR else load_stylizer
                model, info = load(entry.path, self.device)
                if isinstance(model, Generator):
                    set_precision(model, precision)
                self._loaded[key] = model, info
            self._loaded.move_to_end(key)
            return self._loaded[key]


def kind_of(path: Path) -> str | None:
    """The kind of model that a file or a folder holds; None if it cannot be read."""
    if path.is_dir():
        return next((kind for kind in (GENERATOR, STYLIZER) if holds(path, kind)), None)
    if is_foreign(path):
        return GENERATOR
    try:
        return read_description(read_metadata(path)).get("format")
    except (OSError, ValueError):
        return None


def holds(folder: Path, kind: str) -> bool:
    """Whether a folder of runs, or a run, has a snapshot of that kind."""
    try:
        find_snapshot(folder, kind)
    except UserError:
        return False
    return True


def metric_text(snapshot: Path) -> str:
    """` · swd2k 35.1 · 200 kimg`, as far as the run of a snapshot says."""
    metrics = facts_of_run(snapshot).get("metrics", {})
    parts = [f"{name} {value:.4g}" for name, value in metrics.items()][:2]
    kimg = snapshot.stem.removeprefix("snapshot-")
    if kimg.replace(".", "", 1).isdigit():
        parts.append(f"{float(kimg):g} kimg")
    return "".join(f" · {part}" for part in parts)
