"""stylize.py with videos: frames, sound and smoothing."""

from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image

import adaconv
from media.files import read_image
from media.video_writer import VideoWriter
from styling.apply import FrameStylizer, Settings
from styling.mask import read_mask, soften
from tests.stylize.running import done, film, frames, mistake, most, sound, stylize


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


@pytest.fixture
def written(monkeypatch) -> list[torch.Tensor]:
    """The frames that are given to the writer of videos, before H.264 loses some of them."""
    images, write = [], VideoWriter.write

    def note(self, image, *rest):
        images.append(image)
        write(self, image, *rest)

    monkeypatch.setattr(VideoWriter, "write", note)
    return images


def test_a_preview_is_small_and_short(start, place, written, tmp_path):
    """Of even size; the frames that the small images of that part give, with its sound."""
    source = film(tmp_path / "film.mp4", 36, 70, 90)  # 12 a second
    command = [*start[:2], "--content", source, "--style", place / "a.png"]
    done(*command, "--max-side", 65, "--start", 1, "--length", 0.5, "--smooth", 0, "--out", tmp_path / "y.mp4")
    assert frames(tmp_path / "y.mp4").shape == (6, 3, 50, 64)
    assert sound(tmp_path / "y.mp4") == sound(source)[47:71]  # of 1024 samples each, at 48 kHz
    for frame, made in zip(frames(source)[12:18], written, strict=True):
        small = Image.fromarray(frame.permute(1, 2, 0).numpy()).resize((64, 50), Image.Resampling.LANCZOS)
        small.save(tmp_path / "frame.png")
        done(*start[:2], "--content", tmp_path / "frame.png", *command[4:], "--out", tmp_path / "expected.png")
        assert most(tmp_path / "expected.png", made) <= 1
    line = mistake(*command, "--start", 3.5, "--out", tmp_path / "z.mp4")
    assert "film.mp4 ends at second 3, before the excerpt that begins at 3.5; begin it earlier" in line
    line = mistake(*command, "--max-side", 16, "--out", tmp_path / "z.mp4")
    assert "has 90x70 pixels, and 16x12 where the longer side may have 16; each side needs 16 or more; allow" in line
    done(*command, "--max-side", 21, "--length", 0.1, "--out", tmp_path / "z.mp4")  # what it says to do
    assert frames(tmp_path / "z.mp4").shape == (2, 3, 16, 20)


def test_a_mask_divides_each_frame(start, place, written, tmp_path):
    """The film of the first style where it is white and that of the second elsewhere, whatever the mask's size."""
    source, mask = film(tmp_path / "film.mp4", 2), tmp_path / "mask.png"
    half = Image.new("L", (32, 24))
    half.paste(255, (16, 0, 32, 24))
    half.save(mask)
    styles = ["--style", place / "a.png", "--style", place / "b.png"]
    command = [*start[:2], "--content", source, *styles]
    done(*command, "--out", tmp_path / "each")
    a, b = torch.stack(written[:2]), torch.stack(written[2:])
    written.clear()
    done(*command, "--mask", mask, "--out", tmp_path / "y.mp4")
    made = torch.stack(written)
    assert made.shape == (2, 3, 48, 64) and not torch.equal(a, b)
    assert torch.equal(made[..., :30], b[..., :30]) and torch.equal(made[..., 34:], a[..., 34:])
    written.clear()
    done(*command, "--mask", mask, "--feather", 3, "--max-side", 32, "--out", tmp_path / "y.mp4")
    made = torch.stack(written)
    assert made.shape == (2, 3, 24, 32)
    model = adaconv.Stylizer.from_pretrained(place / "model.safetensors")
    written.clear()
    model.stylize_video(source, tmp_path / "z.mp4", styles[1::2], mask=half, feather=3, max_side=32)
    assert torch.equal(torch.stack(written), made)
    shares = soften(read_mask(mask), 3)
    settings = Settings(max_side=32)
    inner, outer = (
        FrameStylizer(model, model.read_style(style), settings)(frames(source)).float() for style in styles[1::2]
    )
    assert (made.float() - (shares * inner + (1 - shares) * outer)).abs().max() <= 1.51  # batches of 1 and 2


def test_a_video_that_is_stopped_leaves_nothing(start, place, tmp_path, monkeypatch):
    """Neither under its name nor under another; what was there before stays, and a line says so."""
    source, out, count = film(tmp_path / "film.mp4", 5), tmp_path / "out" / "y.mp4", 0
    out.parent.mkdir()
    out.write_bytes(b"before")
    apply = FrameStylizer.__call__

    def stopped(self, images):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return apply(self, images)

    monkeypatch.setattr(FrameStylizer, "__call__", stopped)
    result = stylize(*start[:2], "--content", source, "--style", place / "a.png", "--out", out)
    assert result.code == 130 and result.out == ""
    lines = [line for line in result.err.splitlines() if line]  # click adds an empty one
    assert lines[1:] == [f"{out} is not written: a video that is stopped before its end is not kept", "stopped"]
    assert out.read_bytes() == b"before" and list(out.parent.iterdir()) == [out]


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


def test_the_format_of_images_is_refused_for_videos_alone(start, place, tmp_path):
    (tmp_path / "in").mkdir()
    source, style, out = film(tmp_path / "in" / "film.mkv", 2), ["--style", place / "a.png"], tmp_path / "out"
    for content in (source, source.parent):
        command = [*start[:2], "--content", content, *style, "--out", out]
        assert f"--format jpg is for images, and {content} has none; leave it out" in mistake(
            *command, "--format", "jpg"
        )
        assert not out.exists()
        done(*command)
        shutil.rmtree(out)
    shutil.copy(place / "photo.png", source.parent)
    done(*command, "--format", "jpg")
    assert sorted(path.name for path in out.iterdir()) == ["film-a.mkv", "photo-a.jpg"]
