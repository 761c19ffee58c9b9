"""media.crops: crops that come from the right place, the same ones again, whatever lies among the images."""

from __future__ import annotations

import io
import itertools
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from media.crops import ImageCrops, NumberedSampler
from torch_utils.errors import UserError


def slopes(width: int, height: int) -> Image.Image:
    """Red counts columns and green rows, both from 0 to 250; blue is 100."""
    x = np.linspace(0, 250, width)[None].repeat(height, 0)
    y = np.linspace(0, 250, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([x, y, np.full_like(x, 100)], 2).round().astype(np.uint8))


def noise(i: int, width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def archive(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as out:
        for name, data in files.items():
            out.writestr(name, data)
    return path


def stream(data: ImageCrops, count: int, start: int = 0, **options) -> torch.Tensor:
    sampler = NumberedSampler(len(data), seed=3, start=start)
    loader = DataLoader(data, batch_size=1, sampler=sampler, **options)
    return torch.cat(list(itertools.islice(loader, count)))


@pytest.mark.parametrize("size", [(100, 100), (90, 160), (240, 64), (48, 32)])
def test_a_crop_is_a_part_of_the_image_with_its_shorter_side_reduced(tmp_path, size):
    image = noise(0, *size)
    data = ImageCrops(folder(tmp_path / "in", {"a.png": encoded(image)}), 16)
    scale = 32 / min(size)
    whole = np.asarray(image.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.LANCZOS))
    parts = np.lib.stride_tricks.sliding_window_view(whole.astype(int), (16, 16), (0, 1))
    places = set()
    for position in range(40):
        crop = data[position, 0]
        assert crop.dtype == torch.uint8 and crop.shape == (3, 16, 16)
        difference = np.abs(parts - crop.numpy()).max((2, 3, 4))
        assert difference.min() <= 2  # the same pixels, but for rounding in two passes
        places.add(np.unravel_index(difference.argmin(), difference.shape))
    assert len(places) > 30


def test_the_scale_of_crops_is_drawn_evenly_in_its_logarithm(tmp_path):
    """The slope of the pixels says the scale: 250 over the image's width, which has `reduced` = 64 · factor pixels."""
    place = folder(tmp_path / "in", {"a.png": encoded(slopes(260, 260))})
    data = ImageCrops(place, 32, scales=2, reduced=64)
    slope = [(crop[0, :, 24:].float().mean() - crop[0, :, :8].float().mean()) / 24 for crop in stream(data, 200)]
    factors = np.sort(np.log2(250 / np.array(slope) / 64))
    assert factors[0] > -1.1 and factors[-1] < 1.1
    assert np.abs(factors - np.linspace(-1, 1, 200)).max() < 0.23 + 0.05  # Kolmogorov's distance · 2, and rounding
    fixed = stream(ImageCrops(place, 32, reduced=64), 20)
    assert torch.equal(fixed, stream(ImageCrops(place, 32, reduced=64, scales=1), 20))
    whole = ImageCrops(place, 32, scales=4, reduced=32)  # a crop is never larger than the image
    smallest = min((c[0, :, 24:].float().mean() - c[0, :, :8].float().mean()).item() / 24 for c in stream(whole, 40))
    assert smallest > 250 / (4.2 * 32) and torch.equal(stream(whole, 9, start=11), stream(whole, 20)[11:])
    with pytest.raises(ValueError, match=r"scales: expected a number from 1, got 0\.5"):
        ImageCrops(place, 32, scales=0.5)


def test_crops_come_from_everywhere_alike(tmp_path):
    data = ImageCrops(folder(tmp_path / "in", {"a.png": encoded(slopes(200, 100))}), 32)
    centers = (
        np.array([data[position, 0][:2, 15:17, 15:17].float().mean((1, 2)).numpy() for position in range(600)]) / 250
    )
    # along the longer side centers lie at 0.125..0.875, along the shorter at 0.25..0.75, evenly
    for axis, (low, high) in enumerate([(0.125, 0.875), (0.25, 0.75)]):
        found = np.sort(centers[:, axis])
        assert low - 0.02 < found[0] < low + 0.05 and high - 0.05 < found[-1] < high + 0.02
        # 1.63 / √600: what Kolmogorov's distance exceeds in one case of a hundred
        assert np.abs(found - np.linspace(low, high, 600)).max() < 0.067 * (high - low) + 0.01
    assert abs(np.corrcoef(centers.T)[0, 1]) < 0.15


def test_a_stream_goes_on_where_it_stopped(tmp_path):
    files = {f"{i}.png": encoded(noise(i)) for i in range(5)} | {"bad.png": b"no image"}
    whole = stream(ImageCrops(folder(tmp_path / "in", files), 8, seed=1), 30)
    assert torch.equal(stream(ImageCrops(tmp_path / "in", 8, seed=1), 30), whole)
    assert torch.equal(stream(ImageCrops(tmp_path / "in", 8, seed=1), 12, start=18), whole[18:])
    assert torch.equal(stream(ImageCrops(tmp_path / "in", 8, seed=1), 30, num_workers=2), whole)
    assert torch.equal(stream(ImageCrops(archive(tmp_path / "in.zip", files), 8, seed=1), 30), whole)
    assert not torch.equal(stream(ImageCrops(tmp_path / "in", 8, seed=2), 30), whole)
    assert len({crop.numpy().tobytes() for crop in whole}) > 24  # an image's next crop is another one


def test_processes_share_a_stream():
    whole = list(itertools.islice(NumberedSampler(7, seed=2, start=5), 20))
    assert [position for position, _ in whole] == list(range(5, 25))
    for rank in (0, 1):
        part = NumberedSampler(7, seed=2, start=5, rank=rank, world_size=2)
        assert list(itertools.islice(part, 10)) == whole[rank::2]


@pytest.mark.parametrize("context", [None, "fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_what_cannot_be_used_is_left_out_and_named(tmp_path, context):
    good = encoded(noise(1))
    files = {
        "cut.png": good[: len(good) // 2], "text.jpg": b"text", "empty.webp": b"", "good.png": good, "tiny.png":
        encoded(noise(0, 300, 1)), "notes.txt": b"none", ".hidden.png": b"none", "dataset.json": json.dumps(0).encode(),
    }  # fmt: skip
    data = ImageCrops(folder(tmp_path / "in", files), 8)
    only = ImageCrops(folder(tmp_path / "only", {"good.png": good}), 8)
    allowed = {only[p, 0].numpy().tobytes() for p in range(2)}
    assert len(data) == 5 and data.unusable == []
    crops = stream(data, 20, num_workers=1 if context else 0, multiprocessing_context=context)
    assert len(crops) == 20 and allowed
    assert data.unusable == ["cut.png", "empty.webp", "text.jpg", "tiny.png"]


def test_where_nothing_can_be_used_one_line_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr("media.crops.MAX_ATTEMPTS", 50)
    data = ImageCrops(folder(tmp_path / "in", {"a.png": b"none", "b.png": b""}), 8)
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"^of the 2 images in .* none can be used.*; name another") as error:
            stream(data, 1, num_workers=workers)
        assert "\n" not in error.value.message
    for path, message in [
        (tmp_path / "on", "there is no"),
        (folder(tmp_path / "e", {"a.txt": b""}), "holds no images"),
    ]:
        with pytest.raises(UserError, match=message):
            ImageCrops(path)


def test_bombs_are_not_unpacked(tmp_path, monkeypatch):
    long = encoded(Image.new("L", (60_000, 32)))  # 15 times as many pixels when its shorter side has 128
    data = ImageCrops(folder(tmp_path / "in", {"a.png": long}), 64)
    assert data[0, 0].shape == (3, 64, 64)
    with pytest.raises(UserError, match="harmful"):
        ImageCrops(archive(tmp_path / "a.zip", {"a.png": bytes(10_000_000)}, zipfile.ZIP_DEFLATED))
    monkeypatch.setattr("media.decode.MAX_PIXELS", 60_000 * 32 - 1)
    with pytest.raises(UserError, match=r"a\.png has 60000x32 pixels; the limit is"):
        ImageCrops(tmp_path / "in", 64)[0, 0]
    inside = ImageCrops(archive(tmp_path / "b.zip", {"../../a.png": b"", "/b.png": encoded(noise(0))}), 8)
    assert inside[0, 0].shape == (3, 8, 8)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "b.zip", "in"]


def test_all_kinds_of_images(tmp_path):
    image = slopes(64, 64)
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned clockwise
    grey = Image.fromarray(np.full((64, 64), 0x8080, np.uint16))
    data = ImageCrops(
        folder(tmp_path / "in", {
            "a.jpg": encoded(image.rotate(90), "JPEG", quality=98, exif=exif),
            "b.jpg": encoded(image.convert("CMYK"), "JPEG"), "c.png": encoded(grey),
            "d.webp": encoded(image, "WEBP", lossless=True),
            "e.gif": encoded(image.convert("P"), "GIF"), "f.png": encoded(Image.new("RGBA", (64, 64), (0, 0, 0, 0))),
        }),
        32, reduced=32,
    )  # fmt: skip
    expected = torch.from_numpy(np.asarray(slopes(32, 32)).astype(int)).permute(2, 0, 1)
    for number, wanted in enumerate([expected, expected, 128, expected, expected, 255]):
        tolerance = 30 if number == 4 else 8  # the palette
        assert (data[0, number].int() - wanted).abs().max() <= tolerance
    large = ImageCrops(
        folder(tmp_path / "large", {"a.jpg": encoded(slopes(1024, 1024), "JPEG", quality=98)}), 32, reduced=32
    )
    assert (large[0, 0].int() - expected).abs().max() <= 6


def test_real_paintings(real_images):
    data = ImageCrops(real_images / "paintings", 64)
    crops = stream(data, 20)
    assert data.unusable == [] and crops.float().std((1, 2, 3)).min() > 3
