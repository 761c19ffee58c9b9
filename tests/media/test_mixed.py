"""Images of any sizes: what they decode to, and when they are a data set after all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from media import dataset, decode
from media.dataset import ImageDataset, ImageError
from media.mixed import MixedImages, open_images


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels if channels > 1 else pixels[:, :, 0], mode)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "mixed").mkdir()
    for name, image in {
        "a.png": picture(64, 48),
        "b.jpg": picture(30, 31),
        "c.bmp": picture(33, 50),
        "d.png": picture(20, 20, "L"),
        "e.png": picture(20, 20, "RGBA"),
        "f.webp": picture(300, 300),
    }.items():
        image.save(tmp_path / "mixed" / name)
    return tmp_path / "mixed"


def test_each_image_has_its_own_size(folder):
    images = open_images(folder)
    assert isinstance(images, MixedImages) and images.names == sorted(path.name for path in folder.iterdir())
    sizes = [(48, 64), (31, 30), (50, 33), (20, 20), (20, 20), (300, 300)]
    assert [tuple(images[i][0].shape) for i in range(6)] == [(3, *size) for size in sizes]
    for number in (0, 1, 2, 5):
        expected = np.asarray(Image.open(folder / images.names[number]).convert("RGB"))
        assert np.array_equal(images[number][0].permute(1, 2, 0).numpy(), expected)
    assert len(images[3][0].unique(dim=0)) == 1  # grey
    assert images.size == "sizes such as 20x20 and 300x300" and images.resolution == 0


def test_transparent_images_lie_on_the_background_on_which_their_hash_depends(folder):
    white, black = MixedImages(folder), MixedImages(folder, background=(0, 0, 0))
    pixels = np.asarray(Image.open(folder / "e.png")).astype(float)
    alpha = pixels[..., 3:] / 255
    for images, ground in ((white, 255), (black, 0)):
        expected = pixels[..., :3] * alpha + ground * (1 - alpha)
        assert np.abs(images[4][0].permute(1, 2, 0).numpy() - expected).max() <= 1
    assert white.content_hash(range(6)) == MixedImages(folder, background=(255, 255, 255)).content_hash(range(6))
    assert white.content_hash(range(6)) != black.content_hash(range(6))


@pytest.mark.parametrize("mode, key", [("RGB", (10, 20, 30)), ("L", 99)])
def test_transparent_colours_lie_on_the_background_in_sets_of_one_size_too(tmp_path, mode, key):
    """Of images without an alpha channel, of which a file can name one colour that is transparent."""
    image = picture(16, 16, mode)
    image.paste(key, (4, 4, 12, 12))
    image.save(tmp_path / "a.png", transparency=key)
    image.save(tmp_path / "b.png")
    hashes = []
    for background in (None, (255, 255, 255), (0, 0, 0), (40, 40, 40)):
        alike, mixed = ImageDataset(tmp_path, background=background), MixedImages(tmp_path, background=background)
        for number in range(2):
            assert torch.equal(alike[number][0].expand(3, -1, -1), mixed[number][0])
        assert (alike[0][0][:, 4:12, 4:12] == (255 if background is None else background[0])).all()
        assert not alike.transparent and alike.channels == len(mode)
        hashes.append(alike.content_hash([0, 1]))
    assert hashes[0] == hashes[1] and len(set(hashes[1:])) == 3


def test_flipped_images_and_labels(folder):
    labels = {"labels": [[path.name, i % 2] for i, path in enumerate(sorted(folder.iterdir()))]}
    (folder / "dataset.json").write_text(json.dumps(labels))
    images = open_images(folder, mirror=True, use_labels=True)
    assert len(images) == 12 and images.labels.tolist() == [0, 1] * 6
    assert torch.equal(images[6][0], images[0][0].flip(2)) and not torch.equal(images[6][0], images[0][0])
    assert images[3][1].tolist() == [0, 1]


def test_images_of_one_size_are_a_data_set(tmp_path):
    """As they are today, kept in memory and under the same hash; one other among thousands makes them mixed."""
    for number in range(150):
        picture(24, 16, seed=number).save(tmp_path / f"{number:04d}.png")
    images = open_images(tmp_path)
    assert type(images) is ImageDataset and images.size == "24x16"
    assert images.content_hash(range(150)) == ImageDataset(tmp_path).content_hash(range(150))
    picture(24, 20).save(tmp_path / "0002.png")
    ImageDataset(tmp_path)  # which does not look at the header of this one
    assert type(open_images(tmp_path)) is MixedImages
    picture(24, 16).save(tmp_path / "0002.png")
    assert type(open_images(tmp_path)) is ImageDataset
    picture(24, 16).save(tmp_path / "0002.gif")  # not left out in silence
    assert len(open_images(tmp_path)) == 151


def test_one_size_that_no_model_has_is_mixed(tmp_path):
    for number in range(3):
        picture(50, 31, seed=number).save(tmp_path / f"{number}.png")
    images = open_images(tmp_path)
    assert type(images) is MixedImages and images.size == "50x31" and images[2][0].shape == (3, 31, 50)


@pytest.mark.parametrize("turn", [1, 6])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_photographs_that_are_turned_are_of_another_size(tmp_path, turn, suffix):
    exif = Image.Exif()
    exif[0x0112] = turn
    picture(48, 32).save(tmp_path / f"0{suffix}")
    picture(48, 32).save(tmp_path / f"1{suffix}", exif=exif)
    images = open_images(tmp_path)
    assert type(images) is (ImageDataset if turn == 1 else MixedImages)
    assert images[1][0].shape == ((3, 32, 48) if turn == 1 else (3, 48, 32))


def test_bombs_and_broken_images_are_refused(folder, monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 300 * 299)
    with pytest.raises(ImageError, match=r"f\.webp has 300x300 pixels; the limit is"):
        open_images(folder)
    monkeypatch.undo()
    data = (folder / "b.jpg").read_bytes()
    (folder / "b.jpg").write_bytes(data[:-200])
    with pytest.raises(ImageError, match=r"b\.jpg is a broken image"):
        open_images(folder)[1]
    (folder / "b.jpg").write_bytes(b"")
    with pytest.raises(ImageError, match=r"b\.jpg is empty"):
        open_images(folder)


def test_only_headers_are_read(folder, monkeypatch):
    for path in folder.iterdir():
        path.unlink()
    for number in range(4):
        picture(24, 16, seed=number).save(folder / f"{number}.png")
    monkeypatch.setattr(dataset, "HEADERS_CHECKED", 1)
    opened = []
    monkeypatch.setattr(Image.Image, "load", lambda image: opened.append(image))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda image: opened.append(image))
    from media.mixed import are_alike

    assert are_alike(folder) and not opened
