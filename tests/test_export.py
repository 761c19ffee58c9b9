"""export.py as a user types it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from models import graphs
from models.export import META, description, onnx_runner, program_runner
from models.snapshot import load_generator, load_stylizer, save_model, save_snapshot, save_stylizer
from networks.generator import Generator, GeneratorConfig
from tests.scripts import mistake, script_here
from tests.training.test_loop import tiny
from training.finetune import initial_weights
from training.gan import GANTrainer
from training.loop import train
from training.runs import find_state, load_state


@pytest.fixture
def snapshot(tmp_path) -> Path:
    """With noise, classes, and a mean w that truncation leads to; most of its file are weights."""
    torch.manual_seed(0)
    G = Generator(
        GeneratorConfig(16, cbase=4096, cmax=256, map_depth=1, z_dim=8, w_dim=8, style_channels=4, c_dim=3)
    ).requires_grad_(False)
    G.w_avg.normal_()
    for layer in G.synthesis.layers():
        layer.noise_strength.fill_(0.3)
    save_snapshot(tmp_path / "snapshot-000001.safetensors", G, {"kimg": 1})
    return tmp_path / "snapshot-000001.safetensors"


def export(*arguments: object):
    return script_here("export.py", *arguments)


@pytest.mark.parametrize("kind, name", [("onnx", "generator-fp16.onnx"), ("torch.export", "generator-fp16.pt2")])
def test_a_graph_as_typed(snapshot, tmp_path, capfd, kind, name):
    """Half the file, and the model of rounded weights; without the kernels of this project, which go on as before."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    G = load_generator(snapshot)[0]
    z, c = torch.randn(4, 8), torch.rand(4, 3)
    before = G(z, c, noise="const")
    result = export("--network", snapshot, "--outdir", tmp_path / "out", "--format", kind, "--precision", "fp16")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [str(tmp_path / "out" / name)]
    assert float(re.search(r"largest difference to PyTorch: (\S+)", result.stderr)[1]) < 1e-4
    assert "arning" not in result.stderr and capfd.readouterr().err == ""  # nor of onnxruntime's

    assert torch.equal(G(z, c, noise="const"), before)
    file = tmp_path / "out" / name
    weights = sum(parameter.numel() for parameter in G.parameters())
    assert file.stat().st_size < 3 * weights
    for parameter in G.parameters():
        parameter.copy_(parameter.half().float())
    run = (onnx_runner if kind == "onnx" else program_runner)(file)
    for n, psi in ((1, 1.0), (4, 0.5)):
        (images,) = run((z[:n], c[:n], torch.tensor(psi)))
        torch.testing.assert_close(images, G(z[:n], c[:n], psi, "const"), rtol=0, atol=1e-4)
    if kind == "torch.export":
        extra = {META: ""}
        program = torch.export.load(file, extra_files=extra)
        assert json.loads(extra[META])["config"] == asdict(G.config)
        assert not [n for n in program.graph.nodes if "adaconv" in str(n.target) and n.op == "call_function"]


def test_snapshots_in_half_precision(snapshot, tmp_path, stylizer):
    save_stylizer(tmp_path / "b.safetensors", stylizer, {"kimg": 2})
    for precision in ("fp32", "fp16"):
        for option, path in (("--network", snapshot), ("--model", tmp_path / "b.safetensors")):
            result = export(
                option, path, "--format", "safetensors", "--precision", precision, "--outdir", tmp_path / "out"
            )
            assert result.returncode == 0, result.stderr
            differences = re.findall(r"largest difference to PyTorch: (\S+)", result.stderr)
            assert len(differences) == (1 if option == "--network" else 2) and max(map(float, differences)) < 1e-5
    G, rounded = (load_generator(path)[0] for path in (snapshot, tmp_path / "out" / "generator-fp16.safetensors"))
    for name, value in rounded.state_dict().items():
        assert torch.equal(value, G.state_dict()[name].half().float())
    same = load_generator(tmp_path / "out" / "generator.safetensors")[0]
    assert all(torch.equal(value, G.state_dict()[name]) for name, value in same.state_dict().items())
    half, single = (tmp_path / "out" / f"stylizer{end}.safetensors" for end in ("-fp16", ""))
    assert half.stat().st_size < 0.52 * single.stat().st_size and load_stylizer(half)[1]["kimg"] == 2


def test_labels_keep_their_digits_in_half_precision(tmp_path):
    """Prices, years, and what is smaller than float16 knows."""
    torch.manual_seed(0)
    G = Generator(GeneratorConfig(16, c_dim=3, vector_labels=True, cbase=128, cmax=8, z_dim=8, w_dim=8))
    ranges = ((50_000.0, 300_000.0), (1990.0, 2025.3), (1e-9, 2e-9))
    G.mapping.labels.fit(torch.stack([torch.linspace(*ends, 50) for ends in ranges], dim=1))
    save_snapshot(tmp_path / "a.safetensors", G, {"kimg": 1})
    for kind in ("safetensors", "torch.export"):
        options = ["--format", kind, "--precision", "fp16", "--outdir", tmp_path / "out"]
        result = export("--network", tmp_path / "a.safetensors", *options)
        assert result.returncode == 0, result.stderr
    labels = load_generator(tmp_path / "out" / "generator-fp16.safetensors")[0].mapping.labels.state_dict()
    assert all(torch.equal(value, G.mapping.labels.state_dict()[name]) for name, value in labels.items())


def test_a_snapshot_goes_on_training_with_its_discriminator(tmp_path, faces16):
    """From a run, and from the file itself once more: the same generator, and the run's discriminator."""
    run = tmp_path / "00000-run"
    run.mkdir()
    train(GANTrainer, tiny(faces16, kimg=0.02), run)
    D = load_state(find_state(run))["D"]
    options = ("--format", "safetensors", "--with-discriminator", "--outdir")
    plain = load_generator(next(run.glob("snapshot-*.safetensors")))[0].state_dict()
    for source, to, precision in ((run, "a", "fp32"), (tmp_path / "a/generator.safetensors", "b", "fp16")):
        result = export("--network", source, *options, tmp_path / to, "--precision", precision)
        assert result.returncode == 0, result.stderr
        file = next((tmp_path / to).glob("generator*.safetensors"))
        rounded = (lambda value: value) if precision == "fp32" else (lambda value: value.half().float())
        found = initial_weights(file)
        assert found["D"].keys() == D.keys() and found["G"].keys() == plain.keys()
        for expected, weights in ((D, found["D"]), (plain, found["G"]), (plain, load_generator(file)[0].state_dict())):
            assert all(torch.equal(weights[name], rounded(value)) for name, value in expected.items())
    before = file.read_bytes()
    message = mistake(
        "export.py", "--network", file, "--format", "safetensors", "--precision", "fp16", "--outdir", file.parent
    )
    assert "is one of the files to read and would be replaced" in message and file.read_bytes() == before
    second = tmp_path / "00001-run"
    second.mkdir()
    train(GANTrainer, tiny(faces16, kimg=0.02, init_from=str(tmp_path / "a/generator.safetensors"), freezed=1), second)
    assert torch.equal(load_state(find_state(second))["D"]["fromrgb.weight"], D["fromrgb.weight"])


def test_without_a_discriminator_the_file_is_refused(snapshot, tmp_path):
    options = ("--network", snapshot, "--with-discriminator", "--outdir", tmp_path)
    assert "leave out --with-discriminator" in mistake("export.py", *options, "--format", "safetensors")
    assert "--format safetensors" in mistake("export.py", *options)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_snapshot_that_differs_is_a_failure(snapshot, tmp_path, monkeypatch, precision):
    def save_another(path, kind, module, *rest, **options):
        for parameter in module.synthesis.blocks[0].parameters():
            parameter.add_(0.1)
        save_model(path, kind, module, *rest, **options)
        for parameter in module.synthesis.blocks[0].parameters():
            parameter.sub_(0.1)

    monkeypatch.setattr("models.snapshot.save_model", save_another)
    result = export(
        "--network", snapshot, "--format", "safetensors", "--precision", precision, "--outdir", tmp_path / "out"
    )
    assert result.returncode == 1 and "more than rounding explains" in result.stderr


@pytest.mark.parametrize("batch", [None, 3])
def test_the_description_has_the_number_of_samples_that_the_file_takes(snapshot, stylizer, batch):
    for graph in [*graphs.of_generator(load_generator(snapshot)[0]), *graphs.of_stylizer(stylizer)]:
        described = description(graph, {}, batch)
        sizes = [size for size in graph.open_sizes(batch) for size in size.values()]
        names = {size.__name__ for size in sizes}
        for ports, made in ((described["inputs"], graph.example(3, 40, 48)),):
            for (name, port), tensor in zip(ports.items(), made, strict=True):
                assert len(port["shape"]) == tensor.ndim, name
                for size, actual in zip(port["shape"], tensor.shape, strict=True):
                    assert size in names if isinstance(size, str) else size == actual, (name, size)
        for port in described["outputs"].values():
            assert port["shape"][0] == (batch or "batch")


def test_mistakes(snapshot, tmp_path):
    for arguments, what in (
        (["--network", snapshot, "--model", snapshot], "name only one"),
        (["--network", snapshot, "--format", "safetensors", "--batch", 2], "--batch"),
        (["--network", tmp_path / "absent"], "there is no "),
        (["--model", snapshot], "take with --network; name the file of a stylizer"),
        (["--network", snapshot, "--format", "pickle"], "--format"),
    ):
        assert what in mistake("export.py", *arguments)
    G = load_generator(snapshot)[0]
    G.synthesis.const[0] = 1e6
    save_snapshot(snapshot, G, {})
    half = ("--format", "safetensors", "--precision", "fp16", "--outdir", tmp_path)
    assert "65504" in mistake("export.py", "--network", snapshot, *half)
