"""adaconv.Stylizer beside stylize.py: the same files, to the bit, from the same contents, styles and settings."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

import adaconv
from media.files import read_image
from media.images import to_float
from media.video_writer import VideoWriter
from networks.stylizer import StylizerConfig
from tests.stylize.running import done, film, frames, most, save
from torch_utils.errors import UserError


@pytest.fixture(scope="module")
def model(place):
    return adaconv.Stylizer.from_pretrained(place / "model.safetensors")


def test_images_are_those_of_the_command(start, place, model, tmp_path):
    a, b, photo, out = place / "a.png", place / "b.png", place / "photo.png", tmp_path / "y.png"
    one, two = ["--style", a], ["--style", a, "--style", b]
    mask = save(tmp_path / "mask.png", 8)
    done(*start[:2], *one, "--save-style", tmp_path / "a.safetensors")
    apart = model.read_style(structure_from=a, statistics_from=b)
    for options, style, keywords in (
        (one, a, {}),
        (["--style", tmp_path / "a.safetensors", "--strength", 0.4], tmp_path / "a.safetensors", {"strength": 0.4}),
        ([*two, "--mix", "0.7,0.3"], [a, b], {"mix": (0.7, 0.3)}),
        ([*one, "--style-scale", 2, "--shifts", 2], str(a), {"style_scale": 2, "shifts": 2}),
        ([*one, "--preserve-color", "histogram", "--tile", 32], a, {"color": "histogram", "tile": 32}),
        ([*two, "--mask", mask, "--feather", 3], (a, b), {"mask": mask, "feather": 3}),
        ([*one, "--max-side", 40], a, {"max_side": 40}),
        (["--structure-from", a, "--statistics-from", b], apart, {}),
    ):
        done(*start, *options, "--out", out)
        image = model.stylize(photo, style, **keywords)
        assert image.dtype == torch.uint8 and most(out, image) == 0, options
        assert image.shape == ((3, 30, 40) if "max_side" in keywords else (3, 48, 64))


def test_contents_styles_and_masks_in_all_forms(place, model, tmp_path):
    """A path, an image of Pillow and tensors; Pillow's image is left as it was, also where it has to be turned."""
    photo, style, mask = place / "photo.png", place / "a.png", save(tmp_path / "mask.png", 8)
    expected = model.stylize(photo, style)
    for form in (str, Image.open, read_image, lambda path: to_float(read_image(path)), lambda p: form_of_batch(p)):
        assert torch.equal(model.stylize(form(photo), form(style)), expected)
    assert torch.equal(model.stylize(photo, model.read_style(style)), expected)
    pair = [style, Image.open(place / "b.png")]
    masked = model.stylize(photo, pair, mask=mask)
    shares = Image.open(mask).convert("L")
    for form in (Image.open(mask), read_image(mask)):
        assert torch.equal(model.stylize(photo, pair, mask=form), masked)
    grey = torch.tensor(list(shares.getdata())).view(1, 48, 64) / 255
    assert (model.stylize(photo, pair, mask=grey).int() - masked.int()).abs().max() <= 1  # the grey is rounded
    turned = Image.open(photo)
    turned.getexif()[274] = 6  # to be turned by a quarter
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    turned = Image.open(tmp_path / "turned.png")
    image = model.stylize(turned, style)
    assert image.shape == (3, 64, 48) and turned.size == (64, 48)
    assert torch.equal(image, model.stylize(tmp_path / "turned.png", style))


def form_of_batch(path):
    return to_float(read_image(path)[None])


def test_a_video_is_that_of_the_command(start, place, model, tmp_path, monkeypatch):
    source, written, write = film(tmp_path / "film.mp4", 5), [], VideoWriter.write
    options = ["--style", place / "a.png", "--strength", "0.7", "--smooth", "0.5"]
    done(*start[:2], "--content", source, *options, "--out", tmp_path / "a.mp4")

    def note(self, image, *rest):
        written.append(image)
        write(self, image, *rest)

    monkeypatch.setattr(VideoWriter, "write", note)
    calls = []
    made = model.stylize_video(
        source, tmp_path / "b.mp4", place / "a.png", strength=0.7, smooth=0.5, progress=lambda *call: calls.append(call)
    )
    assert (made.frames, made.damaged, made.sound_copied) == (5, 0, 1) and calls[-1] == (5, 5)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    apply = adaconv.FrameStylizer(model, model.read_style(place / "a.png"), adaconv.Settings(strength=0.7, smooth=0.5))
    images = torch.cat([apply(frame[None]) for frame in frames(source)])
    assert torch.equal(images, torch.stack(written))
    part = ["--start", 0.1, "--length", 0.2, "--max-side", 40]
    done(*start[:2], "--content", source, *options, *part, "--out", tmp_path / "a.mkv")
    keywords = {"strength": 0.7, "smooth": 0.5, "start": 0.1, "length": 0.2, "max_side": 40}
    assert model.stylize_video(source, tmp_path / "b.mkv", place / "a.png", **keywords).frames == 3
    assert torch.equal(frames(tmp_path / "a.mkv"), frames(tmp_path / "b.mkv"))


def test_what_the_library_refuses(place, model, tmp_path):
    a, photo, kernels = place / "a.png", place / "photo.png", tmp_path / "a.safetensors"
    done("--model", place / "model.safetensors", "--style", a, "--save-style", kernels)
    both = model.read_style([a, a], mix=(1, 1))
    for call, words in (
        (lambda: model.stylize(photo, [a, a]), "mix: expected a weight for each of 2 styles, such as (0.7, 0.3), got"),
        (lambda: model.stylize(photo, a, mix=(0.5, 0.5)), "a weight for each of 1 styles"),
        (lambda: model.stylize(photo, []), "a weight for each of 0 styles"),
        (lambda: model.stylize(photo, [both, a], mix=(0.5, 0.5)), "styles that are combined already"),
        (lambda: model.stylize(photo, both, style_scale=2), "style_scale: expected 1"),
        (lambda: model.stylize(photo, kernels, style_scale=2), "style_scale: expected 1"),
        (lambda: model.stylize(photo, kernels, color="histogram"), "holds kernels, whose colours cannot be changed"),
        (lambda: model.stylize(photo, a, mask=photo), "mask: expected two styles"),
        (lambda: model.stylize(photo, [a, a], mask=torch.ones(1, 4, 4)), "mask: expected float [1, 48, 64] in 0..1"),
        (lambda: model.stylize(photo, [a, a], mask=torch.full([1, 48, 64], 2.0)), "mask: expected float"),
        (lambda: model.stylize(torch.zeros(2, 3, 48, 64), a), "content: expected uint8 [3, H, W], or float"),
        (lambda: model.stylize(255 * torch.rand(3, 48, 64), a), "in -1..1; got floats from "),
        (lambda: model.stylize(photo, torch.full([3, 48, 64], math.nan)), "style: expected uint8 [3, H, W], or float"),
        (lambda: model.stylize_video("x.mp4", "y.mp4", [a, a], mask=torch.ones(1, 1, 4, 4)), "mask: expected float"),
        (lambda: model.stylize(torch.zeros(3, 48, 64, dtype=torch.int32), a), "got int32 [3, 48, 64]"),
        (lambda: model.stylize(Image.new("RGB", (8, 8)), a), "content: expected at least 16x16 pixels, got 8x8"),
        (lambda: model.stylize(Image.new("I", (32, 32)), a), "content: the image holds numbers of 32 bits"),
        (lambda: model.stylize(photo, a, strength=2), "strength: expected a number from 0 to 1, got 2"),
        (lambda: model.stylize(photo, a, color="lum"), "color: expected one of (None, 'luminance', 'histogram')"),
        (lambda: model.stylize(photo, a, tile=20), "tile: expected 'auto', 'none' or a multiple of 8 from 16, got 20"),
        (lambda: model.stylize(photo, a, shifts=3), "shifts: expected one of (1, 2, 4), got 3"),
        (lambda: model.stylize(photo, a, precision="fp8"), "precision: expected one of ('fp32', 'bf16', 'fp16')"),
        (lambda: model.stylize(photo, a, max_side=8), "max_side: expected None or pixels from 16, got 8"),
        (lambda: model.stylize_video(photo, "y.mp4", a, start=-1), "start: expected seconds from 0, got -1"),
        (lambda: model.read_style(), "style: expected a style, or structure_from and statistics_from"),
        (lambda: model.read_style(a, structure_from=a, statistics_from=a), "style: expected a style, or"),
        (lambda: model.read_style(structure_from=a), "style: expected a style, or structure_from and statistics_from"),
        (
            lambda: adaconv.Stylizer(StylizerConfig(0.05, "adain")).read_style(structure_from=a, statistics_from=a),
            "expected a model with AdaConv",
        ),
    ):  # fmt: skip
        with pytest.raises(ValueError) as error:
            call()
        assert words in str(error.value), words
    with pytest.raises(TypeError, match="content: expected a path, an image of Pillow or a tensor, got list"):
        model.stylize([photo], a)
    with pytest.raises(TypeError, match="strenght"):
        model.stylize(photo, a, strenght=0.5)
    with pytest.raises(UserError, match="there is no"):
        model.stylize(tmp_path / "absent.png", a)
    with pytest.raises(UserError, match="the content has 64x48 pixels, and 20x15 where the longer side may have 20"):
        model.stylize(photo, a, max_side=20)
    with pytest.raises(UserError, match="not a readable video"):
        model.stylize_video(photo, tmp_path / "y.gif", a)


def test_floats_that_may_be_of_another_range_are_noted(place, model, capsys):
    """Those in 0..1, as other libraries have them, would become a pale image in silence."""
    image = torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(0))
    model.stylize(2 * image - 1, place / "a.png")
    assert capsys.readouterr().err == ""
    model.stylize(image, place / "a.png")
    assert "warning: content has floats from 0.00 to 1.00, where -1 is black" in capsys.readouterr().err
