"""The tab "Walk": a video of a closed walk through the latents of seeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from torch import Tensor

from latents import sheets, walks
from latents.cli import Model, in_turn
from latents.mixing import Part, check_layers
from media.animation import check_side, write_animation
from torch_utils import cli
from torch_utils.errors import UserError, command_line
from torch_utils.sizes import width_and_height
from web.fields import (
    MAX_NUMBERS,
    class_fields,
    class_number,
    layers_field,
    layers_option,
    part_field,
    psi_field,
    read_layers,
    truncation,
    truncation_options,
)
from web.limits import Stop
from web.page import Page, command_box

NAME, TITLE = "walk", "Walk"
SIDE = 128  # pixels that small images are enlarged to, as in generate.py
MAX_SEEDS, MAX_FRAMES = 64, 900


@dataclass(frozen=True)
class WalkSettings:
    """The values of the controls, in their order."""

    network: str
    precision: str
    seeds: str
    seconds: float
    fps: float
    interpolation: walks.Interpolation
    space: walks.Space
    layers: str
    part: Part
    psi: float
    of_class: str
    of_mean: bool
    kind: str


def build(page: Page, tab: gr.Tab) -> None:
    """Adds the controls and what they do."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            seeds = gr.Textbox("0-3", label="Seeds", info="Such as 0-7 or 3,8,5.", max_length=200, elem_id="walk-seeds")
            seconds = gr.Slider(0.5, 30, 4, step=0.5, label="Seconds", elem_id="walk-seconds")
            fps = gr.Slider(5, 50, 25, step=1, label="Frames per second", elem_id="walk-fps")
            interpolation = gr.Radio(list(walks.INTERPOLATIONS), value="spline", label="Path", elem_id="walk-interp")
            space = gr.Radio(["w", "z"], value="w", label="Space", elem_id="walk-space")
            layers = layers_field(page, "walk-layers")
            part = part_field(page, "walk-part")
            psi = psi_field(page, "walk-psi")
            of_class = class_fields(page, "walk-class")
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
    settings.text("walk-seeds", seeds)
    settings.number("walk-seconds", seconds)
    settings.number("walk-fps", fps)
    settings.choice("walk-interp", interpolation)
    settings.choice("walk-space", space)
    settings.choice("walk-file", kind)

    def make(request: gr.Request, progress: gr.Progress = gr.Progress(), *values: Any) -> tuple:  # noqa: B008
        asked, *settings = values
        with page.stops.start(request, asked) as stopper:
            path = walk(page, stopper, progress, WalkSettings(*settings))
        if path.endswith(".gif"):
            return gr.Video(None, visible=False), gr.Image(path, visible=True)
        return gr.Video(path, visible=True), gr.Image(None, visible=False)

    def line(*values: Any) -> str:
        return command_of(WalkSettings(*values), plan(page, WalkSettings(*values)))

    inputs = [
        page.model, page.precision, seeds, seconds, fps, interpolation, space, layers, part, psi, *of_class, kind
    ]  # fmt: skip
    page.long(button, stop, make, inputs, [video, animation])
    page.view(NAME, tab, line, inputs, [command])


@dataclass(frozen=True)
class Plan:
    """What is computed for a video."""

    model: Model
    classes: str  # as --class takes it
    seeds: list[int]
    layers: list[int]
    count: int  # of frames
    scale: int


def plan(page: Page, given: WalkSettings) -> Plan:
    """What the settings ask for. Raises UserError if it is not possible, or too much."""
    classes = class_number(given.of_class, page.shelf.class_names(given.network))
    model = page.shelf.generator(given.network, given.precision, truncation(given.psi), classes, given.of_mean)
    config = model.G.config
    seeds = cli.NumberRanges(MAX_NUMBERS).convert(given.seeds or "", None, None)
    seeds = in_turn(seeds, len(model.classes or [])) if seeds else seeds
    count = round((given.seconds or 0) * (given.fps or 0))
    if not 2 <= len(seeds) <= MAX_SEEDS:
        raise UserError(f"a walk needs 2 to {MAX_SEEDS} seeds; write e.g. 0-7")
    if not 2 <= count <= MAX_FRAMES:
        raise UserError(f"this is {count} frames; take 2 to {MAX_FRAMES}, by fewer seconds or frames per second")
    chosen = check_layers(config, read_layers(given.layers), given.part)
    scale = sheets.enlargement(config.resolution, SIDE)
    longer = scale * max(width_and_height(config.resolution))
    check_side(f"walk{given.kind}", longer, "choose another format")
    return Plan(model, classes, seeds, chosen, count, scale)


def walk(page: Page, stop: Stop, progress: gr.Progress, given: WalkSettings) -> str:
    """The file of the video."""
    todo = plan(page, given)
    model = todo.model
    z, c = model.zc(todo.seeds)
    frames = walks.frames(
        model.G, walks.w_walk(model.G, z, c, given.space, given.interpolation), todo.count, len(todo.seeds),
        psi=model.psi, layers=todo.layers, part=given.part, batch=model.batch, scale=todo.scale,
        centers=model.centers(c),
    )  # fmt: skip

    def watched() -> Iterator[Tensor]:
        for number, frame in enumerate(frames):
            stop.check()
            progress((number, todo.count), unit="frames")
            yield frame

    path = page.results.path(f"walk{given.kind}")
    write_animation(path, watched(), todo.count, given.fps)
    return str(path)


def command_of(given: WalkSettings, todo: Plan) -> str:
    """The command that makes the video."""
    trunc = truncation(given.psi)
    words: list[object] = ["--network", given.network, "--seeds", given.seeds.replace(" ", "")]
    words += ["--seconds", f"{given.seconds:g}", "--fps", f"{given.fps:g}"]
    words += ["--interp", given.interpolation] * (given.interpolation != "spline")
    words += ["--space", given.space] * (given.space != "w")
    words += layers_option(given.layers) + ["--part", given.part] * (given.part != "all")
    words += [*truncation_options(trunc, todo.classes, todo.model.trunc_class), "--out", f"out/walk{given.kind}"]
    return command_line("python", "generate.py", "video", *words)
