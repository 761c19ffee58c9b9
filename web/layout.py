"""The page: the choice of a model, the tabs, and the settings in its address."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import gradio as gr

from models.snapshot import GENERATOR
from torch_utils.precision import COMPUTE_DTYPES
from web import edit, generate, invert, kernels, mix, stylize, walk
from web.files import Results
from web.page import Page
from web.shelf import Shelf

# Invert comes after those that can start from what it finds.
TABS = (generate, mix, walk, edit, kernels, invert, stylize)
CSS = """
.pixels .image-frame { width: 100% }
.pixels img { image-rendering: pixelated; width: 100%; height: auto; max-width: 28rem; margin: 2rem auto 0.5rem;
    object-fit: contain !important; /* and a chequerboard behind what is transparent */
    background: repeating-conic-gradient(#ccc 0 25%, #fff 0 50%) 0 0 / 16px 16px }
.pixels.strip img { max-width: 100% }
.pixels .image-container:fullscreen img { width: min(90vw, 90vh); max-width: none; margin: auto }
.unseen { display: none !important }
.sheet img { width: auto; max-width: 100%; margin: 2rem auto auto }
.command textarea { font-family: var(--font-mono) }
footer { display: none !important }
"""
WAITING = "waiting for other work of this server, yours or another page's; place $1 of $2 in the queue"
# Gradio gives a box with a copy button no label that a screen reader finds, and says of waiting work only "queue: 1/2".
SCRIPT = r"""() => new MutationObserver(() => {
    for (const box of document.querySelectorAll(".command textarea:not([aria-label])"))
        box.setAttribute("aria-label", "The same on the command line");
    for (const status of document.querySelectorAll(".meta-text, .meta-text-center"))
        for (const text of status.childNodes)
            if (text.nodeType === Node.TEXT_NODE && text.data.includes("queue: "))
                text.data = text.data.replace(/queue: (\d+)\/(\d+)/, "QUEUE");
}).observe(document.body, {childList: true, characterData: true, subtree: true})""".replace("QUEUE", WAITING)
INTRO = """# AdaConv
AdaConv is a StyleGAN2-style image generator in which the style of an image is a set of small convolution kernels, so
that it also describes local structure. Here you can play with trained models: every image comes with the command line
that makes it again."""


def build(shelf: Shelf, folder: Path) -> gr.Blocks:
    """The page. Results are written into `folder`, which Gradio uses for uploads as well."""
    results = Results(folder)
    threading.Thread(target=results.keep_sweeping, daemon=True).start()
    page = Page(shelf, results)
    with gr.Blocks(title="AdaConv", analytics_enabled=False) as blocks:
        gr.Markdown(INTRO)
        choose_model(page)
        page.codes = gr.State([])
        with gr.Tabs(elem_id="tabs") as tabs:
            for module in TABS:
                with gr.Tab(module.TITLE, id=module.NAME) as tab:
                    module.build(page, tab)
                page.tabs[module.NAME] = tab
        # hidden by CSS: Gradio forgets what it sets in components that are not visible
        page.tab = gr.Radio(list(page.tabs), value="generate", label="Tab", elem_classes="unseen")
        for name, each in page.tabs.items():
            each.select(None, None, page.tab, js=f"() => {name!r}", api_visibility="private")
        follow_model(page)
        keep_settings(page, blocks, tabs)
        blocks.unload(page.stops.stop)
    return blocks


def choose_model(page: Page) -> None:
    """The choice of the generator and its precision, and what is known about it."""
    choices = [(entry.label, entry.name) for entry in page.shelf.entries(GENERATOR)]
    with gr.Row():
        page.model = gr.Dropdown(
            choices, value=choices[0][1], label="Model", elem_id="model", info=f"Computed on: {page.shelf.device}",
            scale=3, min_width=280,
        )  # fmt: skip
        page.precision = gr.Dropdown(
            list(COMPUTE_DTYPES), value="fp32", label="Precision", elem_id="precision", filterable=False,
            info="Of generators; bf16 and fp16 are faster on a GPU. To generate.py, add --precision.", min_width=200,
        )  # fmt: skip
    page.settings.choice("model", page.model)
    page.settings.choice("precision", page.precision)
    with gr.Accordion("What is this model?", open=False, elem_id="about") as about:
        sheet = gr.Image(label="Images of its last evaluation", interactive=False, visible=False)
        card = gr.Markdown()

    def describe(name: str):
        found = page.shelf.sheet(name, GENERATOR)
        copy = None if found is None else str(shutil.copy(found, page.results.path(found.name)))
        image = gr.Image(copy, visible=copy is not None)
        return page.shelf.card(name, GENERATOR), image

    page.quick([about.expand, page.model.change], describe, [page.model], [card, sheet])


def follow_model(page: Page) -> None:
    """Fits the controls to another model, and then shows what it makes in the tab that is open."""
    components, updates = zip(*page.followers, strict=True)

    def fit(model: str, *values: Any) -> list[Any]:
        return [gr.update(**update(model, value)) for update, value in zip(updates, values, strict=True)]

    fitted = page.quick([page.model.change], fit, [page.model, *components], [*components], show_progress="hidden")
    page.show_after(fitted)
    shown = page.open_view()
    page.quick([page.precision.change], shown.function, shown.inputs, shown.outputs)


def keep_settings(page: Page, blocks: gr.Blocks, tabs: gr.Tabs) -> None:
    """Writes all settings into the address when one changes, and reads them when the page is opened."""
    page.settings.choice("tab", page.tab)
    query = gr.Textbox(label="Address", elem_classes="unseen")
    components = page.settings.components

    def restore(text: str) -> list[Any]:
        values = page.settings.restore(text)
        model = given(values[components.index(page.model)], page.model)
        for component, update in page.followers:
            i = components.index(component)
            value = given(values[i], component)
            values[i] = gr.update(**{"value": value, **update(model, value)})
        return [*values, selected(text)]

    page.show_after(page.quick([blocks.load], restore, [query], [*components, tabs], js="() => [location.search]"))
    gr.on(
        [component.change for component in components],
        None,
        components,
        None,
        js=page.settings.save_script(),
        api_visibility="private",
    )


def given(value: Any, component: Any) -> Any:
    """A value that has been restored, or the component's own if there was none."""
    return component.value if value == gr.skip() else value


def selected(query: str) -> Any:
    """The tab of an address."""
    name = parse_qs(query.removeprefix("?")[:8192]).get("tab", [""])[-1]
    return gr.Tabs(selected=name if name in [module.NAME for module in TABS] else "generate")
