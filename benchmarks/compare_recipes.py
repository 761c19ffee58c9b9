"""What to do with a trained StyleGAN2 network, and which loss to take: SWD at equal images and at equal time.

    python benchmarks/compare_recipes.py --data faces32.zip --kimg 12 --seeds 0,1,2

For each seed, a generator with StyleGAN2's modulated convolution is trained for --kimg. Then it is trained on for as
many images, once as it is and once converted to AdaConv, beside an AdaConv generator that is trained from scratch for
as many images in all. R3GAN's recipe trains the same AdaConv generator for the time that StyleGAN2's loss takes, whose
step costs less: R1 comes with every 16th step only, R3GAN's R1 and R2 with each.

Every run is one process with one thread. Its cost is the CPU time of a thousand images in short runs that take turns,
which other work on the machine disturbs least. A run that is there already is not run again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from compare_modulations import file_name, seconds_per_kimg, train_one, value_at  # noqa: E402
from measure import spread, write_record  # noqa: E402

from torch_utils import cli  # noqa: E402
from training.finetune import find_initial  # noqa: E402
from training.presets import preset  # noqa: E402

SIZES = ("batch", "cbase", "cmax", "z_dim", "w_dim", "style_channels", "map_depth", "noise")  # the demo's
BASE, ON, CONVERTED, SCRATCH = "modconv", "modconv, trained on", "converted to AdaConv", "AdaConv from scratch"
R3GAN, R3GAN_FASTER = "R3GAN's recipe", "R3GAN's recipe, glr and dlr 0.001"
R3GAN_SMALL = "R3GAN's recipe, glr and dlr 0.001, gamma 1, no augmentation"


def arms(demo: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options in which each arm differs from `train.py --cfg demo`; --init-from and --kimg come later."""
    sizes = {name: demo[name] for name in SIZES}
    recipe = {"cfg": "r3gan", **sizes}  # but for its batch and its networks' sizes
    return {
        BASE: {"modulation": "modconv"},
        ON: {"modulation": "modconv"},
        CONVERTED: {"modulation": "adaconv"},
        SCRATCH: {},
        R3GAN: recipe,
        R3GAN_FASTER: {**recipe, "glr": 0.001, "dlr": 0.001},
        R3GAN_SMALL: {**recipe, "glr": 0.001, "dlr": 0.001, "gamma": 1.0, "aug": "noaug"},
    }


@click.command(cls=cli.Command, example="python benchmarks/compare_recipes.py --data faces32.zip --kimg 12")
@click.option("--data", required=True, type=click.Path(exists=True), help="Folder or ZIP of images.")
@click.option("--kimg", default=12.0, type=cli.Float(0, min_open=True), help="Length of the first training, in kimg.")
@click.option("--seeds", default="0,1,2", type=cli.NumberRanges(), help="Seeds; each trains every arm.")
@click.option("--rounds", default=3, type=click.IntRange(1), help="Rounds in which the costs are measured.")
@click.option("--outdir", default="runs/recipes", help="Folder of the runs.")
@click.option("--jobs", default=2, type=click.IntRange(1), help="Runs at a time.")
@click.option("--json", "json_path", type=cli.ResultFile(), help="Write the figures there as well.")
def main(data, kimg, seeds, rounds, outdir, jobs, json_path) -> None:
    """Compare training on, converting and beginning anew, and StyleGAN2's loss with R3GAN's."""
    folder = Path(outdir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    demo = preset("demo", 32, 0)
    shared = {"cfg": "demo", "data": str(Path(data).resolve()), "procs": 1, "workers": 0, "metrics": ["swd2k"]}
    options = {name: {**shared, **own} for name, own in arms(demo).items()}
    timed = {name: options[name] for name in (BASE, SCRATCH, R3GAN)}
    cost = seconds_per_kimg(folder, timed, rounds)
    cost |= {ON: cost[BASE], CONVERTED: cost[SCRATCH], R3GAN_FASTER: cost[R3GAN], R3GAN_SMALL: cost[R3GAN]}
    # The longest that anything is compared at: the time of AdaConv from scratch, and R3GAN's recipe in that time.
    lengths = dict.fromkeys((BASE, ON, CONVERTED), kimg) | {SCRATCH: 2 * kimg}
    lengths |= {name: round(2 * kimg * cost[SCRATCH] / cost[R3GAN], 1) for name in (R3GAN, R3GAN_FASTER, R3GAN_SMALL)}

    def run(name: str, seed: int) -> dict[float, float]:
        values = {**options[name], "seed": seed, "kimg": lengths[name], "tick": lengths[name] / 8, "snap": 1}
        if name in (ON, CONVERTED):
            values["init_from"] = str(find_initial(place(BASE, seed)))
        metrics = train_one(place(name, seed), values)
        return {point: found["swd2k"] for point, found in metrics.items()}

    def place(name: str, seed: int) -> Path:
        return folder / f"{file_name(name)}-seed{seed}"

    with ThreadPoolExecutor(jobs) as pool:
        first = list(pool.map(lambda seed: run(BASE, seed), seeds))
        rest = [name for name in options if name != BASE]
        work = [(name, seed) for seed in seeds for name in rest]
        curves = dict(zip(work, pool.map(lambda item: run(*item), work), strict=True))
    curves |= {(BASE, seed): curve for seed, curve in zip(seeds, first, strict=True)}

    table: dict[str, dict[str, Any]] = {}
    for name in options:
        # At equal time, the converted generator has what modconv's training on took, the others what scratch took.
        kimg_then = kimg * cost[ON] / cost[CONVERTED] if name == CONVERTED else lengths[name]
        ends = [value_at(curves[name, seed], lengths[name]) for seed in seeds]
        then = [value_at(curves[name, seed], kimg_then) for seed in seeds]
        table[name] = {
            "kimg": lengths[name],
            "cpu_seconds_per_kimg": round(cost[name], 2),
            "swd2k": [round(value, 2) for value in ends],
            "kimg_at_equal_time": round(kimg_then, 2),
            "swd2k_at_equal_time": [round(value, 2) for value in then],
            "curves": {str(seed): {f"{k:g}": round(v, 2) for k, v in curves[name, seed].items()} for seed in seeds},
        }
        print(
            f"{name:60} {cost[name]:6.1f} s/kimg  kimg {lengths[name]:4g}: {spread(ends):14} "
            f"kimg {kimg_then:4.1f}: {spread(then)}"
        )
    write_record(json_path, "cpu", {"data": Path(data).name, "kimg": kimg, "seeds": seeds, "arms": table})


if __name__ == "__main__":
    cli.run(main)
