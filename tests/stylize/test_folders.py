"""stylize.py with folders: results that exist, contents that fail, and long names."""

from __future__ import annotations

import os
import shutil

import torch

from models.snapshot import save_stylizer
from networks.stylizer import (
    Stylizer,
    StylizerConfig,
)
from tests.stylize.running import done, film, mistake, most, save, stylize
from torch_utils.errors import UserError


def test_a_folder_goes_on_where_it_stopped(start, place, tmp_path):
    out = tmp_path / "out"
    command = [*start[:2], "--content", place / "photos", "--style", place / "a.png", "--style", place / "b.png"]
    command += ["--out", out]
    assert done(*command) == f"6 images in {out}\n"
    names = sorted(path.name for path in out.iterdir())
    assert names == [f"{i}-{style}.png" for i in range(3) for style in "ab"]
    (out / "1-a.png").unlink()
    (out / "2-b.png").write_bytes(b"kept")
    assert done(*command) == f"1 image in {out}\n" and (out / "2-b.png").read_bytes() == b"kept"
    assert done(*command) == f"nothing new (--overwrite replaces what is there) in {out}\n"
    assert done(*command, "--overwrite") == f"6 images in {out}\n" and (out / "2-b.png").read_bytes() != b"kept"
    one = [*start[:2], "--content", place / "photos" / "2.png", "--style", place / "b.png"]
    done(*one, "--out", tmp_path / "one.png")
    assert most(out / "2-b.png", tmp_path / "one.png") == 0


def test_a_bad_file_in_a_folder_is_named_at_the_end(start, place, tmp_path):
    shutil.copytree(place / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "0.png").write_bytes(b"no image")
    (tmp_path / "photos" / "film.mp4").write_bytes(b"no film")
    (tmp_path / "photos" / "notes.txt").write_text("not looked at")
    (tmp_path / "photos" / "more").mkdir()
    (tmp_path / "photos" / "phone.HEIC").touch()
    result = stylize(
        *start[:2], "--content", tmp_path / "photos", "--style", place / "a.png", "--out", tmp_path / "out"
    )
    assert result.code == 2 and result.out == f"2 images in {tmp_path / 'out'}\n"
    assert f"note: folders in {tmp_path / 'photos'} are not looked into: more\n" in result.err
    assert f"note: images in {tmp_path / 'photos'} of formats that are not read; save them as " in result.err
    assert "JPEG or PNG: phone.HEIC\n" in result.err
    *_, first, second, last = result.err.splitlines()
    assert first.startswith("not stylized: ") and "0.png is not an image" in first
    assert second.startswith("not stylized: ") and "film.mp4" in second
    assert last == "error: 2 of 4 contents could not be stylized: 0.png, film.mp4"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1-a.png", "2-a.png"]


def test_one_style_of_a_content_fails(start, place, tmp_path, monkeypatch):
    """The others are made, and counted as such."""
    from styling import tasks

    write = tasks.write_image

    def picky(image, path):
        if path.name == "1-b.png":
            raise UserError(f"cannot write {path}")
        write(image, path)

    monkeypatch.setattr(tasks, "write_image", picky)
    command = [*start[:2], "--content", place / "photos", *["--style", place / "a.png", "--style", place / "b.png"]]
    out = tmp_path / "out"
    c = save(tmp_path / "c.png", 9)
    result = stylize(*command, "--style", c, "--out", out)
    assert result.code == 2 and result.out == f"8 images in {out}\n"
    assert result.err.splitlines()[-2:] == [
        f"not stylized: cannot write {out / '1-b.png'}", "error: 1 of 3 contents could not be stylized: 1.png"
    ]  # fmt: skip
    assert len(list(out.iterdir())) == 8 and (out / "1-c.png").exists()


def test_names_that_are_too_long_for_files(start, place, tmp_path):
    """Of many styles in one, cut to what a file's name may have; and each is found again."""
    folder, styles = tmp_path / "styles", []
    folder.mkdir()
    for i in range(4):
        styles += ["--style", save(folder / f"{i}-{'é' * 60}.png", i)]
    command = [*start, *styles, "--mix", "0.25,0.25,0.25,0.25", "--out", tmp_path / "out"]
    assert done(*command) == f"1 image in {tmp_path / 'out'}\n"
    assert done(*command) == f"nothing new (--overwrite replaces what is there) in {tmp_path / 'out'}\n"
    (name,) = os.listdir(tmp_path / "out")
    assert name.startswith("photo-0-éé") and name.endswith(".png") and len(os.fsencode(name)) <= 255
    done(*command[:-1], tmp_path / f"{'y' * 251}.png")  # and what is written beside it first
    long = "y" * 300
    style = styles[:2]
    assert "too long" in mistake(*start, *style, "--out", tmp_path / f"{long}.png")
    assert "too long" in mistake(*start, *style, "--save-style", tmp_path / f"{long}.safetensors")
    assert "there is no" in mistake(*start[:2], "--content", tmp_path / f"{long}.png", *style)
    assert "there is no " in mistake("--model", long, *start[2:], *style)


def test_contents_that_are_too_small_for_the_kernels(place, tmp_path):
    """Kernels of 7 × 7 reach 3 pixels of relu4_1 beyond the border, which are 24 of the content."""
    torch.manual_seed(0)
    save_stylizer(tmp_path / "wide.safetensors", Stylizer(StylizerConfig(1 / 16, "adaconv", 64, kernel_size=7)), {})
    (tmp_path / "in").mkdir()
    for side in (24, 25):
        save(tmp_path / "in" / f"{side}.png", side, side, 40)
    start = ["--model", tmp_path / "wide.safetensors", "--style", place / "a.png", "--content"]
    for tile in ("auto", "none", "16"):
        options = ["--tile", tile, "--out", tmp_path / tile]
        result = stylize(*start, tmp_path / "in", *options)
        assert result.code == 2 and result.out == f"1 image in {tmp_path / tile}\n"
        assert "24.png has 40x24 pixels; each side needs 25 or more" in result.err
    assert most(tmp_path / "16" / "25-a.png", tmp_path / "none" / "25-a.png") <= 1
    assert "24x24 pixels; each side needs 25" in mistake(*start, film(tmp_path / "film.mp4", 2, 24, 24))
