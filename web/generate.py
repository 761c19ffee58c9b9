"""The tab "Generate": the image of a seed, or of a seed and its neighbours."""

from __future__ import annotations

from typing import Any

import gradio as gr
import torch

from latents.cli import Classes, ModelOptions, seeds_name, sheet_name
from media.images import grid, save_png
from models.sampling import generate_batches
from torch_utils.errors import UserError
from web.page import Page, command_box, command_line

NAME, TITLE = "generate", "Generate"
MAX_SEED = 2**32 - 1  # JavaScript's numbers are exact far beyond, but nobody types more
GRIDS = {"one image": 1, "3 × 3 neighbours": 3, "5 × 5 neighbours": 5}
ANY_CLASS = "the seed's own"
DICE = f"() => Math.floor(Math.random() * {MAX_SEED})"


def build(page: Page, tab: gr.Tab) -> None:
    """Adds the controls and what they do."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            seed = seed_field("Seed", 0, "seed")
            with gr.Row():
                back = gr.Button("Previous", size="sm", min_width=80)
                dice = gr.Button("Random", size="sm", min_width=80)
                on = gr.Button("Next", size="sm", min_width=80)
            psi = gr.Slider(
                -1, 2, 1, step=0.01, label="Truncation", elem_id="psi", info="1: none. Towards 0: the mean image."
            )
            by_layer = gr.Textbox(
                label="Truncation by layer", max_length=200, elem_id="trunc", placeholder="0.5,0.5,1",
                info="From the coarsest layer on; the last number is for all others. Empty: the slider.",
            )  # fmt: skip
            of_class = class_field(page, "class")
            noise = gr.Radio(["const", "random", "none"], value="const", label="Noise", elem_id="noise")
            size = gr.Radio(list(GRIDS), value="one image", label="Show", elem_id="size")
        with gr.Column(scale=2, min_width=280):
            image = result_image("Image")
            command = command_box("command")
    settings = page.settings
    settings.number("seed", seed), settings.number("psi", psi), settings.text("trunc", by_layer)
    settings.choice("noise", noise), settings.choice("show", size)

    back.click(None, seed, seed, js="seed => Math.max(seed - 1, 0)", api_visibility="private")
    on.click(None, seed, seed, js=f"seed => Math.min(seed + 1, {MAX_SEED})", api_visibility="private")
    dice.click(None, None, seed, js=DICE, api_visibility="private")

    def show(*values: Any) -> tuple:
        return generate(page, *values)

    inputs = [page.model, page.precision, seed, psi, by_layer, of_class, noise, size]
    page.quick([each.change for each in inputs], show, inputs, [image, command])
    page.show_first(NAME, show, inputs, [image, command])


def generate(
    page: Page, name: str, precision: str, seed: int, psi: float, by_layer: str, of_class: str, noise: str, size: str
) -> tuple[str, str]:
    """The file of the image, and the command that makes it."""
    side = GRIDS[size]
    trunc, classes = truncation(psi, by_layer), class_number(of_class)
    model = page.shelf.generator(name, precision, trunc, classes)
    first = check_seed(seed)
    seeds = list(range(first, first + side * side))
    images = torch.cat(
        list(generate_batches(model.G, seeds, model.batch, model.shares(seeds), model.psi, noise))  # type: ignore
    )
    text = f"{seeds[0]}-{seeds[-1]}" if side > 1 else str(first)
    words = ["--network", name, "--seeds", text, *(["--grid", f"{side}x{side}"] if side > 1 else [])]
    words += [*options(trunc, classes), *(["--noise-mode", noise] if noise != "const" else [])]
    if side > 1:
        shares = Classes().convert(classes, None, None) if classes else None
        file = sheet_name(f"seeds{seeds_name(seeds)}", labels=ModelOptions(classes=shares).labels)
    else:
        file = f"seed{first:04d}"
    path = page.results.path(f"{file}.png")
    save_png(grid(images, side), path, sync=False)
    return str(path), command_line("python", "generate.py", *words)


# --- what other tabs share ------------------------------------------------------------------------------------------


def seed_field(label: str, value: int, name: str) -> gr.Number:
    """A field for a seed, with arrows."""
    return gr.Number(value, label=label, precision=0, minimum=0, maximum=MAX_SEED, step=1, elem_id=name)


def result_image(label: str, name: str = "image", height: int | None = 420, look: str = "pixels") -> gr.Image:
    """An image that a tab makes. With the look "pixels" it is enlarged without smoothing; "sheet" keeps its size."""
    return gr.Image(
        label=label, type="filepath", format="png", interactive=False, buttons=["download", "fullscreen"],
        elem_id=name, elem_classes=look, height=height,
    )  # fmt: skip


def class_field(page: Page, name: str) -> gr.Dropdown:
    """The choice of a class, by its name; hidden for a model without classes."""

    def choices(model: str) -> list[str]:
        return [ANY_CLASS, *page.shelf.class_names(model)]

    first = choices(page.model.value)
    field = gr.Dropdown(
        first, value=ANY_CLASS, label="Class", elem_id=name, allow_custom_value=True, visible=len(first) > 1
    )
    page.settings.text(name, field)

    def update(model: str, shown: str) -> Any:
        names = choices(model)
        return gr.Dropdown(names, value=shown if shown in names else ANY_CLASS, visible=len(names) > 1)

    page.quick([page.model.change], update, [page.model, field], [field], show_progress="hidden")
    return field


def class_number(chosen: str | None) -> str:
    """The chosen class as `--class` takes it; empty for the seed's own."""
    return "" if not chosen or chosen == ANY_CLASS else chosen.removeprefix("class ").split(":")[0]


def truncation(psi: float | None, by_layer: str | None = None) -> str:
    """The truncation as `--trunc` takes it; an empty field is 1."""
    return (by_layer or "").strip() or f"{1 if psi is None else psi:g}"


def options(trunc: str, classes: str) -> list[str]:
    """The options of generate.py for truncation and class, without the defaults."""
    return [*(["--trunc", trunc] if trunc != "1" else []), *(["--class", classes] if classes else [])]


def check_seed(seed: float | None) -> int:
    """A seed. Raises UserError if there is none."""
    if seed is None or not 0 <= seed <= MAX_SEED:
        raise UserError(f"a seed is a whole number from 0 to {MAX_SEED}; write one")
    return int(seed)
