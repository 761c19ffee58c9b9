"""Which directions of w a command shows: new ones, or those of a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from latents.cli import Model
from latents.codes import fingerprint
from latents.directions import METHODS, Directions, Method, find_directions, load_directions, sample_w
from latents.mixing import Part, check_layers
from torch_utils import cli


@dataclass(frozen=True)
class DirectionOptions:
    """Which directions are found or read, and what of them is shown."""

    method: Method | Literal["both"] | None
    count: int | None
    edit: str | None
    numbers: list[int] | None
    amounts: tuple[float, ...]
    layers: list[int] | None
    part: Part


def new_directions(model: Model, choice: DirectionOptions) -> dict[str, Directions]:
    """Directions by the chosen methods, under the names of their files."""
    layers = check_layers(model.G.config, choice.layers, choice.part)
    methods = METHODS if choice.method is None or choice.method == "both" else [choice.method]
    found = find_directions(model.G, sample_w(model.G), methods, choice.count or 8, layers, choice.part)
    return {name: replace(directions, origin=fingerprint(model.path)) for name, directions in found.items()}


def read_directions(model: Model, choice: DirectionOptions) -> dict[str, Directions]:
    """The directions of --edit, under the name of the sheet; --layers and --part replace what the file says."""
    assert choice.edit is not None
    read = load_directions(choice.edit, model.G)
    part = choice.part if cli.typed("part") else read.part
    layers = tuple(check_layers(model.G.config, choice.layers or read.layers, part))
    model.compare_origin(choice.edit, read.origin)
    return {f"edit-{Path(choice.edit).stem}": replace(read, layers=layers, part=part)}
