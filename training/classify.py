"""Training an encoder of one's own: a Classifier learns to tell the classes of a data set apart, and is folded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from networks.vgg import Classifier
from torch_utils import distributed
from training.checkpoint import kimg_name, look_path
from training.config import ClassifierConfig
from training.dataset import ImageDataset, endless_batches
from training.descent import Descent
from training.encoder import save_encoder
from training.images import save_png, to_float
from training.log import Averages, Log

Batch = list[tuple[Tensor, Tensor]]  # uint8 pictures and their one-hot classes, in parts of `batch_gpu`
LOOKED_AT = 5000  # pictures of --data that are looked at without --test
CELLS = 256  # rows of the picture of a confusion matrix; with more classes, several share one


class Classification:
    """A classifier, whose encoder is what it is trained for. A `training.loop.Task`."""

    script, look_name = "train_encoder.py", "confusion"
    remedy = "try a smaller --lr, or --precision fp32"

    def __init__(self, config: ClassifierConfig, device: torch.device, fresh: bool = True):
        self.config, self.device, self.averages = config, device, Averages()
        self.dataset = ImageDataset(config.data, use_labels=True)
        self.classifier = Classifier(config.width, self.dataset.c_dim).to(device)
        self.modules = {"classifier": self.classifier}
        self.descent = Descent(sgd(self.classifier, config), scaling=config.precision == "fp16")
        self.optimizers = {"descent": self.descent}
        self.parts = config.batch // distributed.world_size() // config.batch_gpu
        self.steps = math.ceil(round(config.kimg * 1000, 6) / config.batch)
        self.compiled = torch.compile(self.classifier) if config.compile else self.classifier
        norms = [module for module in self.classifier.modules() if isinstance(module, nn.BatchNorm2d)]
        self.statistics = [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var)]
        self.accuracy: dict[float, float] = {}  # that was measured last, by kimg

    def batches(self, step: int) -> Iterator[Batch]:
        """What the steps take from that one on, without end."""
        for images, labels in endless_batches(self.config, self.dataset, step, self.device):
            yield list(zip(images.split(self.config.batch_gpu), labels.split(self.config.batch_gpu), strict=True))

    def step(self, batch: Batch, step: int) -> None:
        """One step down the mean of the losses over the parts of a batch."""
        for group in self.descent.optimizer.param_groups:
            group["lr"] = one_cycle(step, self.steps, self.config.lr)

        def losses() -> Iterator[Tensor]:
            for images, labels in batch:
                loss, right = classification_loss(self.compiled, images, labels, self.config)
                self.averages.add(**{"loss/cross_entropy": loss, "accuracy/train": 100 * right})
                yield loss

        before = joined(self.statistics)
        self.descent.step(losses(), self.parts)
        settle(self.statistics, before)

    def figures(self) -> dict[str, float]:
        """Of a tick, beside the averages."""
        return {"lr": self.descent.optimizer.param_groups[0]["lr"]}

    def save(self, path: Path, kimg: float) -> None:
        """Writes the folded encoder, with the accuracy where it is known already. Raises DiskFull."""
        info = {"kimg": kimg, "data": self.dataset.name, "classes": self.dataset.c_dim}
        if kimg in self.accuracy:
            info["accuracy"] = self.accuracy[kimg]
        save_encoder(path, self.classifier.fold(), info)

    def measure(self) -> dict[str, Any]:
        """Nothing that takes all processes: the monitor works out the figures."""
        return {}

    def monitor(self, run: Path, log: Log) -> Monitor:
        return Monitor(self, run, log)


class Monitor:
    """Looks at the classifier from outside: how many pictures it is right about, and what it takes for what.

    The pictures are those of --test; without, some of --data, and the accuracy is of what was trained with.
    """

    def __init__(self, task: Classification, run: Path, log: Log):
        self.task, self.run, self.log = task, run, log
        self.test = task.config.test is not None
        self.dataset = ImageDataset(task.config.test or task.config.data, use_labels=True)
        self.labels, self.looked_at = self.dataset.labels, self.dataset
        if not self.test:
            chosen = np.random.default_rng(task.config.seed).permutation(len(self.dataset))[:LOOKED_AT]
            self.labels, self.looked_at = self.labels[chosen], Subset(self.dataset, chosen.tolist())

    def begin(self) -> None:
        pass

    def look(self, kimg: float, metrics: Mapping[str, Any]) -> None:
        """Writes the accuracy in percent, into the snapshot as well, and a confusion matrix. Raises DiskFull."""
        task = self.task
        predicted = predictions(task.classifier, self.looked_at, task.config)
        accuracy = 100 * float((predicted == self.labels).double().mean())
        name = "accuracy" if self.test else "accuracy/data"
        self.log.metrics({"kimg": kimg, name: accuracy, "pictures": len(self.labels)})
        snapshot = self.run / f"snapshot-{kimg_name(kimg)}.safetensors"
        if self.test and snapshot.exists():
            task.accuracy = {kimg: accuracy}
            task.save(snapshot, kimg)
        picture = confusion_picture(self.labels, predicted, task.dataset.c_dim)
        self.log.image(task.look_name, picture, kimg)
        save_png(picture, look_path(self.run, task.look_name, kimg))


# --- one step -------------------------------------------------------------------------------------------------------


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


def sgd(model: nn.Module, config: ClassifierConfig) -> torch.optim.SGD:
    """SGD that decays the weights of convolutions and of the head; not biases, nor the normalizations' gains."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True, fused=True)


def classification_loss(
    model: nn.Module, images: Tensor, labels: Tensor, config: ClassifierConfig
) -> tuple[Tensor, Tensor]:
    """uint8 [N, C, H, W] with one-hot labels [N, classes] → cross entropy of augmented pictures, labels smoothed.

    The second is the part of the pictures whose class gets the highest logit.
    """
    x = to_float(augment(images, config.shift, config.mirror))
    with half_precision(x.device, config.precision):
        logits = model(x)
    right = (logits.argmax(dim=1) == labels.argmax(dim=1)).float().mean()
    return F.cross_entropy(logits.float(), labels, label_smoothing=config.smoothing), right


def half_precision(device: torch.device, precision: str) -> AbstractContextManager:
    """Convolutions and products in float16 or bfloat16, or in float32 as they are."""
    kind = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, kind, enabled=precision != "fp32")


def joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def settle(statistics: list[Tensor], before: Tensor) -> None:
    """Gives all processes the mean of their statistics; where that is not finite, those of before the step."""
    after = distributed.mean(joined(statistics))
    kept = torch.where(after.isfinite().all(), after, before)
    for tensor, part in zip(statistics, kept.split([tensor.numel() for tensor in statistics]), strict=True):
        tensor.copy_(part.view_as(tensor))


# --- looks ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def predictions(model: Classifier, dataset: Dataset, config: ClassifierConfig) -> Tensor:
    """int64 [len(dataset)]: the class of each picture that gets the highest logit, with the model in eval mode."""
    training, device = model.training, model.head.weight.device
    model.eval()
    found = []
    for images, _ in DataLoader(
        dataset, batch_size=config.batch_gpu, generator=torch.Generator()
    ):  # no number of training's
        with half_precision(device, config.precision):
            found.append(model(to_float(images.to(device))).argmax(dim=1).cpu())
    model.train(training)
    return torch.cat(found)


def confusion_picture(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Class numbers, twice [N] → uint8 [1, S, S]: a row for each class, a column for each that it was taken for.

    The darker, the larger that part of the row; by its root, so that small ones show.
    """
    cells = min(classes, CELLS)
    place = (labels * cells // classes) * cells + predicted * cells // classes
    counts = torch.bincount(place, minlength=cells**2).view(cells, cells).float()
    parts = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    side = max(CELLS // cells, 1)
    large = parts.sqrt().repeat_interleave(side, 0).repeat_interleave(side, 1)
    return (255 - 255 * large).round().to(torch.uint8)[None]
