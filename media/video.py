"""Reads videos frame by frame, with PyAV, which `pip install av` installs together with FFmpeg."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from media.apng import write_apng
from media.decode import MAX_PIXELS, Unusable, decode_image, is_animated, open_image
from torch_utils.errors import UserError, one_line
from torch_utils.files import missing_message, open_regular

# Only containers of video are opened: no playlists, which would open other files, and nothing from the network.
TRUSTED = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,gif,h264,hevc,m4v,"
    "mjpeg,ogg,apng,mxf,dv,ivf,obu,nut,yuv4mpegpipe,rm,vc1,webp_pipe",
}
MAX_ANIMATION_PIXELS = 1 << 29  # of all frames of a WebP, which is decoded as a whole
INDEXED = ("mov", "matroska")  # containers in which a time is found without reading all that comes before it
SEEK_BEFORE = 1  # second by which a key frame is sought earlier, as it is shown later than it is decoded
MAX_GROWTH = 4  # a frame may have up to 4 times the pixels of the first one
HD_LINES = 720  # a video that names no colour space is read as BT.709 from this height on, and as BT.601 below


def pyav() -> Any:
    """The module `av`. Raises UserError if it is not installed."""
    try:
        import av
    except ImportError:
        raise UserError("videos need PyAV, which is not installed; install it with: pip install av") from None
    return av


class VideoReader:
    """An open video. Iterating yields its frames, uint8 [3, H, W], rotated as the file says.

    `rate` is the (average) number of frames per second, `damaged` counts packets that could not be decoded.
    Raises UserError if the file is not a video.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        av = pyav()
        try:
            self.container = av.open(_source(self.path), metadata_errors="replace", options=TRUSTED)
        except FileNotFoundError:
            raise UserError(missing_message(self.path, "name a video that is there")) from None
        except (av.FFmpegError, OSError, ValueError, EOFError, Unusable) as error:
            raise self._unreadable(error) from None
        covers = av.stream.Disposition.attached_pic  # the cover of a sound file
        streams = [s for s in self.container.streams.video if not s.disposition & covers and s.codec_context]
        if not streams:
            self.close()
            raise UserError(f"{self.path} contains no video; name a file that does")
        self.stream = streams[0]
        self.stream.thread_type = "AUTO"
        self.rate: Fraction = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
        self.damaged = 0
        self._size: tuple[int, int] | None = None  # width and height of the first frame, before its rotation
        self._check_size(self.stream.width, self.stream.height)
        max_pixels = max(MAX_GROWTH * self.stream.width * self.stream.height, 1 << 20)
        self.stream.codec_context.options = {"max_pixels": str(max_pixels)}

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.container.close()

    @property
    def count(self) -> int | None:
        """The number of frames that the file states, or an estimate from its duration, or None."""
        if self.stream.frames:
            return self.stream.frames
        seconds = self.seconds
        if self.stream.duration:
            seconds = self.stream.duration * self.stream.time_base
        return round(seconds * self.rate) if seconds else None

    @property
    def seconds(self) -> Fraction | None:
        """How long all of the file is, also its sound, as far as it states that."""
        return Fraction(self.container.duration, pyav().time_base) if self.container.duration else None

    @property
    def start(self) -> Fraction:
        """The time of the file's beginning, in seconds. It is not 0 in a part of a broadcast, for example."""
        return max(Fraction(self.container.start_time or 0, pyav().time_base), Fraction(0))

    def __iter__(self) -> Iterator[Tensor]:
        for packet in self.packets():
            for frame in self.decode(packet):
                yield self.pixels(frame)

    def seek(self, time: Fraction) -> None:
        """Goes on some frames before a time in seconds from the file's beginning. Without an index it does nothing."""
        at = self.start + time - SEEK_BEFORE
        if at > self.start and self.container.format.name.split(",")[0] in INDEXED:
            with suppress(pyav().FFmpegError):
                self.container.seek(int(at / self.stream.time_base), stream=self.stream)

    def packets(self, *others: Any) -> Iterator[Any]:
        """Yields the packets of the video and of `others`, streams of the container, in the order of the file."""
        av = pyav()
        packets = self.container.demux(self.stream, *others)
        while True:
            try:
                yield next(packets)
            except StopIteration:
                return
            except (av.FFmpegError, OSError, IndexError, ValueError) as error:  # as of a stream that begins later
                raise self._unreadable(error) from None

    def decode(self, packet: Any) -> list[Any]:
        """The frames in a packet; none if it is damaged. The empty last packet gives the remaining frames."""
        av = pyav()
        try:
            return decode_packet(self.stream, packet)
        except EOFError:
            return []
        except (av.FFmpegError, ValueError):
            self.damaged += 1
            return []

    def pixels(self, frame: Any) -> Tensor:
        """A frame as uint8 [3, H, W], rotated as the file says. All frames get the size of the first one.

        Transparent pixels are laid on white, as those of images are.
        """
        if self._size is None:
            self._check_size(frame.width, frame.height)
            self._size = frame.width, frame.height
        width, height = self._size
        unspecified = frame.colorspace == 2
        transparent = any(component.is_alpha for component in frame.format.components)
        array = frame.to_ndarray(
            format="rgba" if transparent else "rgb24",
            width=width,
            height=height,
            src_colorspace="itu709" if unspecified and height >= HD_LINES else None,
            interpolation="BICUBIC",
        )
        if transparent:
            colours, alpha = array[..., :3].astype(np.uint32), array[..., 3:].astype(np.uint32)
            array = ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
        return _rotate(torch.from_numpy(array).permute(2, 0, 1), frame.rotation)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > MAX_PIXELS:
            self.close()
            raise UserError(f"{self.path} has {width}x{height} pixels; the limit is {MAX_PIXELS:,}; scale it down")

    def _unreadable(self, error: Exception) -> UserError:
        reason = getattr(error, "strerror", None) or one_line(error)
        return UserError(f"{self.path} is not a readable video ({reason}); name another file")


def _source(path: Path) -> str | BinaryIO:
    """What FFmpeg reads: the file itself or, for an animated WebP, which FFmpeg does not decode, an APNG made from it.

    Raises Unusable, and OSError if the file cannot be read.
    """
    with open_regular(path) as file:
        if (animation := animated_webp(file)) is None:
            return f"file:{path}"  # else FFmpeg takes a name such as concat:a as more than a name
        if pixels_of_all_frames(animation) > MAX_ANIMATION_PIXELS:
            raise Unusable(f"has more than {MAX_ANIMATION_PIXELS:,} pixels in all frames")
        images: list[Image.Image] = []
        durations: list[int] = []
        for frame in ImageSequence.Iterator(animation):
            images.append(decode_image(frame.copy()))
            durations.append(frame.info["duration"])  # in milliseconds
    apng = io.BytesIO()
    write_apng(apng, images, durations)
    apng.seek(0)
    return apng


def animated_webp(file: BinaryIO) -> Image.Image | None:
    """The animated WebP in a file, of which nothing is decoded; None if it is something else. Raises Unusable."""
    is_webp = file.read(12)[8:] == b"WEBP"
    file.seek(0)
    return image if is_webp and is_animated(image := open_image(file, ("WEBP",))) else None


def pixels_of_all_frames(animation: Image.Image) -> int:
    """The pixels of an animation that is decoded as a whole."""
    return getattr(animation, "n_frames", 1) * animation.width * animation.height


def frames(path: str | os.PathLike) -> Iterator[Tensor]:
    """Yields the frames of a video as uint8 [3, H, W], one at a time. Raises UserError if there are none."""
    with VideoReader(path) as reader:
        empty = True
        for frame in reader:
            empty = False
            yield frame
        if empty:
            raise UserError(no_frames_message(reader))


def decode_packet(stream: Any, packet: Any) -> list[Any]:
    """The frames in a packet of a stream. Raises PyAV's errors if the packet is damaged."""
    if packet.size:
        return stream.codec_context.decode(packet)
    if packet.dts is None:
        return stream.codec_context.decode(None)
    return []  # an empty packet with a time repeats a frame of an AVI


def _rotate(image: Tensor, degrees: int) -> Tensor:
    """Rotates an image [3, H, W] counterclockwise by a multiple of 90°, as videos of upright telephones need."""
    return torch.rot90(image, round(degrees / 90) % 4, (1, 2)).contiguous()


def pixel_shape(stream: Any, rotation: int) -> Fraction:
    """Width by height of a pixel, after a rotation by so many degrees."""
    shape = stream.sample_aspect_ratio or Fraction(1)
    return 1 / shape if round(rotation / 90) % 2 else shape


def no_frames_message(reader: VideoReader) -> str:
    """A message that a video has no frames, with the reason."""
    why = f"all {reader.damaged:,} are damaged" if reader.damaged else "the file is cut off or empty"
    return f"{reader.path} has no frame that can be decoded ({why}); copy it again, or name another file"
