"""The page: the choice of a model, the tabs, and the settings in its address."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import gradio as gr

from models.snapshot import GENERATOR
from web import edit, generate, invert, kernels, mix, stylize, walk
from web.files import Results
from web.limits import QUICK, guarded
from web.page import Page
from web.shelf import PRECISIONS, Shelf

# Invert comes after those that can start from what it finds.
TABS = (generate, mix, walk, edit, kernels, invert, stylize)
CSS = """
.pixels img { image-rendering: pixelated; width: 100%; height: 100%; object-fit: contain }
.sheet img, .strip img { margin-top: 2rem !important }
.unseen { display: none !important }
.sheet img { width: auto; max-width: 100%; margin: auto }
.command textarea { font-family: var(--font-mono) }
footer { display: none !important }
"""
# Gradio gives a box with a copy button no label that a screen reader finds.
LABELS = """() => new MutationObserver(() =>
    document.querySelectorAll(".command textarea:not([aria-label])").forEach(box =>
        box.setAttribute("aria-label", "The same on the command line"))
).observe(document.body, {childList: true, subtree: true})"""
INTRO = "# AdaConv\nPlay with trained models: every image comes with the command line that makes it again."


def build(shelf: Shelf, folder: Path) -> gr.Blocks:
    """The page. Results are written into `folder`, which Gradio uses for uploads as well."""
    page = Page(shelf, Results(folder))
    with gr.Blocks(title="AdaConv", analytics_enabled=False) as blocks:
        gr.Markdown(INTRO)
        choose_model(page)
        page.codes = gr.State([])
        with gr.Tabs(elem_id="tabs") as tabs:
            for module in TABS:
                with gr.Tab(module.TITLE, id=module.NAME) as tab:
                    module.build(page, tab)
                page.tabs[module.NAME] = tab
        keep_settings(page, blocks, tabs)
        blocks.unload(page.stops.stop)
    return blocks


def choose_model(page: Page) -> None:
    """The choice of the generator, and what is known about it."""
    choices = [(entry.label, entry.name) for entry in page.shelf.entries(GENERATOR)]
    page.model = gr.Dropdown(
        choices, value=choices[0][1], label="Model", elem_id="model", info=f"Computed on: {page.shelf.device}"
    )
    page.settings.choice("model", page.model)
    with gr.Accordion("What is this model? Precision", open=False, elem_id="about") as about:
        page.precision = gr.Radio(
            list(PRECISIONS), value="fp32", label="Precision", elem_id="precision",
            info="The commands below the images compute in fp32; on a GPU, the others are faster.",
        )  # fmt: skip
        page.settings.choice("precision", page.precision)
        card = gr.Markdown()
        sheet = gr.Image(label="Images of its last evaluation", interactive=False, visible=False)

    def describe(name: str):
        found = page.shelf.sheet(name, GENERATOR)
        copy = None if found is None else str(shutil.copy(found, page.results.path(found.name)))
        image = gr.Image(copy, visible=copy is not None)
        return page.shelf.card(name, GENERATOR), image

    page.quick([about.expand, page.model.change], describe, [page.model], [card, sheet])


def keep_settings(page: Page, blocks: gr.Blocks, tabs: gr.Tabs) -> None:
    """Writes all settings into the address when one changes, and reads them when the page is opened."""
    # hidden by CSS: Gradio forgets what it sets in components that are not visible
    page.tab = gr.Radio(list(page.tabs), value="generate", label="Tab", elem_classes="unseen")
    page.settings.choice("tab", page.tab)
    query = gr.Textbox(label="Address", elem_classes="unseen")
    for name, each in page.tabs.items():
        each.select(None, None, page.tab, js=f"() => {name!r}", api_visibility="private")
    restored = blocks.load(
        guarded(lambda text: [*page.settings.restore(text), selected(text)]),
        query,
        [*page.settings.components, tabs],
        js="() => [location.search]",
        api_visibility="private",
        **QUICK,
    )
    for tab, function, inputs, outputs in page.shown_first:
        restored.then(
            guarded(only_in(tab, function, len(outputs))),
            [page.tab, *inputs],
            outputs,
            api_visibility="private",
            **QUICK,
        )
    components = page.settings.components
    gr.on(
        [component.change for component in components],
        None,
        components,
        None,
        js=page.settings.save_script(),
        api_visibility="private",
    )


def only_in(tab: str, function: Callable, count: int) -> Callable:
    """The function for when `tab` is the one that is shown, and otherwise nothing, for `count` outputs."""

    def call(shown: str, *values: Any) -> Any:
        return function(*values) if shown == tab else [gr.skip()] * count

    return call


def selected(query: str) -> Any:
    """The tab of an address."""
    name = parse_qs(query.removeprefix("?")[:8192]).get("tab", [""])[-1]
    return gr.Tabs(selected=name if name in [module.NAME for module in TABS] else "generate")
