"""Our own detectors: the encoders that train_encoder.py makes, VGG-19 up to relu4_1 (networks/vgg.py).

A metric names one after an @. One comes with the project: `fd5k_full@tiny-imagenet`, which was trained to tell the 200
classes of Tiny ImageNet apart. Other files of encoders, and of stylizers, which have one inside, are named by their
paths: `fd5k_full@runs/00000-…/snapshot-000400.safetensors`. Values compare with those of the same file only, and are
never called FID.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from media.images import to_float
from metrics.names import DEFAULT_DETECTOR
from models.encoder import read_encoder as read_encoder_file
from models.snapshot import PRETRAINED, STYLIZER, load_stylizer, says_kind
from networks.vgg import CHANNELS, VGG19, scale_channels
from torch_utils.download import file_sha256
from torch_utils.errors import UserError
from torch_utils.files import missing_message

SHIPPED = {DEFAULT_DETECTOR: PRETRAINED / f"{DEFAULT_DETECTOR}.safetensors"}
LAYER = "mean of relu4_1"


@dataclass(frozen=True)
class EncoderWeights:
    """An encoder, the resolution of its images, 0 for any, and the SHA-256 of the file that it comes from."""

    encoder: VGG19
    resolution: int
    sha256: str
    enlarge: bool = True  # whether smaller images are enlarged to the resolution


class EncoderFeatures(nn.Module):
    """Images uint8 [N, 3, H, W] → the mean of relu4_1 over all positions, in a tuple as of torch-fidelity's: ([N, D],).

    Images of another size than the squares that the encoder was trained with are resized to it (bicubic, antialiased),
    also where that changes their shape, as FID's Inception network does. Of a stylizer's encoder, which has seen small
    and large ones, only sides that are longer are reduced. Sides that are too short for the network are enlarged.
    """

    def __init__(self, weights: EncoderWeights):
        super().__init__()
        self.encoder, self.resolution, self.enlarge = weights.encoder, weights.resolution, weights.enlarge
        self.dimensions = scale_channels(int(CHANNELS[-1]), weights.encoder.width)  # D

    def forward(self, images: Tensor) -> tuple[Tensor]:
        x = to_float(images)
        size = list(x.shape[2:])
        if self.resolution:
            size = [self.resolution if self.enlarge else min(side, self.resolution) for side in size]
        size = [max(side, self.encoder.min_side) for side in size]
        if list(x.shape[2:]) != size:
            x = F.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)
        return (self.encoder(x)[-1].mean(dim=(2, 3)),)


def find_encoder(name: str) -> Path:
    """The file of the encoder that a metric names after its @. Raises UserError where there is none."""
    if (path := SHIPPED.get(name)) is not None:
        if not path.is_file():
            raise UserError(
                f"the encoder {name} is not in this copy of the project: {path} is missing; get it from where this "
                "project is from, or name the file of an encoder or a stylizer that you have trained"
            )
        return path
    if not Path(name).is_file():
        raise UserError(
            missing_message(
                Path(name),
                f"name a file of train_encoder.py or train_stylizer.py, {DEFAULT_DETECTOR}, or a "
                "published detector; python -m metrics --list names them",
            )
        )
    return Path(name)


def read_encoder(name: str) -> EncoderWeights:
    """The encoder that a metric names after its @, on the CPU. Raises UserError."""
    path = find_encoder(name)
    with torch.random.fork_rng(devices=[]):  # weights are drawn and replaced, and training's random numbers stay
        if says_kind(path, STYLIZER):
            stylizer, _ = load_stylizer(path)
            return EncoderWeights(stylizer.encoder, stylizer.config.style_size, file_sha256(path), enlarge=False)
        encoder, info = read_encoder_file(path)
    resolution = info.get("resolution", 0)
    if type(resolution) is not int or not 0 <= resolution <= 4096:
        raise UserError(f"{path} says that its resolution is {str(resolution)[:20]!r}; name another encoder")
    return EncoderWeights(encoder, resolution, file_sha256(path))
