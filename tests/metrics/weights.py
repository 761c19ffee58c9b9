"""Detectors with random weights, and small ones: the published weights would need a download."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch_fidelity.feature_extractor_clip import CLIPVisual
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16
from torchvision.models.vgg import VGG, cfgs, make_layers

from media.faces import faces
from metrics.dinov2 import DINOv2

WIDTH, POSITIONS, EMBEDDING = 384, 37 * 37, 64  # of ViT-S/14 of DINOv2, and CLIP's embedding
FC = 32  # outputs of VGG-16's first two linear layers, which have 4096 and nearly all of its weights


def small_vgg16(**options) -> VGG:
    """torchvision's vgg16 with narrow linear layers."""
    model = VGG(make_layers(cfgs["D"]), init_weights=False)
    model.classifier[0] = torch.nn.Linear(512 * 7 * 7, FC)
    model.classifier[3] = torch.nn.Linear(FC, FC)
    model.classifier[6] = torch.nn.Linear(FC, 10)
    return model


def make_small() -> None:
    """Both detectors resize to smaller images, and VGG-16 has narrow linear layers: in here and in torch-fidelity."""
    FeatureExtractorInceptionV3.INPUT_IMAGE_SIZE = 75
    FeatureExtractorVGG16.INPUT_IMAGE_SIZE = 32
    torchvision.models.vgg16 = small_vgg16


def randomized(model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """The tensors of a model, drawn so that what goes through it keeps its size."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                torch.nn.init.normal_(module.bias, std=0.1, generator=generator)
        elif isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias, std=0.1, generator=generator)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class Unloaded(FeatureExtractorInceptionV3):
    """torch-fidelity's, which would load weights as it is made."""

    def load_state_dict(self, state):
        pass


def calibrated(model: torch.nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Its tensors, with batch normalizations for the statistics of those images, so that features tell them apart."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(images)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def write_inception(path: Path, seed: int = 0, calibrate: bool = True) -> Path:
    torch.save({}, path)
    model = Unloaded("inception", ["2048"], feature_extractor_weights_path=path)
    model.INPUT_IMAGE_SIZE = 75
    tensors = randomized(model, seed)
    if calibrate:
        tensors = calibrated(model, faces_as_tensor(16))
    torch.save(tensors, path)
    return path


def faces_as_tensor(count: int) -> torch.Tensor:
    """Drawn faces uint8 [count, 3, 32, 32]."""
    return torch.stack([torch.from_numpy(np.array(face)).permute(2, 0, 1) for face, _ in faces(count, 32, seed=0)])


def write_vgg16(path: Path, seed: int = 0) -> Path:
    torch.save(randomized(small_vgg16(), seed), path)
    return path


def random_transformer(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """A transformer of random weights, whose features tell images apart."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith(("embed", "embedding", "token")):
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
        elif parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.0 if name.endswith("bias") else 1.0, 0.2, generator=generator)
        else:
            torch.nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5, generator=generator)
    return model


@torch.no_grad()
def write_dinov2(path: Path, seed: int = 0, depth: int = 1) -> Path:
    """ViT-S/14 of the published layout, of fewer blocks."""
    tensors = random_transformer(DINOv2(WIDTH, depth, POSITIONS), seed).state_dict()
    torch.save({**tensors, "mask_token": torch.zeros(1, WIDTH)}, path)
    return path


class Archived(torch.nn.Module):
    """What OpenAI's archives hold beside the image encoder, as far as torch-fidelity looks at it."""

    def __init__(self, visual: torch.nn.Module):
        super().__init__()
        self.visual = visual
        self.text_projection = torch.nn.Parameter(torch.zeros(8, EMBEDDING))
        self.positional_embedding = torch.nn.Parameter(torch.zeros(3, 8))
        self.logit_scale = torch.nn.Parameter(torch.ones([]))
        self.transformer = torch.nn.Linear(8, 8)
        self.register_buffer("vocab_size", torch.tensor(49408))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.visual(x)


@torch.no_grad()
def write_clip(path: Path, seed: int = 0, depth: int = 1) -> Path:
    """ViT-B/32 as the published TorchScript archive, in half precision, of fewer blocks and a shorter embedding."""
    visual = CLIPVisual(EMBEDDING, 224, depth, 768, 32).visual
    archived = Archived(random_transformer(visual, seed)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated
        torch.jit.trace(archived, torch.zeros(1, 3, 224, 224)).half().save(path)
    return path
