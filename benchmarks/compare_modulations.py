"""Modulations and variants of AdaConv, trained alike: SWD at equal kimg.

    python benchmarks/compare_modulations.py --data faces32.zip --kimg 8 --seeds 0,1

Each run is one single-threaded process, `--jobs` of them at a time. A run that is there already is not run again, so
that variants can be added. `docs/adaconv.md` holds what came out.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from measure import write_record  # noqa: E402

from torch_utils import cli  # noqa: E402

# What differs from `train.py --cfg demo`, by fields of GeneratorConfig.
VARIANTS: dict[str, dict] = {
    "modconv": {"modulation": "modconv"},
    "adain": {"modulation": "adain"},
    "adaconv": {},
    "adaconv-maplr0.1": {"map_lr": 0.1},
    "adaconv-depthwise0.3-maplr0.1": {"depthwise_scale": 0.3, "map_lr": 0.1},
    "adaconv-depthwise0.3": {"depthwise_scale": 0.3},
    "adaconv-mixing0": {"mixing_scale": 0.0},
    "adaconv-mixing1": {"mixing_scale": 1.0},
    "adaconv-bias": {"predict_bias": True},
    "adaconv-instance": {"norm": "instance"},
    "adaconv-rank8": {"style_channels": 8},
    "adaconv-1x1": {"kernel_size": 1},
}

WORKER = """
import json, sys
from pathlib import Path
import torch
from training.options import resolve
from training.r3gan import trainer_of
from media.dataset import ImageDataset
from training.loop import train
run, options = Path(sys.argv[1]), json.loads(sys.argv[2])
data = ImageDataset(options["data"])
config = resolve(options, data.resolution, data.channels, 0, 0)
train(trainer_of(config), config, run)
"""


def train_one(run: Path, options: dict) -> dict[float, dict]:
    """Trains in a process of its own, unless the run is there; returns its metrics by kimg."""
    if not (run / "done").exists():
        run.mkdir(parents=True, exist_ok=True)
        with open(run / "output.txt", "w") as output:
            subprocess.run(
                [sys.executable, "-c", WORKER, str(run), json.dumps(options)],
                cwd=ROOT, stdout=output, stderr=output, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        (run / "done").touch()
    metrics = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        metrics[values["kimg"]] = values
    return metrics


@click.command(cls=cli.Command, example="python benchmarks/compare_modulations.py --data faces32.zip --kimg 8")
@click.option("--data", required=True, type=click.Path(exists=True))
@click.option("--kimg", default=8.0, type=cli.Float(0, min_open=True))
@click.option("--seeds", default="0,1", type=cli.NumberRanges())
@click.option("--variants", default=",".join(VARIANTS))
@click.option("--outdir", default="runs/compare")
@click.option("--jobs", default=2)
@click.option("--json", "json_path", metavar="FILE", help="Write the table there as well.")
def main(data, kimg, seeds, variants, outdir, jobs, json_path) -> None:
    """Train each variant with each seed and print a table of SWD."""
    work = []
    for name in variants.split(","):
        for seed in seeds:
            options = {"cfg": "demo", "data": str(Path(data).resolve()), "seed": seed, "kimg": kimg, "procs": 1}
            options |= {"workers": 0, "metrics": ["swd2k"], "tick": kimg / 4, "snap": 1, **VARIANTS[name]}
            work.append((name, Path(outdir).resolve() / f"{name}-seed{seed}", options))
    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(lambda item: train_one(item[1], item[2]), work))

    table: dict[str, dict] = {}
    for (name, _, _), metrics in zip(work, results, strict=True):
        kimgs = sorted(metrics)
        row = table.setdefault(name, {"kimg": kimgs, "swd2k": []})
        row["swd2k"].append([round(metrics[k]["swd2k"], 1) for k in kimgs])
    for name, row in table.items():
        last = [swd[-1] for swd in row["swd2k"]]
        spread = f"± {statistics.stdev(last):.1f}" if len(last) > 1 else ""
        print(f"{name:24} {statistics.mean(last):7.1f} {spread:6}  {row['swd2k']}")
    write_record(json_path, "cpu", {"data": Path(data).name, "kimg": kimg, "seeds": seeds, "variants": table})


if __name__ == "__main__":
    cli.run(main)
