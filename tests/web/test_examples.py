"""The examples: the shipped files are those that are drawn, and a command line names them where they lie."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="there is no gradio here; pip install gradio")

from web.examples import FOLDER, INKS, copy_examples, draw_examples, shipped_as


def test_the_shipped_files_are_what_is_drawn(tmp_path):
    draw_examples(tmp_path)
    for name in ("face", *INKS):
        drawn, file = (
            np.asarray(Image.open(folder / f"{name}.png").convert("RGB"), int) for folder in (tmp_path, FOLDER)
        )
        assert drawn.shape == file.shape == (256, 256, 3) and np.abs(drawn - file).mean() < 2


def test_a_copy_is_named_by_the_path_from_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(FOLDER.parent)
    content, styles = copy_examples(tmp_path)
    assert [shipped_as(path) for path in (content, styles[0])] == ["examples/face.png", "examples/waves.png"]
    content.write_bytes(content.read_bytes() + b" ")  # an upload of the same name
    assert shipped_as(content) is None and shipped_as(tmp_path / "other.png") is None
