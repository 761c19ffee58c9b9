"""Images in and out: reading them as people have them, writing them by extension, naming the results."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from media.decode import ALL_FORMATS, ALL_SUFFIXES, WHITE, Unusable, load_image, open_image, plain_image
from torch_utils.errors import UserError, one_line
from torch_utils.files import MAX_NAME, make_folder, missing, short_name, write_file

MIN_SIDE = 16  # pixels: what three halvings need, so that two are left to reflect at the border
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
    ".wmv",
    ".flv",
    ".3gp",
)
WRITTEN = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
MAX_SIDE = {"PNG": 2**31 - 1, "JPEG": 65500, "WEBP": 16383}  # of the formats and their libraries
OTHER_IMAGE = "name another image, or save it as PNG"


def read_image(
    path: str | os.PathLike, *, min_side: int = MIN_SIDE, background: tuple[int, int, int] = WHITE
) -> Tensor:
    """uint8 [3, H, W] from an image of any usual kind: upright, in sRGB, what is transparent laid on `background`.

    Raises UserError where it is not there, not an image, broken, larger than media.decode.MAX_PIXELS, or
    has a side of less than `min_side` pixels.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            image = open_image(file, ALL_FORMATS)
            if min(image.size) < min_side:
                width, height = image.size
                raise Unusable(f"has {width}x{height} pixels; each side needs {min_side} or more")
            pixels = np.array(_in_srgb(image, background))
    except FileNotFoundError:
        raise UserError(missing(path, "name an image that is there")) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or one_line(error)}; {OTHER_IMAGE}") from None
    except Unusable as reason:
        raise UserError(f"{path} {reason}; {OTHER_IMAGE}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def write_image(pixels: Tensor, path: str | os.PathLike, *, quality: int = 95) -> None:
    """Writes uint8 [3, H, W] as PNG, JPEG or WebP, as the extension says: whole or not at all.

    The folder is made if need be. `quality` (1..100) is for JPEG and WebP. Raises UserError for another extension,
    an image too large for the format, and where nothing can be written; DiskFull where there is no room.
    """
    path = Path(path)
    kind = check_written(path)
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
    if max(image.size) > MAX_SIDE[kind]:
        raise UserError(
            f"{path}: {kind} holds at most {MAX_SIDE[kind]:,} pixels a side, not {image.width}x{image.height}; "
            "write it as .png"
        )
    # Chroma at full resolution where quality is asked for: halved, it bleeds over the hard edges of brush strokes.
    options = {"PNG": {}, "JPEG": {"quality": quality, "subsampling": 0 if quality >= 90 else 2}}
    buffer = io.BytesIO()
    image.save(buffer, kind, **options.get(kind, {"quality": quality}))
    make_folder(path.parent)
    try:
        write_file(path, buffer.getbuffer())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; name another place with --out") from None


def check_written(path: str | os.PathLike) -> str:
    """The format of an image to be written: "PNG", "JPEG" or "WEBP". Raises UserError where it is none of them."""
    kind = WRITTEN.get(Path(path).suffix.lower())
    if kind is None:
        raise UserError(f"cannot write {path}: images are written as {', '.join(WRITTEN)}; name such a file with --out")
    return kind


def list_images(folder: str | os.PathLike, *, videos: bool = False) -> list[Path]:
    """The images that lie directly in a folder, by extension, in natural order: 2.jpg before 10.jpg.

    With `videos`, these as well.

    Hidden files are left out. Raises UserError where there are none.
    """
    folder = Path(folder)
    try:
        entries = [Path(entry) for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith(".")]
    except FileNotFoundError:
        raise UserError(missing(folder, "name a folder of images")) from None
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror or error}; name a folder of images") from None
    suffixes = (*ALL_SUFFIXES, *VIDEO_SUFFIXES) if videos else ALL_SUFFIXES
    images = sorted((path for path in entries if path.suffix.lower() in suffixes), key=natural)
    if not images:
        what = "images and no videos" if videos else "images"
        raise UserError(f"{folder} holds no {what} ({', '.join(suffixes)}); name the folder that holds them")
    return images


def natural(path: Path) -> tuple:
    """A key that sorts numbers in names by their value, and all else without regard to case."""
    parts = re.split(r"(\d+)", path.name.casefold(), flags=re.ASCII)
    return [(len(part.lstrip("0")), part.lstrip("0")) if i % 2 else part for i, part in enumerate(parts)], path.name


def is_video(path: str | os.PathLike) -> bool:
    """Whether a file is a video: by its extension, or else by what is in it. A GIF that moves is one."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return True
    if suffix in ALL_SUFFIXES and suffix != ".gif":
        return False
    try:
        with open(path, "rb") as file:
            image = open_image(file, ALL_FORMATS)
            return image.format == "GIF" and image.n_frames > 1
    except (OSError, EOFError, ValueError):
        return False  # whoever reads it will say why it cannot be read
    except Unusable:
        return suffix not in ALL_SUFFIXES and _holds_video(path)


def output_paths(
    contents: Sequence[Path], styles: Sequence[Path], folder: str | os.PathLike, suffix: str = ".png"
) -> list[Path]:
    """`folder/photo-style.png` for each content; with several styles `photo-style1-style2.png`.

    Contents that differ in their extension only keep it: `photo.jpg-style.png`. What is too long for a file's name is
    cut, and ends with a digest. Raises UserError where two results would have one name even so.
    """
    stems = Counter(path.stem for path in contents)
    look = "-".join(path.stem for path in styles)
    names = [f"{c.stem if stems[c.stem] == 1 else c.name}-{look}" for c in contents]
    paths = [Path(folder, short_name(name, MAX_NAME - len(suffix)) + suffix) for name in names]
    name, count = Counter(paths).most_common(1)[0] if paths else (None, 0)
    if count > 1:
        raise UserError(f"{count} images would be written to {name}; rename them, or stylize them one by one")
    return paths


def _in_srgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """A plain RGB image; a colour profile, be it Display P3 or a printer's CMYK, is applied. Raises Unusable."""
    load_image(image)
    profile = image.info.get("icc_profile")
    if profile and image.mode == "CMYK":  # before it is made RGB without the profile
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ImageOps.exif_transpose(image, in_place=True)
        image, profile = _managed(image, profile), None
    image = plain_image(image, "RGB", background)
    return _managed(image, profile) if profile else image


def _managed(image: Image.Image, profile: bytes) -> Image.Image:
    """The image from its profile's colours to sRGB; as it is where the profile is broken or of another kind."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).casefold():
            return image  # not through the rounding of a transform that changes nothing
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image


def _holds_video(path: Path) -> bool:
    try:
        from media.video import VideoReader

        with VideoReader(path):
            return True
    except UserError:
        return False
