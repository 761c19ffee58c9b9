"""Detectors with random weights, and metrics of real images by them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torchvision
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

from metrics.__main__ import main
from metrics.frechet import frechet_distance
from tests.metrics import evaluating, weights
from tests.metrics.archives import photographs, write_images
from torch_utils.cli import run
from torch_utils.ops import native


@pytest.fixture(scope="session")
def inception(tmp_path_factory) -> Path:
    """The file of an Inception-v3 of random weights."""
    return weights.write_inception(tmp_path_factory.mktemp("weights") / "inception.pth")


@pytest.fixture(scope="session")
def smooth_inception(tmp_path_factory) -> Path:
    """One whose features change little, and steadily, with the image."""
    return weights.write_inception(tmp_path_factory.mktemp("weights") / "smooth.pth", calibrate=False)


@pytest.fixture(scope="session")
def vgg16(tmp_path_factory) -> Path:
    """The file of a VGG-16 of random weights with narrow linear layers."""
    return weights.write_vgg16(tmp_path_factory.mktemp("weights") / "vgg16.pth")


@pytest.fixture(scope="session")
def dinov2(tmp_path_factory) -> Path:
    """The file of DINOv2's ViT-S/14 of random weights and one block."""
    return weights.write_dinov2(tmp_path_factory.mktemp("weights") / "dinov2.pth")


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    """The archive of CLIP's ViT-B/32 of random weights and one block."""
    return weights.write_clip(tmp_path_factory.mktemp("weights") / "clip.pt")


@pytest.fixture
def no_network(monkeypatch) -> None:
    """No file can be downloaded."""
    monkeypatch.setattr("torch_utils.download.urllib.request.urlopen", Mock(side_effect=OSError("no network")))


@pytest.fixture(scope="session")
def slices(tmp_path_factory, real_images) -> tuple[Path, Path]:
    """Folders of 66 and 60 real photographs."""
    folder = tmp_path_factory.mktemp("photographs")
    return (
        write_images(folder / "train", photographs(real_images / "cifar10-train.zip", 66)),
        write_images(folder / "test", photographs(real_images / "cifar10-test.zip", 60)),
    )


@contextmanager
def small_detectors(cache: Path) -> Iterator[pytest.MonkeyPatch]:
    """Detectors resize to smaller images, and the cache is in the folder `cache`."""
    native.available("cpu")  # compiled into the cache folder that there is
    with pytest.MonkeyPatch.context() as patch:
        for kind in (FeatureExtractorInceptionV3, FeatureExtractorVGG16):
            patch.setattr(kind, "INPUT_IMAGE_SIZE", kind.INPUT_IMAGE_SIZE)  # to be put back
        patch.setattr(torchvision.models, "vgg16", torchvision.models.vgg16)
        compiled = native.plan("cpu").folder
        if compiled.exists():  # other processes would compile the ops again, for a minute
            shutil.copytree(compiled, cache / compiled.name)
        patch.setenv("ADACONV_CACHE", str(cache))
        weights.make_small()
        yield patch


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """A cache folder for the test alone, into which no ops are compiled."""
    native.available("cpu")
    monkeypatch.setenv("ADACONV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small(tmp_path) -> Iterator[Path]:
    """Small detectors for the time of a test; gives the cache folder, in which there are just the compiled ops."""
    with small_detectors(tmp_path / "cache"):
        yield tmp_path / "cache"


@pytest.fixture(scope="session")
def evaluated(slices, inception, vgg16, tmp_path_factory) -> tuple[dict[str, float], Path]:
    """Metrics of all kinds of the slices, KID's by subsets of 20, and the cache folder that this has left."""
    cache = tmp_path_factory.mktemp("evaluated") / "cache"
    with small_detectors(cache) as patch:
        patch.setattr("metrics.scores.KID_SUBSET_SIZE", 20)
        patch.setattr("metrics.evaluator.MIN_CACHED_IMAGES", 20)
        return evaluating.evaluate(evaluating.ALL, *slices, [inception, vgg16]), cache


@pytest.fixture
def few_dimensions(monkeypatch):
    """FID by 256 of the 2048 features, where its value does not matter: eigenvalues of all of them take seconds."""

    def distance(*sides: dict[str, torch.Tensor]) -> float:
        return frechet_distance(*({"mean": s["mean"][:256], "covariance": s["covariance"][:256, :256]} for s in sides))

    monkeypatch.setattr("metrics.evaluator.frechet_distance", distance)
    monkeypatch.setattr("metrics.evaluator.extrapolated_distance", lambda real, fake, seed: -1.0)


def run_command(*arguments, capsys, monkeypatch) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["metrics", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        run(main)
    captured = capsys.readouterr()
    return stopped.value.code or 0, captured.out, captured.err


@pytest.fixture
def command(capsys, monkeypatch):
    return partial(run_command, capsys=capsys, monkeypatch=monkeypatch)
