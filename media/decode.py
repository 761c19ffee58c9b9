"""Images as people have them, decoded with care: sizes are checked before anything is unpacked."""

from __future__ import annotations

import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from torch_utils.errors import one_line

FORMATS = ("PNG", "JPEG", "WEBP")  # of data sets
ALL_FORMATS = (*FORMATS, "GIF", "BMP", "TIFF", "PPM")
ALL_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_PIXELS = 1 << 27
WHITE = (255, 255, 255)


class Unusable(Exception):
    """Why one file cannot be used, as the end of a sentence that begins with its name."""


def open_image(file: BinaryIO, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Reads the header of an image; nothing is decoded. Raises Unusable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about size, which is checked below, and about odd metadata
            image = Image.open(file, formats=formats)
    except UnidentifiedImageError:
        raise Unusable("is not an image, or in an unknown format") from None
    except Exception as error:  # on broken files Pillow raises nearly anything
        raise Unusable(f"is not a readable image ({one_line(error)})") from None
    if image.width * image.height > MAX_PIXELS:
        raise Unusable(f"has {image.width}x{image.height} pixels; the limit is {MAX_PIXELS:,}")
    return image


def load_image(image: Image.Image) -> Image.Image:
    """Decodes an opened image. Raises Unusable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
    except Exception as error:  # as in open_image
        raise Unusable(f"is a broken image ({one_line(error)})") from None
    return image


def plain_image(image: Image.Image, mode: str = "RGB", background: tuple[int, int, int] = WHITE) -> Image.Image:
    """The opened image decoded, upright, opaque and of 8 bits, in the mode L or RGB. Raises Unusable."""
    load_image(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata and palettes
            ImageOps.exif_transpose(image, in_place=True)
            return _flat(_eight_bits(image), background).convert(mode)
    except Unusable:
        raise
    except Exception as error:  # broken metadata, and conversions that Pillow lacks
        raise Unusable(f"of the kind {image.mode} cannot be converted ({one_line(error)})") from None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greyscale of 16 bits scaled to 8 (Pillow would clip it); other kinds as they are. Raises Unusable."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise Unusable(f"holds numbers of 32 bits (kind {image.mode}), whose range is not known")
    return image


def _flat(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Lays what is transparent, in any of Pillow's ways, on the background."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    ground = Image.new("RGB", image.size, background)
    ground.paste(image, mask=image)
    return ground
