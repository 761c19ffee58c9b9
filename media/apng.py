"""Writes animated PNGs: the pixels of ordinary PNGs in the chunks of PNG's third edition (W3C, 2025)."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import BinaryIO

from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_DELAY = 65535  # a delay is a fraction of two numbers of 16 bits


def write_apng(file: BinaryIO, images: Iterable[Image.Image], milliseconds: Sequence[int]) -> None:
    """Writes images of one size and mode (L, RGB or RGBA), each shown for so long, as it comes; they repeat forever.

    Pillow's `save` would keep all images in memory, and make one of equal ones.
    """
    number = 0  # of the next chunk that is numbered: one fcTL for each frame, one fdAT for each but the first
    for i, (image, duration) in enumerate(zip(images, milliseconds, strict=True)):
        png = io.BytesIO()
        image.save(png, "PNG")
        chunks = _chunks(png.getvalue())
        if i == 0:
            file.write(SIGNATURE + _chunk(b"IHDR", chunks[b"IHDR"]))
            file.write(_chunk(b"acTL", struct.pack(">II", len(milliseconds), 0)))  # repeated forever
        file.write(_chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, *image.size, 0, 0, *_delay(duration), 0, 0)))
        number += 1
        if i == 0:
            file.write(_chunk(b"IDAT", chunks[b"IDAT"]))
        else:
            file.write(_chunk(b"fdAT", struct.pack(">I", number) + chunks[b"IDAT"]))
            number += 1
    file.write(_chunk(b"IEND", b""))


def _delay(milliseconds: int) -> tuple[int, int]:
    """A time as a fraction of a second: in thousandths, or in as small parts as a long time can be written in."""
    unit = 1000
    while milliseconds > MAX_DELAY and unit > 1:
        milliseconds, unit = round(milliseconds / 10), unit // 10
    return min(milliseconds, MAX_DELAY), unit


def _chunks(data: bytes) -> dict[bytes, bytes]:
    """The content of a PNG's chunks by their types; those of one type are joined."""
    chunks: dict[bytes, bytes] = {}
    position = len(SIGNATURE)
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        chunks[kind] = chunks.get(kind, b"") + data[position + 8 : position + 8 + length]
        position += 12 + length
    return chunks


def _chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG: length, type, content and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
