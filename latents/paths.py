"""The way that a video goes: through the latents of files and of seeds, closed or open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latents.cli import Model
from latents.codes import Codes, join_codes
from latents.mixing import Part
from latents.walks import Interpolation, Space, Walk, closed_walk, there_and_back, w_walk
from networks.generator import Noise
from torch_utils.errors import UserError, plural


@dataclass(frozen=True)
class WalkOptions:
    """Where a walk goes, and what follows it."""

    space: Space
    interpolation: Interpolation
    is_open: bool
    layers: list[int] | None
    part: Part


@dataclass(frozen=True)
class VideoOptions:
    """The file of a video."""

    out: str
    seconds: float | None
    fps: float
    cells: tuple[int, int]
    scale: int | None


def check_walk(stops: int, walk: WalkOptions, video: VideoOptions) -> int:
    """The number of frames of a walk through the latents of so many images. Raises UserError if it makes no sense."""
    columns, rows = video.cells
    if stops < 2:
        raise UserError(
            "a walk needs two images: two seeds, two classes with --class, or latents with --w; write e.g. --seeds 0-7"
        )
    if walk.is_open and (columns, rows) != (1, 1):
        raise UserError(
            "in a --grid cells start at other seeds, which would pass the end of an --open walk; leave one out"
        )
    if columns * rows > stops:
        raise UserError(
            f"--grid {columns}x{rows} has more cells than there are images to walk through ({stops}), so that cells "
            "would repeat; take a smaller one"
        )
    seconds = video.seconds or stops - walk.is_open
    if (count := round(seconds * video.fps)) < 2:
        raise UserError(f"--seconds {seconds:g} at --fps {video.fps:g} is {plural(count, 'frame')}; take two or more")
    return count


@dataclass(frozen=True)
class Path:
    """A walk, and what else passes along it. The way back of an open walk is among its keys."""

    walk: Walk
    keys: int
    noise: Noise = "const"  # or noise maps [keys, 1, H, W] for each layer
    centers: Tensor | None = None  # [keys, w_dim]


@torch.no_grad()
def find_path(model: Model, codes: Codes, seeds: Sequence[int], options: WalkOptions) -> Path:
    """The way through the codes, before truncation, and then through the latents of the seeds."""
    G = model.G
    z, c = model.zc(seeds)
    if len(codes.ws):
        both = join_codes(G, [codes, Codes(G.ws(z, c))])
        ws, *maps = (there_and_back(keys) if options.is_open else keys for keys in (both.ws, *(both.noise or [])))
        return Path(closed_walk(ws, options.interpolation, G.w_avg), len(ws), maps or "const")
    if options.is_open:
        z, c = there_and_back(z), there_and_back(c)
    return Path(w_walk(G, z, c, options.space, options.interpolation), len(z), centers=model.centers(c))
