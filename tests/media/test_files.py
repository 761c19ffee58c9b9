"""media.files: whatever people have comes out as 8-bit RGB; what is written is whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from media.files import is_video, list_images, output_paths, read_image, write_image
from torch_utils import files
from torch_utils.errors import DiskFull, UserError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quarters(width: int = 48, height: int = 32) -> Image.Image:
    """Red and green above, blue and white below."""
    image = Image.new("RGB", (width, height), RED)
    for color, x, y in ((GREEN, 1, 0), (BLUE, 0, 1), (WHITE, 1, 1)):
        image.paste(color, (x * width // 2, y * height // 2, (x + 1) * width // 2, (y + 1) * height // 2))
    return image


def read(path: Path, image: Image.Image, **options) -> np.ndarray:
    """The pixels [H, W, 3] of an image written by Pillow and read by us."""
    image.save(path, **options)
    pixels = read_image(path)
    assert pixels.dtype == torch.uint8 and pixels.is_contiguous() and pixels.shape[0] == 3
    return pixels.permute(1, 2, 0).numpy().astype(int)


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    h, w, _ = pixels.shape
    return [tuple(pixels[y, x]) for y in (h // 4, 3 * h // 4) for x in (w // 4, 3 * w // 4)]


def refused(path: Path, *parts: str, **options) -> None:
    with pytest.raises(UserError) as error:
        read_image(path, **options)
    for part in (str(path), *parts):
        assert part in error.value.message
    assert "\n" not in error.value.message and error.value.exit_code == 2


@pytest.mark.parametrize("name, options", [
    ("a.png", {}), ("a.webp", {"lossless": True}), ("a.bmp", {}), ("a.tif", {}), ("a.ppm", {}),
    ("a.jpg", {"quality": 100, "subsampling": 0}),
])  # fmt: skip
def test_kinds_of_files(tmp_path, name, options):
    pixels = read(tmp_path / name, quarters(), **options)
    assert np.abs(pixels - np.asarray(quarters()).astype(int)).max() <= (3 if name == "a.jpg" else 0)


def test_kinds_of_images(tmp_path):
    grey = Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32))
    assert np.array_equal(read(tmp_path / "a.png", grey), np.asarray(grey)[..., None].repeat(3, 2))
    deep = Image.fromarray(np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16))
    assert np.array_equal(read(tmp_path / "a.png", deep)[..., 1].ravel(), np.arange(256))
    palette = quarters().convert("P", palette=Image.Palette.ADAPTIVE)
    assert corners(read(tmp_path / "a.png", palette)) == [RED, GREEN, BLUE, WHITE]
    assert read(tmp_path / "a.png", Image.new("1", (16, 16), 1)).min() == 255
    cmyk = read(tmp_path / "a.jpg", Image.new("CMYK", (16, 16), (255, 0, 0, 51)), quality=100)
    assert np.abs(cmyk[0, 0] - (0, 204, 204)).max() <= 2
    veil = Image.new("RGBA", (16, 16), (0, 0, 255, 128))
    assert np.abs(read(tmp_path / "a.png", veil)[0, 0] - (127, 127, 255)).max() <= 1
    assert read_image(tmp_path / "a.png", background=(0, 0, 0))[2].max() == 128


@pytest.mark.parametrize("orientation, expected", [
    (1, [RED, GREEN, BLUE, WHITE]), (2, [GREEN, RED, WHITE, BLUE]), (3, [WHITE, BLUE, GREEN, RED]),
    (6, [BLUE, RED, WHITE, GREEN]), (8, [GREEN, WHITE, RED, BLUE]),
])  # fmt: skip
def test_images_are_upright(tmp_path, orientation, expected):
    exif = Image.Exif()
    exif[0x112] = orientation
    for mode in ("RGB", "CMYK"):
        pixels = read(tmp_path / "a.tif", quarters().convert(mode), exif=exif)
        assert pixels.shape == ((48, 32, 3) if orientation > 4 else (32, 48, 3))
        assert corners(pixels) == expected


def test_colour_profiles_are_applied(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = read(tmp_path / "a.png", quarters(), icc_profile=srgb)
    assert corners(pixels) == [RED, GREEN, BLUE, WHITE]
    # the same profile with red's and green's primaries exchanged, under another name
    end = 132 + 12 * int.from_bytes(srgb[128:132], "big")
    tags = srgb[128:end].replace(b"rXYZ", b"....").replace(b"gXYZ", b"rXYZ").replace(b"....", b"gXYZ")
    other = srgb[:128] + tags + srgb[end:].replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    swapped = corners(read(tmp_path / "a.png", quarters(), icc_profile=other))
    assert np.abs(np.array(swapped) - [GREEN, RED, BLUE, WHITE]).max() <= 2
    for broken in (b"no profile", other[:200]):
        assert corners(read(tmp_path / "a.png", quarters(), icc_profile=broken)) == [RED, GREEN, BLUE, WHITE]
    grey = read(tmp_path / "a.png", Image.new("L", (16, 16), 77), icc_profile=srgb)
    assert np.abs(grey - 77).max() <= 1


def test_what_is_no_image_is_refused_in_one_line(tmp_path, monkeypatch):
    quarters().save(tmp_path / "good.png")
    data = (tmp_path / "good.png").read_bytes()
    quarters().save(tmp_path / "good.jpg")
    (tmp_path / "cut.png").write_bytes(data[: len(data) - 40])
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:700])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("cut.png", "cut.jpg"):
        refused(tmp_path / name, "is a broken image", "copy it again, or name another image")
    (tmp_path / "phone.png").write_bytes(b"\0\0\0\x24ftypheic" + bytes(99))
    refused(tmp_path / "text.png", "is not an image, or in an unknown format; name another image, or save it as PNG")
    refused(tmp_path / "empty.png", "is empty; copy it again")
    refused(tmp_path / "phone.png", "is a HEIC image, which is not read here; name another image, or save it as PNG")
    refused(tmp_path / "god.png", "there is no", "did you mean", "good.png")
    refused(tmp_path, "is a folder; name an image in it")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    refused(tmp_path / "dot.png", "has 1x1 pixels; each side needs 16 or more; name a larger image")
    assert read_image(tmp_path / "dot.png", min_side=1).shape == (3, 1, 1)
    Image.fromarray(np.zeros((16, 16), np.float32)).save(tmp_path / "floats.tif")
    refused(tmp_path / "floats.tif", "range is not known")
    monkeypatch.setattr("media.decode.MAX_PIXELS", 48 * 32 - 1)
    refused(tmp_path / "good.png", "has 48x32 pixels; the limit is 1,535; make it smaller")
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)  # of twice as many, Pillow raises an error of its own
    refused(tmp_path / "good.png", "has more than 1,535 pixels, the limit; make it smaller")


@pytest.mark.parametrize("name", ["a.png", "b.JPG", "c.jpeg", "d.webp"])
def test_images_come_back_as_they_were_written(tmp_path, name):
    x, y = np.meshgrid(np.arange(48), np.arange(32))
    values = torch.from_numpy(np.stack([60 + 3 * x, 60 + 4 * y, 200 - 2 * x])).to(torch.uint8)
    path = tmp_path / "new" / "folder" / name
    write_image(values, path)
    with Image.open(path) as image:
        assert image.format == {".png": "PNG", ".webp": "WEBP"}.get(path.suffix, "JPEG")
    difference = (read_image(path).int() - values.int()).abs()
    assert difference.max() <= {".png": 0, ".webp": 8}.get(path.suffix, 4)
    assert os.listdir(path.parent) == [name]


def test_what_cannot_be_written_gets_its_line(tmp_path, monkeypatch):
    values = torch.zeros(3, 16, 16, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"written as \.png, \.jpg, \.jpeg, \.webp; name such a file with --out"):
        write_image(values, tmp_path / "a.gif")
    with pytest.raises(UserError, match=r"WEBP is limited to 16,383 pixels per side, and the image has 16384x1"):
        write_image(torch.zeros(3, 1, 16384, dtype=torch.uint8), tmp_path / "a.webp")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot write into .*file: it is not a folder; name another place with --out"):
        write_image(values, tmp_path / "file" / "a.png")
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_image(values, tmp_path / "a.png")

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "b.png").write_bytes(b"old")
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(DiskFull, match=r"no room for .*b\.png"):
        write_image(values, tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png", "file"]


def test_a_folder_is_listed_in_natural_order(tmp_path):
    for name in ("frame10.png", "Frame9.JPG", "frame2.webp", "frame02.png", "a.tiff", "b.txt", ".c.png", "x.mp4"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    expected = ["a.tiff", "frame02.png", "frame2.webp", "Frame9.JPG", "frame10.png"]
    assert [path.name for path in list_images(tmp_path)] == expected
    with pytest.raises(UserError, match="holds no images"):
        list_images(tmp_path / "folder.png")
    with pytest.raises(UserError, match="there is no"):
        list_images(tmp_path / "none")
    with pytest.raises(UserError, match="Not a directory"):
        list_images(tmp_path / "a.tiff")


def test_names_of_results(tmp_path):
    contents = [tmp_path / "in" / name for name in ("photo.jpg", "other.v2.png")]
    styles = [Path("styles/picasso.jpg"), Path("mondrian.png")]
    assert output_paths(contents, styles[:1], tmp_path) == [
        tmp_path / "photo-picasso.png",
        tmp_path / "other.v2-picasso.png",
    ]
    assert output_paths(contents[:1], styles, "out", ".jpg") == [Path("out/photo-picasso-mondrian.jpg")]
    both = [Path("photo.jpg"), Path("photo.png"), Path("c.png")]
    names = [path.name for path in output_paths(both, styles[1:], "out")]
    assert names == ["photo.jpg-mondrian.png", "photo.png-mondrian.png", "c-mondrian.png"]
    with pytest.raises(UserError, match=r"2 images would be written to out/a\.png-mondrian\.png"):
        output_paths([Path("x/a.png"), Path("y/a.png")], styles[1:], "out")
    assert output_paths([], styles, "out") == []


def test_images_are_no_videos(tmp_path):
    quarters().save(tmp_path / "nameless", "PNG")
    (tmp_path / "text").write_text("neither")
    for name in ("nameless", "text", "a.PNG", "none"):
        assert not is_video(tmp_path / name)
    assert is_video("somewhere/film.MP4")


def test_files_with_rarer_suffixes_are_listed_too(tmp_path):
    """As browsers, cameras and `generate.py video` write them."""
    for name in ("a.jfif", "b.jpe", "c.apng", "d.m2ts", "e.ogv", "f.vob"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.jfif", "b.jpe"]
    assert len(list_images(tmp_path, videos=True)) == 6


def test_real_images(real_images):
    for folder in ("photos", "paintings"):
        for path in list_images(real_images / folder):
            with Image.open(path) as image:
                assert read_image(path).shape == (3, image.height, image.width)
