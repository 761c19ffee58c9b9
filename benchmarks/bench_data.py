"""How many images a second a data set gives to training, beside what training takes.

    python benchmarks/bench_data.py --consumed 500

The images are drawn into a temporary folder. `decoded` reads and decodes each of them, as the first round through any
data set does, and all rounds through one that lies in shards or does not fit into memory; `kept` is every later round
through one that does fit.
"""

from __future__ import annotations

import io
import json
import statistics
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import click
import torch
from PIL import Image, features

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from media import dataset
from media.dataset import ImageDataset
from media.faces import faces
from media.loader import endless_batches
from media.shard_writer import Sample, write_shards
from torch_utils import cli
from torch_utils.files import write_file

BATCH = 32
SHARDS = 4


@dataclass(frozen=True)
class ImageFormat:
    """A format by Pillow's name, the suffix of its files, and options of Pillow's writer."""

    name: str
    suffix: str
    options: dict[str, int] = field(default_factory=dict)


FORMATS = {  # PNG without compression is the nearest that there is to plain bytes
    "PNG": ImageFormat("PNG", ".png"),
    "PNG plain": ImageFormat("PNG", ".png", {"compress_level": 0}),
    "JPEG": ImageFormat("JPEG", ".jpg", {"quality": 95}),
    "WebP": ImageFormat("WEBP", ".webp", {"quality": 95}),
}


def write_sources(folder: Path, images: list[Image.Image], name: str) -> dict[str, Path]:
    """The same images as a ZIP, as a folder, and in tar files."""
    sources = {"ZIP": folder / f"{name}.zip", "folder": folder / name, "tars": folder / f"{name} tars" / "*.tar"}
    image_format = FORMATS[name]
    sources["folder"].mkdir()
    with zipfile.ZipFile(sources["ZIP"], "w", zipfile.ZIP_STORED) as archive:
        for i, image in enumerate(images):
            buffer = io.BytesIO()
            image.save(buffer, image_format.name, **image_format.options)
            archive.writestr(f"{i:06d}{image_format.suffix}", buffer.getvalue())
            (sources["folder"] / f"{i:06d}{image_format.suffix}").write_bytes(buffer.getvalue())
    files = [path.read_bytes() for path in sorted(sources["folder"].iterdir())]
    samples: list[Sample] = [(data, image_format.suffix[1:], None) for data in files]
    write_shards(sources["tars"].parent, samples, sum(map(len, files)) // SHARDS)
    return sources


def rate(source: Path, workers: int, keep: bool, seconds: float) -> float:
    """Images a second from the loader that training has: the median of three measurements."""
    dataset.MAX_CACHE_BYTES = 1 << 30 if keep else 0
    data = ImageDataset(source)
    if keep:
        for i in range(len(data)):
            data[i]
    loader = endless_batches(data, batch=BATCH, step=0, seed=0, workers=workers, device=torch.device("cpu"))
    for _ in range(2 + 2 * workers):  # those that the workers have ready
        next(loader)
    rates = []
    for _ in range(3):
        count, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds / 3:
            count += len(next(loader)[0])
        rates.append(count / elapsed)
    loader.close()
    return statistics.median(rates)


@click.command(cls=cli.Command, example="python benchmarks/bench_data.py --resolution 256 --consumed 40")
@click.option("--resolution", "resolutions", multiple=True, default=[32, 256], type=click.IntRange(16, 1024))
@click.option("--workers", "counts", multiple=True, default=[0, 1, 2], type=click.IntRange(0, 64))
@click.option("--count", default=200, type=click.IntRange(1), help="Images.")
@click.option("--seconds", default=1.5, type=cli.Float(0.01), help="For each figure.")
@click.option("--consumed", type=cli.Float(0, min_open=True), help="Images a second that training takes.")
@click.option("--json", "json_path", type=cli.ResultFile(), help="Write the figures there as well.")
def main(
    resolutions: tuple[int, ...],
    counts: tuple[int, ...],
    count: int,
    seconds: float,
    consumed: float | None,
    json_path: str | None,
) -> None:
    """Images a second from a ZIP, a folder and tar files, by format, resolution and number of workers."""
    torch.set_num_threads(1)
    rows = []
    times = f"{'× consumed':>12}" if consumed else ""
    print(f"{'':5}{'source':8}{'format':11}{'workers':>7}{'decoded/s':>12}{times}{'kept/s':>12}{times}")
    for resolution in resolutions:
        images = [image for image, _ in faces(count, resolution)]
        for name in [name for name in FORMATS if name != "WebP" or features.check("webp")]:
            with tempfile.TemporaryDirectory() as folder:
                for source, path in write_sources(Path(folder), images, name).items():
                    for workers in counts:
                        row: dict[str, str | float] = {"resolution": resolution, "source": source, "format": name}
                        row["workers"] = workers
                        line = f"{resolution:<5}{source:8}{name:11}{workers:7}"
                        for kind in ("decoded",) if source == "tars" else ("decoded", "kept"):
                            row[kind] = found = rate(path, workers, kind == "kept", seconds)
                            line += f"{found:12,.0f}" + (f"{found / consumed:12.1f}" if consumed else "")
                        print(line)
                        rows.append(row)
    if json_path:
        record = {"torch": torch.__version__, "batch": BATCH, "images": count, "consumed": consumed, "rows": rows}
        write_file(json_path, json.dumps(record, indent=2).encode())


if __name__ == "__main__":
    cli.run(main)
