"""The tab "Kernels": what a latent predicts, layer by layer, and what differs between two."""

from __future__ import annotations

from typing import Any

import gradio as gr
import torch

from latents import sheets
from latents.kernel_views import kernel_sheet, kernel_views
from latents.mixing import check_layers
from torch_utils.errors import command_line
from web.codes import SEED, code_fields, find_codes
from web.fields import (
    check_seed,
    class_fields,
    class_number,
    layers_field,
    layers_option,
    psi_field,
    read_layers,
    result_image,
    truncation,
    truncation_options,
)
from web.page import Page, command_box

NAME, TITLE = "kernels", "Kernels"


def build(page: Page, tab: gr.Tab) -> None:
    """Adds the controls and what they do."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            first = code_fields(page, "Image", 1, "kernels-a")
            compare = gr.Checkbox(label="Compare with another one", elem_id="kernels-compare")
            with gr.Column(visible=False) as other:
                second = code_fields(page, "The other image", 2, "kernels-b")
            layers = layers_field(page, "kernels-layers", kernels=True)
            psi = psi_field(page, "kernels-psi")
            of_class = class_fields(page, "kernels-class")
        with gr.Column(scale=3, min_width=280):
            gr.Markdown(
                "Kernels minus the identity: blue is below zero, red above. **Structure**: the depthwise kernels. "
                "**Channels**: the pointwise kernels. **Frequencies**: the gain of both together. **Singular values**: "
                "the dotted line is the identity's. Open the sheet in full screen to read it."
            )
            sheet = result_image("Kernels", "kernels-sheet", "sheet")
            command = command_box("kernels-command")
    page.settings.flag("kernels-compare", compare)
    compare.change(lambda on: gr.Column(visible=on), compare, other, queue=False, api_visibility="private")

    def show(*values: Any) -> tuple:
        return kernels(page, *values)

    inputs = [page.model, page.precision, page.codes, *first, compare, *second, layers, psi, *of_class]
    page.view(NAME, tab, show, inputs, [sheet, command])


def kernels(
    page: Page,
    name: str,
    precision: str,
    inverted: list,
    source: str,
    seed: float,
    compare: bool,
    other_source: str,
    other_seed: float,
    layers: str,
    psi: float,
    of_class: str,
    of_mean: bool,
) -> tuple[str, str]:
    """The file of the sheet, and the command that makes it, if only seeds take part."""
    trunc, classes = truncation(psi), class_number(of_class, page.shelf.class_names(name))
    shown = [(source, seed), *([(other_source, other_seed)] if compare else [])]
    seeds = [check_seed(number) for origin, number in shown if origin == SEED]
    model = page.shelf.generator(name, precision, trunc, classes, of_mean)
    chosen = check_layers(model.G.config, read_layers(layers), "channels")
    if len(seeds) == len(shown):
        ws = model.ws(seeds)
    else:
        ws = torch.cat([find_codes(model, *each, inverted).ws for each in shown])
    names = [f"seed {number:.0f}" if origin == SEED else origin for origin, number in shown]
    path = page.results.path("kernels.png")
    sheets.save_sheet(kernel_sheet(kernel_views(model.G, ws, names, chosen)), path)
    if len(seeds) < len(shown):
        return str(path), "generate.py kernels shows seeds, not inverted images."
    words: list[object] = ["--network", name]
    words += ["--compare", f"{seeds[0]},{seeds[1]}"] if compare else ["--seed", seeds[0]]
    words += [*layers_option(layers, "--layer"), *truncation_options(trunc, classes, model.trunc_class)]
    return str(path), command_line("python", "generate.py", "kernels", *words)
