"""Applies a function to the frames of a video or of a part of it, and keeps their times and the sound."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from media.excerpt import WHOLE, Excerpt, Timed, read_excerpt
from media.video import VideoReader, no_frames_message, pixel_shape
from media.video_writer import VideoWriter, video_format
from torch_utils.errors import UserError

FrameFunction = Callable[[Tensor], Tensor]  # uint8 [N, 3, H, W] → uint8 [N, 3, H', W']


@dataclass(frozen=True)
class Transcoded:
    """The result of `transcode`, in numbers."""

    frames: int  # frames written
    damaged: int  # packets of the source that could not be decoded
    sound_copied: int  # sound tracks copied without encoding
    sound_encoded: int  # sound tracks encoded as AAC, because the container does not support their codec


def transcode(
    source: str | os.PathLike,
    out: str | os.PathLike,
    function: FrameFunction,
    *,
    batch: int = 1,
    progress: Callable[[int, int | None], None] | None = None,
    excerpt: Excerpt = WHOLE,
) -> Transcoded:
    """Applies `function` to the frames of the video `source`, `batch` at a time in order, and writes them to `out`.

    Frames keep their times, even or uneven. Sound tracks are copied, or encoded as AAC if the container does not
    support their codec. Subtitles and data streams are left out. Memory holds one batch and the frames that x264 looks
    ahead. After each batch and each packet of sound, `progress(frames done, number of frames or None)` is called.

    An excerpt begins with the frame that is shown at its start. Its sound is cut between packets, some 20 ms long.

    Raises UserError if the source is not a video, or ends before the excerpt, or `out` cannot be written, and DiskFull
    if there is no room for it. In all cases, and when it is stopped, an earlier file `out` remains.
    """
    out = Path(out)
    video_format(out)
    with VideoReader(source) as reader:
        if out.exists() and os.path.samefile(source, out):
            raise UserError(f"{out} is the source itself; name another file with --out")
        tracks = [s for s in reader.container.streams.audio if s.codec_context]
        total = excerpt.count(reader)
        with VideoWriter(out, reader.rate) as writer:

            def report() -> None:
                if progress:
                    progress(writer.count, total)

            writer.follow(reader, tracks, excerpt.begin, report)
            frames = read_excerpt(reader, tracks, excerpt, writer.write_sound)
            _transcode_frames(reader, writer, frames, function, batch, report)
            if not writer.count:
                raise UserError(no_frames_message(reader))
        return Transcoded(writer.count, reader.damaged, writer.sound_copied, len(tracks) - writer.sound_copied)


def _transcode_frames(
    reader: VideoReader,
    writer: VideoWriter,
    frames: Iterator[Timed],
    function: FrameFunction,
    batch: int,
    report: Callable[[], None],
) -> None:
    """Applies the function to the frames and writes them."""
    pending: list[tuple[Tensor, int | None, int]] = []

    def flush() -> None:
        results = function(torch.stack([image for image, _, _ in pending]))
        for image, (_, time, duration) in zip(results, pending, strict=True):
            writer.write(image, time, duration)
        pending.clear()
        report()

    for frame, time, duration in frames:
        writer.pixel_shape = pixel_shape(reader.stream, frame.rotation)
        pending.append((reader.pixels(frame), time, duration))
        if len(pending) == batch:
            flush()
    if pending:
        flush()
