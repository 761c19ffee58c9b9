"""What a training run is made of, and how the command line's options become it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from networks.discriminator import DiscriminatorConfig
from networks.generator import GeneratorConfig
from torch_utils.cli import UserError


@dataclass
class TrainConfig:
    """Everything that a training run depends on. Written to the run's config.json and into every training state."""

    data: str
    generator: GeneratorConfig
    discriminator: DiscriminatorConfig
    cfg: str = "auto"
    cond: bool = False  # train with the data set's class labels
    mirror: bool = False  # show every picture flipped left-right as well
    seed: int = 0
    gpus: int = 0  # 0: the CPU
    procs: int = 1  # processes, on the CPU; on GPUs one for each
    batch: int = 32  # pictures a step, over all processes
    kimg: float = 25000  # thousands of real pictures to show
    glr: float = 0.0025
    dlr: float = 0.0025
    gamma: float = 1.0  # weight of R1
    r1_interval: int = 16  # steps between two R1 steps
    pl_weight: float = 2.0  # weight of the path length penalty
    pl_interval: int = 4
    pl_shrink: int = 2  # the path length step takes batch / pl_shrink pictures
    mixing: float = 0.9  # probability of style mixing
    ema_kimg: float = 10.0  # half-life of the averaged weights
    ema_rampup: float | None = 0.05  # ... but at most this part of what was shown so far
    w_avg_beta: float = 0.998
    tick: float = 4.0  # kimg between two lines of the log
    snap: int = 50  # ticks between two snapshots
    metrics: list[str] = field(default_factory=lambda: ["swd"])
    workers: int = 2
    keep: int = 2  # training states that stay, the newest

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of `dataclasses.asdict`."""
        return TrainConfig(
            **{
                **values,
                "generator": GeneratorConfig(**values["generator"]),
                "discriminator": DiscriminatorConfig(**values["discriminator"]),
            }
        )


# What may change when a run is resumed: nothing that a weight depends on.
CHANGEABLE = {"data", "kimg", "tick", "snap", "metrics", "workers", "keep"}


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
    if batch % processes:
        raise UserError(
            f"--batch {batch} cannot be split evenly over {processes} processes; take a multiple of {processes}"
        )
    # Karras et al. 2020 (StyleGAN2-ADA), `auto`: a heuristic for R1's weight
    values.setdefault("gamma", 0.0002 * resolution**2 / batch)

    values.update(given)
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
    # as StyleGAN2-ADA: in `auto` the group of the minibatch standard deviation is the batch of one GPU, at most 4
    discriminator = DiscriminatorConfig(**network, mbstd_group=min(batch // processes, 4))

    names = {f.name for f in fields(TrainConfig)}
    own = {name: value for name, value in values.items() if name in names}
    return TrainConfig(
        **{**own, "generator": generator, "discriminator": discriminator, "gpus": gpus, "procs": processes}
    )


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
    raise UserError(f"--cfg {cfg} is unknown; there are auto and demo")


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """What a resumed run would do differently, as `name: old in the run, new asked`; empty if nothing."""
    a, b = _flat(asdict(old)), _flat(asdict(new))
    return [
        f"{name}: {a.get(name)} in the run, {b.get(name)} asked"
        for name in sorted(a.keys() | b.keys())
        if name not in CHANGEABLE and a.get(name) != b.get(name)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
