"""The encoder, VGG-19 up to relu4_1: torchvision's weights, downloaded once and checked, or those of a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from models.snapshot import ENCODER, load_model, save_model
from networks.vgg import VGG19
from torch_utils.download import download, read_tensors
from torch_utils.errors import UserError, one_line
from torch_utils.files import missing_message
from torch_utils.ops.adaconv import PaddingMode
from torch_utils.schema import Within, build
from torch_utils.tensors import check_weights

URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"  # trained on ImageNet
SHA256 = "dcbb9e9d"  # the first digits of the file's digest
FIRST_CHANNELS = 64  # of vgg19's first layer, at width 1


@dataclass
class EncoderConfig:
    """What the file of an encoder says about it."""

    width: Annotated[float, Within(0, 4, above=True)]
    border: PaddingMode = "zeros"


def load_encoder(path: str | os.PathLike | None = None, device: torch.device | str = "cpu") -> VGG19:
    """The encoder of a file, in eval mode and without gradients; without a path torchvision's, trained on ImageNet.

    A file is a .safetensors of `save_encoder`, or a .pth or .pt with the state of torchvision's vgg19, whose layers up
    to relu4_1 are used. The file is not trusted: no code in a pickle is executed, and all shapes are compared before
    the model is built.

    Raises:
        UserError: if the file is missing, of another kind, of another model or damaged, or if the download fails.
    """
    path = Path(path) if path is not None else torchvision_weights()
    if not os.path.exists(path):
        raise UserError(missing_message(path, "name the file of an encoder with --encoder-weights"))
    if path.suffix == ".safetensors":
        return read_encoder(path)[0].to(device)
    try:
        width, tensors = _read_torchvision(path)
        encoder = VGG19(width)
        encoder.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = one_line(error, 200)
        raise UserError(
            f"{path} is not a VGG-19 up to relu4_1 ({reason}); name another file with --encoder-weights"
        ) from None
    return encoder.eval().requires_grad_(False).to(device)


def read_encoder(path: str | os.PathLike) -> tuple[VGG19, dict[str, Any]]:
    """The encoder of a file of `save_encoder`, in eval mode and not to be trained, and the file's info.

    Raises:
        UserError: as `load_model`.
    """
    encoder, info = load_model(path, ENCODER, lambda config, tensors: VGG19(**asdict(build(EncoderConfig, config))))
    assert isinstance(encoder, VGG19)
    return encoder, info


def save_encoder(path: str | os.PathLike, encoder: VGG19, info: Mapping[str, Any]) -> None:
    """Writes an encoder and `info` (any JSON) as one file. Raises DiskFull."""
    save_model(path, ENCODER, encoder, {"width": encoder.width}, info)


def torchvision_weights(url: str = URL, sha256: str = SHA256) -> Path:
    """The file with torchvision's weights in the cache folder, downloaded if it is not there yet. Raises UserError."""
    return download(url, sha256, "--encoder-weights")


def _read_torchvision(path: Path) -> tuple[float, dict[str, Tensor]]:
    """The width of a vgg19 of torchvision, from the shape of its first layer, and its tensors up to relu4_1."""
    try:
        state = read_tensors(path)
    except (OSError, ValueError) as error:
        reason = one_line(error, 200)
        raise UserError(
            f"{path} cannot be read as an encoder ({reason}); name a .safetensors file of this project or a .pth file "
            "of torchvision's vgg19 with --encoder-weights"
        ) from None
    with torch.device("meta"):
        names = VGG19().state_dict().keys()
    tensors = {name: state[name] for name in names}
    if not all(isinstance(tensor, Tensor) and tensor.ndim for tensor in tensors.values()):
        raise ValueError("not all of the state are tensors")
    check_weights(tensors)
    return len(tensors["features.0.weight"]) / FIRST_CHANNELS, tensors
