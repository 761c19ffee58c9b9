"""Images of any size, stylized in tiles: the result is that of the whole image at once, the memory is not.

Instance normalization needs the mean and variance of whole images, so tiles cannot simply be stylized one by one:
each would get its own contrast. Here every stage of the decoder goes over the whole image before the next one begins.
Its result is kept, and its statistics are added up while it is made; only what a stage computes in between, which
takes several times as much, is limited to a tile. A tile is read with as much around it as its outputs depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from networks.adaconv import AdaConvKernels
from networks.stylizer import CHANNELS, ENCODER_HALO, HALO, Statistics, Stylizer
from networks.vgg import STRIDE
from torch_utils.memory import free_memory
from torch_utils.ops import moments

Span = tuple[int, int, int, int]  # top, bottom, left, right
Adjust = Callable[[int, Statistics], Statistics]

MIN_TILE, MAX_TILE = 64, 1024  # larger ones are not faster
WORKING_BYTES = 1200  # of encoder or decoder for a pixel of a tile at full width: measured (520 to 700), twice


class RunningMoments:
    """Mean and variance of each channel over parts of an image, as of all at once (Chan et al. 1979), in float64."""

    def __init__(self):
        self.count, self.mean, self.squares = 0, None, None

    def add(self, x: Tensor) -> None:
        """x [N, C, h, w]: another part."""
        count = x.shape[2] * x.shape[3]
        mean, var = (t.double() for t in moments(x))
        if self.count == 0:
            self.count, self.mean, self.squares = count, mean, var * count
            return
        total, difference = self.count + count, mean - self.mean
        self.squares += var * count + difference.square() * (self.count * count / total)
        self.mean += difference * (count / total)
        self.count = total

    def result(self, dtype: torch.dtype = torch.float32) -> Statistics:
        return self.mean.to(dtype), (self.squares / self.count).to(dtype)


@torch.no_grad()
def stylize_tiled(
    model: Stylizer,
    content: np.ndarray,
    kernels: Sequence[AdaConvKernels],
    tile: int | Literal["auto"] = "auto",
    progress: Callable[[int, int], None] | None = None,
    memory: int | None = None,
    adjust: Adjust | None = None,
) -> np.ndarray:
    """One image [H, W, 3] in uint8 → the same size in the style that the kernels (of one sample) say.

    Between the stages 96 × width bytes a pixel are kept in the computer's memory; tiles are computed where
    the model is.

    Args:
        tile: side of a tile in pixels, a multiple of 8; "auto" for as large as `memory` allows.
        progress: called with tiles done and tiles in all, after each.
        memory: bytes that may be used; None for what is free.
        adjust: called with the number of each stage that a style speaks to and the statistics of its input, returns
            those that it is normalized by.

    Raises:
        ValueError: for images or tiles of another kind, and where the memory is not enough.
    """
    if content.ndim != 3 or content.shape[2] != 3 or content.dtype != np.uint8:
        raise ValueError(f"content: expected [H, W, 3] in uint8, got {list(content.shape)} in {content.dtype}")
    (height, width), least = content.shape[:2], model.config.min_size
    if min(height, width) < least:
        raise ValueError(f"content: expected at least {least}x{least} pixels, got {width}x{height}")
    device = next(model.parameters()).device
    if tile == "auto":
        tile = tile_for(model.config.width, height, width, free_memory() if memory is None else memory)
    if tile < 16 or tile % STRIDE:
        raise ValueError(f"tile: expected a multiple of {STRIDE}, from 16, got {tile}")
    each = model.decoder.each(kernels)
    if any(len(k.depthwise) != 1 for k in kernels):
        raise ValueError("kernels: expected those of one style")

    total = (1 + len(each)) * -(-height // tile) * -(-width // tile)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    x, seen = encode_tiled(model, content, tile, tick)
    rows, columns = STRIDE * x.shape[2], STRIDE * x.shape[3]
    out = np.empty([rows, columns, 3], np.uint8)
    for i, k in enumerate(each):
        last, scale = i + 1 == len(each), 2 if i else 1
        statistics, seen = tuple(t.to(device) for t in seen.result()), RunningMoments()
        if adjust is not None and k is not None:
            statistics = adjust(i, statistics)
        h, w = x.shape[2:]
        side = tile * h // rows  # of the same tiles in pixels of x
        y = None if last else torch.empty(1, model.config.channels(i + 1), scale * h, scale * w)
        for inner, outer in tiles(h, w, side, HALO[i] + model.config.kernel_size // 2 - 1):
            top, bottom, left, right = outer
            part = model.decoder.stage(i, x[:, :, top:bottom, left:right].to(device), k, statistics)
            part = cut(part, inner, outer, scale)
            if last:
                top, bottom, left, right = (scale * edge for edge in inner)
                image = (part[0] * 127.5 + 127.5).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0)
                out[top:bottom, left:right] = image.cpu().numpy()
            else:
                seen.add(part)
                put(y, part, inner, scale)
            tick()
        x = y
    return out[:height, :width]


@torch.no_grad()
def encode_tiled(
    model: Stylizer, content: np.ndarray, tile: int, tick: Callable[[], None] = lambda: None
) -> tuple[Tensor, RunningMoments]:
    """relu4_1 [1, C, h, w] of an image [H, W, 3] in uint8, in the computer's memory, and its statistics."""
    height, width = content.shape[:2]
    content = np.pad(content, [(0, -height % STRIDE), (0, -width % STRIDE), (0, 0)], mode="reflect")
    h, w = content.shape[0] // STRIDE, content.shape[1] // STRIDE
    device = next(model.parameters()).device
    x, seen = torch.empty(1, model.config.channels(0), h, w), RunningMoments()
    for inner, outer in tiles(h, w, tile // STRIDE, -(-ENCODER_HALO // STRIDE)):
        top, bottom, left, right = (STRIDE * i for i in outer)
        part = torch.from_numpy(content[top:bottom, left:right]).to(device).permute(2, 0, 1)[None]
        features = cut(model.encode(part.float() / 127.5 - 1), inner, outer)
        seen.add(features)
        put(x, features, inner)
        tick()
    return x, seen


def tiles(height: int, width: int, side: int, halo: int) -> Iterator[tuple[Span, Span]]:
    """Cuts height × width into tiles, each with its span and that with a halo around it, as far as there is one."""
    for top in range(0, height, side):
        for left in range(0, width, side):
            bottom, right = min(top + side, height), min(left + side, width)
            outer = max(top - halo, 0), min(bottom + halo, height), max(left - halo, 0), min(right + halo, width)
            yield (top, bottom, left, right), outer


def cut(x: Tensor, inner: Span, outer: Span, scale: int = 1) -> Tensor:
    """Of x, which spans `outer` × scale, the part that spans `inner` × scale."""
    top, left = scale * (inner[0] - outer[0]), scale * (inner[2] - outer[2])
    return x[:, :, top : top + scale * (inner[1] - inner[0]), left : left + scale * (inner[3] - inner[2])]


def put(x: Tensor, part: Tensor, inner: Span, scale: int = 1) -> None:
    top, bottom, left, right = (scale * edge for edge in inner)
    x[:, :, top:bottom, left:right] = part


def kept_bytes(width: float, height: int, columns: int) -> int:
    """What is kept between the stages for an image at most: the results of two of them, and both images."""
    # inputs of the third and the fourth stage: a pixel of theirs is 16 and 4 of the image
    pixel = 4 * width * (CHANNELS[2] / 16 + CHANNELS[3] / 4) + 9
    return int(pixel * height * columns)


def tile_for(width: float, height: int, columns: int, memory: int, working: int | None = None) -> int:
    """The side of the largest tiles that fit into the memory beside what is kept. Raises ValueError if none do.

    `working` is the memory of the GPU, where there is one: tiles are computed there, and kept beside.
    """
    left = memory - kept_bytes(width, height, columns)
    if working is not None:
        left = min(left, working) if left > 0 else left
    for side in range(MAX_TILE, 0, -MIN_TILE):
        if WORKING_BYTES * width * (side + 2 * ENCODER_HALO) ** 2 <= left:
            return side
    need = kept_bytes(width, height, columns) + WORKING_BYTES * width * (MIN_TILE + 2 * ENCODER_HALO) ** 2
    raise ValueError(f"content: {columns}x{height} pixels need {need / 2**30:.1f} GiB, {memory / 2**30:.1f} are free")
