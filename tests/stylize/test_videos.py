"""stylize.py with videos: frames, sound and smoothing."""

from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image

from media.files import read_image
from tests.stylize.running import done, film, frames, sound


def change(images: torch.Tensor) -> float:
    """The root mean square of what changes from frame to frame."""
    return (images[1:].float() - images[:-1].float()).square().mean().sqrt().item()


def test_a_video_keeps_what_it_has_and_is_calm(start, place, tmp_path):
    source = film(tmp_path / "film.mp4", 24)
    command = [*start[:2], "--content", source, "--style", place / "a.png"]
    for smooth in ("0", "0.8"):
        out = tmp_path / f"{smooth}.mp4"
        assert done(*command, "--smooth", smooth, "--out", out) == f"{out}\n"
    done(*command, "--out", tmp_path / "default.mkv", "--batch", "3")
    rough, calm, default = (frames(tmp_path / name) for name in ("0.mp4", "0.8.mp4", "default.mkv"))
    assert len(rough) == len(calm) == len(default) == 24 and rough.shape[1:] == (3, 48, 64)
    assert change(rough[8:]) > 5 and change(calm[8:]) < 0.5 * change(rough[8:])
    # alike as two encodings of images that differ by rounding are, which take other decisions
    assert change(default[8:]) == pytest.approx(change(calm[8:]), rel=0.1)
    assert (calm.float() - default.float()).abs().mean() < (calm.float() - rough.float()).abs().mean() / 3
    for name in ("0.mp4", "0.8.mp4", "default.mkv"):
        assert sound(tmp_path / name) == sound(source)
        from media.video import VideoReader

        with VideoReader(tmp_path / name) as reader:
            assert reader.rate == 12


def test_frames_of_a_video_are_images(start, place, stylizer, tmp_path):
    source = film(tmp_path / "film.mp4", 3)
    options = ["--style", place / "a.png", "--style", place / "b.png", "--mix", "0.5,0.5", "--strength", "0.6"]
    command = [*start[:2], "--content", source, *options, "--preserve-color", "luminance"]
    done(*command, "--smooth", "0", "--out", tmp_path / "y.mp4")
    made = frames(tmp_path / "y.mp4")
    for i, frame in enumerate(frames(source)):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(tmp_path / "frame.png")
        done(*start[:2], "--content", tmp_path / "frame.png", *command[4:], "--out", tmp_path / "expected.png")
        assert (made[i].float() - read_image(tmp_path / "expected.png").float()).abs().mean() < 8  # H.264's loss


def test_videos_in_a_folder(start, place, tmp_path):
    (tmp_path / "in").mkdir()
    film(tmp_path / "in" / "film.mkv", 2)
    shutil.copy(place / "photo.png", tmp_path / "in")
    moving = [Image.open(place / "photos" / f"{i}.png") for i in range(3)]
    moving[0].save(tmp_path / "in" / "moving.gif", save_all=True, append_images=moving[1:])
    command = [*start[:2], "--content", tmp_path / "in", "--style", place / "a.png", "--out", tmp_path / "out"]
    assert done(*command) == f"1 image and 2 videos in {tmp_path / 'out'}\n"
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["film-a.mkv", "moving-a.mp4", "photo-a.png"]
    assert len(frames(tmp_path / "out" / "moving-a.mp4")) == 3
    assert done(*command) == f"nothing new (--overwrite replaces what is there) in {tmp_path / 'out'}\n"
