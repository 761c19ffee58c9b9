"""The tab "Walk": a video of a closed walk through the latents of seeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from torch import Tensor

from latents import sheets, walks
from latents.mixing import check_layers
from media.animation import check_side, write_animation
from torch_utils import cli
from torch_utils.errors import UserError
from torch_utils.sizes import width_and_height
from web.generate import class_field, class_number, options, truncation
from web.limits import Stop
from web.mix import layers_field, layers_option, part_field, read_layers
from web.page import Page, command_box, command_line

NAME, TITLE = "walk", "Walk"
SIDE = 128  # pixels that small images are enlarged to, as in generate.py
MAX_SEEDS, MAX_FRAMES = 64, 900


def build(page: Page, tab: gr.Tab) -> None:
    """Adds the controls and what they do."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            seeds = gr.Textbox("0-3", label="Seeds", info="Such as 0-7 or 3,8,5.", max_length=200, elem_id="walk-seeds")
            seconds = gr.Slider(0.5, 30, 4, step=0.5, label="Seconds", elem_id="walk-seconds")
            fps = gr.Slider(5, 50, 25, step=1, label="Frames per second", elem_id="walk-fps")
            interpolation = gr.Radio(list(walks.INTERPOLATIONS), value="spline", label="Path", elem_id="walk-interp")
            space = gr.Radio(["w", "z"], value="w", label="Space", elem_id="walk-space")
            layers = layers_field("walk-layers")
            part = part_field("walk-part")
            psi = gr.Slider(-1, 2, 1, step=0.01, label="Truncation", elem_id="walk-psi")
            of_class = class_field(page, "walk-class")
            kind = gr.Radio([".mp4", ".gif"], value=".mp4", label="File", elem_id="walk-file")
            with gr.Row():
                button = gr.Button("Make the video", variant="primary", elem_id="walk-make")
                stop = gr.Button("Stop", variant="stop", elem_id="walk-stop")
        with gr.Column(scale=2, min_width=280):
            video = gr.Video(label="Video", interactive=False, autoplay=True, loop=True, elem_id="walk-video")
            animation = gr.Image(
                label="GIF", type="filepath", interactive=False, visible=False, elem_id="walk-gif", elem_classes="sheet"
            )
            command = command_box("walk-command")
    settings = page.settings
    settings.text("walk-seeds", seeds), settings.number("walk-seconds", seconds), settings.number("walk-fps", fps)
    settings.choice("walk-interp", interpolation), settings.choice("walk-space", space)
    settings.text("walk-layers", layers), settings.choice("walk-part", part), settings.number("walk-psi", psi)
    settings.choice("walk-file", kind)
    inputs = [
        page.model, page.precision, seeds, seconds, fps, interpolation, space, layers, part, psi, of_class, kind
    ]  # fmt: skip

    def make(request: gr.Request, progress: gr.Progress = gr.Progress(), *values: Any) -> tuple:  # noqa: B008
        with page.stops.start(request) as stopper:
            path, line = walk(page, stopper, progress, *values)
        moving = path.endswith(".gif")
        return (
            gr.Video(None if moving else path, visible=not moving),
            gr.Image(path if moving else None, visible=moving),
            line,
        )

    page.long(button, stop, make, inputs, [video, animation, command])


def walk(
    page: Page,
    stop: Stop,
    progress: gr.Progress,
    name: str,
    precision: str,
    seeds: str,
    seconds: float,
    fps: float,
    interpolation: Any,
    space: Any,
    layers: str,
    part: Any,
    psi: float,
    of_class: str,
    kind: str,
) -> tuple[str, str]:
    """The file of the video, and the command that makes it."""
    trunc, classes = truncation(psi), class_number(of_class)
    model = page.shelf.generator(name, precision, trunc, classes)
    numbers = cli.NumberRanges().convert(seeds or "", None, None)
    count = round((seconds or 0) * (fps or 0))
    if not 2 <= len(numbers) <= MAX_SEEDS:
        raise UserError(f"a walk needs 2 to {MAX_SEEDS} seeds; write e.g. 0-7")
    if not 2 <= count <= MAX_FRAMES:
        raise UserError(f"this is {count} frames; take 2 to {MAX_FRAMES}, by fewer seconds or frames per second")
    chosen = check_layers(model.G.config, read_layers(layers), part)
    scale = sheets.enlargement(model.G.config.resolution, SIDE)
    path = page.results.path(f"walk{kind}")
    check_side(path, scale * max(width_and_height(model.G.config.resolution)))
    through = walks.w_walk(model.G, *model.zc(numbers), space, interpolation)
    frames = walks.frames(
        model.G, through, count, len(numbers), psi=model.psi, layers=chosen, part=part, batch=model.batch, scale=scale
    )

    def watched() -> Iterator[Tensor]:
        for number, frame in enumerate(frames):
            stop.check()
            progress((number, count), unit="frames")
            yield frame

    write_animation(path, watched(), count, fps)
    words: list[object] = ["--network", name, "--seeds", seeds.replace(" ", ""), "--seconds", f"{seconds:g}"]
    words += ["--fps", f"{fps:g}"]
    words += ["--interp", interpolation] * (interpolation != "spline") + ["--space", space] * (space != "w")
    words += layers_option(layers) + ["--part", part] * (part != "all")
    words += [*options(trunc, classes), "--out", f"out/walk{kind}"]
    return str(path), command_line("python", "generate.py", "video", *words)
