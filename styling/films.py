"""Applies styles to videos."""

from __future__ import annotations

import os

from media.excerpt import WHOLE, Excerpt
from media.transcode import Transcoded, transcode
from media.video import VideoReader
from networks.stylizer import Stylizer
from styling.apply import FrameStylizer, Progress, Settings, check_size
from styling.styles import CombinedStyle

BATCH_PIXELS = 1 << 20  # of the frames of a video in one batch on a GPU; on a CPU batches are no faster


def stylize_video(
    source: str | os.PathLike,
    out: str | os.PathLike,
    model: Stylizer,
    style: CombinedStyle,
    settings: Settings,
    batch: int | None = None,
    progress: Progress | None = None,
    excerpt: Excerpt = WHOLE,
) -> Transcoded:
    """Writes a video in a style, with the sound and the times of the source.

    Args:
        batch: number of frames stylized together; None to choose by their size.
        excerpt: the part of the source that is written.

    Raises:
        UserError: if the source is not a video, is too small or ends before the excerpt, or `out` cannot be written.
        DiskFull: if there is no space for it.
    """
    with VideoReader(source) as reader:
        height, width = reader.stream.height, reader.stream.width
    if height and width:
        height, width = check_size(model, source, height, width, settings.max_side, even=True)
    batch = batch_for(model, height, width) if batch is None else batch
    function = FrameStylizer(model, style, settings)
    return transcode(source, out, function, batch=batch, progress=progress, excerpt=excerpt)


def batch_for(model: Stylizer, height: int, width: int) -> int:
    """The number of frames of that size that are stylized together."""
    on_gpu = next(model.parameters()).device.type != "cpu"
    return min(max(BATCH_PIXELS // max(height * width, 1), 1), 16) if on_gpu else 1
