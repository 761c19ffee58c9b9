"""What a training depends on: one dataclass for each of the three trainings, written into every run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from media.shards import is_sharded
from networks.discriminator import DiscriminatorConfig
from networks.generator import GeneratorConfig
from networks.stylizer import StylizerConfig
from torch_utils.sizes import size_text
from training.presets import PUBLISHED_AT


@dataclass(kw_only=True)
class RunConfig:
    """What every training depends on. Written to the run's config.json and into every training state."""

    # What may change when a run is resumed, because no weight depends on it.
    changeable: ClassVar[set[str]] = {"data", "kimg", "tick", "snap", "workers", "keep"}
    data_options: ClassVar[str] = "--data"  # the options that name the data

    data: str
    seed: int = 0
    gpus: int = 0  # 0: the CPU
    procs: int = 1  # processes; on GPUs one for each
    batch: int = 32  # images of a step, over all processes
    batch_gpu: int = 32  # images of a microbatch
    precision: str = "fp32"  # fp32, bf16 or fp16, of the layers that can do with half precision
    tf32: bool = False  # whether GPUs may round the factors of float32 products to 10 bits
    compile: bool = False  # whether what is differentiated only once is compiled
    kimg: float = 25000  # length of the training in thousands of images
    tick: float = 4.0  # kimg between two lines of the log
    snap: int = 50  # ticks between two snapshots
    workers: int = 2  # processes that read images, for each training process
    keep: int = 2  # number of training states that are kept

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The inverse of `dataclasses.asdict`."""
        return cls(**values)

    @property
    def of_stream(self) -> set[str]:
        """What may not change either where the data is in shards, whose order depends on it."""
        return {"workers"} if is_sharded(self.data) else set()

    @property
    def run_name(self) -> str:
        """What the run's folder is called, after its number."""
        raise NotImplementedError

    @property
    def note(self) -> str:
        """What the user should know about this configuration; mostly empty."""
        return ""

    def recorded_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The given options for the run's record: with the values that were found for them, as for --init-from."""
        return {name: getattr(self, name, value) for name, value in given.items()}


# The fields of GeneratorConfig that a training takes from the generator of --init-from, as far as no option gives them.
TAKEN_OVER = (
    *("cbase", "cmax", "map_depth", "z_dim", "w_dim", "noise", "norm", "predict_bias"),
    *("kernel_size", "style_channels", "depthwise_scale", "pointwise_scale", "mixing_scale", "map_lr"),
)


Ramp = tuple[float, float]  # the first and the last value of a schedule


@dataclass(frozen=True)
class Schedules:
    """Values that follow half a cosine from the first to the last, which they have from decay_kimg on (R3GAN)."""

    decay_kimg: float
    ema_kimg: Ramp  # half-life of the averaged weights
    p: Ramp  # probability of each augmentation
    lr: Ramp = (1.0, 0.25)  # as a factor on the learning rates
    gamma: Ramp = (1.0, 0.1)  # as a factor on gamma
    beta2: Ramp = (0.9, 0.99)  # of Adam

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Schedules:
        """The inverse of `dataclasses.asdict`, also through JSON."""
        ramps: dict[str, Any] = {name: tuple(value) for name, value in values.items() if name != "decay_kimg"}
        return cls(decay_kimg=values["decay_kimg"], **ramps)


@dataclass(kw_only=True)
class TrainConfig(RunConfig):
    """What the generator's training depends on as well."""

    changeable: ClassVar[set[str]] = RunConfig.changeable | {"metrics", "detector_weights", "keep_best"}

    generator: GeneratorConfig
    discriminator: DiscriminatorConfig
    cfg: str = "auto"
    background: tuple[int, int, int] | None = None  # the colour that transparent images are laid on; None: RGBA
    cond: bool = False  # train with the data set's class labels
    mirror: bool = False  # add a left-right flipped copy of every image to the data
    glr: float = 0.0025  # the generator's learning rate
    dlr: float = 0.0025  # the discriminator's learning rate
    loss: str = "nonsaturating"  # or relativistic
    gamma: float = 1.0  # weight of R1, and of R2 with the relativistic loss
    r1_interval: int = 16  # steps between two R1 steps
    pl_weight: float = 2.0  # weight of the path length penalty
    pl_interval: int = 4  # steps between two path length steps
    pl_shrink: int = 2  # the path length step takes batch / pl_shrink images
    mixing: float = 0.9  # probability of style mixing
    ema_kimg: float = 10.0  # half-life of the averaged weights
    ema_rampup: float | None = 0.05  # limits the half-life to this fraction of the images seen so far
    w_avg_beta: float = 0.998  # decay of the mean of w
    aug: str = "noaug"  # augmentation of what the discriminator sees: noaug, ada or fixed
    augpipe: str = "bgc"  # its transforms
    target: float = 0.6  # the E[sign(D(x))] that ada steers to
    ada_kimg: float = 500.0  # kimg in which ada's p can go from 0 to 1
    p: float = 0.0  # the probability of each transform, at the start
    init_from: str | None = None  # a snapshot, state or run whose weights the training starts from
    freezed: int = 0  # number of the discriminator's first layers that are not trained
    schedules: Schedules | None = None  # of R3GAN's recipe; None trains by StyleGAN2's
    metrics: list[str] = field(default_factory=lambda: ["swd"])
    detector_weights: list[str] = field(default_factory=list)  # files that replace downloads
    keep_best: str = ""  # the metric by which the best model is kept as best.safetensors

    def __post_init__(self) -> None:
        if self.background is not None:
            red, green, blue = self.background  # a list, if it comes from JSON
            self.background = red, green, blue

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        schedules = values.get("schedules")
        nested = {
            "generator": GeneratorConfig(**values["generator"]),
            "discriminator": DiscriminatorConfig(**values["discriminator"]),
            "schedules": schedules and Schedules.from_dict(schedules),
        }
        return cls(**{**values, **nested})

    @property
    def run_name(self) -> str:
        return "-".join([data_name(self.data), self.generator.modulation, f"{self.cfg}{self.gpus or '-cpu'}"])

    def recorded_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """With what the file of --init-from gave, so that a resumed run does not need that file."""
        taken = TAKEN_OVER if self.init_from else ()
        return {**super().recorded_options(given), **{name: getattr(self.generator, name) for name in taken}}

    @property
    def note(self) -> str:
        if self.precision == "fp16" and not self.gpus:
            return "CPUs are slow with fp16; take --precision bf16 or fp32"
        if self.cfg == "auto" and not self.gpus:
            return "--cfg auto is meant for GPUs, a CPU takes months; --cfg demo trains in minutes"
        published, size = PUBLISHED_AT.get(self.cfg), self.generator.resolution
        if published and size not in (published, (published, published)):
            return (
                f"--cfg {self.cfg} was published for {published}²; --cfg auto takes γ and batch for {size_text(size)}"
            )
        return ""


@dataclass(kw_only=True)
class ClassifierConfig(RunConfig):
    """What the training of an encoder depends on as well. kimg is fixed: all learning rates depend on it."""

    changeable: ClassVar[set[str]] = (RunConfig.changeable | {"test"}) - {"kimg"}

    test: str | None = None  # a data set for the accuracy, of images that are not trained with
    width: float = 0.5  # channels in those of VGG-19
    batch: int = 128
    batch_gpu: int = 128
    kimg: float = 500.0
    tick: float = 5.0
    snap: int = 10
    lr: float = 0.2  # the highest learning rate
    momentum: float = 0.9  # Nesterov's
    weight_decay: float = 5e-4  # of convolutions and the head
    smoothing: float = 0.1  # the part of each label that is spread over all classes
    shift: float = 1 / 8  # the largest random shift, as a fraction of the side
    mirror: bool = True  # flip half of the images left-right
    crop: float = 1.0  # smallest area of the random crops, as a fraction of the image
    cutmix: float = 0.0  # probability of CutMix, for each microbatch

    @property
    def run_name(self) -> str:
        return f"{data_name(self.data)}-encoder{self.gpus or '-cpu'}"


@dataclass(kw_only=True)
class StylizerTrainConfig(RunConfig):
    """What the stylizer's training depends on as well. `data` holds the contents."""

    changeable: ClassVar[set[str]] = RunConfig.changeable | {"style"}
    data_options: ClassVar[str] = "--content and --style"

    stylizer: StylizerConfig
    style: str  # folder or ZIP of style images
    encoder_weights: str | None = None  # None: torchvision's, of ImageNet
    init_from: str | None = None  # a stylizer whose weights the training starts from
    size: int = 256  # side of the content crops
    batch: int = 8
    batch_gpu: int = 8
    kimg: float = 1280.0  # 160,000 steps of 8
    lr: float = 1e-4
    predictor_lr: float = 100.0  # factor for kernel predictors: their equalized weights are that much larger
    content_weight: float = 1.0
    normalize_content: bool = False  # compare contents without their channels' means and deviations
    style_weight: float = 10.0
    identity_weight: float = 0.0  # weight of the difference to a content that is its own style
    tv_weight: float = 0.0  # weight of the total variation
    ema_kimg: float = 1.0  # half-life of the averaged weights
    ema_rampup: float | None = 0.05  # limits the half-life to this fraction of the images seen so far

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StylizerTrainConfig:
        return cls(**{**values, "stylizer": StylizerConfig(**values["stylizer"])})

    @property
    def run_name(self) -> str:
        names = [data_name(self.data), data_name(self.style), self.stylizer.modulation]
        return "-".join([*names, f"stylizer{self.gpus or '-cpu'}"])

    def recorded_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """With the whole network, so that a resumed run needs neither the encoder's file nor that of --init-from."""
        return {**super().recorded_options(given), **asdict(self.stylizer)}


def data_name(path: str) -> str:
    """What the names of runs call a data set: its file without the extension, or the folder of its shards."""
    if path.startswith("hf://"):
        return re.sub(r"[^\w.-]+", "-", path.removeprefix("hf://"))
    file = Path(path)
    while "*" in file.name or "?" in file.name or "[" in file.name:
        file = file.parent
    return file.stem or file.resolve().name


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """What a resumed run would do differently, as `name: old in the run, new asked`; empty if nothing."""
    a, b = _flat(asdict(old)), _flat(asdict(new))
    return [
        f"{name}: {a.get(name)} in the run, {b.get(name)} asked"
        for name in sorted(a.keys() | b.keys())
        if (name not in new.changeable or name in new.of_stream) and a.get(name) != b.get(name)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
