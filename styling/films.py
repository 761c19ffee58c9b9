"""Applies styles to films: a style, or two divided by a mask, to the frames of a video in their order."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from media.excerpt import WHOLE, Excerpt
from media.transcode import Transcoded, transcode
from media.video import VideoReader
from networks.stylizer import Stylizer
from styling.apply import FrameStylizer, Progress, Settings, blend_images, check_size
from styling.mask import resize_mask, soften
from styling.styles import CombinedStyle

BATCH_PIXELS = 1 << 20  # of the frames of a video in one batch on a GPU; on a CPU batches are no faster


class MaskedFrames:
    """Stylizes frames as `FrameStylizer` does, with one style where a mask is 1 and another where it is 0."""

    def __init__(
        self, model: Stylizer, inside: CombinedStyle, outside: CombinedStyle, mask: Tensor, settings: Settings
    ):
        """`mask` [1, H, W] is the same for all frames, and is resized to theirs."""
        self.inside, self.outside = FrameStylizer(model, inside, settings), FrameStylizer(model, outside, settings)
        self.model, self.settings, self.mask = model, settings, mask
        self.share: Tensor | None = None  # the mask as it is applied; the first frame says how large it is

    def __call__(self, frames: Tensor) -> Tensor:
        inner, outer = self.inside(frames), self.outside(frames)
        if self.share is None:
            self.share = soften(resize_mask(self.mask, inner.shape[2:]), self.settings.feather)
        return torch.stack([blend_images(a, b, self.share) for a, b in zip(inner, outer, strict=True)])


FrameFunction = FrameStylizer | MaskedFrames  # uint8 [N, 3, H, W] → uint8 [N, 3, H', W'], in order


def frame_stylizer(
    model: Stylizer, styles: Sequence[CombinedStyle], settings: Settings, mask: Tensor | None = None
) -> FrameFunction:
    """What stylizes the frames of one film: in a style, or with a mask [1, H, W] in two, inside and outside of it."""
    if mask is None:
        (style,) = styles
        return FrameStylizer(model, style, settings)
    inside, outside = styles
    return MaskedFrames(model, inside, outside, mask, settings)


def stylize_video(
    source: str | os.PathLike,
    out: str | os.PathLike,
    stylize: FrameFunction,
    batch: int | None = None,
    progress: Progress | None = None,
    excerpt: Excerpt = WHOLE,
) -> Transcoded:
    """Writes a stylized video, with the sound and the times of the source.

    Args:
        stylize: what has stylized no frames of another film before.
        batch: number of frames stylized together; None to choose by their size.
        excerpt: the part of the source that is written.

    Raises:
        UserError: if the source is not a video, is too small or ends before the excerpt, or `out` cannot be written.
        DiskFull: if there is no space for it.
    """
    with VideoReader(source) as reader:
        height, width = reader.stream.height, reader.stream.width
    if height and width:
        height, width = check_size(stylize.model, source, height, width, stylize.settings.max_side, even=True)
    batch = batch_for(stylize.model, height, width) if batch is None else batch
    return transcode(source, out, stylize, batch=batch, progress=progress, excerpt=excerpt)


def batch_for(model: Stylizer, height: int, width: int) -> int:
    """The number of frames of that size that are stylized together."""
    on_gpu = next(model.parameters()).device.type != "cpu"
    return min(max(BATCH_PIXELS // max(height * width, 1), 1), 16) if on_gpu else 1
