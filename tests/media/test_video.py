"""media.video: what goes through comes out with its frames, times, size and sound."""

from __future__ import annotations

import errno
import os
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from media.files import is_video
from media.transcode import transcode
from media.video import VideoReader, frames
from media.video_writer import VideoWriter
from tests.media.films import BLUE, GREEN, RED, WHITE, grey, make, quarters, sound, times
from torch_utils.errors import DiskFull, UserError

av = pytest.importorskip("av")


def corners(image: torch.Tensor) -> list[list[int]]:
    _, h, w = image.shape
    return [image[:, y, x].tolist() for y in (h // 4, 3 * h // 4) for x in (w // 4, 3 * w // 4)]


def near(found: list, expected: list | tuple, tolerance: int = 6) -> bool:
    return np.abs(np.array(found) - np.array(expected)).max() <= tolerance


def test_a_video_comes_out_as_it_went_in(tmp_path):
    source = make(tmp_path / "a.mp4", [grey(i) for i in range(20)], sound=["aac", "aac"])
    calls, sizes = [], []

    def invert(images):
        sizes.append(tuple(images.shape))
        assert images.dtype == torch.uint8
        return 255 - images

    done = transcode(source, tmp_path / "new" / "b.mp4", invert, batch=8, progress=lambda *call: calls.append(call))
    assert (done.frames, done.damaged, done.sound_copied, done.sound_encoded) == (20, 0, 2, 0)
    assert sizes == [(8, 3, 48, 64), (8, 3, 48, 64), (4, 3, 48, 64)]
    assert [call for call in dict.fromkeys(calls) if call != (0, 20)] == [(8, 20), (16, 20), (20, 20)]
    made = tmp_path / "new" / "b.mp4"
    assert os.listdir(made.parent) == ["b.mp4"]
    assert times(made) == times(source) == [Fraction(i, 25) for i in range(20)]
    for track in (0, 1):
        assert sound(made, track) == sound(source, track) and len(sound(made, track)) > 30
    with VideoReader(made) as reader:
        assert (reader.rate, reader.count) == (25, 20)
        context = reader.stream.codec_context
        assert (context.name, context.pix_fmt, context.colorspace, context.color_range) == ("h264", "yuv420p", 1, 1)
        for i, frame in enumerate(reader):
            assert frame.dtype == torch.uint8 and frame.shape == (3, 48, 64)
            assert (frame.int() - (255 - 20 - 8 * i)).abs().max() <= 3


def test_a_photograph_in_heic_is_no_video(tmp_path):
    """Although FFmpeg opens it as one: both are boxes of ISO media."""
    film = make(tmp_path / "film.mp4", [quarters()] * 2).read_bytes()
    assert film[4:8] == b"ftyp"
    for name, brand, video in (("a", b"isom", True), ("b", b"heic", False), ("c.heic", b"heic", False)):
        (tmp_path / name).write_bytes(film[:8] + brand + film[12:])
        assert is_video(tmp_path / name) == video, name


def test_uneven_times_are_kept(tmp_path):
    uneven = [0, 100, 105, 400, 1001, 1002, 3000]
    source = make(tmp_path / "a.mkv", [grey(i) for i in range(7)], times=uneven, base=Fraction(1, 1000))
    for name in ("b.mp4", "b.mkv", "b.mov"):
        transcode(source, tmp_path / name, lambda x: x, batch=3)
        assert times(tmp_path / name) == [Fraction(t, 1000) for t in uneven]
    ntsc = make(tmp_path / "c.mp4", [grey(i) for i in range(9)], rate=30, base=Fraction(1001, 30000))
    transcode(ntsc, tmp_path / "d.mp4", lambda x: x)
    assert times(tmp_path / "d.mp4") == [Fraction(1001 * i, 30000) for i in range(9)]


def test_a_piece_of_a_broadcast_begins_at_zero_with_its_sound_in_step(tmp_path):
    source = make(tmp_path / "a.ts", [grey(i) for i in range(12)], sound=["aac"], begin=5)
    assert times(source)[0] >= 5
    transcode(source, tmp_path / "b.mkv", lambda x: x)
    begin = min(times(source)[0], sound(source)[0][0])
    for kind in (times, lambda path: [time for time, _ in sound(path)]):
        shifted = [float(time - begin) for time in kind(source)]
        assert [float(time) for time in kind(tmp_path / "b.mkv")] == pytest.approx(shifted, abs=0.0011)


def test_sound_that_the_container_refuses_is_encoded(tmp_path):
    source = make(tmp_path / "a.wmv", [grey(i) for i in range(25)], codec="wmv2", sound=["wmav2", "mp3"])
    done = transcode(source, tmp_path / "b.mp4", lambda x: x)
    assert (done.sound_copied, done.sound_encoded) == (1, 1)
    assert sound(tmp_path / "b.mp4", 1) == sound(source, 1)
    with av.open(str(tmp_path / "b.mp4")) as file:
        assert file.streams.audio[0].codec_context.name == "aac"
        wave = np.concatenate([f.to_ndarray()[0] for f in file.decode(audio=0)])
    assert len(wave) == pytest.approx(48000, abs=2100)
    assert np.abs(np.fft.rfft(wave)).argmax() / len(wave) == pytest.approx(1 / 17 / 2 / np.pi, rel=0.01)


def test_odd_sizes_are_continued_to_even_ones(tmp_path):
    source = make(tmp_path / "a.mkv", [quarters(33, 47)] * 3, codec="ffv1")
    transcode(source, tmp_path / "b.mp4", lambda x: x)
    (frame, *_) = frames(tmp_path / "b.mp4")
    assert frame.shape == (3, 34, 48)
    assert near(corners(frame), [RED, GREEN, BLUE, WHITE])
    assert near(frame[:, -1, -1].tolist(), WHITE)


def test_the_function_may_change_the_size(tmp_path):
    source = make(tmp_path / "a.mp4", [quarters()] * 3)
    transcode(source, tmp_path / "b.mp4", lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert [frame.shape for frame in frames(tmp_path / "b.mp4")] == [(3, 96, 128)] * 3


@pytest.mark.parametrize("degrees, expected", [
    (90, [GREEN, WHITE, RED, BLUE]), (180, [WHITE, BLUE, GREEN, RED]), (270, [BLUE, RED, WHITE, GREEN]),
])  # fmt: skip
def test_turned_videos_are_upright(tmp_path, degrees, expected):
    # set_display_rotation, as FFmpeg's -display_rotation, counts counterclockwise
    source = make(tmp_path / "a.mp4", [quarters()] * 2, rotation=degrees, shape=Fraction(4, 3))
    transcode(source, tmp_path / "b.mp4", lambda x: x)
    for path in (source, tmp_path / "b.mp4"):
        (frame, *_) = frames(path)
        assert frame.shape == ((3, 48, 64) if degrees == 180 else (3, 64, 48))
        assert near(corners(frame), expected)
    with VideoReader(tmp_path / "b.mp4") as reader:
        assert reader.stream.sample_aspect_ratio == (Fraction(4, 3) if degrees == 180 else Fraction(3, 4))


@pytest.mark.parametrize("matrix", [None, 1, 6])  # unsaid, BT.709, BT.601
def test_colours_are_kept(tmp_path, matrix):
    source = make(tmp_path / "a.mp4", [quarters()] * 2, matrix=matrix)
    transcode(source, tmp_path / "b.mp4", lambda x: x)
    for path in (source, tmp_path / "b.mp4"):
        assert near(corners(next(frames(path))), [RED, GREEN, BLUE, WHITE])


def test_colours_of_old_cameras_and_of_hd_that_does_not_say(tmp_path):
    full = make(tmp_path / "a.avi", [quarters()] * 2, codec="mjpeg")  # BT.601 of 0..255
    high = make(tmp_path / "b.mkv", [quarters(720, 64)] * 2, unsaid=True)  # BT.709
    for path in (full, high):
        transcode(path, tmp_path / "c.mp4", lambda x: x)
        for made in (path, tmp_path / "c.mp4"):
            assert near(corners(next(frames(made))), [RED, GREEN, BLUE, WHITE])


def test_writing_images_at_a_rate(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 12.5) as video:
        for i in range(5):
            video.write(torch.from_numpy(grey(i)).permute(2, 0, 1))
    assert times(tmp_path / "a.mp4") == [Fraction(2 * i, 25) for i in range(5)]
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert reader.rate == Fraction(25, 2)
    with pytest.raises(UserError, match="no frame to write"), VideoWriter(tmp_path / "b.mp4"):
        pass
    assert os.listdir(tmp_path) == ["a.mp4"]


def fails(source: Path, out: Path, *parts: str) -> None:
    before = sorted(os.listdir(out.parent)) if out.parent.is_dir() else None
    with pytest.raises(UserError) as error:
        transcode(source, out, lambda x: x)
    for part in parts:
        assert part in error.value.message
    assert "\n" not in error.value.message
    assert (sorted(os.listdir(out.parent)) if out.parent.is_dir() else None) == before


def test_what_is_no_video_is_refused_in_one_line(tmp_path):
    good = make(tmp_path / "good.mp4", [grey(i) for i in range(10)], sound=["aac"])
    data = good.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[:1500])
    (tmp_path / "text.mp4").write_bytes(b"no video" * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    with av.open(str(tmp_path / "music.mp4"), "w") as file:
        track = file.add_stream("aac", rate=48000, layout="mono")
        block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        block.sample_rate = 48000
        file.mux(track.encode(block))
        file.mux(track.encode(None))
    with VideoReader(good) as reader:
        first = min(p.pos for p in reader.packets() if p.size)
    (tmp_path / "noise.mp4").write_bytes(data[:first] + bytes(len(data) - first) if data.find(b"moov") < first else b"")
    out = tmp_path / "out.mp4"
    for name in ("cut", "text", "empty", "noise"):
        fails(tmp_path / f"{name}.mp4", out, f"{name}.mp4", "name another file")
    fails(tmp_path / "music.mp4", out, "music.mp4 contains no video")
    fails(tmp_path / "god.mp4", out, "there is no", "did you mean", "good.mp4")
    (tmp_path / "list.mp4").write_text(
        f"ffconcat version 1.0\nfile {good.name}\n"
    )  # it would hold another file's frames
    fails(tmp_path / "list.mp4", out, "list.mp4", "name another file")
    fails(good, tmp_path / "out.avi", "written as .mp4, .m4v, .mov, .mkv")
    fails(good, good, "is the source itself")
    fails(good, good / "x.mp4", "cannot write into", "it is not a folder; name another place with --out")


def test_frames_that_grow_are_left_out(tmp_path):
    """A small file could fill the memory."""
    small = make(tmp_path / "small.h264", [grey(i) for i in range(3)])
    large = make(tmp_path / "large.h264", [grey(i, 2048, 2048) for i in range(3)])
    (tmp_path / "both.h264").write_bytes(small.read_bytes() + large.read_bytes())
    with VideoReader(tmp_path / "both.h264") as reader:
        sizes = {tuple(frame.shape) for frame in reader}
    assert sizes == {(3, 48, 64)} and reader.damaged


def test_a_stream_without_times_has_its_rate(tmp_path):
    raw = make(tmp_path / "raw.h264", [grey(i) for i in range(20)])
    transcode(raw, tmp_path / "out.mp4", lambda x: x)
    found = times(tmp_path / "out.mp4")
    assert len(found) == 20 and found[-1] - found[0] == Fraction(19, 25)


def test_damage_in_the_middle_costs_only_what_is_damaged(tmp_path):
    source = make(tmp_path / "a.ts", [grey(i % 20) for i in range(60)], codec="mpeg2video")
    data = bytearray(source.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = os.urandom(400)
    source.write_bytes(data)
    assert 40 <= transcode(source, tmp_path / "b.mp4", lambda x: x).frames <= 60


@pytest.mark.parametrize("late", [0, 100], ids=["beside the frames", "before the first frame"])
def test_sound_reports_as_frames_do_and_can_be_stopped(tmp_path, late):
    """Hours of silence fit into a small file, beside or before a few frames; .mp4 needs it in another codec."""
    images, times = [grey(i) for i in range(5)], [late + i for i in range(5)]
    source = make(tmp_path / "a.mkv", images, times=times, base=Fraction(1), rate=1, sound=["wavpack"])
    packets, out, calls = len(sound(source)), tmp_path / "b.mp4", []
    transcode(source, out, lambda x: x, progress=lambda done, total: calls.append(done))
    assert packets >= 10 and len(calls) >= 5 + packets
    assert calls == sorted(calls) and calls[-1] == 5
    if late:
        assert calls.count(0) >= 2 * packets  # where they are read, and where they are encoded
    out.unlink()
    for number in (1, packets // 2, packets + 1, len(calls)):
        left = [None] * (number - 1)
        with pytest.raises(IndexError):  # at that call
            transcode(source, out, lambda x: x, progress=lambda *_, left=left: left.pop())
        assert not left
        assert os.listdir(tmp_path) == ["a.mkv"]


def test_a_failure_leaves_the_old_file(tmp_path):
    source = make(tmp_path / "a.mp4", [grey(i) for i in range(10)], sound=["aac"])
    out = tmp_path / "b.mp4"
    out.write_bytes(b"old")
    for error in (RuntimeError, KeyboardInterrupt):

        def fail(images, error=error):
            if images[0, 0, 0, 0] > 50:
                raise error
            return images

        with pytest.raises(error):
            transcode(source, out, fail)
        assert out.read_bytes() == b"old" and sorted(os.listdir(tmp_path)) == ["a.mp4", "b.mp4"]


def test_a_full_disk_gets_its_line(tmp_path):
    resource = pytest.importorskip("resource")
    source = make(
        tmp_path / "a.mp4", [np.random.default_rng(i).integers(0, 256, (96, 96, 3), np.uint8) for i in range(9)]
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(DiskFull, match=f"no room for .*b.mp4 .{os.strerror(errno.EFBIG)}"):
            transcode(source, tmp_path / "b.mp4", lambda x: x)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_without_pyav_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match="pip install av"):
        transcode(tmp_path / "a.mp4", tmp_path / "b.mp4", lambda x: x)


def test_frames_are_read_as_they_are_asked_for(tmp_path):
    source = make(tmp_path / "a.mp4", [grey(i % 20) for i in range(200)])
    ahead, read = [], 0
    pixels = VideoReader.pixels

    def counted(self, frame):
        nonlocal read
        read += 1
        return pixels(self, frame)

    def note(done, total):
        ahead.append(read - done)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoReader, "pixels", counted)
        transcode(source, tmp_path / "b.mp4", lambda x: x, batch=4, progress=note)
    assert read == 200 and max(ahead) == 0


def test_what_is_a_video(tmp_path):
    moving = make(tmp_path / "a.mp4", [grey(i) for i in range(3)])
    nameless = tmp_path / "film"
    nameless.write_bytes(moving.read_bytes())
    stills = [Image.fromarray(grey(i)) for i in range(3)]
    stills[0].save(tmp_path / "a.gif", save_all=True, append_images=stills[1:])
    stills[0].save(tmp_path / "b.gif")
    assert is_video(tmp_path / "a.gif") and not is_video(tmp_path / "b.gif")
    assert transcode(tmp_path / "a.gif", tmp_path / "a.mp4", lambda x: x).frames == 3
    assert is_video(moving) and is_video(nameless) and is_video(tmp_path / "later.mkv")
    assert not is_video(tmp_path / "none") and not is_video(tmp_path / "a.jpg")


@pytest.mark.parametrize("error", [IndexError("list index out of range"), ValueError("no such stream")])
def test_an_error_of_the_library_while_reading_is_one_line(tmp_path, error):
    """As where a new stream begins later in a broadcast."""
    with VideoWriter(tmp_path / "a.mp4", 10) as writer:
        writer.write(torch.zeros(3, 16, 16, dtype=torch.uint8))
    with VideoReader(tmp_path / "a.mp4") as reader:
        reader.container.close()

        class Container:
            def demux(self, *streams):
                raise error
                yield

            def close(self):
                pass

        reader.container = Container()
        with pytest.raises(UserError, match=r"a\.mp4 is not a readable video"):
            list(reader.packets())
