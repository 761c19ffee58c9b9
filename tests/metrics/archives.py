"""Slices of real images. Not in conftest.py, of which processes that a test starts find another one first."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def photographs(path: Path, count: int) -> torch.Tensor:
    """The first images of an archive, uint8 [count, 3, 32, 32]."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith((".png", ".jpg")))[:count]
        images = [np.array(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def write_images(folder: Path, images: torch.Tensor) -> Path:
    """A PNG for each of uint8 [N, 3, H, W]."""
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:04d}.png")
    return folder
