"""Controls that several tabs have, what they depend on in the model, and what `generate.py` calls their values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import gradio as gr

from latents.mixing import PARTS, check_part
from torch_utils import cli
from torch_utils.errors import UserError
from web.page import Page

MAX_NUMBERS = 1000  # in a field: ranges are written out, and take memory
MAX_SEED = 2**32 - 1  # JavaScript's numbers are exact far beyond, but nobody types more
ANY_CLASS = "the seed's own"
MIXTURE = re.compile(r"\d+(:[\d.]+)?(\+\d+(:[\d.]+)?)*")  # of classes by their numbers: "2", "1+3", "1:0.2+3:0.8"
PARTS_INFO = (
    "structure: how each channel is filtered (depthwise kernels). channels: how channels are mixed (pointwise "
    "kernels). bias: what is added to each channel."
)


# --- seeds and images -----------------------------------------------------------------------------------------------


def seed_field(page: Page, label: str, value: int, name: str) -> gr.Number:
    """A field for a seed, with arrows. Its bounds are `check_seed`'s: Gradio prints a traceback for its own."""
    field = gr.Number(value, label=label, precision=0, step=1, elem_id=name)
    return page.settings.number(name, field, (0, MAX_SEED))


def check_seed(seed: float | None) -> int:
    """A seed. Raises UserError if there is none."""
    if seed is None or not 0 <= seed <= MAX_SEED:
        raise UserError(f"a seed is a whole number from 0 to {MAX_SEED}; write one")
    return int(seed)


def result_image(label: str, name: str, look: str = "pixels") -> gr.Image:
    """An image that a tab makes.

    With the look "pixels" it is enlarged without smoothing, and a "pixels strip" to the whole width; a "sheet" keeps
    its size.
    """
    return gr.Image(
        label=label, type="filepath", format="png", interactive=False, buttons=["download", "fullscreen"],
        elem_id=name, elem_classes=look.split(),
    )  # fmt: skip


# --- truncation and class -------------------------------------------------------------------------------------------


def psi_field(page: Page, name: str, info: str | None = None) -> gr.Slider:
    """The truncation of all layers."""
    return page.settings.number(name, gr.Slider(-1, 2, 1, step=0.01, label="Truncation", elem_id=name, info=info))


def class_fields(page: Page, name: str) -> list[Any]:
    """The class, by its name, and whether truncation is towards its mean. Both are hidden where there are no labels."""

    def of_class(model: str, value: Any) -> dict[str, Any]:
        names = [ANY_CLASS, *page.shelf.class_names(model)]
        known = value in names or (len(names) > 1 and MIXTURE.fullmatch(str(value)))
        return {"choices": names, "value": value if known else ANY_CLASS, "visible": len(names) > 1}

    def toward(model: str, value: Any) -> dict[str, Any]:
        labelled = page.shelf.config(model).c_dim > 0
        return {"value": bool(value) and labelled, "visible": labelled}

    first = gr.Dropdown(label="Class", elem_id=name, allow_custom_value=True, **of_class(page.model.value, ANY_CLASS))
    second = gr.Checkbox(
        label="Truncate towards the mean of the class", info="In place of the mean of all classes.",
        elem_id=f"{name}-mean", **toward(page.model.value, False),
    )  # fmt: skip
    page.settings.text(name, page.follow(first, of_class))
    page.settings.flag(f"{name}-mean", page.follow(second, toward))
    return [first, second]


def truncation(psi: float | None, by_layer: str | None = None) -> str:
    """The truncation as `--trunc` takes it; an empty field is 1."""
    return (by_layer or "").strip() or f"{1 if psi is None else psi:g}"


def class_number(chosen: str | None, names: Sequence[str]) -> str:
    """The chosen class, one of the model's `names` or typed, as `--class` takes it; empty for the seed's own."""
    if not chosen or chosen == ANY_CLASS:
        return ""
    if chosen in names:  # first: a class may be called "0" or "1+1", so that "1: 1+1" is no mixture
        return str(names.index(chosen))
    # "class 2", "2: blond hair" of another model, or a mixture as it is typed
    listed = re.fullmatch(r"(?:class )?(\d+)(?:: .*)?", chosen)
    is_mixture = re.fullmatch(r"\d+: *[\d.]+ *(\+.*)?", chosen)
    return listed[1] if listed and not is_mixture else chosen


def truncation_options(trunc: str, classes: str, trunc_class: bool) -> list[str]:
    """The options of generate.py for truncation and class, without the defaults."""
    words = ["--trunc", trunc] if trunc != "1" else []
    if classes:
        words += ["--class", classes]
    return [*words, "--trunc-class"] if trunc_class else words


# --- layers, parts and noise ----------------------------------------------------------------------------------------


def layers_field(page: Page, name: str, value: str = "", kernels: bool = False) -> gr.Textbox:
    """A field for layers; `kernels` leaves out the last one, which has none."""

    def info(model: str, value: Any) -> dict[str, Any]:
        last = page.shelf.config(model).num_ws - 1
        end = f"{last - 1} the finest" if kernels else f"{last} the finest (the last ToRGB, which has no kernels)"
        return {"info": f"0 is the coarsest, {end}. Empty: all."}

    field = gr.Textbox(
        value, label="Layers", placeholder="0-3,5", max_length=200, elem_id=name, **info(page.model.value, value)
    )
    return page.settings.text(name, page.follow(field, info))


def part_field(page: Page, name: str) -> gr.Radio:
    """The choice of the part of a style, among those that the model predicts."""

    def parts(model: str, value: Any) -> dict[str, Any]:
        config, possible = page.shelf.config(model), []
        for part in PARTS:
            try:
                check_part(config, part)
            except UserError:
                continue
            possible.append(part)
        missing = [part for part in PARTS if part not in possible]
        more = f" This model predicts no {' and no '.join(missing)}." if missing else ""
        return {"choices": possible, "value": value if value in possible else "all", "info": PARTS_INFO + more}

    field = gr.Radio(label="Part of the style", elem_id=name, **parts(page.model.value, "all"))
    return page.settings.text(name, page.follow(field, parts))


def noise_field(page: Page, name: str, modes: list[str], info: str) -> gr.Radio:
    """The choice of the noise, whose default is the first mode; disabled for a model without noise."""

    def noise(model: str, value: Any) -> dict[str, Any]:
        if page.shelf.config(model).noise:
            return {"value": value if value in modes else modes[0], "interactive": True, "info": info}
        return {"value": modes[0], "interactive": False, "info": "This model was trained without noise."}

    field = gr.Radio(modes, label="Noise", elem_id=name, **noise(page.model.value, modes[0]))
    return page.settings.choice(name, page.follow(field, noise))


def read_layers(text: str | None) -> list[int] | None:
    """The layers of a field; None for all. Raises click.BadParameter."""
    return cli.NumberRanges(MAX_NUMBERS).convert(text.strip(), None, None) if text and text.strip() else None


def layers_option(text: str | None, name: str = "--layers") -> list[str]:
    """The option of generate.py for the layers of a field, without the default."""
    return [name, text.strip()] if text and text.strip() else []
