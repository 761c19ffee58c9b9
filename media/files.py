"""Image files: reads them in all common formats, writes them by extension, lists folders, and names results."""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from media.decode import (
    ALL_FORMATS,
    ALL_SUFFIXES,
    HEIC,
    IMAGE_SUFFIXES,
    WHITE,
    Unusable,
    decode_image,
    is_animated,
    open_image,
)
from torch_utils.errors import UserError, listed, note, one_line
from torch_utils.files import MAX_NAME, make_folder, missing_message, open_regular, short_name, write_file

MIN_SIDE = 16  # pixels; after three halvings, two are left, as reflection padding needs
VIDEO_SUFFIXES = (
    ".mp4",
    ".mov",
    ".m4v",
    ".mkv",
    ".webm",
    ".avi",
    ".mpg",
    ".mpeg",
    ".ts",
    ".mts",
    ".m2ts",
    ".vob",
    ".ogv",
    ".apng",
    ".wmv",
    ".flv",
    ".3gp",
)
IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
MAX_SIDE = {"PNG": 2**31 - 1, "JPEG": 65500, "WEBP": 16383}  # pixels, as the formats and their libraries allow
ANOTHER_IMAGE = "name another image, or save it as PNG"


def read_image(
    path: str | os.PathLike, *, min_side: int = MIN_SIDE, background: tuple[int, int, int] = WHITE
) -> Tensor:
    """Reads an image in any common format as uint8 [3, H, W]: upright, in sRGB, on `background` where transparent.

    Raises UserError if the file is missing, not an image, broken, larger than media.decode.MAX_PIXELS, or has a side of
    fewer than `min_side` pixels.
    """
    with opened_image(path) as file:
        return read_pixels(file, min_side, background, path)


def stored_size(path: str | os.PathLike) -> tuple[int, int]:
    """The width and height of an image as its header states them, before it is turned upright. Raises UserError."""
    with opened_image(path) as file:
        return open_image(file, ALL_FORMATS).size


@contextmanager
def opened_image(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """An open file that is read as an image in the block. Raises UserError where that fails."""
    path = Path(path)
    try:
        with open_regular(path) as file:
            yield file
    except FileNotFoundError:
        raise UserError(missing_message(path, "name an existing image")) from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name an image in it") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or one_line(error)}; {ANOTHER_IMAGE}") from None
    except Unusable as reason:
        raise UserError(f"{path} {reason}; {reason.remedy}") from None


def read_pixels(
    file: BinaryIO,
    min_side: int = MIN_SIDE,
    background: tuple[int, int, int] = WHITE,
    name: str | os.PathLike = "an image",
) -> Tensor:
    """The image in an open file, as `read_image` gives it. Raises Unusable, and OSError where reading fails."""
    image = open_image(file, ALL_FORMATS)
    if min(image.size) < min_side:
        width, height = image.size
        raise Unusable(f"has {width}x{height} pixels; each side needs {min_side} or more", "name a larger image")
    return rgb_pixels(image, background, name)


def rgb_pixels(
    image: Image.Image, background: tuple[int, int, int] = WHITE, name: str | os.PathLike = "an image"
) -> Tensor:
    """An image of Pillow as uint8 [3, H, W], as `decode_image` decodes it. Raises Unusable."""
    return torch.from_numpy(np.array(decode_image(image, "RGB", background, name))).permute(2, 0, 1).contiguous()


def check_side(path: Path, width: int, height: int) -> None:
    """Raises UserError where an image is too large for the format that its path names."""
    kind = image_format(path)
    if max(width, height) > MAX_SIDE[kind]:
        raise UserError(
            f"{path}: {kind} is limited to {MAX_SIDE[kind]:,} pixels per side, and the image has {width}x{height}; "
            "write it as .png"
        )


def write_image(pixels: Tensor, path: str | os.PathLike) -> None:
    """Writes uint8 [3, H, W] as PNG, JPEG or WebP, by the extension, atomically, and creates its folder if needed.

    Raises UserError if the extension is another one, if the image is too large for the format, or if the file cannot be
    written, and DiskFull if there is no room for it.
    """
    path = Path(path)
    kind = image_format(path)
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
    check_side(path, *image.size)
    options: dict[str, int] = {} if kind == "PNG" else {"quality": 95}
    if kind == "JPEG":
        options["subsampling"] = 0  # chroma in full resolution: else colours bleed over the edges of brush strokes
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    make_folder(path.parent)
    try:
        write_file(path, buffer.getbuffer())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; name another place with --out") from None


def image_format(path: str | os.PathLike) -> str:
    """The format that an extension stands for: "PNG", "JPEG" or "WEBP". Raises UserError if it is another one."""
    kind = IMAGE_FORMATS.get(Path(path).suffix.lower())
    if kind is None:
        raise UserError(
            f"cannot write {path}: images are written as {', '.join(IMAGE_FORMATS)}; name such a file with --out"
        )
    return kind


def list_images(folder: str | os.PathLike, *, videos: bool = False) -> list[Path]:
    """The images directly in a folder, recognized by their extensions, in natural order: 2.jpg before 10.jpg.

    With `videos`, the videos as well. Hidden files are left out. Raises UserError if there are no such files.
    """
    folder = Path(folder)
    try:
        entries = [Path(entry) for entry in os.scandir(folder) if _is_file(entry) and not entry.name.startswith(".")]
    except FileNotFoundError:
        raise UserError(missing_message(folder, "name a folder of images")) from None
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror or error}; name a folder of images") from None
    suffixes = (*ALL_SUFFIXES, *VIDEO_SUFFIXES) if videos else ALL_SUFFIXES
    images = sorted((path for path in entries if path.suffix.lower() in suffixes), key=natural)
    if not images:
        what = "images and no videos" if videos else "images"
        raise UserError(f"{folder} holds no {what} ({', '.join(suffixes)}); name the folder that holds them")
    return images


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file; a link that leads in a circle is none."""
    with suppress(OSError):
        return entry.is_file()
    return False


def note_left_out(folder: str | os.PathLike) -> None:
    """Prints what `list_images` leaves out of a folder: folders, and images of formats that are not read."""
    visible = sorted(path for path in Path(folder).iterdir() if not path.name.startswith("."))
    if names := [path.name for path in visible if path.is_dir()]:
        note(f"note: folders in {folder} are not looked into: {listed(names, 5)}")
    if names := [path.name for path in visible if path.suffix.lower() in {*IMAGE_SUFFIXES} - {*ALL_SUFFIXES}]:
        note(f"note: images in {folder} of formats that are not read; save them as JPEG or PNG: {listed(names, 5)}")


def natural(path: Path) -> tuple[list[str | tuple[int, str]], str]:
    """A sort key for names that compares numbers in them by value, and ignores case."""
    parts = re.split(r"(\d+)", path.name.casefold(), flags=re.ASCII)
    return [(len(part.lstrip("0")), part.lstrip("0")) if i % 2 else part for i, part in enumerate(parts)], path.name


def is_video(path: str | os.PathLike) -> bool:
    """Whether a file is a video, by its extension or else its content. An animated GIF, WebP or PNG file is one."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return True
    try:
        with open_regular(path) as file:
            return is_animated(open_image(file, ALL_FORMATS))
    except (OSError, EOFError, ValueError):
        return False  # reading it will report the error
    except Unusable:
        return suffix not in IMAGE_SUFFIXES and not _is_heic(path) and _holds_video(path)


def _is_heic(path: Path) -> bool:
    """Whether a file is a photograph in HEIC, which FFmpeg would open as a video."""
    with open_regular(path) as file:
        return HEIC.match(file.read(12)) is not None


def output_paths(
    contents: Sequence[Path], styles: Sequence[Path], folder: str | os.PathLike, suffix: str = ".png"
) -> list[Path]:
    """`folder/photo-style.png` for each content; with several styles `photo-style1-style2.png`.

    Contents that differ only in their extension keep it: `photo.jpg-style.png`. A name that is too long is cut, and
    ends with a digest. Raises UserError if two results would still have the same name.
    """
    stems = Counter(path.stem for path in contents)
    style_names = "-".join(path.stem for path in styles)
    names = [f"{c.stem if stems[c.stem] == 1 else c.name}-{style_names}" for c in contents]
    paths = [Path(folder, short_name(name, MAX_NAME - len(suffix)) + suffix) for name in names]
    name, count = Counter(paths).most_common(1)[0] if paths else (None, 0)
    if count > 1:
        raise UserError(f"{count} images would be written to {name}; rename them, or stylize them one by one")
    return paths


def _holds_video(path: Path) -> bool:
    """Whether FFmpeg finds a video in a file."""
    try:
        from media.video import VideoReader

        with VideoReader(path):
            return True
    except UserError:
        return False
