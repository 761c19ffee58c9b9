"""What stylizers make of the same contents and styles: a sheet, and a table of losses and of structure.

    python benchmarks/compare_stylizers.py --content photos/ --style paintings/ --model a.safetensors --out sheet.png

Content and style losses are those of training, with the encoder of the first model for all. Structure is the sliced
Wasserstein distance of normalized 7 × 7 patches (metrics/swd.py) between the outputs and the style: colours and
contrast do not count, only what they do from pixel to pixel. The contents as they are show where it begins.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from pathlib import Path

import click

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from media.files import list_images, read_image
from media.images import grid, save_png, to_float, to_uint8
from metrics.swd import PatchDescriptors, sliced_wasserstein
from models.snapshot import load_stylizer
from networks.stylizer import resize_square
from networks.vgg import VGG19
from torch_utils import cli
from torch_utils.errors import UserError
from torch_utils.files import write_file
from training.stylizer import channel_statistics, content_loss, style_loss

REPEATS = 32  # of an image, with patches cut at other places


def images(paths: tuple[str, ...], count: int, size: int) -> Tensor:
    """The first `count` images of files and folders, the square in the middle: [count, 3, size, size] in −1..1."""
    files = [file for path in paths for file in (list_images(path) if Path(path).is_dir() else [Path(path)])]
    if len(files) < count:
        raise UserError(f"{', '.join(paths)}: {len(files)} images, {count} are needed; name more, or lower --count")
    return torch.cat([resize_square(to_float(read_image(file)[None]), size) for file in files[:count]])


def patches(images: Tensor) -> dict[int, Tensor]:
    """What `sliced_wasserstein` compares, of REPEATS looks at uint8 [N, 3, H, W]."""
    descriptors = PatchDescriptors(len(images) * REPEATS)
    for _ in range(REPEATS):
        descriptors.add(images)
    return descriptors.finish()


def measure(encoder: VGG19, contents: Tensor, style: Tensor, outputs: Tensor) -> dict[str, float]:
    """Losses and structure of the contents [N, 3, H, W] in one style [1, 3, h, w]."""
    taps = encoder(outputs)
    n = len(outputs)
    goals = [(mean.expand(n, -1), std.expand(n, -1)) for mean, std in map(channel_statistics, encoder(style))]
    there, here = patches(to_uint8(style)), patches(to_uint8(outputs))
    return {
        "content loss": float(content_loss(taps[-1], encoder(contents)[-1])),
        "style loss": float(style_loss(taps, goals)),
        "structure": sliced_wasserstein(there, here)["swd"],
    }


@click.command(
    cls=cli.Command, example="python benchmarks/compare_stylizers.py --content a/ --style b/ --model m.safetensors"
)
@cli.option("Options", "--content", multiple=True, required=True, help="Content images, or folders of them.")
@cli.option("Options", "--style", multiple=True, required=True, help="Style images, or folders of them.")
@cli.option("Options", "--model", "models", multiple=True, required=True, help="Stylizers, one beneath the other.")
@cli.option("Options", "--count", type=click.IntRange(1), default=4, help="So many of each.")
@cli.option("Options", "--size", type=click.IntRange(64), default=256, help="Side of the images.")
@cli.option("Options", "--out", metavar="FILE", help="Write the sheet there, a PNG.")
@cli.option("Options", "--json", "json_path", metavar="FILE", help="Write the figures there as well.")
@torch.no_grad()
def main(
    content: tuple[str, ...],
    style: tuple[str, ...],
    models: tuple[str, ...],
    count: int,
    size: int,
    out: str | None,
    json_path: str | None,
) -> None:
    """Compare stylizers on the same images."""
    contents, styles = images(content, count, size), images(style, count, size)
    loaded = {f"{load_stylizer(path)[0].config.modulation} {path}": load_stylizer(path)[0] for path in models}
    encoder = next(iter(loaded.values())).encoder

    results: dict[str, list[dict[str, float]]] = {name: [] for name in ("content as it is", *loaded)}
    sheets: dict[str, list[Tensor]] = {name: [] for name in loaded}
    for one in styles.split(1):
        results["content as it is"].append(measure(encoder, contents, one, contents))
        for name, model in loaded.items():
            outputs = model(contents, model.kernels(one)).clamp(-1, 1)
            sheets[name].append(outputs)
            results[name].append(measure(encoder, contents, one, outputs))

    rows = {name: {key: statistics.mean(r[key] for r in list_) for key in list_[0]} for name, list_ in results.items()}
    width = max(map(len, rows))
    print(f"{'':{width}}  content loss  style loss  structure")
    for name, row in rows.items():
        print(f"{name:{width}}  {row['content loss']:12.3f}  {row['style loss']:10.3f}  {row['structure']:9.1f}")
    if json_path:
        about = {"torch": torch.__version__, "count": count, "size": size}
        write_file(json_path, json.dumps({**about, "rows": rows}, indent=2).encode())
    if out:
        blank = torch.ones_like(contents[:1])
        lines = [torch.cat([blank, styles])]
        for i in range(count):
            for name in loaded:
                lines.append(torch.cat([contents[i : i + 1], *(s[i : i + 1] for s in sheets[name])]))
        sheet = F.interpolate(torch.cat(lines), scale_factor=128 / size, mode="area")
        save_png(grid(to_uint8(sheet), count + 1), out)


if __name__ == "__main__":
    cli.run(main)
