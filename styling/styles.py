"""Styles: reading them from an image or a file of kernels, saving them, and combining several into one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isqrt
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from media.files import read_image
from media.images import to_float
from models.snapshot import META, kind_name, read_description
from networks.stylizer import (
    Kernels,
    Stylizer,
    from_tensors,
    mix_styles,
    resize_square,
    structure_and_statistics,
    to_tensors,
)
from styling.color import match_colors
from torch_utils.errors import UserError, one_line
from torch_utils.files import make_folder, write_file
from torch_utils.tensors import read_safetensors

STYLE = "adaconv-style"
SUFFIX = ".safetensors"
VERSION = 1
COLOR_SAMPLES = 1 << 20  # pixels of a content that the mean and covariance of its colours are estimated from


@dataclass(frozen=True)
class Style:
    """The style of one file: its kernels, of one sample, and the square image that they were predicted from."""

    path: Path  # "image" for one that is of no file
    kernels: Kernels
    image: Tensor | None = None  # float [1, 3, s, s] in −1..1; None if the file holds only kernels

    def kernels_in_colors_of(self, model: Stylizer, content: Tensor) -> Kernels:
        """The kernels of the style image in the colours of a content, uint8 [3, H, W]; ValueError if it has none."""
        if self.image is None:
            raise ValueError(f"{self.path} holds kernels, whose colours cannot be changed")
        step = max(isqrt(content[0].numel() // COLOR_SAMPLES), 1)
        sample = to_float(content[None, :, ::step, ::step].to(self.image.device))
        return model.kernels(match_colors(self.image, sample))


@dataclass(frozen=True)
class CombinedStyle:
    """One style, or several in one: mixed by weights, or without weights the structure of the first of two with the
    statistics of the second.
    """

    styles: tuple[Style, ...]
    weights: tuple[float, ...] | None = None

    def kernels(self) -> Kernels:
        """The kernels of the combination."""
        return self._combine([style.kernels for style in self.styles])

    def kernels_in_colors_of(self, model: Stylizer, content: Tensor) -> Kernels:
        """The kernels of the combination, with each style in the colours of a content, uint8 [3, H, W]."""
        return self._combine([style.kernels_in_colors_of(model, content) for style in self.styles])

    def _combine(self, kernels: Sequence[Kernels]) -> Kernels:
        if len(kernels) == 1:
            return kernels[0]
        return mix_styles(kernels, self.weights) if self.weights else structure_and_statistics(*kernels)


def is_saved(path: str | os.PathLike) -> bool:
    """Whether a file of a style holds kernels, by its extension, and is no image."""
    return Path(path).suffix.lower() == SUFFIX


def read_style(model: Stylizer, path: str | os.PathLike, scale: float = 1.0) -> Style:
    """Reads a style from an image, or from a file that `save_style` wrote. Raises UserError if it is neither.

    `scale` changes the size of an image's strokes, from 0.5 (half the size) to 4.
    """
    path = Path(path)
    if is_saved(path):
        return Style(path, load_kernels(model, path))
    return style_of_image(model, read_image(path), scale, path)


@torch.no_grad()
def style_of_image(model: Stylizer, pixels: Tensor, scale: float = 1.0, path: Path = Path("image")) -> Style:
    """The style of an image, uint8 [3, H, W]; `scale` as in `read_style`."""
    device = next(model.parameters()).device
    image = resize_style(to_float(pixels[None].to(device)), model.config.style_size, scale)
    return Style(path, model.kernels(image), image)


def resize_style(images: Tensor, size: int, scale: float = 1.0) -> Tensor:
    """The square in the middle of style images [N, 3, H, W], resized to [N, 3, size, size], with its strokes scaled.

    With a `scale` above 1 the square is smaller by that factor, so that its strokes are larger in the result. With one
    below 1, down to 0.5, the whole square is reduced by that factor and extended by reflection to the size.

    Raises:
        ValueError: if the scale is below 0.5.
    """
    if scale < 0.5:
        raise ValueError(f"scale: expected 0.5 or more, got {scale}")
    if scale >= 1:
        height, width = images.shape[2:]
        side = max(round(min(height, width) / scale), 1)
        top, left = (height - side) // 2, (width - side) // 2
        return resize_square(images[:, :, top : top + side, left : left + side], size)
    reduced = resize_square(images, round(size * scale))
    before, missing = (size - reduced.shape[2]) // 2, size - reduced.shape[2]
    return F.pad(reduced, [before, missing - before] * 2, mode="reflect")


def save_style(path: str | os.PathLike, model: Stylizer, kernels: Kernels) -> None:
    """Writes the kernels of one sample and the identity of their model. Raises UserError and DiskFull."""
    meta = {"format": STYLE, "version": VERSION, "model": identity(model)}
    data = save({name: t.cpu() for name, t in to_tensors(kernels).items()}, metadata={META: json.dumps(meta)})
    make_folder(Path(path).parent)
    try:
        write_file(path, data)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; name another with --save-style") from None


def load_kernels(model: Stylizer, path: str | os.PathLike) -> Kernels:
    """Reads the kernels that `save_style` wrote, onto the device of the model. The file is not trusted.

    Raises:
        UserError: if the file is missing, damaged, of another kind, or of another model.
    """
    try:
        tensors, metadata = read_safetensors(path)
        description = read_description(metadata)
    except (OSError, ValueError) as error:
        reason = one_line(error, 200)
        raise UserError(f"{path} cannot be read as a style ({reason}); name an image or a saved style") from None
    kind = description.get("format")
    if kind != STYLE:
        what = f", but of kind {kind_name(kind)[:40]!r}" if isinstance(kind, str) else ""
        raise UserError(f"{path} holds no style{what}; name an image or a file that --save-style wrote")
    if (version := description.get("version")) != VERSION or type(version) is not int:
        raise UserError(f"{path} is a style of the version {one_line(version, 20)}, not {VERSION}; save it again")
    if description.get("model") != identity(model):
        raise UserError(f"{path} is a style of another model; name that model with --model, or the style's image")
    try:
        kernels = from_tensors(tensors)
        check_kernels(model, kernels)
    except ValueError as error:
        raise UserError(f"{path} does not fit the model ({error}); save it again with --save-style") from None
    device = next(model.parameters()).device
    return from_tensors({name: tensor.to(device) for name, tensor in tensors.items()})


def check_kernels(model: Stylizer, kernels: Kernels) -> None:
    """Raises ValueError if kernels are not those of one style for this model."""
    config, stages = model.config, len(model.decoder.modulated())
    if len(kernels) != stages:
        raise ValueError(f"kernels of {len(kernels)} stages, expected {stages}")
    for i, k in enumerate(kernels):
        group, size = (config.group(i), config.kernel_size) if model.style_encoder is not None else (1, 1)
        if k.depthwise.shape != (1, config.channels(i), group, size, size):
            raise ValueError(f"kernels of shape {list(k.depthwise.shape)} in stage {i}")
        for tensor in (k.depthwise, k.pointwise, k.bias):
            if tensor is None or tensor.dtype != torch.float32 or not tensor.isfinite().all():
                raise ValueError(f"kernels that are not finite numbers of 32 bits in stage {i}")


def identity(model: Stylizer) -> str:
    """The SHA-256 of a model's configuration and weights in hexadecimal, which does not depend on its file's name."""
    config = asdict(model.config)
    if config["border"] == "zeros":  # so that styles saved before this option existed still belong to their models
        del config["border"]
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()
