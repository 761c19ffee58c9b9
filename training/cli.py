"""What the training scripts share: the options of a run, starting it, and resuming it."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from torch_utils import cli, distributed
from torch_utils.cli import typed
from torch_utils.errors import UserError, command_line, note
from torch_utils.files import write_file
from training.config import RunConfig
from training.loop import Trainer, train
from training.resume import (
    check_data_paths,
    check_gpus,
    check_options,
    check_resumable,
    config_of,
    continuation,
    kept_fields,
    options_to_resume,
    recorded,
    without_missing_weights,
)
from training.runs import check_free, check_run, evaluation_is_due, find_state, load_state, new_run, training_in


def run_options(kimg: str, tick: str, snap: str) -> Callable:
    """The options under "Run", with what their help says of their defaults."""
    kimg_type = cli.Float(0, 1e9, min_open=True)
    return _all(
        cli.option("Run", "--outdir", default="runs", help="Folder in which every run gets a folder of its own."),
        cli.option("Run", "--desc", metavar="TEXT", help="Text to add to the name of the run's folder."),
        cli.option(
            "Run",
            "--resume",
            metavar="[PATH]",
            is_flag=False,
            flag_value="",
            help="Resume a run: its folder or one of its training states. Without PATH, the newest run under --outdir "
            "that has a training state.",
        ),
        cli.option(
            "Run",
            "--kimg",
            type=kimg_type,
            help=f"Length of the training, in thousands of images.  [default: {kimg}]",
        ),
        cli.option(
            "Run",
            "--tick",
            type=cli.Float(0.001, 1e9),
            help=f"Interval between two lines of the log, in kimg.  [default: {tick}]",
        ),
        cli.option(
            "Run",
            "--snap",
            type=cli.Integer(1, 2**31),
            help=f"Interval between two snapshots, in ticks.  [default: {snap}]",
        ),
        cli.option(
            "Run",
            "--autosave",
            metavar="MINUTES",
            type=cli.Float(0, 1e6),
            help="Save a training state at the first tick that is this long after the last one, so that a crash costs "
            "no more; 0 saves them with snapshots only.  [default: 15]",
        ),
        cli.option(
            "Run",
            "--keep",
            type=cli.Integer(1, 2**31),
            help="Number of training states to keep; older ones are deleted.  [default: 2]",
        ),
        cli.option("Run", "--seed", type=cli.Integer(0, 2**31), help="Seed of all random numbers.  [default: 0]"),
        cli.option("Run", "--dry-run", is_flag=True, help="Print the complete configuration and stop."),
    )


def machine_options(
    half: str,
    compiled: str,
    cpu: str = "fp32",
    procs: str = "1",
    workers: str = "2",
    batch_gpu: str = "the GPU's share of --batch",
) -> Callable:
    """The options under "Machine"; the words say what half precision and compilation are for, the CPU's `auto`, and
    defaults."""
    precision = click.Choice(["auto", "fp32", "bf16", "fp16"])
    return _all(
        cli.option(
            "Machine",
            "--gpus",
            type=cli.Integer(0, 2**16),
            help="Number of GPUs; 0 trains on the CPU.  [default: all of this machine]",
        ),
        cli.option(
            "Machine",
            "--procs",
            type=cli.Integer(1, 2**16),
            help=f"Number of training processes on the CPU; several have one thread each.  [default: {procs}]",
        ),
        cli.option(
            "Machine",
            "--workers",
            type=cli.Integer(0, 64),
            help=f"Number of processes that read images, for each training process.  [default: {workers}]",
        ),
        cli.option(
            "Machine",
            "--batch-gpu",
            type=cli.Integer(1, 2**16),
            help="Images of a microbatch on each GPU: smaller ones take less memory, and their gradients are "
            f"accumulated.  [default: {batch_gpu}]",
        ),
        cli.option(
            "Machine",
            "--precision",
            type=precision,
            help=f"Precision of {half}.  [default: auto, which is bf16 on GPUs that have it, else fp16; {cpu} on the "
            "CPU]",
        ),
        cli.option(
            "Machine",
            "--tf32",
            is_flag=True,
            help="Allow TF32: GPUs round the factors of float32 products to 10 bits.",
        ),
        cli.option(
            "Machine",
            "--compile",
            is_flag=True,
            help=f"Compile {compiled} with torch.compile, which takes minutes at the start.",
        ),
    )


def _all(*options: Callable) -> Callable:
    def decorate(function: Callable) -> Callable:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


Configure = Callable[[Mapping[str, Any], bool], RunConfig]  # of the options, and whether a run is resumed
TrainerFor = Callable[[Any], type[Trainer]]  # of a configuration


@dataclass(frozen=True)
class Start:
    """What a training begins with: its configuration, its folder, and the state to resume from, if any."""

    config: RunConfig
    run: Path
    state: Path | None
    data_hash: str  # the data's fingerprint, equal on all machines
    record: Callable[[], None] | None = None  # writes the records of a run that goes on, once it has proved that it can


def start(script: str, configure: Configure, trainer_for: TrainerFor, options: dict[str, Any]) -> None:
    """What a training script does once its command line is read: finds or makes the run, and trains.

    `script` is the name of its file, which a run records so that another script does not resume it.
    """
    outdir, resume, dry_run = options["outdir"], options["resume"], options["dry_run"]
    given = {
        name: value for name, value in options.items() if typed(name) and name not in ("outdir", "resume", "dry_run")
    }

    # The processes that torchrun starts find each other first, and then rank 0 decides for all.
    process_group: AbstractContextManager = nullcontext()
    gpus_typed = "gpus" in given
    if distributed.under_torchrun():
        given |= torchrun_options(given)
        process_group = distributed.group(gpus=given["gpus"] > 0)
    with process_group:
        begun = distributed.on_rank_0(
            prepare, script, configure, trainer_for, given, gpus_typed, outdir, resume, dry_run
        )
        if begun is None:
            return
        config, run = begun.config, begun.run
        trainer_class = trainer_for(config)
        try:
            if distributed.rank() and trainer_class.fingerprint(config) != begun.data_hash:
                raise UserError(
                    f"{config.data} on {platform.node()} is not the data set that process 0 has; copy its file here"
                )
            processes, gpus = config.procs, config.gpus > 0
            with training_in(run) if distributed.rank() == 0 else nullcontext():
                work = (train, trainer_class, config, run, begun.state, begun.record)
                distributed.launch(*work, processes=processes, gpus=gpus)
        finally:
            trained = any((run / name).exists() for name in ("stats.jsonl", "state"))
            if distributed.rank() == 0 and begun.state is None and not trained:  # it failed at the start
                shutil.rmtree(run, ignore_errors=True)


def torchrun_options(given: dict[str, Any]) -> dict[str, int]:
    """--gpus and --procs of all machines together; what the user gave has to agree with the processes of this one."""
    here, there = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    gpus = given.get("gpus", there) > 0
    for name in ("gpus", "procs"):
        if given.get(name, 0) not in (0, here):
            raise click.UsageError(f"--{name} {given[name]}: torchrun has started {here} processes here; leave it out")
    if gpus and here > there:
        raise click.UsageError(f"--nproc-per-node {here}: this machine has {there} GPUs; --gpus 0 takes the CPU")
    world = int(os.environ["WORLD_SIZE"])
    return {"gpus": world if gpus else 0, "procs": world}


def prepare(
    script: str,
    configure: Configure,
    trainer_for: TrainerFor,
    given: dict[str, Any],
    gpus_typed: bool,
    outdir: str,
    resume: str | None,
    dry_run: bool,
) -> Start | None:
    """Makes a new run, with its records, or finds the one to resume. None where there is nothing to train.

    `gpus_typed`: whether --gpus was typed, and is not only what torchrun has started.
    """
    desc = given.get("desc", "")
    if not re.fullmatch(r"[\w.-]*", desc):
        raise UserError(f"--desc {desc!r} becomes part of a folder's name: write letters, digits, - and _ only")
    if resume is not None:
        if resume and not os.path.exists(resume) and os.path.exists(meant := Path(outdir, resume)):
            raise UserError(f"there is no {resume}; did you mean {meant}?")
        asked = click.get_current_context(silent=True) and typed("outdir")
        if desc or (resume and asked and not Path(resume).resolve().is_relative_to(Path(outdir).resolve())):
            raise UserError(f"{'--desc' if desc else '--outdir'} is for new runs; leave it out with --resume {resume}")
        state_path = find_state(Path(resume or outdir))
        return prepare_resumed(script, configure, trainer_for, given, gpus_typed, state_path, dry_run)

    config = configure(given, False)
    data_hash = trainer_for(config).fingerprint(config)
    if dry_run:
        print_config(config)
        return None
    run = new_run(cli.writable_folder(outdir), "-".join(filter(None, [config.run_name, desc])))
    about = {"script": script, "command": sys.argv, **machine(config), "data_hash": data_hash}
    record(run, config, config.recorded_options(given), about)
    note(f"run: {run}")
    print_note(config)
    return Start(config, run, None, data_hash)


def prepare_resumed(
    script: str,
    configure: Configure,
    trainer_for: TrainerFor,
    given: dict[str, Any],
    gpus_typed: bool,
    state_path: Path,
    dry_run: bool,
) -> Start | None:
    """`prepare` for a run that is resumed from a state: with its recorded options below the given ones."""
    state = load_state(state_path)  # first, as it reports files that are not states
    run = Path(os.path.normpath(state_path.parent / ".."))  # also where a state is named from inside its folder
    check_run(run)
    options, about = recorded(run)
    if (other := about.get("script", script)) != script:
        command = command_line("python", other, "--resume", run)
        raise UserError(f"{run} is a run of another script; resume it with: {command}")
    check_options(run, options, script)
    old = config_of(state, run, script)
    check_gpus(run, old, options, given, gpus_typed)
    options, missing = without_missing_weights(run, options, given)
    given = options_to_resume(old, options, given)
    check_data_paths(run, given)
    config = configure({**kept_fields(old, given), **given}, True)
    trainer_class = trainer_for(config)
    data_hash = trainer_class.fingerprint(config)
    if about.get("data_hash", data_hash) != data_hash:
        raise UserError(
            f"{' or '.join(config.data_paths)} is not the data set that {run} was begun with: its files or labels are "
            f"others; name that one with {config.data_options}, or start a new run without --resume"
        )
    check_resumable(old, run, config)
    kimg = state["step"] * old.batch / 1000
    if dry_run:
        print_config(config)
        return None
    if kimg >= config.kimg and not evaluation_is_due(run, trainer_class.sheet_name, state, kimg):
        longer = command_line("python", script, "--resume", run, "--kimg", f"{2 * max(kimg, config.kimg):g}")
        hint = f"; train longer, for example with: {longer}" if "kimg" in config.changeable else ""
        if kimg >= config.kimg + config.batch / 1000:  # the last step of a complete run may go beyond by less
            raise UserError(f"{run} has reached kimg {kimg:g}, beyond --kimg {config.kimg:g}{hint}")
        note(f"{run} is complete: it has reached kimg {kimg:g} of the {config.kimg:g} that were asked for{hint}")
        return None
    cli.writable_folder(run / "state", remedy=f"copy {run} to where it can be written, and resume it there")
    check_free(run)
    note(f"run: {run}, from {state_path.name}")
    for line in missing:
        note(line)
    if different := continuation(old, config):
        note(f"note: {different}")
    print_note(config)
    return Start(
        config, run, state_path, data_hash, partial(record, run, config, config.recorded_options(given), about)
    )


def print_note(config: RunConfig) -> None:
    if config.note:
        note(f"note: {config.note}")


def print_config(config: RunConfig) -> None:
    print(json.dumps(asdict(config), indent=2))


def machine(config: RunConfig) -> dict[str, str]:
    return {
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if config.gpus else platform.processor() or platform.machine(),
    }


def commit() -> str:
    """The commit of this code, with a + where files differ from it; empty where git or its folder is not there.

    Records of benchmarks are not the code: one that is being written differs from the commit.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        code = [":/", ":(top,exclude)benchmarks/results"]
        status = [*git, "status", "--porcelain", "-uno", "--", *code]
        changed = subprocess.run(status, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed.strip() else "")


def record(run: Path, config: RunConfig, given: dict[str, Any], about: dict[str, Any]) -> None:
    """What a reader needs to repeat the run, and --resume to continue it with the same data and options."""
    for name, values in (("config.json", {**asdict(config), "about": about}), ("options.json", given)):
        write_file(run / name, json.dumps(values, indent=2).encode())
