"""Stripes in generated images: their power spectrum beside that of real ones.

    python benchmarks/compare_spectra.py --data faces64.zip --network a.safetensors --network b.safetensors

A pattern of horizontal or vertical stripes is a peak on an axis of the spectrum. Brightness is taken, each image
without its mean and under a Hann window, and |FFT|² is averaged over the images. The table has the largest ratio of
generated to real power among horizontal and vertical frequencies (the other frequency at most one period per image),
where it is, and the median ratio of all frequencies, which is below 1 where images lack detail.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import name_in_record, write_record

from media.dataset import ImageDataset
from media.images import to_float
from metrics.request import check_shape
from models.sampling import images_of, labels_in_turn, ws_from_seeds
from models.snapshot import load_generator
from torch_utils import cli
from torch_utils.errors import UserError


def power(images: Tensor) -> Tensor:
    """Images [N, C, H, W] → the mean power of their brightness at each frequency, [H, W // 2 + 1]."""
    x = images.mean(dim=1)
    H, W = x.shape[1:]
    window = torch.hann_window(H, periodic=False)[:, None] * torch.hann_window(W, periodic=False)
    x = (x - x.mean(dim=(1, 2), keepdim=True)) * window
    return torch.fft.rfft2(x).abs().square().mean(dim=0)


def stripes(generated: Tensor, real: Tensor) -> dict[str, float | int]:
    """The largest ratio of two spectra near the axes, with its periods per image, and the median ratio of all."""
    ratio = generated / real
    H, W = ratio.shape
    rows = torch.fft.fftfreq(H, 1 / H).round().long()
    columns = torch.arange(W)
    near = (rows.abs()[:, None] <= 1) | (columns <= 1)
    best = int(torch.where(near, ratio, 0).argmax())
    return {
        "ratio": float(ratio.flatten()[best]),
        "down": int(rows[best // W].abs()),
        "across": best % W,
        "median": float(ratio.median()),
    }


def generated_images(path: str, count: int, dataset: ImageDataset) -> Tensor:
    """The images of seeds 0 … count − 1, of all classes alike, float [count, C, H, W].

    Raises UserError where they are of another size or number of channels than those of the data set.
    """
    G, _ = load_generator(path)
    check_shape(path, G.config.img_channels, G.config.resolution, dataset, str(dataset.path))
    seeds = range(count)
    return to_float(torch.cat(list(images_of(G, ws_from_seeds(G, seeds, labels_in_turn(G, seeds))))))


@click.command(
    cls=cli.Command, example="python benchmarks/compare_spectra.py --data faces64.zip --network a.safetensors"
)
@cli.option("What", "--data", required=True, metavar="PATH", help="Real images, a folder or a ZIP.")
@cli.option("What", "--network", "networks", required=True, multiple=True, metavar="FILE", help="May be given again.")
@cli.option("What", "--images", "count", default=400, type=cli.Integer(2, 100_000), help="Number of each.")
@cli.option("What", "--json", "json_path", type=cli.ResultFile(), help="Write the table there as well.")
def main(data: str, networks: tuple[str, ...], count: int, json_path: str | None) -> None:
    """Compare the power spectra of generated and real images."""
    dataset = ImageDataset(data)
    if len(dataset) < 2:
        raise UserError(f"{data} has one image, and its spectra are compared with those of others; name more")
    chosen = dataset.choose(min(2 * count, len(dataset)), seed=0)
    real = to_float(torch.stack([dataset[i][0] for i in chosen]))
    half = len(real) // 2
    rows = [{"network": "real images, the other half", **stripes(power(real[half:]), power(real[:half]))}]
    for network in networks:
        rows.append(
            {
                "network": name_in_record(network),
                **stripes(power(generated_images(network, count, dataset)), power(real)),
            }
        )
    for row in rows:
        where = f"{row['down']} periods down, {row['across']} across"
        print(f"{row['ratio']:6.1f} x at {where:32} median {row['median']:5.2f}   {row['network']}")
    write_record(json_path, "cpu", {"data": Path(data).name, "images": count, "rows": rows})


if __name__ == "__main__":
    cli.run(main)
