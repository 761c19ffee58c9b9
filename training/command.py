"""What the training scripts share: the options of a run, starting it, and going on with it."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from click.core import ParameterSource

from torch_utils import cli, distributed
from torch_utils.files import write_file
from training.checkpoint import find_state, load_state, look_is_due, new_run
from training.config import RunConfig, differences

if TYPE_CHECKING:
    from training.loop import Build


@dataclass
class Script:
    """What is special to one training script."""

    task: Callable[[], Build]  # imports what is trained, which takes a second that --help need not wait for
    configure: Callable[[dict[str, Any], bool], RunConfig]  # of the options given, and whether it is a new run
    fingerprint: Callable[[RunConfig], str]  # of the data
    run_name: Callable[[RunConfig], str]
    note: Callable[[RunConfig], str] = lambda config: ""  # what the user should hear, if anything
    data_options: str = "--data"  # that name the data

    @property
    def name(self) -> str:
        """Of the file, as `python train.py` has it."""
        return self.task().script


def run_options(kimg: float, tick: float, snap: int) -> Callable:
    """The options under "Run", with these defaults in their help."""
    positive = cli.Float(0, min_open=True)
    return _all(
        cli.option("Run", "--outdir", default="runs", help="Where the folders of runs are."),
        cli.option("Run", "--desc", metavar="TEXT", help="A word to add to the run's name."),
        cli.option(
            "Run",
            "--resume",
            metavar="[PATH]",
            is_flag=False,
            flag_value="",
            help="Continue a run (a folder or a state in it); without PATH the newest under --outdir that has a state.",
        ),
        cli.option("Run", "--kimg", type=positive, help=f"Thousands of pictures to train on.  [default: {kimg:g}]"),
        cli.option(
            "Run", "--tick", type=cli.Float(0.001), help=f"kimg between two lines of the log.  [default: {tick:g}]"
        ),
        cli.option("Run", "--snap", type=click.IntRange(1), help=f"Ticks between two snapshots.  [default: {snap}]"),
        cli.option(
            "Run", "--keep", type=click.IntRange(1), help="Training states that stay, the newest.  [default: 2]"
        ),
        cli.option("Run", "--seed", type=click.IntRange(0, 2**31), help="Of everything random.  [default: 0]"),
        cli.option("Run", "--dry-run", is_flag=True, help="Print the resolved configuration and stop."),
    )


def machine_options(half: str, compiled: str, cpu: str = "fp32") -> Callable:
    """The options under "Machine"; the words say what half precision and compilation are for, and the CPU's `auto`."""
    precision = click.Choice(["auto", "fp32", "bf16", "fp16"])
    return _all(
        cli.option("Machine", "--gpus", type=click.IntRange(0), help="0 for the CPU.  [default: all that are there]"),
        cli.option(
            "Machine", "--procs", type=click.IntRange(1), help="Processes on the CPU, one thread each if several."
        ),
        cli.option(
            "Machine", "--workers", type=click.IntRange(0, 64), help="Processes that read pictures.  [default: 2]"
        ),
        cli.option(
            "Machine",
            "--batch-gpu",
            type=click.IntRange(1, 2**16),
            help="Pictures of a batch at a time on each GPU; less takes less memory.  [default: all]",
        ),
        cli.option(
            "Machine",
            "--precision",
            type=precision,
            help=f"Of {half}.  [default: auto: bf16 on GPUs that have it, else fp16; {cpu} on the CPU]",
        ),
        cli.option(
            "Machine", "--tf32", is_flag=True, help="Let GPUs round the factors of float32 products to 10 bits."
        ),
        cli.option("Machine", "--compile", is_flag=True, help=f"Compile {compiled}: minutes at first."),
    )


def _all(*options: Callable) -> Callable:
    def decorate(function: Callable) -> Callable:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def start(script: Script, outdir: str, resume: str | None, dry_run: bool, options: dict[str, Any]) -> None:
    """What a training script does once its command line is read."""
    context = click.get_current_context()
    given = {
        name: value
        for name, value in options.items()
        if context.get_parameter_source(name) == ParameterSource.COMMANDLINE
    }

    # Started by torchrun, the processes find each other, and rank 0 decides for all.
    together = nullcontext()
    if distributed.under_torchrun():
        given |= options_of_the_world(given)
        together = distributed.group(gpus=given["gpus"] > 0)
    with together:
        prepared = distributed.on_rank_0(prepare, script, given, options, outdir, resume, dry_run)
        if prepared is None:
            return
        config, run, state, data_hash = prepared

        from training.loop import train

        try:
            if distributed.rank() and script.fingerprint(config) != data_hash:
                raise cli.UserError(
                    f"{config.data} on {platform.node()} is not the data set that process 0 has; copy it"
                )
            task = script.task()
            distributed.launch(train, task, config, run, state, processes=config.procs, gpus=config.gpus > 0)
        finally:
            trained = any((run / name).exists() for name in ("stats.jsonl", "state"))
            if distributed.rank() == 0 and state is None and not trained:  # it failed at the start
                shutil.rmtree(run, ignore_errors=True)


def options_of_the_world(given: dict[str, Any]) -> dict[str, int]:
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
    script: Script,
    given: dict[str, Any],
    options: dict[str, Any],
    outdir: str,
    resume: str | None,
    dry_run: bool,
) -> tuple[RunConfig, Path, Path | None, str] | None:
    """What to train, in which folder, from which state, on data with which fingerprint; None if there is nothing to do.

    `given` are the options that the user gave, `options` all of them. Makes the folder and writes the configuration.
    """
    desc = given.get("desc", "")
    if not re.fullmatch(r"[\w.-]*", desc):
        raise cli.UserError(f"--desc {desc!r} becomes part of a folder's name: write letters, digits, - and _ only")

    state, about = None, {}
    if resume is not None:
        if desc:
            raise cli.UserError("--desc names a new run; leave it out with --resume")
        state = find_state(Path(resume or outdir))
        reached = {name: value for name, value in load_state(state).items() if name in ("config", "step", "look")}
        run = state.parent.parent
        options, about = recorded(run)
        if (other := about.get("script", script.name)) != script.name:
            raise cli.UserError(f"{run} is a run of another script; go on with: python {other} --resume {run}")
        given = {**options, **given}
    config = script.configure(given, state is None)
    data_hash = script.fingerprint(config)
    if state is not None:
        kimg = check_resumable(reached, run, config)
        if about.get("data_hash", data_hash) != data_hash:
            raise cli.UserError(
                f"{config.data} is not the data set that {run} was begun with: its files or labels are others; "
                f"name that one with {script.data_options}, or start a new run without --resume"
            )

    if dry_run:
        print(json.dumps(asdict(config), indent=2))
        return None
    if state is None:
        run = new_run(cli.writable_folder(outdir), "-".join(filter(None, [script.run_name(config), desc])))
    elif kimg >= config.kimg and not look_is_due(run, script.task().look_name, reached, kimg):
        more = f"; train on with python {script.name} --resume {run} --kimg MORE" if "kimg" in config.changeable else ""
        print(f"{run} is done: it has come to kimg {kimg:g} of {config.kimg:g}{more}", file=sys.stderr)
        return None
    record(
        run,
        config,
        given,
        {"script": script.name, "command": sys.argv, **machine(config), "data_hash": data_hash, **about},
    )
    print(f"run: {run}" + (f", from {state.name}" if state else ""), file=sys.stderr)
    if note := script.note(config):
        print(f"note: {note}", file=sys.stderr)
    return config, run, state, data_hash


def count_gpus(given: dict[str, Any]) -> int:
    """How many GPUs to take: what was asked for, else all. Raises UserError where they are not there."""
    there = torch.cuda.device_count()
    gpus = given.get("gpus", there)
    if gpus > there and not distributed.under_torchrun():
        raise cli.UserError(
            f"--gpus {gpus}: this machine has {there}; take --gpus {there}" + " (the CPU)" * (there == 0)
        )
    return gpus


def recorded(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options, and what config.json says about the run, as `record` wrote them."""
    try:
        options, config = (json.loads((run / name).read_text()) for name in ("options.json", "config.json"))
        return dict(options), dict(config["about"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise cli.UserError(f"{run} is no run to go on with ({reason}); name one of this script's folders") from None


def check_resumable(state: dict[str, Any], run: Path, config: RunConfig) -> float:
    """The kimg that a state has come to. Raises UserError where a weight depends on a difference to `config`."""
    try:
        old = type(config).from_dict(state["config"])
        kimg = state["step"] * old.batch / 1000
    except (TypeError, KeyError, ValueError) as error:
        raise cli.UserError(f"{run} is of another version of this project ({error}); start a new run") from None
    if changed := differences(old, config):
        raise cli.UserError(f"{run} cannot go on with another configuration ({'; '.join(changed)}); leave these out")
    return kimg


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
