"""`python -m metrics`: judges a snapshot, or a folder of pictures, against the real ones of a data set."""

from __future__ import annotations

import json
import sys

import click
import numpy as np
import torch

from metrics import Evaluator, picture_batches
from torch_utils.cli import Command, UserError, option, run
from training.checkpoint import find_snapshot, load_generator
from training.dataset import ImageDataset
from training.sampling import generate_batches

Figures = dict[str, float | dict[str, int]]  # and under "pictures", how many of each side made each figure


def check_shape(what: str, channels: int, resolution: int, dataset: ImageDataset, data: str) -> None:
    """Raises UserError where pictures of `what` cannot be compared with those of the data set."""
    if (channels, resolution) != (dataset.channels, dataset.resolution):
        raise UserError(
            f"{what} gives pictures of {resolution}×{resolution} with {channels} channels, {data} of "
            f"{dataset.resolution}×{dataset.resolution} with {dataset.channels}: they cannot be compared"
        )


def judge_network(
    path: str, data: str, names: list[str], *, batch: int, seed: int, workers: int, device: str
) -> Figures:
    """The figures of pictures that a snapshot generates, with the classes of the real ones if it has classes.

    Seed s takes the s-th stretch of latents, so that different seeds share none.
    """
    snapshot = find_snapshot(path)
    G, _ = load_generator(snapshot, device)
    dataset = ImageDataset(data, use_labels=G.config.c_dim > 0)
    check_shape(str(snapshot), G.config.img_channels, G.config.resolution, dataset, data)
    if dataset.c_dim != G.config.c_dim:
        raise UserError(f"{snapshot} knows {G.config.c_dim} classes, {data} has {dataset.c_dim}")
    evaluator = Evaluator(names, dataset, batch=batch, workers=workers, seed=seed, device=device, progress=True)
    classes = None
    if G.config.c_dim:
        order = np.random.default_rng(seed).permutation(len(dataset))[: evaluator.count]
        classes = dataset.labels[order]
    latents = range(seed * evaluator.count, (seed + 1) * evaluator.count)
    note_shortage(evaluator)
    return {**evaluator.evaluate(generate_batches(G, latents, batch, classes)), "pictures": evaluator.counts}


def judge_pictures(
    path: str, data: str, names: list[str], *, batch: int, seed: int, workers: int, device: str
) -> Figures:
    """The figures of the pictures in a folder or ZIP."""
    dataset, fakes = ImageDataset(data), ImageDataset(path)
    check_shape(path, fakes.channels, fakes.resolution, dataset, data)
    if len(fakes) < 2:
        raise UserError(f"{path} has only one picture; the metrics need at least 2")
    evaluator = Evaluator(names, dataset, batch=batch, workers=workers, seed=seed, device=device, progress=True)
    note_shortage(evaluator)
    if len(fakes) < evaluator.count:
        print(f"note: {path} has only {len(fakes)} pictures; figures fall with the number of pictures", file=sys.stderr)
    figures = evaluator.evaluate(picture_batches(fakes, evaluator.count, batch=batch, seed=seed, workers=workers))
    return {**figures, "pictures": {name: min(count, len(fakes)) for name, count in evaluator.counts.items()}}


def note_shortage(evaluator: Evaluator) -> None:
    if evaluator.shortage:
        print(evaluator.shortage, file=sys.stderr)


def describe(name: str, figures: Figures) -> str:
    """A metric and its parts in one line: `swd 97.3 (32: 101.2, 16: 93.4)`."""
    parts = [
        f"{key.removeprefix(name + '_')}: {value:.1f}" for key, value in figures.items() if key.startswith(name + "_")
    ]
    return f"{name} {figures[name]:.1f}" + (f" ({', '.join(parts)})" if parts else "")


@click.command(cls=Command, example="python -m metrics --metrics swd --network runs --data faces32.zip")
@option(
    "What",
    "--metrics",
    metavar="NAME,…",
    default="swd",
    help="Figures to work out: swd, or with a number of pictures swd2k, swd500.",
)
@option(
    "What",
    "--network",
    metavar="PATH",
    help="Snapshot to judge, or a run or a folder of runs: its newest one.",
)
@option(
    "What",
    "--fakes",
    metavar="PATH",
    help="Folder or ZIP of pictures to judge in place of --network.",
)
@option("What", "--data", metavar="PATH", required=True, help="Real pictures: a folder or ZIP.")
@option(
    "How",
    "--seed",
    type=click.IntRange(0, 2**31),
    default=0,
    help="Of the choice of pictures, the latents, and the random patches and directions.",
)
@option(
    "How",
    "--batch",
    type=click.IntRange(1, 2**16),
    default=64,
    help="Pictures at a time; changes the memory, not the figures.",
)
@option(
    "How",
    "--workers",
    type=click.IntRange(0, 64),
    default=2,
    help="Processes that read pictures; 0 reads in this one.",
)
@option("How", "--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    metrics: str,
    network: str | None,
    fakes: str | None,
    data: str,
    seed: int,
    batch: int,
    workers: int,
    as_json: bool,
) -> None:
    """Compares generated pictures, or a folder of pictures, with real ones."""
    if (network is None) == (fakes is None):
        raise UserError("name either --network or --fakes: what is to be judged")
    names = [name.strip() for name in metrics.split(",")]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    judge = judge_pictures if network is None else judge_network
    figures = judge(fakes or network, data, names, batch=batch, seed=seed, workers=workers, device=device)
    if as_json:
        print(json.dumps(figures))
    else:
        for name in dict.fromkeys(names):
            print(describe(name, figures))


if __name__ == "__main__":
    run(main)
