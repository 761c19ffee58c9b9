"""Videos in and out, a few frames at a time; through PyAV, which `pip install av` brings together with FFmpeg."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from media.decode import MAX_PIXELS
from torch_utils.errors import DiskFull, UserError, one_line
from torch_utils.files import FULL, atomic_path, make_folder, missing

WRITTEN = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}  # what takes H.264 and most sound
BT709 = 1  # its number as primaries, transfer and matrix alike
# What files are opened: no playlists, which would read others, and nothing from a network.
TRUSTED = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,gif,h264,hevc,m4v,"
    "mjpeg,ogg,apng,mxf,dv,ivf,obu,nut,yuv4mpegpipe,rm,vc1,webp_pipe",
}
GROWTH = 4  # a frame may have so many times the pixels of the first
LIMITED = 1  # range 16..235
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}  # many files say the number of channels only
HD = 720  # lines from which a video that does not say so has BT.709's colours; below, BT.601's

Frames = Callable[[Tensor], Tensor]  # uint8 [N, 3, H, W] → uint8 [N, 3, H', W']


@dataclass(frozen=True)
class Transcoded:
    """What `transcode` did."""

    frames: int
    damaged: int  # packets of the video that could not be decoded
    sound_copied: int  # sound tracks as they were
    sound_encoded: int  # those as AAC, because the container takes no such codec


class VideoReader:
    """An opened video; iterating gives its frames, upright, uint8 [3, H, W].

    `rate` is frames per second (a Fraction), the average where it varies; `count` how many frames the file
    promises, or an estimate, or None. Raises UserError where it is no video.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        av = _av()
        try:
            self.container = av.open(os.fspath(self.path), metadata_errors="replace", options=TRUSTED)
        except FileNotFoundError:
            raise UserError(missing(self.path, "name a video that is there")) from None
        except (av.FFmpegError, OSError, ValueError) as error:
            raise self._unreadable(error) from None
        covers = av.stream.Disposition.attached_pic  # the image of a piece of music
        streams = [s for s in self.container.streams.video if not s.disposition & covers and s.codec_context]
        if not streams:
            self.close()
            raise UserError(f"{self.path} holds no video; name a file that does")
        self.stream = streams[0]
        self.stream.thread_type = "AUTO"
        self.rate: Fraction = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
        self.damaged = 0
        self._size: tuple[int, int] | None = None  # width and height of the first frame, before it is turned
        self._check_size(self.stream.width, self.stream.height)
        most = max(GROWTH * self.stream.width * self.stream.height, 1 << 20)
        self.stream.codec_context.options = {"max_pixels": str(most)}

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self.container.close()

    @property
    def count(self) -> int | None:
        if self.stream.frames:
            return self.stream.frames
        seconds = None
        if self.stream.duration:
            seconds = self.stream.duration * self.stream.time_base
        elif self.container.duration:
            seconds = Fraction(self.container.duration, _av().time_base)
        return round(seconds * self.rate) if seconds else None

    @property
    def start(self) -> Fraction:
        """The second at which the file begins: not 0 in a piece of a broadcast."""
        return max(Fraction(self.container.start_time or 0, _av().time_base), Fraction(0))

    def __iter__(self) -> Iterator[Tensor]:
        for packet in self.packets():
            for frame in self.decode(packet):
                yield self.pixels(frame)

    def packets(self, *others: Any) -> Iterator[Any]:
        """The packets of the video and of `others`, streams of the container, in the file's order."""
        av = _av()
        packets = self.container.demux(self.stream, *others)
        while True:
            try:
                yield next(packets)
            except StopIteration:
                return
            except (av.FFmpegError, OSError) as error:
                raise self._unreadable(error) from None

    def decode(self, packet: Any) -> list[Any]:
        """The frames of a packet of the video, of a damaged one none; the empty packet at the end brings the rest."""
        av = _av()
        try:
            return _decoded(self.stream, packet)
        except EOFError:
            return []
        except (av.FFmpegError, ValueError):
            self.damaged += 1
            return []

    def pixels(self, frame: Any) -> Tensor:
        """uint8 [3, H, W], upright; all have the size of the first one."""
        if self._size is None:
            self._check_size(frame.width, frame.height)
            self._size = frame.width, frame.height
        width, height = self._size
        unsaid = frame.colorspace == 2
        array = frame.to_ndarray(
            format="rgb24",
            width=width,
            height=height,
            src_colorspace="itu709" if unsaid and height >= HD else None,
            interpolation="BICUBIC",
        )
        return _turned(torch.from_numpy(array).permute(2, 0, 1), frame.rotation)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > MAX_PIXELS:
            self.close()
            raise UserError(f"{self.path} has {width}x{height} pixels; the limit is {MAX_PIXELS:,}; make it smaller")

    def _unreadable(self, error: Exception) -> UserError:
        reason = getattr(error, "strerror", None) or one_line(error)
        return UserError(f"{self.path} is not a video that can be read ({reason}); name another file")


def frames(path: str | os.PathLike) -> Iterator[Tensor]:
    """The frames of a video as uint8 [3, H, W], one in memory at a time. Raises UserError where there are none."""
    with VideoReader(path) as reader:
        empty = True
        for frame in reader:
            empty = False
            yield frame
        if empty:
            raise UserError(_no_frames(reader))


class VideoWriter:
    """Writes H.264 (yuv420p, BT.709) into .mp4, .m4v, .mov or .mkv.

    `with VideoWriter(path, rate) as video: video.write(image)`: the file takes its name when the block ends without
    an exception. Odd sizes get their last row or column twice, since H.264's chroma has half the size. `crf` is
    x264's quality, lower is better. Raises UserError where it cannot be written, DiskFull where there is no room.
    """

    def __init__(self, path: str | os.PathLike, rate: Fraction | float = 25, *, crf: int = 18):
        self.path = Path(path)
        self.kind = check_written(self.path)
        self.rate = Fraction(rate).limit_denominator(1_001_000)
        self.crf = crf
        self.time_base = 1 / self.rate
        self.pixel_shape = Fraction(1)  # width by height
        self.container: Any = None  # opened with the first frame, whose size the header needs
        self._tracks: list[Any] = []
        self._sound: dict[int, Sound] = {}  # by the number of the stream in the source
        self._waiting: list[Any] = []  # sound that came before the first frame
        self._last: int | None = None  # the time of the last frame
        self._file = atomic_path(self.path)

    def follow(self, reader: VideoReader, tracks: list[Any]) -> None:
        """Takes the unit of time from a reader, and the sound of `tracks`, streams of its container."""
        self.time_base = reader.stream.time_base
        self._tracks, self._start = tracks, reader.start

    def __enter__(self) -> VideoWriter:
        make_folder(self.path.parent)
        with self._told():
            self._beside = self._file.__enter__()
            self._beside.touch()  # where no file can be made, say so before the first frames are computed
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            try:
                with self._told():
                    self._finish()
            except BaseException as failed:
                kind, error, trace = type(failed), failed, failed.__traceback__
                self._discard(kind, error, trace)
                raise
            with self._told():
                self._file.__exit__(None, None, None)
        else:
            self._discard(kind, error, trace)

    def write(self, image: Tensor, time: int | None = None) -> None:
        """Adds a frame uint8 [3, H, W], all of one size. `time` is in units of `time_base`; None: a frame later."""
        if time is None or (self._last is not None and time <= self._last):
            # where the source says no time, a frame later; one that goes back is damaged
            later = max(round(1 / (self.rate * self.time_base)), 1) if time is None else 1
            time = 0 if self._last is None else self._last + later
        with self._told():
            if self.container is None:
                self._open(image.shape[1], image.shape[2])
            frame = self._frame(image)
            frame.pts, frame.time_base = time, self.time_base
            self._last = time
            self.container.mux(self._stream.encode(frame))

    def write_sound(self, packet: Any) -> None:
        """Adds a packet of one of the tracks."""
        if self.container is None:
            self._waiting.append(packet)
        else:
            with self._told():
                self._sound[packet.stream.index].write(packet)

    @property
    def sound_copied(self) -> int:
        """How many sound tracks go into the file as they are."""
        return sum(sound.copied for sound in self._sound.values())

    def _open(self, height: int, width: int) -> None:
        try:
            self._start_file(height, width, copy=True)
        except (_av().FFmpegError, ValueError):
            if not self._tracks:
                raise
            self.container.close()
            self._start_file(height, width, copy=False)  # some codecs are refused only when the header is written
        for packet in self._waiting:
            self._sound[packet.stream.index].write(packet)
        self._waiting.clear()

    def _start_file(self, height: int, width: int, *, copy: bool) -> None:
        options = {"movflags": "faststart"} if self.kind in ("mp4", "mov") else {}
        self.container = _av().open(os.fspath(self._beside), "w", format=self.kind, options=options)
        stream = self.container.add_stream("libx264", rate=self.rate, options={"crf": str(self.crf)})
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        context = stream.codec_context
        context.time_base = stream.time_base = self.time_base
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = LIMITED
        context.sample_aspect_ratio = self.pixel_shape
        self._stream = stream
        self._sound = {track.index: Sound(track, self.container, self._start, copy=copy) for track in self._tracks}
        self.container.start_encoding()

    def _frame(self, image: Tensor) -> Any:
        array = image.permute(1, 2, 0).cpu().numpy()
        height, width = self._stream.height, self._stream.width
        if array.shape[:2] != (height, width):
            array = np.pad(array, ((0, height - array.shape[0]), (0, width - array.shape[1]), (0, 0)), "edge")
        return (
            _av()
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

    def _discard(self, kind, error, trace) -> None:
        """Closes and removes what is written so far; the first exception is the one to tell."""
        if self.container is not None:
            with suppress(Exception):
                self.container.close()
        with suppress(kind):
            self._file.__exit__(kind, error, trace)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, _av().FFmpegError) as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            if getattr(error, "errno", None) in FULL:
                raise DiskFull(f"no room for {self.path} ({reason})") from None
            raise UserError(f"cannot write {self.path}: {reason}; name another place with --out") from None


class Sound:
    """A sound track on its way into a container: its packets as they are, or as AAC where it takes no such codec."""

    def __init__(self, source: Any, container: Any, start: Fraction, *, copy: bool = True):
        self.container, self.source, self.start = container, source, start
        self.copied = copy and source.codec.canonical_name in container.supported_codecs
        if self.copied:
            self.stream = container.add_stream_from_template(source)
        else:
            context = source.codec_context
            rates = _av().Codec("aac", "w").audio_rates
            rate = context.sample_rate if context.sample_rate in rates else 48000
            self.stream = container.add_stream("aac", rate=rate, layout=LAYOUTS.get(context.channels, "stereo"))
        self.stream.metadata.update(source.metadata)

    def write(self, packet: Any) -> None:
        """Adds a packet of the source; an empty one at its end."""
        if not self.copied:
            with suppress(_av().error.InvalidDataError, EOFError):  # a damaged packet is silence
                self._encode(_decoded(self.source, packet))
        elif packet.size and packet.dts is not None:
            shift = round(self.start / packet.time_base)
            packet.dts -= shift
            if packet.pts is not None:
                packet.pts -= shift
            packet.stream = self.stream
            self.container.mux(packet)

    def finish(self) -> None:
        if not self.copied:
            self._encode([None])

    def _encode(self, frames: list[Any]) -> None:
        for frame in frames:
            if frame is not None and frame.pts is not None:
                frame.pts -= round(self.start / frame.time_base)
            self.container.mux(self.stream.encode(frame))


def transcode(
    source: str | os.PathLike,
    out: str | os.PathLike,
    function: Frames,
    *,
    batch: int = 1,
    crf: int = 18,
    progress: Callable[[int, int | None], None] | None = None,
) -> Transcoded:
    """Writes the video `source` to `out` with `function` applied to `batch` frames at a time, in order.

    The frames keep their times, also where these are uneven; sound tracks are copied as they are, or encoded as AAC
    where the container takes no such codec; subtitles and data are left out. What is in memory at once is a batch,
    and what x264 looks ahead. After each batch comes `progress(frames so far, frames in all or None)`. Raises
    UserError where the source is no video or `out` cannot be written, DiskFull where there is no room; then `out`
    is as it was.
    """
    out = Path(out)
    check_written(out)
    with VideoReader(source) as reader:
        if out.exists() and os.path.samefile(source, out):
            raise UserError(f"{out} is the video itself; name another file with --out")
        tracks = [s for s in reader.container.streams.audio if s.codec_context]
        with VideoWriter(out, reader.rate, crf=crf) as writer:
            writer.follow(reader, tracks)
            done = _run(reader, writer, tracks, function, batch, progress)
            if not done:
                raise UserError(_no_frames(reader))
        return Transcoded(done, reader.damaged, writer.sound_copied, len(tracks) - writer.sound_copied)


def _run(
    reader: VideoReader,
    writer: VideoWriter,
    tracks: list[Any],
    function: Frames,
    batch: int,
    progress: Callable[[int, int | None], None] | None,
) -> int:
    """Everything from the reader through the function to the writer; the number of frames."""
    shift = round(reader.start / reader.stream.time_base)
    waiting: list[tuple[Tensor, int | None]] = []
    done = 0

    def flush() -> None:
        nonlocal done
        made = function(torch.stack([image for image, _ in waiting]))
        for image, (_, time) in zip(made, waiting, strict=True):
            writer.write(image, time)
        done += len(waiting)
        waiting.clear()
        if progress:
            progress(done, reader.count)

    for packet in reader.packets(*tracks):
        if packet.stream.index != reader.stream.index:
            writer.write_sound(packet)
            continue
        for frame in reader.decode(packet):
            writer.pixel_shape = _pixel_shape(reader.stream, frame.rotation)
            waiting.append((reader.pixels(frame), None if frame.pts is None else frame.pts - shift))
            if len(waiting) == batch:
                flush()
    if waiting:
        flush()
    return done


def check_written(path: str | os.PathLike) -> str:
    """FFmpeg's name for the kind of video to be written. Raises UserError where its extension is none of WRITTEN."""
    kind = WRITTEN.get(Path(path).suffix.lower())
    if kind is None:
        raise UserError(f"cannot write {path}: videos are written as {', '.join(WRITTEN)}; name such a file with --out")
    return kind


def _decoded(stream: Any, packet: Any) -> list[Any]:
    if packet.size:
        return stream.codec_context.decode(packet)
    return stream.codec_context.decode(None) if packet.dts is None else []  # else: AVI's sign for a repeated frame


def _turned(image: Tensor, degrees: int) -> Tensor:
    """An image [3, H, W] turned as a telephone that was held upright asks for; counterclockwise."""
    return torch.rot90(image, round(degrees / 90) % 4, (1, 2)).contiguous()


def _pixel_shape(stream: Any, rotation: int) -> Fraction:
    shape = stream.sample_aspect_ratio or Fraction(1)
    return 1 / shape if round(rotation / 90) % 2 else shape


def _no_frames(reader: VideoReader) -> str:
    why = f"all {reader.damaged:,} are damaged" if reader.damaged else "the file is cut off or empty"
    return f"{reader.path} holds no frame that can be decoded ({why}); copy it again, or name another file"


def _av():
    try:
        import av
    except ImportError:
        raise UserError("videos need PyAV, which is not installed; install it with: pip install av") from None
    return av
