"""media.alpha: premultiplied colours against their definition and against Pillow's compositing."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from media.alpha import DARK, LIGHT, SQUARE, on_background, on_chequerboard, premultiply, straighten
from media.convert import Conversion, convert
from media.dataset import ImageDataset
from media.images import save_png, to_float
from tests.media.converting import convert_image
from torch_utils.errors import UserError

INVISIBLE_GREEN = (0, 255, 0, 0)


def every_pair() -> np.ndarray:
    """All colours with all alphas, [256, 256, 4]: the same value in red, green and blue."""
    color, alpha = np.meshgrid(np.arange(256), np.arange(256))
    return np.stack([color, color, color, alpha], axis=-1).astype(np.uint8)


def random_rgba(seed: int = 0, size: tuple[int, int] = (24, 16)) -> Image.Image:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    pixels[..., 3] = np.where(rng.random(pixels.shape[:2]) < 0.3, 0, pixels[..., 3])
    return Image.fromarray(pixels)


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(premultiply(image)).permute(2, 0, 1)


def write(folder, *images: Image.Image):
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        image.save(folder / f"{i}.png")
    return folder


def disc(color=(255, 0, 0, 255), outside=INVISIBLE_GREEN, side: int = 128) -> Image.Image:
    """A disc with a hard edge; the pixels around it are invisible and have a colour that must never be seen."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return Image.fromarray(np.where(np.hypot(x, y)[..., None] < side / 3, color, outside).astype(np.uint8))


def test_there_and_back_for_every_colour_and_alpha():
    pixels = every_pair()
    there = premultiply(Image.fromarray(pixels))
    back = straighten(there)
    exact = pixels[..., 0] / 255 * pixels[..., 3]
    assert np.abs(there[..., 0] - exact).max() <= 0.5
    assert np.array_equal(back[..., 3], pixels[..., 3])
    error = np.abs(back[..., 0].astype(int) - pixels[..., 0])[1:]
    alpha = np.arange(1, 256)[:, None]
    assert (error <= np.ceil(255 / (2 * alpha))).all()
    assert np.array_equal(back[255], pixels[255]) and not back[0].any()
    assert np.array_equal(premultiply(Image.fromarray(back)), there)  # what a file says is read as it was


def test_colours_brighter_than_alpha_allows_are_written_as_the_brightest():
    assert straighten(np.array([[[200, 40, 0, 100]]], np.uint8)).tolist() == [[[255, 102, 0, 100]]]


def test_what_is_shown_is_what_a_file_holds():
    """Also of colours that no file can hold: a light where nothing is."""
    glow = torch.randint(0, 256, (1, 4, 16, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    glow[0, 3, :8] = 0
    file = Image.fromarray(straighten(glow[0].permute(1, 2, 0).numpy()))
    expected = Image.alpha_composite(Image.new("RGBA", file.size, (10, 120, 230, 255)), file).convert("RGB")
    for images in (glow, to_float(glow)):
        found = on_background(images, (10, 120, 230))[0].permute(1, 2, 0).numpy()
        found = found if images.dtype == torch.uint8 else (found + 1) * 127.5
        assert np.abs(found.astype(float) - np.asarray(expected)).max() <= 2


@pytest.mark.parametrize("color", [(255, 255, 255), (0, 0, 0), (10, 120, 230)])
def test_over_a_background_is_pillows_composition(color):
    image = random_rgba()
    expected = Image.alpha_composite(Image.new("RGBA", image.size, (*color, 255)), image).convert("RGB")
    found = on_background(tensor(image)[None], color)[0]
    assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected)).max() <= 1
    of_floats = on_background(to_float(tensor(image)[None]), color)[0]
    assert float((of_floats - to_float(found[None])[0]).abs().max()) <= 1.01 / 255


def test_a_chequerboard_is_seen_through_invisible_pixels_only():
    image = torch.zeros(1, 4, 32, 40, dtype=torch.uint8)
    image[:, :, :, 20:] = torch.tensor([9, 90, 200, 255]).view(4, 1, 1)
    shown = on_chequerboard(image)
    assert torch.equal(shown[:, :, :, 20:], image[:, :3, :, 20:])
    assert shown[0, 0, 0, 0] == shown[0, 2, SQUARE, SQUARE] == LIGHT != DARK == shown[0, 1, SQUARE, 0]
    assert set(shown[:, :, :, :20].flatten().tolist()) == {LIGHT, DARK}
    opaque = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    assert on_chequerboard(opaque) is opaque


# Data sets.


def test_the_colour_of_invisible_pixels_makes_no_difference(tmp_path):
    data = ImageDataset(write(tmp_path / "a", disc(side=64), disc(outside=(9, 8, 7, 0), side=64)))
    assert data.channels == 4 and data.transparent
    a, b = data[0][0], data[1][0]
    assert torch.equal(a, b) and bool((a[:3] <= a[3:]).all())
    save_png(a, tmp_path / "a.png")
    written = Image.open(tmp_path / "a.png")
    assert written.mode == "RGBA" and set(written.getdata()) == {(255, 0, 0, 255), (0, 0, 0, 0)}


def test_a_background_makes_it_a_data_set_of_rgb(tmp_path):
    image = random_rgba(size=(16, 16))
    folder = write(tmp_path / "a", image, random_rgba(1, (16, 16)))
    white, blue = (ImageDataset(folder, background=color) for color in ((255, 255, 255), (0, 0, 255)))
    assert white.channels == 3 and white[0][0].shape == (3, 16, 16)
    expected = Image.alpha_composite(Image.new("RGBA", image.size, "blue"), image).convert("RGB")
    assert np.abs(blue[0][0].permute(1, 2, 0).numpy().astype(int) - np.asarray(expected)).max() <= 1
    # metrics keep what they know of the images by this hash
    assert len({data.content_hash([0, 1]) for data in (white, blue, ImageDataset(folder))}) == 3


def test_palettes_with_transparency_are_rgba(tmp_path):
    palette = disc(side=64).quantize(8)
    assert palette.mode == "P"
    assert torch.equal(ImageDataset(write(tmp_path / "a", palette))[0][0], tensor(disc(side=64)))


def test_grey_with_alpha_and_mixed_sets_are_refused_with_what_helps(tmp_path):
    grey = Image.new("LA", (16, 16), (100, 50))
    with pytest.raises(UserError, match=r"0\.png is of the kind LA.*becomes RGBA with --channels 4.*convert --source"):
        ImageDataset(write(tmp_path / "grey", grey))
    with pytest.raises(UserError, match=r"1\.png is 16x16 RGB, but 0\.png is 16x16 RGBA"):
        ImageDataset(write(tmp_path / "mixed", random_rgba(size=(16, 16)), Image.new("RGB", (16, 16))))
    for source in ("grey", "mixed"):  # the remedy works
        convert(tmp_path / source, tmp_path / f"{source}.zip", Conversion(16, 4))
        assert ImageDataset(tmp_path / f"{source}.zip").channels == 4


@pytest.mark.parametrize("name", ["box", "lanczos"])
def test_resizing_leaves_no_fringe(name):
    """Every visible pixel of the reduced disc is red, whatever stands in the invisible ones."""
    small = np.asarray(convert_image(disc(), Conversion(32, 4, filter=name)))
    visible = small[small[..., 3] > 8]
    assert len({tuple(pixel) for pixel in small[..., 3:].reshape(-1, 1)}) > 4  # the edge is soft
    assert visible[:, 0].min() >= 250 and visible[:, 1:3].max() <= 5


def test_the_frame_of_pad_is_transparent():
    padded = np.asarray(convert_image(Image.new("RGB", (64, 32), "red"), Conversion(64, 4, crop="pad")))
    assert not padded[:16].any() and not padded[48:].any()
    assert (padded[16:48] == (255, 0, 0, 255)).all()


def test_an_encoded_file_has_no_other_channels():
    buffer = io.BytesIO()
    convert_image(random_rgba(size=(32, 32)), Conversion(16, 4)).save(buffer, "PNG")
    assert Image.open(buffer).mode == "RGBA"
