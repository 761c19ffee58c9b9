"""Whether a run can go on from its state with these options: its records, and what may differ from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch

from media.shards import is_sharded
from networks.discriminator import group_size
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
from training.presets import default_batch_gpu, preset

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


def config_of(state: Mapping[str, Any], run: Path, script: str) -> RunConfig:
    """The configuration that a state was trained with. Raises UserError."""
    try:
        return SCRIPTS[script].from_dict(state["config"])
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"{run} is of another version of this project ({one_line(error, 200)}); start a new run"
        ) from None


def options_to_resume(old: RunConfig, recorded: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a run goes on with: what is typed, else what was recorded, but no --procs from or to GPUs."""
    given = {**recorded, **typed}
    if "procs" not in typed and (old.gpus or distributed.count_gpus(given.get("gpus"))):
        given.pop("procs", None)
    return given


def without_missing_weights(
    run: Path, recorded: Mapping[str, Any], typed: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The recorded options of a run without files of --detector-weights that are no longer there, and a line on each.

    Typed ones replace them. Metrics are no part of the training, which can do without such a file.
    """
    files = recorded.get("detector_weights") or []
    missing = [] if "detector_weights" in typed else [file for file in files if not Path(file).is_file()]
    if not missing:
        return dict(recorded), []
    lines = [
        f"note: there is no {file} here, which --detector-weights of {run} was, and the run goes on without; say where "
        "it is now with --detector-weights"
        for file in missing
    ]
    return {**recorded, "detector_weights": [file for file in files if file not in missing]}, lines


def kept_fields(old: RunConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a run keeps as it was, but for options: the precision and, on the CPU, the number of processes; of a
    generator also its fields that no option sets, schedules, which end with the kimg that were asked for first, where
    its first weights are from, and what --cfg auto makes of the number of GPUs.
    """
    kept: dict[str, Any] = {"precision": old.precision}
    if not old.gpus and not distributed.count_gpus(given.get("gpus")):
        kept["procs"] = old.procs
    if isinstance(old, TrainConfig):
        kept |= {name: getattr(old.generator, name) for name in WITHOUT_OPTION}
        kept |= {name: getattr(old, name) for name in ("schedules", "source", "batch", "gamma", "ema_kimg")}
        kept["mbstd_group"] = old.discriminator.mbstd_group
    return kept


def check_gpus(
    run: Path, old: RunConfig, recorded: Mapping[str, Any], given: Mapping[str, Any], gpus_typed: bool
) -> None:
    """Raises UserError where a run would go on with another number of GPUs than it had, and no --gpus was typed. With
    torchrun, only between the CPU and GPUs, as the number of its processes is typed.
    """
    here, torchrun = torch.cuda.device_count(), distributed.under_torchrun()
    now = given["gpus"] if torchrun else min(recorded.get("gpus", here), here)
    if gpus_typed or now == old.gpus or (torchrun and now and old.gpus):
        return
    where, this = (plural(n, "GPU") if n else "the CPU" for n in (old.gpus, now))
    possible_exactly = old.gpus <= here and not (torchrun and old.gpus)
    exactly = f"add --gpus {old.gpus}" if possible_exactly else "resume it on such a machine"
    others = [] if torchrun else [n for n in range(here, -(here == 0), -1) if n != old.gpus]
    possible = [options for n in others if (options := options_for(old, recorded, given, n))]
    other = f", or go on here, with other random numbers, by adding {possible[0]}" if possible else ""
    raise UserError(f"{run} was trained on {where}, and would continue differently on {this}; {exactly}{other}")


def options_for(old: RunConfig, recorded: Mapping[str, Any], typed: Mapping[str, Any], gpus: int) -> str:
    """The options with which a run goes on with that many GPUs, or on the CPU, beside the typed ones; "" if none do."""
    on_cpu = preset(old.cfg, 1, 0).get("procs", 1) if isinstance(old, TrainConfig) else 1
    processes = gpus or typed.get("procs", on_cpu)
    sizes = microbatches(old, processes)
    if not sizes or not {"gpus", "procs"} <= old.changeable or typed.get("procs", processes) != processes:
        return ""
    asked = {**recorded, **typed}.get("batch_gpu")
    batch_gpu = asked or default_batch_gpu(getattr(old, "cfg", ""), old.batch // processes)
    return f"--gpus {gpus}" + ("" if batch_gpu in sizes else f" --batch-gpu {nearest(sizes, batch_gpu)}")


def microbatches(old: RunConfig, processes: int) -> list[int]:
    """The sizes of microbatches with which a run can go on in so many processes, in order; [] if there are none.

    The discriminator has to take the standard deviation over groups of as many images as before.
    """
    if differs_in_stream(old, processes) or old.batch % processes:
        return []
    share, group = old.batch // processes, old.discriminator.mbstd_group if isinstance(old, TrainConfig) else 0
    before = group_size(old.batch_gpu, group)
    return [n for n in range(1, share + 1) if share % n == 0 and group_size(n, group) == before]


def nearest(sizes: list[int], asked: int) -> int:
    """Of sizes in order, the smallest that is not below the one asked for, or else the largest."""
    return next((n for n in sizes if n >= asked), sizes[-1])


def with_less_memory(config: RunConfig, resumed: bool) -> int | None:
    """The largest microbatch of at most half the size of the present one, with which a new or a resumed training can
    be started again; None if there is none.
    """
    share = config.batch // config.procs
    possible = [n for n in range(1, share + 1) if share % n == 0]
    if resumed:
        possible = microbatches(config, config.procs) if "batch_gpu" in config.changeable else []
    return max((n for n in possible if 2 * n <= config.batch_gpu), default=None)


def differs_in_stream(old: RunConfig, processes: int) -> bool:
    """Whether as many processes would get other images, which they do of data in shards."""
    return "procs" in old.of_stream and processes != old.procs


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


def check_resumable(old: RunConfig, run: Path, config: RunConfig) -> None:
    """Raises UserError where training would go on with `config` otherwise than with `old`, beyond random numbers."""
    if differs_in_stream(old, config.procs):
        processes = plural(old.procs, "process", "es")
        raise UserError(
            f"{run} has its data in shards, whose order depends on the number of processes; go on with {processes}, "
            f"by {f'--gpus {old.gpus}' if old.gpus else f'--procs {old.procs}'} or by torchrun"
        )
    if isinstance(old, TrainConfig) and isinstance(config, TrainConfig):
        check_groups(old, run, config)
    if changed := differences(old, config):
        begin = command_line("--init-from", run)
        other = f", or begin a new run from its weights with {begin}" if isinstance(config, TrainConfig) else ""
        raise UserError(
            f"{run} cannot be resumed with another configuration ({'; '.join(changed)}); leave these out{other}"
        )


def check_groups(old: TrainConfig, run: Path, config: TrainConfig) -> None:
    """Raises UserError where the discriminator would take the standard deviation over other groups of images."""
    before = group_size(old.batch_gpu, old.discriminator.mbstd_group)
    if group_size(config.batch_gpu, config.discriminator.mbstd_group) == before or config.batch != old.batch:
        return  # another batch is refused as such
    fitting = microbatches(old, config.procs)
    remedy = f"add --batch-gpu {nearest(fitting, config.batch_gpu)}" if fitting else "take fewer processes"
    raise UserError(
        f"the discriminator of {run} compares groups of {plural(before, 'image')}, which do not fit into microbatches "
        f"of {config.batch_gpu}; {remedy}"
    )


def continuation(old: RunConfig, config: RunConfig) -> str:
    """What the user should know where a run goes on in other processes than before; mostly empty."""
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
