"""The stylizer's training: its losses, what one step is, and how the stylizer is looked at on the way."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.stylizer import Stylizer, StylizerConfig, narrowed, resized
from torch_utils import distributed
from torch_utils.cli import UserError
from torch_utils.ops import moments
from training.checkpoint import load_stylizer, look_path, save_stylizer
from training.config import RunConfig
from training.dataset import endless_batches
from training.descent import Descent, ema_beta, update_ema
from training.encoder import load_encoder
from training.images import grid, save_png, to_float, to_uint8
from training.log import Averages, Log
from training.pictures import NumberedSampler, PictureCrops

IDENTITY_PART = 4  # one in so many contents of a batch is rebuilt in its own style, for the identity loss
NARROWED_BY = 256  # crops of styles, whose main directions remain where --init-from has more style channels
SHOWN = 4  # contents and styles of the sheets, which are also what the losses are measured on
Batch = list[tuple[Tensor, Tensor]]  # contents and styles, in parts of `batch_gpu`


@dataclass(kw_only=True)
class StylizerTrainConfig(RunConfig):
    """What the stylizer's training depends on, beside. `data` are the contents."""

    changeable: ClassVar[set[str]] = RunConfig.changeable | {"style"}

    stylizer: StylizerConfig
    style: str  # folder or ZIP of style pictures
    encoder_weights: str | None = None  # None: torchvision's, of ImageNet
    init_from: str | None = None  # a stylizer to start from
    size: int = 256  # of the content crops
    batch: int = 8
    batch_gpu: int = 8
    kimg: float = 1280.0  # 160,000 steps of 8
    lr: float = 1e-4
    predictor_lr: float = 100.0  # factor: kernel predictors have equalized weights, which are so much larger
    content_weight: float = 1.0
    normalize_content: bool = False  # compare contents without their channels' means and deviations
    style_weight: float = 10.0
    identity_weight: float = 0.0  # of the difference to a content that is its own style
    tv_weight: float = 0.0  # of the total variation
    ema_kimg: float = 1.0  # half-life of the averaged weights
    ema_rampup: float | None = 0.05  # ... but at most this part of what was shown so far

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StylizerTrainConfig:
        return cls(**{**values, "stylizer": StylizerConfig(**values["stylizer"])})


# --- losses ---------------------------------------------------------------------------------------------------------


def content_loss(features: Tensor, content: Tensor, normalize: bool = False) -> Tensor:
    """‖φ₄(y) − φ₄(c)‖²: the mean squared difference at relu4_1, both [N, C, h, w] (Gatys et al. 2016).

    With `normalize`, of features of zero mean and unit variance in each channel: what the style loss asks for, the
    means and deviations of another picture, is then no error of the content.
    """
    features, content = features.float(), content.float()
    if normalize:
        features, content = F.instance_norm(features), F.instance_norm(content)
    return F.mse_loss(features, content)


def style_loss(taps: Sequence[Tensor], styles: Sequence[Statistics]) -> Tensor:
    """Σ_i ‖μ(φᵢ(y)) − μ(φᵢ(s))‖² + ‖σ(φᵢ(y)) − σ(φᵢ(s))‖², i = relu1_1 … relu4_1 (Huang and Belongie 2017, eq. 13).

    As means over channels. `taps` are features of y, `styles` means and deviations of s.
    """
    total = 0
    for (mean, std), (style_mean, style_std) in zip(map(statistics, taps), styles, strict=True):
        total = total + F.mse_loss(mean, style_mean) + F.mse_loss(std, style_std)
    return total


def total_variation(images: Tensor) -> Tensor:
    """The mean absolute difference of neighbours in [N, C, H, W], along both axes."""
    return images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()


Statistics = tuple[Tensor, Tensor]  # means and deviations [N, C]


def statistics(features: Tensor) -> Statistics:
    """Mean and standard deviation of each channel of [N, C, h, w], in float32."""
    mean, var = moments(features.float())
    return mean, (var + 1e-5).sqrt()


# --- training -------------------------------------------------------------------------------------------------------


class StylizerTask:
    """A stylizer, trained to keep contents and to move styles. A `training.loop.Task`."""

    script, look_name = "train_stylizer.py", "styled"
    remedy = "try a smaller --lr, or --precision fp32"

    def __init__(self, config: StylizerTrainConfig, device: torch.device, fresh: bool = True):
        """Builds model and optimizer. `fresh`: no state will be loaded, and the weights are to be read."""
        self.config, self.device, self.averages = config, device, Averages()
        self.contents = PictureCrops(config.data, config.size, seed=config.seed)
        self.styles = PictureCrops(config.style, config.stylizer.style_size, seed=config.seed + 1)
        self.model = Stylizer(config.stylizer)
        if fresh:
            initialize(self.model, config)
        self.model.to(device)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.modules = {"model": self.model, "average": self.average}
        self.descent = Descent(adam(self.model, config), config.precision == "fp16")
        self.optimizers = {"descent": self.descent}
        self.stylize = torch.compile(stylize_and_measure) if config.compile else stylize_and_measure
        self.parts = config.batch // distributed.world_size() // config.batch_gpu

    def batches(self, step: int) -> Iterator[Batch]:
        """What the steps take from that one on, without end."""
        streams = (
            endless_batches(self.config, data, step, self.device, NumberedSampler, data.seed)
            for data in (self.contents, self.styles)
        )
        at_a_time = self.config.batch_gpu
        for (contents,), (styles,) in zip(*streams, strict=True):
            yield list(zip(to_float(contents).split(at_a_time), to_float(styles).split(at_a_time), strict=True))

    def step(self, pairs: Batch, step: int) -> None:
        first = distributed.rank() * self.parts
        self.descent.step((self.loss(*pair, part) for part, pair in enumerate(pairs, first)), self.parts)
        update_ema(self.average, self.model, ema_beta(self.config, step * self.config.batch / 1000))

    def loss(self, contents: Tensor, styles: Tensor, part: int = 0) -> Tensor:
        """Of one part of a batch, the `part`-th over all processes, such that the mean over parts is the batch's."""
        config = self.config
        with precise_enough(config, self.device):
            y, losses = self.stylize(self.model, contents, styles, config.normalize_content)
            loss = config.content_weight * losses["content"] + config.style_weight * losses["style"]
            if config.identity_weight:
                # every fourth of the whole batch, however it is split: all would make a step half as long again
                some = contents[-part * len(contents) % IDENTITY_PART :: IDENTITY_PART]
                losses["identity"] = y.new_zeros([])
                if len(some):
                    same = self.model(some, self.model.kernels(some))
                    share = IDENTITY_PART * len(some) / len(contents)
                    losses["identity"] = share * F.mse_loss(same.float(), some)
                loss = loss + config.identity_weight * losses["identity"]
            if config.tv_weight:
                losses["tv"] = total_variation(y.float())
                loss = loss + config.tv_weight * losses["tv"]
        self.averages.add(**{f"loss/{name}": value for name, value in losses.items()})
        return loss

    def figures(self) -> dict[str, float]:
        """Of a tick, beside the averages."""
        unusable = len(self.contents.unusable) + len(self.styles.unusable)
        return {"unusable": unusable} if unusable else {}

    def save(self, path: Path, kimg: float) -> None:
        """Writes the averaged stylizer in float16, half the size; the state has all digits. Raises DiskFull."""
        info = {"kimg": kimg, "contents": Path(self.config.data).name, "styles": Path(self.config.style).name}
        if self.config.init_from:
            info["init_from"] = Path(self.config.init_from).name
        save_stylizer(path, self.average, info, half=True)

    def measure(self) -> dict[str, Any]:
        """Nothing that takes all processes: the monitor works out the figures."""
        return {}

    def monitor(self, run: Path, log: Log) -> Monitor:
        return Monitor(self, run, log)


def stylize_and_measure(
    model: Stylizer, contents: Tensor, styles: Tensor, normalize: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Contents and styles [N, 3, H, W] → the contents in those styles, and their content and style losses."""
    with torch.no_grad():
        content = model.encode(contents)
        style_taps = model.encoder(resized(styles, model.config.style_size))
        goals = [statistics(tap) for tap in style_taps]
    y = model.decoder(content, model.kernels_of(style_taps[-1]))
    taps = model.encoder(y)
    return y, {"content": content_loss(taps[-1], content, normalize), "style": style_loss(taps, goals)}


@torch.no_grad()
def initialize(model: Stylizer, config: StylizerTrainConfig) -> None:
    """The weights that training starts with: those of the encoder, or all of --init-from. Raises UserError."""
    if config.init_from:
        other = load_stylizer(config.init_from)[0]
        fewer = model.config.map_channels < other.config.map_channels
        if replace(other.config, style_channels=model.config.style_channels) != model.config or (
            model.config.map_channels > other.config.map_channels
        ):
            raise UserError(f"{config.init_from} has other layers ({other.config}); start from one of the same options")
        if fewer and other.style_encoder is not None:
            other = narrowed(other, style_maps(other, config), model.config.style_channels)
        model.load_state_dict(other.state_dict())
    else:
        encoder = load_encoder(config.encoder_weights)
        if encoder.width != model.config.width:
            raise UserError(f"--width {model.config.width:g}: the encoder's is {encoder.width:g}; leave it out")
        model.encoder.load_state_dict(encoder.state_dict())


def style_maps(model: Stylizer, config: StylizerTrainConfig) -> Tensor:
    """The style maps W [NARROWED_BY, S, k, k] of crops of the style pictures, from all over these."""
    styles = PictureCrops(config.style, model.config.style_size, seed=config.seed + 2)
    step = max(len(styles) / NARROWED_BY, 1)
    crops = (to_float(styles[i, int(i * step) % len(styles)][None]) for i in range(NARROWED_BY))
    return torch.cat([model.style_encoder(model.encode(crop)) for crop in crops])


def adam(model: Stylizer, config: StylizerTrainConfig) -> torch.optim.Adam:
    """Adam with two learning rates: layers with He's weights, and kernel predictors with weights of unit variance.

    For those, steps of one size for all would be √fan-in times too small.
    """
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[".predictor." in name].append(parameter)
    rates = {False: config.lr, True: config.lr * config.predictor_lr}
    return torch.optim.Adam([{"params": groups[p], "lr": rates[p]} for p in rates if groups[p]], fused=True)


def precise_enough(config: StylizerTrainConfig, device: torch.device) -> torch.autocast:
    """Half precision for convolutions and matrix products, where it is asked for."""
    dtype = torch.float16 if config.precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=config.precision != "fp32")


class Monitor:
    """Looks at the stylizer from outside: a sheet of contents in styles, and the losses of these."""

    def __init__(self, task: StylizerTask, run: Path, log: Log):
        self.config, self.device, self.model, self.run, self.log = task.config, task.device, task.average, run, log
        config = task.config
        # crops of another stream than the training's, the same at every look
        contents = PictureCrops(config.data, config.size, seed=config.seed + 2)
        styles = PictureCrops(config.style, config.stylizer.style_size, seed=config.seed + 3)
        self.contents, self.styles = (
            torch.stack([data[i, i % len(data)] for i in range(SHOWN)]) for data in (contents, styles)
        )

    def begin(self) -> None:
        """There is nothing to write before the first look: its sheet shows contents and styles."""

    @torch.no_grad()
    def look(self, kimg: float, metrics: Mapping[str, Any]) -> None:
        """Writes the mean losses and a sheet: styles above, contents on the left. Raises DiskFull."""
        rows, sums = [], {"content": 0.0, "style": 0.0}
        styles = to_float(self.styles.to(self.device))
        for content in self.contents:
            contents = to_float(content.to(self.device)).expand(SHOWN, -1, -1, -1)
            with precise_enough(self.config, self.device):
                y, losses = stylize_and_measure(self.model, contents, styles, self.config.normalize_content)
            rows.append(torch.cat([content[None], to_uint8(y.float()).cpu()]))
            for name in sums:
                sums[name] += float(losses[name]) / SHOWN
        corner = torch.full_like(self.contents[:1], 255)
        above = to_uint8(resized(styles, self.config.size)).cpu()
        sheet = grid(torch.cat([corner, above, *rows]), 1 + SHOWN)
        self.log.metrics({"kimg": kimg, **{f"{name}_loss": value for name, value in sums.items()}})
        self.log.image("styled", sheet, kimg)
        save_png(sheet, look_path(self.run, StylizerTask.look_name, kimg))
