"""torch-fidelity's feature extractors, of tensors instead of files.

It would unpickle Inception-v3 and VGG-16, execute a TorchScript program for CLIP, and a program from the internet for
DINOv2. This module needs torch-fidelity; detectors.py imports it where one of its detectors is used.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP, build_model
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

from metrics.dinov2 import load_dinov2
from metrics.names import CLEAN


def as_file(tensors: Mapping[str, Tensor]) -> io.BytesIO:
    """What torch-fidelity reads where it expects the path of a file."""
    file = io.BytesIO()
    torch.save(dict(tensors), file)
    file.seek(0)
    return file


class Inception(FeatureExtractorInceptionV3):
    """Inception-v3 of 2015-12-05, with one more layer than torch-fidelity's: CLEAN."""

    dimensions = 2048

    def __init__(self, name: str, layers: Sequence[str], tensors: Mapping[str, Tensor]):
        self.wanted = list(layers)
        published = [layer for layer in layers if layer != CLEAN]
        super().__init__(name, published or ["2048"], feature_extractor_weights_path=as_file(tensors))
        self.published = published

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = dict(zip(self.published, super().forward(images) if self.published else (), strict=True))
        if CLEAN in self.wanted:
            found[CLEAN] = self.pool3(resize_clean(images, self.INPUT_IMAGE_SIZE))
        return tuple(found[layer] for layer in self.wanted)

    def pool3(self, x: Tensor) -> Tensor:
        """The features [N, 2048] of images float [N, 3, 299, 299] in 0..255."""
        x = (x - 128) / 128
        for name, module in self.named_children():  # in their order
            if name != "fc":
                x = module(x)
        return x.flatten(1)


def resize_clean(images: Tensor, size: int) -> Tensor:
    """Images uint8 [N, 3, H, W] → float in 0..255 [N, 3, size, size] by PIL's bicubic filter, which is antialiased.

    Parmar, Zhang, Zhu: "On Aliased Resizing and Surprising Subtleties in GAN Evaluation", CVPR 2022, section 3. Nothing
    is rounded to 8 bits.
    """
    return F.interpolate(images.float(), [size, size], mode="bicubic", antialias=True).clamp(0, 255)


class VGG16(FeatureExtractorVGG16):
    """VGG-16 up to its second linear layer."""

    def __init__(self, name: str, layers: Sequence[str], tensors: Mapping[str, Tensor]):
        super().__init__(name, list(layers), feature_extractor_weights_path=as_file(tensors))
        self.dimensions = self.model.classifier[3].out_features


class DinoV2(FeatureExtractorDinoV2):
    """The class token of DINOv2, of images that are resized to 224² as TensorFlow does."""

    def __init__(self, name: str, layers: Sequence[str], tensors: Mapping[str, Tensor]):
        FeatureExtractorBase.__init__(self, name, list(layers))
        self.feature_extractor_internal_dtype = torch.float32
        self.model = load_dinov2(tensors)
        self.dimensions = self.model.cls_token.shape[2]


class CLIP(FeatureExtractorCLIP):
    """The image embedding of CLIP, of images that are resized to its resolution as TensorFlow does."""

    def __init__(self, name: str, layers: Sequence[str], tensors: Mapping[str, Tensor]):
        FeatureExtractorBase.__init__(self, name, list(layers))
        self.feature_extractor_internal_dtype = torch.float32
        self.model = build_model(dict(tensors), torch.float32).eval().requires_grad_(False)
        self.resolution = self.model.visual.input_resolution
        self.dimensions = self.model.visual.output_dim


def make_extractor(family: str, name: str, layers: Sequence[str], tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module from images uint8 [N, 3, H, W] to a tuple of the layers' features. Of the families in detectors.py."""
    kinds: dict[str, Callable[..., nn.Module]] = {
        "inception": Inception,
        "vgg16": VGG16,
        "dinov2": DinoV2,
        "clip": CLIP,
    }
    return kinds[family](name, layers, tensors)
