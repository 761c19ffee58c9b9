"""How metrics rise with known damages of images: blur, noise, JPEG, images of another kind, fewer modes; and copies.

    python benchmarks/compare_damages.py --data cifar10-test.zip --other faces32.zip
    python benchmarks/compare_damages.py --data cifar10-test.zip --other faces32.zip --damages blur --json damages.json

A third of the images drawn are the real side, another third is damaged, and undamaged for comparison. A metric is of
use where it is worse for each level of a damage than for the level before. Copies are images of the real side: metrics
find them better, and only authenticity, and C_T and FLD by the last third of the images, tell that they are copied.

A metric may be of fewer images than --count, as `fid100` of an extractor that is slow: fakes are shuffled, so that it
sees the same share of a damage. A long measurement can be made in parts: damages that the file of --json already has
are not measured again.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import name_in_record

from media.dataset import ImageDataset, read_labels
from media.decode import decode_image
from metrics import Evaluator, choose, parse_metric
from metrics.detectors import OPTION
from metrics.features import tensor_source
from metrics.fld import feature_likelihood_divergence
from metrics.memorization import copying_test
from metrics.names import DEFAULT_DETECTOR
from metrics.nearest import collect, find_nearest, load_describe
from torch_utils import cli
from torch_utils.errors import UserError
from torch_utils.files import write_file

LEVELS: dict[str, tuple[float, ...]] = {
    "blur, σ in pixels": (0.5, 1, 2),
    "noise, σ of 255": (4, 8, 16, 32),
    "JPEG, quality": (90, 60, 30, 10),
    "images of another kind": (0.05, 0.2, 0.5),
    "modes left": (0.5, 0.2, 0.1),
    "copies of the real side": (0.1, 0.5, 1),
}


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Images uint8 [N, C, H, W] after a Gaussian filter, with mirrored borders."""
    radius = int(np.ceil(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    x = F.pad(images.float(), [radius] * 4, mode="reflect")
    x = F.conv2d(x, kernel.unsqueeze(2), groups=x.shape[1])
    return F.conv2d(x, kernel.unsqueeze(3), groups=x.shape[1]).round().byte()


def noisy(images: Tensor, sigma: float) -> Tensor:
    """Images with Gaussian noise."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + sigma * noise).round().clamp(0, 255).byte()


def compressed(images: Tensor, quality: float) -> Tensor:
    """Images that have been JPEG files of that quality."""

    def compress(image: Tensor) -> Tensor:
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=int(quality))
        return torch.from_numpy(np.array(decode_image(Image.open(file)))).permute(2, 0, 1)

    return torch.stack([compress(image) for image in images])


def damages(images: Tensor, labels: Tensor | None, other: Tensor, real: Tensor) -> dict[str, Callable[[float], Tensor]]:
    """Functions from a level to damaged images, by the names in LEVELS."""

    def mixed(share: float, others: Tensor) -> Tensor:
        count = round(share * len(images))
        return torch.cat([others[:count], images[count:]])

    def collapsed(share: float) -> Tensor:
        """Images of that share of the classes, or that share of the images, repeated as often as needed."""
        if labels is None:
            left = images[: max(round(share * len(images)), 1)]
        else:
            classes = labels.unique()
            left = images[torch.isin(labels, classes[: max(round(share * len(classes)), 1)])]
        return left.repeat(-(-len(images) // len(left)), 1, 1, 1)[: len(images)]

    functions: list[Callable[[float], Tensor]] = [
        lambda sigma: blurred(images, sigma),
        lambda sigma: noisy(images, sigma),
        lambda quality: compressed(images, quality),
        lambda share: mixed(share, other),
        collapsed,
        lambda share: mixed(share, real),
    ]
    return dict(zip(LEVELS, functions, strict=True))


def memorization(
    detector: str, files: Sequence[str], real: Tensor, test: Tensor, device: str
) -> Callable[[Tensor], dict[str, float]]:
    """A function from images to `authentic`, `c_t` and `fld`, with the real side as the training images."""
    describe = load_describe(detector, files, device)

    def features(images: Tensor) -> Tensor:
        return collect(tensor_source(images), len(images), 64, describe, "")

    train = torch.cat([features(real), features(real.flip(3))])
    new = features(test)
    distances = find_nearest(new, train, 1, mirrored=True).distances[:, 0]

    def figures(images: Tensor) -> dict[str, float]:
        fake = features(images)
        found = find_nearest(fake, train, 1, mirrored=True)
        c_t = copying_test(train[: len(real)], new, fake, distances, found.distances[:, 0])
        fld = feature_likelihood_divergence(train.view(2, len(real), -1), new, fake)
        return {"authentic": float(found.authentic.double().mean()), "c_t": c_t, "fld": fld}

    return figures


def earlier_values(path: str | None, record: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    """The values of each damage in the file of --json, if there is one. Raises UserError if it is of other settings."""
    if path is None or not Path(path).exists():
        return {}
    try:
        earlier = json.loads(Path(path).read_text())
        values = earlier.pop("values")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is no record of this script; name another file with --json") from None
    if earlier != json.loads(json.dumps(record)):
        raise UserError(f"{path} was measured with other options; repeat those, or name another file with --json")
    return values


def read(path: str, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """Images uint8 [count, C, H, W] drawn from a data set, and their classes [count] if it has classes."""
    dataset = ImageDataset(path)
    if len(dataset) < count:
        raise UserError(f"{path} has {len(dataset):,} images, {count:,} are needed; take fewer with --count")
    chosen = choose(len(dataset), count, seed)
    labels = ImageDataset(path, use_labels=True).labels if read_labels(dataset.files).labels is not None else None
    return torch.stack([dataset[i][0] for i in chosen]), None if labels is None else labels[chosen]


def shuffled(images: Tensor) -> Tensor:
    """The images in another order, so that the first of them have the same share of a damage as all."""
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]


def monotone(values: list[float], higher_is_better: bool) -> bool:
    """Whether a metric is worse at each level than at the one before."""
    return all(b < a if higher_is_better else b > a for a, b in pairwise(values))


def table(damage: str, rows: list[dict[str, float]], rankings: dict[str, bool]) -> str:
    """A Markdown table with a row for each value that models can be ranked by, from the undamaged images on."""
    lines = [
        f"| {damage} | none | " + " | ".join(f"{level:g}" for level in LEVELS[damage]) + " | worse at each level |"
    ]
    lines += ["|---" * (len(rows) + 2) + "|"]
    for name, higher_is_better in rankings.items():
        values = [row[name] for row in rows]
        text = " | ".join(f"{value:.4g}" for value in values)
        lines.append(f"| {name} | {text} | {'yes' if monotone(values, higher_is_better) else '**no**'} |")
    return "\n".join([*lines, ""])


def overview(found: dict[str, list[dict[str, float]]], rankings: Iterable[str]) -> str:
    """A Markdown table of all damages: a column for each value that models can be ranked by, a row for each level."""
    names = list(rankings)
    lines = ["| images | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    labels = {"undamaged": next(iter(found.values()))[0]}
    for damage, rows in found.items():
        labels |= {f"{damage}: {level:g}": row for level, row in zip(LEVELS[damage], rows[1:], strict=True)}
    lines += [
        f"| {label} | " + " | ".join(f"{row[name]:.3g}" for name in names) + " |" for label, row in labels.items()
    ]
    return "\n".join(lines)


@click.command(cls=cli.Command, example="python benchmarks/compare_damages.py --data faces64.zip --other other.zip")
@cli.option(
    "What", "--data", metavar="PATH", required=True, help="Folder or ZIP of images, three times as many as --count."
)
@cli.option("What", "--other", metavar="PATH", required=True, help="Images of another kind, which are mixed in.")
@cli.option("What", "--count", default=2000, type=click.IntRange(20), help="Number of images of each side.")
@cli.option("What", "--metrics", metavar="NAMES", default=f"swd2k,fd2k@{DEFAULT_DETECTOR}", help="Metrics to compute.")
@cli.option(
    "What",
    "--memorization/--no-memorization",
    "memorized",
    default=True,
    help="Also compute authenticity, C_T and FLD, which takes about as long as the metrics of one detector.",
)
@cli.option(
    "What", "--detector", metavar="NAME", default=DEFAULT_DETECTOR, help="Detector for authenticity, C_T and FLD."
)
@cli.option("How", OPTION, metavar="FILE", multiple=True, help="File with the weights of a published detector.")
@cli.option("What", "--damages", "chosen", metavar="WORDS", help="Damages by their first words: blur,noise,modes.")
@cli.option("How", "--seed", default=0, type=click.IntRange(0, 2**30), help="Seed for the choice of images.")
@cli.option("How", "--device", default="cpu", type=cli.Device(), help="Device of the detectors: cpu or cuda.")
@cli.option(
    "How",
    "--json",
    "json_path",
    type=cli.ResultFile(),
    help="File to write the values to, or to add those of further damages to.",
)
def main(
    data: str,
    other: str,
    count: int,
    metrics: str,
    memorized: bool,
    detector: str,
    detector_weights: tuple[str, ...],
    chosen: str | None,
    seed: int,
    device: str,
    json_path: str | None,
) -> None:
    """Show how metrics rise with known damages of images, as tables."""
    names = metrics.split(",")
    rankings = {value: higher for name in names for value, higher in parse_metric(name).rankings().items()}
    if memorized:
        rankings |= {"authentic": True, "c_t": True, "fld": False}
    images, labels = read(data, 3 * count, seed)
    others, _ = read(other, count, seed)
    if others.shape[1:] != images.shape[1:]:
        raise UserError(f"the images of {other} have another size than those of {data}; convert them to it")
    real, fake, test = images.split(count)
    evaluator = Evaluator(
        names, torch.utils.data.TensorDataset(real), seed=seed, device=device, weights=detector_weights
    )
    figures = memorization(detector, detector_weights, real, test, device) if memorized else lambda _: {}
    damage = damages(fake, None if labels is None else labels[count : 2 * count], others, real)

    def evaluate(images: Tensor) -> dict[str, float]:
        return {**evaluator.evaluate(tensor_source(shuffled(images))), **figures(images)}

    record = {"data": name_in_record(data), "other": name_in_record(other), "count": count, "seed": seed}
    record |= {"metrics": names, "levels": LEVELS}
    record |= {"settings": evaluator.settings(), "memorization": detector if memorized else None}
    found = earlier_values(json_path, record)
    undamaged = next(iter(found.values()))[0] if found else evaluate(fake)
    words = tuple(chosen.split(",")) if chosen else ("",)
    for name, levels in LEVELS.items():
        if not name.startswith(words):
            continue
        if name not in found:
            found[name] = [undamaged, *(evaluate(damage[name](level)) for level in levels)]
        print(table(name, found[name], rankings), flush=True)
        if json_path:
            values = {name: found[name] for name in LEVELS if name in found}
            write_file(json_path, json.dumps({**record, "values": values}, indent=1).encode())
    print(overview({name: found[name] for name in LEVELS if name in found}, rankings))


if __name__ == "__main__":
    cli.run(main)
