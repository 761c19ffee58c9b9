"""A look applied to images and videos."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from media.files import MIN_SIDE
from media.images import to_float, to_uint8
from media.video import Transcoded, VideoReader, transcode
from networks.stylizer import Kernels, Stylizer, mix, padded, weakened
from styling.color import keep_colors
from styling.mask import blend
from styling.smooth import CutDetector, MotionFilter, StatisticsSmoother
from styling.styles import Look
from styling.tiles import Adjust, encode_tiled, stylize_tiled, tile_for
from torch_utils.errors import UserError
from torch_utils.memory import free_memory, release_freed_memory
from torch_utils.ops import moments

Progress = Callable[[int, int | None], None]  # done, in all

SMALL = 1 << 21  # pixels: what "auto" stylizes as a whole, a frame of 1920 × 1080 for instance
WORKING = 1600  # bytes a pixel at full width for a whole image: measured (1080 to 1390), with room
AT_ONCE = 1 << 20  # pixels of the frames of a video in one batch on a GPU; a CPU is as fast one by one
ROWS = 256  # of an image, that are computed with in floats at a time


@dataclass(frozen=True)
class Settings:
    """How a look is applied."""

    strength: float = 1.0
    color: Literal["luminance", "histogram"] | None = None  # what of the content's colours is kept
    tile: int | Literal["auto", "none"] = "auto"
    smooth: float = 0.8  # of videos


@torch.no_grad()
def stylize_image(
    model: Stylizer, content: Tensor, look: Look, settings: Settings, progress: Progress | None = None
) -> Tensor:
    """uint8 [3, H, W] → the same size. Raises UserError where the memory is not enough."""
    tile = tile_side(model, *content.shape[1:], settings.tile)
    kernels = look.matched(model, content) if settings.color == "histogram" else look.kernels()
    if tile is None:
        device = next(model.parameters()).device
        x = to_float(content[None].to(device))
        if settings.strength < 1:
            kernels = weakened(model, x, kernels, settings.strength)
        image = to_uint8(model(x, kernels))[0].cpu()
    else:
        if settings.strength < 1:
            kernels = mix([own_kernels(model, content, tile), kernels], [1 - settings.strength, settings.strength])
        image = in_tiles(model, content, kernels, tile, progress)
    if settings.color == "luminance":
        image = by_rows(lambda y, x: to_uint8(keep_colors(to_float(y), to_float(x))), image, content)
    return image


def stylize_masked(
    model: Stylizer,
    content: Tensor,
    inside: Look,
    outside: Look,
    mask: Tensor,
    settings: Settings,
    progress: Progress | None = None,
) -> Tensor:
    """uint8 [3, H, W] → the same size, with one look where the mask [1, H, W] is 1 and another where it is 0."""
    within = stylize_image(model, content, inside, settings, progress)
    without = stylize_image(model, content, outside, settings, progress)
    return by_rows(lambda a, b, m: blend(a.float(), b.float(), m).round().to(torch.uint8), within, without, mask)


class FrameStylizer:
    """The frames of a video one after another, uint8 [N, 3, H, W] → the same, calm from frame to frame.

    Noise of the content is filtered where nothing moves, and the statistics that each stage normalizes by are averages
    over frames; both begin anew at cuts. Colours that are taken from the content are those of a scene's first frame.
    """

    def __init__(self, model: Stylizer, look: Look, settings: Settings):
        self.model, self.look, self.settings = model, look, settings
        self.device = next(model.parameters()).device
        self.kernels = look.kernels()
        self.find_cuts = CutDetector()
        calm = settings.smooth
        self.filter = MotionFilter(1 - 0.9375 * calm) if calm else None  # a gain of 1/16 at most calm
        self.stages = [StatisticsSmoother(0.95 * calm) for _ in self.kernels] if calm else []
        self.own = StatisticsSmoother(0.95 * calm)
        self.tile: int | None = None  # the side of tiles, 0 for the whole at once; found out with the first frame

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        content = to_float(frames.to(self.device))
        cuts = self.find_cuts(content)
        if self.filter:
            content = self.filter(content, cuts)
        starts = [0, *(i for i, cut in enumerate(cuts) if cut and i)]
        parts = []
        for start, stop in zip(starts, [*starts[1:], len(cuts)], strict=True):
            if cuts[start] and self.settings.color == "histogram":
                self.kernels = self.look.matched(self.model, to_uint8(content[start]))
            parts.append(self.scene(content[start:stop], cuts[start:stop]))
        return torch.cat(parts)

    def scene(self, content: Tensor, cuts: Sequence[bool]) -> Tensor:
        """float [N, 3, H, W] of one scene → uint8; only the first may be a cut."""
        if self.tile is None:  # once, whatever memory is free later
            self.tile = tile_side(self.model, *content.shape[2:], self.settings.tile) or 0
        tile = self.tile or None
        if tile is None:
            x = render(self.model, content, self.weakened(content, cuts, None), self.adjust(cuts))
            y = to_uint8(x).cpu()
        else:
            images = []
            for i, image in enumerate(to_uint8(content).cpu()):
                kernels = self.weakened(content[i : i + 1], cuts[i : i + 1], tile)
                images.append(in_tiles(self.model, image, kernels, tile, adjust=self.adjust(cuts[i : i + 1])))
            y = torch.stack(images)
        if self.settings.color == "luminance":
            y = to_uint8(keep_colors(to_float(y), content.cpu()))
        return y

    def weakened(self, content: Tensor, cuts: Sequence[bool], tile: int | None) -> Kernels:
        """The look's kernels on their way from the content's own, which are averages over frames as well."""
        strength = self.settings.strength
        if strength == 1:
            return self.kernels
        if tile is None:
            own = weakened(self.model, content, self.kernels, 0)
        else:
            own = own_kernels(self.model, to_uint8(content[0]).cpu(), tile)
        if self.settings.smooth:
            flat = self.own([(k.depthwise, k.pointwise) for k in own] + [(k.bias, k.bias) for k in own], cuts)
            pairs = zip(own, flat[: len(own)], flat[len(own) :], strict=True)
            own = [type(k)(depthwise, pointwise, bias) for k, (depthwise, pointwise), (bias, _) in pairs]
        return mix([own, self.kernels], [1 - strength, strength])

    def adjust(self, cuts: Sequence[bool]) -> Adjust | None:
        if not self.stages:
            return None
        return lambda i, statistics: self.stages[i]([statistics], cuts)[0]


def stylize_video(
    source: str | os.PathLike,
    out: str | os.PathLike,
    model: Stylizer,
    look: Look,
    settings: Settings,
    batch: int | None = None,
    progress: Progress | None = None,
) -> Transcoded:
    """Writes the video in that look, with its sound and times.

    `batch`: frames at a time; None for what suits their size. Raises UserError where the source is no video or
    too small, or `out` cannot be written, and DiskFull.
    """
    with VideoReader(source) as reader:
        height, width = reader.stream.height, reader.stream.width
    least = min_side(model)
    if height and width and min(height, width) < least:
        raise UserError(f"{source} has {width}x{height} pixels; each side needs {least} or more; name another video")
    if batch is None:
        on_gpu = next(model.parameters()).device.type != "cpu"
        batch = min(max(AT_ONCE // max(height * width, 1), 1), 16) if on_gpu else 1
    return transcode(source, out, FrameStylizer(model, look, settings), batch=batch, progress=progress)


def render(model: Stylizer, content: Tensor, kernels: Kernels, adjust: Adjust | None = None) -> Tensor:
    """`model(content, kernels)` with the statistics of each stage's input passed through `adjust`."""
    if adjust is None:
        return model(content, kernels)
    height, width = content.shape[2:]
    x = model.encode(padded(content, model.config.min_size))
    for i, k in enumerate(model.decoder.each(kernels)):
        x = x.contiguous()  # what `moments` and the stage read
        statistics = None if k is None else adjust(i, moments(x))
        x = model.decoder.stage(i, x, k, statistics)
    return x[:, :, :height, :width]


def in_tiles(
    model: Stylizer,
    content: Tensor,
    kernels: Kernels,
    tile: int,
    progress: Progress | None = None,
    adjust: Adjust | None = None,
) -> Tensor:
    """`stylize_tiled` of uint8 [3, H, W]."""
    array = content.permute(1, 2, 0).contiguous().numpy()
    image = stylize_tiled(model, array, kernels, tile, progress, adjust=adjust)
    return torch.from_numpy(image).permute(2, 0, 1)


def own_kernels(model: Stylizer, content: Tensor, tile: int) -> Kernels:
    """What `weakened` calls the content's own, of uint8 [3, H, W], in tiles where all of it is looked at."""
    device = next(model.parameters()).device
    if model.style_encoder is not None:
        return model.kernels(to_float(content[None].to(device)))
    features, _ = encode_tiled(model, content.permute(1, 2, 0).contiguous().numpy(), tile)
    return model.kernels_of(features.to(device))


def min_side(model: Stylizer) -> int:
    """Pixels that a side of a content needs."""
    return max(MIN_SIDE, model.config.min_size)


def tile_side(model: Stylizer, height: int, width: int, tile: int | str) -> int | None:
    """The side of the tiles for an image, None for the whole at once. Raises UserError where no memory is enough."""
    if tile != "auto":
        return None if tile == "none" else int(tile)
    device = next(model.parameters()).device
    if height * width > SMALL:
        release_freed_memory()
    memory, working = free_memory(), None
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        working = (torch.cuda.mem_get_info(device)[0] + unused) * 3 // 4
    at_once = memory if working is None else working
    if height * width <= min(SMALL, at_once // (WORKING * max(model.config.width, 0.05))):
        return None
    try:
        return tile_for(model.config.width, height, width, memory, working)
    except ValueError as error:
        raise UserError(f"{error}; make it smaller, or try --tile 64") from None


def by_rows(function: Callable[..., Tensor], *images: Tensor) -> Tensor:
    """`function` of images [C, H, W] pixel by pixel, some rows at a time: floats of a large one would need much."""
    parts = zip(*(image.split(ROWS, dim=1) for image in images), strict=True)
    return torch.cat([function(*part) for part in parts], dim=1)
