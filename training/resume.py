"""Whether a run can go on from its state with these options: its records, and what may differ from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch

from media.shards import is_sharded
from torch_utils import distributed
from torch_utils.errors import UserError, command_line, one_line, plural
from torch_utils.schema import check_values, read_json
from training.config import (
    WITHOUT_OPTION,
    ClassifierConfig,
    RunConfig,
    StylizerTrainConfig,
    TrainConfig,
    differences,
)

SCRIPTS: dict[str, type[RunConfig]] = {
    "train.py": TrainConfig,
    "train_stylizer.py": StylizerTrainConfig,
    "train_encoder.py": ClassifierConfig,
}


@dataclass
class About:
    """What config.json records about a run, as far as it is read again."""

    script: Literal["train.py", "train_stylizer.py", "train_encoder.py"]
    data_hash: str


ABOUT = {field.name for field in fields(About)}


def options_to_resume(recorded: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a run goes on with. One that is typed replaces what was recorded, and --gpus also --procs."""
    replaced = {*typed, "procs"} if "gpus" in typed else set(typed)
    return {**{name: value for name, value in recorded.items() if name not in replaced}, **typed}


def kept_fields(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a run keeps as it began, but for options that are typed: fields of its generator that no option sets;
    schedules, which end with the kimg that were asked for first; and what --cfg auto makes of the number of GPUs.

    Of states that are no generator's, nothing; what is wrong with a damaged one, `check_resumable` says.
    """
    try:
        config = TrainConfig.from_dict(state["config"])
    except (TypeError, KeyError, ValueError):
        return {}
    kept = {name: getattr(config.generator, name) for name in WITHOUT_OPTION}
    kept |= {name: getattr(config, name) for name in ("schedules", "batch", "gamma", "ema_kimg")}
    return kept | {"mbstd_group": config.discriminator.mbstd_group}


def check_gpus(run: Path, options: Mapping[str, Any], typed: Mapping[str, Any]) -> None:
    """Raises UserError where a run was trained with --gpus, and this machine has fewer."""
    before, here = options.get("gpus", 0), torch.cuda.device_count()
    if before > here and "gpus" not in typed and not distributed.under_torchrun():
        raise UserError(
            f"{run} was trained on {plural(before, 'GPU')}, and this machine has {here}; resume it on such a machine, "
            f"or go on here, with other random numbers, by adding --gpus {here}"
        )


def check_data_paths(run: Path, given: Mapping[str, Any]) -> None:
    """Raises UserError where the data of a run that is resumed is no longer where it was, as on another machine."""
    for name in ("data", "content", "style", "test"):
        path = given.get(name)
        if path and not is_sharded(path) and not Path(path).exists():
            raise UserError(
                f"there is no {path} here, which --{name} of {run} was (from {Path.cwd()}); "
                f"say where it is now with: {command_line('--resume', run, f'--{name}', 'PATH')}"
            )


def recorded(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options, and what config.json says about the run, as `record` wrote them."""
    try:
        options, config = (read_json(run / name) for name in ("options.json", "config.json"))
        about = config["about"]
        if not isinstance(options, dict) or not isinstance(about, dict):
            raise ValueError("its records are no JSON objects")
        check_values(About, {name: value for name, value in about.items() if name in ABOUT})
        return options, about
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = one_line(error, 200)
        raise UserError(
            f"{run} is not a run that can be resumed ({reason}); name a run folder of this script"
        ) from None


def check_options(run: Path, options: dict[str, Any], script: str) -> None:
    """Raises UserError unless the recorded options of a run are such as could be typed."""
    try:
        SCRIPTS[script].check_options(options)
    except ValueError as error:
        raise UserError(f"{run / 'options.json'} is damaged ({error}); correct it, or start a new run") from None


def check_resumable(state: dict[str, Any], run: Path, config: RunConfig, asked: bool = True) -> float:
    """The kimg that a state has come to. Raises UserError where training would go on differently with `config`.

    The number of processes may differ where it was `asked` for with --gpus or --procs, and not only found here.
    """
    try:
        old = type(config).from_dict(state["config"])
        kimg = state["step"] * old.batch / 1000
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"{run} is of another version of this project ({one_line(error, 200)}); start a new run"
        ) from None
    group = old.discriminator.mbstd_group if isinstance(old, TrainConfig) else 0
    if config.batch_gpu < group:
        raise UserError(
            f"--batch-gpu would be {config.batch_gpu}, and the discriminator of {run} compares {group} images with one "
            f"another; take {group} or more with --batch-gpu, and fewer processes if need be"
        )
    if changed := differences(old, config):
        begin = command_line("--init-from", run)
        other = f", or begin a new run from its weights with {begin}" if isinstance(config, TrainConfig) else ""
        raise UserError(
            f"{run} cannot be resumed with another configuration ({'; '.join(changed)}); leave these out{other}"
        )
    if old.gpus != config.gpus and not asked:
        where = plural(old.gpus, "GPU") if old.gpus else "the CPU"
        possible = old.gpus <= torch.cuda.device_count()
        exactly = f"add --gpus {old.gpus}" if possible else "resume it on such a machine"
        raise UserError(
            f"{run} was trained on {where}, and would continue differently here; {exactly}, or go on here, with other "
            f"random numbers, by adding --gpus {config.gpus}"
        )
    return kimg


def continuation(state: dict[str, Any], config: RunConfig) -> str:
    """What the user should know where a run goes on in other processes than those of the state; mostly empty."""
    old = type(config).from_dict(state["config"])
    before, now = (
        f"{plural(c.gpus, 'GPU') if c.gpus else plural(c.procs, 'CPU process', 'es')}, microbatches of {c.batch_gpu}"
        for c in (old, config)
    )
    if before == now:
        return ""
    return (
        f"this run goes on with {now}, and so far had {before}: it sees the same images in the same order, but is not "
        "the same bit for bit"
    )
