import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from media.check import check_dataset
from media.convert import FILTERS, Conversion, convert, write_dataset
from media.dataset import ImageDataset
from media.decode import Unusable, open_image
from media.file_format import FileFormat
from tests.media.converting import convert_image
from torch_utils.errors import UserError

DATA = Path(__file__).parents[2].parent / "shared" / "data"
KEEP = Conversion(16, crop="none", filter="box")  # does nothing to the pixels of a 16x16 image
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def file_of(image: Image.Image, kind: str = "PNG", **options) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    buffer.seek(0)
    return buffer


def through(image: Image.Image, kind: str = "PNG", how: Conversion = KEEP, **options) -> np.ndarray:
    """The pixels [H, W, C] of an image that was written as a file and converted."""
    file = file_of(image, kind, **options)
    return np.asarray(convert_image(open_image(file, (kind,)), how)).astype(int)


def solid(color, mode: str = "RGB", size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.new(mode, size, color)


def quarters() -> Image.Image:
    """Red and green above, blue and white below."""
    image = solid(RED)
    for color, corner in ((GREEN, (8, 0)), (BLUE, (0, 8)), (WHITE, (8, 8))):
        image.paste(color, (*corner, corner[0] + 8, corner[1] + 8))
    return image


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(pixels[y, x]) for y, x in ((2, 2), (2, 13), (13, 2), (13, 13))]


def save(folder: Path, name: str, image: Image.Image) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    image.save(folder / name)


def test_rgb_and_greyscale_are_kept():
    assert np.array_equal(through(quarters()), np.asarray(quarters()))
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    expected = np.arange(256).reshape(16, 16)
    assert np.array_equal(through(grey), np.stack([expected] * 3, axis=2))
    assert np.array_equal(through(grey, how=Conversion(16, channels=1)), expected)
    assert through(solid(GREEN), how=Conversion(16, channels=1))[0, 0] == 150  # 0.587 * 255


@pytest.mark.parametrize("background, expected", [
    ((255, 255, 255), (127, 127, 255)), ((0, 0, 0), (0, 0, 128)), ((255, 0, 0), (127, 0, 128)),
])  # fmt: skip
def test_transparency_is_laid_on_the_background(background, expected):
    how = Conversion(16, background=background)
    image = solid((0, 0, 255, 128), "RGBA")
    image.paste((9, 9, 9, 0), (8, 0, 16, 16))
    for kind in ("PNG", "TIFF"):
        pixels = through(image, kind, how)
        assert np.abs(pixels[:, :8] - expected).max() <= 1
        assert np.array_equal(pixels[0, 15], background)  # not the colour that a transparent pixel has
    grey = through(solid((0, 128), "LA"), how=how)
    assert np.abs(grey[0, 0] - np.array(background) * 127 / 255).max() <= 1


def test_edges_of_what_is_transparent_have_no_halo():
    # Blended first and resized after: between red and white there is only light red, whatever was hidden.
    image = solid((0, 0, 0, 0), "RGBA", (64, 64))
    image.paste((255, 0, 0, 255), (0, 0, 30, 64))
    pixels = through(image, how=Conversion(16))
    assert pixels[..., 0].min() >= 254


def test_palettes():
    image = quarters().convert("P", palette=Image.Palette.ADAPTIVE)
    assert corners(through(image)) == [RED, GREEN, BLUE, WHITE]
    assert corners(through(image, "GIF")) == [RED, GREEN, BLUE, WHITE]
    green = image.getpixel((13, 2))
    for kind in ("PNG", "GIF"):
        pixels = through(image, kind, Conversion(16, background=(9, 8, 7)), transparency=green)
        assert corners(pixels) == [RED, (9, 8, 7), BLUE, WHITE]
    alpha = bytes(128 if index == green else 255 for index in range(256))
    assert corners(through(image, transparency=alpha))[1] == (127, 255, 127)


def test_a_transparent_colour():
    info = {"transparency": GREEN}
    assert corners(through(quarters(), how=Conversion(16, background=(9, 8, 7)), **info))[1] == (9, 8, 7)


def test_cmyk():
    pixels = through(solid((0, 255, 255, 0), "CMYK"), "TIFF")
    assert np.array_equal(pixels[0, 0], RED)
    pixels = through(solid((255, 0, 0, 51), "CMYK"), "JPEG", quality=100)
    assert np.abs(pixels[0, 0] - (0, 204, 204)).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_and_not_clipped(kind):
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    pixels = through(Image.fromarray(values), kind)
    assert np.array_equal(pixels[..., 0], np.arange(256).reshape(16, 16))


def test_numbers_without_a_range_are_refused():
    for dtype in (np.int32, np.float32):
        with pytest.raises(Unusable, match="range is not known"):
            through(Image.fromarray(np.zeros((16, 16), dtype)), "TIFF")


def test_one_bit():
    image = solid(0, "1")
    image.paste(1, (8, 0, 16, 16))
    assert corners(through(image)) == [(0, 0, 0), WHITE, (0, 0, 0), WHITE]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation, expected", [
    (1, [RED, GREEN, BLUE, WHITE]), (2, [GREEN, RED, WHITE, BLUE]), (3, [WHITE, BLUE, GREEN, RED]),
    (6, [BLUE, RED, WHITE, GREEN]), (8, [GREEN, WHITE, RED, BLUE]),
])  # fmt: skip
def test_orientation(kind, orientation, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    found = corners(through(quarters(), kind, exif=exif, **options))
    assert np.abs(np.subtract(found, expected)).max() <= 3


def test_broken_metadata_makes_one_image_unusable_at_most():
    file = file_of(quarters(), "JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff", quality=100)
    assert convert_image(open_image(file), KEEP).size == (16, 16)


def test_the_first_frame():
    frames = [solid(color) for color in (RED, GREEN, BLUE)]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        pixels = through(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert corners(pixels) == [RED] * 4, kind


def test_crop_and_resize():
    wide = solid(GREEN, size=(64, 32))
    wide.paste(RED, (0, 0, 16, 32))
    wide.paste(BLUE, (48, 0, 64, 32))
    for image in (wide, wide.transpose(Image.Transpose.TRANSPOSE)):
        for name in FILTERS:
            pixels = through(image, how=Conversion(16, filter=name))
            assert np.array_equal(pixels, np.full((16, 16, 3), GREEN))
        with pytest.raises(Unusable, match=f"is {image.width}x{image.height}, not square"):
            through(image, how=Conversion(16, crop="none"))
    line = solid(0, "L", (32, 32))
    line.paste(255, (16, 0, 18, 32))
    rows = {"box": [0, 0, 255, 0, 0], "bilinear": [0, 32, 191, 32, 0],
            "bicubic": [0, 20, 221, 20, 0], "lanczos": [0, 18, 228, 18, 0]}  # fmt: skip
    for name, row in rows.items():
        assert through(line, how=Conversion(16, filter=name))[0, 6:11, 0].tolist() == row
    assert through(quarters(), how=Conversion(32)).shape == (32, 32, 3)


def test_crop_to_another_shape_takes_the_middle():
    """Of one scale in both directions: a picture of stripes 8 pixels apart, cropped to 96 × 64 and to 64 × 96."""
    x, y = np.meshgrid(np.arange(160), np.arange(160))
    stripes = Image.fromarray((np.stack([x // 8, y // 8, 0 * x], axis=-1) * 10).astype(np.uint8))
    wide = through(stripes.crop((0, 0, 160, 128)), how=Conversion((80, 32), filter="box"))
    assert wide.shape == (32, 80, 3)
    assert np.array_equal(wide[0, :, 0], np.arange(160)[::2] // 8 * 10)
    assert np.array_equal(wide[:, 0, 1], np.arange(32, 96)[::2] // 8 * 10)
    high = through(stripes.crop((0, 0, 128, 160)), how=Conversion((32, 80), filter="box"))
    assert np.array_equal(high, wide.transpose(1, 0, 2)[:, :, [1, 0, 2]])


def test_pad_shows_all_of_an_image_in_a_frame():
    for size, place in (((64, 32), np.s_[16:48, :]), ((32, 64), np.s_[:, 32:64])):
        pixels = through(solid(GREEN, size=size), how=Conversion((96, 64) if size[1] == 64 else 64, crop="pad"))
        assert np.array_equal(pixels[place], np.full_like(pixels[place], GREEN))
        assert (pixels == WHITE).all(axis=2).sum() == pixels.shape[0] * pixels.shape[1] - 64 * 32
    for size, line in (((1, 3000), np.s_[:, 31]), ((3000, 1), np.s_[31, :])):  # of one pixel, not of none
        green = (through(solid(GREEN, size=size), how=Conversion(64, crop="pad")) == GREEN).all(axis=2)
        assert green.sum() == 64 and green[line].all()
    grey = through(solid(GREEN, size=(64, 32)), how=Conversion(64, 1, crop="pad", background=RED))
    assert grey.shape == (64, 64) and sorted(set(grey.flatten().tolist())) == [76, 150]  # luma of red and green


def test_only_images_of_the_shape_are_taken_without_a_crop():
    keep = Conversion((96, 64), crop="none")
    assert through(solid(GREEN, size=(192, 128)), how=keep).shape == (64, 96, 3)
    with pytest.raises(Unusable, match=r"is 192x129, not of the shape of 96x64 .--crop center would crop it"):
        through(solid(GREEN, size=(192, 129)), how=keep)


def test_nothing_but_pixels_is_written(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "somebody")
    (tmp_path / "in").mkdir()
    quarters().save(tmp_path / "in" / "a.png", pnginfo=text, icc_profile=b"profile" * 40, dpi=(72, 72))
    convert(tmp_path / "in", tmp_path / "out", KEEP)
    data = (tmp_path / "out/00000/img00000000.png").read_bytes()
    assert b"IDAT" in data
    assert not any(chunk in data for chunk in (b"iCCP", b"tEXt", b"pHYs", b"eXIf"))


def test_a_folder_in_the_source_is_refused(tmp_path):
    """The next conversion would take the results for images of the source. An archive there is none of them."""
    quarters().save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"out is a folder in .*, whose images are read; name another place with --out"):
        convert(tmp_path, tmp_path / "parts" / "out", KEEP)
    assert convert(tmp_path, tmp_path / "out.zip", KEEP).count == 1


def test_the_archive(tmp_path):
    for i, color in enumerate((RED, GREEN, BLUE)):
        save(tmp_path / "in", f"{3 - i}.png", solid(color, size=(40, 30)))
    done = [convert(tmp_path / "in", tmp_path / name, Conversion(16)) for name in ("a.zip", "b.zip", "new/c")]
    assert done[0].count == 3 and done[0].skipped == [] and done[0].enlarged == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == [f"00000/img0000000{i}.png" for i in range(3)] + ["dataset.json"]
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {member.date_time[:3] for member in archive.infolist()} == {(1980, 1, 1)}
        assert json.loads(archive.read("dataset.json")) == {"labels": None}
        for name in archive.namelist():
            assert (tmp_path / "new/c" / name).read_bytes() == archive.read(name)
    data = ImageDataset(tmp_path / "a.zip")
    assert [tuple(image[:, 8, 8].tolist()) for image, _ in data] == [BLUE, GREEN, RED]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "b.zip", "in", "new"]
    assert len({path.name for path in (tmp_path / "new").iterdir()}) == 1


def test_the_format_of_the_files(tmp_path):
    """Lossless formats keep every pixel; lossy ones are the smaller the lower their quality, and come near."""
    noise = np.random.default_rng(0).normal(128, 12, (64, 64, 3)).clip(0, 255).astype(np.uint8)
    save(tmp_path / "in", "a.png", Image.fromarray(noise))
    sizes, errors = {}, {}
    for name, quality, kind in (
        ("png", None, "PNG"), ("webp", None, "WEBP"), ("webp", 90, "WEBP"), ("webp", 40, "WEBP"),
        ("jpeg", None, "JPEG"), ("jpeg", 95, "JPEG"), ("jpeg", 40, "JPEG"),
    ):  # fmt: skip
        out = tmp_path / f"{name}-{quality}"
        convert(tmp_path / "in", out, Conversion(64), stored=FileFormat(name, quality))
        (file,) = out.glob("00000/*")
        with Image.open(file) as image:
            assert image.format == kind and file.suffix == {"JPEG": ".jpg"}.get(kind, f".{name}")
        data = ImageDataset(out)
        assert data.names == [f"00000/{file.name}"]
        pixels = data[0][0].permute(1, 2, 0).numpy().astype(int)
        sizes[name, quality], errors[name, quality] = file.stat().st_size, np.abs(pixels - noise).mean()
    assert errors["png", None] == errors["webp", None] == 0
    assert sizes["jpeg", 40] < sizes["jpeg", 95] == sizes["jpeg", None] < sizes["png", None]
    assert sizes["webp", 40] < sizes["webp", 90] < sizes["webp", None] < sizes["png", None]
    assert 0 < errors["jpeg", 95] < 4 < errors["jpeg", 40] and 0 < errors["webp", 90] < errors["webp", 40]
    with pytest.raises(UserError, match="PNG is lossless, leave --quality out"):
        FileFormat("png", 90)


def test_jpegs_keep_the_resolution_of_colours(tmp_path):
    """Red and blue rows of one pixel of one brightness: with halved colours they would be of one colour."""
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[::2], stripes[1::2] = (150, 0, 0), (0, 51, 130)
    save(tmp_path / "in", "a.png", Image.fromarray(stripes))
    convert(tmp_path / "in", tmp_path / "out", Conversion(32), stored=FileFormat("jpeg"))
    pixels = ImageDataset(tmp_path / "out")[0][0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(pixels - stripes).mean() < 10


def test_more_than_a_thousand(tmp_path):
    assert write_dataset(tmp_path / "a.zip", ((solid(i % 256, "L"), None) for i in range(1002))) == 1002
    names = ImageDataset(tmp_path / "a.zip").names
    assert names[999:1001] == ["00000/img00000999.png", "00001/img00001000.png"]


def test_labels_from_json(tmp_path):
    write_dataset(tmp_path / "a.zip", [(solid((i, 0, 0)), 4 - i) for i in range(4)])
    for labels, expected in (("auto", [4, 3, 2, 1]), ("json", [4, 3, 2, 1]), ("none", None)):
        convert(tmp_path / "a.zip", tmp_path / "b.zip", KEEP, labels=labels, overwrite=True)
        found = check_dataset(tmp_path / "b.zip")
        assert found.problems == [] and found.classes == (expected and dict.fromkeys(sorted(expected), 1))
    assert convert(tmp_path / "a.zip", tmp_path / "c", KEEP, limit=2).count == 2
    (tmp_path / "c/dataset.json").write_text('{"labels": [["00000/img00000001.png", 7]]}')
    done = convert(tmp_path / "c", tmp_path / "d.zip", KEEP)
    assert done.count == 1 and done.skipped == [("00000/img00000000.png", "has no label in dataset.json")]
    convert(tmp_path / "a.zip", tmp_path / "e", KEEP, labels="none")
    with pytest.raises(UserError, match=r"has no dataset\.json with labels"):
        convert(tmp_path / "e", tmp_path / "f.zip", KEEP, labels="json")


@pytest.mark.parametrize("out", ["a.zip", "x/../a.zip", "link.zip"])
def test_the_originals_are_not_replaced(tmp_path, out):
    write_dataset(tmp_path / "a.zip", [(solid(RED, size=(32, 32)), 0), (solid(BLUE, size=(32, 32)), 1)])
    (tmp_path / "x").mkdir()
    (tmp_path / "link.zip").symlink_to("a.zip")
    before = (tmp_path / "a.zip").read_bytes()
    for source in ("a.zip", "link.zip"):
        with pytest.raises(UserError, match=r"is what is converted, and stays as it is; name another place with --out"):
            convert(tmp_path / source, tmp_path / out, Conversion(16), overwrite=True)
    assert (tmp_path / "a.zip").read_bytes() == before and (tmp_path / "link.zip").is_symlink()


@pytest.mark.parametrize("there", [b"before", None], ids=["a file", "nothing"])
def test_a_link_to_an_archive_stays_one(tmp_path, there):
    """As to another disk: the archive is written there, and nothing beside the link."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "here").mkdir()
    if there:
        (tmp_path / "disk" / "big.zip").write_bytes(there)
    (link := tmp_path / "here" / "a.zip").symlink_to("../disk/big.zip")

    def images():
        yield solid(RED), None
        assert [path.name for path in (tmp_path / "here").iterdir()] == ["a.zip"]

    assert write_dataset(link, images(), overwrite=there is not None) == 1
    assert link.is_symlink() and [path.name for path in (tmp_path / "disk").iterdir()] == ["big.zip"]
    assert len(ImageDataset(tmp_path / "disk" / "big.zip")) == 1


@pytest.mark.parametrize("out", ["loop", "loop.zip", "loop/x", "loop/x.zip", "first/x.zip"])
@pytest.mark.parametrize("shard_bytes", [None, 10_000])
def test_links_in_a_circle_are_one_line(tmp_path, out, shard_bytes):
    save(tmp_path / "in", "a.png", solid(RED))
    for name, to in (("loop", "loop"), ("loop.zip", "loop.zip"), ("first", "second"), ("second", "first")):
        (tmp_path / name).symlink_to(to)
    before = sorted(path.name for path in tmp_path.iterdir())
    for call in (
        lambda: convert(tmp_path / "in", tmp_path / out, KEEP, shard_bytes=shard_bytes, overwrite=True),
        lambda: write_dataset(tmp_path / out, [(solid(RED), 0)], shard_bytes=shard_bytes, overwrite=True),
    ):
        with pytest.raises(UserError, match=rf"{out} is a link that leads to itself, or lies behind one; name another"):
            call()
    with pytest.raises(UserError, match="loop"):
        convert(tmp_path / "loop", tmp_path / "new", KEEP)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("out", ["a.zip", "a", "tars"])
def test_what_appears_during_the_work_is_not_replaced(tmp_path, monkeypatch, out, links):
    """Also where the file system has no links."""

    def images():
        yield solid(RED), None
        if out == "a.zip":
            (tmp_path / out).write_bytes(b"another")
        else:
            save(tmp_path / out, "another.png", solid(RED))

    if not links:
        monkeypatch.setattr("os.link", lambda *_: Path("/dev/null/x").write_bytes(b""))
    with pytest.raises(UserError, match="name another") as error:
        write_dataset(tmp_path / out, images(), shard_bytes=10_000 if out == "tars" else None)
    assert str(tmp_path / out) in error.value.message
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in found] == ["a.zip" if out == "a.zip" else "another.png"]


def test_without_links_an_archive_is_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("os.link", lambda *_: Path("/dev/null/x").write_bytes(b""))
    assert write_dataset(tmp_path / "a.zip", [(solid(RED), None)]) == len(ImageDataset(tmp_path / "a.zip")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_unusable_files_are_skipped_and_named(tmp_path):
    save(tmp_path / "in", "good.png", solid(RED))
    save(tmp_path / "in", "wide.png", solid(RED, size=(32, 16)))
    save(tmp_path / "in", "small.png", quarters().resize((8, 8)))
    (tmp_path / "in/notes.txt").write_text("text")
    (tmp_path / "in/cut.png").write_bytes((tmp_path / "in/wide.png").read_bytes()[:-30])
    (tmp_path / "in/empty.jpg").touch()
    done = convert(tmp_path / "in", tmp_path / "out.zip", KEEP)
    assert (done.count, done.enlarged) == (2, 1)
    assert [name for name, _ in done.skipped] == ["cut.png", "empty.jpg", "notes.txt", "wide.png"]
    (tmp_path / "in/good.png").unlink()
    (tmp_path / "in/small.png").unlink()
    with pytest.raises(UserError, match=r"of the 4 files in .* none can be used: cut\.png is a broken image"):
        convert(tmp_path / "in", tmp_path / "none.zip", KEEP)
    assert not (tmp_path / "none.zip").exists()


def test_places_that_cannot_be_written(tmp_path):
    save(tmp_path / "in", "a.png", solid(RED))
    (tmp_path / "file").touch()
    (tmp_path / "dir.zip").mkdir()
    (tmp_path / "empty").mkdir()
    for out in ("file/out.zip", "file", "dir.zip", "in"):
        with pytest.raises(UserError, match="--out") as error:
            convert(tmp_path / "in", tmp_path / out, KEEP)
        assert "\n" not in error.value.message and str(tmp_path / out) in error.value.message
    convert(tmp_path / "in", tmp_path / "empty", KEEP)
    assert len(ImageDataset(tmp_path / "empty")) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dir.zip", "empty", "file", "in"]


def test_an_interrupted_conversion_leaves_what_was_there(tmp_path):
    def images():
        yield solid(RED), None
        raise KeyboardInterrupt

    (tmp_path / "a.zip").write_bytes(b"before")
    for out in ("a.zip", "b"):
        with pytest.raises(KeyboardInterrupt):
            write_dataset(tmp_path / out, images(), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
    assert (tmp_path / "a.zip").read_bytes() == b"before"


def test_half_of_the_labels_is_a_bug(tmp_path):
    with pytest.raises(ValueError):
        write_dataset(tmp_path / "a.zip", [(solid(RED), 1), (solid(RED), None)])


def test_a_real_set_with_transparency(tmp_path):
    if not (path := DATA / "emoji64-rgba.zip").exists():
        pytest.skip("needs the emoji archive in shared/data beside the repository")
    for background, corner in ((WHITE, 255), ((160, 160, 160), 160)):
        done = convert(path, tmp_path / "out.zip", Conversion(32, background=background), limit=60, overwrite=True)
        assert done.count == 60 and done.skipped == []
        data = ImageDataset(tmp_path / "out.zip")
        assert (data.resolution, data.channels) == (32, 3)
        at_corner = [int(image[0, 0, 0]) for image, _ in data]
        assert sum(value == corner for value in at_corner) > 40  # few emoji reach into the corner
    assert ImageDataset(path).channels == 4
