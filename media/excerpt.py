"""The frames of a video or of a part of it, with their times, and the packets of sound between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from media.video import VideoReader
from torch_utils.errors import UserError

APART = 10  # seconds by which packets of one moment may lie apart in a file
MICROSECONDS = 1_000_000  # in which the times of an excerpt are exact
Timed = tuple[Any, int | None, int]  # a frame of PyAV, its time if it is known, and its duration, 0 if it is not
WriteSound = Callable[[Any], None]  # called with packets of PyAV


@dataclass(frozen=True)
class Excerpt:
    """A part of a video: from the second `start`, `length` seconds or all that follows. Raises ValueError."""

    start: float = 0.0
    length: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start < math.inf:
            raise ValueError(f"start: expected seconds from 0, got {self.start!r}")
        if self.length is not None and not 0 < self.length < math.inf:
            raise ValueError(f"length: expected more than 0 seconds, got {self.length!r}")

    @property
    def begin(self) -> Fraction:
        """The second at which it begins."""
        return Fraction(self.start).limit_denominator(MICROSECONDS)

    @property
    def seconds(self) -> Fraction | None:
        """Its length; None for all that follows."""
        return None if self.length is None else Fraction(self.length).limit_denominator(MICROSECONDS)

    def count(self, reader: VideoReader) -> int | None:
        """The number of its frames, as far as the file states it."""
        after = None if reader.count is None else reader.count - int(self.begin * reader.rate)
        within = None if self.seconds is None else math.ceil(self.seconds * reader.rate)
        return min((number for number in (after, within) if number is not None), default=None)


WHOLE = Excerpt()


def read_excerpt(reader: VideoReader, tracks: list[Any], excerpt: Excerpt, write_sound: WriteSound) -> Iterator[Timed]:
    """Yields the frames of an excerpt, and calls `write_sound` with the packets of `tracks` that lie in it.

    Times are in units of the video's time base, from the start of the excerpt, which begins with the frame that is
    shown then. Raises UserError if the video ends before.
    """
    going_on = {reader.stream.index, *(track.index for track in tracks)}  # streams whose end is not reached
    if excerpt == WHOLE:
        yield from _decode(reader, tracks, going_on, write_sound)
        return

    def time_of(packet: Any) -> Fraction | None:
        ticks = packet.dts if packet.pts is None else packet.pts
        return None if ticks is None else ticks * packet.time_base - reader.start - excerpt.begin

    def is_late(packet: Any) -> bool:
        time = time_of(packet)
        return time is not None and excerpt.seconds is not None and time > excerpt.seconds + APART

    def write_part(packet: Any) -> None:
        time = time_of(packet)
        if time is None:  # the last packet, which is empty
            return write_sound(packet)
        if excerpt.seconds is not None and time >= excerpt.seconds:
            going_on.discard(packet.stream.index)
        elif time >= 0 or not excerpt.begin:
            write_sound(packet)

    if excerpt.begin:
        reader.seek(excerpt.begin)
    yield from _cut(_decode(reader, tracks, going_on, write_part, is_late), reader, excerpt, going_on)


def _decode(
    reader: VideoReader,
    tracks: list[Any],
    going_on: set[int],
    write_sound: WriteSound,
    is_late: Callable[[Any], bool] = lambda packet: False,
) -> Iterator[Timed]:
    """The frames with times from the beginning of the file, until no stream is in `going_on` any more.

    Once the video is not, a late packet is the end too: a track whose sound has ended has no packet that would tell.
    """
    beginning = round(reader.start / reader.stream.time_base)
    for packet in reader.packets(*tracks):
        if packet.stream.index != reader.stream.index:
            write_sound(packet)
        elif reader.stream.index in going_on:
            for frame in reader.decode(packet):
                yield frame, None if frame.pts is None else frame.pts - beginning, frame.duration or 0
        if not going_on or (reader.stream.index not in going_on and is_late(packet)):
            return


def _cut(frames: Iterator[Timed], reader: VideoReader, excerpt: Excerpt, going_on: set[int]) -> Iterator[Timed]:
    """Those of the frames that are shown in the excerpt, at least one, with times from its start."""
    base, each = reader.stream.time_base, 1 / reader.rate / reader.stream.time_base
    begin = round(excerpt.begin / base)
    end = None if excerpt.seconds is None else max(round(excerpt.seconds / base), 1)
    waiting: tuple[Any, int, int] | None = None  # a frame whose end is not known yet
    is_empty = True

    def shown(frame: Any, start: int, stop: int) -> Timed:
        first, last = max(start, 0), stop if end is None else min(stop, end)
        return frame, first, max(last - first, 0)

    for number, (frame, stated, duration) in enumerate(frames):
        time = (round(number * each) if stated is None else stated) - begin
        if waiting is not None and time > 0:
            yield shown(waiting[0], waiting[1], time)
            is_empty = False
        if end is not None and time >= end:
            if is_empty:  # it is over before the first frame of the video, which stands for it
                yield frame, 0, end
            waiting, is_empty = None, False
            going_on.discard(reader.stream.index)
            continue
        waiting = frame, time, duration
    if waiting is not None:
        frame, time, duration = waiting
        stop = time + (duration or max(round(each), 1))
        if stop <= 0:
            raise UserError(
                f"{reader.path} ends at second {float((begin + stop) * base):.6g}, before the excerpt that begins at "
                f"{excerpt.start:g}; begin it earlier"
            )
        yield shown(frame, time, stop)
