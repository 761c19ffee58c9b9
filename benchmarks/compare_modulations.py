"""Modulations and variants of AdaConv, trained alike: their distances at equal kimg and at equal time.

    python benchmarks/compare_modulations.py --data faces32.zip --kimg 24 --seeds 0,1
    python benchmarks/compare_modulations.py --data faces64.zip --cbase 2048 --cmax 128 --mirror --aug ada --kimg 60 \
        --every 10 --seeds 0-2 --variants modconv,adaconv,adaconv-instance,adain --final fd5k_full@tiny-imagenet

The networks are those of `train.py --cfg demo` but for the options. Each run is one single-threaded process, `--jobs`
of them at a time; with --gpus 1 all of them share one GPU, which such small networks leave idle for most of the time. A
run that is there already is not run again and one that was stopped goes on, so that variants can
be added, and days of training divided. --final names metrics of the saved snapshots, such as those of a detector. What
comes out is in docs/results.md and docs/adaconv.md.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from measure import write_record  # noqa: E402

from metrics import parse_metric  # noqa: E402
from torch_utils import cli  # noqa: E402
from torch_utils.errors import UserError  # noqa: E402
from torch_utils.files import write_file  # noqa: E402

# What differs from `train.py --cfg demo`, by fields of GeneratorConfig or options of train.py.
VARIANTS: dict[str, dict[str, Any]] = {
    "modconv": {"modulation": "modconv"},
    "adain": {"modulation": "adain"},
    "adaconv": {},
    "adaconv-maplr0.1": {"map_lr": 0.1},
    "adaconv-depthwise0.3-maplr0.1": {"depthwise_scale": 0.3, "map_lr": 0.1},
    "adaconv-depthwise0.3": {"depthwise_scale": 0.3},
    "adaconv-bf16": {"precision": "bf16"},
    "adaconv-depthwise0.1": {"depthwise_scale": 0.1},
    "adaconv-upto32": {"kernels_up_to": 32},
    "adaconv-depthwise0.1-upto32": {"depthwise_scale": 0.1, "kernels_up_to": 32},
    "adaconv-mixing0": {"mixing_scale": 0.0},
    "adaconv-mixing1": {"mixing_scale": 1.0},
    "adaconv-bias": {"predict_bias": True},
    "adaconv-noise": {"noise": True},
    "adaconv-instance": {"norm": "instance"},
    "adaconv-depthwise0.1-instance": {"depthwise_scale": 0.1, "norm": "instance"},
    "adaconv-rank8": {"style_channels": 8},
    "adaconv-1x1": {"kernel_size": 1},
    "adaconv-5x5": {"kernel_size": 5},
}

WORKER = """
import json, sys
from pathlib import Path
from media.dataset import ImageDataset
from training.cli import check_resumable
from training.loop import train
from training.options import resolve
from training.r3gan import trainer_of
from training.runs import find_state, list_states, load_state
run, options = Path(sys.argv[1]), json.loads(sys.argv[2])
data = ImageDataset(options["data"], use_labels=options.get("cond", False))
config = resolve(options, data.resolution, data.channels, data.c_dim, options.get("gpus", 0))
state = find_state(run) if list_states(run) else None
if state:
    check_resumable(load_state(state), run, config)
finished = train(trainer_of(config), config, run, state)
sys.exit(0 if finished else 3)
"""


def python(arguments: list[str], run: Path, output: str) -> None:
    """Runs Python with one thread; a file of the run gets what it prints. Raises CalledProcessError."""
    with open(run / output, "w") as file, open(run / "log.txt", "a") as errors:
        subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdout=file,
            stderr=errors,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def train_one(run: Path, options: Mapping[str, Any]) -> dict[float, dict]:
    """Trains in a process of its own, as far as that is not done yet; returns the run's metrics by kimg.

    Raises UserError where the folder is that of a run with other options.
    """
    asked = run / "asked.json"
    before = json.loads(asked.read_text()) if asked.exists() else options
    free = ("workers",) if (run / "done").exists() else ("workers", "kimg")
    if changed := [
        name for name in {**before, **options} if before.get(name) != options.get(name) and name not in free
    ]:
        raise UserError(f"{run} was trained with another {', '.join(changed)}; name another --outdir, or remove it")
    if not (run / "done").exists():
        run.mkdir(parents=True, exist_ok=True)
        write_file(asked, json.dumps(dict(options), indent=1).encode())
        python(["-c", WORKER, str(run), json.dumps(options)], run, "trained.txt")
        (run / "done").touch()
    return {line["kimg"]: line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}


def evaluate_snapshots(run: Path, options: Mapping[str, Any], metrics: str) -> dict[float, dict]:
    """Metrics of a run's snapshots, by kimg; computed once."""
    record = run / f"{metrics.replace('/', '_')}.json"
    if not record.exists():
        what = ["--metrics", metrics, "--network", str(run), "--all", "--data", options["data"]]
        what += ["--gpus", str(options.get("gpus", 0))]
        what += ["--mirror"] * options["mirror"] + ["--json", "--plot", str(run / "metrics.svg")]
        python(["-m", "metrics", *what], run, "evaluated.json")
        (run / "evaluated.json").rename(record)
    return {line["settings"]["kimg"]: line for line in json.loads(record.read_text())["records"]}


def train_and_evaluate(run: Path, options: Mapping[str, Any], final: str) -> dict[float, dict]:
    """The metrics of training and of the saved snapshots, by kimg."""
    found = train_one(run, options)
    for kimg, values in evaluate_snapshots(run, options, final).items() if final else ():
        if kimg in found:  # a run that was stopped has a snapshot at that place as well
            found[kimg] |= values
    return found


@click.command(cls=cli.Command, example="python benchmarks/compare_modulations.py --data faces32.zip --kimg 8")
@cli.option("Data", "--data", required=True, type=click.Path(exists=True), help="Training images.")
@cli.option("Data", "--cond", is_flag=True, help="Train with the class labels.")
@cli.option("Data", "--mirror", is_flag=True, help="Add flipped copies.")
@cli.option("Training", "--kimg", default=8.0, type=cli.Float(0, min_open=True), help="Length of each run.")
@cli.option("Training", "--every", type=cli.Float(0, min_open=True), help="Interval between two evaluations, in kimg.")
@cli.option("Training", "--seeds", default="0,1", type=cli.NumberRanges(), help="Seeds of each variant.")
@cli.option("Training", "--aug", default="noaug", type=click.Choice(["noaug", "ada"]), help="Augmentation.")
@cli.option("Model", "--variants", default=",".join(VARIANTS), help="Names of variants; all where it is left out.")
@cli.option("Model", "--cbase", default=1024, type=cli.Integer(16, 2**20), help="As in train.py.")
@cli.option("Model", "--cmax", default=64, type=cli.Integer(1, 2**13), help="As in train.py.")
@cli.option("Output", "--metrics", default="swd2k", help="Metrics during training.")
@cli.option("Output", "--final", default="", metavar="METRICS", help="Metrics of the saved snapshots, afterwards.")
@cli.option("Output", "--outdir", default="runs/compare", help="Folder of the runs.")
@cli.option("Machine", "--gpus", default=0, type=cli.Integer(0, 1), help="1 trains on a GPU that all runs share.")
@cli.option("Machine", "--jobs", default=2, type=cli.Integer(1, 64), help="Runs at a time.")
@cli.option("Output", "--json", "json_path", metavar="FILE", help="Write the table there as well.")
def main(variants: str, seeds: list[int], kimg: float, every: float | None, outdir: str, gpus: int, jobs: int, **rest) -> None:
    """Train each variant with each seed and print a table of the metrics at the end."""
    final, json_path, metrics = rest.pop("final"), rest.pop("json_path"), rest.pop("metrics").split(",")
    rest["data"] = str(Path(rest["data"]).resolve())
    common = {"cfg": "demo", "kimg": kimg, "procs": 1, "workers": 0, "metrics": metrics}
    common |= {"tick": (every or kimg / 4) / 5, "snap": 5, **rest}
    if gpus:
        common |= {"gpus": gpus, "workers": 1}  # a process that decodes while the GPU computes
    work = []
    for seed in seeds:  # all variants with the first seed come first
        for name in variants.split(","):
            run = Path(outdir).resolve() / f"{name}-seed{seed}"
            work.append((name, run, {**common, "seed": seed, **VARIANTS[name]}))
    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(lambda item: train_and_evaluate(item[1], item[2], final), work))

    table: dict[str, dict[str, Any]] = {}
    for (name, _, _), found in zip(work, results, strict=True):
        row = table.setdefault(name, {"kimg": sorted(found)})
        for value in (
            v for metric in [*metrics, *filter(None, final.split(","))] for v in parse_metric(metric).rankings()
        ):
            values = [float(f"{found[k][value]:.4g}") for k in sorted(found) if value in found[k]]
            row.setdefault(value, []).append(values)
    record = {**rest, "data": Path(rest["data"]).name, "kimg": kimg, "seeds": seeds, "variants": table}
    write_record(json_path, "cuda" if gpus else "cpu", record)
    for name, row in table.items():
        ends = [f"{value} {spread([run[-1] for run in row[value]])}" for value in row if value != "kimg"]
        print(f"{name:30}", "   ".join(ends))


def spread(values: list[float]) -> str:
    """Mean ± standard deviation, where there are several."""
    text = f"{statistics.mean(values):.4g}"
    return f"{text} ± {statistics.stdev(values):.2g}" if len(values) > 1 else text


if __name__ == "__main__":
    cli.run(main)
