"""Sheets: images in rows and columns with labels beside them."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from media.alpha import on_chequerboard
from media.decode import MAX_PIXELS
from torch_utils.errors import UserError
from torch_utils.files import write_file
from torch_utils.sizes import Resolution, width_and_height

Row = Sequence[Image.Image | None]

GAP = 4  # pixels between images
TEXT = 14  # font size in pixels
INK = (40, 40, 40)
MIN_SIDE = 64  # pixels of an image on a sheet


def enlargement(resolution: Resolution, min_side: int = MIN_SIDE) -> int:
    """The smallest factor that enlarges the longer side of an image to at least `min_side` pixels."""
    return max(-(-min_side // max(width_and_height(resolution))), 1)


def to_image(pixels: Tensor, scale: int = 1) -> Image.Image:
    """The image of uint8 [C, H, W] with every pixel enlarged to a square of scale × scale.

    A transparent image is laid on a chequerboard.
    """
    array = on_chequerboard(pixels[None])[0].expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(array)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def table(rows: Sequence[Row], top: Sequence[str], left: Sequence[str], title: str = "", gap: int = GAP) -> Image.Image:
    """A table of images with labels above the columns and left of the rows; None leaves a cell empty.

    A column is as wide as its widest image or label. Raises UserError if the sheet would be too large.
    """
    count = max(len(row) for row in rows)
    full_rows = [[*row, *[None] * (count - len(row))] for row in rows]
    top = [*top, *[""] * (count - len(top))]
    widths = [
        max([_width(label), *(image.width for image in column if image)])
        for label, column in zip(top, zip(*full_rows, strict=True), strict=True)
    ]
    heights = [
        max([_height([label]), *(image.height for image in row if image)])
        for label, row in zip(left, full_rows, strict=True)
    ]
    margin = max((_width(label) for label in left), default=0) + 2 * gap
    head = _height([title]) + _height(top) + 2 * GAP
    size = max(margin + sum(widths) + gap * count, _width(title) + 2 * GAP), head + sum(heights) + gap * len(rows)
    check_size(*size)

    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    draw.text((GAP, GAP), title, INK, font)
    x = margin
    for label, width in zip(top, widths, strict=True):
        draw.multiline_text((x + width / 2, head - GAP), label, INK, font, anchor="md", align="center")
        x += width + gap
    y = head
    for label, row, height in zip(left, full_rows, heights, strict=True):
        draw.multiline_text((margin - gap, y + height / 2), label, INK, font, anchor="rm", align="right")
        x = margin
        for image, width in zip(row, widths, strict=True):
            if image:
                sheet.paste(image, (x + (width - image.width) // 2, y + (height - image.height) // 2))
            x += width + gap
        y += height + gap
    return sheet


def _width(text: str) -> int:
    """Pixels of the longest line."""
    font = ImageFont.load_default(TEXT)
    return max((int(font.getlength(part)) for part in text.split("\n")), default=0)


def _height(texts: Sequence[str]) -> int:
    """Pixels of the text with the most lines."""
    return (TEXT + 6) * max((text.count("\n") + 1 for text in texts if text), default=0)


def check_size(width: int, height: int) -> None:
    """Raises UserError if a sheet has more pixels than an image may have."""
    if width * height > MAX_PIXELS:
        raise UserError(
            f"a sheet of {width}x{height} pixels is too large; take fewer rows and columns, or a smaller --scale"
        )


def check_grid(count: int, columns: int, resolution: Resolution) -> None:
    """`check_size` for so many images of a resolution in rows of so many."""
    width, height = width_and_height(resolution)
    check_size(min(columns, count) * width, -(-count // columns) * height)


def add_caption(image: Image.Image, text: str) -> Image.Image:
    """The image with a line of text below it."""
    sheet = Image.new("RGB", (image.width, image.height + TEXT + 6), "white")
    sheet.paste(image)
    middle = image.width / 2, image.height + 2
    ImageDraw.Draw(sheet).text(middle, text, INK, ImageFont.load_default(TEXT), anchor="ma")
    return sheet


def stack(images: Sequence[Image.Image]) -> Image.Image:
    """The images one below the other."""
    sheet = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), "white")
    y = 0
    for image in images:
        sheet.paste(image, (0, y))
        y += image.height
    return sheet


def encode_png(image: Image.Image) -> bytes:
    """The bytes of the image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_sheet(image: Image.Image, path: str | os.PathLike) -> None:
    """Writes the image as a PNG file. Raises DiskFull."""
    write_file(path, encode_png(image))
