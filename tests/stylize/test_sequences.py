"""stylize.py --sequence: images of a folder as the frames of one film."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from media.files import read_image
from styling import frames as sequences
from styling.apply import FrameStylizer, Settings
from styling.films import MaskedFrames
from styling.mask import read_mask
from styling.styles import CombinedStyle, read_style
from tests.stylize.running import done, mistake, save, stylize

NAMES = ["f8.png", "f9.png", "f10.png", "f11.png"]  # in the order of their numbers


@pytest.fixture
def shots(tmp_path) -> Path:
    """A folder of four noisy images of one scene."""
    folder = tmp_path / "shots"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    still = F.interpolate(torch.rand(1, 3, 6, 8, generator=generator), size=(48, 64), mode="bicubic")[0] * 180 + 38
    for name in NAMES:
        noisy = (still + 5 * torch.randn(still.shape, generator=generator)).clamp(0, 255).to(torch.uint8)
        Image.fromarray(noisy.permute(1, 2, 0).numpy()).save(folder / name)
    return folder


def read(folder: Path, names: list[str]) -> torch.Tensor:
    return torch.stack([read_image(folder / name) for name in names])


def one_by_one(function, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([function(image[None]) for image in images])


def test_a_folder_is_one_film(start, place, stylizer, shots, tmp_path):
    """The frames of FrameStylizer in the order of their numbers, under their names, and not each by itself."""
    command = [*start[:2], "--content", shots, "--style", place / "a.png"]
    out = tmp_path / "film"
    assert done(*command, "--sequence", "--out", out) == f"4 images in {out}\n"
    assert sorted(path.name for path in out.iterdir()) == sorted(NAMES)
    style = CombinedStyle((read_style(stylizer, place / "a.png"),))
    images = read(shots, NAMES)
    expected = one_by_one(FrameStylizer(stylizer, style, Settings()), images)
    assert torch.equal(read(out, NAMES), expected)
    done(*command, "--out", tmp_path / "each")
    each = read(tmp_path / "each", [f"{Path(name).stem}-a.png" for name in NAMES])
    change = [(made[1:].float() - made[:-1].float()).square().mean() for made in (expected, each)]
    assert change[0] < 0.7 * change[1]
    done(*command, "--sequence", "--batch", 3, "--smooth", 0.3, "--max-side", 41, "--out", tmp_path / "small")
    made = read(tmp_path / "small", NAMES)
    wanted = one_by_one(FrameStylizer(stylizer, style, Settings(smooth=0.3, max_side=41)), images)
    assert made.shape == (4, 3, 30, 40) and (made.int() - wanted.int()).abs().max() <= 1


def test_a_mask_and_two_styles(start, place, stylizer, shots, tmp_path):
    mask = save(tmp_path / "mask.png", 5, 20, 30)
    styles = [CombinedStyle((read_style(stylizer, place / name),)) for name in ("a.png", "b.png")]
    command = [*start[:2], "--content", shots, "--style", place / "a.png", "--style", place / "b.png", "--sequence"]
    done(*command, "--mask", mask, "--feather", 2, "--out", tmp_path / "y")
    masked = MaskedFrames(stylizer, *styles, read_mask(mask), Settings(feather=2))
    assert torch.equal(read(tmp_path / "y", NAMES), one_by_one(masked, read(shots, NAMES)))
    assert "there are 2 styles; mix them with --mix" in mistake(*command, "--out", tmp_path / "z")
    assert done(*command, "--mix", "0.5,0.5", "--out", tmp_path / "z") == f"4 images in {tmp_path / 'z'}\n"


def test_where_the_frames_go(start, place, shots, tmp_path):
    """By default to a folder for this film; in their own formats where those can be written."""
    for name, new in (("f9.png", "f9.JPG"), ("f10.png", "f10.bmp")):
        Image.open(shots / name).save(shots / new, "JPEG" if new.endswith("JPG") else None)
        (shots / name).unlink()
    command = [*start[:2], "--content", shots, "--style", place / "a.png", "--sequence"]
    out = tmp_path / "out" / "shots-a"
    assert done(*command, cwd=tmp_path) == f"4 images in {out}\n"
    assert sorted(path.name for path in out.iterdir()) == ["f10.png", "f11.png", "f8.png", "f9.JPG"]
    assert done(*command, cwd=tmp_path) == f"4 images in {out}\n"  # replaced
    assert done(*command, "--format", "webp", "--out", tmp_path / "w/") == f"4 images in {tmp_path / 'w'}\n"
    assert {path.suffix for path in (tmp_path / "w").iterdir()} == {".webp"}
    save(shots / "f10.tif", 3)
    line = mistake(*command, cwd=tmp_path)
    assert "f10.bmp and f10.tif would both be written to" in line and "rename one of them" in line


def test_a_part_of_a_film_is_not_gone_on_with(start, place, shots, tmp_path):
    command = [*start[:2], "--content", shots, "--style", place / "a.png", "--sequence", "--out", tmp_path / "y"]
    done(*command)
    whole = read(tmp_path / "y", NAMES)
    assert done(*command) == f"nothing new (--overwrite replaces what is there) in {tmp_path / 'y'}\n"
    kernels = tmp_path / "a.safetensors"
    assert "nothing new" in done(*command, "--save-style", kernels) and kernels.exists()
    (tmp_path / "y" / "f10.png").unlink()
    line = mistake(*command)
    assert "holds 3 of 4 frames already" in line and "again with --overwrite" in line
    done(*command, "--overwrite")
    assert torch.equal(read(tmp_path / "y", NAMES), whole)


def test_a_film_that_is_stopped_says_what_is_there(start, place, shots, tmp_path, monkeypatch):
    write = sequences.write_image

    def stopped(image, path):
        if path.name == "f10.png":
            raise KeyboardInterrupt
        write(image, path)

    monkeypatch.setattr(sequences, "write_image", stopped)
    out = tmp_path / "y"
    result = stylize(*start[:2], "--content", shots, "--style", place / "a.png", "--sequence", "--out", out)
    assert result.code == 130 and f"2 of 4 frames are in {out}; the next run begins with the first again" in result.err
    assert sorted(path.name for path in out.iterdir()) == ["f8.png", "f9.png"]


def test_what_is_no_sequence(start, place, shots, tmp_path):
    style = ["--style", place / "a.png", "--sequence"]
    command, out = [*start[:2], "--content", shots, *style], ["--out", tmp_path / "y"]
    assert "--sequence is for a folder of images, and" in mistake(*start, *style, *out)
    assert "--sequence change results" in mistake(*start[:2], *style, "--save-style", tmp_path / "s.safetensors")
    assert "is the folder of the contents" in mistake(*command, "--out", shots)
    assert "--sequence writes as many images as it reads; name a folder" in mistake(
        *command, "--out", tmp_path / "y.png"
    )
    assert "--start and --length are for videos, and" in mistake(*command, *out, "--start", 1, "--length", 2)
    moving = [Image.open(shots / name) for name in NAMES]
    moving[0].save(shots / "g.gif", save_all=True, append_images=moving[1:])
    assert "g.gif moves by itself" in mistake(*command, *out)
    (shots / "g.gif").unlink()
    shutil.copy(save(tmp_path / "other.png", 1, 48, 63), shots / "f12.png")
    line = mistake(*command, *out)
    assert f"{shots / 'f12.png'} has 63x48 pixels, and f8.png 64x48, but the frames of a film have one size" in line
    assert not (tmp_path / "y").exists()
    (shots / "f12.png").write_bytes(b"no image")
    assert "f12.png is not an image" in mistake(*command, *out) and not (tmp_path / "y").exists()
    save(shots / "f12.png", 1, 64, 48)  # on its side: found only when it is read
    assert "f12.png has 48x64 pixels, and f8.png 64x48" in mistake(*command, *out)
    turned = Image.open(shots / "f12.png")
    turned.getexif()[274] = 6
    turned.save(shots / "f12.png", exif=turned.getexif())
    assert done(*command, "--overwrite", *out) == f"5 images in {tmp_path / 'y'}\n"
