"""Styles: read once, from an image or from a file of kernels, and what is made of several of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isqrt
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from media.files import read_image
from media.images import to_float
from networks.stylizer import Kernels, Stylizer, from_tensors, mix, resized, structure_and_statistics, to_tensors
from styling.color import match_colors
from torch_utils.errors import UserError, one_line
from torch_utils.files import make_folder, write_file

STYLE = "adaconv-style"
SUFFIX = ".safetensors"
VERSION = 1
SAMPLES = 1 << 20  # pixels: the mean and covariance of colours need no more


@dataclass(frozen=True)
class Style:
    """What a model reads from a style: kernels of one sample, and the square image that they are of, if there is."""

    path: Path
    kernels: Kernels
    image: Tensor | None = None  # float [1, 3, s, s] in −1..1; None where kernels are all there is

    def matched(self, model: Stylizer, content: Tensor) -> Kernels:
        """The kernels of the style in the colours of a content, uint8 [3, H, W]."""
        if self.image is None:
            raise ValueError(f"{self.path} holds kernels, whose colours cannot be changed any more")
        step = max(isqrt(content[0].numel() // SAMPLES), 1)
        sample = to_float(content[None, :, ::step, ::step].to(self.image.device))
        return model.kernels(match_colors(self.image, sample))


@dataclass(frozen=True)
class Look:
    """One style; or several as one: mixed by weights, or the structure of the first with the second's statistics."""

    styles: tuple[Style, ...]
    weights: tuple[float, ...] | None = None

    @property
    def paths(self) -> list[Path]:
        return [style.path for style in self.styles]

    def kernels(self) -> Kernels:
        return self._combined([style.kernels for style in self.styles])

    def matched(self, model: Stylizer, content: Tensor) -> Kernels:
        """The same with each style in the colours of a content, uint8 [3, H, W]."""
        return self._combined([style.matched(model, content) for style in self.styles])

    def _combined(self, kernels: Sequence[Kernels]) -> Kernels:
        if len(kernels) == 1:
            return kernels[0]
        return mix(kernels, self.weights) if self.weights else structure_and_statistics(*kernels)


@torch.no_grad()
def read_style(model: Stylizer, path: str | os.PathLike) -> Style:
    """The style of an image, or of a file that `save_style` wrote. Raises UserError."""
    path = Path(path)
    device = next(model.parameters()).device
    if path.suffix.lower() == SUFFIX:
        return Style(path, load_kernels(model, path))
    image = resized(to_float(read_image(path)[None].to(device)), model.config.style_size)
    return Style(path, model.kernels(image), image)


def save_style(path: str | os.PathLike, model: Stylizer, kernels: Kernels) -> None:
    """Writes kernels of one sample, and of which model they are. Raises UserError, and DiskFull."""
    meta = {"format": STYLE, "version": VERSION, "model": identity(model)}
    data = save({name: t.cpu() for name, t in to_tensors(kernels).items()}, metadata={"adaconv": json.dumps(meta)})
    make_folder(Path(path).parent)
    try:
        write_file(path, data)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; name another with --save-style") from None


def load_kernels(model: Stylizer, path: str | os.PathLike) -> Kernels:
    """The kernels that `save_style` wrote, where the model is. The file is not trusted.

    Raises:
        UserError: if the file is missing, of another kind, of another model, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("adaconv", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        reason = one_line(error, 200)
        raise UserError(f"{path} cannot be read as a style ({reason}); name an image or a saved style") from None
    kind = meta.get("format") if isinstance(meta, dict) else None
    if kind != STYLE:
        what = f", but of kind {kind.removeprefix('adaconv-')[:40]!r}" if isinstance(kind, str) else ""
        raise UserError(f"{path} holds no style{what}; name an image or what --save-style wrote")
    if meta.get("model") != identity(model):
        raise UserError(f"{path} is a style of another model; name that one with --model, or the style's image")
    try:
        kernels = from_tensors(tensors)
        check_kernels(model, kernels)
    except ValueError as error:
        raise UserError(f"{path} does not fit the model ({error}); save it again with --save-style") from None
    device = next(model.parameters()).device
    return from_tensors({name: tensor.to(device) for name, tensor in tensors.items()})


def check_kernels(model: Stylizer, kernels: Kernels) -> None:
    """Raises ValueError where kernels are not those of one style for this model."""
    config, stages = model.config, len(model.decoder.modulated())
    if len(kernels) != stages:
        raise ValueError(f"kernels of {len(kernels)} stages, expected {stages}")
    for i, k in enumerate(kernels):
        group, size = (config.group(i), config.kernel_size) if model.style_encoder is not None else (1, 1)
        if k.depthwise.shape != (1, config.channels(i), group, size, size):
            raise ValueError(f"kernels of shape {list(k.depthwise.shape)} in stage {i}")
        for tensor in (k.depthwise, k.pointwise, k.bias):
            if tensor.dtype != torch.float32 or not tensor.isfinite().all():
                raise ValueError(f"kernels that are not finite numbers of 32 bits in stage {i}")


def identity(model: Stylizer) -> str:
    """The same for the same construction and weights, whatever the file is called: SHA-256 in hexadecimal."""
    digest = hashlib.sha256(json.dumps(asdict(model.config), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()
