"""The tab "Generate": the image of a seed, or of several seeds in a grid."""

from __future__ import annotations

from typing import Any

import gradio as gr
import torch

from latents.cli import Classes, ModelOptions
from latents.names import seeds_name, sheet_name
from media.images import preview_grid, save_png
from models.sampling import generate_batches
from torch_utils.errors import command_line
from web.fields import (
    MAX_SEED,
    check_seed,
    class_fields,
    class_number,
    noise_field,
    psi_field,
    result_image,
    seed_field,
    truncation,
    truncation_options,
)
from web.page import Page, command_box

NAME, TITLE = "generate", "Generate"
GRIDS = {"the seed's image": 1, "9 seeds, from this one on": 3, "25 seeds, from this one on": 5}
DICE = f"() => Math.floor(Math.random() * {MAX_SEED})"


def build(page: Page, tab: gr.Tab) -> None:
    """Adds the controls and what they do."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            seed = seed_field(page, "Seed", 0, "seed")
            with gr.Row():
                back = gr.Button("Previous", size="sm", min_width=80)
                dice = gr.Button("Random", size="sm", min_width=80)
                on = gr.Button("Next", size="sm", min_width=80)
            psi = psi_field(page, "psi", "1: none. Towards 0: the mean image.")
            by_layer = trunc_field(page)
            of_class = class_fields(page, "class")
            noise = noise_field(
                page, "noise", ["const", "random", "none"],
                "const: the model's constant noise. random: drawn from the seed. none: no noise.",
            )  # fmt: skip
            size = gr.Radio(list(GRIDS), value=next(iter(GRIDS)), label="Show", elem_id="size")
        with gr.Column(scale=2, min_width=280):
            image = result_image("Image", "image")
            command = command_box("command")
    page.settings.choice("show", size)

    back.click(None, seed, seed, js="seed => Math.max(seed - 1, 0)", api_visibility="private")
    on.click(None, seed, seed, js=f"seed => Math.min(seed + 1, {MAX_SEED})", api_visibility="private")
    dice.click(None, None, seed, js=DICE, api_visibility="private")

    def show(*values: Any) -> tuple:
        return generate(page, *values)

    inputs = [page.model, page.precision, seed, psi, by_layer, *of_class, noise, size]
    page.view(NAME, tab, show, inputs, [image, command])


def trunc_field(page: Page) -> gr.Textbox:
    """A truncation for each layer."""

    def info(model: str, value: Any) -> dict[str, Any]:
        count = page.shelf.config(model).num_ws
        return {"info": f"Up to {count} numbers from the coarsest layer on; the last is for all further ones. "
                "Empty: the slider."}  # fmt: skip

    field = gr.Textbox(
        label="Truncation by layer", max_length=200, elem_id="trunc", placeholder="0.5,0.5,1",
        **info(page.model.value, ""),
    )  # fmt: skip
    return page.settings.text("trunc", page.follow(field, info))


def generate(
    page: Page,
    name: str,
    precision: str,
    seed: int,
    psi: float,
    by_layer: str,
    of_class: str,
    of_mean: bool,
    noise: str,
    size: str,
) -> tuple[str, str]:
    """The file of the image, and the command that makes it."""
    side = GRIDS[size]
    trunc, classes = truncation(psi, by_layer), class_number(of_class, page.shelf.class_names(name))
    model = page.shelf.generator(name, precision, trunc, classes, of_mean)
    first = check_seed(seed)
    seeds = list(range(first, first + side * side))
    c = model.shares(seeds)
    batches = generate_batches(model.G, seeds, model.batch, c, model.psi, noise, model.centers(c))  # type: ignore
    images = torch.cat(list(batches))
    text = f"{seeds[0]}-{seeds[-1]}" if side > 1 else str(first)
    words = ["--network", name, "--seeds", text, *(["--grid", f"{side}x{side}"] if side > 1 else [])]
    words += [
        *truncation_options(trunc, classes, model.trunc_class),
        *(["--noise-mode", noise] if noise != "const" else []),
    ]
    if side > 1:
        shares = Classes().convert(classes, None, None) if classes else None
        file = sheet_name(f"seeds{seeds_name(seeds)}", labels=ModelOptions(classes=shares).labels)
    else:
        file = f"seed{first:04d}"
    path = page.results.path(f"{file}.png")
    save_png(preview_grid(images, side) if side > 1 else images[0], path, sync=False)
    return str(path), command_line("python", "generate.py", *words)
