"""The networks that judge: torch-fidelity's Inception-v3 and VGG-16, and LPIPS on the latter, of checked weights.

torch-fidelity would execute what a file of weights says. Here such a file is read as nothing but tensors and its
SHA-256 compared, and torch-fidelity is given the tensors.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_utils.download import download, file_sha256, read_tensors
from torch_utils.errors import UserError, one_line

OPTION = "--detector-weights"
LPIPS_WEIGHTS = Path(__file__).with_name("lpips-vgg16.safetensors")  # how LPIPS weighs VGG-16's channels
LPIPS_SIDE = 256  # larger images are reduced to it


@dataclass(frozen=True)
class Detector:
    """A network that others have trained, and where its weights are."""

    name: str
    url: str
    sha256: str  # of the published file: begins with
    tensor: str  # that its weights have, and those of no other


INCEPTION = Detector(
    "inception-v3-2015-12-05",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d",
    "Mixed_7c.branch_pool.conv.weight",
)
VGG16 = Detector("vgg16", "https://download.pytorch.org/models/vgg16-397923af.pth", "397923af", "classifier.3.weight")
LAYERS = {"2048": INCEPTION, "logits_unbiased": INCEPTION, "fc2_relu": VGG16}  # torch-fidelity's names of outputs


@dataclass(frozen=True)
class Weights:
    """A detector's checked tensors and the SHA-256 of the file that they come from."""

    tensors: dict[str, Tensor]
    sha256: str


def check_installed() -> None:
    """Raises UserError where torch-fidelity is not there."""
    try:
        import torch_fidelity  # noqa: F401
    except ImportError as error:
        raise UserError(f"torch-fidelity is missing ({error}); pip install 'torch-fidelity>=0.4'") from None


def given_weights(paths: Iterable[str | Path]) -> dict[Detector, Weights]:
    """What is in the files of --detector-weights. Raises UserError for one that holds none of the detectors."""
    found = {}
    for path in paths:
        weights = _read(Path(path))
        match [detector for detector in (INCEPTION, VGG16) if detector.tensor in weights.tensors]:
            case [detector]:
                found[detector] = weights
            case _:
                raise UserError(
                    f"{path} holds the weights of none of the detectors; {OPTION} takes {_name(INCEPTION)} or "
                    f"{_name(VGG16)}, or their tensors as .safetensors"
                )
    return found


def published_weights(detector: Detector) -> Weights:
    """The published ones, downloaded into the cache folder if need be. Raises UserError."""
    path = download(detector.url, detector.sha256, OPTION)
    weights = _read(path)
    if not is_published(detector, weights):
        raise UserError(
            f"{path} is not what {detector.url} was (its SHA-256 begins with {weights.sha256[:8]}); "
            "remove it, so that it is downloaded again"
        )
    return weights


def is_published(detector: Detector, weights: Weights) -> bool:
    return weights.sha256.startswith(detector.sha256)


def _read(path: Path) -> Weights:
    try:
        return Weights(read_tensors(path), file_sha256(path))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a detector's weights ({error}); name another with {OPTION}"
        ) from None


def _name(detector: Detector) -> str:
    return detector.url.rpartition("/")[2]


# --- the networks ---------------------------------------------------------------------------------------------------


def load_detector(detector: Detector, weights: Weights, layers: Sequence[str], device: torch.device | str) -> nn.Module:
    """Images uint8 [N, 3, H, W] → a tuple of the layers' features [N, D]. Raises UserError for other tensors."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

    kind = FeatureExtractorInceptionV3 if detector is INCEPTION else FeatureExtractorVGG16
    file = io.BytesIO()  # which torch-fidelity reads where it expects the path of a file
    torch.save(weights.tensors, file)
    file.seek(0)
    with _fitting(detector):
        network = kind(detector.name, list(layers), feature_extractor_weights_path=file)
    # the order in memory that convolutions read fastest
    return network.to(device, memory_format=torch.channels_last)


def load_lpips(weights: Weights, device: torch.device | str) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS (Zhang et al., CVPR 2018) with VGG-16: images float [N, 3, H, W] in −1..1, twice → distances [N].

    Images of more than 256² are reduced to it, as StyleGAN does. Raises UserError for other tensors.
    """
    import torchvision
    from torch_fidelity import sample_similarity_lpips as lpips

    with torch.device("meta"):
        vgg = torchvision.models.vgg16()
    with _fitting(VGG16):
        vgg.load_state_dict(weights.tensors, assign=True)
    # torch-fidelity downloads both parts and takes no others
    with (
        mock.patch.object(lpips, "load_state_dict_from_url", lambda *args, **options: read_tensors(LPIPS_WEIGHTS)),
        mock.patch.object(lpips, "torchvision_load_pretrained_vgg16", lambda: vgg),
    ):
        network = lpips.SampleSimilarityLPIPS("lpips-vgg16").to(device, memory_format=torch.channels_last)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        both = [rgb(x) * 127.5 + 127.5 for x in (a, b)]
        if a.shape[2] > LPIPS_SIDE:
            both = [F.avg_pool2d(x, a.shape[2] // LPIPS_SIDE) for x in both]
        return network(*both).flatten()

    return distance


@contextmanager
def _fitting(detector: Detector) -> Iterator[None]:
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
def exact_products() -> Iterator[None]:
    """GPUs do not round the factors of float32 products to 10 bits, whatever the training lets them."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value
