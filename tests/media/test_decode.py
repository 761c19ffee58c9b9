"""media.decode: one meaning of every image file, whichever part of the program reads it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from latents.targets import find_targets, read_targets
from media import decode
from media.check import check_dataset
from media.convert import Conversion, convert
from media.crops import ImageCrops
from media.dataset import ImageDataset
from media.decode import ALL_FORMATS, decode_image, open_image
from media.files import read_image
from media.mixed import open_images
from torch_utils.errors import UserError

SIDE = 32
RED, BLUE = (200, 60, 60), (60, 60, 200)


def halves(mode: str = "RGB") -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (SIDE, SIDE), RED)
    image.paste(BLUE, (SIDE // 2, 0, SIDE, SIDE))
    return image.convert(mode)


def through_training(path: Path) -> np.ndarray:
    return ImageDataset(path.parent)[0][0].permute(1, 2, 0).numpy()


def through_conversion(path: Path) -> np.ndarray:
    out = path.parent.parent / "converted"
    convert(path.parent, out, Conversion(SIDE))
    return ImageDataset(out)[0][0].permute(1, 2, 0).numpy()


def through_stylization(path: Path) -> np.ndarray:
    return read_image(path).permute(1, 2, 0).numpy()


def through_projection(path: Path) -> np.ndarray:
    return read_targets(find_targets(path), SIDE, 3).images[0].permute(1, 2, 0).numpy()


def through_crops(path: Path) -> np.ndarray:
    return ImageCrops(path.parent, SIDE, reduced=SIDE)[0, 0].permute(1, 2, 0).numpy()


READERS = [through_conversion, through_stylization, through_projection, through_crops]
every_reader = pytest.mark.parametrize("read", [through_training, *READERS])
every_other_reader = pytest.mark.parametrize("read", READERS)  # of files that are not as data sets have to be
Read = Callable[[Path], np.ndarray]


@pytest.fixture
def place(tmp_path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def assert_halves(pixels: np.ndarray, left: tuple[int, ...] = RED, right: tuple[int, ...] = BLUE, by: int = 2) -> None:
    assert np.abs(pixels[:, :12].astype(int) - left).max() <= by
    assert np.abs(pixels[:, -12:].astype(int) - right).max() <= by


@every_reader
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_orientation_is_applied(place, read: Read, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated clockwise
    options = {".jpg": {"quality": 100, "subsampling": 0}, ".webp": {"lossless": True}}.get(suffix, {})
    halves().transpose(Image.Transpose.ROTATE_90).save(place / f"a{suffix}", exif=exif, **options)
    assert_halves(read(place / f"a{suffix}"))


def wide_gamut_profile() -> bytes:
    """The profile of a display whose primaries are those of Adobe RGB, with a gamma of 2.2."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    primaries = {b"rXYZ": (0.60974, 0.31111, 0.01947), b"gXYZ": (0.20528, 0.62567, 0.06087)}
    primaries |= {b"bXYZ": (0.14919, 0.06322, 0.74457)}
    for i in range(count):
        tag, offset, size = struct.unpack(">4sII", profile[132 + 12 * i : 144 + 12 * i])
        if tag in primaries:
            fixed = [round(value * 65536) for value in primaries[tag]]
            profile[offset : offset + 20] = b"XYZ \0\0\0\0" + struct.pack(">3i", *fixed)
        elif tag == b"desc":  # not the name of the profile that this one was made from
            profile[offset : offset + size] = bytes(profile[offset : offset + size]).replace(
                b"s\0R\0G\0B", b"w\0i\0d\0e"
            )
    return bytes(profile)


def in_adobe_primaries(srgb: tuple[int, int, int]) -> tuple[int, ...]:
    """The values of an sRGB colour with Adobe RGB's primaries and sRGB's transfer function, by the matrices of both."""
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    adobe = np.array(
        [[0.5767309, 0.1855540, 0.1881852], [0.2973769, 0.6273491, 0.0752741], [0.0270343, 0.0706872, 0.9911085]]
    )
    encoded = np.array(srgb) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    other = np.linalg.solve(adobe, to_xyz @ linear)
    return tuple(
        round(255 * float(v)) for v in np.where(other <= 0.0031308, 12.92 * other, 1.055 * other ** (1 / 2.4) - 0.055)
    )


@every_reader
@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_colour_profiles_are_converted_to_srgb(place, read: Read, suffix):
    image = Image.new("RGB", (SIDE, SIDE), in_adobe_primaries(RED))
    image.paste(in_adobe_primaries(BLUE), (SIDE // 2, 0, SIDE, SIDE))
    assert np.abs(np.subtract(in_adobe_primaries(RED), RED)).max() > 10
    options = {"lossless": True} if suffix == ".webp" else {}
    image.save(place / f"a{suffix}", icc_profile=wide_gamut_profile(), **options)
    assert_halves(read(place / f"a{suffix}"), by=3)


@every_reader
def test_srgb_profiles_and_broken_ones_change_nothing(place, read: Read):
    values = torch.randint(
        0, 256, (SIDE, SIDE, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    ).numpy()
    for profile in (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), b"broken" * 40):
        Image.fromarray(values).save(place / "a.png", icc_profile=profile)
        if read is not through_conversion or not (place.parent / "converted").exists():
            assert np.array_equal(read(place / "a.png"), values)


def png(side: int, color_type: int, bits: int, rows: np.ndarray, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG of any kind, also of those that Pillow does not write; rows are bytes [side, bytes per row]."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, bits, color_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [(b"IHDR", header), *extra, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks)


@every_other_reader
def test_16_bits_with_transparency(place, read: Read):
    """Greyscale of 16 bits with an alpha channel, and with a transparent value: in both, the right half is white."""
    grey = np.full((SIDE, SIDE), 0x8040, ">u2")
    alpha = np.full((SIDE, SIDE), 0xFFFF, ">u2")
    alpha[:, SIDE // 2 :] = 0
    with_alpha = np.stack([grey, alpha], axis=-1).astype(">u2")  # stacking gives the byte order of the machine
    with_key = grey.copy()
    with_key[:, SIDE // 2 :] = 0x1234
    for name, data in {
        "alpha": png(SIDE, 4, 16, with_alpha.view(np.uint8).reshape(SIDE, -1)),
        "key": png(SIDE, 0, 16, with_key.view(np.uint8).reshape(SIDE, -1), (b"tRNS", b"\x12\x34")),
    }.items():
        folder = place / name / "in"
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(data)
        assert_halves(read(folder / "a.png"), (128, 128, 128), (255, 255, 255))


@every_other_reader
def test_a_transparent_colour_of_16_bits(place, read: Read):
    """Pillow reads the colour with 16 bits, and the pixels with 8."""
    rows = np.full((SIDE, SIDE, 3), 0x8040, ">u2")
    rows[:, SIDE // 2 :] = (0x1234, 0x5678, 0x9ABC)
    data = png(SIDE, 2, 16, rows.view(np.uint8).reshape(SIDE, -1), (b"tRNS", bytes.fromhex("123456789abc")))
    (place / "a.png").write_bytes(data)
    assert_halves(read(place / "a.png"), (128, 128, 128), (255, 255, 255))


@pytest.mark.parametrize("bits, stored", [(16, (0x0010, 0x0020, 0x0030)), (8, (0x1110, 0x2220, 0x3330))])
def test_a_transparent_colour_has_the_digits_of_the_pixels(place, bits, stored):
    """A dark one of 16 bits, and one of 8 bits in a file that fills the higher ones, which do not count."""
    color = [value & 255 for value in stored] if bits == 8 else [0, 0, 0]  # the upper 8 of 16 bits
    rows = np.full((SIDE, SIDE, 3), 128 if bits == 8 else 0x8040, ">u1" if bits == 8 else ">u2")
    rows[:, SIDE // 2 :] = color if bits == 8 else stored
    data = png(SIDE, 2, bits, rows.view(np.uint8).reshape(SIDE, -1), (b"tRNS", struct.pack(">3H", *stored)))
    (place / "a.png").write_bytes(data)
    assert_halves(through_stylization(place / "a.png"), (128, 128, 128), (255, 255, 255))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("white", [0, 1])
def test_greyscale_of_scanners_is_no_negative(place, bits, white):
    """In TIFF, 0 may be white (WhiteIsZero), or black."""
    values = np.full((SIDE, SIDE), 2**bits - 1, f"<u{bits // 8}")
    values[:, SIDE // 2 :] = 0
    tags = [(256, SIDE), (257, SIDE), (258, bits), (259, 1), (262, white), (273, 8), (277, 1), (278, SIDE)]
    (place / "a.tif").write_bytes(tiff(values.tobytes(), tags))
    light, dark = (255, 255, 255), (0, 0, 0)
    assert_halves(through_stylization(place / "a.tif"), *((light, dark) if white else (dark, light)))


def tiff(strip: bytes, tags: list[tuple[int, int]]) -> bytes:
    """A TIFF with its pixels in one strip, which begins at byte 8."""
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (279, len(strip))])
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + struct.pack("<H", len(tags) + 1) + entries + bytes(4)


def tiff_of_12_bits() -> bytes:
    """A TIFF that packs two values of 12 bits, 4095 and 2048, into each three bytes."""
    strip = bytes([0xFF, 0xF8, 0x00]) * (SIDE * SIDE // 2)
    return tiff(strip, [(256, SIDE), (257, SIDE), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, SIDE)])


def test_12_bits_that_a_file_states(place, capsys):
    (place / "a.tif").write_bytes(tiff_of_12_bits())
    decode._noted.clear()
    pixels = read_image(place / "a.tif")
    assert pixels[:, 0, 0].tolist() == [255] * 3 and pixels[:, 0, 1].tolist() == [128] * 3
    assert capsys.readouterr().err == ""


@every_other_reader
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_12_bits_in_16_are_noticed_once(place, capsys, read: Read, suffix):
    values = np.full((SIDE, SIDE), 4095, np.uint16)
    values[:, SIDE // 2 :] = 2048
    decode._noted.clear()
    for name in ("a", "b"):
        Image.fromarray(values).save(place / f"{name}{suffix}")
    assert_halves(read(place / f"a{suffix}"), (255, 255, 255), (128, 128, 128))
    read_image(place / f"b{suffix}")
    err = capsys.readouterr().err
    assert err.count("read as 12 bits") == 1 and f"a{suffix} has 16 bits and no value over 4095" in err


def opened(image: Image.Image, kind: str = "PNG", **options) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return open_image(buffer, ALL_FORMATS)


@pytest.mark.parametrize("mode, kept", [("RGBA", "RGBA"), ("LA", "LA"), ("RGB", "RGB"), ("P", "RGBA")])
def test_transparency_is_kept_where_the_caller_asks(mode, kept):
    image = halves("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((SIDE, SIDE)))
    if mode == "P":
        source = opened(image.quantize(32), transparency=bytes(range(32)))
    else:
        source = opened(image.convert(mode))
    result = decode_image(source, "L" if mode == "LA" else "RGB", background=None)
    assert result.mode == kept
    if mode in ("RGBA", "LA"):
        assert np.array_equal(result.getchannel("A"), image.getchannel("A"))


def test_the_background_is_not_converted_with_the_image():
    image = halves("RGBA")
    image.putalpha(0)
    result = decode_image(opened(image, icc_profile=wide_gamut_profile()), "RGB", (10, 200, 30))
    assert np.array_equal(np.asarray(result), np.full((SIDE, SIDE, 3), (10, 200, 30)))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    later = [Image.new("RGB", (SIDE, SIDE), color) for color in ("white", "green")]
    image = opened(halves(), kind, save_all=True, append_images=later, **options)
    assert_halves(np.asarray(decode_image(image)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_metadata_that_is_no_exif_turns_nothing(kind):
    plain = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
    files = [io.BytesIO(), io.BytesIO()]
    plain.save(files[0], kind, lossless=True)
    plain.save(files[1], kind, lossless=True, exif=b"Exif\0\0no TIFF at all")
    a, b = (np.asarray(decode_image(open_image(file))) for file in files)
    assert np.array_equal(a, b)


@every_other_reader
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_shade_of_few_bits(place, read: Read, bits):
    """Pillow scales the pixels to 8 bits, and the shade not. Bits above those of the pixels do not count."""
    most = 2**bits - 1
    shades = np.full((SIDE, SIDE), most - 1 if bits > 1 else 0, np.uint8)
    shades[:, SIDE // 2 :] = key = most // 3 if bits > 1 else 1
    places = 8 // bits
    rows = sum(shades[:, i::places] << (8 - bits * (i + 1)) for i in range(places)).astype(np.uint8)
    grey = round(255 * int(shades[0, 0]) / most)
    for high in (0, 1 << 8):
        folder = place / str(high) / "in"
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(png(SIDE, 0, bits, rows, (b"tRNS", struct.pack(">H", key + high))))
        assert_halves(read(folder / "a.png"), (grey,) * 3, (255, 255, 255), by=0)
        transparent = decode_image(open_image(io.BytesIO((folder / "a.png").read_bytes())), "RGB", None)
        assert np.array_equal(np.asarray(transparent.getchannel("A")), np.where(shades == key, 0, 255))


def test_a_palette_that_is_missing_is_told(place):
    (place / "a.png").write_bytes(png(SIDE, 3, 8, np.zeros((SIDE, SIDE), np.uint8)))
    halves().save(place / "b.png")
    assert check_dataset(place).problems == [("a.png", "is a broken image (no palette)")]
    with pytest.raises(UserError, match=r"a\.png is a broken image \(no palette\)"):
        ImageDataset(place)
    with pytest.raises(UserError, match=r"a\.png"):
        list(open_images(place))
    assert convert(place, place.parent / "out.zip", Conversion(SIDE)).skipped == check_dataset(place).problems
