"""stylize.py with images: what the options change, and which model and files it uses."""

from __future__ import annotations

import os

import numpy as np
import torch
from PIL import Image

from latents.kernel_views import style_sheet
from media.files import read_image
from media.images import to_float
from models.snapshot import find_snapshot, load_stylizer, save_snapshot, save_stylizer
from networks.generator import Generator, GeneratorConfig
from networks.stylizer import (
    apply_strength,
    mix_styles,
    own_kernels,
    structure_and_statistics,
)
from styling.styles import read_style
from tests.scripts import script
from tests.stylize.running import done, mistake, most, plain, save, stylize


def test_images_are_what_the_library_gives(start, place, stylizer, tmp_path):
    a, b = (read_style(stylizer, place / name).kernels for name in ("a.png", "b.png"))
    photo, out = place / "photo.png", tmp_path / "new" / "y.png"
    style = ["--style", place / "a.png", "--style", place / "b.png"]
    x = to_float(read_image(photo)[None])
    for options, kernels in (
        (style[:2], a),
        ([*style, "--mix", "0.7,0.3"], mix_styles([a, b], [0.7, 0.3])),
        ([*style[:2], "--strength", "0.3"], apply_strength(own_kernels(stylizer, x), a, 0.3)),
        ([*style[:2], "--strength", "0"], stylizer.kernels(x)),
        (
            ["--structure-from", place / "a.png", "--statistics-from", place / "b.png"],
            structure_and_statistics(a, b),
        ),
    ):
        assert done(*start, *options, "--out", out) == f"{out}\n"
        assert most(out, plain(stylizer, photo, kernels)) == 0
    assert most(out, plain(stylizer, photo, a)) > 5


def test_style_scale_enlarges_the_middle_of_the_style(start, place, tmp_path):
    style = Image.open(place / "a.png")  # 80 × 70
    style.crop((22, 17, 57, 52)).save(tmp_path / "middle.png")  # half of the square in the middle
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    done(*start, "--style", place / "a.png", "--style-scale", "2", "--out", one)
    done(*start, "--style", tmp_path / "middle.png", "--out", two)
    assert most(one, two) <= 1
    done(*start, "--style", place / "a.png", "--out", two)
    assert most(one, two) > 1


def test_weights_of_one_and_nothing_are_the_first_style(start, place, tmp_path):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    done(*start, "--style", place / "a.png", "--out", one)
    done(*start, "--style", place / "a.png", "--style", place / "b.png", "--mix", "1,0", "--out", two)
    assert most(one, two) == 0
    done(*start, "--structure-from", place / "a.png", "--statistics-from", place / "a.png", "--out", two)
    assert most(one, two) == 0


def test_a_saved_style_is_the_style(start, place, tmp_path):
    saved = tmp_path / "styles" / "a.safetensors"
    assert done(*start[:2], "--style", place / "a.png", "--save-style", saved) == f"{saved}\n"
    for name, style in (("image", place / "a.png"), ("kernels", saved)):
        done(*start, "--style", style, "--out", tmp_path / f"{name}.png")
    assert most(tmp_path / "image.png", tmp_path / "kernels.png") == 0
    both = ["--style", saved, "--style", place / "b.png", "--mix", "0.5,0.5"]
    done(*start, *both, "--save-style", tmp_path / "mixed.safetensors", "--out", tmp_path / "mixed.png")
    done(*start, "--style", tmp_path / "mixed.safetensors", "--out", tmp_path / "again.png")
    assert most(tmp_path / "mixed.png", tmp_path / "again.png") == 0
    assert "exists already" in mistake(*start[:2], "--style", place / "b.png", "--save-style", saved)


def test_the_kernels_of_styles_are_drawn(start, place, tmp_path):
    """For one style or two, also where their files have the same name; never over another file."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_bytes((place / "b.png").read_bytes())
    sizes = {}
    for name, files in (("one", [place / "a.png"]), ("two", [place / "a.png", tmp_path / "other" / "a.png"])):
        sheet = tmp_path / f"{name}.png"
        styles = [word for file in files for word in ("--style", file)]
        assert done(*start[:2], *styles, "--show-kernels", sheet) == f"{sheet}\n"
        sizes[name] = Image.open(sheet).size
    assert sizes["one"][0] < sizes["two"][0]
    style, sheet = ["--style", place / "a.png"], tmp_path / "k.png"
    assert "exists already" in mistake(*start[:2], *style, "--show-kernels", tmp_path / "one.png")
    assert "ends with .png" in mistake(*start[:2], *style, "--show-kernels", tmp_path / "k.jpg")
    assert "the same file" in mistake(*start, *style, "--show-kernels", sheet, "--out", sheet)
    assert "need none, without --out" in mistake(*start[:2], *style, "--show-kernels", sheet, "--out", "y.png")
    three = [word for name in ("a.png", "b.png", "photo.png") for word in ("--style", place / name)]
    assert "one or two styles, and there are 3" in mistake(*start[:2], *three, "--show-kernels", sheet)


def test_differences_of_a_styles_kernels_are_those_of_the_two_that_are_shown(stylizer, place, monkeypatch):
    """Of a style beside itself nothing differs; beside another, what is drawn as the difference is a − b."""
    drawn = []
    monkeypatch.setattr(
        "latents.kernel_views.kernel_sheet", lambda shown: drawn.append(shown) or Image.new("RGB", (1, 1))
    )
    a, b = (read_style(stylizer, place / name) for name in ("a.png", "b.png"))
    images = {"a": a.image, "b": b.image}
    style_sheet(["a", "a"], images, [a.kernels, a.kernels], 256)
    style_sheet(["a", "b"], images, [a.kernels, b.kernels], 256)
    same, other = drawn
    assert list(other.images) == ["a", "b"] and [layer.number for layer in other.layers] == [0, 1, 2, 3]
    assert [layer.about.split(",")[0] for layer in other.layers] == ["32 x 32", "64 x 64", "128 x 128", "256 x 256"]
    for layer, unlike in zip(same.layers, other.layers, strict=True):
        assert set(layer.differences.values()) == {0.0} and min(unlike.differences.values()) > 0
        for none, some in zip(layer.views[:2], unlike.views[:2], strict=True):  # of structure and channels
            first, second, change = (np.asarray(image).astype(int) for image in some.images)
            assert np.ptp(np.asarray(none.images[2])[6:-6, 6:-6], axis=2).max() == 0  # white and grey only
            assert np.ptp(change, axis=2).max() > 0 and (change != first).any() and (change != second).any()


def test_a_grey_content_stays_grey(start, place, tmp_path):
    Image.open(place / "photo.png").convert("L").save(tmp_path / "grey.png")
    done(*start[:2], "--content", tmp_path / "grey.png", "--style", place / "a.png", "--out", tmp_path / "color.png")
    options = ["--style", place / "a.png", "--preserve-color", "luminance", "--out", tmp_path / "kept.png"]
    done(*start[:2], "--content", tmp_path / "grey.png", *options)
    spread = [np.ptp(np.asarray(Image.open(tmp_path / name)), axis=2).max() for name in ("color.png", "kept.png")]
    assert spread[0] > 10 and spread[1] == 0


def test_a_mask_divides_between_styles(start, place, tmp_path):
    mask = np.zeros((48, 64), np.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    styles = ["--style", place / "a.png", "--style", place / "b.png"]
    done(*start, *styles, "--out", tmp_path / "each")
    a, b = (read_image(tmp_path / "each" / f"photo-{name}.png") for name in "ab")
    done(*start, *styles, "--mask", tmp_path / "mask.png", "--out", tmp_path / "hard.png")
    assert most(tmp_path / "hard.png", torch.cat([b[..., :32], a[..., 32:]], 2)) == 0
    done(*start, *styles, "--mask", tmp_path / "mask.png", "--feather", "3", "--out", tmp_path / "soft.png")
    soft = read_image(tmp_path / "soft.png")
    assert torch.equal(soft[..., :22], b[..., :22]) and torch.equal(soft[..., 42:], a[..., 42:])
    assert not torch.equal(soft[..., 22:32], b[..., 22:32])


def test_a_content_is_made_smaller_before(start, place, tmp_path):
    """As if the small image had been given, with its mask; one that fits stays as it is."""
    large, mask, black = save(tmp_path / "large.png", 9, 150, 203), tmp_path / "mask.png", tmp_path / "black.png"
    Image.open(large).resize((101, 75), Image.Resampling.LANCZOS).save(tmp_path / "small.png")
    shares = np.zeros((150, 203), np.uint8)
    Image.fromarray(shares).save(black)
    shares[:, 102:] = 255
    Image.fromarray(shares).save(mask)
    two = ["--style", place / "a.png", "--style", place / "b.png"]
    for name in ("large.png", "small.png"):
        options = ["--content", tmp_path / name, "--max-side", 101, "--preserve-color", "luminance"]
        done(*start[:2], *options, *two, "--out", tmp_path / name.removesuffix(".png"))
    for style in "ab":
        assert most(tmp_path / "large" / f"large-{style}.png", tmp_path / "small" / f"small-{style}.png") == 0
    masked = [*start[:2], *options[2:], "--content", large, *two, "--mask"]
    done(*masked, black, "--feather", 3, "--out", tmp_path / "black-y.png")
    assert most(tmp_path / "black-y.png", tmp_path / "large" / "large-b.png") == 0
    done(*masked, mask, "--out", tmp_path / "half.png")
    a, b, half = (read_image(tmp_path / name) for name in ("large/large-a.png", "large/large-b.png", "half.png"))
    assert torch.equal(half[..., :49], b[..., :49]) and torch.equal(half[..., 53:], a[..., 53:])
    line = mistake(*masked, tmp_path / "small.png", "--out", tmp_path / "y.png")
    assert "mask" in line and "101x75 pixels, but the content 203x150" in line
    assert "16x12 where the longer side may have 16" in mistake(
        *start, "--max-side", 16, *two[:2], "--out", tmp_path / "y.png"
    )


def test_tiles_change_nothing(start, place, tmp_path):
    save(tmp_path / "large.png", 9, 150, 203)
    style = [*start[:2], "--content", tmp_path / "large.png", "--style", place / "a.png"]
    for tile in ("none", "64", "auto"):
        done(*style, "--tile", tile, "--out", tmp_path / f"{tile}.png")
    assert most(tmp_path / "64.png", tmp_path / "none.png") <= 1
    assert most(tmp_path / "auto.png", tmp_path / "none.png") == 0


def test_kinds_of_files(start, place, tmp_path):
    for name, kind in (("a.jpg", "JPEG"), ("b.webp", "WEBP"), ("c.png", "PNG")):
        done(*start, "--style", place / "a.png", "--out", tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert image.format == kind and image.size == (64, 48)
    done(*start, "--style", place / "a.png", "--out", tmp_path, "--format", "webp")
    assert (tmp_path / "photo-a.webp").exists()


def test_which_model(place, stylizer, tmp_path, monkeypatch):
    """The newest stylizer under runs, not the newest snapshot; else the shipped one; a damaged one is told of."""
    style = ["--content", place / "photo.png", "--style", place / "a.png", "--out", "y.png"]
    monkeypatch.setattr("models.snapshot.PRETRAINED", tmp_path / "pretrained")
    (tmp_path / "pretrained").mkdir()
    shipped = tmp_path / "pretrained" / "stylizer-small.safetensors"
    line = mistake(*style, cwd=tmp_path)
    assert f"no stylizer under runs, and the shipped {shipped} is not there; train one with train_stylizer.py" in line
    save_stylizer(shipped, stylizer, {}, half=True)
    result = stylize(*style, cwd=tmp_path)
    assert result.code == 0 and result.err == f"model: {shipped} (adaconv, width 0.125)\n"
    runs = [tmp_path / "runs" / f"0000{i}-x" for i in range(3)]
    for run in runs:
        run.mkdir(parents=True)
    paths = [run / "snapshot-000001.safetensors" for run in runs]
    save_stylizer(paths[0], stylizer, {})
    G = Generator(GeneratorConfig(16, cbase=128, cmax=8, map_depth=2, z_dim=8, w_dim=8, style_channels=4))
    save_snapshot(paths[1], G, {})
    for i, path in enumerate(paths[:2]):
        os.utime(path, (i, i))
    result = stylize(*style, cwd=tmp_path)
    found = "model: runs/00000-x/snapshot-000001.safetensors (adaconv, width 0.125), the newest under runs; "
    assert (
        result.code == 0 and result.err == f"{found}--model pretrained/stylizer-small.safetensors is the shipped one\n"
    )
    assert find_snapshot(tmp_path / "runs") == paths[1]
    assert "no snapshot of a stylizer under" in mistake("--model", runs[1], *style)
    assert "take with --network; name the file of a stylizer" in mistake("--model", paths[1], *style)
    paths[2].write_bytes(b"damaged")
    assert "cannot be read as a stylizer" in mistake(*style, cwd=tmp_path)
    paths[2].unlink()
    loaded, _ = load_stylizer(paths[0])
    kernels = read_style(loaded, place / "a.png").kernels
    assert most(tmp_path / "y.png", plain(loaded, place / "photo.png", kernels)) == 0


def test_where_results_go_without_out(start, place, tmp_path):
    """Into the folder out, named after content and style; a single image is made anew each time."""
    a, b = ["--style", place / "a.png"], ["--style", place / "b.png"]
    done(*start, *a, "--out", tmp_path / "expected.png")
    for _ in range(2):
        assert done(*start, *a, cwd=tmp_path) == "out/photo-a.png\n"
        assert most(tmp_path / "out" / "photo-a.png", tmp_path / "expected.png") == 0
        (tmp_path / "out" / "photo-a.png").write_bytes(b"another's")
    assert done(*start, *a, "--format", "jpg", cwd=tmp_path) == "out/photo-a.jpg\n"
    assert done(*start, *a, *b, "--mix", "0.5,0.5", cwd=tmp_path) == "out/photo-a-b.png\n"
    command = [*start[:2], "--content", place / "photos", *a, *b]
    assert done(*command, cwd=tmp_path) == f"6 images in {tmp_path / 'out'}\n"
    assert done(*command, cwd=tmp_path) == f"6 images in {tmp_path / 'out'}\n"  # anew: it could be of others
    names = {f"{i}-{style}.png" for i in range(3) for style in "ab"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {
        "photo-a.png", "photo-a.jpg", "photo-a-b.png"
    }  # fmt: skip


def test_from_a_shell(start, place, tmp_path):
    result = script("stylize.py", *start, "--style", place / "a.png", "--out", "y.png", cwd=tmp_path)
    assert result.returncode == 0 and result.stdout == "y.png\n" and (tmp_path / "y.png").exists()
    assert result.stderr == f"model: {place / 'model.safetensors'} (adaconv, width 0.125)\n"
