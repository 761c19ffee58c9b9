"""The place that stylize.py is tried at."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.snapshot import save_stylizer
from tests.stylize.running import save


@pytest.fixture(scope="module")
def place(tmp_path_factory, stylizer) -> Path:
    """A folder with a model, two styles, a content, and a folder of contents."""
    folder = tmp_path_factory.mktemp("stylize")
    save_stylizer(folder / "model.safetensors", stylizer, {"kimg": 3})
    save(folder / "a.png", 1, 70, 80)
    save(folder / "b.png", 2, 80, 70)
    save(folder / "photo.png", 3)
    (folder / "photos").mkdir()
    for i in range(3):
        save(folder / "photos" / f"{i}.png", 4 + i)
    return folder


@pytest.fixture
def start(place) -> list:
    """The beginning of a command line that works."""
    return ["--model", place / "model.safetensors", "--content", place / "photo.png"]
