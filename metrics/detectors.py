"""Detectors: the networks whose features metrics compare, with weights that are checked and never executed.

Others' are torch-fidelity's Inception-v3, VGG-16, DINOv2 and CLIP. It would unpickle or execute a file of weights: here
such a file is read as nothing but tensors, its SHA-256 is compared, and torch-fidelity is given the tensors
(extractors.py). Our own are the encoders that train_encoder.py makes, see encoders.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from metrics import encoders
from metrics.encoders import EncoderWeights
from metrics.lpips import LPIPS
from models.inert_torchscript import is_torchscript, read_torchscript
from torch_utils.download import download, file_sha256, read_tensors
from torch_utils.errors import UserError, one_line
from torch_utils.tensors import is_finite

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
    family: str  # of extractors.make_extractor
    layer: str  # whose features are compared unless a metric is defined by another, as torch-fidelity calls it
    tensor: str  # that the weights of its family have, and those of no other
    shape: tuple[int, ...] | None = None  # of that tensor, by which the sizes of a family are told apart

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]

    def fits(self, tensors: dict[str, Tensor]) -> bool:
        """Whether those are the weights of this detector, by the one tensor that tells."""
        found = tensors.get(self.tensor)
        return found is not None and self.shape in (None, tuple(getattr(found, "shape", ())))


INCEPTION = PublishedDetector(
    "inception-v3-2015-12-05",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d",
    "inception",
    "2048",
    "Mixed_7c.branch_pool.conv.weight",
)
VGG16 = PublishedDetector(
    "vgg16",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af",
    "vgg16",
    "fc2_relu",
    "classifier.3.weight",
)


def dinov2(size: str, sha256: str, width: int) -> PublishedDetector:
    """DINOv2 of a size (s, b, l); its features have `width` numbers."""
    url = f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vit{size}14/dinov2_vit{size}14_pretrain.pth"
    return PublishedDetector(f"dinov2-vit-{size}-14", url, sha256, "dinov2", "dinov2", "cls_token", (1, 1, width))


def clip(model: str, sha256: str, tokens: int, width: int) -> PublishedDetector:
    """CLIP's image encoder, by the name of OpenAI's file; it cuts an image into `tokens` − 1 patches."""
    name, url = f"clip-{model.lower()}", f"https://openaipublic.azureedge.net/clip/models/{sha256}/{model}.pt"
    return PublishedDetector(name, url, sha256, "clip", "clip", "visual.positional_embedding", (tokens, width))


PUBLISHED = {  # by the names that metrics and options have for them, which are torch-fidelity's
    "inception": INCEPTION,
    **{
        detector.name: detector
        for detector in (
            VGG16,
            dinov2("s", "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9", 384),
            dinov2("b", "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73", 768),
            dinov2("l", "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428", 1024),
            clip("ViT-B-32", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", 50, 768),
            clip("ViT-B-16", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", 197, 768),
            clip("ViT-L-14", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", 257, 1024),
            clip("ViT-L-14-336px", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", 577, 1024),
        )
    },
}


def find_detector(name: str) -> Detector:
    """The detector that a metric names after its @, or --detector: one of PUBLISHED, or an encoder.

    Raises UserError where there is no such encoder.
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    encoders.find_encoder(name)
    return Detector(name)


@dataclass(frozen=True)
class Layer:
    """One output of a detector: a feature vector for each image."""

    detector: Detector
    name: str  # as torch-fidelity calls it, or names.CLEAN; of an encoder, encoders.LAYER

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
        match [detector for detector in PUBLISHED.values() if detector.fits(weights.tensors)]:
            case [detector]:
                found[detector] = weights
            case _:
                raise UserError(
                    f"{path} holds the weights of none of the detectors; {OPTION} takes "
                    f"{', '.join(detector.file_name for detector in PUBLISHED.values())}, or their tensors as "
                    ".safetensors"
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
        tensors = read_torchscript(path) if is_torchscript(path) else read_tensors(path)
        return PublishedWeights(_finite(tensors), file_sha256(path))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a detector's weights ({error}); name another with {OPTION}"
        ) from None


def _finite(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors themselves. Raises ValueError where one is none, or holds numbers that are not finite."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not is_finite(tensor):
            raise ValueError(f"{name[:80]!a} is no tensor of finite numbers")
    return tensors


# --- networks -------------------------------------------------------------------------------------------------------


def load_detector(
    detector: Detector, weights: DetectorWeights, layers: Sequence[str], device: torch.device | str
) -> nn.Module:
    """A module from images uint8 [N, 3, H, W] to a tuple of the layers' features [N, D], in the order of `layers`.

    Raises UserError for weights that do not fit.
    """
    if isinstance(weights, EncoderWeights):
        return encoders.EncoderFeatures(weights).to(device)
    from metrics.extractors import make_extractor

    assert isinstance(detector, PublishedDetector)
    with _weights_fit(detector):
        network = make_extractor(detector.family, detector.name, layers, weights.tensors)
    # the order in memory that convolutions read fastest
    return network.to(device).to(memory_format=torch.channels_last)


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
    except (RuntimeError, AttributeError, TypeError, KeyError, ValueError) as error:
        reason = one_line(error, 200)
        raise UserError(
            f"the weights do not fit {detector.name} ({reason}); name others with {OPTION}, or none"
        ) from None


def rgb(images: Tensor) -> Tensor:
    """[N, 1 or 3, H, W] → [N, 3, H, W]."""
    return images.expand(-1, 3, -1, -1)


@contextmanager
def no_tf32() -> Iterator[None]:
    """GPUs multiply in full float32, and not in TF32, whose factors have 10 bits.

    PyTorch allows that for convolutions unless it is told otherwise, and training with --tf32 for all products.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
