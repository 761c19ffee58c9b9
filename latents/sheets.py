"""Sheets: images in rows and columns with words beside them."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from media.decode import MAX_PIXELS
from torch_utils.errors import UserError
from torch_utils.files import write_file

Row = Sequence[Image.Image | None]

GAP = 4  # pixels between images
TEXT = 14  # height of letters
INK = (40, 40, 40)
SHOWN = 64  # pixels a side that an image has at least on a sheet


def enlargement(resolution: int, shown: int = SHOWN) -> int:
    """How many times an image is enlarged to be at least so large."""
    return max(-(-shown // resolution), 1)


def to_image(pixels: Tensor, scale: int = 1) -> Image.Image:
    """uint8 [C, H, W], C = 1 or 3, with each pixel as a square of scale × scale."""
    array = pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(array)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def table(rows: Sequence[Row], top: Sequence[str], left: Sequence[str], title: str = "", gap: int = GAP) -> Image.Image:
    """Images in rows, words above the columns and before the rows; None leaves a place empty.

    A column is as wide as its widest image or word. Raises UserError for what is too large for one image.
    """
    font = ImageFont.load_default(TEXT)
    line = TEXT + 6

    def width(text: str) -> int:
        return max((int(font.getlength(part)) for part in text.split("\n")), default=0)

    def lines(texts: Sequence[str]) -> int:
        return max((text.count("\n") + 1 for text in texts if text), default=0)

    count = max(len(row) for row in rows)
    columns = [list(column) for column in zip(*[[*row, *[None] * (count - len(row))] for row in rows], strict=True)]
    words = [*top, *[""] * (count - len(top))]
    widths = [
        max([width(word), *(image.width for image in column if image)])
        for word, column in zip(words, columns, strict=True)
    ]
    heights = [
        max([line * lines([word]), *(image.height for image in row if image)])
        for word, row in zip(left, rows, strict=True)
    ]
    margin = max((width(word) for word in left), default=0) + 2 * gap
    head = line * (lines([title]) + lines(top)) + 2 * GAP
    size = max(margin + sum(widths) + gap * count, width(title) + 2 * GAP), head + sum(heights) + gap * len(rows)
    check_size(*size)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, INK, font)
    x = margin
    for word, wide in zip(words, widths, strict=True):
        draw.multiline_text((x + wide / 2, head - GAP), word, INK, font, anchor="md", align="center")
        x += wide + gap
    y = head
    for word, row, high in zip(left, rows, heights, strict=True):
        draw.multiline_text((margin - gap, y + high / 2), word, INK, font, anchor="rm", align="right")
        x = margin
        for image, wide in zip(row, widths, strict=False):
            if image:
                sheet.paste(image, (x + (wide - image.width) // 2, y + (high - image.height) // 2))
            x += wide + gap
        y += high + gap
    return sheet


def check_size(width: int, height: int) -> None:
    """Raises UserError where a sheet of so many pixels would be too large."""
    if width * height > MAX_PIXELS:
        raise UserError(f"a sheet of {width}x{height} pixels is too large; take fewer rows and columns")


def captioned(image: Image.Image, text: str) -> Image.Image:
    """The image with a line of words below it."""
    sheet = Image.new("RGB", (image.width, image.height + TEXT + 6), "white")
    sheet.paste(image)
    middle = image.width / 2, image.height + 2
    ImageDraw.Draw(sheet).text(middle, text, INK, ImageFont.load_default(TEXT), anchor="ma")
    return sheet


def stacked(images: Sequence[Image.Image]) -> Image.Image:
    """Images one below the other."""
    sheet = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), "white")
    y = 0
    for image in images:
        sheet.paste(image, (0, y))
        y += image.height
    return sheet


def png(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_sheet(image: Image.Image, path: str | os.PathLike) -> None:
    """Writes a PNG, whole or not at all. Raises DiskFull."""
    write_file(path, png(image))
