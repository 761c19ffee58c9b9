"""benchmarks/compare_films.py: what stands still in the film does, and the figures are those of known films."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import compare_films

from media.images import save_png
from models.snapshot import save_stylizer
from torch_utils.errors import UserError


@pytest.fixture
def photos() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randint(0, 100, [3, 256, 256], dtype=torch.uint8), torch.full([3, 256, 256], 200, dtype=torch.uint8)


def test_only_the_disc_moves(photos):
    film, calm = compare_films.draw_film(*photos, frames=9, noise=0)
    assert film.dtype == torch.uint8 and film.shape == (9, 3, 256, 256)
    assert torch.equal(film[:, :, calm], photos[0][None, :, calm].expand(9, -1, -1))
    assert 0.2 < calm.float().mean() < 0.6
    covered = (film >= 150).all(dim=1).sum(dim=(1, 2))  # at least by half: the edge is soft over the last pixel
    assert covered[0] == covered[-1] == 0 and covered[4] == pytest.approx(torch.pi * 42.2**2, rel=0.03)


def test_noise_has_the_deviation_asked_for(photos):
    film, _ = compare_films.draw_film(photos[1], photos[1], frames=4, noise=3.0)
    assert (film.float() - 200).std() == pytest.approx(3, rel=0.02)


def test_changes_are_means_over_frames_channels_and_pixels():
    film = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    film[1, 0, 0, 0] = 96  # there and back: 2 × 96 over 2 changes, 3 channels and 8 pixels
    film[2, :, 3, 3] = 24  # once, in all channels
    calm = torch.arange(4)[:, None].expand(4, 4) < 2
    assert compare_films.changes(film, calm) == {"still": 96 / 24, "moving": 24 / 16}


def test_the_command_writes_the_film_beside_the_result(tmp_path, photos, stylizer, capsys):
    for name, image in zip(("a", "b"), photos, strict=True):
        save_png(image, tmp_path / f"{name}.png")
    save_stylizer(tmp_path / "model.safetensors", stylizer, {})
    files = {"photo": "a.png", "moving": "b.png", "style": "a.png", "model": "model.safetensors"}
    options = {**{name: tmp_path / file for name, file in files.items()}, "size": 256, "frames": 5, "noise": 1}
    given = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    out = ["--out", str(tmp_path / "film.webp"), "--json", str(tmp_path / "film.json")]
    compare_films.main([*given, *out], standalone_mode=False)

    found = json.loads((tmp_path / "film.json").read_text())["changes"]
    assert list(found) == ["film", "smooth 0.8", "smooth 0"]
    assert found["smooth 0.8"]["still"] < found["smooth 0"]["still"]
    assert all(row["still"] < row["moving"] for row in found.values())
    assert capsys.readouterr().out.count("still") == 3
    with Image.open(io.BytesIO((tmp_path / "film.webp").read_bytes())) as film:
        assert film.size == (512, 256) and film.n_frames == 5
    with pytest.raises(UserError, match=r"ends with \.webp"):
        compare_films.main([*given, "--out", str(tmp_path / "film.gif")], standalone_mode=False)
