"""Decodes image files: the one reader of training, metrics, conversion, projection and stylization.

Files are not trusted: sizes are checked before anything is decoded.
"""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
from contextlib import suppress
from functools import lru_cache
from typing import BinaryIO, cast

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError, features

from torch_utils.errors import note, one_line

FORMATS = ("PNG", "JPEG", "WEBP")  # of data sets
_AVIF = bool(features.check("avif"))  # from Pillow 11.3 on
ALL_FORMATS = (*FORMATS, "GIF", "BMP", "TIFF", "PPM", *["AVIF"] * _AVIF)
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp")  # of data sets
ALL_SUFFIXES = (*SUFFIXES, ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", *[".avif"] * _AVIF)
# Of files that are images for their owners; where they are not read, that is noted.
IMAGE_SUFFIXES = (*ALL_SUFFIXES, ".avif", ".heic", ".heif", ".jp2", ".jxl")
HEIC = re.compile(rb"....ftyp(hei|hev|mif|msf)", re.DOTALL)  # the beginning of such a file
COPY_AGAIN = "copy it again, or name another image"
SMALLER = "make it smaller, or name another image"
MAX_PIXELS = 1 << 27
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # TIFF tags
WHITE_IS_ZERO = 0  # a value of the second, which Pillow heeds in greyscale of 8 bits only
WHITE_OF = {"1": 1, "L;2": 3, "L;4": 15, "L": 255}  # in a grey PNG, by Pillow's name of how pixels are stored
NO_EXIF = (SyntaxError, ValueError, KeyError, struct.error)  # of metadata that is none, and turns nothing
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


class Unusable(Exception):
    """Says why a file cannot be used, as the end of a sentence that begins with its name, and what to do about it."""

    def __init__(self, reason: str, remedy: str = "name another image, or save it as PNG"):
        super().__init__(reason)
        self.remedy = remedy


def open_image(file: BinaryIO, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Reads the header of an image, and decodes nothing. Raises Unusable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large sizes, which are checked below, and unusual metadata
            image = Image.open(file, formats=formats)
    except UnidentifiedImageError:
        file.seek(0)
        start = file.read(12)
        if not start:
            raise Unusable("is empty", COPY_AGAIN) from None
        if HEIC.match(start):
            raise Unusable("is a HEIC image, which is not read here") from None
        raise Unusable("is not an image, or in an unknown format") from None
    except Image.DecompressionBombError:
        raise Unusable(f"has more than {MAX_PIXELS:,} pixels, the limit", SMALLER) from None
    except Exception as error:  # on broken files, Pillow raises nearly any exception
        raise Unusable(f"is not a readable image ({one_line(error)})", COPY_AGAIN) from None
    if image.width * image.height > MAX_PIXELS:
        raise Unusable(f"has {image.width}x{image.height} pixels; the limit is {MAX_PIXELS:,}", SMALLER)
    return image


def decode_image(
    image: Image.Image,
    mode: str = "RGB",
    background: tuple[int, int, int] | None = WHITE,
    name: str | os.PathLike = "an image",
) -> Image.Image:
    """Decodes an opened image: upright, in sRGB, with 8 bits per channel. Of an animation, it is the first frame.

    The orientation and the colour profile in the file are applied. `mode` is L or RGB. Transparent pixels are
    laid on `background`; with None, transparency is kept, as an alpha channel of its own. `name` is what a note calls
    the image. Raises Unusable.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unusual metadata and palettes
        raw = [str(tile[3]) for tile in getattr(image, "tile", [])] if image.format == "PNG" else []
        try:
            image.load()
        except Exception as error:  # as in open_image
            raise Unusable(f"is a broken image ({one_line(error)})", COPY_AGAIN) from None
        stored_mode(image)  # without a palette, Pillow fails in many ways
        try:
            with suppress(*NO_EXIF):
                ImageOps.exif_transpose(image, in_place=True)
            profile, key = image.info.get("icc_profile"), image.info.get("transparency")
            if image.mode == "RGB" and isinstance(key, tuple):  # a colour, with 16 bits a channel; pixels have 8 now
                deep = any(kind.endswith("16B") for kind in raw)
                image.info["transparency"] = tuple(value >> 8 if deep else value & 255 for value in key)
            elif isinstance(key, int) and raw and (most := WHITE_OF.get(raw[0])):  # pixels are scaled to 8 bits
                image.info["transparency"] = (key & most) * 255 // most
            image, alpha = _split_alpha(_to_8_bits(image, name))
            if profile:
                image = _to_srgb(image, profile)
            if alpha is not None and background is not None:
                ground = Image.new("RGB", image.size, background)
                ground.paste(image.convert("RGB"), mask=alpha)
                image, alpha = ground, None
            image = image.convert(mode)
            if alpha is not None:
                image.putalpha(alpha)
            return image
        except Unusable:
            raise
        except Exception as error:  # broken metadata, and conversions that Pillow does not support
            raise Unusable(f"of the kind {image.mode} cannot be converted ({one_line(error)})") from None


def upright_size(image: Image.Image) -> tuple[int, int]:
    """The width and height that `decode_image` gives an opened PNG, JPEG or WebP. Raises Unusable."""
    width, height = image.size
    if width == height:
        return image.size
    try:
        with suppress(*NO_EXIF):
            if image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8):  # turned by a quarter
                return height, width
    except Exception as error:  # a PNG is decoded here, because its orientation may come last
        raise Unusable(f"is a broken image ({one_line(error)})", COPY_AGAIN) from None
    return image.size


def stored_mode(image: Image.Image) -> str:
    """The mode of an opened image's content: of a palette, that of its colours. Raises Unusable without a palette."""
    if image.mode not in ("P", "PA"):
        return image.mode
    if image.palette is None:
        raise Unusable("is a broken image (no palette)", COPY_AGAIN)
    return "RGBA" if image.has_transparency_data else "RGB"


def is_animated(image: Image.Image) -> bool:
    """Whether an opened GIF, WebP or PNG has several frames. Raises Unusable if it is broken."""
    try:
        return image.format in ("GIF", "WEBP", "PNG") and getattr(image, "n_frames", 1) > 1
    except Exception as error:  # counting a GIF's frames reads all of it
        raise Unusable(f"is a broken image ({one_line(error)})", COPY_AGAIN) from None


def _to_8_bits(image: Image.Image, name: str | os.PathLike) -> Image.Image:
    """Scales greyscale of 16 bits to 8, which Pillow would clip, and keeps its transparent colour. Raises Unusable."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.uint32)
        limit = _largest_value(image, values, name)
        if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
            values = limit - values.clip(max=limit)
        scaled = Image.fromarray(((values * 255 + limit // 2) // limit).clip(max=255).astype(np.uint8))
        if isinstance(key := image.info.get("transparency"), int):
            scaled.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
        return scaled
    if image.mode in ("I", "F"):
        raise Unusable(f"holds numbers of 32 bits (kind {image.mode}), whose range is not known")
    return image


def _largest_value(image: Image.Image, values: np.ndarray, name: str | os.PathLike) -> int:
    """The value of white in greyscale of 16 bits, of which cameras and microscopes often use 12 and do not say so."""
    bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))[0]
    if bits != 12 and values.max() > 4095:
        return 65535
    if bits != 12 and values.any():
        _note_12_bits(name)
    return 4095


_noted: list[str | os.PathLike] = []  # the first such image of this process


def _note_12_bits(name: str | os.PathLike) -> None:
    """Notes once that an image is read as 12 bits, beside which others may be read as 16."""
    if not _noted:
        _noted.append(name)
        note(f"note: {name} has 16 bits and no value over 4095; such images are read as 12 bits, all others as 16")


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The image without transparency, and its alpha channel, from any of the ways in which files store it."""
    if not image.has_transparency_data:
        return image, None
    if image.mode == "La" or image.mode == "RGBa":  # premultiplied
        image = image.convert(image.mode.upper())
    if image.mode != "LA":
        image = image.convert("RGBA")
    return image.convert(image.mode.removesuffix("A")), image.getchannel("A")


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Converts the colours from an ICC profile. Returns the image itself if the profile is broken or does not fit."""
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")  # from a palette or from YCbCr
    try:
        if (transform := _srgb_transform(profile, image.mode)) is None:
            return image
        return cast(Image.Image, ImageCms.applyTransform(image, transform))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image


@lru_cache(maxsize=16)
def _srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from a profile to sRGB; None for sRGB itself, which a transform would only round."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    description = ImageCms.getProfileDescription(source).casefold()
    if "srgb" in description and "linear" not in description:
        return None
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
