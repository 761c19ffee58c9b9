"""Modulations and variants of AdaConv, trained alike: their distances at equal kimg and at equal time.

    python benchmarks/compare_modulations.py --data faces32.zip --kimg 24 --seeds 0,1
    python benchmarks/compare_modulations.py --data faces64.zip --cbase 2048 --cmax 128 --mirror --aug ada --kimg 60 \
        --every 10 --seeds 0-2 --variants modconv,adaconv,adaconv-instance,adain --final fd5k_full@tiny-imagenet

The networks are those of `train.py --cfg demo` but for the options. A variant is a modulation and what to change of it,
as in adaconv-instance-maplr0.5. Each run is one single-threaded process, `--jobs` of them at a time; with --gpus 1 all
of them share one GPU, which such small networks leave idle for most of the time. A run that is there already is not run
again and one that was stopped goes on, so that variants can be added, and days of training divided. --final names
metrics of the saved snapshots, such as those of a detector.

The cost of a variant is the CPU time of a thousand images in short runs that take turns, which other work on the
machine disturbs least; on a GPU it is the time that passes. With --cost-rounds, the table has the metrics at the time
that the cheapest variant took as well. benchmarks/plot_comparison.py draws the curves of a record; what came out is in
docs/results.md and docs/adaconv.md.
"""

from __future__ import annotations

import json
import os
import re
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

from measure import spread, write_record  # noqa: E402

from media.dataset import ImageDataset  # noqa: E402
from metrics import parse_metric  # noqa: E402
from networks.generator import MODULATIONS  # noqa: E402
from torch_utils import cli  # noqa: E402
from torch_utils.errors import UserError  # noqa: E402
from torch_utils.files import write_file  # noqa: E402
from training.options import resolve  # noqa: E402

Curve = Mapping[float, Mapping[str, Any]]  # metrics by kimg
Row = dict[str, Any]  # of the table: a variant's metrics

# What the parts of a variant's name change of `train.py --cfg demo`: fields of GeneratorConfig or options of train.py.
FLAGS: dict[str, dict[str, Any]] = {
    "instance": {"norm": "instance"},
    "bias": {"predict_bias": True},
    "noise": {"noise": True},
    "bf16": {"precision": "bf16"},
}
NUMBERS: dict[str, tuple[str, type]] = {
    "maplr": ("map_lr", float),
    "depthwise": ("depthwise_scale", float),
    "pointwise": ("pointwise_scale", float),
    "mixing": ("mixing_scale", float),
    "rank": ("style_channels", int),
    "kernel": ("kernel_size", int),
    "upto": ("kernels_up_to", int),
    "gamma": ("gamma", float),
    "glr": ("glr", float),
    "dlr": ("dlr", float),
    "crossover": ("mixing", float),  # probability of style mixing; "mixing" above is of the pointwise kernels
    "pl": ("pl_weight", float),
}

WORKER = """
import json, sys
from pathlib import Path
from media.dataset import ImageDataset
from training.resume import check_resumable, config_of, kept_fields
from training.loop import train
from training.options import resolve
from training.r3gan import trainer_of
from training.runs import find_state, list_states, load_state
run, options = Path(sys.argv[1]), json.loads(sys.argv[2])
data = ImageDataset(options["data"], use_labels=options.get("cond", False))
about = data.resolution, data.channels, data.c_dim, options.get("gpus", 0)
config = resolve(options, *about)
state = find_state(run) if list_states(run) else None
if state:
    old = config_of(load_state(state), run, "train.py")
    config = resolve({**kept_fields(old, options), **options}, *about)
    check_resumable(old, run, config)
finished = train(trainer_of(config), config, run, state)
sys.exit(0 if finished else 3)
"""


COST_IMAGES = 256
COST_WORKER = """
import json, sys, time
from pathlib import Path
from media.dataset import ImageDataset
from training.loop import train
from training.options import resolve
from training.r3gan import trainer_of
run, options = Path(sys.argv[1]), json.loads(sys.argv[2])
data, gpus = ImageDataset(options["data"], use_labels=options.get("cond", False)), options.get("gpus", 0)
clock = time.perf_counter if gpus else time.process_time
start = clock()
config = resolve(options, data.resolution, data.channels, data.c_dim, gpus)
train(trainer_of(config), config, run)
(run / "seconds").write_text(str(clock() - start))
"""


def python(arguments: list[str], run: Path, output: str) -> None:
    """Runs Python with one thread; a file of the run gets what it prints. Raises UserError where it fails."""
    with open(run / output, "w") as file, open(run / "log.txt", "a") as errors:
        code = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdout=file,
            stderr=errors,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ).returncode
    if code:
        last = (["", *(run / "log.txt").read_text(errors="replace").splitlines()])[-1]
        raise UserError(
            f"{run} ended with {code}; run this again to go on with it; {run / 'log.txt'} ends: {last[:300]}"
        )


def train_one(run: Path, options: Mapping[str, Any]) -> Curve:
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


def evaluate_snapshots(run: Path, options: Mapping[str, Any], metrics: str) -> Curve:
    """Metrics of a run's snapshots, by kimg; computed once."""
    record = run / f"{metrics.replace('/', '_')}.json"
    if not record.exists():
        what = ["--metrics", metrics, "--network", str(run), "--all", "--data", options["data"]]
        what += ["--gpus", str(options.get("gpus", 0))]
        what += ["--mirror"] * options["mirror"] + ["--json", "--plot", str(run / "metrics.svg")]
        python(["-m", "metrics", *what], run, "evaluated.json")
        (run / "evaluated.json").rename(record)
    return {line["settings"]["kimg"]: line for line in json.loads(record.read_text())["records"]}


def train_and_evaluate(run: Path, options: Mapping[str, Any], final: str) -> Curve:
    """The metrics of training and of the saved snapshots, by kimg."""
    found = {kimg: dict(values) for kimg, values in train_one(run, options).items()}
    for kimg, values in evaluate_snapshots(run, options, final).items() if final else ():
        if kimg in found:  # a run that was stopped has a snapshot at that place as well
            found[kimg] |= values
    return found


def seconds_per_kimg(folder: Path, options: Mapping[str, Mapping[str, Any]], rounds: int) -> dict[str, float]:
    """The time of a thousand images, start and snapshots left out, for each of `options`: medians over rounds.

    It is kept in the folder, and measured anew for all where one of `options` is not among them, or with other rounds.
    """
    kept = folder / "seconds-per-kimg.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    if known.get("rounds") == rounds and options.keys() <= known["seconds"].keys():
        return {name: known["seconds"][name] for name in options}
    found: dict[str, list[float]] = {name: [] for name in options}
    for turn in range(rounds):
        for name, values in options.items():
            counted = COST_IMAGES * (16 if values.get("gpus") else 1)  # where starting varies by more than steps take
            seconds = []
            for images in (64, 64 + counted):
                run = folder / f"cost{turn}-{file_name(name)}-{images}"
                run.mkdir(parents=True, exist_ok=True)
                short = {**values, "kimg": images / 1000, "metrics": []}
                command = [sys.executable, "-c", COST_WORKER, str(run), json.dumps(short)]
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)
                seconds.append(float((run / "seconds").read_text()))
            found[name].append((seconds[1] - seconds[0]) / counted * 1000)
    medians = {name: statistics.median(values) for name, values in found.items()}
    kept.write_text(json.dumps({"rounds": rounds, "seconds": medians}))
    return medians


def value_at(curve: Mapping[float, float], kimg: float) -> float:
    """The value of a curve at `kimg`, by straight lines between its points. Raises UserError outside of them."""
    points = sorted(curve)
    if not points or not points[0] <= kimg <= points[-1] * (1 + 1e-6):
        raise UserError(f"a run has no value at kimg {kimg:g}; train it for longer")
    after = next((point for point in points if point >= kimg), points[-1])
    before = max((point for point in points if point <= kimg), default=after)
    share = (kimg - before) / (after - before) if after > before else 0.0
    return curve[before] + share * (curve[after] - curve[before])


def tabulate(curves: Mapping[str, list[Curve]], metrics: list[str], cost: Mapping[str, float]) -> dict[str, Row]:
    """For each variant the values of each metric, seed by seed, at all kimg; with costs also those at equal time.

    Equal time is what the cheapest variant took for the shortest of the runs. A value is None where a metric was not
    computed: --final has none of the untrained network, which is not saved.
    """
    length = min(max(curve) for found in curves.values() for curve in found)
    table: dict[str, Row] = {}
    for name, found in curves.items():
        row = table[name] = {"kimg": sorted(set.intersection(*map(set, found)))}
        for metric in metrics:
            row[metric] = [[rounded(curve[k].get(metric)) for k in row["kimg"]] for curve in found]
        if name in cost:
            kimg = length * min(cost.values()) / cost[name]
            row |= {"seconds_per_kimg": rounded(cost[name]), "kimg_at_equal_time": rounded(kimg)}
            for metric in metrics:
                at = [value_at({k: v[metric] for k, v in curve.items() if metric in v}, kimg) for curve in found]
                row[f"{metric} at equal time"] = [rounded(value) for value in at]
    return table


def rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def changes(variant: str) -> dict[str, Any]:
    """What a variant changes: adaconv-instance-maplr0.5 has the norm "instance" and a map_lr of 0.5.

    Raises UserError for a name that is none.
    """
    modulation, *parts = variant.split("-")
    found: dict[str, Any] = {"modulation": modulation}
    try:
        for part in parts:
            name = part.rstrip("0123456789.")
            if part in FLAGS:
                found |= FLAGS[part]
            else:
                field, number = NUMBERS[name]
                found[field] = number(part.removeprefix(name))
        if modulation not in MODULATIONS:
            raise KeyError(modulation)
    except (KeyError, ValueError):
        raise UserError(
            f"--variants {variant}: write {', '.join(MODULATIONS)}, and behind it what to change, as in "
            f"adaconv-instance-maplr0.5; there are {', '.join(FLAGS)}, and before a number {', '.join(NUMBERS)}"
        ) from None
    return found


def file_name(name: str) -> str:
    return re.sub("[^a-zA-Z0-9.]+", "-", name)


@click.command(cls=cli.Command, example="python benchmarks/compare_modulations.py --data faces32.zip --kimg 8")
@cli.option("Data", "--data", required=True, type=click.Path(exists=True), help="Training images.")
@cli.option("Data", "--cond", is_flag=True, help="Train with the class labels.")
@cli.option("Data", "--mirror", is_flag=True, help="Add flipped copies.")
@cli.option("Training", "--kimg", default=8.0, type=cli.Float(0, min_open=True), help="Length of each run.")
@cli.option("Training", "--every", type=cli.Float(0, min_open=True), help="Interval between two evaluations, in kimg.")
@cli.option("Training", "--seeds", default="0,1", type=cli.NumberRanges(), help="Seeds of each variant.")
@cli.option("Training", "--aug", default="noaug", type=click.Choice(["noaug", "ada"]), help="Augmentation.")
@cli.option("Model", "--variants", default="modconv,adaconv", help="A modulation each, and what to change of it.")
@cli.option("Model", "--cbase", default=1024, type=cli.Integer(16, 2**20), help="As in train.py.")
@cli.option("Model", "--cmax", default=64, type=cli.Integer(1, 2**13), help="As in train.py.")
@cli.option("Output", "--metrics", default="swd2k", help="Metrics during training.")
@cli.option("Output", "--final", default="", metavar="METRICS", help="Metrics of the saved snapshots, afterwards.")
@cli.option("Output", "--outdir", default="runs/compare", help="Folder of the runs.")
@cli.option("Machine", "--gpus", default=0, type=cli.Integer(0, 1), help="1 trains on a GPU that all runs share.")
@cli.option("Machine", "--jobs", default=2, type=cli.Integer(1, 64), help="Runs at a time.")
@cli.option("Output", "--cost-rounds", default=0, type=cli.Integer(0), help="Rounds in which costs are measured.")
@cli.option("Output", "--json", "json_path", type=cli.ResultFile(), help="Write the table there as well.")
def main(
    variants: str, seeds: list[int], kimg: float, every: float | None, outdir: str, gpus: int, jobs: int, **rest
) -> None:
    """Train each variant with each seed and print a table of the metrics at the end."""
    final, json_path, metrics = rest.pop("final"), rest.pop("json_path"), rest.pop("metrics").split(",")
    values = [
        value for metric in [*metrics, *filter(None, final.split(","))] for value in parse_metric(metric).rankings()
    ]
    if len(set(seeds)) < len(seeds):
        raise UserError("--seeds has a seed twice; name each once")
    data = ImageDataset(rest["data"], use_labels=rest["cond"])
    rounds, folder = rest.pop("cost_rounds"), Path(outdir).resolve()
    rest["data"] = str(Path(rest["data"]).resolve())
    common = {"cfg": "demo", "kimg": kimg, "procs": 1, "workers": 0, "metrics": metrics}
    common |= {"tick": (every or kimg / 4) / 5, "snap": 5, **rest}
    if gpus:
        # a process that decodes while the GPU computes, and the precision of the CPU
        common |= {"gpus": gpus, "workers": 1, "precision": "fp32"}
    options = {name: {**common, **changes(name)} for name in variants.split(",")}
    for asked in options.values():
        resolve(asked, data.resolution, data.channels, data.c_dim, gpus)  # tells what cannot be had before a training
    work = [(name, seed) for seed in seeds for name in options]  # all variants with the first seed come first
    with ThreadPoolExecutor(jobs) as pool:
        runs = [(folder / f"{name}-seed{seed}", {**options[name], "seed": seed}, final) for name, seed in work]
        results = dict(zip(work, pool.map(lambda run: train_and_evaluate(*run), runs), strict=True))

    cost = seconds_per_kimg(folder, options, rounds) if rounds else {}
    curves = {name: [results[name, seed] for seed in seeds] for name in options}
    table = tabulate(curves, values, cost)
    record = {**rest, "data": Path(rest["data"]).name, "kimg": kimg, "seeds": seeds, "variants": table}
    write_record(json_path, "cuda" if gpus else "cpu", record)
    for name, row in table.items():
        ends = [f"{value} {spread([run[-1] for run in row[value]])}" for value in values]
        if name in cost:
            ends += [f"at kimg {row['kimg_at_equal_time']}:"]
            ends += [f"{value} {spread(row[f'{value} at equal time'])}" for value in values]
        print(f"{name:30}", "   ".join(ends))


if __name__ == "__main__":
    cli.run(main)
