"""Pictures as people have them, decoded with care: sizes are checked before anything is unpacked."""

from __future__ import annotations

import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")  # of data sets
ALL_FORMATS = (*FORMATS, "GIF", "BMP", "TIFF", "PPM")
ALL_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_PIXELS = 1 << 27
WHITE = (255, 255, 255)


class Unusable(Exception):
    """Why one file cannot be used, as the end of a sentence that begins with its name."""


def open_picture(file: BinaryIO, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Reads the header of a picture; nothing is decoded. Raises Unusable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about size, which is checked below, and about odd metadata
            picture = Image.open(file, formats=formats)
    except UnidentifiedImageError:
        raise Unusable("is not a picture, or in an unknown format") from None
    except Exception as error:  # on broken files Pillow raises nearly anything
        raise Unusable(f"is not a readable picture ({one_line(error)})") from None
    if picture.width * picture.height > MAX_PIXELS:
        raise Unusable(f"has {picture.width}x{picture.height} pixels; the limit is {MAX_PIXELS:,}")
    return picture


def load_picture(picture: Image.Image) -> Image.Image:
    """Decodes an opened picture. Raises Unusable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture.load()
    except Exception as error:  # as in open_picture
        raise Unusable(f"is a broken picture ({one_line(error)})") from None
    return picture


def plain_picture(picture: Image.Image, mode: str = "RGB", background: tuple[int, int, int] = WHITE) -> Image.Image:
    """The opened picture decoded, upright, opaque and of 8 bits, in the mode L or RGB. Raises Unusable."""
    load_picture(picture)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata and palettes
            ImageOps.exif_transpose(picture, in_place=True)
            return _flat(_eight_bits(picture), background).convert(mode)
    except Unusable:
        raise
    except Exception as error:  # broken metadata, and conversions that Pillow lacks
        raise Unusable(f"of the kind {picture.mode} cannot be converted ({one_line(error)})") from None


def show(name: str) -> str:
    """A file's name for a message: names in archives can hold line breaks and codes that terminals obey."""
    return name if name.isprintable() else ascii(name)


def one_line(value: object) -> str:
    """What someone else wrote, an error for instance, short and printable."""
    text = " ".join(str(value).split())
    return show(text if len(text) <= 100 else text[:97] + "...")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Greyscale of 16 bits scaled to 8 (Pillow would clip it); other kinds as they are. Raises Unusable."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        values = np.asarray(picture).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise Unusable(f"holds numbers of 32 bits (kind {picture.mode}), whose range is not known")
    return picture


def _flat(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Lays what is transparent, in any of Pillow's ways, on the background."""
    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    ground = Image.new("RGB", picture.size, background)
    ground.paste(picture, mask=picture)
    return ground
