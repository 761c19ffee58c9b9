"""What a training depends on: one dataclass for each of the three trainings, written into every run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from media.shards import is_sharded
from models.snapshot import Source
from networks.discriminator import DiscriminatorConfig
from networks.generator import GeneratorConfig
from networks.stylizer import StylizerConfig
from torch_utils.errors import one_line
from torch_utils.schema import Fraction, NotNegative, Positive, Within, build, check_values
from torch_utils.sizes import size_text
from training.presets import PUBLISHED_AT

if TYPE_CHECKING:
    from typing_extensions import Self

Batch = Annotated[int, Within(1, 2**16)]
Kimg = Annotated[float, Within(0, 1e9, above=True)]
Tick = Annotated[float, Within(0.001, 1e9)]
Interval = Annotated[int, Within(1, 2**31)]
Side = Annotated[int, Within(1, 2**16)]  # of a square, in pixels
Byte = Annotated[int, Within(0, 255)]
AugPipe = Literal[
    "blit", "geom", "color", "filter", "noise", "cutout", "bg", "bgc", "bgcf", "bgcfn", "bgcfnc", "r3gan"
]  # the keys of training.augment.AUGPIPES


@dataclass(kw_only=True)
class RunConfig:
    """What every training depends on. Written to the run's config.json and into every training state."""

    # What may change when a run is resumed: no weight depends on it, but for the last three only by chance, through
    # other random numbers and another order of sums.
    changeable: ClassVar[set[str]] = {
        *("data", "kimg", "tick", "snap", "autosave", "workers", "keep"),
        *("gpus", "procs", "batch_gpu"),
    }
    data_options: ClassVar[str] = "--data"  # the options that name the data
    networks: ClassVar[tuple[type, ...]] = ()  # the configurations of networks whose fields are options

    data: str
    seed: Annotated[int, Within(0, 2**31)] = 0
    gpus: Annotated[int, Within(0, 2**16)] = 0  # 0: the CPU
    procs: Annotated[int, Within(1, 2**16)] = 1  # processes; on GPUs one for each
    batch: Batch = 32  # images of a step, over all processes
    batch_gpu: Batch = 32  # images of a microbatch
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the layers that can do with half precision
    tf32: bool = False  # whether GPUs may round the factors of float32 products to 10 bits
    compile: bool = False  # whether what is differentiated only once is compiled
    kimg: Kimg = 25000  # length of the training in thousands of images
    tick: Tick = 4.0  # kimg between two lines of the log
    snap: Annotated[int, Within(1, 2**31)] = 50  # ticks between two snapshots
    autosave: Annotated[float, Within(0, 1e6)] = 15.0  # minutes after which a state is saved in between; 0: never
    workers: Annotated[int, Within(0, 64)] = 2  # processes that read images, for each training process
    keep: Annotated[int, Within(1, 2**31)] = 2  # number of training states that are kept

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """The inverse of `dataclasses.asdict`, of values that need not be trusted. Raises ValueError."""
        return build(cls, values)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raises ValueError unless the recorded options of a run are such as a command line may have.

        Options are fields of the configuration, or of a network in it.
        """
        for name, value in options.items():
            of = next((owner for owner in (cls, *cls.networks) if name in {f.name for f in fields(owner)}), None)
            if name == "desc" and type(value) is str:
                continue
            if of is None or isinstance(value, Mapping):
                raise ValueError(f"{one_line(name, 40)} is no option")
            check_values(of, {name: value})

    @property
    def of_stream(self) -> set[str]:
        """What may not change either where the data is in shards, whose order depends on it."""
        return {"workers", "procs"} if is_sharded(self.data) else set()

    @property
    def run_name(self) -> str:
        """What the run's folder is called, after its number."""
        raise NotImplementedError

    @property
    def data_paths(self) -> list[str]:
        """The data sets, by what `data_options` name."""
        return [self.data]

    @property
    def note(self) -> str:
        """What the user should know about this configuration; mostly empty."""
        return ""

    def recorded_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The given options for the run's record: with the values that were found for them, as for --init-from.

        The precision as well, which `auto` measures on a CPU: it is not to be another one where the run goes on.
        """
        return {name: getattr(self, name, value) for name, value in given.items()} | {"precision": self.precision}


# The fields of GeneratorConfig that a training takes from the generator of --init-from, as far as no option gives them.
TAKEN_OVER = (
    *("cbase", "cmax", "map_depth", "z_dim", "w_dim", "noise", "norm", "predict_bias"),
    *("kernel_size", "style_channels", "depthwise_scale", "pointwise_scale", "mixing_scale", "map_lr"),
    "kernels_up_to",
)
OPTIONS = ("cbase", "cmax", "map_depth", "norm")  # those that train.py has options for
WITHOUT_OPTION = tuple(name for name in TAKEN_OVER if name not in OPTIONS)


Ramp = tuple[NotNegative, NotNegative]  # the first and the last value of a schedule


@dataclass(frozen=True)
class Schedules:
    """Values that follow half a cosine from the first to the last, which they have from decay_kimg on (R3GAN)."""

    decay_kimg: Positive
    ema_kimg: Ramp  # half-life of the averaged weights
    p: Ramp  # probability of each augmentation
    lr: Ramp = (1.0, 0.25)  # as a factor on the learning rates
    gamma: Ramp = (1.0, 0.1)  # as a factor on gamma
    beta2: tuple[Fraction, Fraction] = (0.9, 0.99)  # of Adam


@dataclass(kw_only=True)
class TrainConfig(RunConfig):
    """What the generator's training depends on as well."""

    changeable: ClassVar[set[str]] = RunConfig.changeable | {
        "metrics",
        "detector_weights",
        "keep_best",
        "skip_unreadable",
        "discriminator.mbstd_group",  # the groups that come of it stay: training.resume.check_groups
    }
    networks: ClassVar[tuple[type, ...]] = (GeneratorConfig, DiscriminatorConfig)

    generator: GeneratorConfig
    discriminator: DiscriminatorConfig
    cfg: Literal["auto", "demo", "r3gan", "stylegan2", "paper256", "paper512", "paper1024", "cifar"] = "auto"
    background: tuple[Byte, Byte, Byte] | None = None  # the colour that transparent images are laid on; None: RGBA
    cond: bool = False  # train with the data set's class labels
    mirror: bool = False  # add a left-right flipped copy of every image to the data
    skip_unreadable: bool = False  # go on without images that cannot be decoded
    glr: Positive = 0.0025  # the generator's learning rate
    dlr: Positive = 0.0025  # the discriminator's learning rate
    loss: Literal["nonsaturating", "relativistic"] = "nonsaturating"
    gamma: NotNegative = 1.0  # weight of R1, and of R2 with the relativistic loss
    r1_interval: Interval = 16  # steps between two R1 steps
    pl_weight: NotNegative = 2.0  # weight of the path length penalty
    pl_interval: Interval = 4  # steps between two path length steps
    pl_shrink: Interval = 2  # the path length step takes batch / pl_shrink images
    mixing: Fraction = 0.9  # probability of style mixing
    ema_kimg: NotNegative = 10.0  # half-life of the averaged weights
    ema_rampup: NotNegative | None = 0.05  # limits the half-life to this fraction of the images seen so far
    w_avg_beta: Fraction = 0.998  # decay of the mean of w
    aug: Literal["noaug", "ada", "fixed"] = "noaug"  # augmentation of what the discriminator sees: noaug, ada or fixed
    augpipe: AugPipe = "bgc"  # its transforms
    target: Annotated[float, Within(-1, 1)] = 0.6  # the E[sign(D(x))] that ada steers to
    ada_kimg: Positive = 500.0  # kimg in which ada's p can go from 0 to 1
    p: Fraction = 0.0  # the probability of each transform, at the start
    init_from: str | None = None  # a snapshot, state or run whose weights the training starts from
    source: Source | None = None  # where these weights are from, if somebody else has trained them
    freezed: Annotated[int, Within(0, 64)] = 0  # number of the discriminator's first layers that are not trained
    schedules: Schedules | None = None  # of R3GAN's recipe; None trains by StyleGAN2's
    metrics: list[str] = field(default_factory=lambda: ["swd"])
    detector_weights: list[str] = field(default_factory=list)  # files that replace downloads
    keep_best: str = ""  # the metric by which the best model is kept as best.safetensors

    def __post_init__(self) -> None:
        if self.background is not None:
            red, green, blue = self.background  # a list, if it comes from JSON
            self.background = red, green, blue
        self.detector_weights = list(self.detector_weights)  # a tuple, if it comes from a command line

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
            return "--cfg auto is meant for GPUs, a CPU takes months or years; --cfg demo trains in minutes"
        published, size = PUBLISHED_AT.get(self.cfg), self.generator.resolution
        if published and size not in (published, (published, published)):
            return (
                f"--cfg {self.cfg} was published for {published}²; --cfg auto takes γ and batch for {size_text(size)}"
            )
        return ""


@dataclass(kw_only=True)
class ClassifierConfig(RunConfig):
    """What the training of an encoder depends on as well. kimg is fixed: all learning rates depend on it."""

    # Batch normalization sees a microbatch, so that the processes stay as they are.
    changeable: ClassVar[set[str]] = (RunConfig.changeable | {"test"}) - {"kimg", "gpus", "procs", "batch_gpu"}

    test: str | None = None  # a data set for the accuracy, of images that are not trained with
    width: Annotated[float, Within(0, 4, above=True)] = 0.5  # channels in those of VGG-19
    batch: Batch = 128
    batch_gpu: Batch = 128
    kimg: Kimg = 500.0
    tick: Tick = 5.0
    snap: Annotated[int, Within(1, 2**31)] = 10
    lr: Positive = 0.2  # the highest learning rate
    momentum: Fraction = 0.9  # Nesterov's
    weight_decay: NotNegative = 5e-4  # of convolutions and the head
    smoothing: Fraction = 0.1  # the part of each label that is spread over all classes
    shift: Fraction = 1 / 8  # the largest random shift, as a fraction of the side
    mirror: bool = True  # flip half of the images left-right
    crop: Annotated[float, Within(0, 1, above=True)] = 1.0  # smallest area of the random crops, as a fraction
    sizes: list[Side] = field(default_factory=list)  # of the images in equal parts of the run; none: their own
    cutmix: Fraction = 0.0  # probability of CutMix, for each microbatch

    @property
    def run_name(self) -> str:
        return f"{data_name(self.data)}-encoder{self.gpus or '-cpu'}"


@dataclass(kw_only=True)
class StylizerTrainConfig(RunConfig):
    """What the stylizer's training depends on as well. `data` holds the contents."""

    changeable: ClassVar[set[str]] = RunConfig.changeable | {"style"}
    data_options: ClassVar[str] = "--content and --style"
    networks: ClassVar[tuple[type, ...]] = (StylizerConfig,)

    stylizer: StylizerConfig
    style: str  # folder or ZIP of style images
    encoder_weights: str | None = None  # None: torchvision's, of ImageNet
    init_from: str | None = None  # a stylizer whose weights the training starts from
    size: Annotated[int, Within(16, 2048)] = 256  # side of the content crops
    resize: Annotated[int, Within(16, 4096)] | None = None  # the images' shorter side before; None: twice the crops'
    style_scales: Annotated[float, Within(1, 4)] = 1.0  # how much larger or smaller than usual style crops are drawn
    batch: Batch = 8
    batch_gpu: Batch = 8
    kimg: Kimg = 1280.0  # 160,000 steps of 8
    snap: Annotated[int, Within(1, 2**31)] = 10
    lr: Positive = 1e-4
    predictor_lr: Positive = 100.0  # factor for kernel predictors: their equalized weights are that much larger
    content_weight: NotNegative = 1.0
    normalize_content: bool = False  # compare contents without their channels' means and deviations
    style_weight: NotNegative = 10.0
    covariance_weight: NotNegative = 0.0  # weight of the covariance loss
    identity_weight: NotNegative = 0.0  # weight of the difference to a content that is its own style
    equivariance_weight: NotNegative = 0.0  # weight of the difference to a content that is moved
    tv_weight: NotNegative = 0.0  # weight of the total variation
    ema_kimg: Positive = 1.0  # half-life of the averaged weights
    ema_rampup: NotNegative | None = 0.05  # limits the half-life to this fraction of the images seen so far

    @property
    def data_paths(self) -> list[str]:
        return [self.data, self.style]

    @property
    def run_name(self) -> str:
        names = [data_name(self.data), data_name(self.style), self.stylizer.modulation]
        return "-".join([*names, f"stylizer{self.gpus or '-cpu'}"])

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """That of every run; --content is the field `data`."""
        super().check_options({"data" if name == "content" else name: value for name, value in options.items()})

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
