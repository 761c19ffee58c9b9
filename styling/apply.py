"""Applies styles to images and to frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from media.files import MIN_SIDE
from media.images import to_float, to_uint8
from media.resize import make_smaller, smaller_size
from networks.adaconv import AdaConvKernels
from networks.stylizer import (
    Kernels,
    Statistics,
    Stylizer,
    apply_strength,
    at_least_float32,
    own_kernels,
    pad_to_stride,
)
from networks.vgg import STRIDE
from styling.color import keep_colors
from styling.mask import blend, resize_mask, soften
from styling.shifts import SHIFTS, Shift, average, moved
from styling.smooth import CutDetector, MotionFilter, MovingAverage
from styling.styles import CombinedStyle
from styling.tiles import Adjust, encode_tiled, stylize_tiled, tile_for
from torch_utils.errors import UserError
from torch_utils.memory import free_memory, release_freed_memory
from torch_utils.ops import moments
from torch_utils.precision import COMPUTE_DTYPES, autocast

Progress = Callable[[int, int | None], None]  # called with the number of steps done, and of all steps if it is known

WHOLE_BYTES_PER_PIXEL = 1600  # memory for a whole image at full width: 1080 to 1390 were measured
MARGIN = 48  # pixels; with more of them the outermost pixels differ from a continued image no more than all others do
MAX_WHOLE_PIXELS = (1920 + 2 * MARGIN) * (1080 + 2 * MARGIN)  # larger images, with their margin, are tiled by "auto"
ROWS_PER_BLOCK = 256  # rows of an image that are in memory as floats at a time
COLORS = (None, "luminance", "histogram")  # whose colours a result has: the style's, or in two ways the content's


@dataclass(frozen=True)
class Settings:
    """How a style is applied. Raises ValueError for values that are none."""

    strength: float = 1.0  # 1 for the style, 0 for the content's own
    color: Literal["luminance", "histogram"] | None = None  # how the content's colours are kept, if they are
    tile: int | Literal["auto", "none"] = "auto"  # side of the tiles of large images in pixels
    smooth: float = 0.8  # how much changes from frame to frame of a video are damped, 0..1
    precision: str = "fp32"  # of the convolutions: "fp32", "bf16" or "fp16"
    shifts: int = 1  # over how many contents, moved on the encoder's grid, images are averaged: 1, 2 or 4
    feather: float = 0.0  # pixels by which the edges of a mask are softened
    max_side: int | None = None  # pixels of a content's longer side, to which larger ones are made smaller before

    def __post_init__(self) -> None:
        if isinstance(self.tile, str):
            is_tile = self.tile in ("auto", "none")
        else:
            is_tile = self.tile >= 2 * STRIDE and self.tile % STRIDE == 0
        for name, fits, expected in (
            ("strength", 0 <= self.strength <= 1, "a number from 0 to 1"),
            ("color", self.color in COLORS, f"one of {COLORS}"),
            ("tile", is_tile, "'auto', 'none' or a multiple of 8 from 16"),
            ("smooth", 0 <= self.smooth <= 1, "a number from 0 to 1"),
            ("precision", self.precision in COMPUTE_DTYPES, f"one of {tuple(COMPUTE_DTYPES)}"),
            ("shifts", self.shifts in SHIFTS, f"one of {tuple(SHIFTS)}"),
            ("max_side", self.max_side is None or self.max_side >= MIN_SIDE, f"None or pixels from {MIN_SIDE}"),
            ("feather", 0 <= self.feather < math.inf, "a number of pixels from 0"),
        ):
            if not fits:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")


@torch.no_grad()
def stylize_image(
    model: Stylizer, content: Tensor, style: CombinedStyle, settings: Settings, progress: Progress | None = None
) -> Tensor:
    """A content, uint8 [3, H, W], in a style, in the same format. Raises UserError if the memory is too small.

    The content is continued beyond its borders (`continued`), so that the style draws no frame along them.
    """
    content = make_smaller(content, settings.max_side)
    beyond = continued(content)
    tile = tile_side(model, beyond.shape[1], beyond.shape[2], settings.tile)
    kernels = style.kernels_in_colors_of(model, content) if settings.color == "histogram" else style.kernels()
    device = next(model.parameters()).device
    if settings.strength < 1:
        if tile:
            own = own_kernels_tiled(model, content, tile)
        else:
            own = own_kernels(model, to_float(content[None].to(device)))
        kernels = apply_strength(own, kernels, settings.strength)
    images, count = [], settings.shifts
    for number, shift in enumerate(SHIFTS[count]):
        with autocast(device, settings.precision):
            if tile:
                report = progress and part_of(progress, number, count)
                image = stylize_in_tiles(model, moved(beyond, shift), kernels, tile, report)
            else:
                y = model(to_float(moved(beyond, shift)[None].to(device)), kernels)
                image = to_uint8(y.float())[0].cpu()
        images.append(inner(image, content, shift))
    image = average(images)
    if settings.color == "luminance":
        image = by_rows(lambda y, x: to_uint8(keep_colors(to_float(y), to_float(x))), image, content)
    return image


def part_of(progress: Progress, number: int, count: int) -> Progress:
    """The progress of one of `count` equal parts of the work."""

    def report(done: int, total: int | None) -> None:
        progress(done + number * (total or 0), total and count * total)

    return report


def stylize_masked(
    model: Stylizer,
    content: Tensor,
    inside: CombinedStyle,
    outside: CombinedStyle,
    mask: Tensor,
    settings: Settings,
    progress: Progress | None = None,
) -> Tensor:
    """Like `stylize_image`, with one style where the mask [1, H, W] is 1 and another where it is 0.

    The mask has the content's size. It is made smaller as the content is, and its edges are softened as the settings
    say.
    """
    inner_image = stylize_image(model, content, inside, settings, progress)
    outer_image = stylize_image(model, content, outside, settings, progress)

    share = soften(resize_mask(mask, inner_image.shape[1:]), settings.feather)
    return blend_images(inner_image, outer_image, share)


def blend_images(inside: Tensor, outside: Tensor, mask: Tensor) -> Tensor:
    """`blend` of two images, uint8 [3, H, W], rounded."""

    def blend_rows(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
        return blend(a.float(), b.float(), share).round().to(torch.uint8)

    return by_rows(blend_rows, inside, outside, mask)


class FrameStylizer:
    """Stylizes the frames of a video in order, uint8 [N, 3, H, W] → the same, without flicker.

    The content's noise is filtered where nothing moves, and each stage normalizes by statistics that are averaged over
    frames; both start anew at cuts. Where colours are matched to the content, it is to the first frame of a scene.
    Frames that are made smaller get even sizes, as videos need.
    """

    def __init__(self, model: Stylizer, style: CombinedStyle, settings: Settings):
        self.model, self.style, self.settings = model, style, settings
        self.device = next(model.parameters()).device
        self.kernels = style.kernels()
        self.find_cuts = CutDetector()
        smooth = settings.smooth
        self.filter = MotionFilter(1 - 0.9375 * smooth) if smooth else None  # at most smooth, a gain of 1/16
        self.statistics = {  # of each stage, for each place of the content on the grid
            shift: [MovingAverage(0.95 * smooth) for _ in self.kernels] if smooth else []
            for shift in SHIFTS[settings.shifts]
        }
        self.own_kernels = MovingAverage(0.95 * smooth)
        self.tile: int | None = None  # side of the tiles, 0 for none; None until the first frame says how large it is

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        content = to_float(make_smaller(frames, self.settings.max_side, even=True).to(self.device))
        cuts = self.find_cuts(content)
        if self.filter:
            content = self.filter(content, cuts)
        starts = [0, *(i for i, cut in enumerate(cuts) if cut and i)]
        parts = []
        for start, stop in zip(starts, [*starts[1:], len(cuts)], strict=True):
            if cuts[start] and self.settings.color == "histogram":
                self.kernels = self.style.kernels_in_colors_of(self.model, to_uint8(content[start]))
            parts.append(self.stylize_scene(content[start:stop], cuts[start:stop]))
        return torch.cat(parts)

    def stylize_scene(self, content: Tensor, cuts: Sequence[bool]) -> Tensor:
        """Frames of one scene, float [N, 3, H, W] → uint8; only the first of them may be a cut."""
        beyond = continued(content)
        if self.tile is None:  # decided once, so that it does not depend on how much memory is free later
            self.tile = tile_side(self.model, beyond.shape[2], beyond.shape[3], self.settings.tile)
        if not self.tile:
            y = self.stylize_frames(content, beyond, cuts)
        else:
            frames = [slice(i, i + 1) for i in range(len(content))]
            y = torch.cat([self.stylize_frames(content[one], beyond[one], cuts[one]) for one in frames])
        if self.settings.color == "luminance":
            y = to_uint8(keep_colors(to_float(y), content.cpu()))
        return y

    def stylize_frames(self, content: Tensor, beyond: Tensor, cuts: Sequence[bool]) -> Tensor:
        """Frames and their continuation, float [N, 3, H, W] → uint8; in tiles, one at a time."""
        kernels, images = self.scene_kernels(content, cuts), []
        for shift in self.statistics:
            x, adjust = moved(beyond, shift), self.adjust(cuts, shift)
            with autocast(self.device, self.settings.precision):
                if self.tile:
                    y = stylize_in_tiles(self.model, to_uint8(x)[0].cpu(), kernels, self.tile, adjust=adjust)[None]
                else:
                    y = to_uint8(stylize_whole(self.model, x, kernels, adjust).float()).cpu()
            images.append(inner(y, content, shift))
        return average(images)

    def scene_kernels(self, content: Tensor, cuts: Sequence[bool]) -> Kernels:
        """The style's kernels at the strength asked for. The content's own kernels are averaged over frames."""
        strength = self.settings.strength
        if strength == 1:
            return self.kernels
        if self.tile:
            own = own_kernels_tiled(self.model, to_uint8(content[0]).cpu(), self.tile)
        else:
            own = own_kernels(self.model, content)
        if self.settings.smooth:
            tensors = [cast(Tensor, t) for k in own for t in (k.depthwise, k.pointwise, k.bias)]
            average = self.own_kernels(tensors, cuts)
            own = [AdaConvKernels(*average[i : i + 3]) for i in range(0, len(average), 3)]
        return apply_strength(own, self.kernels, strength)

    def adjust(self, cuts: Sequence[bool], shift: Shift) -> Adjust | None:
        """What averages the statistics of each stage over frames; None without smoothing."""
        if not (stages := self.statistics[shift]):
            return None

        def over_frames(stage: int, statistics: Statistics) -> Statistics:
            mean, variance = stages[stage](statistics, cuts)
            return mean, variance

        return over_frames


def continued(content: Tensor) -> Tensor:
    """Images [..., H, W] continued by reflection on all sides, by 48 pixels or as many as a smaller image allows.

    A convolution reads zeros or single pixels beyond a border, in each layer anew; instance normalization and the
    style's kernels make a frame of the difference. Reflected once in the image, the border lies inside of it instead.
    """
    for dim in (-2, -1):
        size = content.shape[dim]
        margin = margin_of(size)
        index = torch.arange(-margin, size + margin, device=content.device).abs()
        content = content.index_select(dim, torch.minimum(index, 2 * (size - 1) - index))
    return content


def inner(image: Tensor, content: Tensor, shift: Shift = (0, 0)) -> Tensor:
    """The part of the stylized `continued(content)`, or of that moved by `shift`, where the content is."""
    height, width = content.shape[-2:]
    top, left = margin_of(height) - shift[0], margin_of(width) - shift[1]
    return image[..., top : top + height, left : left + width]


def margin_of(size: int) -> int:
    """By how many pixels a side of `size` pixels is continued: a multiple of the encoder's stride, below the side."""
    return min(MARGIN, (size - 1) // STRIDE * STRIDE)


def stylize_whole(model: Stylizer, content: Tensor, kernels: Kernels, adjust: Adjust | None = None) -> Tensor:
    """`model(content, kernels)`, where `adjust` may replace the statistics of each stage's input."""
    if adjust is None:
        return model(content, kernels)
    height, width = content.shape[2:]
    x = model.encode(pad_to_stride(content, model.config.min_size))
    for i, k in enumerate(model.decoder.kernels_by_stage(kernels)):
        x = x.contiguous()  # the memory format that `moments` and the stage read
        statistics = None if k is None else adjust(i, moments(at_least_float32(x)))
        x = model.decoder.stage(i, x, k, statistics)
    return x[:, :, :height, :width]


def stylize_in_tiles(
    model: Stylizer,
    content: Tensor,
    kernels: Kernels,
    tile: int,
    progress: Progress | None = None,
    adjust: Adjust | None = None,
) -> Tensor:
    """`stylize_tiled` for a tensor, uint8 [3, H, W]."""
    array = content.permute(1, 2, 0).contiguous().numpy()
    image = stylize_tiled(model, array, kernels, tile, progress, adjust=adjust)
    return torch.from_numpy(image).permute(2, 0, 1)


def own_kernels_tiled(model: Stylizer, content: Tensor, tile: int) -> Kernels:
    """`own_kernels` of a content, uint8 [3, H, W], which is encoded in tiles where all of it is read."""
    device = next(model.parameters()).device
    if model.style_encoder is not None:
        return own_kernels(model, to_float(content[None].to(device)))
    features, _ = encode_tiled(model, content.permute(1, 2, 0).contiguous().numpy(), tile)
    return model.kernels_of(features.to(device))


def min_side(model: Stylizer) -> int:
    """The smallest side of a content in pixels."""
    return max(MIN_SIDE, model.config.min_size)


def check_size(
    model: Stylizer, name: object, height: int, width: int, max_side: int | None, even: bool = False
) -> tuple[int, int]:
    """The height and width at which a content is stylized. Raises UserError if a side is too short for the model."""
    least, given = min_side(model), f"{width}x{height}"
    height, width = smaller_size(height, width, max_side, even)
    if min(height, width) >= least:
        return height, width
    if given == f"{width}x{height}":
        raise UserError(f"{name} has {given} pixels; each side needs {least} or more; name a larger one")
    raise UserError(
        f"{name} has {given} pixels, and {width}x{height} where the longer side may have {max_side}; each side needs "
        f"{least} or more; allow more"
    )


def tile_side(model: Stylizer, height: int, width: int, tile: int | str) -> int:
    """The side of the tiles for an image, 0 to stylize it as a whole. UserError if there is too little memory."""
    if tile != "auto":
        return 0 if tile == "none" else int(tile)
    device = next(model.parameters()).device
    if height * width > MAX_WHOLE_PIXELS:
        release_freed_memory()
    memory, working = free_memory(), None
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        working = (torch.cuda.mem_get_info(device)[0] + unused) * 3 // 4
    available = memory if working is None else working
    bytes_per_pixel = WHOLE_BYTES_PER_PIXEL * max(model.config.width, 0.05)
    if height * width <= min(MAX_WHOLE_PIXELS, available // bytes_per_pixel):
        return 0
    try:
        return tile_for(model.config.width, height, width, memory, working)
    except ValueError as error:
        raise UserError(
            f"with the margins around it, {error}; make the content smaller, or end other programs that take memory"
        ) from None


def by_rows(function: Callable[..., Tensor], *images: Tensor) -> Tensor:
    """Applies a pixelwise `function` to images [C, H, W], some rows at a time, so that few floats are in memory."""
    parts = zip(*(image.split(ROWS_PER_BLOCK, dim=1) for image in images), strict=True)
    return torch.cat([function(*part) for part in parts], dim=1)
