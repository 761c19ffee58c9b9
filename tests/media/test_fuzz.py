"""Damaged, odd and hostile files by the hundred: each is read, or named in one line; none hangs or ends a program."""

from __future__ import annotations

import faulthandler
import io
import itertools
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from media.check import check_dataset
from media.convert import Conversion, convert
from media.dataset import ImageDataset
from media.loader import endless_batches
from tests.scripts import TINY, mistake, script_here
from torch_utils.errors import UserError

SEED, FILES = 0, 300
SECONDS = 20  # for a file: much more than any needs
LINE = 600  # characters


def noise(rng: random.Random, mode: str, side: int = 32) -> Image.Image:
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "1": 1, "P": 1}[mode]
    pixels = np.frombuffer(rng.randbytes(side * side * channels), np.uint8).reshape(side, side, channels)
    if mode == "1":
        return Image.fromarray(pixels[:, :, 0]).convert("1")
    if mode == "P":
        return Image.fromarray(pixels.repeat(3, 2)).quantize(16)
    return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels, mode if mode == "CMYK" else None)


def whole(rng: random.Random) -> bytes:
    """An image file of some format, kind and size."""
    kind, modes = rng.choice(
        [
            ("PNG", ["L", "LA", "RGB", "RGBA", "1", "P"]),
            ("JPEG", ["L", "RGB", "CMYK"]),
            ("WEBP", ["RGB", "RGBA"]),
            ("GIF", ["L", "P"]),
            ("BMP", ["L", "RGB"]),
            ("TIFF", ["L", "LA", "RGB", "RGBA", "CMYK"]),
            ("PPM", ["L", "RGB"]),
        ]
    )
    image = noise(rng, rng.choice(modes), rng.choice([1, 16, 32, 32, 32, 33]))
    options: dict = {}
    if kind in ("PNG", "JPEG", "WEBP") and rng.random() < 0.3:
        options["icc_profile"] = rng.randbytes(rng.choice([0, 10, 500]))
    if kind in ("PNG", "JPEG", "WEBP") and rng.random() < 0.3:
        options["exif"] = rng.choice([b"Exif\0\0MM\0*\0\0\0\x08" + rng.randbytes(60), rng.randbytes(30)])
    if kind in ("PNG", "GIF", "WEBP", "TIFF") and rng.random() < 0.2:
        options |= {"save_all": True, "append_images": [noise(rng, image.mode, image.width)] * 3}
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **options)
    except (ValueError, OSError, TypeError, struct.error):  # Pillow's writer refuses what its reader may meet
        buffer = io.BytesIO()
        image.save(buffer, kind)
    return buffer.getvalue()


def cut_off(rng: random.Random) -> bytes:
    data = whole(rng)
    return data[: rng.randrange(len(data))]


def flipped_bits(rng: random.Random) -> bytes:
    data = bytearray(whole(rng))
    for _ in range(rng.choice([1, 3, 30])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def damaged_header(rng: random.Random) -> bytes:
    data = bytearray(whole(rng))
    for _ in range(4):
        data[rng.randrange(min(len(data), 64))] = rng.randrange(256)
    return bytes(data)


def spliced(rng: random.Random) -> bytes:
    a, b = whole(rng), whole(rng)
    return a[: rng.randrange(len(a))] + b[rng.randrange(len(b)) :]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, *chunks: bytes, depth: int = 8, color: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def hostile(rng: random.Random) -> bytes:
    """Files that ask for too much, contradict themselves, or are something else."""
    zeros = zlib.compress(bytes(10_000_000))
    return rng.choice(
        [
            b"",
            rng.randbytes(rng.choice([1, 10, 5000])),
            png(2**31 - 1, 2**31 - 1, zeros),
            png(60_000, 60_000, zeros),
            png(0, 32, zeros),
            png(32, 32, zeros),
            png(32, 32, b"no zlib"),
            png(32, 32, zlib.compress(b"short")),
            png(32, 32, zeros, chunk(b"iCCP", b"x\0\0" + zeros), chunk(b"zTXt", b"k\0\0" + zeros)),
            png(32, 32, zeros, chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
            png(32, 32, zlib.compress(bytes(33 * 32)), chunk(b"PLTE", b"ab"), color=3),
            png(32, 32, zeros, depth=3, color=6),
            b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0xF7, 0, 0) + rng.randbytes(100),
            b"RIFF" + struct.pack("<I", 2**31) + b"WEBPVP8X" + rng.randbytes(40),
            b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 65535) + rng.randbytes(200),
            b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\x08\0\0\0",  # directories of a TIFF in a circle
            b"P6 99999999 99999999 255\n",
            b"P5 32 32 0\n" + bytes(1024),
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\nshowpage\n",
            b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>",
            b"PK\3\4" + rng.randbytes(100),
            b"\x80\4\x95" + b"cos\nsystem\n(S'false'\ntR.",
        ]
    )


def fuzzed() -> Iterator[tuple[str, bytes]]:
    rng = random.Random(SEED)
    kinds = [whole, cut_off, flipped_bits, damaged_header, spliced, hostile]
    for number in range(FILES):
        make = kinds[number % len(kinds)]
        suffix = rng.choice([".png", ".jpg", ".jpeg", ".webp", ".PNG"])
        yield f"{rng.choice(['', 'a/', 'ñ 写/'])}{number:04d}-{make.__name__}{suffix}", make(rng)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    for name, data in fuzzed():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture(autouse=True)
def no_hang():
    """Ends the whole program with all tracebacks if a test hangs in C code, where no exception would reach."""
    faulthandler.dump_traceback_later(FILES * SECONDS / 10, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def one_line(message: str) -> bool:
    return 0 < len(message) < LINE and message.isprintable()


def test_check_names_every_file_or_takes_it(folder):
    found = check_dataset(folder)
    assert found.count + len(found.problems) == FILES and found.count > 10
    assert all(one_line(reason) for _, reason in found.problems)


def test_the_scripts_name_what_they_cannot_read_in_one_line(folder):
    assert "convert the images with: python dataset_tool.py convert" in mistake_at_the_end(
        "dataset_tool.py", "check", "--data", folder
    )
    assert str(folder) in mistake("train.py", "--data", folder, *TINY)


def mistake_at_the_end(name: str, *arguments: object) -> str:
    """The last line of a command that lists the files which it cannot use."""
    result = script_here(name, *arguments)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def test_convert_takes_or_names_every_file_and_its_data_set_is_whole(folder, tmp_path):
    done = convert(folder, tmp_path / "out.zip", Conversion(16))
    assert done.count + len(done.skipped) == FILES and done.count > FILES / 6
    assert all(one_line(reason) for _, reason in done.skipped)
    assert not check_dataset(tmp_path / "out.zip").problems
    by_kind = {kind: [name for name, _ in done.skipped if kind in name] for kind in ("whole", "hostile")}
    assert not by_kind["whole"] and len(by_kind["hostile"]) > 30


@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_meets_an_image_or_one_line(folder, tmp_path, workers):
    """Each file among good ones, by the loader that training has."""
    good = encode(noise(random.Random(1), "RGB"))
    read = 0
    for number, (name, data) in enumerate(fuzzed()):
        if workers and number % 20:
            continue  # processes take a while to start
        (place := tmp_path / f"{number}").mkdir()
        for i in range(3):
            (place / f"good{i}.png").write_bytes(good)
        (place / f"x{Path(name).name}").write_bytes(data)
        try:
            stream = endless_batches(
                ImageDataset(place), batch=4, step=0, seed=0, workers=workers, device=torch.device("cpu")
            )
            for images, _ in itertools.islice(stream, 1):
                assert images.shape == (4, 3, 32, 32) and images.dtype == torch.uint8
            read += 1
            stream.close()
        except UserError as error:
            assert one_line(error.message) and str(number).zfill(4) in error.message, error.message
    assert workers or read > 5


def encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
