"""The tab "Mix": the styles of two seeds or inverted images, by layer and by part."""

from __future__ import annotations

from typing import Any

import gradio as gr
import torch

from latents import sheets
from latents.mixing import check_layers, generate_mix, generate_mixes, mixing_sheet
from media.images import preview_grid, save_png, to_uint8
from models.sampling import images_of
from torch_utils.errors import command_line, numbers_text
from web.codes import SEED, code_fields, find_codes
from web.fields import (
    check_seed,
    class_fields,
    class_number,
    layers_field,
    layers_option,
    part_field,
    psi_field,
    read_layers,
    result_image,
    truncation,
    truncation_options,
)
from web.page import Page, command_box

NAME, TITLE = "mix", "Mix"
STRIP = 7  # images of a strip
SIDE = 128  # pixels that small images are enlarged to


def build(page: Page, tab: gr.Tab) -> None:
    """Adds the controls and what they do."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            first = code_fields(page, "Image that is changed", 1, "mix-a")
            second = code_fields(page, "Image whose style it takes", 2, "mix-b")
            layers = layers_field(page, "mix-layers", "0-1")
            part = part_field(page, "mix-part")
            psi = psi_field(page, "mix-psi")
            of_class = class_fields(page, "mix-class")
        with gr.Column(scale=2, min_width=280):
            sheet = result_image("Mix: lower right", "mix-sheet", "sheet")
            strip = result_image("From the first image to the mix", "mix-strip", "pixels strip")
            command = command_box("mix-command")

    def show(*values: Any) -> tuple:
        return mix(page, *values)

    inputs = [page.model, page.precision, page.codes, *first, *second, layers, part, psi, *of_class]
    page.view(NAME, tab, show, inputs, [sheet, strip, command])


def mix(
    page: Page,
    name: str,
    precision: str,
    inverted: list,
    source_a: str,
    seed_a: float,
    source_b: str,
    seed_b: float,
    layers: str,
    part: Any,
    psi: float,
    of_class: str,
    of_mean: bool,
) -> tuple[str, str, str]:
    """The files of the sheet and of the strip, and the command that makes the sheet, if only seeds take part."""
    trunc, classes = truncation(psi), class_number(of_class, page.shelf.class_names(name))
    model = page.shelf.generator(name, precision, trunc, classes, of_mean)
    numbers = read_layers(layers)
    chosen = check_layers(model.G.config, numbers, part)
    seeds_only = source_a == source_b == SEED
    if seeds_only:
        ws, noise = model.ws([check_seed(seed_a), check_seed(seed_b)]), None
    else:
        a, b = find_codes(model, source_a, seed_a, inverted), find_codes(model, source_b, seed_b, inverted)
        ws, noise = torch.cat([a.ws, b.ws]), a.noise
    names = [f"{seed:.0f}" if source == SEED else source for source, seed in ((source_a, seed_a), (source_b, seed_b))]
    scale = sheets.enlargement(model.G.config.resolution, SIDE)
    title = f"rows, with the columns' {'style' if part == 'all' else part} in layers {numbers_text(chosen)}"
    own = torch.cat(list(images_of(model.G, ws, noise or "const", model.batch)))
    mixed = torch.cat(list(generate_mixes(model.G, ws[:1], ws[1:], chosen, part, noise or "const", model.batch)))
    path, strip = page.results.path("mix.png"), page.results.path("mix-strip.png")
    sheets.save_sheet(mixing_sheet(own, mixed, names[:1], names[1:], title, scale), path)

    others = ws[:1].lerp(ws[1:], torch.linspace(0, 1, STRIP, device=ws.device).view(-1, 1, 1))
    with torch.no_grad():
        images = generate_mix(model.G, ws[:1].expand(STRIP, -1, -1), others, chosen, part, noise or "const")
    save_png(preview_grid(to_uint8(images).cpu(), STRIP), strip, sync=False)
    if not seeds_only:
        return str(path), str(strip), "generate.py mix mixes seeds, not inverted images."
    words = [
        "--network",
        name,
        "--rows",
        names[0],
        "--cols",
        names[1],
        *truncation_options(trunc, classes, model.trunc_class),
    ]
    words += layers_option(layers) + ["--part", part] * (part != "all")
    return str(path), str(strip), command_line("python", "generate.py", "mix", *words, "--scale", scale)
