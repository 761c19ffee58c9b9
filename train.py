"""Trains a generator. `python train.py --data ffhq.zip --gpus 8`"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

# Before PyTorch starts its threads: where cores are shared, those that wait should not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from click.core import ParameterSource

from torch_utils import cli, distributed
from torch_utils.files import write_file
from training.augment import AUGPIPES
from training.checkpoint import find_state, load_state, look_is_due, new_run
from training.config import PRESETS, TrainConfig, differences, resolve
from training.dataset import ImageDataset

EXAMPLE = """\
python train.py --data ffhq.zip --gpus 8
python train.py --data faces32.zip --cfg demo
python train.py --resume
"""


@click.command(cls=cli.Command, example=EXAMPLE)
@cli.option("Data", "--data", metavar="PATH", help="A folder or ZIP of square pictures (see dataset_tool.py).")
@cli.option("Data", "--cond", is_flag=True, help="Train with the data set's class labels.")
@cli.option("Data", "--mirror", is_flag=True, help="Show every picture flipped left-right as well.")
@cli.option("Data", "--workers", type=click.IntRange(0, 64), help="Processes that read pictures.  [default: 2]")
@cli.option("Run", "--outdir", default="runs", help="Where the folders of runs are.")
@cli.option("Run", "--desc", metavar="TEXT", help="A word to add to the run's name.")
@cli.option(
    "Run",
    "--resume",
    metavar="[PATH]",
    is_flag=False,
    flag_value="",
    help="Continue a run (a folder or a state in it); without PATH the newest under --outdir that has a state.",
)
@cli.option(
    "Run",
    "--kimg",
    type=cli.Float(0, min_open=True),
    help="Thousands of pictures to train on.  [default: 25000]",
)
@cli.option("Run", "--tick", type=cli.Float(0.001), help="kimg between two lines of the log.  [default: 4]")
@cli.option("Run", "--snap", type=click.IntRange(1), help="Ticks between two snapshots.  [default: 50]")
@cli.option("Run", "--keep", type=click.IntRange(1), help="Training states that stay, the newest.  [default: 2]")
@cli.option("Run", "--metrics", metavar="NAMES", help="Metrics at snapshots, e.g. swd,swd2k; or none.  [default: swd]")
@cli.option("Run", "--seed", type=click.IntRange(0, 2**31), help="Of everything random.  [default: 0]")
@cli.option("Run", "--dry-run", is_flag=True, help="Print the resolved configuration and stop.")
@cli.option("Machine", "--gpus", type=click.IntRange(0), help="0 for the CPU.  [default: all that are there]")
@cli.option("Machine", "--procs", type=click.IntRange(1), help="Processes on the CPU, one thread each if several.")
@cli.option(
    "Training",
    "--cfg",
    type=click.Choice(PRESETS),
    help="Preset that the other options change. auto: StyleGAN2's size, with batch and learning rates for the "
    "resolution and the GPUs. demo: small and short, minutes on two CPU cores at 32². The others: as published, "
    "for StyleGAN2 and StyleGAN2-ADA.  [default: auto]",
)
@cli.option("Training", "--batch", type=click.IntRange(1, 2**16), help="Pictures a step, over all GPUs.")
@cli.option(
    "Training",
    "--batch-gpu",
    type=click.IntRange(1, 2**16),
    help="Of these, as many at a time on each GPU; less takes less memory.  [default: all]",
)
@cli.option(
    "Training",
    "--loss",
    type=click.Choice(["nonsaturating", "relativistic"]),
    help="nonsaturating: StyleGAN2's, with R1. relativistic: R3GAN's, with R1 and R2.  [default: nonsaturating]",
)
@cli.option("Training", "--gamma", type=cli.Float(0), help="Weight of R1.  [default: 0.0002 · resolution² / batch]")
@cli.option("Training", "--glr", type=cli.Float(0, min_open=True), help="The generator's learning rate.")
@cli.option("Training", "--dlr", type=cli.Float(0, min_open=True), help="The discriminator's learning rate.")
@cli.option(
    "Training",
    "--aug",
    type=click.Choice(["noaug", "ada", "fixed"]),
    help="Augment what the discriminator sees: ada finds out how much, fixed takes --p.  [default: noaug]",
)
@cli.option(
    "Training",
    "--augpipe",
    type=click.Choice(list(AUGPIPES)),
    help="Transforms: blit, geom, color, filter, noise, cutout, or the first letters of several.  [default: bgc]",
)
@cli.option("Training", "--target", type=cli.Float(-1, 1), help="ada's target for E[sign(D(real))].  [default: 0.6]")
@cli.option("Training", "--p", type=cli.Float(0, 1), help="Probability of each transform; for ada, the first.")
@cli.option(
    "Training",
    "--init-from",
    metavar="PATH",
    help="Start from the weights of a snapshot, a state or a run, of this resolution or half of it.",
)
@cli.option(
    "Training",
    "--freezed",
    type=click.IntRange(0, 64),
    help="Layers of the discriminator, from the picture on, that keep their weights.  [default: 0]",
)
@cli.option(
    "Machine",
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    help="Of the highest 4 resolutions.  [default: auto: bf16 on GPUs that have it, else fp16; fp32 on the CPU]",
)
@cli.option("Machine", "--tf32", is_flag=True, help="Let GPUs round the factors of float32 products to 10 bits.")
@cli.option("Machine", "--compile", is_flag=True, help="Compile the steps without regularizers: minutes at first.")
@cli.option(
    "Model",
    "--modulation",
    type=click.Choice(["adaconv", "modconv", "adain"]),
    help="What w does to a layer.  [default: adaconv]",
)
@cli.option(
    "Model",
    "--norm",
    type=click.Choice(["instance", "demod"]),
    help="Normalization of a layer.  [default: demod; instance for adain]",
)
@cli.option(
    "Model", "--cbase", type=click.IntRange(16, 2**20), help="Channels at a resolution: min(cbase / resolution, cmax)."
)
@cli.option("Model", "--cmax", type=click.IntRange(1, 2**13), help="... at most.")
@cli.option("Model", "--map-depth", type=click.IntRange(1, 64), help="Layers of the mapping network.")
def main(outdir: str, resume: str | None, dry_run: bool, **options: Any) -> None:
    """Train a StyleGAN-style generator with AdaConv modulation.

    Pictures, snapshots, figures and TensorBoard events go into a new folder under --outdir. ^C saves and stops;
    --resume goes on.
    """
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
        prepared = distributed.on_rank_0(prepare, given, options, outdir, resume, dry_run)
        if prepared is None:
            return
        config, run, state, data_hash = prepared

        from training.loop import train  # TensorBoard and the loaders take a second that --help need not wait for

        try:
            if distributed.rank() and ImageDataset(config.data, use_labels=config.cond).fingerprint != data_hash:
                raise cli.UserError(
                    f"{config.data} on {platform.node()} is not the data set that process 0 has; copy it"
                )
            distributed.launch(train, config, run, state, processes=config.procs, gpus=config.gpus > 0)
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
    given: dict[str, Any], options: dict[str, Any], outdir: str, resume: str | None, dry_run: bool
) -> tuple[TrainConfig, Path, Path | None, str] | None:
    """What to train, in which folder, from which state, on data with which fingerprint; None if there is nothing to do.

    `given` are the options that the user gave, `options` all of them. Makes the folder and writes the configuration.
    """
    if "metrics" in given:
        given["metrics"] = parse_metrics(given["metrics"])
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
        given = {**options, **given}
    config, data_hash = configure(given)
    if state is not None:
        kimg = check_resumable(reached, run, config)
        if about.get("data_hash", data_hash) != data_hash:
            raise cli.UserError(
                f"{config.data} is not the data set that {run} was begun with: its files or labels are others; "
                "name that one with --data, or start a new run without --resume"
            )

    if dry_run:
        print(json.dumps(asdict(config), indent=2))
        return None
    if state is None:
        run = new_run(cli.writable_folder(outdir), run_name(config, desc))
    elif kimg >= config.kimg and not look_is_due(run, reached, kimg):
        more = f"python train.py --resume {run} --kimg MORE"
        print(f"{run} is done: it has come to kimg {kimg:g} of {config.kimg:g}; train on with {more}", file=sys.stderr)
        return None
    record(run, config, given, {"command": sys.argv, **machine(config), "data_hash": data_hash, **about})
    print(f"run: {run}" + (f", from {state.name}" if state else ""), file=sys.stderr)
    if config.cfg == "auto" and not config.gpus:
        print("note: --cfg auto is meant for GPUs, a CPU takes months; --cfg demo trains in minutes", file=sys.stderr)
    return config, run, state, data_hash


def parse_metrics(text: str) -> list[str]:
    from metrics import parse_metric

    names = [] if text == "none" else [name.strip() for name in text.split(",")]
    for name in names:
        parse_metric(name)
    return names


def configure(given: dict[str, Any]) -> tuple[TrainConfig, str]:
    """The run's configuration from the options that were given, checked against the data and the machine.

    With it comes the data set's fingerprint.
    """
    if "data" not in given:
        raise click.UsageError("--data is missing: name a folder or ZIP of pictures")
    there = torch.cuda.device_count()
    gpus = given.get("gpus", there)
    if gpus > there and not distributed.under_torchrun():
        raise cli.UserError(
            f"--gpus {gpus}: this machine has {there}; take --gpus {there}" + " (the CPU)" * (there == 0)
        )
    dataset = ImageDataset(given["data"], use_labels=given.get("cond", False))
    return resolve(given, dataset.resolution, dataset.channels, dataset.c_dim, gpus), dataset.fingerprint


def recorded(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options, and what config.json says about the run, as `record` wrote them."""
    try:
        options, config = (json.loads((run / name).read_text()) for name in ("options.json", "config.json"))
        return dict(options), dict(config["about"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise cli.UserError(f"{run} is no run to go on with ({reason}); name a folder that train.py made") from None


def check_resumable(state: dict[str, Any], run: Path, config: TrainConfig) -> float:
    """The kimg that a state has come to. Raises UserError where a weight depends on a difference to `config`."""
    try:
        old = TrainConfig.from_dict(state["config"])
        kimg = state["step"] * old.batch / 1000
    except (TypeError, KeyError, ValueError) as error:
        raise cli.UserError(f"{run} is of another version of this project ({error}); start a new run") from None
    if changed := differences(old, config):
        raise cli.UserError(f"{run} cannot go on with another configuration ({'; '.join(changed)}); leave these out")
    return kimg


def run_name(config: TrainConfig, desc: str) -> str:
    cfg = f"{config.cfg}{config.gpus or '-cpu'}"
    return "-".join(filter(None, [Path(config.data).stem, config.generator.modulation, cfg, desc]))


def machine(config: TrainConfig) -> dict[str, str]:
    return {
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if config.gpus else platform.processor() or platform.machine(),
    }


def commit() -> str:
    """The commit of this code, with a + where files differ from it; empty where git or its folder is not there."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed.strip() else "")


def record(run: Path, config: TrainConfig, given: dict[str, Any], about: dict[str, Any]) -> None:
    """What a reader needs to repeat the run, and --resume to continue it with the same data and options."""
    for name, values in (("config.json", {**asdict(config), "about": about}), ("options.json", given)):
        write_file(run / name, json.dumps(values, indent=2).encode())


if __name__ == "__main__":
    cli.run(main)
