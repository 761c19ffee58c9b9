"""Detectors: the networks whose features metrics compare, with weights that are checked and never executed.

Others' are torch-fidelity's Inception-v3 and VGG-16. It would unpickle a file of weights: here such a file is read as
nothing but tensors, its SHA-256 is compared, and torch-fidelity is given the tensors. Our own are the encoders that
train_encoder.py makes, see encoders.py.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from metrics import encoders
from metrics.encoders import EncoderWeights
from metrics.lpips import LPIPS
from torch_utils.download import download, file_sha256, read_tensors
from torch_utils.errors import UserError, one_line

OPTION = "--detector-weights"


@dataclass(frozen=True)
class Detector:
    """A network that turns images into features. One of the encoders is known by its name alone."""

    name: str


@dataclass(frozen=True)
class PublishedDetector(Detector):
    """A network that others have trained and published."""

    url: str
    sha256: str  # the beginning of the published file's
    tensor: str  # that its weights have, and those of no other detector


INCEPTION = PublishedDetector(
    "inception-v3-2015-12-05",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d",
    "Mixed_7c.branch_pool.conv.weight",
)
VGG16 = PublishedDetector(
    "vgg16", "https://download.pytorch.org/models/vgg16-397923af.pth", "397923af", "classifier.3.weight"
)


@dataclass(frozen=True)
class Layer:
    """One output of a detector: a feature vector for each image."""

    detector: Detector
    name: str  # as torch-fidelity calls it; of an encoder, encoders.LAYER

    def __str__(self) -> str:
        return f"{self.detector.name}/{self.name}"


@dataclass(frozen=True)
class PublishedWeights:
    """The tensors of a published detector, and the SHA-256 of the file that they come from."""

    tensors: dict[str, Tensor]
    sha256: str


DetectorWeights = PublishedWeights | EncoderWeights


# --- weights --------------------------------------------------------------------------------------------------------


def find_weights(wanted: Sequence[Detector], files: Sequence[str | Path]) -> dict[Detector, DetectorWeights | str]:
    """The weights of those detectors, or one line that says why they cannot be had.

    `files` are those of --detector-weights, which replace downloads.
    """
    found: dict[Detector, DetectorWeights | str] = {}
    given: dict[PublishedDetector, PublishedWeights] = {}
    problem = ""
    if any(isinstance(detector, PublishedDetector) for detector in wanted):
        try:
            check_installed()
            given = given_weights(files)
        except UserError as error:
            problem = error.message
    for detector in wanted:
        try:
            if not isinstance(detector, PublishedDetector):
                found[detector] = encoders.read_encoder(detector.name)
            else:
                found[detector] = problem or given.get(detector) or published_weights(detector)
        except UserError as error:
            found[detector] = error.message
    return found


def check_installed() -> None:
    """Raises UserError where torch-fidelity is not installed."""
    try:
        import torch_fidelity  # noqa: F401
    except ImportError as error:
        raise UserError(f"torch-fidelity is missing ({error}); pip install 'torch-fidelity>=0.4'") from None


def given_weights(paths: Iterable[str | Path]) -> dict[PublishedDetector, PublishedWeights]:
    """The weights in the files of --detector-weights. Raises UserError for a file that holds no detector's."""
    found = {}
    for path in paths:
        weights = _read(Path(path))
        match [detector for detector in (INCEPTION, VGG16) if detector.tensor in weights.tensors]:
            case [detector]:
                found[detector] = weights
            case _:
                raise UserError(
                    f"{path} holds the weights of none of the detectors; {OPTION} takes {_file_name(INCEPTION)} or "
                    f"{_file_name(VGG16)}, or their tensors as .safetensors"
                )
    return found


def published_weights(detector: PublishedDetector) -> PublishedWeights:
    """The published weights, downloaded into the cache folder if they are not there yet. Raises UserError."""
    path = download(detector.url, detector.sha256, OPTION)
    weights = _read(path)
    if not is_published(detector, weights):
        raise UserError(
            f"{path} is not what {detector.url} was (its SHA-256 begins with {weights.sha256[:8]}); "
            "remove it, so that it is downloaded again"
        )
    return weights


def is_published(detector: Detector, weights: DetectorWeights) -> bool:
    """Whether the weights are those that were published; encoders of our own have no others."""
    return not isinstance(detector, PublishedDetector) or weights.sha256.startswith(detector.sha256)


def _read(path: Path) -> PublishedWeights:
    try:
        return PublishedWeights(read_tensors(path), file_sha256(path))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a detector's weights ({error}); name another with {OPTION}"
        ) from None


def _file_name(detector: PublishedDetector) -> str:
    return detector.url.rpartition("/")[2]


# --- networks -------------------------------------------------------------------------------------------------------


def load_detector(
    detector: Detector, weights: DetectorWeights, layers: Sequence[str], device: torch.device | str
) -> nn.Module:
    """A module from images uint8 [N, 3, H, W] to a tuple of the layers' features [N, D], in the order of `layers`.

    Raises UserError for weights that do not fit.
    """
    if isinstance(weights, EncoderWeights):
        return encoders.EncoderFeatures(weights).to(device)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

    kind = FeatureExtractorInceptionV3 if detector == INCEPTION else FeatureExtractorVGG16
    file = io.BytesIO()  # torch-fidelity reads it where it expects the path of a file
    torch.save(weights.tensors, file)
    file.seek(0)
    with _weights_fit(detector):
        network = kind(detector.name, list(layers), feature_extractor_weights_path=file)
    # the order in memory that convolutions read fastest
    return network.to(device, memory_format=torch.channels_last)


def load_lpips(weights: PublishedWeights, device: torch.device | str) -> LPIPS:
    """LPIPS with VGG-16's weights. Raises UserError for weights that do not fit."""
    import torchvision

    with torch.device("meta"):
        vgg = torchvision.models.vgg16()
    with _weights_fit(VGG16):
        vgg.load_state_dict(weights.tensors, assign=True)
    return LPIPS(vgg.features).to(device).to(memory_format=torch.channels_last)


@contextmanager
def _weights_fit(detector: Detector) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = one_line(error, 200)
        raise UserError(
            f"the weights do not fit {detector.name} ({reason}); name others with {OPTION}, or none"
        ) from None


def rgb(images: Tensor) -> Tensor:
    """[N, 1 or 3, H, W] → [N, 3, H, W]."""
    return images.expand(-1, 3, -1, -1)


@contextmanager
def no_tf32() -> Iterator[None]:
    """GPUs multiply in full float32, also where the training allows TF32, whose factors have 10 bits."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
