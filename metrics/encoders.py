"""Our own detectors: the encoders that train_encoder.py makes, VGG-19 up to relu4_1 (networks/vgg.py).

A metric names one after an @: `fd5k_full@tiny-imagenet` for the one that comes with the project, or
`fd5k_full@runs/00000-…/snapshot-000400.safetensors`. Its values compare with those of the same file only, and are
never called FID.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from media.images import to_float
from models.encoder import read_encoder as read_encoder_file
from models.snapshot import PRETRAINED
from networks.vgg import CHANNELS, VGG19, scale_channels
from torch_utils.download import file_sha256
from torch_utils.errors import UserError
from torch_utils.files import missing

SHIPPED = {"tiny-imagenet": PRETRAINED / "encoder-tiny-imagenet.safetensors"}
LAYER = "mean of relu4_1"


@dataclass(frozen=True)
class EncoderWeights:
    """An encoder, the resolution that it was trained at, 0 where the file does not say it, and the file's SHA-256."""

    encoder: VGG19
    resolution: int
    sha256: str


class EncoderFeatures(nn.Module):
    """Images uint8 [N, 3, H, W] → the mean of relu4_1 over all positions, in a tuple as of torch-fidelity's: ([N, D],).

    Images of another size than the squares that the encoder was trained with are resized to it (bicubic, antialiased),
    also where that changes their shape, as FID's Inception network does.
    """

    def __init__(self, weights: EncoderWeights):
        super().__init__()
        self.encoder, self.resolution = weights.encoder, weights.resolution
        self.dimensions = scale_channels(int(CHANNELS[-1]), weights.encoder.width)  # D

    def forward(self, images: Tensor) -> tuple[Tensor]:
        x = to_float(images)
        size = [self.resolution, self.resolution]
        if self.resolution and list(x.shape[2:]) != size:
            x = F.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)
        return (self.encoder(x)[-1].mean(dim=(2, 3)),)


def find_encoder(name: str) -> Path:
    """The file of the encoder that a metric names after its @. Raises UserError where there is none."""
    if (path := SHIPPED.get(name)) is not None:
        if not path.is_file():
            raise UserError(
                f"the encoder {name} is not in this copy of the project: {path} is missing; get it from where this "
                "project is from, or train an encoder with train_encoder.py and write @ and its file"
            )
        return path
    if not Path(name).is_file():
        raise UserError(
            missing(
                Path(name),
                f"name a file of train_encoder.py, {next(iter(SHIPPED))}, or a "
                "published detector; python -m metrics --list names them",
            )
        )
    return Path(name)


def read_encoder(name: str) -> EncoderWeights:
    """The encoder that a metric names after its @, on the CPU. Raises UserError."""
    path = find_encoder(name)
    with torch.random.fork_rng(devices=[]):  # weights are drawn and replaced, and training's random numbers stay
        encoder, info = read_encoder_file(path)
    resolution = info.get("resolution", 0)
    if type(resolution) is not int or not 0 <= resolution <= 4096:
        raise UserError(f"{path} says that its resolution is {str(resolution)[:20]!r}; name another encoder")
    return EncoderWeights(encoder, resolution, file_sha256(path))
