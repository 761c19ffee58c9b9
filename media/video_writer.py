"""Writes videos frame by frame, and sound tracks beside them, with PyAV."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from media.video import VideoReader, decode_packet, pyav
from torch_utils.errors import DiskFull, UserError, one_line
from torch_utils.files import DISK_FULL_ERRORS, atomic_path, make_folder

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}  # containers for H.264 and most sound
FRAME_DURATION = 1 << 8  # FFmpeg's flag of an encoder that takes the duration of each frame
BT709 = 1  # FFmpeg's number for the primaries, the transfer function and the matrix
LIMITED_RANGE = 1  # FFmpeg's number for values in 16..235
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}  # many files state only the number of channels


def video_format(path: str | os.PathLike) -> str:
    """FFmpeg's name of the container for an extension. Raises UserError if the extension is not in FORMATS."""
    kind = FORMATS.get(Path(path).suffix.lower())
    if kind is None:
        raise UserError(f"cannot write {path}: videos are written as {', '.join(FORMATS)}; name such a file with --out")
    return kind


CRF = "18"  # x264's quality, at which hardly a difference is seen; lower is better


class VideoWriter:
    """Writes H.264 (yuv420p, BT.709) to .mp4, .m4v, .mov or .mkv.

    `with VideoWriter(path, rate) as video: video.write(image)`. The file appears under its name when the block ends
    without an exception. The last row or column of an image of odd size is repeated, because H.264 stores chroma at
    half the resolution. Raises UserError if the file cannot be written, and DiskFull if there is no room for it.
    """

    def __init__(self, path: str | os.PathLike, rate: Fraction | float = 25):
        self.path = Path(path)
        self.kind = video_format(self.path)
        self.rate = Fraction(rate).limit_denominator(1_001_000)
        self.time_base = 1 / self.rate
        self.pixel_shape = Fraction(1)  # width by height of a pixel
        self.container: Any = None  # opened at the first frame, because the header needs its size
        self._tracks: list[Any] = []
        self._sound: dict[int, SoundTrack] = {}  # by the index of the stream in the source
        self._early_packets: list[Any] = []  # packets of sound that came before the first frame
        self._last: int | None = None  # time of the last frame
        self.count = 0  # frames written
        self._report: Callable[[], None] = lambda: None
        self._file = atomic_path(self.path)

    def follow(self, reader: VideoReader, tracks: list[Any], begin: Fraction, report: Callable[[], None]) -> None:
        """Takes over the time base of a reader, and the sound of `tracks`, which are streams of its container.

        What is there at the time `begin`, in seconds, is written at 0. `report` is called after each packet of sound.
        """
        self.time_base = reader.stream.time_base
        self._tracks, self._start, self._report = tracks, reader.start + begin, report

    def __enter__(self) -> VideoWriter:
        make_folder(self.path.parent)
        with self._report_errors():
            self._beside = self._file.__enter__()  # creates it, or fails before the first frames are computed
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._discard(error)
            return
        try:
            with self._report_errors():
                self._finish()
        except BaseException as failed:
            self._discard(failed)
            raise
        with self._report_errors():
            self._file.__exit__(None, None, None)

    def write(self, image: Tensor, time: int | None = None, duration: int = 0) -> None:
        """Adds a frame uint8 [3, H, W]. All must have the same size. Times are in units of `time_base`.

        Without a `time`, the frame follows the last one at the rate of the video. A `duration` of 0 is not known: the
        frame stays until the next one, and the last for as long as the rate says.
        """
        if time is None or (self._last is not None and time <= self._last):
            # A time that does not increase comes from a damaged source.
            later = max(round(1 / (self.rate * self.time_base)), 1) if time is None else 1
            time = 0 if self._last is None else self._last + later
        with self._report_errors():
            if self.container is None:
                self._open(image.shape[1], image.shape[2])
            frame = self._frame(image)
            frame.pts, frame.time_base, frame.duration = time, self.time_base, duration
            self._last = time
            self.container.mux(self._stream.encode(frame))
        self.count += 1

    def write_sound(self, packet: Any) -> None:
        """Adds a packet of one of the sound tracks."""
        if self.container is None:
            self._early_packets.append(packet)
        else:
            with self._report_errors():
                self._sound[packet.stream.index].write(packet)
        self._report()

    @property
    def sound_copied(self) -> int:
        """The number of sound tracks that are copied without encoding."""
        return sum(sound.copied for sound in self._sound.values())

    def _open(self, height: int, width: int) -> None:
        try:
            self._start_file(height, width, copy=True)
        except (pyav().FFmpegError, ValueError):
            if not self._tracks:
                raise
            self.container.close()
            self._start_file(height, width, copy=False)  # some codecs are refused only now, by the header
        for packet in self._early_packets:
            self._sound[packet.stream.index].write(packet)
            self._report()  # there may be hours of them
        self._early_packets.clear()

    def _start_file(self, height: int, width: int, *, copy: bool) -> None:
        options = {"movflags": "faststart"} if self.kind in ("mp4", "mov") else {}
        self.container = pyav().open(os.fspath(self._beside), "w", format=self.kind, options=options)
        stream = self.container.add_stream("libx264", rate=self.rate, options={"crf": CRF})
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        context = stream.codec_context
        context.time_base = stream.time_base = self.time_base
        context.flags |= FRAME_DURATION
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = LIMITED_RANGE
        context.sample_aspect_ratio = self.pixel_shape
        self._stream = stream
        self._sound = {track.index: SoundTrack(track, self.container, self._start, copy=copy) for track in self._tracks}
        self.container.start_encoding()

    def _frame(self, image: Tensor) -> Any:
        array = image.permute(1, 2, 0).cpu().numpy()
        height, width = self._stream.height, self._stream.width
        if array.shape[:2] != (height, width):
            array = np.pad(array, ((0, height - array.shape[0]), (0, width - array.shape[1]), (0, 0)), "edge")
        return (
            pyav()
            .VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            .reformat(
                format="yuv420p",
                dst_colorspace="itu709",
                dst_color_range="MPEG",
                interpolation="BICUBIC",
            )
        )

    def _finish(self) -> None:
        if self.container is None:
            raise UserError(f"there is no frame to write to {self.path}")
        self.container.mux(self._stream.encode(None))
        for sound in self._sound.values():
            sound.finish()
        self.container.close()

    def _discard(self, error: BaseException) -> None:
        """Closes and removes the unfinished file. The caller raises `error`, and errors on the way are ignored."""
        if self.container is not None:
            with suppress(Exception):
                self.container.close()
        with suppress(type(error)):
            self._file.__exit__(type(error), error, error.__traceback__)

    @contextmanager
    def _report_errors(self) -> Iterator[None]:
        """Raises UserError or DiskFull in place of the errors of FFmpeg and of the system."""
        try:
            yield
        except (OSError, pyav().FFmpegError) as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            if getattr(error, "errno", None) in DISK_FULL_ERRORS:
                raise DiskFull(f"no room for {self.path} ({reason})") from None
            raise UserError(f"cannot write {self.path}: {reason}; name another place with --out") from None


class SoundTrack:
    """Writes a sound track: copies its packets, or encodes it as AAC if the container does not support the codec."""

    def __init__(self, source: Any, container: Any, start: Fraction, *, copy: bool = True):
        self.container, self.source, self.start = container, source, start
        self.copied = copy and source.codec.canonical_name in container.supported_codecs
        if self.copied:
            self.stream = container.add_stream_from_template(source)
        else:
            context = source.codec_context
            rates = pyav().Codec("aac", "w").audio_rates
            rate = context.sample_rate if context.sample_rate in rates else 48000
            self.stream = container.add_stream("aac", rate=rate, layout=LAYOUTS.get(context.channels, "stereo"))
        self.stream.metadata.update(source.metadata)

    def write(self, packet: Any) -> None:
        """Adds a packet of the source. The last one is empty."""
        if not self.copied:
            with suppress(pyav().error.InvalidDataError, EOFError):  # a damaged packet becomes silence
                self._encode(decode_packet(self.source, packet))
        elif packet.size and packet.dts is not None:
            shift = round(self.start / packet.time_base)
            packet.dts -= shift
            if packet.pts is not None:
                packet.pts -= shift
            packet.stream = self.stream
            self.container.mux(packet)

    def finish(self) -> None:
        """Writes what the encoder still holds."""
        if not self.copied:
            self._encode([None])

    def _encode(self, frames: list[Any]) -> None:
        for frame in frames:
            if frame is not None and frame.pts is not None:
                frame.pts -= round(self.start / frame.time_base)
            self.container.mux(self.stream.encode(frame))
