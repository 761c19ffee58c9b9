"""Stylizes images of any size in tiles: with the result of the whole image at once, but less memory.

Instance normalization needs the mean and variance of the whole image, so tiles cannot be stylized one by one: each
would get its own contrast. Here every stage of the decoder processes all tiles of the image before the next stage
begins. Its output is stored, and the statistics of the output are accumulated on the way; only the intermediate results
of a stage, which take several times as much memory, are limited to a tile. Each tile is read with a halo of the pixels
that its outputs depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from media.images import to_float, to_uint8
from networks.adaconv import AdaConvKernels
from networks.stylizer import CHANNELS, ENCODER_HALO, HALO, Statistics, Stylizer, at_least_float32
from networks.vgg import STRIDE
from torch_utils.ops import moments

Span = tuple[int, int, int, int]  # top, bottom, left, right
Adjust = Callable[[int, Statistics], Statistics]

MIN_TILE, MAX_TILE = 64, 1024  # larger tiles are not faster
TILE_BYTES_PER_PIXEL = 1200  # memory of encoder or decoder at full width: twice the 520 to 700 that were measured


class RunningMoments:
    """Mean and variance of each channel of an image from its parts (Chan et al. 1979), accumulated in float64."""

    def __init__(self) -> None:
        self._sums: tuple[int, Tensor, Tensor] | None = None  # pixels, mean, sum of squared deviations from it

    def add(self, x: Tensor) -> None:
        """Adds a part, x [N, C, h, w]."""
        count = x.shape[2] * x.shape[3]
        mean, var = (t.double() for t in moments(at_least_float32(x)))
        if self._sums is None:
            self._sums = count, mean, var * count
            return
        before, old_mean, squares = self._sums
        total, difference = before + count, mean - old_mean
        squares = squares + (var * count + difference.square() * (before * count / total))
        self._sums = total, old_mean + difference * (count / total), squares

    def result(self, dtype: torch.dtype = torch.float32) -> Statistics:
        """Mean and variance, [N, C] each, of all parts. Raises ValueError if there are none."""
        if self._sums is None:
            raise ValueError("no part was added")
        count, mean, squares = self._sums
        return mean.to(dtype), (squares / count).to(dtype)


@torch.no_grad()
def stylize_tiled(
    model: Stylizer,
    content: np.ndarray,
    kernels: Sequence[AdaConvKernels],
    tile: int,
    progress: Callable[[int, int], None] | None = None,
    adjust: Adjust | None = None,
) -> np.ndarray:
    """Stylizes an image [H, W, 3] in uint8 with the kernels of one style; the result is of the same kind.

    The outputs of the stages take 96 × width bytes per pixel of main memory; tiles are computed on the model's device.

    Args:
        tile: side of a tile in pixels, a multiple of 8; `tile_for` finds the largest one that the memory allows.
        progress: called after each tile with the number of tiles done and of all tiles.
        adjust: called with the number of each modulated stage and the statistics of its input; returns those that the
            input is normalized by.

    Raises:
        ValueError: if the image or the tile's side is invalid.
    """
    if content.ndim != 3 or content.shape[2] != 3 or content.dtype != np.uint8:
        raise ValueError(f"content: expected [H, W, 3] in uint8, got {list(content.shape)} in {content.dtype}")
    (height, width), least = content.shape[:2], model.config.min_size
    if min(height, width) < least:
        raise ValueError(f"content: expected at least {least}x{least} pixels, got {width}x{height}")
    device = next(model.parameters()).device
    if tile < 16 or tile % STRIDE:
        raise ValueError(f"tile: expected a multiple of {STRIDE}, from 16, got {tile}")
    each = model.decoder.kernels_by_stage(kernels)
    if any(len(k.depthwise) != 1 for k in kernels):
        raise ValueError("kernels: expected those of one style")

    tick = count_tiles((1 + len(each)) * -(-height // tile) * -(-width // tile), progress)
    x, running = encode_tiled(model, content, tile, tick)
    rows, columns = STRIDE * x.shape[2], STRIDE * x.shape[3]
    image = np.empty([rows, columns, 3], np.uint8)
    for i, k in enumerate(each):
        mean, variance = running.result()
        statistics = mean.to(device), variance.to(device)
        if adjust is not None and k is not None:
            statistics = adjust(i, statistics)
        outputs = decode_tiles(model, i, x, k, statistics, side=tile * x.shape[2] // rows)  # the same tiles, in x
        if i + 1 < len(each):
            scale = 2 if i else 1
            shape = 1, model.config.channels(i + 1), scale * x.shape[2], scale * x.shape[3]
            x, running = store(outputs, shape, tick)
        else:
            for (top, bottom, left, right), part in outputs:
                image[top:bottom, left:right] = to_uint8(part.float())[0].permute(1, 2, 0).cpu().numpy()
                tick()
    return image[:height, :width]


@torch.no_grad()
def encode_tiled(
    model: Stylizer, content: np.ndarray, tile: int, tick: Callable[[], None] = lambda: None
) -> tuple[Tensor, RunningMoments]:
    """relu4_1 [1, C, h, w] of an image [H, W, 3] in uint8, in main memory, and its statistics."""
    height, width = content.shape[:2]
    content = np.pad(content, [(0, -height % STRIDE), (0, -width % STRIDE), (0, 0)], mode="reflect")
    shape = 1, model.config.channels(0), content.shape[0] // STRIDE, content.shape[1] // STRIDE
    return store(encode_tiles(model, content, tile // STRIDE), shape, tick)


def encode_tiles(model: Stylizer, content: np.ndarray, side: int) -> Iterator[tuple[Span, Tensor]]:
    """Tiles of relu4_1 with their spans; `side` is theirs, and height and width of the image are multiples of 8."""
    device = next(model.parameters()).device
    h, w = content.shape[0] // STRIDE, content.shape[1] // STRIDE
    for inner, outer in tiles(h, w, side, -(-ENCODER_HALO // STRIDE)):
        top, bottom, left, right = (STRIDE * i for i in outer)
        part = torch.from_numpy(content[top:bottom, left:right]).to(device).permute(2, 0, 1)[None]
        yield inner, crop(model.encode(to_float(part)), inner, outer)


def decode_tiles(
    model: Stylizer, stage: int, x: Tensor, kernels: AdaConvKernels | None, statistics: Statistics, side: int
) -> Iterator[tuple[Span, Tensor]]:
    """Tiles of a stage's output with their spans, from its input x [1, C, h, w] in tiles of that side."""
    device = next(model.parameters()).device
    scale = 2 if stage else 1
    for inner, outer in tiles(x.shape[2], x.shape[3], side, HALO[stage] + model.config.kernel_size // 2 - 1):
        top, bottom, left, right = outer
        part = model.decoder.stage(stage, x[:, :, top:bottom, left:right].to(device), kernels, statistics)
        top, bottom, left, right = inner
        yield (scale * top, scale * bottom, scale * left, scale * right), crop(part, inner, outer, scale)


def store(
    parts: Iterator[tuple[Span, Tensor]], shape: tuple[int, int, int, int], tick: Callable[[], None]
) -> tuple[Tensor, RunningMoments]:
    """Puts tiles together to a tensor in main memory, and adds up their statistics."""
    whole, running = torch.empty(shape), RunningMoments()
    for (top, bottom, left, right), part in parts:
        running.add(part)
        whole[:, :, top:bottom, left:right] = part
        tick()
    return whole, running


def count_tiles(total: int, progress: Callable[[int, int], None] | None) -> Callable[[], None]:
    """What is called after each tile, and calls `progress` with the number of tiles done and of all tiles."""
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return tick


def tiles(height: int, width: int, side: int, halo: int) -> Iterator[tuple[Span, Span]]:
    """The tiles of height × width pixels: the span of each, and its span with a halo, which ends at the borders."""
    for top in range(0, height, side):
        for left in range(0, width, side):
            bottom, right = min(top + side, height), min(left + side, width)
            outer = max(top - halo, 0), min(bottom + halo, height), max(left - halo, 0), min(right + halo, width)
            yield (top, bottom, left, right), outer


def crop(x: Tensor, inner: Span, outer: Span, scale: int = 1) -> Tensor:
    """The part `inner` × scale of x, which spans `outer` × scale."""
    top, left = scale * (inner[0] - outer[0]), scale * (inner[2] - outer[2])
    return x[:, :, top : top + scale * (inner[1] - inner[0]), left : left + scale * (inner[3] - inner[2])]


def stored_bytes(factor: float, height: int, width: int) -> int:
    """The main memory that an image takes at most between the stages: the outputs of two of them, and both images.

    `factor` is the model's on the numbers of channels (`StylizerConfig.width`).
    """
    # the inputs of the third and the fourth stage, which have a pixel for every 16 and every 4 of the image
    pixel = 4 * factor * (CHANNELS[2] / 16 + CHANNELS[3] / 4) + 9
    return int(pixel * height * width)


def tile_for(factor: float, height: int, width: int, memory: int, working: int | None = None) -> int:
    """The side of the largest tiles that fit into the memory beside the stored outputs; ValueError if none do.

    `working` is the free memory of the GPU if the model is on one: tiles are computed there, outputs stored here.
    """
    left = memory - stored_bytes(factor, height, width)
    if working is not None:
        left = min(left, working) if left > 0 else left
    for side in range(MAX_TILE, 0, -MIN_TILE):
        if TILE_BYTES_PER_PIXEL * factor * (side + 2 * ENCODER_HALO) ** 2 <= left:
            return side
    need = stored_bytes(factor, height, width) + TILE_BYTES_PER_PIXEL * factor * (MIN_TILE + 2 * ENCODER_HALO) ** 2
    raise ValueError(f"content: {width}x{height} pixels need {need / 2**30:.1f} GiB, {memory / 2**30:.1f} are free")
