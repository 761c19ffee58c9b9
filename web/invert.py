"""The tab "Invert": finds the latents of an uploaded image, which the other tabs can start from."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gradio as gr
from torch import Tensor

from latents.cli import Model
from latents.codes import Codes, fingerprint, save_codes
from latents.perception import find_features
from latents.projection import Projection, ProjectionConfig, project, psnr
from latents.targets import read_targets, target_file
from media.images import save_png, to_float, to_uint8
from torch_utils.errors import command_line, printable
from web.codes import Inverted, choices, codes_file, codes_name, keep
from web.fields import noise_field, result_image
from web.files import check_upload, image_upload
from web.limits import Stop, stream
from web.page import Page, command_box, command_with

NAME, TITLE = "invert", "Invert"
MAX_STEPS = 2000
EVERY = 0.5  # seconds from one preview to the next


def build(page: Page, tab: gr.Tab) -> None:
    """Adds the controls and what they do."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            target = image_upload("Image; its middle is used", "invert-target", height=260)
            space = gr.Radio(
                ["w", "w+"], value="w", label="Space", elem_id="invert-space",
                info="w can be edited best; w+ comes nearer to the image.",
            )  # fmt: skip
            steps = gr.Slider(10, MAX_STEPS, 300, step=10, label="Steps", elem_id="invert-steps")
            noise = noise_field(
                page, "invert-noise", ["optimize", "const"],
                "optimize: search for the noise as well. const: keep the model's constant noise.",
            )  # fmt: skip
            with gr.Row():
                button = gr.Button("Invert", variant="primary", elem_id="invert-start")
                stop = gr.Button("Stop", variant="stop", elem_id="invert-stop")
        with gr.Column(scale=2, min_width=280):
            status = gr.Markdown("Upload an image, and invert it: Mix, Edit and Kernels can then start from it.")
            image = result_image("Found so far", "invert-image")
            file = gr.File(label="Its latents", interactive=False, elem_id="invert-file")
            command = command_box("invert-command")
    settings = page.settings
    settings.choice("invert-space", space)
    settings.number("invert-steps", steps)

    def updates(request: gr.Request, asked: float | None, *values: Any) -> Iterator[dict]:
        with page.stops.start(request, asked) as stopper, closing(invert(page, stopper, *values)) as everything:
            for news in everything:
                shown: dict[Any, Any] = {status: news.text}
                if news.image is not None:
                    shown[image] = news.image
                if (result := news.result) is not None:
                    shown |= {file: result.file, page.codes: result.inverted}
                    shown[command] = command_with(result.command, [result.upload])
                yield shown

    inputs = [page.model, page.precision, page.codes, target, space, steps, noise]
    done = page.long(button, stop, updates, inputs, [status, image, file, command, page.codes])
    done.then(
        lambda found: [choices(found)] * len(page.sources), page.codes, page.sources,
        queue=False, show_progress="hidden", api_visibility="private",
    )  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What is there at the end of a search."""

    file: str  # of the latents
    inverted: list  # all inverted images
    command: str
    upload: str  # the name of the upload that the command reads


@dataclass(frozen=True)
class News:
    """What there is to show of a search."""

    text: str
    image: str | None = None  # a file; None if it stays as it is
    result: Result | None = None


def invert(
    page: Page,
    stop: Stop,
    name: str,
    precision: str,
    inverted: list,
    upload: str | None,
    space: Any,
    steps: float,
    noise: Any,
) -> Generator[News]:
    """Searches for the latent of an upload, and yields what there is to show."""
    model = page.shelf.generator(name, precision)
    path, config = check_upload(upload, "the image"), model.G.config
    label = printable(path.name)
    target = read_targets([target_file(path)], config.resolution, config.img_channels)
    search_config = ProjectionConfig(space=space, steps=int(steps or 1), noise=noise)
    about = {"network": name, "fingerprint": fingerprint(model.path), "targets": [label]}
    yield News("Choosing where to start …")

    def work(report: Callable[[Any], None]) -> Projection:
        return search(page, model, target.images, search_config, stop, report)

    found = yield from stream(work, stop)
    images = to_uint8(found.images).cpu()
    ratio = float(psnr(to_float(images), to_float(target.images)))
    noises = None if found.noise is None else [noise.cpu() for noise in found.noise]
    codes = Codes(found.ws.cpu(), noises, about)  # they are kept as long as the page is open
    shown, file = page.results.path(f"w-{codes_name(label)}.png"), page.results.path(codes_file(label))
    save_png(images[0], shown, sync=False)
    save_codes(file, codes)
    text = f"{label}: {ratio:.1f} dB. " + ("Stopped; this is what was found so far. " if stop.asked else "")
    words: list[object] = ["--network", name, "--target", label, "--space", space, "--steps", search_config.steps]
    words += ["--noise-mode", noise] * (noise != "optimize")
    line = command_line("python", "projector.py", *words)
    kept = keep(inverted, Inverted(label, model.path, codes))
    result = Result(str(file), kept, line, label)
    yield News(text + "Choose it as the image in Mix, Edit or Kernels.", str(shown), result)


def search(
    page: Page, model: Model, target: Tensor, config: ProjectionConfig, stop: Stop, report: Callable[[Any], None]
) -> Projection:
    """Projects the target, uint8 [1, C, H, W], and reports texts and images twice a second."""
    device = model.G.w_avg.device
    goal = to_float(target.to(device))
    features, _ = find_features(None, device)
    shown = 0.0

    def progress(step: int, loss: Tensor, images: Tensor) -> bool:
        nonlocal shown
        if time.monotonic() > shown + EVERY:
            shown = time.monotonic()
            path = page.results.path("preview.png")
            save_png(to_uint8(images)[0].cpu(), path, sync=False)
            text = f"Step {step + 1} of {config.steps}: {float(psnr(images, goal)):.1f} dB"
            report(News(text, str(path)))
        return stop.asked

    return project(model.G, goal, features, config, progress=progress)
