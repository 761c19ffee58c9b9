"""The tab "Edit": moves an image along the main directions of w, several at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import gradio as gr
import torch

from latents.cli import Model
from latents.codes import Codes, fingerprint, generate_codes, save_codes
from latents.directions import METHODS, Directions, find_directions, sample_w
from latents.mixing import check_layers
from media.images import save_png
from torch_utils.errors import command_line
from web.codes import code_fields, find_codes
from web.fields import class_fields, class_number, layers_field, psi_field, read_layers, result_image, truncation
from web.page import Page, command_box, command_with

NAME, TITLE = "edit", "Edit"
COUNT = 6  # directions, each with a slider
LIMIT = 5  # standard deviations
KEPT = 8  # models and layers whose directions are remembered
CODES = "edited_w.npz"


class Finder:
    """Finds the directions of models, and remembers the last ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple, Directions] = OrderedDict()

    def find(self, model: Model, method: Any, layers: list[int]) -> Directions:
        """The first directions of a model, for edits in the layers."""
        key = model.path, model.path.stat().st_mtime_ns, method, tuple(layers)
        with self._lock:
            if key not in self._known:
                found = find_directions(model.G, sample_w(model.G), [method], COUNT, layers)
                self._known[key] = found[f"directions-{method}"]
                while len(self._known) > KEPT:
                    self._known.popitem(last=False)
            self._known.move_to_end(key)
            return self._known[key]


def build(page: Page, tab: gr.Tab) -> None:
    """Adds the controls and what they do."""
    finder = Finder()
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            source, seed = code_fields(page, "Image", 1, "edit-seed")
            method = gr.Radio(
                list(METHODS), value="pca", label="Directions", elem_id="edit-method",
                info="pca: along which w varies most. sefa: along which the kernels change most.",
            )  # fmt: skip
            sliders = [
                gr.Slider(
                    -LIMIT, LIMIT, 0, step=0.1, label=f"Direction {i}, in standard deviations", elem_id=f"edit-{i}"
                )
                for i in range(COUNT)
            ]
            reset = gr.Button("Reset the directions", size="sm")
            layers = layers_field(page, "edit-layers")
            psi = psi_field(page, "edit-psi")
            of_class = class_fields(page, "edit-class")
        with gr.Column(scale=2, min_width=280):
            image = result_image("Edited image", "edit-image")
            file = gr.File(label="Its latents, which the command below reads", interactive=False, elem_id="edit-file")
            command = command_box("edit-command")
    page.settings.choice("edit-method", method)
    for i, slider in enumerate(sliders):
        page.settings.number(f"edit-{i}", slider)
    reset.click(None, None, sliders, js=f"() => Array({COUNT}).fill(0)", api_visibility="private")

    def show(*values: Any) -> tuple:
        return edit(page, finder, *values)

    inputs = [page.model, page.precision, page.codes, source, seed, method, layers, psi, *of_class, *sliders]
    page.view(NAME, tab, show, inputs, [image, file, command])


def edit(
    page: Page,
    finder: Finder,
    name: str,
    precision: str,
    inverted: list,
    source: str,
    seed: float,
    method: str,
    layers: str,
    psi: float,
    of_class: str,
    of_mean: bool,
    *amounts: float,
) -> tuple[str, str, Any]:
    """The files of the image and of its latents, and the command that makes the image from these."""
    classes = class_number(of_class, page.shelf.class_names(name))
    model = page.shelf.generator(name, precision, truncation(psi), classes, of_mean)
    chosen = check_layers(model.G.config, read_layers(layers))
    distances = tuple(amount or 0.0 for amount in amounts)  # an empty field is 0
    codes = move(find_codes(model, source, seed, inverted), finder.find(model, method, chosen), distances)
    path = page.results.path("edited.png")
    save_png(torch.cat(list(generate_codes(model.G, codes, model.batch)))[0], path, sync=False)
    about = {"network": name, "fingerprint": fingerprint(model.path), "method": method, "amounts": list(distances)}
    file = page.results.path(CODES)
    save_codes(file, Codes(codes.ws, codes.noise, about))
    line = command_line("python", "generate.py", "--network", name, "--w", CODES)
    return str(path), str(file), command_with(line, download=CODES)


def move(codes: Codes, directions: Directions, amounts: tuple[float, ...]) -> Codes:
    """Moves ws by Σ aᵢ σᵢ vᵢ in the layers of the directions, for the amounts aᵢ in standard deviations."""
    steps = torch.tensor(amounts[: len(directions.vectors)]) * directions.sigma
    step = (steps[:, None] * directions.vectors).sum(dim=0).to(codes.ws)
    ws = codes.ws.clone()
    ws[:, list(directions.layers)] += step
    return Codes(ws, codes.noise)
