"""Random detectors, and slices of real pictures."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import weights
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

from torch_utils.ops import native


@pytest.fixture(scope="session")
def inception(tmp_path_factory) -> Path:
    """The file of an Inception-v3 of random weights."""
    return weights.write_inception(tmp_path_factory.mktemp("weights") / "inception.pth")


@pytest.fixture(scope="session")
def smooth_inception(tmp_path_factory) -> Path:
    """One whose features change little, and steadily, with the picture."""
    return weights.write_inception(tmp_path_factory.mktemp("weights") / "smooth.pth", calibrate=False)


@pytest.fixture(scope="session")
def vgg16(tmp_path_factory) -> Path:
    """The file of a VGG-16 of random weights with narrow linear layers."""
    return weights.write_vgg16(tmp_path_factory.mktemp("weights") / "vgg16.pth")


@pytest.fixture
def small(monkeypatch, tmp_path) -> Path:
    """Detectors take smaller pictures, for the time of a test; gives the cache folder, which is empty."""
    native.available("cpu")  # compiled into the cache folder that there is
    for kind in (FeatureExtractorInceptionV3, FeatureExtractorVGG16):
        monkeypatch.setattr(kind, "INPUT_IMAGE_SIZE", kind.INPUT_IMAGE_SIZE)  # to be put back
    monkeypatch.setattr(torchvision.models, "vgg16", torchvision.models.vgg16)
    monkeypatch.setenv("ADACONV_CACHE", str(tmp_path / "cache"))
    weights.make_small()
    return tmp_path / "cache"


def photographs(path: Path, count: int) -> torch.Tensor:
    """The first pictures of an archive, uint8 [count, 3, 32, 32]."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith((".png", ".jpg")))[:count]
        pictures = [np.array(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def write_pictures(folder: Path, images: torch.Tensor) -> Path:
    """A PNG for each of uint8 [N, 3, H, W]."""
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:04d}.png")
    return folder
