"""The stylizer's training: its losses, what one step is, and how the stylizer is evaluated."""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from media.crops import ImageCrops, NumberedSampler
from media.images import grid, to_float, to_uint8
from media.loader import endless_batches
from models.encoder import load_encoder
from models.snapshot import load_stylizer, save_stylizer
from networks.stylizer import (
    EPS,
    Stylizer,
    at_least_float32,
    channel_statistics,
    reduce_style_channels,
    resize_square,
)
from networks.vgg import STRIDE
from torch_utils import distributed
from torch_utils.errors import UserError, listed, note, plural, print_notes
from torch_utils.precision import autocast
from training.config import StylizerTrainConfig
from training.log import Averages, Log
from training.optimizer import GuardedOptimizer, ema_beta, ramped_half_life, update_ema

PART = 4  # one in so many contents of a batch is stylized twice, for the identity loss and the equivariance loss
NARROWED_BY = 256  # crops of styles, whose main directions remain where --init-from has more style channels
OUTERMOST = 2  # pixels at borders, which may differ from what the larger image has there
SHOWN = 4  # contents and styles of the sheets, which are also what the losses are measured on
Batch = list[tuple[Tensor, Tensor]]  # contents and styles, microbatches of `batch_gpu` images each


# --- losses ---------------------------------------------------------------------------------------------------------


def content_loss(features: Tensor, content: Tensor, normalize: bool = False) -> Tensor:
    """‖φ₄(y) − φ₄(c)‖²: the mean squared difference at relu4_1, both [N, C, h, w] (Gatys et al. 2016).

    c is the content also with `--modulation adain`, where Huang and Belongie (equation 12) take the output of AdaIN
    instead, so that both modulations have the same losses. With `normalize`, of features of zero mean and unit variance
    in each channel: what the style loss asks for, the means and deviations of another image, is then no error of the
    content.
    """
    features, content = features.float(), content.float()
    if normalize:
        features, content = F.instance_norm(features), F.instance_norm(content)
    return F.mse_loss(features, content)


def style_loss(taps: Sequence[Tensor], styles: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Σ_i ‖μ(φᵢ(y)) − μ(φᵢ(s))‖² + ‖σ(φᵢ(y)) − σ(φᵢ(s))‖², i = relu1_1 … relu4_1 (Huang and Belongie 2017, eq. 13).

    Squared differences, unlike there, and means over channels. `taps` are features of y, `styles` means and deviations
    of s.
    """
    total = taps[0].new_zeros([], dtype=torch.float32)
    for (mean, std), (style_mean, style_std) in zip(map(channel_statistics, taps), styles, strict=True):
        total = total + F.mse_loss(mean, style_mean) + F.mse_loss(std, style_std)
    return total


def covariances(features: Tensor) -> Tensor:
    """Cov(φ) of features [N, C, h, w] over their positions, [N, C, C], in float32 at least."""
    x = at_least_float32(features).flatten(2)
    x = x - x.mean(dim=2, keepdim=True)
    with torch.autocast(x.device.type, enabled=False):  # squares need more digits than half precision has
        return x @ x.mT / x.shape[2]


def covariance_loss(taps: Sequence[Tensor], styles: Sequence[Tensor]) -> Tensor:
    """Σ_i ‖Cov(φᵢ(y)) − Cov(φᵢ(s))‖² / tr Cov(φᵢ(s)), i = relu1_1 … relu4_1, as a mean over samples.

    Covariances are the Gram matrices of Gatys et al. (2016, eq. 3 to 5) without the means, which the style loss
    compares. Between channels they say which features occur together, and with it the directions and shapes of strokes.
    The trace gives the loss the style loss's unit. `taps` are features of y, `styles` covariances of s.
    """
    total = taps[0].new_zeros([], dtype=torch.float32)
    for cov, style in zip(map(covariances, taps), styles, strict=True):
        variance = style.diagonal(dim1=1, dim2=2).sum(dim=1) + EPS
        total = total + ((cov - style).square().sum(dim=(1, 2)) / variance).mean()
    return total


def total_variation(images: Tensor) -> Tensor:
    """The mean absolute difference of neighbours in [N, C, H, W], along both axes (Johnson et al. 2016, sec. 3.2)."""
    return images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()


# --- training -------------------------------------------------------------------------------------------------------


class StylizerTrainer:
    """A stylizer, trained to keep contents and to move styles. A `training.loop.Trainer`."""

    script, sheet_name = "train_stylizer.py", "styled"
    use: tuple[str, ...] = ("stylize.py", "--content", "photo.jpg", "--style", "painting.jpg", "--model")
    hint = "try a smaller --lr, or --precision fp32"

    @staticmethod
    def fingerprint(config: StylizerTrainConfig) -> str:
        return "-".join(ImageCrops(path).fingerprint for path in (config.data, config.style))

    def __init__(self, config: StylizerTrainConfig, device: torch.device, fresh: bool = True):
        """Builds model and optimizer. `fresh`: the weights do not come from a state, so they are initialized."""
        self.config, self.device, self.averages = config, device, Averages()
        reduced, scales = config.resize, config.style_scales
        self.contents = ImageCrops(config.data, config.size, seed=config.seed, reduced=reduced)
        style_size, style_seed = config.stylizer.style_size, config.seed + 1
        self.styles = ImageCrops(config.style, style_size, seed=style_seed, reduced=reduced, scales=scales)
        self.model = Stylizer(config.stylizer)
        if fresh:
            initialize_stylizer(self.model, config)
        self.model.to(device)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.modules: dict[str, nn.Module] = {"model": self.model, "average": self.average}
        self.optimizer = GuardedOptimizer(adam(self.model, config), config.precision == "fp16")
        self.optimizers = {"optimizer": self.optimizer}
        self.stylize = torch.compile(stylize_and_measure) if config.compile else stylize_and_measure
        self.microbatches = config.batch // distributed.world_size() // config.batch_gpu
        self.noted = torch.zeros(len(self.contents) + len(self.styles), dtype=torch.bool)  # images that cannot be used
        if distributed.rank() == 0:
            print_notes([*self.contents.files.notes, *self.styles.files.notes])

    def batches(self, step: int) -> Generator[Batch]:
        """The batches from `step` on, without end: this process's share of each, in microbatches."""
        config = self.config
        streams = (
            endless_batches(
                data,
                batch=config.batch,
                step=step,
                seed=data.seed,
                workers=config.workers,
                device=self.device,
                sampler=NumberedSampler,
            )
            for data in (self.contents, self.styles)
        )
        size = config.batch_gpu
        for (contents,), (styles,) in zip(*streams, strict=True):
            yield list(zip(to_float(contents).split(size), to_float(styles).split(size), strict=True))

    def train_step(self, pairs: Batch, step: int) -> None:
        """One step down the mean of the losses of the microbatches."""
        self.optimizer.zero_grad()
        first = distributed.rank() * self.microbatches
        for number, (contents, styles) in enumerate(pairs, first):
            self.optimizer.backward(self.loss(contents, styles, number), len(pairs))
        self.optimizer.step()
        half_life = ramped_half_life(self.config, step * self.config.batch / 1000)
        update_ema(self.average, self.model, ema_beta(half_life, self.config.batch))

    def loss(self, contents: Tensor, styles: Tensor, number: int = 0) -> Tensor:
        """The loss of microbatch `number`, counted over all processes; their mean is the batch's loss."""
        config = self.config
        with autocast(self.device, config.precision):
            y, losses = self.stylize(self.model, contents, styles, *self.measured)
            loss = config.content_weight * losses["content"] + config.style_weight * losses["style"]
            if config.covariance_weight:
                loss = loss + config.covariance_weight * losses["covariance"]
            if config.identity_weight:
                losses["identity"] = self.identity_loss(contents, number)
                loss = loss + config.identity_weight * losses["identity"]
            if config.equivariance_weight:
                losses["equivariance"] = self.equivariance_loss(contents, styles, y, number)
                loss = loss + config.equivariance_weight * losses["equivariance"]
            if config.tv_weight:
                losses["tv"] = total_variation(y.float())
                loss = loss + config.tv_weight * losses["tv"]
        self.averages.add({f"loss/{name}": value for name, value in losses.items()})
        return loss

    def identity_loss(self, contents: Tensor, number: int) -> Tensor:
        """The mean squared difference of contents to what the stylizer makes of them in their own style.

        Of every fourth content of the batch, however it is split: all of them would make a step half as long again.
        """
        some = contents[every_fourth(number, len(contents))]
        if not len(some):
            return contents.new_zeros([])
        same = self.model(some, self.model.kernels(some))
        return self.weight_of(some, contents) * F.mse_loss(same.float(), some)

    def equivariance_loss(self, contents: Tensor, styles: Tensor, y: Tensor, number: int) -> Tensor:
        """The mean squared difference of stylized contents y to those of contents that are cut off at the left and top.

        By 1 to 7 pixels, so that the encoder's grid, whose cells have 8 pixels, lies elsewhere in the content: a
        pattern that keeps to the grid moves with it, and is an error. So is what is drawn along borders, which lie
        inside of the other image, but for the outermost pixels. The difference is divided by the images' variance, so
        that less contrast does not lower it. Of every fourth content, as above.
        """
        some = every_fourth(number, len(contents))
        if not len(contents[some]):
            return contents.new_zeros([])
        top, left = torch.randint(1, STRIDE, [2]).tolist()
        height, width = (side - STRIDE for side in contents.shape[2:])
        moved = self.model(contents[some, :, top:, left:][:, :, :height, :width], self.model.kernels(styles[some]))
        y = y[some, :, top:, left:]
        inside = ..., slice(OUTERMOST, height - OUTERMOST), slice(OUTERMOST, width - OUTERMOST)
        moved, y = moved[inside].float(), y[inside].float()
        variance = (moved.var() + y.var()) / 2 + EPS
        return self.weight_of(moved, contents) * F.mse_loss(moved, y) / variance

    def weight_of(self, some: Tensor, contents: Tensor) -> float:
        """The factor on a mean over `some` of a microbatch that makes the batch's loss the mean over all of them."""
        in_batch = -(-self.config.batch // PART)
        return len(some) / in_batch * self.config.batch / len(contents)

    def statistics(self) -> dict[str, float]:
        """Numbers of a tick beside the averages."""
        both = [self.contents, self.styles]
        found = torch.cat([crops.found_unusable() for crops in both]).to(self.device)
        found = torch.stack(distributed.gather(found)).any(dim=0).cpu()  # in any process
        for crops, new in zip(both, (found & ~self.noted).split([len(crops) for crops in both]), strict=True):
            if new.any() and distributed.rank() == 0:
                reasons = listed([crops.why(number) for number in new.nonzero().flatten().tolist()], 5)
                images = plural(int(new.sum()), "image")
                note(f"note: {images} of {crops.path} cannot be used, and others take their place: {reasons}")
        self.noted = found
        return {"unusable": int(found.sum())} if found.any() else {}

    def save(self, path: Path, kimg: float) -> None:
        """Writes the averaged stylizer in float16, half the size; the state has all digits. Raises DiskFull."""
        info = {"kimg": kimg, "contents": Path(self.config.data).name, "styles": Path(self.config.style).name}
        if self.config.init_from:
            info["init_from"] = Path(self.config.init_from).name
        save_stylizer(path, self.average, info, half=True)

    @torch.no_grad()
    def evaluate(self, kimg: float, log: Log) -> None:
        """Writes the mean losses and a sheet: styles above, contents on the left. Raises DiskFull."""
        if not log.writes:
            return
        contents, styles = self.shown
        rows, sums = [], dict.fromkeys(("content", "style", *["covariance"] * self.measured[1]), 0.0)
        style_images = to_float(styles.to(self.device))
        for content in contents:
            repeated = to_float(content.to(self.device)).expand(SHOWN, -1, -1, -1)
            with autocast(self.device, self.config.precision):
                y, losses = stylize_and_measure(self.average, repeated, style_images, *self.measured)
            rows.append(torch.cat([content[None], to_uint8(y.float()).cpu()]))
            for name in sums:
                sums[name] += float(losses[name]) / SHOWN
        corner = torch.full_like(contents[:1], 255)
        above = to_uint8(resize_square(style_images, self.config.size)).cpu()
        log.metrics({"kimg": kimg, **{f"{name}_loss": value for name, value in sums.items()}})
        log.sheet(self.sheet_name, grid(torch.cat([corner, above, *rows]), 1 + SHOWN), kimg)

    @property
    def measured(self) -> tuple[bool, bool]:
        """What `stylize_and_measure` is asked for beside contents and styles."""
        return self.config.normalize_content, self.config.covariance_weight > 0

    @cached_property
    def shown(self) -> tuple[Tensor, Tensor]:
        """Contents and styles of the sheets, uint8 [SHOWN, 3, H, W]: crops that training does not see."""
        config = self.config
        reduced, style_size = config.resize, config.stylizer.style_size
        contents = ImageCrops(config.data, config.size, seed=config.seed + 2, reduced=reduced)
        styles = ImageCrops(config.style, style_size, seed=config.seed + 3, reduced=reduced)
        first, second = (torch.stack([crops[i, i % len(crops)] for i in range(SHOWN)]) for crops in (contents, styles))
        return first, second


def every_fourth(number: int, size: int) -> slice:
    """Every fourth content of the batch among those of microbatch `number`, where each has `size`."""
    return slice(-number * size % PART, None, PART)


def stylize_and_measure(
    model: Stylizer, contents: Tensor, styles: Tensor, normalize: bool = False, covariance: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Contents and styles [N, 3, H, W] → the contents in those styles, and their losses, `covariance` if asked for."""
    with torch.no_grad():
        content = model.encode(contents)
        style_taps = model.encoder(resize_square(styles, model.config.style_size))
        targets = [channel_statistics(tap) for tap in style_taps]
        together = [covariances(tap) for tap in style_taps] if covariance else []
    y = model.decoder(content, model.kernels_of(style_taps[-1]))
    taps = model.encoder(y)
    losses = {"content": content_loss(taps[-1], content, normalize), "style": style_loss(taps, targets)}
    return y, losses | ({"covariance": covariance_loss(taps, together)} if covariance else {})


@torch.no_grad()
def initialize_stylizer(model: Stylizer, config: StylizerTrainConfig) -> None:
    """Loads the weights that training starts with: the encoder's, or all of --init-from. Raises UserError."""
    if config.init_from:
        other = load_stylizer(config.init_from)[0]
        fewer = model.config.map_channels < other.config.map_channels
        if replace(other.config, style_channels=model.config.style_channels) != model.config or (
            model.config.map_channels > other.config.map_channels
        ):
            raise UserError(f"{config.init_from} has other layers ({other.config}); start from one of the same options")
        if fewer and other.style_encoder is not None:
            other = reduce_style_channels(other, style_maps(other, config), model.config.style_channels)
        model.load_state_dict(other.state_dict())
    else:
        encoder = load_encoder(config.encoder_weights)
        if encoder.width != model.config.width:
            raise UserError(f"--width {model.config.width:g}: the encoder's is {encoder.width:g}; leave it out")
        model.encoder.load_state_dict(encoder.state_dict())


def style_maps(model: Stylizer, config: StylizerTrainConfig) -> Tensor:
    """The style maps W [NARROWED_BY, S, k, k] of crops from NARROWED_BY style images, spread over all of them."""
    assert model.style_encoder is not None
    styles = ImageCrops(config.style, model.config.style_size, seed=config.seed + 2, reduced=config.resize)
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
