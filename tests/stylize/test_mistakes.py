"""Every mistake with stylize.py gets one line."""

from __future__ import annotations

import os
import shutil

import pytest
from PIL import Image

from media.files import read_image
from models.snapshot import save_stylizer
from networks.stylizer import Stylizer, StylizerConfig
from tests.stylize.running import done, film, mistake


def test_options_that_contradict_each_other(start, place, tmp_path):
    a, b, out = ["--style", place / "a.png"], ["--style", place / "b.png"], ["--out", tmp_path / "y.png"]
    apart = ["--structure-from", place / "a.png", "--statistics-from", place / "b.png"]
    saved, kernels = tmp_path / "s.safetensors", ["--style", "x.safetensors"]
    for arguments, words in (
        ([*start, *out], "--style is missing"),
        ([*a, *out], "--content is missing"),
        ([*a], "--content is missing"),
        ([*a, "--save-style", saved, *out], "--content is missing"),
        ([*start, *a, *out, "--mix", "1"], "--mix is for several styles"),
        ([*start, *a, *b, *out, "--mix", "0.5,0.2,0.3"], "3 weights for 2 styles"),
        ([*start, *a, *b, *out, "--mix", "0.5,0.6"], "sum to 1.1; make it 1"),
        ([*start, *a, *b, *out, "--mix", "1.5,-0.5"], "a share, from 0 to 1"),
        ([*start, *a, *b, *out, "--mix", "nan,1"], "a share, from 0 to 1"),
        ([*start, *a, *b, *out, "--mix", "half"], "'half' are not numbers"),
        ([*start, *a, *b, *out], "there are 2 styles without --mix; name a folder"),
        ([*start, *apart[:2], *out], "belong together"),
        ([*start, *apart, *a, *out], "replace --style"),
        ([*start, *apart, *out, "--mask", "m.png"], "--mask needs two --style"),
        ([*start, *a, *out, "--mask", "m.png"], "--mask needs two --style"),
        ([*start, *a, *b, "--mix", "0.5,0.5", *out, "--mask", "m.png"], "--mask needs two --style"),
        ([*start, *a, *out, "--feather", "3"], "--mask"),
        ([*start, *a, *b, "--save-style", saved], "--save-style saves one style, but there are 2"),
        ([*start[:2], *a, "--save-style", saved, "--strength", 0.2, "--smooth", 0.1], "--strength and --smooth change"),
        ([*start[:2], *a, "--save-style", saved, "--preserve-color", "histogram"], "--preserve-color change results"),
        ([*start[:2], *a, "--save-style", saved, "--tile", 64, "--batch", 2], "--tile and --batch change results"),
        ([*start, *a, *out, "--save-style", "s.png"], "styles are saved as .safetensors"),
        ([*start, *a, *out, "--format", "png"], "--format png is for folders"),
        ([*start, *a, *out, "--strength", "2"], "--strength"),
        ([*start, *a, *out, "--smooth", "-1"], "--smooth"),
        ([*start, *a, *out, "--smooth", "0.1", "--batch", "3"], "--smooth and --batch are for videos, and"),
        ([*start, *a, *out, "--start", "0", "--length", "2"], "--start and --length are for videos, and"),
        ([*start, *a, *out, "--length", "0"], "--length"),
        ([*start, *a, *out, "--start", "-1"], "--start"),
        ([*start, *a, *out, "--max-side", "15"], "--max-side"),
        ([*start[:2], *a, "--save-style", saved, "--max-side", 64, "--start", 2], "--max-side and --start change"),
        ([*start, *a, *out, "--tile", "20"], "multiple of 8"),
        ([*start, *a, *out, "--tile", "big"], "multiple of 8"),
        ([*start, *a, *out, "--batch", "0"], "--batch"),
        ([*start, *a, *out, "--device", "cuda:99"], "--device"),
        ([*start, *kernels, *out, "--preserve-color", "histogram"], "x.safetensors holds only kernels"),
        ([*start, *kernels, *out, "--style-scale", "2"], "x.safetensors holds only kernels"),
        ([*start, *a, *out, "--style-scale", "0.4"], "--style-scale"),
    ):
        assert words in mistake(*arguments), words
    assert list(tmp_path.iterdir()) == []


def test_bad_files(start, place, tmp_path):
    style, out = ["--style", place / "a.png"], ["--out", tmp_path / "new" / "y.png"]
    (tmp_path / "text.png").write_text("no image")
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    (tmp_path / "empty").mkdir()
    model = start[:2]
    Image.new("RGB", (16400, 16)).save(tmp_path / "wide.png")
    for arguments, words in (
        ([*start, *style, "--out", tmp_path / "y.gif"], "y.gif"),
        (
            [*model, "--content", tmp_path / "wide.png", *style, "--out", tmp_path / "y.webp"],
            "limited to 16,383 pixels",
        ),
        ([*start, *style, "--out", tmp_path / "text.png" / "y.png"], "text.png"),
        ([*start, *style, "--out", tmp_path / "text.png" / "out"], "text.png"),
        ([*start, *style, "--out", place / "photo.png"], "would be replaced"),
        ([*start, *style, "--out", place / "a.png"], "would be replaced"),
        ([*model, "--content", place / "photos", *style, "--out", place / "photos"], "folder of the contents"),
        ([*model, "--content", place / "photos", *style, *out], "is a folder; name a folder"),
        ([*model, "--content", tmp_path / "absent.png", *style, *out], "absent.png"),
        ([*model, "--content", tmp_path / "text.png", *style, *out], "text.png is not an image"),
        ([*model, "--content", tmp_path / "one.png", *style, *out], "one.png has 1x1 pixels"),
        ([*model, "--content", tmp_path / "empty", *style, "--out", tmp_path / "y"], "no images and no videos"),
        ([*start, "--style", tmp_path / "absent.png", *out], "absent.png"),
        ([*start, "--style", tmp_path / "text.png", *out], "text.png is not an image"),
        ([*start, "--style", tmp_path / "one.png", *out], "one.png has 1x1 pixels"),
        ([*start, "--style", place / "model.safetensors", *out], "but of kind 'stylizer'"),
        (["--model", tmp_path / "absent", *start[2:], *style, *out], "absent; "),
        (["--model", place / "a.png", *start[2:], *style, *out], "cannot be read as a stylizer"),
    ):
        assert words in mistake(*arguments), words
    assert not (tmp_path / "new").exists() and not (tmp_path / "y").exists()


def test_bad_masks(start, place, tmp_path):
    styles = ["--style", place / "a.png", "--style", place / "b.png"]
    out = ["--out", tmp_path / "y.png"]
    Image.new("L", (63, 48)).save(tmp_path / "small.png")
    assert "63x48 pixels, but the content 64x48" in mistake(*start, *styles, *out, "--mask", tmp_path / "small.png")
    assert "absent.png" in mistake(*start, *styles, *out, "--mask", tmp_path / "absent.png")
    folder = [*start[:2], "--content", place / "photos", *styles, "--out", tmp_path / "out"]
    assert "single image or video" in mistake(*folder, "--mask", tmp_path / "small.png")


def test_bad_videos(start, place, tmp_path):
    style, video = ["--style", place / "a.png"], film(tmp_path / "film.mp4", 2)
    film(tmp_path / "tiny.mp4", 2, 8, 8)
    (tmp_path / "text.mp4").write_text("no video")
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "empty.mkv"), "w") as out:
        stream = out.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        out.start_encoding()
    for source, out, words in (
        (video, "y.png", "y.png"),
        (video, "film.mp4", "would be replaced"),
        (tmp_path / "text.mp4", "y.mp4", "text.mp4 is not a readable video"),
        (tmp_path / "empty.mkv", "y.mp4", "empty.mkv"),
        (tmp_path / "tiny.mp4", "y.mp4", "8x8 pixels; each side needs 16"),
    ):
        line = mistake(*start[:2], "--content", source, *style, "--out", tmp_path / out)
        assert words in line
    mask = [*style, "--style", place / "b.png", "--mask", tmp_path / "text.mp4"]
    assert "text.mp4 is not an image" in mistake(*start[:2], "--content", video, *mask, "--out", tmp_path / "y.mp4")
    assert not (tmp_path / "y.mp4").exists() and not list(tmp_path.glob(".*"))


def test_a_style_of_another_model(start, place, other_stylizer, tmp_path):
    save_stylizer(tmp_path / "other.safetensors", other_stylizer, {})
    style = ["--style", place / "a.png", "--save-style", tmp_path / "a.safetensors"]
    done("--model", tmp_path / "other.safetensors", *style)
    line = mistake(*start, "--style", tmp_path / "a.safetensors", "--out", tmp_path / "y.png")
    assert "a.safetensors is a style of another model" in line


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write everywhere")
def test_where_nothing_can_be_written(start, place, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    line = mistake(*start, "--style", place / "a.png", "--out", tmp_path / "locked" / "y.png")
    assert "cannot write to" in line and "--out" in line


def test_real_images(start, place, real_images, tmp_path):
    photo, painting = real_images / "photos" / "cornell.jpg", real_images / "paintings" / "mondrian_cropped.jpg"
    for options in ([], ["--preserve-color", "histogram"], ["--tile", "128", "--strength", "0.5"]):
        done(*start[:2], "--content", photo, "--style", painting, *options, "--out", tmp_path / "y.jpg")
        assert read_image(tmp_path / "y.jpg").shape == read_image(photo).shape


def test_no_result_replaces_a_content_or_another_result(place, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(place / "photos", photos)
    before = {file.name: file.read_bytes() for file in photos.iterdir()}
    begin = ["--model", place / "model.safetensors", "--style", place / "a.png", "--overwrite"]
    sheet = photos / "1.png"
    words = f"{sheet} is one of the files to read"
    assert words in mistake(*begin, "--content", photos, "--show-kernels", sheet, "--out", tmp_path / "out/")
    assert {file.name: file.read_bytes() for file in photos.iterdir()} == before
    sheet = tmp_path / "out" / "1-a.png"
    words = f"{sheet} is the name of two results"
    assert words in mistake(*begin, "--content", photos, "--show-kernels", sheet, "--out", f"{tmp_path}/out/")
    assert words in mistake(*begin, "--content", photos / "1.png", "--show-kernels", sheet, "--out", sheet.parent)


def test_adain_has_no_structure_of_its_own(place, tmp_path):
    save_stylizer(tmp_path / "adain.safetensors", Stylizer(StylizerConfig(width=0.05, modulation="adain")), {})
    given = ["--structure-from", place / "a.png", "--statistics-from", place / "b.png", "--out", tmp_path / "o.png"]
    line = mistake("--model", tmp_path / "adain.safetensors", "--content", place / "photo.png", *given)
    assert "take predicted kernels apart, and AdaIN has none" in line and not (tmp_path / "o.png").exists()
