"""Training an encoder of one's own: a Classifier learns to tell the classes of a data set apart, and is folded."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from media.dataset import ImageDataset
from media.images import to_float
from media.loader import endless_batches
from models.encoder import save_encoder
from models.snapshot import kimg_name
from networks.vgg import Classifier
from torch_utils import distributed
from torch_utils.errors import print_notes
from torch_utils.precision import autocast
from training.augment import reflect
from training.config import ClassifierConfig
from training.log import Averages, Log
from training.optimizer import GuardedOptimizer

Batch = list[tuple[Tensor, Tensor]]  # microbatches of uint8 images and their one-hot classes
EVALUATED = 5000  # images of --data that are classified at an evaluation where there is no --test
CELLS = 256  # rows of the image of a confusion matrix; with more classes, several share one


class ClassifierTrainer:
    """A classifier, which is trained for the encoder in it. A `training.loop.Trainer`."""

    script, sheet_name = "train_encoder.py", "confusion"
    use: tuple[str, ...] = ("train_stylizer.py", "--content", "photos/", "--style", "paintings/", "--encoder-weights")
    hint = "try a smaller --lr, or --precision fp32"

    @staticmethod
    def fingerprint(config: ClassifierConfig) -> str:
        return ImageDataset(config.data, use_labels=True).fingerprint

    def __init__(self, config: ClassifierConfig, device: torch.device, fresh: bool = True):
        self.config, self.device, self.averages = config, device, Averages()
        self.dataset = ImageDataset(config.data, use_labels=True)
        self.classifier = Classifier(config.width, self.dataset.c_dim).to(device)
        self.modules: dict[str, nn.Module] = {"classifier": self.classifier}
        self.optimizer = GuardedOptimizer(sgd(self.classifier, config), scaling=config.precision == "fp16")
        self.optimizers = {"optimizer": self.optimizer}
        self.steps = math.ceil(round(config.kimg * 1000, 6) / config.batch)
        self.compiled = torch.compile(self.classifier) if config.compile else self.classifier
        statistics = ("running_mean", "running_var")  # of the batch normalizations
        self.norm_statistics = [b for name, b in self.classifier.named_buffers() if name.endswith(statistics)]
        self.accuracy: dict[float, float] = {}  # of the last evaluation, by its kimg
        if distributed.rank() == 0:
            print_notes(self.dataset.notes)

    def batches(self, step: int) -> Generator[Batch]:
        """The batches from `step` on, without end: this process's share of each, in microbatches."""
        config = self.config
        for images, labels in endless_batches(
            self.dataset,
            batch=config.batch,
            step=step,
            seed=config.seed,
            workers=config.workers,
            device=self.device,
        ):
            yield list(zip(images.split(config.batch_gpu), labels.split(config.batch_gpu), strict=True))

    def side(self, step: int) -> int | None:
        """What a step reduces its images to; None where they stay as they are."""
        sizes = self.config.sizes
        return sizes[min(step * len(sizes) // self.steps, len(sizes) - 1)] if sizes else None

    def train_step(self, batch: Batch, step: int) -> None:
        """One step down the mean of the losses of the microbatches."""
        for group in self.optimizer.optimizer.param_groups:
            group["lr"] = one_cycle(step, self.steps, self.config.lr)
        before = joined(self.norm_statistics)
        self.optimizer.zero_grad()
        for images, labels in batch:
            loss, correct = classification_loss(self.compiled, images, labels, self.config, self.side(step))
            self.optimizer.backward(loss, len(batch))
            self.averages.add({"loss/cross_entropy": loss, "accuracy/train": 100 * correct})
        self.optimizer.step()
        share_statistics(self.norm_statistics, before)

    def statistics(self) -> dict[str, float]:
        """Numbers of a tick beside the averages."""
        return {"lr": self.optimizer.optimizer.param_groups[0]["lr"]}

    def save(self, path: Path, kimg: float) -> None:
        """Writes the folded encoder, with its accuracy where that is known already. Raises DiskFull."""
        info = {"kimg": kimg, "data": self.dataset.name, "classes": self.dataset.c_dim}
        info["resolution"] = self.dataset.resolution  # which metrics resize images to
        if kimg in self.accuracy:
            info["accuracy"] = self.accuracy[kimg]
        save_encoder(path, self.classifier.fold(), info)

    def evaluate(self, kimg: float, log: Log) -> None:
        """Writes the accuracy in percent, into the snapshot as well, and a confusion matrix. Raises DiskFull."""
        if not log.writes:
            return
        images, labels = self.evaluated
        predicted = predictions(self.classifier, images, self.config)
        accuracy = 100 * float((predicted == labels).double().mean())
        name = "accuracy" if self.config.test else "accuracy/data"
        log.metrics({"kimg": kimg, name: accuracy, "images": len(labels)})
        snapshot = log.run / f"snapshot-{kimg_name(kimg)}.safetensors"
        if self.config.test and snapshot.exists():
            self.accuracy = {kimg: accuracy}
            self.save(snapshot, kimg)
        log.sheet(self.sheet_name, confusion_image(labels, predicted, self.dataset.c_dim), kimg)

    @cached_property
    def evaluated(self) -> tuple[Dataset, Tensor]:
        """The images that are classified, and their classes: those of --test, or else some of --data."""
        dataset = ImageDataset(self.config.test or self.config.data, use_labels=True)
        if self.config.test:
            return dataset, dataset.required_labels
        chosen = dataset.choose(EVALUATED, self.config.seed)
        return Subset(dataset, chosen), dataset.required_labels[chosen]


# --- one step -------------------------------------------------------------------------------------------------------


def augment(images: Tensor, shift: float = 1 / 8, mirror: bool = True) -> Tensor:
    """Images [N, C, H, W] of any dtype, each shifted by up to that part of its side and flipped with probability 1/2.

    What is shifted in is a reflection. Pixels stay what they are; the result is in channels-last memory.
    """
    N, _, H, W = images.shape
    device = images.device
    rows = reflect(torch.arange(H, device=device) + _shifts(N, int(H * shift), device), H)
    columns = reflect(torch.arange(W, device=device) + _shifts(N, int(W * shift), device), W)
    if mirror:
        flipped = torch.rand(N, 1, device=device) < 0.5
        columns = torch.where(flipped, W - 1 - columns, columns)
    n = torch.arange(N, device=device)
    picked = images[n[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # [N, H, W, C]
    return picked.permute(0, 3, 1, 2)


def _shifts(count: int, most: int, device: torch.device) -> Tensor:
    return torch.randint(-most, most + 1, (count, 1), device=device)


def random_crops(images: Tensor, smallest: float) -> Tensor:
    """Crops of float images [N, C, H, W], with at least the fraction `smallest` of their area, enlarged to H × W.

    Szegedy et al. 2015, "Going Deeper with Convolutions", section 6: the area is uniform, and the logarithm of the
    ratio of the sides between 3/4 and 4/3, as far as the crop lies inside.
    """
    N, device = len(images), images.device
    area = smallest + (1 - smallest) * torch.rand(N, device=device)
    ratio = torch.exp((2 * torch.rand(N, device=device) - 1) * math.log(4 / 3)).clamp(area, 1 / area)
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    zero = torch.zeros_like(area)
    x, y = ((2 * torch.rand(N, device=device) - 1) * (1 - side) for side in (width, height))  # of the crop's centre
    rows = torch.stack([width, zero, x, zero, height, y], dim=1).view(N, 2, 3)
    where = F.affine_grid(rows, list(images.shape), align_corners=False)
    return F.grid_sample(images, where, padding_mode="border", align_corners=False)


def cutmix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """CutMix (Yun et al. 2019): a rectangle of each image comes from the next one, and the label by its area.

    Images [N, C, H, W] and labels [N, classes]; the rectangle, of a uniform area, is the same in the whole batch.
    """
    H, W = images.shape[2:]
    side = float(torch.rand([]).sqrt())
    height, width = round(H * side), round(W * side)
    top, left = int(torch.randint(H - height + 1, [])), int(torch.randint(W - width + 1, []))
    rows, columns = slice(top, top + height), slice(left, left + width)
    mixed = images.clone()
    mixed[:, :, rows, columns] = images.roll(1, dims=0)[:, :, rows, columns]
    return mixed, labels.lerp(labels.roll(1, dims=0), height * width / (H * W))


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
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    config: ClassifierConfig,
    side: int | None = None,
) -> tuple[Tensor, Tensor]:
    """uint8 [N, C, H, W] with one-hot labels [N, classes] → cross entropy of augmented images, labels smoothed.

    Crops that are reduced to a smaller `side` show things at the size at which whole images show them (Touvron et al.
    2019, "Fixing the train-test resolution discrepancy"), and cost less.
    The second is the fraction of the images whose class gets the highest logit; mixed images count as the class of
    which they have more.
    """
    x = to_float(augment(images, config.shift, config.mirror))
    if config.crop < 1:
        x = random_crops(x, config.crop)
    if side and side < x.shape[2]:
        x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    if config.cutmix and float(torch.rand([])) < config.cutmix:
        x, labels = cutmix(x, labels)
    with autocast(x.device, config.precision):
        logits = model(x)
    right = (logits.argmax(dim=1) == labels.argmax(dim=1)).float().mean()
    return F.cross_entropy(logits.float(), labels, label_smoothing=config.smoothing), right


def joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def share_statistics(statistics: list[Tensor], before: Tensor) -> None:
    """Gives all processes the mean of their batch-norm statistics; where it is not finite, those before the step."""
    after = distributed.mean(joined(statistics))
    kept = torch.where(after.isfinite().all(), after, before)
    for tensor, part in zip(statistics, kept.split([tensor.numel() for tensor in statistics]), strict=True):
        tensor.copy_(part.view_as(tensor))


# --- evaluation -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def predictions(model: Classifier, dataset: Dataset, config: ClassifierConfig) -> Tensor:
    """int64 [len(dataset)]: the class of each image that gets the highest logit, with the model in eval mode."""
    training, device = model.training, model.head.weight.device
    model.eval()
    found = []
    own_numbers = torch.Generator()  # so that the loader takes no random number from training
    for images, _ in DataLoader(dataset, batch_size=config.batch_gpu, generator=own_numbers):
        with autocast(device, config.precision):
            found.append(model(to_float(images.to(device))).argmax(dim=1).cpu())
    model.train(training)
    return torch.cat(found)


def confusion_image(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
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
