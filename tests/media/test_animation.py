"""media.animation: what is written has its frames, its size and its length when it is read back."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from media.animation import check_animation, write_animation
from torch_utils.errors import UserError


def shades(count: int, height: int = 24, width: int = 40):
    for i in range(count):
        frame = torch.full([3, height, width], 20 + 4 * i, dtype=torch.uint8)
        frame[:, : height // 2, : width // 2] = 200 - 4 * i
        yield frame


def read(path: Path) -> tuple[list[np.ndarray], float]:
    """The frames and how many seconds they are shown."""
    if path.suffix == ".mp4":
        av = pytest.importorskip("av")
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
            return frames, len(frames) / float(stream.average_rate)
    frames, total = [], 0
    with Image.open(path) as image:
        for i in range(image.n_frames):
            image.seek(i)
            frames.append(np.asarray(image.convert("RGB")))
            total += image.info["duration"]
        assert image.info.get("loop") == 0
    return frames, total / 1000


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "a.apng"])
@pytest.mark.parametrize("rate", [30, 12.5])
def test_read_back(tmp_path, name, rate):
    write_animation(tmp_path / name, shades(25), 25, rate)
    frames, seconds = read(tmp_path / name)
    assert len(frames) == 25 and seconds == pytest.approx(25 / rate, abs=0.011)
    for found, written in zip(frames, shades(25), strict=True):
        assert found.shape == (24, 40, 3)
        difference = np.abs(found.astype(int) - written.permute(1, 2, 0).numpy().astype(int))
        assert difference.mean() < 3 and difference[2:10, 2:18].max() < 12
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.apng"])
def test_frames_are_not_kept(tmp_path, name):
    """There are no more of Pillow's images at the last frame than at one of the first."""
    alive = []

    def counted():
        for i, frame in enumerate(shades(40)):
            if i in (4, 39):
                alive.append(sum(issubclass(type(thing), Image.Image) for thing in gc.get_objects()))
            yield frame

    write_animation(tmp_path / name, counted(), 40, 20)
    assert alive[1] <= alive[0]


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "a.apng"])
def test_a_failure_leaves_the_old_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"old")

    def broken():
        yield from shades(3)
        raise KeyError("frame")

    with pytest.raises(KeyError):
        write_animation(tmp_path / name, broken(), 9, 25)
    assert (tmp_path / name).read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_written_is_refused(tmp_path):
    for path, rate, words in (
        ("a.avi", 25, "cannot write a.avi: animations are written as .mp4"),
        ("a", 25, "cannot write a:"),
        ("a.gif", 60, "up to 50 frames per second"),
    ):
        with pytest.raises(UserError) as error:
            check_animation(path, rate)
        assert words in error.value.message
    (tmp_path / "file").touch()
    with pytest.raises(UserError):
        write_animation(tmp_path / "file" / "a.gif", shades(2), 2, 25)


def ghosts(count: int, height: int = 24, width: int = 40):
    """A red block of growing alpha, premultiplied, that moves over nothing."""
    for i in range(count):
        frame = torch.zeros(4, height, width, dtype=torch.uint8)
        alpha = 60 + 20 * i
        frame[0, 4:20, i : i + 16] = frame[3, 4:20, i : i + 16] = alpha
        yield frame


@pytest.mark.parametrize("name", ["a.webp", "a.apng"])
def test_transparency_is_kept_where_the_format_has_it(tmp_path, name):
    write_animation(tmp_path / name, ghosts(8), 8, 10)
    with Image.open(tmp_path / name) as image:
        assert image.n_frames == 8
        for i, written in enumerate(ghosts(8)):
            image.seek(i)
            found = np.asarray(image.convert("RGBA")).astype(int)
            assert np.array_equal(found[..., 3], written[3].numpy())
            inside = found[6:18, i + 3 : i + 13, :3]
            assert np.abs(inside - (255, 0, 0)).max() < (20 if name == "a.webp" else 1)  # straight, not premultiplied


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_other_formats_show_a_chequerboard(tmp_path, name):
    write_animation(tmp_path / name, ghosts(8), 8, 10)
    frames, _ = read(tmp_path / name)
    corner = frames[-1][:4, -4:].astype(int)
    assert corner.min() > 190 and corner.max(axis=2).std() < 12  # within one light or dark square
    assert frames[-1][12, 15, 0] > frames[-1][12, 15, 1] + 100
