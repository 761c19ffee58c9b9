"""Training an encoder of one's own: a Classifier learns to tell the classes of a data set apart, and is folded.

The pieces that a training loop calls; pictures come as a data set gives them, uint8 with one-hot labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from networks.vgg import Classifier
from training.config import RunConfig
from training.images import to_float


@dataclass(kw_only=True)
class ClassifierConfig(RunConfig):
    """What a classifier's training depends on, beside."""

    test: str | None = None  # a data set of pictures not trained with, for the accuracy
    width: float = 0.5  # of VGG-19's channels
    batch: int = 128
    batch_gpu: int = 128
    kimg: float = 400.0
    lr: float = 0.2  # at its peak
    momentum: float = 0.9  # Nesterov's
    weight_decay: float = 5e-4
    smoothing: float = 0.1  # the part of each label that is spread over all classes
    shift: float = 1 / 8  # the largest random shift, as a part of the side
    mirror: bool = True  # flip half of the pictures left-right


def fastest_precision(device: torch.device) -> str:
    """bf16 where the device computes with it, as CPUs with AVX512-BF16 or AMX do; else fp32."""
    if device.type == "cuda":
        half = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of PyTorch do not tell
        half = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bf16" if half else "fp32"


def augment(images: Tensor, shift: float = 1 / 8, mirror: bool = True) -> Tensor:
    """Pictures [N, C, H, W] of any dtype, each shifted by up to that part of its side and flipped with probability 1/2.

    What is shifted in is a reflection. Pixels stay what they are; the result is in channels-last memory.
    """
    N, _, H, W = images.shape
    device = images.device
    rows = _reflected(torch.arange(H, device=device) + _shifts(N, int(H * shift), device), H)
    columns = _reflected(torch.arange(W, device=device) + _shifts(N, int(W * shift), device), W)
    if mirror:
        flipped = torch.rand(N, 1, device=device) < 0.5
        columns = torch.where(flipped, W - 1 - columns, columns)
    n = torch.arange(N, device=device)
    picked = images[n[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # [N, H, W, C]
    return picked.permute(0, 3, 1, 2)


def _shifts(count: int, most: int, device: torch.device) -> Tensor:
    return torch.randint(-most, most + 1, (count, 1), device=device)


def _reflected(index: Tensor, size: int) -> Tensor:
    """Indices from 1 − size to 2 · size − 2, reflected into 0..size − 1; the border pixel is not repeated."""
    return (size - 1) - ((size - 1) - index.abs()).abs()


def one_cycle(step: int, steps: int, peak: float, warmup: float = 0.2) -> float:
    """The learning rate of step 0..steps − 1: up in a line for the part `warmup`, then down in a line, to 0 at `steps`.

    Smith and Topin 2018, "Super-Convergence".
    """
    rise = max(math.ceil(steps * warmup), 1)
    return peak * min((step + 1) / rise, (steps - step) / (steps - rise + 1))


def make_optimizer(model: nn.Module, config: ClassifierConfig) -> torch.optim.SGD:
    """SGD that decays the weights of convolutions and of the head; not biases, nor the normalizations' gains."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True)


def classification_loss(model: nn.Module, images: Tensor, labels: Tensor, config: ClassifierConfig) -> Tensor:
    """uint8 [N, C, H, W] with one-hot labels [N, classes] → cross entropy of augmented pictures, labels smoothed."""
    x = to_float(augment(images, config.shift, config.mirror))
    with torch.autocast(x.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        logits = model(x)
    return F.cross_entropy(logits.float(), labels, label_smoothing=config.smoothing)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    lr: float,
    config: ClassifierConfig,
) -> Tensor:
    """One step of the classifier's training at that learning rate. Returns the loss."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    loss = classification_loss(model, images, labels, config)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def accuracy(model: Classifier, dataset: Dataset, batch: int = 500) -> float:
    """The part of a data set's pictures whose class gets the highest logit, with the model in eval mode."""
    training, device = model.training, model.head.weight.device
    model.eval()
    right = 0
    for images, labels in DataLoader(dataset, batch_size=batch):
        logits = model(to_float(images.to(device)))
        right += int((logits.argmax(dim=1) == labels.to(device).argmax(dim=1)).sum())
    model.train(training)
    return right / len(dataset)
