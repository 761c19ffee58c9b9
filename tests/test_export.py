"""export.py as a user types it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from networks.generator import Generator, GeneratorConfig
from training.checkpoint import load_generator, load_stylizer, save_snapshot, save_stylizer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def snapshot(tmp_path) -> Path:
    torch.manual_seed(0)
    G = Generator(GeneratorConfig(16, cbase=64, cmax=8, map_depth=1, z_dim=8, w_dim=8, style_channels=4))
    save_snapshot(tmp_path / "snapshot-000001.safetensors", G, {"kimg": 1})
    return tmp_path / "snapshot-000001.safetensors"


def export(*arguments: object):
    sys.path.insert(0, str(ROOT))
    from export import main

    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.mark.parametrize("kind, name", [("onnx", "generator.onnx"), ("torch.export", "generator.pt2")])
def test_a_graph_as_typed(snapshot, tmp_path, capfd, kind, name):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    result = export("--network", snapshot, "--outdir", tmp_path / "out", "--format", kind, "--precision", "fp16")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [str(tmp_path / "out" / name)]
    assert float(re.search(r"largest difference to PyTorch: (\S+)", result.stderr)[1]) < 1e-4
    assert "arning" not in result.stderr and capfd.readouterr().err == ""  # nor of onnxruntime's


def test_snapshots_in_half_precision(snapshot, tmp_path, stylizer):
    save_stylizer(tmp_path / "b.safetensors", stylizer, {"kimg": 2})
    for precision in ("fp32", "fp16"):
        for option, path in (("--network", snapshot), ("--model", tmp_path / "b.safetensors")):
            result = export(
                option, path, "--format", "safetensors", "--precision", precision, "--outdir", tmp_path / precision
            )
            assert result.exit_code == 0, result.output
    G, rounded = (load_generator(path)[0] for path in (snapshot, tmp_path / "fp16" / "generator.safetensors"))
    for name, value in rounded.state_dict().items():
        assert torch.equal(value, G.state_dict()[name].half().float())
    same = load_generator(tmp_path / "fp32" / "generator.safetensors")[0]
    assert all(torch.equal(value, G.state_dict()[name]) for name, value in same.state_dict().items())
    sizes = [(tmp_path / p / "stylizer.safetensors").stat().st_size for p in ("fp16", "fp32")]
    assert sizes[0] < 0.52 * sizes[1] and load_stylizer(tmp_path / "fp16" / "stylizer.safetensors")[1]["kimg"] == 2


def test_mistakes(snapshot, tmp_path):
    for arguments, what in (
        (["--network", snapshot, "--model", snapshot], "name one"),
        (["--network", snapshot, "--format", "safetensors", "--batch", 2], "--batch"),
        (["--network", tmp_path / "absent"], "does not exist"),
        (["--model", snapshot], "no stylizer of this project but of kind 'generator'"),
        (["--network", snapshot, "--format", "pickle"], "--format"),
    ):
        result = export(*arguments)
        assert result.exit_code == 2 and what in result.output
    G = load_generator(snapshot)[0]
    G.synthesis.const[0] = 1e6
    save_snapshot(snapshot, G, {})
    result = export("--network", snapshot, "--format", "safetensors", "--precision", "fp16", "--outdir", tmp_path)
    assert result.exit_code == 2 and "65504" in result.output
