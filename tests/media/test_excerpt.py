"""media.excerpt: a part of a video has the frames that are shown in it, with their times, and its sound."""

from __future__ import annotations

import os
from fractions import Fraction

import av
import pytest
import torch

from media.excerpt import Excerpt
from media.transcode import transcode
from media.video import VideoReader, frames
from tests.media.films import grey, make, sound, times
from torch_utils.errors import UserError


def level(image: torch.Tensor) -> int:
    """The number of the frame `grey(i)` that an image is."""
    return round((float(image.float().mean()) - 20) / 8)


def cut(source, out, start=0.0, length=None) -> tuple[list[int], list[Fraction]]:
    """The numbers and the times of an excerpt's frames."""
    transcode(source, out, lambda x: x, excerpt=Excerpt(start, length))
    return [level(frame) for frame in frames(out)], times(out)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.h264"])
def test_an_excerpt_is_that_part_of_the_video(tmp_path, name):
    """In containers with an index, in which it is sought, as in those that are read from the beginning."""
    count = 100
    begin = 5 if name == "a.ts" else 0  # a piece of a broadcast
    make(tmp_path / name, [grey(i // 4) for i in range(count)], sound=["aac"] if begin else [], begin=begin)
    at = [Fraction(i, 25) for i in range(count)]
    if name == "a.ts":
        first = min(times(tmp_path / name)[0], sound(tmp_path / name)[0][0])
        at = [time - first for time in times(tmp_path / name)]
    for start, end in ((Fraction(2), Fraction(3)), (Fraction("3.2"), None), (Fraction(0), Fraction("0.4"))):
        length = None if end is None else float(end - start)
        found, seconds = cut(tmp_path / name, tmp_path / "b.mkv", float(start), length)
        shown = [i for i in range(count) if at[i] + Fraction(1, 25) > start and (end is None or at[i] < end)]
        assert found == [i // 4 for i in shown] and len(shown) >= 10
        assert [float(t) for t in seconds] == pytest.approx([float(max(at[i] - start, 0)) for i in shown], abs=0.0011)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_its_sound_is_cut_alike(tmp_path, suffix):
    """The packets of those seconds, which start together with the frames, in each track."""
    source = make(tmp_path / f"a{suffix}", [grey(i // 10) for i in range(200)], sound=["aac", "aac"])
    transcode(source, tmp_path / f"b{suffix}", lambda x: x, excerpt=Excerpt(4, 2))
    for track in (0, 1):
        expected = [(time - 4, data) for time, data in sound(source, track) if 4 <= time < 6]
        found = sound(tmp_path / f"b{suffix}", track)
        assert [data for _, data in found] == [data for _, data in expected] and len(found) > 80
        assert [float(t) for t, _ in found] == pytest.approx([float(t) for t, _ in expected], abs=0.0011)


def test_sound_that_is_encoded_is_cut_as_well(tmp_path):
    source = make(tmp_path / "a.wmv", [grey(i // 5) for i in range(100)], codec="wmv2", sound=["wmav2"])
    done = transcode(source, tmp_path / "b.mp4", lambda x: x, excerpt=Excerpt(1, 2))
    found = [float(time) for time, _ in sound(tmp_path / "b.mp4")]
    assert done.frames in (50, 51) and done.sound_encoded == 1
    assert found[0] == pytest.approx(0, abs=0.15) and found[-1] == pytest.approx(2, abs=0.15)


def test_it_begins_with_the_frame_that_is_shown_then(tmp_path):
    """Of frames that stay for long, also in the middle of one, and up to its end."""
    uneven = [0, 1000, 1200, 3000]
    source = make(tmp_path / "a.mkv", [grey(i) for i in range(4)], times=uneven, base=Fraction(1, 1000))
    for start, length, numbers, at in (
        (0.5, None, [0, 1, 2, 3], [0, 0.5, 0.7, 2.5]),
        (1, 0.25, [1, 2], [0, 0.2]),
        (1.1, 0.1, [1], [0]),
        (1.3, 0.2, [2], [0]),
        (1.3, 1.7, [2], [0]),
        (0, 1.2, [0, 1], [0, 1]),
        (3.01, None, [3], [0]),
    ):
        found, seconds = cut(source, tmp_path / "b.mkv", start, length)
        assert found == numbers and [float(t) for t in seconds] == pytest.approx(at, abs=0.0011), (start, length)


def test_its_progress_and_its_end(tmp_path):
    """What comes after it is not decoded, and the number of its frames is known before."""
    source = make(tmp_path / "a.mp4", [grey(i // 50) for i in range(1000)], sound=["aac"])
    calls, decoded, decode = [], 0, VideoReader.decode

    def count(self, packet):
        nonlocal decoded
        decoded += 1
        return decode(self, packet)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoReader, "decode", count)
        progress = lambda *call: calls.append(call)  # noqa: E731
        transcode(source, tmp_path / "b.mp4", lambda x: x, progress=progress, excerpt=Excerpt(24, 0.4))
    assert [call for call in dict.fromkeys(calls) if call != (0, 10)] == [(i + 1, 10) for i in range(10)]
    assert decoded < 400  # of a key frame each 250, at the most, and what the decoder looks ahead


def test_sound_that_ended_before_is_not_waited_for(tmp_path):
    """A commentary of two seconds has no packet that would tell that the excerpt is over."""
    long = make(tmp_path / "long.mp4", [grey(i // 50) for i in range(1000)])
    short = make(tmp_path / "short.mp4", [grey(0)] * 50, sound=["aac"])
    with av.open(str(long)) as film, av.open(str(short)) as other, av.open(str(tmp_path / "a.mp4"), "w") as both:
        streams = (other.streams.audio[0], film.streams.video[0])
        tracks = [both.add_stream_from_template(stream) for stream in streams]
        for file, stream, track in zip((other, film), streams, tracks, strict=True):
            for packet in file.demux(stream):
                if packet.dts is not None:
                    packet.stream = track
                    both.mux(packet)
    seen, packets = [], VideoReader.packets

    def count(self, *tracks):
        for packet in packets(self, *tracks):
            seen.append(packet)
            yield packet

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoReader, "packets", count)
        done = transcode(tmp_path / "a.mp4", tmp_path / "b.mp4", lambda x: x, excerpt=Excerpt(4, 1))
    assert done.frames == 25 and len(seen) < 25 * (4 + 1 + 10 + 2) + 100


def test_what_is_no_excerpt(tmp_path):
    source = make(tmp_path / "a.mp4", [grey(i) for i in range(10)], sound=["aac"])
    for start in (0.4, 3, 100):
        with pytest.raises(
            UserError, match=r"a\.mp4 ends at second 0\.4, before the excerpt that begins at .*; begin it"
        ):
            cut(source, tmp_path / "b.mp4", start)
    assert os.listdir(tmp_path) == ["a.mp4"]
    for start, length in ((-1, None), (float("nan"), None), (0, 0), (0, -1), (0, float("inf"))):
        with pytest.raises(ValueError, match="expected"):
            Excerpt(start, length)


@pytest.mark.parametrize("name, codec", [("a.avi", "mpeg4"), ("a.mp4", "libx264"), ("a.mkv", "libx264")])
@pytest.mark.parametrize("length", [1e-6, 0.001, 0.0199, 0.03])
def test_shorter_than_a_frame_it_is_one(tmp_path, name, codec, length):
    """In containers whose times are numbers of frames too."""
    source = make(tmp_path / name, [grey(i) for i in range(10)], codec=codec)
    for start, number in ((0, 0), (0.2, 5)):
        found, _ = cut(source, tmp_path / "b.mkv", start, length)
        assert found == [number]


def test_over_before_the_video_begins_it_is_its_first_frame(tmp_path):
    """As in a file whose sound begins earlier."""
    source = make(tmp_path / "a.mkv", [grey(3), grey(4)], times=[1000, 1040], base=Fraction(1, 1000), sound=["aac"])
    found, seconds = cut(source, tmp_path / "b.mkv", 0, 0.5)
    assert found == [3] and [float(t) for t in seconds] == pytest.approx([0], abs=0.03)
