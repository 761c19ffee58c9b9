"""Uploads, read within bounds by the one reader of the project, and results, which lie in a folder until fetched."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from media.decode import ALL_FORMATS, Unusable, decode_image, open_image
from media.files import MIN_SIDE
from torch_utils.errors import UserError, one_line, printable
from web.gate import files_under
from web.limits import KEPT_SECONDS, MAX_FILES, MAX_PIXELS

ANOTHER = "choose another image, or save it as PNG"
GONE = "the upload is no longer there; upload it again"


def image_upload(label: str, name: str, **more: Any) -> gr.Image:
    """An image that the user uploads, pastes or takes with a camera. Its value is the path of the file, not decoded."""
    image = gr.Image(
        label=label, elem_id=name, type="filepath", sources=["upload", "clipboard", "webcam"], image_mode=None, **more
    )
    image.preprocess = uploaded_path  # type: ignore[method-assign]  # Gradio's own would decode it without our limits
    return image


def video_upload(label: str, name: str) -> gr.Video:
    """A video that the user uploads. Its value is the path of the file, not decoded."""
    video = gr.Video(label=label, elem_id=name, sources=["upload"])
    video.preprocess = uploaded_path
    return video


def mask_editor(label: str, name: str) -> gr.ImageEditor:
    """An editor in which the user paints a mask. Its value is a greyscale image, white where something is painted."""
    editor = gr.ImageEditor(
        label=label, elem_id=name, sources=(), transforms=(), layers=False, type="pil", image_mode="RGBA",
        brush=gr.Brush(colors=["#ff2050"], color_mode="fixed"), height=420, buttons=["fullscreen"],
    )  # fmt: skip
    editor.preprocess = painted  # type: ignore
    return editor


def painted(payload: Any) -> Image.Image | None:
    """The mask in the payload of an editor, of the editor's size; None if nothing is painted."""
    for layer in [] if payload is None else payload.layers[:1]:
        alpha = open_upload(uploaded_path(layer), "the mask", lambda image: decode_image(image, "RGB", None))
        mask = alpha.convert("RGBA").getchannel("A").point(lambda value: 255 if value > 127 else 0)
        if mask.getbbox() is not None:
            return mask
    return None


def uploaded_path(payload: Any) -> str | None:
    """The path in the payload of a component, of which Gradio has checked that it is an upload.

    Raises gr.Error if the payload holds something else, such as a data: address.
    """
    if payload is None:
        return None
    if not payload.path or not os.path.isfile(payload.path):
        raise gr.Error(GONE, print_exception=False)
    return str(payload.path)


def open_upload(path: str | None, what: str, read: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """What `read` makes of an uploaded image, whose size has been checked and which has not been decoded.

    `what` says which upload is meant. Raises UserError, with the name that the user knows.
    """
    if path is None:
        raise UserError(f"{what} is missing; upload an image first")
    name = printable(Path(path).name)
    try:
        with open(path, "rb") as file:
            image = open_image(file, ALL_FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise Unusable(f"has {image.width}x{image.height} pixels; the limit here is {MAX_PIXELS:,}")
            if min(image.size) < MIN_SIDE:
                raise Unusable(f"has {image.width}x{image.height} pixels; each side needs {MIN_SIDE} or more")
            return read(image)
    except FileNotFoundError:
        raise UserError(GONE) from None
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror or one_line(error)}); {ANOTHER}") from None
    except Unusable as reason:
        raise UserError(f"{name} {reason}; {ANOTHER}") from None


def check_upload(path: str | None, what: str) -> Path:
    """The path of an uploaded image whose size has been checked. Raises UserError as `open_upload` does."""
    open_upload(path, what, lambda image: image)
    return Path(str(path))


class Results:
    """The folder of uploads and results, whose size and age are bounded."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = threading.Lock()
        self._swept = 0.0
        self._kept: set[Path] = set()

    def path(self, name: str) -> Path:
        """Where to write a result that is downloaded under `name`."""
        self.sweep()
        folder = self.folder / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder / name

    def protect(self) -> None:
        """Keeps the files that are there now, such as examples."""
        self._kept = set(files_under(self.folder))

    def keep_sweeping(self) -> None:
        """Removes what is old once a minute, also where nobody uses the page. Never returns."""
        while True:
            time.sleep(60)
            self.sweep()

    def sweep(self, every: float = 10) -> None:
        """Removes what is old, and the oldest files beyond `MAX_FILES` bytes; at most once in `every` seconds."""
        with self._lock:
            if time.monotonic() < self._swept + every:
                return
            self._swept = time.monotonic()
        files = []
        for path in files_under(self.folder):
            with suppress(OSError):
                if path not in self._kept:
                    files.append((path.stat().st_mtime, path.stat().st_size, path))
        total, now = sum(size for _, size, _ in files), time.time()
        for written, size, path in sorted(files):
            if total <= MAX_FILES and now - written < KEPT_SECONDS:
                break
            with suppress(OSError):
                path.unlink()
                path.parent.rmdir()  # only if it is empty
            total -= size
        for place, _, _ in os.walk(self.folder, topdown=False):  # of results that were never written, too
            with suppress(OSError):
                if Path(place) != self.folder and now - os.stat(place).st_mtime >= KEPT_SECONDS:
                    os.rmdir(place)  # only if it is empty
