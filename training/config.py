"""What a training run is made of, and how the command line's options become it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

import torch

from networks.discriminator import DiscriminatorConfig
from networks.generator import GeneratorConfig
from torch_utils.cli import UserError


@dataclass(kw_only=True)
class RunConfig:
    """What every training run depends on. Written to the run's config.json and into every training state."""

    # What may change when a run is resumed: nothing that a weight depends on.
    changeable: ClassVar[set[str]] = {"data", "kimg", "tick", "snap", "workers", "keep"}

    data: str
    seed: int = 0
    gpus: int = 0  # 0: the CPU
    procs: int = 1  # processes, on the CPU; on GPUs one for each
    batch: int = 32  # pictures a step, over all processes
    batch_gpu: int = 32  # of these, as many at a time in each process
    precision: str = "fp32"  # fp32, bf16 or fp16, where half precision is enough
    tf32: bool = False  # whether GPUs may round the factors of float32 products to 10 bits
    compile: bool = False  # whether what is differentiated once is compiled
    kimg: float = 25000  # thousands of pictures to show
    tick: float = 4.0  # kimg between two lines of the log
    snap: int = 50  # ticks between two snapshots
    workers: int = 2  # processes that read pictures
    keep: int = 2  # training states that stay, the newest

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The inverse of `dataclasses.asdict`."""
        return cls(**values)


@dataclass(kw_only=True)
class TrainConfig(RunConfig):
    """What the generator's training depends on, beside."""

    changeable: ClassVar[set[str]] = RunConfig.changeable | {"metrics", "detector_weights"}

    generator: GeneratorConfig
    discriminator: DiscriminatorConfig
    cfg: str = "auto"
    cond: bool = False  # train with the data set's class labels
    mirror: bool = False  # show every picture flipped left-right as well
    glr: float = 0.0025
    dlr: float = 0.0025
    loss: str = "nonsaturating"  # or relativistic
    gamma: float = 1.0  # weight of R1, and of R2 with the relativistic loss
    r1_interval: int = 16  # steps between two R1 steps
    pl_weight: float = 2.0  # weight of the path length penalty
    pl_interval: int = 4
    pl_shrink: int = 2  # the path length step takes batch / pl_shrink pictures
    mixing: float = 0.9  # probability of style mixing
    ema_kimg: float = 10.0  # half-life of the averaged weights
    ema_rampup: float | None = 0.05  # ... but at most this part of what was shown so far
    w_avg_beta: float = 0.998
    aug: str = "noaug"  # augmentation of what the discriminator sees: noaug, ada or fixed
    augpipe: str = "bgc"
    target: float = 0.6  # of E[sign(D(x))], which ada moves its p for
    ada_kimg: float = 500.0  # in so many, ada's p can go from 0 to 1
    p: float = 0.0  # the probability of each transform, at the start
    init_from: str | None = None  # a snapshot, state or run whose weights this one starts from
    freezed: int = 0  # the discriminator's layers, from the picture on, that are not trained
    metrics: list[str] = field(default_factory=lambda: ["swd"])
    detector_weights: list[str] = field(default_factory=list)  # files, in place of downloading them

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        networks = {"generator": GeneratorConfig, "discriminator": DiscriminatorConfig}
        return cls(**{**values, **{name: kind(**values[name]) for name, kind in networks.items()}})


# Of StyleGAN2 (Karras et al. 2020) for 1024² FFHQ, and of StyleGAN2-ADA (Karras et al. 2020, appendix D).
PUBLISHED: dict[str, dict[str, Any]] = {
    "stylegan2": {"batch": 32, "cbase": 32768, "glr": 0.002, "dlr": 0.002, "gamma": 10.0, "ema_kimg": 10.0},
    "paper256": {
        "batch": 64, "cbase": 16384, "glr": 0.0025, "dlr": 0.0025, "gamma": 1.0, "ema_kimg": 20.0, "mbstd_group": 8,
    },
    "paper512": {
        "batch": 64, "cbase": 32768, "glr": 0.0025, "dlr": 0.0025, "gamma": 0.5, "ema_kimg": 20.0, "mbstd_group": 8,
    },
    "paper1024": {"batch": 32, "cbase": 32768, "glr": 0.002, "dlr": 0.002, "gamma": 2.0, "ema_kimg": 10.0},
    # But with the residual discriminator of all others, whose class embedding is as deep as the mapping network.
    "cifar": {  # without path length regularization and style mixing
        "batch": 64, "cbase": 32768, "glr": 0.0025, "dlr": 0.0025, "gamma": 0.01, "ema_kimg": 500.0, "ema_rampup": 0.05,
        "map_depth": 2, "mbstd_group": 32, "pl_weight": 0.0, "mixing": 0.0, "kimg": 100000.0,
    },
}  # fmt: skip
PRESETS = ("auto", "demo", *PUBLISHED)


@dataclass(kw_only=True)
class ClassifierConfig(RunConfig):
    """What a classifier's training depends on, beside: the learning rate of every step also on how many there are."""

    changeable: ClassVar[set[str]] = (RunConfig.changeable | {"test"}) - {"kimg"}

    test: str | None = None  # a data set of pictures not trained with, for the accuracy
    width: float = 0.5  # of VGG-19's channels
    batch: int = 128
    batch_gpu: int = 128
    kimg: float = 500.0
    tick: float = 5.0
    snap: int = 10
    lr: float = 0.2  # at its peak
    momentum: float = 0.9  # Nesterov's
    weight_decay: float = 5e-4
    smoothing: float = 0.1  # the part of each label that is spread over all classes
    shift: float = 1 / 8  # the largest random shift, as a part of the side
    mirror: bool = True  # flip half of the pictures left-right


def resolve(options: Mapping[str, Any], resolution: int, img_channels: int, c_dim: int, gpus: int) -> TrainConfig:
    """The configuration for a data set: the preset `options["cfg"]`, with every option that is given over it.

    `options` holds names as on the command line with underscores; None means not given.

    Raises:
        UserError: for values that do not go together.
    """
    given = {name: value for name, value in options.items() if value is not None}
    cfg = given.get("cfg", "auto")
    values = _preset(cfg, resolution, gpus)
    processes = gpus or given.get("procs") or values.get("procs", 1)
    values["procs"] = processes

    batch = given.get("batch", values["batch"])
    batch_gpu = split_batch(batch, given.get("batch_gpu"), processes)
    # Karras et al. 2020 (StyleGAN2-ADA), `auto`: a heuristic for R1's weight
    values.setdefault("gamma", 0.0002 * resolution**2 / batch)
    values.setdefault("mbstd_group", 4)

    if given.get("init_from"):  # what is there has been averaged, and D knows its pictures (StyleGAN2-ADA, appendix C)
        values |= {"ema_rampup": None, "ada_kimg": 100.0}
    values.update(given)
    values["batch_gpu"] = batch_gpu
    values["precision"] = resolve_precision(values.get("precision"), gpus)
    if values.get("aug", "noaug") == "noaug":
        useless = [f"--{name}" for name in ("augpipe", "target", "p") if name in given]
        if useless:
            raise UserError(f"{' and '.join(useless)} without augmentation; add --aug ada or --aug fixed")
    if values.get("aug") == "fixed" and "p" not in given:
        raise UserError("--aug fixed needs --p, the probability of each transform")
    if values.get("freezed") and not values.get("init_from"):
        raise UserError("--freezed without --init-from would keep layers that never learned; name a run to start from")
    modulation = values.get("modulation", "adaconv")
    norm = values.get("norm") or ("instance" if modulation == "adain" else "demod")
    network = {
        "resolution": resolution,
        "img_channels": img_channels,
        "c_dim": c_dim,
        "cbase": values["cbase"],
        "cmax": values["cmax"],
        "map_depth": values["map_depth"],
    }
    names = {f.name for f in fields(GeneratorConfig)}
    own = {name: value for name, value in values.items() if name in names}
    try:
        generator = GeneratorConfig(**{**own, **network, "modulation": modulation, "norm": norm})
    except ValueError as error:
        raise UserError(f"--modulation {modulation} --norm {norm}: {error}") from None
    # samples that share a standard deviation are in one process, and there at the same time
    discriminator = DiscriminatorConfig(**network, mbstd_group=min(batch_gpu, values["mbstd_group"]))

    names = {f.name for f in fields(TrainConfig)}
    own = {name: value for name, value in values.items() if name in names}
    return TrainConfig(
        **{**own, "generator": generator, "discriminator": discriminator, "gpus": gpus, "procs": processes}
    )


def resolve_classifier(options: Mapping[str, Any], gpus: int) -> ClassifierConfig:
    """The configuration that the options give, as `resolve` does. Raises UserError."""
    names = {f.name for f in fields(ClassifierConfig)}
    values = {name: value for name, value in options.items() if name in names and value is not None}
    processes = gpus or values.get("procs", 1)
    values["batch_gpu"] = split_batch(values.get("batch", ClassifierConfig.batch), values.get("batch_gpu"), processes)
    values["precision"] = resolve_precision(values.get("precision"), gpus, cpu=cpu_precision())
    return ClassifierConfig(**{**values, "gpus": gpus, "procs": processes})


def split_batch(batch: int, batch_gpu: int | None, processes: int) -> int:
    """How many pictures of a batch each process takes at a time: `batch_gpu`, or all of its part. Raises UserError."""
    if batch % processes:
        raise UserError(
            f"--batch {batch} cannot be split evenly over {processes} processes; take a multiple of {processes}"
        )
    part = batch // processes
    if part % (batch_gpu or part):
        raise UserError(
            f"--batch-gpu {batch_gpu} does not divide the {part} pictures of a process (--batch {batch}, "
            f"{processes} processes); take a divisor"
        )
    return batch_gpu or part


def resolve_precision(precision: str | None, gpus: int, cpu: str = "fp32") -> str:
    """What `auto`, or nothing, means on this machine; without GPUs `cpu`."""
    if precision not in (None, "auto"):
        return precision
    return cpu if not gpus else "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def cpu_precision() -> str:
    """bf16 where the CPU computes with it, as with AVX512-BF16 or AMX; else fp32."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of PyTorch do not tell
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def _preset(cfg: str, resolution: int, gpus: int) -> dict[str, Any]:
    if cfg == "auto":
        # StyleGAN2-ADA's `auto`: the batch as large as the memory of the GPUs suggests
        processes = max(gpus, 1)
        batch = max(min(processes * min(4096 // resolution, 32), 64), processes)
        return {
            "batch": batch - batch % processes,
            "cbase": 32768 if resolution >= 512 else 16384,
            "cmax": 512,
            "map_depth": 2,
            "glr": 0.002 if resolution >= 1024 else 0.0025,
            "dlr": 0.002 if resolution >= 1024 else 0.0025,
            "ema_kimg": batch * 10 / 32,
        }
    if cfg == "demo":
        # Small enough for two CPU cores: minutes at 32².
        return {
            "batch": 16,
            "cbase": 1024,
            "cmax": 64,
            "z_dim": 128,
            "w_dim": 128,
            "style_channels": 32,
            "map_depth": 2,
            "noise": False,  # the strengths would be learned faster than to do without
            "gamma": 1.0,
            "glr": 0.0025,
            "dlr": 0.0025,
            "ema_kimg": 5.0,
            "kimg": 24,
            "tick": 1.0,
            "snap": 12,
            "metrics": ["swd2k"],
            "procs": 2,  # of one thread each: small networks gain nothing from threads
            "workers": 1,
        }
    if cfg in PUBLISHED:
        return {"ema_rampup": None, "map_depth": 8, "cmax": 512, **PUBLISHED[cfg]}
    raise UserError(f"--cfg {cfg} is unknown; there are {', '.join(PRESETS)}")


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """What a resumed run would do differently, as `name: old in the run, new asked`; empty if nothing."""
    a, b = _flat(asdict(old)), _flat(asdict(new))
    return [
        f"{name}: {a.get(name)} in the run, {b.get(name)} asked"
        for name in sorted(a.keys() | b.keys())
        if name not in new.changeable and a.get(name) != b.get(name)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
