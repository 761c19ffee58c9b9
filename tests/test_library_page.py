"""docs/library.md and docs/metrics.md: their examples, run as they are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import adaconv
from latents.codes import Codes, save_codes
from tests.stylize.running import done as stylize
from tests.stylize.running import film, frames

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "library.md"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """The current folder, with what a clone has."""
    monkeypatch.chdir(tmp_path)
    for name in ("pretrained", "examples"):
        Path(name).symlink_to(ROOT / name)
    return tmp_path


def run_examples(with_word: str) -> list[dict]:
    """The variables of those examples of the library's page in which a word is, run as they are there."""
    page = PAGE.read_text()
    made: list[dict] = []
    for example in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        if with_word in example:
            made.append({})
            exec(compile(example, "library.md", "exec"), made[-1])
    assert made
    return made


def test_the_librarys_page_on_generators(clone):
    """Also with what projector.py leaves."""
    G = adaconv.Generator.from_pretrained("pretrained/faces64.safetensors")
    Path("out").mkdir()
    save_codes("out/projected-photo.npz", Codes(G.ws(G.latents([0]), psi=0.7)))
    (found,) = (variables for variables in run_examples("Generator") if "codes" in variables)
    assert torch.equal(found["image"], G(G.latents([0]), psi=0.7, noise="const"))
    assert {path.name for path in clone.glob("*.png")} == {"seed0000.png", "between.png"}


def test_the_librarys_page_on_images(clone):
    """Those of the command beside the example."""
    run_examples("model.stylize(")
    (command,) = re.findall(r"`python stylize.py (.*?)`", PAGE.read_text())
    stylize("--model", "pretrained/stylizer-small.safetensors", *command.split(), "--out", "y.png", cwd=clone)
    assert np.array_equal(pixels(clone / "y.png"), pixels(clone / "face-waves.png"))
    run_examples("model.kernels(")
    assert pixels(clone / "face-waves-network.png").shape == (256, 256, 3)


def test_the_librarys_page_on_films(clone):
    film(clone / "film.mp4", 2)
    run_examples("model.stylize_video(")
    assert len(frames(clone / "stylized" / "film.mp4")) == 2
    run_examples("FrameStylizer(")
    assert {path.name for path in clone.glob("*.png")} == {f"frame{i}.png" for i in range(3)}


def test_the_librarys_page_on_metrics(clone, capsys):
    run_examples("compute(")
    assert ast.literal_eval(capsys.readouterr().out)["kd32_full@tiny-imagenet"] > 0.01


def test_every_example_of_the_librarys_page_is_run():
    page = PAGE.read_text()
    of_models = ("model.stylize(", "model.kernels(", "model.stylize_video(", "FrameStylizer(")
    words = ("Generator", "AdaConv2d", "compute(", *of_models)
    for example in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        assert any(word in example for word in words)


def test_the_layer_of_the_librarys_page():
    """It normalizes, each sample has kernels of its own style, and R1 of a network with it has a gradient."""
    (example,) = re.findall(r"```python\n(import torch\nfrom torch import nn.*?)```", PAGE.read_text(), re.DOTALL)
    variables: dict[str, type[torch.nn.Module]] = {}
    exec(compile(example, "library.md", "exec"), variables)
    torch.manual_seed(0)
    block = variables["Block"](style_dim=16, channels=8)
    x, style = torch.randn(2, 8, 12, 12), torch.randn(2, 16)
    y = block(x, style)
    assert torch.allclose(block(3 * x + 1, style), y, atol=1e-3)
    for sample in range(2):
        assert torch.allclose(
            block(x[sample : sample + 1], style[sample : sample + 1]), y[sample : sample + 1], atol=1e-5
        )
    assert not torch.allclose(block(x, style.flip(0)), y, atol=0.1)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(block(x, style).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    weight = block.adaconv.predictor.depthwise_weight
    assert weight.grad.isfinite().all() and weight.grad.abs().max() > 1e-6


def test_the_example_of_the_metrics_page(tmp_path, monkeypatch, capsys):
    """As it is there, in a folder that has what a clone has."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "metrics.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("examples").symlink_to(ROOT / "examples")
    exec(compile(example, "metrics.md", "exec"), {})
    values = ast.literal_eval(capsys.readouterr().out)
    assert list(values) == ["kd32_full@tiny-imagenet", "kd32_full_std@tiny-imagenet"]
    assert values["kd32_full@tiny-imagenet"] > 0.01
