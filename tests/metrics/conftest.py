"""Random detectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torchvision
import weights
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
