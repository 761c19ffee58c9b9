"""Detectors with random weights, and small ones: the published weights would need a download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torchvision
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16
from torchvision.models.vgg import VGG, cfgs, make_layers

from media.faces import faces

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
