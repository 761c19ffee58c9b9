"""The tab "Stylize": a content image or a video in the style of up to four images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from PIL import Image

from media.decode import Unusable
from media.files import is_video, read_image, write_image
from media.video import VideoReader, animated_webp, pixels_of_all_frames
from models.snapshot import STYLIZER
from networks.stylizer import Stylizer
from styling.apply import FrameStylizer, Progress, Settings, min_side, stylize_image, stylize_masked
from styling.films import stylize_video
from styling.mask import read_mask
from styling.styles import CombinedStyle, read_style
from torch_utils.errors import UserError, command_line, printable
from web.examples import copy_examples, shipped_as
from web.files import GONE, check_upload, image_upload, mask_editor, video_upload
from web.limits import Stop
from web.page import Page, command_box, command_with

NAME, TITLE = "stylize", "Stylize"
FILM = "Video to stylize"  # the label of the field
STYLES = 4
MAX_FRAMES, MAX_FRAME_PIXELS = 900, 1920 * 1080
MAX_FILM_SECONDS = 600  # also of the sound, of which hours fit into a small upload
MAX_ANIMATION_PIXELS = 1 << 27  # of all frames of a WebP, which is decoded as a whole
MIXED, APART, MASKED = "mixed by weight", "structure of 1, statistics of 2", "1 where the mask is painted, 2 elsewhere"
COLORS: dict[str, Literal["luminance", "histogram"] | None] = {
    "the style's": None, "the content's (luminance)": "luminance", "the content's (histogram)": "histogram"
}  # fmt: skip


@dataclass(frozen=True)
class Look:
    """How styles are combined and applied."""

    together: str
    strength: float
    color: str
    scale: float
    feather: float
    weights: tuple[float, ...]

    @property
    def settings(self) -> Settings:
        """What `styling.apply` takes."""
        return Settings(self.strength, COLORS[self.color], feather=self.feather)

    def shares(self, numbers: Sequence[int]) -> tuple[float, ...]:
        """The weights of the styles with these numbers, to three digits, which sum to 1. Raises UserError."""
        weights = [self.weights[number] for number in numbers]
        if sum(weights) <= 0:
            raise UserError("all weights are 0; give a style a weight")
        shares = [round(weight / sum(weights), 3) for weight in weights]
        return (*shares[:-1], round(1 - sum(shares[:-1]), 3))


@dataclass(frozen=True)
class Controls:
    """What the user sets."""

    model: gr.Dropdown
    content: gr.Image
    styles: list[gr.Image]
    weights: list[gr.Slider]
    together: gr.Radio
    strength: gr.Slider
    color: gr.Radio
    scale: gr.Slider
    mask: gr.ImageEditor
    feather: gr.Slider

    @property
    def look(self) -> list[gr.components.Component]:
        """Those whose values make a `Look`, in the order of its fields."""
        return [self.together, self.strength, self.color, self.scale, self.feather, *self.weights]


def build(page: Page, tab: gr.Tab) -> None:
    """Adds the controls, the results beside them, and what the buttons do."""
    content_example, style_examples = copy_examples(page.results.folder / "examples")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            controls = add_controls(page)
            with gr.Row():
                button = gr.Button("Stylize", variant="primary", elem_id="stylize-start")
                stop = gr.Button("Stop", variant="stop", elem_id="stylize-stop")
        with gr.Column(scale=2, min_width=280):
            result = gr.ImageSlider(
                label="Before and after", type="filepath", format="png", interactive=False, elem_id="stylized",
                buttons=["download", "fullscreen"],
            )  # fmt: skip
            mask_file = gr.File(label="The mask", interactive=False, visible=False, elem_id="mask-file")
            command = command_box("stylize-command")
            with gr.Accordion("A video in place of the content", open=False, elem_id="filming"):
                video = video_upload(FILM, "film")
                with gr.Row():
                    film = gr.Button("Stylize the video", variant="primary", elem_id="film-start")
                    film_stop = gr.Button("Stop", variant="stop", elem_id="film-stop")
                filmed = gr.Video(label="Stylized video", interactive=False, elem_id="filmed")
            gr.Examples(
                [[str(content_example), str(style)] for style in style_examples],
                [controls.content, controls.styles[0]],
                label="Examples: a content and a style",
            )  # fmt: skip
    page.results.protect()

    def make(request: gr.Request, progress: gr.Progress = gr.Progress(), *values: Any) -> tuple:  # noqa: B008
        asked, name, painted, source, *rest = values
        with page.stops.start(request, asked) as stopper:
            report = reporter(stopper, progress, "tiles")
            return stylize_upload(page, report, name, painted, source, rest[:STYLES], read_look(*rest[STYLES:]))

    def make_film(request: gr.Request, progress: gr.Progress = gr.Progress(), *values: Any) -> tuple:  # noqa: B008
        asked, name, source, *rest = values
        with page.stops.start(request, asked) as stopper:
            report = reporter(stopper, progress, "frames")
            return stylize_film(page, report, name, source, rest[:STYLES], read_look(*rest[STYLES:]))

    model, styled = controls.model, [*controls.styles, *controls.look]
    page.long(button, stop, make, [model, controls.mask, controls.content, *styled], [result, mask_file, command])
    page.long(film, film_stop, make_film, [model, video, *styled], [filmed, command])


def add_controls(page: Page) -> Controls:
    """Adds what the user sets; the address of the page keeps all of it but the images."""
    entries = page.shelf.entries(STYLIZER)
    model = gr.Dropdown(
        [(entry.label, entry.name) for entry in entries], value=entries[0].name, label="Stylizer", elem_id="stylizer"
    )
    content = image_upload("Content", "content", height=240)
    styles = []
    for first in range(0, STYLES, 2):
        with gr.Row():
            for i in (first + 1, first + 2):
                more = {"height": 150, "min_width": 120, "placeholder": "Image"}  # Gradio's text is too long
                styles.append(image_upload(f"Style {i}", f"style-{i}", **more))
    with gr.Accordion("Weights of the styles", open=False):
        weights = [
            gr.Slider(0, 1, 1, step=0.01, label=f"Weight {i + 1}", elem_id=f"weight-{i + 1}") for i in range(STYLES)
        ]
    together = gr.Radio([MIXED, APART, MASKED], value=MIXED, label="Several styles", elem_id="together")
    strength = gr.Slider(0, 1, 1, step=0.01, label="Strength", elem_id="strength")
    color = gr.Radio(list(COLORS), value="the style's", label="Colours", elem_id="color")
    scale = gr.Slider(0.5, 4, 1, step=0.1, label="Size of the strokes", elem_id="style-scale")
    with gr.Accordion("Paint a mask", open=False, elem_id="masking"):
        mask = mask_editor("Paint where style 1 shall be", "mask")
        feather = gr.Slider(0, 100, 0, step=1, label="Soft edge, in pixels", elem_id="feather")
    content.change(
        lambda path: None if path is None else {"background": path, "layers": [], "composite": None},
        content, mask, queue=False, show_progress="hidden", api_visibility="private",
    )  # fmt: skip
    keep = page.settings
    keep.choice("stylizer", model)
    keep.choice("together", together)
    keep.number("strength", strength)
    keep.choice("color", color)
    keep.number("style-scale", scale)
    keep.number("feather", feather)
    for i, weight in enumerate(weights):
        keep.number(f"weight-{i + 1}", weight)
    return Controls(model, content, styles, weights, together, strength, color, scale, mask, feather)


def read_look(together: str, strength: float, color: str, scale: float, feather: float, *weights: float) -> Look:
    """The values of the controls."""
    return Look(together, strength or 0, color, scale or 1, feather or 0, tuple(weight or 0 for weight in weights))


def reporter(stop: Stop, progress: gr.Progress, unit: str) -> Progress:
    """Shows the progress of a work in the page, and stops it if that is asked for, or if it is too much."""

    def report(done: int, total: int | None) -> None:
        stop.check()
        progress((done, total) if total else None, unit=unit)

    report(0, 1)
    return report


def stylize_upload(
    page: Page, report: Progress, name: str, painted: Image.Image | None, source: str | None,
    styles: Sequence[str | None], look: Look,
) -> tuple[tuple[str, str], Any, Any]:  # fmt: skip
    """The files of the content and of the result, of the mask if there is one, and the command."""
    path = check_upload(source, "the content")
    if is_video(path):  # of which the command would stylize all frames
        raise UserError(
            f"{printable(path.name)} is an animation, or named as a video; save it as MP4 for “{FILM}” or one frame of "
            "it as PNG, or use stylize.py for it"
        )
    model = page.shelf.stylizer(name)
    combined, files, words = read_styles(model, styles, look)
    out = page.results.path(f"{path.stem[:80]}-stylized.png")
    content = read_image(path, min_side=min_side(model))
    mask_file, masks = None, []
    if look.together == MASKED:
        if painted is None:
            raise UserError("the mask is missing; paint one on the content first")
        mask_file = page.results.path("mask.png")
        painted.resize((content.shape[2], content.shape[1]), Image.Resampling.NEAREST).save(mask_file)
        mask = read_mask(mask_file, (content.shape[1], content.shape[2]))
        stylized = stylize_masked(model, content, combined[0], combined[1], mask, look.settings, report)
        masks = ["--mask", mask_file.name, *(["--feather", f"{look.feather:g}"] if look.feather else [])]
    else:
        stylized = stylize_image(model, content, combined[0], look.settings, report)
    write_image(stylized, out)
    line = command_line("python", "stylize.py", "--model", name, "--content", typed(path), *words, *masks)
    shown = gr.File(str(mask_file), visible=True) if mask_file else gr.File(None, visible=False)
    mask_name = mask_file.name if mask_file else None
    return (str(path), str(out)), shown, command_with(line, uploads_of([path, *files]), mask_name)


def stylize_film(
    page: Page, report: Progress, name: str, source: str | None, styles: Sequence[str | None], look: Look
) -> tuple[str, Any]:
    """The file of the stylized video, and the command."""
    if source is None:
        raise UserError("the video is missing; upload one first")
    path = Path(source)
    if not path.is_file():
        raise UserError(GONE)
    if look.together == MASKED:
        raise UserError("a mask is for images; choose another way to combine the styles of a video")
    check_video(path)
    model = page.shelf.stylizer(name)
    combined, files, words = read_styles(model, styles, look)
    out = page.results.path(f"{path.stem[:80]}-stylized.mp4")
    stylize_video(path, out, FrameStylizer(model, combined[0], look.settings), progress=report)
    words += ["--out", f"out/{out.name}"]
    line = command_line("python", "stylize.py", "--model", name, "--content", path.name, *words)
    return str(out), command_with(line, uploads_of([path, *files]))


def typed(path: Path) -> str:
    """What a command line calls a file: the path of an example, and the name of an upload."""
    return shipped_as(path) or path.name


def uploads_of(paths: Sequence[Path]) -> list[str]:
    """The names of those files that are not examples."""
    return [path.name for path in paths if shipped_as(path) is None]


def check_video(path: Path) -> None:
    """Raises UserError if a file is no video or is too large, which is found out without decoding it."""
    with open(path, "rb") as file:
        try:
            animation = animated_webp(file)
        except Unusable as reason:
            raise UserError(f"{path.name} {reason}; {reason.remedy}") from None
        if animation is not None and pixels_of_all_frames(animation) > MAX_ANIMATION_PIXELS:
            raise UserError(f"{path.name} has too many pixels in all frames for this page; use stylize.py for it")
    with VideoReader(path) as reader:
        width, height = reader.stream.width, reader.stream.height
        if width * height > MAX_FRAME_PIXELS:
            raise UserError(
                f"{path.name} has {width}x{height} pixels; the limit here is 1920x1080, use stylize.py for it"
            )
        if (reader.seconds or 0) > MAX_FILM_SECONDS:
            raise UserError(
                f"{path.name} is longer than {MAX_FILM_SECONDS // 60} minutes, the limit here; use stylize.py for it"
            )
        for number, _ in enumerate(reader.packets()):
            if number > MAX_FRAMES:
                raise UserError(f"{path.name} has more than {MAX_FRAMES} frames, the limit here; use stylize.py for it")


def read_styles(
    model: Stylizer, uploads: Sequence[str | None], look: Look
) -> tuple[list[CombinedStyle], list[Path], list[str]]:
    """The style, or with a mask both, their files, and the options of stylize.py for them. Raises UserError."""
    numbers = [i for i, upload in enumerate(uploads) if upload is not None]
    if look.together == MIXED:
        numbers = [i for i in numbers if look.weights[i] > 0] or numbers
    elif numbers[:2] != [0, 1]:
        raise UserError("this needs style 1 and style 2; upload both, or choose “mixed by weight”")
    else:
        numbers = [0, 1]
    if look.together == APART and model.style_encoder is None:
        raise UserError(
            f"“{APART}” takes predicted kernels apart, and AdaIN has none; choose “{MIXED}”, or a stylizer with AdaConv"
        )
    if not numbers:
        raise UserError("the style is missing; upload an image as style 1")
    files = [check_upload(uploads[i], f"style {i + 1}") for i in numbers]
    read = [read_style(model, file, look.scale) for file in files]
    words = look_options(look)
    if look.together == APART:
        names = ["--structure-from", typed(files[0]), "--statistics-from", typed(files[1])]
        return [CombinedStyle(tuple(read))], files, [*names, *words]
    words = [word for file in files for word in ("--style", typed(file))] + words
    if look.together == MASKED:
        return [CombinedStyle((style,)) for style in read], files, words
    if len(read) == 1:
        return [CombinedStyle((read[0],))], files, words
    shares = look.shares(numbers)
    words += ["--mix", ",".join(f"{share:g}" for share in shares)]
    return [CombinedStyle(tuple(read), shares)], files, words


def look_options(look: Look) -> list[str]:
    """The options of stylize.py for a look, without the defaults."""
    words = ["--strength", f"{look.strength:g}"] if look.strength != 1 else []
    words += ["--preserve-color", str(COLORS[look.color])] if COLORS[look.color] else []
    return words + (["--style-scale", f"{look.scale:g}"] if look.scale != 1 else [])
