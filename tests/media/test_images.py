"""media.images: bytes and floats, grids, PNG files."""

import os
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from media.images import grid, save_png, to_float, to_uint8, write_pngs


def test_bytes_and_floats_are_inverse():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    floats = to_float(values)
    assert floats.dtype == torch.float32
    assert float(floats.min()) == -1 and float(floats.max()) == 1
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(to_uint8(floats.to(dtype)), values)


def test_known_bytes():
    values = torch.tensor([-5.0, -1.0, 0.0, 1.0, 1.01, 5.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5])
    assert to_uint8(values).tolist() == [0, 0, 128, 255, 255, 255, 0, 1]
    assert to_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([-1, -0.6, 1])


def test_grid_layout():
    images = torch.stack([torch.full([1, 2, 3], i, dtype=torch.uint8) for i in range(5)])
    images[3, 0, 1, 2] = 99
    expected = [
        [0, 0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1, 1],
        [2, 2, 2, 3, 3, 3],
        [2, 2, 2, 3, 3, 99],
        [4, 4, 4, 255, 255, 255],
        [4, 4, 4, 255, 255, 255],
    ]
    assert grid(images, 2).tolist() == [expected]


def test_grid_keeps_the_channels_apart():
    torch.manual_seed(0)
    images = torch.randint(0, 256, [4, 3, 2, 5], dtype=torch.uint8)
    sheet = grid(images, 2)
    assert sheet.shape == (3, 4, 10)
    for i in range(4):
        row, column = divmod(i, 2)
        assert torch.equal(sheet[:, 2 * row : 2 * row + 2, 5 * column : 5 * column + 5], images[i])
    assert torch.equal(grid(images[:1], 1), images[0])


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_png_round_trip(tmp_path, channels, mode):
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, [channels, 5, 7], dtype=torch.uint8)
    save_png(pixels, tmp_path / "a.png")
    assert os.listdir(tmp_path) == ["a.png"]
    with Image.open(tmp_path / "a.png") as image:
        assert (image.format, image.mode, image.size) == ("PNG", mode, (7, 5))
        stored = torch.from_numpy(np.array(image)).view(5, 7, channels).permute(2, 0, 1)
    assert torch.equal(stored, pixels)


@pytest.mark.parametrize("shape, dtype", [((3, 8, 8), "float32"), ((1, 3, 8, 8), "uint8"), ((5, 4, 4), "uint8")])
def test_what_is_no_image_is_said_and_leaves_the_old_file(tmp_path, shape, dtype):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=rf"expected one image, uint8 .* got {dtype} \[.*; to_uint8"):
        save_png(torch.zeros(shape, dtype=getattr(torch, dtype)), path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]


CPU = torch.device("cpu")


def from_memory(images: torch.Tensor, batch: int = 3):
    """As `write_pngs` asks for images."""
    return lambda part: iter(images[part].split(batch))


def test_write_pngs_writes_each_image_to_its_path(tmp_path):
    images = torch.randint(0, 256, (41, 3, 8, 8), dtype=torch.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(41)]
    threads = torch.get_num_threads()
    assert sum(write_pngs(from_memory(images), paths, 8, CPU)) == 41
    assert torch.get_num_threads() == threads
    for image, path in zip(images, paths, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), image.permute(1, 2, 0).numpy())


def test_write_pngs_has_no_more_than_the_batch_in_the_making(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # it would stay at 4 for all tests after this
    making, most, lock = 0, 0, threading.Lock()

    def make_images(part: slice):
        nonlocal making, most
        images = torch.zeros(len(range(50)[part]), 1, 4, 4, dtype=torch.uint8)
        with lock:
            making += len(images)
            most = max(most, making)
        time.sleep(0.005)
        yield images
        with lock:
            making -= len(images)

    paths = [tmp_path / f"{i}.png" for i in range(50)]
    assert sum(write_pngs(make_images, paths, 8, CPU)) == 50 and 2 < most <= 8  # some beside each other
    assert sum(write_pngs(make_images, paths, 3, CPU)) == 50


def test_write_pngs_tells_of_an_error_and_stops(tmp_path):
    images = torch.zeros(1000, 3, 8, 8, dtype=torch.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(1000)]
    paths[1] = tmp_path / "none" / "none" / "a.png"
    with pytest.raises(OSError):
        list(write_pngs(from_memory(images), paths, 4, CPU))
    assert len(os.listdir(tmp_path)) < 900


def test_write_pngs_stops_with_its_reader(tmp_path):
    images = torch.zeros(1000, 3, 8, 8, dtype=torch.uint8)
    written = write_pngs(from_memory(images), [tmp_path / f"{i}.png" for i in range(1000)], 4, CPU)
    next(written)
    written.close()
    assert len(os.listdir(tmp_path)) < 900
