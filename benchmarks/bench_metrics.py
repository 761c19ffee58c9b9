"""Time and memory of the metrics beside the detector: features, and the arithmetic on 50 000 of them.

    python benchmarks/bench_metrics.py --json benchmarks/results/metrics-cpu.json

Weights are random, which does not change the time. Features: the detector alone on images in memory, against
everything that `metrics` does from the data set's file to gathered features, alternately. The arithmetic runs in a
process of its own, whose peak memory is measured.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from media.convert import write_dataset
from media.dataset import ImageDataset
from media.faces import faces
from metrics.detectors import INCEPTION, PUBLISHED, PublishedWeights, load_detector
from metrics.dinov2 import DINOv2
from metrics.features import Features, dataset_source, describe_images
from metrics.frechet import Moments, frechet_distance
from metrics.scores import kernel_distance, precision_recall
from torch_utils import cli
from torch_utils.files import write_file

COUNT = click.IntRange(0)


def random_inception(device: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Ours and torch-fidelity's, with the same random weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            pass

    with tempfile.TemporaryDirectory() as folder:
        torch.save({}, Path(folder) / "none.pth")
        bare = Unloaded("bare", ["2048"], feature_extractor_weights_path=Path(folder) / "none.pth")
    return load_detector(INCEPTION, PublishedWeights(bare.state_dict(), ""), ["2048"], device), bare.to(device)


def random_dinov2(name: str, device: str) -> torch.nn.Module:
    """DINOv2 with random weights; torch-fidelity's own would come from the internet."""
    detector = PUBLISHED[name]
    assert detector.shape is not None
    width = detector.shape[-1]
    tensors = DINOv2(width, depth=24 if width == 1024 else 12, positions=37 * 37).state_dict()
    return load_detector(detector, PublishedWeights(tensors, ""), [detector.layer], device)


@torch.no_grad()
def bench_features(name: str, count: int, batch: int, rounds: int, device: str) -> dict[str, Any]:
    """Images per second of the detector alone, torch-fidelity's and ours, and from file to gathered features."""
    inception = name == "inception"
    network, theirs = random_inception(device) if inception else (random_dinov2(name, device), None)

    def finish() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "faces.zip", faces(count, 32, seed=0))
        drawn = ImageDataset(Path(folder) / "faces.zip")
        images = torch.stack([drawn[i][0] for i in range(len(drawn))])

        def bare(module: torch.nn.Module) -> None:
            for part in images.split(batch):
                module(part.to(device))
            finish()

        def whole() -> None:
            dataset = ImageDataset(Path(folder) / "faces.zip")  # whose images are not decoded yet
            collector = Features(count)
            source = dataset_source(dataset, range(count), workers=1)
            for part in describe_images(source, count, batch, lambda x: {"2048": network(x.to(device))[0]}):
                collector.add(part["2048"])
            collector.finish()

        ways = {"torch-fidelity": lambda: bare(theirs)} if theirs else {}
        ways |= {"detector": lambda: bare(network), "whole": whole}
        seconds: dict[str, list[float]] = {kind: [] for kind in ways}
        for way in ways.values():
            way()
        for _ in range(rounds):
            for kind, way in ways.items():
                start = time.perf_counter()
                way()
                seconds[kind].append(time.perf_counter() - start)
    rates = {f"{kind}_per_s": count / statistics.median(times) for kind, times in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["detector"], seconds["whole"], strict=True)]
    return {"detector": name, "images": count, "batch": batch, **rates, "whole/detector": statistics.median(ratios)}


def fid(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    sides = []
    for _ in range(2):
        moments = Moments(count)
        for _ in range(0, count, 64):
            moments.add(torch.rand(64, 2048, generator=generator))
        sides.append(moments.finish())
    frechet_distance(*sides)


def kid(count: int) -> None:
    real, fake = torch.rand(2, count, 2048)
    kernel_distance(real, fake)


def pr(count: int) -> None:
    real, fake = torch.rand(2, count, 4096)
    precision_recall(real, fake)


def measured(work: Callable[[int], None], count: int, answer: Connection) -> None:
    """Sends the wall-clock seconds, and the processor seconds of all threads."""
    start, cpu = time.perf_counter(), time.process_time()
    work(count)
    answer.send({"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu})
    answer.recv()  # until the parent has read its peak memory


def bench_arithmetic(work: Callable[[int], None], count: int, limit: float) -> dict[str, float | None]:
    """Time and peak memory in a process of its own, which is stopped after `limit` seconds."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=measured, args=(work, count, theirs))
    process.start()
    found = ours.recv() if ours.poll(limit) else {"seconds": None, "stopped_after": limit}
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert peak is not None, "Linux gives the peak memory of every process"
    process.terminate()
    process.join()
    return {"images": count, **found, "peak_gib": int(peak[1]) / 2**20}


@click.command(cls=cli.Command, example="python benchmarks/bench_metrics.py --pr 10000")
@cli.option("Measure", "--features", default=384, type=COUNT, help="Number of 32² images for features; 0: none.")
@cli.option("Measure", "--fid", "fid_count", default=50_000, type=COUNT, help="Number of features for FID; 0: none.")
@cli.option("Measure", "--kid", "kid_count", default=50_000, type=COUNT, help="Number of features for KID; 0: none.")
@cli.option(
    "Measure", "--pr", "pr_count", default=50_000, type=COUNT, help="Number of features for precision; 0: none."
)
@cli.option(
    "Measure",
    "--detector",
    default="inception",
    type=click.Choice(["inception", "dinov2-vit-s-14", "dinov2-vit-b-14", "dinov2-vit-l-14"]),
    help="Detector of the features.",
)
@cli.option("How", "--batch", default=16, type=click.IntRange(1), help="Batch size of the detector.")
@cli.option("How", "--rounds", default=2, type=click.IntRange(1), help="Repetitions, of which the median counts.")
@cli.option("How", "--limit", default=3600, type=cli.Float(1), help="Time limit for each metric, in seconds.")
@cli.option("How", "--device", default="cpu", type=cli.Device(), help="Device of the detector: cpu or cuda.")
@cli.option("How", "--json", "json_path", type=cli.ResultFile(), help="File to write the measurements to.")
def main(
    features: int,
    detector: str,
    batch: int,
    rounds: int,
    fid_count: int,
    kid_count: int,
    pr_count: int,
    limit: float,
    device: str,
    json_path: str | None,
) -> None:
    """Measure time and memory of features, and of FID, KID, precision and recall on them."""
    record = {"torch": torch.__version__, "threads": torch.get_num_threads(), "load": os.getloadavg()[0]}
    record["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    if features:
        record["features"] = bench_features(detector, features, batch, rounds, device)
        print("features  ", json.dumps(record["features"]), flush=True)
    for name, work, count in (("fid", fid, fid_count), ("kid", kid, kid_count), ("pr", pr, pr_count)):
        if count:
            record[name] = bench_arithmetic(work, count, limit)
            print(f"{name:10}", json.dumps(record[name]), flush=True)
    if json_path:
        write_file(json_path, json.dumps(record, indent=2).encode())


if __name__ == "__main__":
    cli.run(main)
