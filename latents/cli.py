"""What the commands of generate.py share: their options, and what these mean for the model at hand."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import Tensor
from tqdm import tqdm

from latents.mixing import PARTS
from models.sampling import check_class, conditions, latents
from models.snapshot import find_snapshot, load_generator
from networks.generator import Generator
from torch_utils import cli
from torch_utils.errors import UserError
from torch_utils.memory import keep_freed_memory

MAX_CLASS = 10**6


class GridSize(click.ParamType):
    """Columns and rows as `8x4`."""

    name = "WxH"

    def convert(self, value, param, ctx) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})", value.lower())
        if match is None:
            self.fail(f"{value!r} is no size; write columns x rows, each up to 9999, e.g. 8x4", param, ctx)
        return int(match[1]), int(match[2])


class Numbers(click.ParamType):
    """Numbers within bounds as `-3,0,3`."""

    name = "numbers"

    def __init__(self, low: float, high: float):
        self.type = cli.Float(low, high)

    def convert(self, value, param, ctx) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        parts = value.split(",") if isinstance(value, str) else [value]
        return tuple(self.type.convert(part, param, ctx) for part in parts)


class Classes(click.ParamType):
    """Classes as `0-3,5`; between two of them as `1+3`, or with shares as `1:0.2+3:0.8`. A list of {class: share}."""

    name = "classes"

    def convert(self, value, param, ctx) -> list[dict[int, float]]:
        if isinstance(value, list):
            return value
        found: list[dict[int, float]] = []
        for part in value.split(","):
            if "+" not in part and ":" not in part:
                found.extend({number: 1.0} for number in cli.NumberRanges().convert(part, param, ctx))
                continue
            shares: dict[int, float] = {}
            for term in part.split("+"):
                match = re.fullmatch(r"\s*(\d{1,6})\s*(?::\s*(\d+\.?\d*|\.\d+))?\s*", term, re.ASCII)
                if match is None:
                    self.fail(f"{term.strip()!r} is no class; write e.g. 3, 0-5, 1+3 or 1:0.2+3:0.8", param, ctx)
                shares[int(match[1])] = shares.get(int(match[1]), 0) + float(match[2] or 1)
            if not (total := sum(shares.values())) > 0:
                self.fail(f"the shares of {part.strip()!r} sum to 0", param, ctx)
            found.append({number: share / total for number, share in shares.items()})
        if max(max(shares) for shares in found) > MAX_CLASS:
            self.fail(f"there are no such classes; numbers to {MAX_CLASS}", param, ctx)
        return found


# --- options --------------------------------------------------------------------------------------------------------

network = cli.option(
    "Model",
    "--network",
    metavar="PATH",
    help="A snapshot, a run, a folder of runs, or a network pickle of StyleGAN2 (.pkl).  [default: the newest under "
    "runs, else the shipped one]",
)
trunc = cli.option(
    "Images",
    "--trunc",
    type=Numbers(-9, 9),
    default="1.0",
    help="Truncation psi: 1 none, towards 0 the mean image. A list has one for each layer in turn, the last one for "
    "all others: 0.5,0.5,1.",
)
classes = cli.option(
    "Images",
    "--class",
    "classes",
    type=Classes(),
    help="Class of all images; of several, e.g. 0-3,5, each image gets one in turn. 1+3 is between two, and so is "
    "1:0.2+3:0.8.  [default: each seed's own]",
)
fixed_noise = cli.option(
    "Images", "--noise-mode", type=click.Choice(["const", "none"]), default="const", help="const: the model's own."
)
outdir = cli.option("Output", "--outdir", default="out", help="Where the files go.")
batch = cli.option(
    "Machine",
    "--batch",
    type=click.IntRange(1, 2**16),
    help="Images at a time; changes no image.  [default: 64, above 64² 16]",
)
device = cli.option(
    "Machine", "--device", type=cli.Device(), help="cpu, cuda or cuda:1.  [default: a GPU if there is one]"
)
layers = cli.option(
    "What changes", "--layers", type=cli.NumberRanges(), help="Layers, 0 the coarsest, e.g. 0-3,5.  [default: all]"
)
part = cli.option(
    "What changes",
    "--part",
    type=click.Choice(PARTS),
    default="all",
    help="Of the code in these layers: its depthwise kernels, its pointwise kernels, its biases, or all.",
)


def common(command: Callable) -> Callable:
    """The options of every command that shows codes."""
    for add in (device, batch, fixed_noise, classes, trunc, network):
        command = add(command)
    return command


# --- what they mean -------------------------------------------------------------------------------------------------


@dataclass
class Model:
    """A generator, and how codes are made with it."""

    G: Generator
    path: Path
    kimg: float
    psi: float | Tensor
    classes: list[dict[int, float]] | None
    batch: int

    def shares(self, seeds: Sequence[int]) -> Tensor:
        """c [N, c_dim] for seeds: of --class one after the other, or the class that is each seed's own."""
        c_dim = self.G.config.c_dim
        if not c_dim or self.classes is None:
            return conditions(torch.tensor([seed % max(c_dim, 1) for seed in seeds]), len(seeds), c_dim)
        c = torch.zeros(len(seeds), c_dim)
        for i in range(len(seeds)):
            for number, share in self.classes[i % len(self.classes)].items():
                c[i, number] = share
        return c

    def zc(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """z [N, z_dim] and c [N, c_dim] of seeds, where the model is."""
        device = self.G.w_avg.device
        return latents(seeds, self.G.config.z_dim).to(device), self.shares(seeds).to(device)

    @torch.no_grad()
    def ws(self, seeds: Sequence[int]) -> Tensor:
        """The codes of seeds, [N, num_ws, w_dim]."""
        return self.G.ws(*self.zc(seeds), self.psi)

    def announce(self) -> None:
        print(f"network: {self.path} ({self.kimg:g} kimg)", file=sys.stderr)


def open_model(
    network: str | None,
    device: str | None,
    trunc: tuple[float, ...],
    classes: list[dict[int, float]] | None,
    batch: int | None = None,
) -> Model:
    """The model that the options name. Raises UserError where it does not fit them."""
    keep_freed_memory()
    path = find_snapshot(network)
    G, info = load_generator(path, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    check_class(None if classes is None else max(max(shares) for shares in classes), G.config.c_dim, path)
    batch = batch or (64 if G.config.resolution <= 64 else 16)  # small layers are fast with many images only
    return Model(G, path, info["kimg"], layer_psi(trunc, G.config.num_ws), classes, batch)


def layer_psi(trunc: tuple[float, ...], num_ws: int) -> float | Tensor:
    """The truncation of every layer: one number, or [num_ws] where the last of several goes on."""
    if len(trunc) == 1:
        return trunc[0]
    if len(trunc) > num_ws:
        raise UserError(f"--trunc has {len(trunc)} numbers, but the model has {num_ws} layers; write fewer")
    return torch.tensor([*trunc, *[trunc[-1]] * (num_ws - len(trunc))])


def collected(batches: Iterable[Tensor], total: int) -> Tensor:
    """All images of the batches, with a bar meanwhile where stderr is a terminal."""
    collected_batches = []
    with tqdm(total=total, unit="pic", disable=not sys.stderr.isatty()) as bar:
        for batch in batches:
            collected_batches.append(batch)
            bar.update(len(batch))
    return torch.cat(collected_batches)


def numbers_name(numbers: Sequence[int], single: bool = True) -> str:
    """Short for a file's name: `0000-0007` for the first and the last, and `0003` for a `single` one."""
    return f"{numbers[0]:04d}" if single and len(numbers) == 1 else f"{numbers[0]:04d}-{numbers[-1]:04d}"
