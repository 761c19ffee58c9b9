"""A single image, converted as dataset_tool.py converts those of a folder."""

from __future__ import annotations

from PIL import Image

from media.convert import Conversion, decode_as, resize_to


def convert_image(image: Image.Image, how: Conversion) -> Image.Image:
    """Decodes, crops and resizes an image; of mode L, RGB or RGBA. Raises Unusable."""
    return resize_to(decode_as(image, how), how)
