"""Contents, styles and masks in the forms in which a program has them: paths, Pillow's images and tensors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from media.decode import BLACK, WHITE, Unusable
from media.files import MIN_SIDE, read_image, rgb_pixels
from media.images import to_uint8
from networks.stylizer import Stylizer
from styling.mask import mask_of, read_mask
from styling.styles import CombinedStyle, Style, is_saved, read_style, style_of_image
from torch_utils.errors import note

Picture = str | os.PathLike | Image.Image | Tensor
StyleInput = Picture | CombinedStyle
OVERSHOOT = 10.0  # generated images go somewhat beyond −1..1; floats in 0..255 go further
PIXELS = "uint8 [3, H, W], or float [3, H, W] or [1, 3, H, W] in -1..1"


def pixels_of(image: Picture, name: str, min_side: int = MIN_SIDE, background: tuple[int, int, int] = WHITE) -> Tensor:
    """An image as uint8 [3, H, W]: what `read_image` gives of a path, and the same of an image of Pillow.

    A tensor is uint8 [3, H, W], or float [3, H, W] or [1, 3, H, W] in −1..1. `name` is that of the argument.

    Raises:
        UserError: if the file of a path cannot be read.
        TypeError, ValueError: if it is of another kind or shape, or too small.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image, min_side=min_side, background=background)
    if isinstance(image, Image.Image):
        try:
            pixels = rgb_pixels(image.copy(), background)  # a copy, because decoding turns the image upright in place
        except Unusable as reason:
            raise ValueError(f"{name}: the image {reason}; {reason.remedy}") from None
    elif isinstance(image, Tensor):
        pixels = pixels_of_tensor(image, name)
    else:
        raise TypeError(f"{name}: expected a path, an image of Pillow or a tensor, got {type(image).__name__}")
    _, height, width = pixels.shape
    if min(height, width) < min_side:
        raise ValueError(f"{name}: expected at least {min_side}x{min_side} pixels, got {width}x{height}")
    return pixels


def pixels_of_tensor(image: Tensor, name: str) -> Tensor:
    """A tensor as uint8 [3, H, W] in main memory. Raises ValueError."""
    one = image[0] if image.ndim == 4 and image.shape[0] == 1 else image
    if one.ndim != 3 or one.shape[0] != 3 or not (one.dtype == torch.uint8 or one.is_floating_point()):
        raise ValueError(f"{name}: expected {PIXELS}; got {str(image.dtype)[6:]} {list(image.shape)}")
    one = one.detach().cpu()
    if one.dtype == torch.uint8:
        return one
    least, most = (float(value) for value in one.float().aminmax())
    if not -OVERSHOOT <= least <= most <= OVERSHOOT:  # also where one is NaN
        raise ValueError(f"{name}: expected {PIXELS}; got floats from {least:.4g} to {most:.4g}")
    if least >= 0 and most <= 1:
        note(
            f"warning: {name} has floats from {least:.2f} to {most:.2f}, where -1 is black and 1 is white; if they are "
            "in 0..1, give 2 * image - 1"
        )
    return to_uint8(one.float())


def mask_in(mask: Picture, size: tuple[int, int] | None = None) -> Tensor:
    """A mask as float [1, H, W] in 0..1 from an image or from such a tensor, of a content's (height, width) if given.

    Raises UserError, TypeError and ValueError as `pixels_of` does, also for a mask of another size.
    """
    if isinstance(mask, (str, os.PathLike)):
        return read_mask(mask, size)
    if not isinstance(mask, Tensor) or mask.shape[-3:-2] == (3,):
        mask = mask_of(pixels_of(mask, "mask", 1, BLACK))
    expected = [1, *(mask.shape[1:] if size is None else size)]
    if (
        mask.ndim != 3
        or list(mask.shape) != expected
        or not mask.is_floating_point()
        or not 0 <= mask.min() <= mask.max() <= 1
    ):
        raise ValueError(f"mask: expected float {expected} in 0..1, got {str(mask.dtype)[6:]} {list(mask.shape)}")
    return mask.detach().cpu().float()


def style_of(model: Stylizer, style: StyleInput, scale: float = 1.0) -> CombinedStyle:
    """The style of an image or of a file of kernels; one that was read already is given back.

    Raises UserError, TypeError and ValueError as `pixels_of` does, and ValueError where the scale cannot be applied.
    """
    only_kernels = isinstance(style, CombinedStyle) or (isinstance(style, (str, os.PathLike)) and is_saved(style))
    if only_kernels and scale != 1:
        raise ValueError("style_scale: expected 1, because the style is no image but kernels, already predicted")
    if isinstance(style, CombinedStyle):
        return style
    if isinstance(style, (str, os.PathLike)):
        return CombinedStyle((read_style(model, style, scale),))
    return CombinedStyle((style_of_image(model, pixels_of(style, "style"), scale),))


def mixed_style(
    model: Stylizer, style: StyleInput | Sequence[StyleInput], mix: Sequence[float] | None = None, scale: float = 1.0
) -> CombinedStyle:
    """One style, or several mixed by the weights `mix`, which are scaled to sum to 1.

    Raises UserError, TypeError and ValueError as `style_of` does, and ValueError without a weight for each of several.
    """
    several: Sequence[Any] = style if isinstance(style, (list, tuple)) else [style]
    if len(several) != (1 if mix is None else len(mix)):
        given = "none" if mix is None else len(mix)
        raise ValueError(f"mix: expected a weight for each of {len(several)} styles, such as (0.7, 0.3), got {given}")
    read = [style_of(model, one, scale) for one in several]
    return read[0] if mix is None else CombinedStyle(single(read), tuple(mix))


def style_taken_apart(
    model: Stylizer, structure: StyleInput, statistics: StyleInput, scale: float = 1.0
) -> CombinedStyle:
    """The structure of one style with the statistics of another. Raises as `style_of`, and ValueError with AdaIN."""
    if model.style_encoder is None:
        raise ValueError("structure_from: expected a model with AdaConv, because AdaIN's kernels have no structure")
    return CombinedStyle(single([style_of(model, one, scale) for one in (structure, statistics)]))


def single(styles: Sequence[CombinedStyle]) -> tuple[Style, ...]:
    """The only style in each of several. Raises ValueError if one of them is combined already."""
    if any(len(style.styles) != 1 for style in styles):
        raise ValueError("style: expected images or files to combine, got styles that are combined already")
    return tuple(style.styles[0] for style in styles)
