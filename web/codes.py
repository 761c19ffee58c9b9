"""The latents that a tab starts from: those of a seed, or of an image that the tab "Invert" has inverted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from latents.cli import Model
from latents.codes import Codes
from latents.names import target_names
from torch_utils.errors import UserError
from web.fields import check_seed, seed_field
from web.page import Page

SEED = "a seed"
KEPT = 4  # inverted images of a page


@dataclass(frozen=True)
class Inverted:
    """An image that has been inverted, in the session of a page."""

    name: str
    model: Path
    codes: Codes  # of one image


def codes_name(image: str) -> str:
    """What generate.py calls an image whose latents are in a file: its name without the extension."""
    return target_names([image])[0]


def codes_file(image: str) -> str:
    """What the latents of an image are downloaded as: the name that projector.py gives the file."""
    return f"projected-{codes_name(image)}.npz"


def code_fields(page: Page, label: str, value: int, name: str) -> list[Any]:
    """The choice between a seed and the inverted images, and the seed."""
    source = gr.Dropdown([SEED], value=SEED, label=label, elem_id=f"{name}-from", filterable=False)
    seed = seed_field(page, "Its seed", value, name)
    page.sources.append(source)
    return [source, seed]


def find_codes(model: Model, source: str, seed: float | None, inverted: list[Inverted]) -> Codes:
    """The latents of a choice, truncated as the model says. Raises UserError if they are of another model."""
    if source in (SEED, None):
        return Codes(model.ws([check_seed(seed)]))
    found = next((each for each in inverted if each.name == source), None)
    if found is None:
        raise UserError(f"{source} is no longer there; invert it again")
    if found.model != model.path:
        raise UserError(
            f"{source} was inverted with another model; choose that model, or invert the image with this one"
        )
    if model.trunc_class:
        raise UserError(f"{source} is of no class; turn off the truncation towards the mean of the class")
    codes = found.codes.to(model.G.w_avg.device)
    return Codes(model.G.truncated(codes.ws, model.psi), codes.noise)


def keep(inverted: list[Inverted], new: Inverted) -> list[Inverted]:
    """The inverted images with a new one, which replaces one of the same name; the oldest are dropped."""
    return [*(each for each in inverted if each.name != new.name), new][-KEPT:]


def choices(inverted: list[Inverted]) -> Any:
    """What a choice of `code_fields` becomes when there are other inverted images."""
    return gr.Dropdown([SEED, *(each.name for each in inverted)])
