"""The presets of --cfg: published values, and those that adapt to the data set and the machine."""

from __future__ import annotations

import math
from typing import Any

from torch_utils.errors import UserError

# Of StyleGAN2 (Karras et al. 2020) for 1024² FFHQ, and of StyleGAN2-ADA (Karras et al. 2020, appendix D).
PUBLISHED: dict[str, dict[str, Any]] = {
    "stylegan2": {
        "batch": 32, "batch_gpu": 4, "cbase": 32768, "glr": 0.002, "dlr": 0.002, "gamma": 10.0, "ema_kimg": 10.0,
    },
    "paper256": {
        "batch": 64, "batch_gpu": 8, "cbase": 16384, "glr": 0.0025, "dlr": 0.0025, "gamma": 1.0, "ema_kimg": 20.0,
        "mbstd_group": 8,
    },
    "paper512": {
        "batch": 64, "batch_gpu": 8, "cbase": 32768, "glr": 0.0025, "dlr": 0.0025, "gamma": 0.5, "ema_kimg": 20.0,
        "mbstd_group": 8,
    },
    "paper1024": {
        "batch": 32, "batch_gpu": 4, "cbase": 32768, "glr": 0.002, "dlr": 0.002, "gamma": 2.0, "ema_kimg": 10.0,
    },
    # But with the residual discriminator of all others.
    "cifar": {  # without path length regularization and style mixing
        "batch": 64, "batch_gpu": 32, "cbase": 32768, "glr": 0.0025, "dlr": 0.0025, "gamma": 0.01, "ema_kimg": 500.0,
        "ema_rampup": 0.05, "map_depth": 2, "mbstd_group": 32, "pl_weight": 0.0, "mixing": 0.0, "kimg": 100000.0,
    },
}  # fmt: skip

PUBLISHED_AT = {"stylegan2": 1024, "paper256": 256, "paper512": 512, "paper1024": 1024, "cifar": 32}  # resolutions

# R3GAN (Huang et al. 2024, appendix) for CIFAR-10, FFHQ at 64² and 256²: p and ema_kimg are the last values of their
# schedules. Other resolutions take the values of the nearest one.
R3GAN: dict[int, dict[str, float]] = {
    32: {"batch": 512, "gamma": 0.05, "p": 0.55, "ema_kimg": 5000.0},
    64: {"batch": 256, "gamma": 2.0, "p": 0.3, "ema_kimg": 500.0},
    256: {"batch": 256, "gamma": 150.0, "p": 0.3, "ema_kimg": 500.0},
}
R3GAN_DECAY_KIMG = 20000.0
PRESETS = ("auto", "demo", "r3gan", *PUBLISHED)


def preset(cfg: str, resolution: int, gpus: int) -> dict[str, Any]:
    """The values of a preset for a data set's nominal resolution and the number of GPUs. Raises UserError."""
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
            "aug": "ada",
            "class_map_depth": 8,
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
            "kimg": 40,
            "tick": 1.0,
            "snap": 10,
            "metrics": ["swd2k"],
            "procs": 2,  # of one thread each: small networks gain nothing from threads
            "workers": 1,
        }
    if cfg == "r3gan":
        published = R3GAN[min(R3GAN, key=lambda known: abs(math.log2(known / resolution)))]
        network = {"cbase": 32768 if resolution >= 512 else 16384, "cmax": 512, "map_depth": 2}
        recipe = {"loss": "relativistic", "pl_weight": 0.0, "mixing": 0.0, "mbstd_group": 0}
        return {"glr": 2e-4, "dlr": 2e-4, "aug": "fixed", "augpipe": "r3gan", **network, **recipe, **published}
    if cfg in PUBLISHED:
        shared = {"ema_rampup": None, "map_depth": 8, "cmax": 512, "aug": "ada", "class_map_depth": 8}
        return {**shared, **PUBLISHED[cfg]}
    raise UserError(f"--cfg {cfg} is unknown; there are {', '.join(PRESETS)}")


def default_batch_gpu(cfg: str, share: int) -> int:
    """The images of a microbatch where --batch-gpu is not given, of a process's `share` of the batch: the published
    number for each GPU, so that fewer GPUs accumulate gradients, or else the whole share.
    """
    published = PUBLISHED.get(cfg, {}).get("batch_gpu", share)
    return share if share % published else published
