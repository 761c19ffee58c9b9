"""The tab "Invert"."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

pytest.importorskip("gradio", reason="there is no gradio here; pip install gradio")

from networks.generator import Generator, GeneratorConfig
from web import invert
from web.files import Results
from web.limits import Stops


def test_an_upload_is_one_image_whatever_else_is_in_it(tmp_path, monkeypatch):
    """A PNG can be a ZIP of thousands of images as well, whose directory is at its end."""
    upload, targets = tmp_path / "a.zip", []
    Image.new("RGB", (16, 16), "navy").save(upload, "PNG")
    with zipfile.ZipFile(upload, "a") as archive:
        for i in range(3):
            Image.new("RGB", (16, 16), "red").save(image := io.BytesIO(), "PNG")
            archive.writestr(f"{i}.png", image.getvalue())
    config = GeneratorConfig(16, cbase=128, cmax=8, map_depth=1, z_dim=8, w_dim=8, style_channels=4)
    model = SimpleNamespace(G=Generator(config).eval().requires_grad_(False), path=Path("m.safetensors"))
    shelf = SimpleNamespace(generator=lambda name, precision: model)
    page = SimpleNamespace(shelf=shelf, results=Results(tmp_path / "results"))

    class Enough(Exception):
        pass

    def search(page, model, target, config, stop, report):
        targets.append(target)
        raise Enough

    monkeypatch.setattr(invert, "search", search)
    monkeypatch.setattr(invert, "fingerprint", lambda path: "0")
    stop = Stops().start(SimpleNamespace(session_hash="a"), 0.0)
    with pytest.raises(Enough):
        list(invert.invert(page, stop, "m", "fp32", [], str(upload), "w", 1, "const"))
    assert torch.equal(targets[0], torch.tensor([0, 0, 128], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 16, 16))
