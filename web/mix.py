"""The tab "Mix": the styles of two seeds or inverted images, by layer and by part."""

from __future__ import annotations

from typing import Any

import gradio as gr
import torch

from latents import sheets
from latents.codes import Codes, generate_codes, join_codes, noise_of
from latents.mixing import check_layers, generate_mix, generate_mixes, mixing_sheet
from media.images import preview_grid, save_png, to_uint8
from torch_utils.errors import command_line, numbers_text
from web.codes import SEED, code_fields, codes_file, codes_name, find_codes
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
from web.page import Page, command_box, command_with

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
) -> tuple[str, str, Any]:
    """The files of the sheet and of the strip, and the command that makes the sheet."""
    trunc, classes = truncation(psi), class_number(of_class, page.shelf.class_names(name))
    model = page.shelf.generator(name, precision, trunc, classes, of_mean)
    numbers = read_layers(layers)
    chosen = check_layers(model.G.config, numbers, part)
    if source_a == source_b == SEED:  # together, as generate.py makes them
        both = Codes(model.ws([check_seed(seed_a), check_seed(seed_b)]))
        a, b = both[:1], both[1:]
    else:
        a, b = find_codes(model, source_a, seed_a, inverted), find_codes(model, source_b, seed_b, inverted)
        both = join_codes(model.G, [a, b])
    noise = noise_of(a, "const")
    of_seeds = [f"{seed:.0f}" if source == SEED else None for source, seed in ((source_a, seed_a), (source_b, seed_b))]
    names = [seed or codes_name(source) for seed, source in zip(of_seeds, (source_a, source_b), strict=True)]
    scale = sheets.enlargement(model.G.config.resolution, SIDE)
    title = f"rows, with the columns' {'style' if part == 'all' else part} in layers {numbers_text(chosen)}"
    own = torch.cat(list(generate_codes(model.G, both, model.batch)))
    mixed = torch.cat(list(generate_mixes(model.G, a.ws, b.ws, chosen, part, noise, model.batch)))
    path, strip = page.results.path("mix.png"), page.results.path("mix-strip.png")
    sheets.save_sheet(mixing_sheet(own, mixed, names[:1], names[1:], title, scale), path)

    others = a.ws.lerp(b.ws, torch.linspace(0, 1, STRIP, device=a.ws.device).view(-1, 1, 1))
    with torch.no_grad():
        images = generate_mix(model.G, a.ws.expand(STRIP, -1, -1), others, chosen, part, noise)
    save_png(preview_grid(to_uint8(images).cpu(), STRIP), strip, sync=False)
    words: list[object] = ["--network", name]
    for option, seed, source in zip(("--rows", "--cols"), of_seeds, (source_a, source_b), strict=True):
        words += [option, seed] if seed is not None else [f"{option}-w", codes_file(source)]
    words += truncation_options(trunc, classes if any(of_seeds) else "", model.trunc_class)
    every = f"0-{model.G.config.num_ws - 1}" if part == "all" else ""  # generate.py's default is the coarser half
    words += layers_option(layers.strip() or every) + ["--part", part] * (part != "all")
    line = command_line("python", "generate.py", "mix", *words, "--scale", scale)
    files = [codes_file(source) for source in dict.fromkeys((source_a, source_b)) if source != SEED]
    return str(path), str(strip), command_with(line, inverted=files)
