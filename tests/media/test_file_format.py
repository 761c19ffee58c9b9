"""The files of a data set: what is written is read with the channels that it had."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from media.check import check_dataset
from media.convert import Conversion, convert
from media.dataset import ImageDataset
from media.file_format import FileFormat
from torch_utils.errors import UserError


def plane(found) -> np.ndarray:
    """A plane of a frame as it was decoded; FFmpeg's conversion to RGBA garbles the last pixels of odd rows."""
    return np.frombuffer(found, np.uint8).reshape(found.height, found.line_size)[:, : found.width]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("quality", [1, 50, 75, 80, 90, 95, 100])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_noise_can_be_stored_as_jpeg(mode, quality, capfd):
    """It is the largest JPEG of its size, and larger than the buffer in which Pillow optimizes one."""
    image = Image.fromarray(noise(256, 256, 3)).convert(mode)
    with Image.open(io.BytesIO(FileFormat("jpeg", quality).encode(image))) as read:
        assert (read.format, read.mode, read.size) == ("JPEG", mode, (256, 256))
        error = np.abs(np.asarray(read).astype(int) - np.asarray(image)).mean()
    assert error < 80 - 0.75 * quality
    assert capfd.readouterr() == ("", "")  # neither does libjpeg complain of the buffer


def test_a_jpeg_that_just_fits_is_optimized():
    """Images of more and more noise, whose JPEGs are about as large as the buffer."""
    rng = np.random.default_rng(0)
    smaller = []
    for share in np.linspace(0, 0.5, 40):
        image = Image.fromarray(np.where(rng.random((256, 256, 1)) < share, noise(256, 256, 3), np.uint8(128)))
        plain = io.BytesIO()
        image.save(plain, "JPEG", quality=80, subsampling=0)
        smaller.append(len(FileFormat("jpeg", 80).encode(image)) < len(plain.getvalue()))
    assert smaller == sorted(smaller, reverse=True) and 5 < sum(smaller) < 35  # first smaller, then as large


@pytest.mark.parametrize("quality", [None, 1, 80, 100])
@pytest.mark.parametrize("size", [(1, 1), (33, 18), (64, 64), (300, 20)], ids=str)
def test_an_opaque_webp_says_that_it_has_an_alpha_channel(size, quality):
    """Its colours are those of the file that libwebp writes, and FFmpeg, which has a decoder of its own, agrees."""
    image = Image.fromarray(noise(size[1], size[0], 3)).convert("RGBA")
    stored = FileFormat("webp", quality)
    data, plain = stored.encode(image), io.BytesIO(stored.encode(image.convert("RGB")))
    assert len(data) % 2 == 0 and int.from_bytes(data[4:8], "little") == len(data) - 8 <= len(plain.getvalue()) + 64
    with Image.open(io.BytesIO(data)) as read, Image.open(plain) as expected:
        assert (read.mode, expected.mode, read.size) == ("RGBA", "RGB", size)
        assert np.array_equal(np.asarray(read), np.asarray(expected.convert("RGBA")))
    av = pytest.importorskip("av")
    with av.open(io.BytesIO(data), format="webp_pipe") as container:
        (frame,) = container.decode(video=0)
        assert frame.format.name in ("argb", "yuva420p")
        alpha = frame.to_ndarray()[..., 0] if quality is None else plane(frame.planes[3])
        assert bool((alpha == 255).all())


@pytest.mark.parametrize("quality", [None, 80])
def test_a_transparent_webp_is_left_as_it_is(quality):
    image = Image.fromarray(noise(32, 32, 4))
    expected = io.BytesIO()
    image.save(expected, "WEBP", **({"lossless": True} if quality is None else {"quality": quality}))
    assert FileFormat("webp", quality).encode(image) == expected.getvalue()


@pytest.mark.parametrize("shard_bytes", [None, 100_000], ids=["folder", "shards"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    "stored", [FileFormat(), FileFormat("jpeg"), FileFormat("webp"), FileFormat("webp", 80)], ids=str
)
def test_a_data_set_has_the_channels_that_were_asked_for(tmp_path, stored, channels, shard_bytes):
    """Of greyscale, opaque and transparent images; or the format is refused with one that can be taken."""
    (tmp_path / "in").mkdir()
    images = {"grey": noise(16, 16), "opaque": noise(16, 16, 3), "transparent": noise(16, 16, 4)}
    for name, pixels in images.items():
        Image.fromarray(pixels).save(tmp_path / "in" / f"{name}.png")
    Image.fromarray(noise(16, 16, 3)).convert("RGBA").save(tmp_path / "in" / "opaque with alpha.png")
    out, how = tmp_path / "out", Conversion(16, channels)
    options = {"stored": stored, "shard_bytes": shard_bytes}
    if (stored.name, channels) in (("jpeg", 4), ("webp", 1)):
        with pytest.raises(UserError, match=rf"--format {stored.name} has no .*; take --format (\w+) or png with"):
            convert(tmp_path / "in", out, how, **options)
        stored = FileFormat({4: "webp", 1: "jpeg"}[channels])  # as the message says
    convert(tmp_path / "in", out, how, **options | {"stored": stored})
    path = out if shard_bytes is None else f"{out}/*.tar"
    assert not check_dataset(path).problems
    data = ImageDataset(path)
    assert data.channels == channels and [pixels.shape for pixels, _ in data] == [(channels, 16, 16)] * 4
