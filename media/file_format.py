"""How the images of a data set are stored: as PNG, JPEG or WebP.

libwebp leaves out the alpha channel of an opaque image, and its readers then take it for RGB. In a data set all images
have the same channels, and so such a file says here that it has the channel, in the format of RFC 9649.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image, ImageFile

from torch_utils.errors import UserError

JPEG_QUALITY = 95
ALPHA = 0x10  # the flag in WebP: in the last byte of a lossless image's header, and in the first of an extended file's
DATA = 20  # where the data of a WebP's first chunk begin


@dataclass(frozen=True)
class FileFormat:
    """How the images of a data set are stored: as PNG, WebP or JPEG.

    WebP without a quality is lossless, JPEG without one has JPEG_QUALITY. Raises UserError for a quality of PNG.
    """

    name: Literal["png", "jpeg", "webp"] = "png"
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.name == "png" and self.quality is not None:
            raise UserError("--quality applies to --format jpeg and webp; PNG is lossless, leave --quality out")

    def check_channels(self, channels: int) -> None:
        """Raises UserError where the format has no images of so many channels."""
        if channels == 4 and self.name == "jpeg":
            raise UserError("--format jpeg has no transparency; take --format webp or png with --channels 4")
        if channels == 1 and self.name == "webp":
            raise UserError("--format webp has no greyscale; take --format jpeg or png with --channels 1")

    @property
    def suffix(self) -> str:
        """The end of the files' names."""
        return ".jpg" if self.name == "jpeg" else f".{self.name}"

    def encode(self, image: Image.Image) -> bytes:
        """The content of an image's file, which is read with the image's channels.

        JPEG keeps the colours in the resolution of the brightness (4:4:4).
        """
        if self.name == "jpeg":
            return _jpeg(image, self.quality or JPEG_QUALITY)
        if self.name == "webp":
            options = {"lossless": True} if self.quality is None else {"quality": self.quality}
            data = _saved(image, "webp", **options)
            return _with_alpha(data, image.size) if image.mode == "RGBA" else data
        return _saved(image, "png")


PNG = FileFormat()


def _jpeg(image: Image.Image, quality: int) -> bytes:
    data = _saved(image, "jpeg", quality=quality, subsampling=0)
    # Pillow optimizes a file in a buffer of this size or more, into which one of noise does not fit.
    if len(data) > max(ImageFile.MAXBLOCK, image.width * image.height):
        return data
    return _saved(image, "jpeg", quality=quality, subsampling=0, optimize=True)


def _with_alpha(data: bytes, size: tuple[int, int]) -> bytes:
    """A WebP file of an RGBA image with its alpha channel, which it lacks where the image is opaque."""
    if data[12:16] == b"VP8L":  # lossless; the flag is behind a byte and two sizes of 14 bits (section 3.4)
        return data[: DATA + 4] + bytes([data[DATA + 4] | ALPHA]) + data[DATA + 5 :]
    if data[12:16] == b"VP8 ":  # lossy and opaque: it becomes an extended file (section 2.7) with a channel of 255
        width, height = ((side - 1).to_bytes(3, "little") for side in size)
        extended = _chunk(b"VP8X", bytes([ALPHA, 0, 0, 0]) + width + height)
        return _chunk(b"RIFF", b"WEBP" + extended + _chunk(b"ALPH", _opaque(size)) + data[12:])
    return data  # an extended file, of a transparent image


def _opaque(size: tuple[int, int]) -> bytes:
    """The content of a chunk ALPH: how it is compressed, and the greens of a lossless image without its header."""
    data = _saved(Image.new("RGB", size, (0, 255, 0)), "webp", lossless=True)
    return b"\x01" + data[DATA + 5 : DATA + int.from_bytes(data[DATA - 4 : DATA], "little")]


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
