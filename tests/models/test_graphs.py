"""Exported files, run by onnxruntime and by PyTorch without this project's code, give the images of the models."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import asdict

import pytest
import torch

from models import graphs
from models.export import META, OPSET, in_half, largest_difference, onnx_runner, trace, write_onnx
from networks.generator import Generator, GeneratorConfig
from networks.stylizer import Stylizer, StylizerConfig, pad_to_stride, to_tensors
from torch_utils.errors import UserError
from torch_utils.ops.adaconv import adaconv, adaconv_reference

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

MODULATIONS = [
    ("adaconv", "demod"),
    ("adaconv", "instance"),
    ("modconv", "demod"),
    pytest.param("adain", "instance", marks=pytest.mark.slow),
]


def tiny_generator(modulation: str = "adaconv", norm: str = "demod", **options) -> Generator:
    """With noise, classes, groups of 1, 2 and 4 channels, and a mean w that truncation leads to."""
    torch.manual_seed(0)
    values = {"cbase": 128, "cmax": 32, "map_depth": 2, "z_dim": 8, "w_dim": 8, "style_channels": 4, "c_dim": 3}
    config = GeneratorConfig(16, **{**values, **options}, modulation=modulation, norm=norm)
    G = Generator(config).eval().requires_grad_(False)
    G.w_avg.normal_()
    for layer in G.synthesis.layers():
        layer.noise_strength.fill_(0.3)
    return G


def inputs_of(G: Generator, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, G.config.z_dim), torch.rand(n, G.config.c_dim)


def operators(graph) -> set[tuple[str, str]]:
    """Domain and type of all nodes, also of those within others."""
    found = set()
    for node in graph.node:
        found.add((node.domain, node.op_type))
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found |= operators(attribute.g)
    return found


@pytest.mark.parametrize("modulation, norm", MODULATIONS)
def test_a_generator_in_onnx_is_the_generator(tmp_path, modulation, norm):
    """One file for every number of samples, truncation and class, of the standard's operators alone."""
    G = tiny_generator(modulation, norm)
    (graph,) = graphs.of_generator(G)
    write_onnx(tmp_path / "a.onnx", graph, {"config": asdict(G.config)})
    run = onnx_runner(tmp_path / "a.onnx")
    for n, psi in ((1, 1.0), (2, 0.5), (7, -0.3)):
        z, c = inputs_of(G, n)
        (images,) = run((z, c, torch.tensor(psi)))
        torch.testing.assert_close(images, G(z, c, psi, "const"), rtol=0, atol=1e-4)

    model = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import if o.domain == ""] == [("", OPSET)]
    assert {domain for domain, _ in operators(model.graph)} == {""}
    about = json.loads({p.key: p.value for p in model.metadata_props}[META])
    assert about["config"] == asdict(G.config) and about["graph"] == "generator"
    shapes = {}
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = [dim.dim_param or dim.dim_value for dim in dims]
        assert value.doc_string
    assert shapes == {"z": ["batch", 8], "c": ["batch", 3], "psi": [], "images": ["batch", 3, 16, 16]}
    assert {**about["inputs"], **about["outputs"]}["images"]["shape"] == shapes["images"]


def test_a_fixed_batch_has_no_loop(tmp_path):
    G = tiny_generator(c_dim=0)
    (graph,) = graphs.of_generator(G)
    write_onnx(tmp_path / "a.onnx", graph, {}, batch=2)
    names = {name for _, name in operators(onnx.load(tmp_path / "a.onnx").graph)}
    assert "Conv" in names and not names & {"Scan", "Loop", "If"}
    assert largest_difference(onnx_runner(tmp_path / "a.onnx"), graph, 2) < 1e-4


def test_weights_in_half_are_the_rounded_ones():
    G = tiny_generator()
    (graph,) = graphs.of_generator(G)
    half = in_half(graph)
    inputs = half.example(2, 0, 0)
    for parameter in G.parameters():
        parameter.copy_(parameter.half().float())
    assert torch.equal(half.module(*inputs), graph.module(*inputs))
    G.synthesis.const.fill_(1e6)
    with pytest.raises(UserError, match="65504"):
        in_half(graph)


def test_a_wrong_file_is_noticed(tmp_path):
    graph, other = (graphs.of_generator(tiny_generator(predict_bias=b))[0] for b in (False, True))
    run = other.module
    assert largest_difference(lambda inputs: [run(*inputs)], graph) > 1e-2
    assert largest_difference(lambda inputs: [run(*inputs) * torch.nan], graph) == torch.inf


@pytest.mark.parametrize("modulation", ["adaconv", pytest.param("adain", marks=pytest.mark.slow)])
def test_a_stylizer_in_onnx_is_the_stylizer(tmp_path, stylizer, stylizer_adain, modulation):
    """Two files: styles to kernels, and contents of any size with kernels to images.

    Compared in float64: normalizing what hardly varies makes float32's rounding larger, in PyTorch as well.
    """
    torch.manual_seed(0)
    model = stylizer if modulation == "adaconv" else stylizer_adain
    runs = {}
    for graph in graphs.of_stylizer(model):
        path = tmp_path / f"{graph.name}.onnx"
        write_onnx(path, graph, {})
        assert {domain for domain, _ in operators(onnx.load(path).graph)} == {""}
        runs[graph.name] = onnx_runner(path)
    size, exact = model.config.style_size, copy.deepcopy(model).double()
    for n, height, width in ((1, 64, 64), (2, 9, 30), (3, 47, 16)):
        style, content = torch.rand(n, 3, size, size) * 2 - 1, torch.rand(n, 3, height, width) * 2 - 1
        expected = exact.kernels(style.double())
        kernels = runs["style"]([style])
        for got, tensor in zip(kernels, to_tensors(expected).values(), strict=True):
            torch.testing.assert_close(got.double(), tensor, rtol=0, atol=1e-4)
        (images,) = runs["content"]([content, *kernels])
        torch.testing.assert_close(images.double(), exact(content.double(), expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(16, 24), (9, 9), (33, 63)])
def test_borders_are_reflected_as_in_the_stylizer(size):
    images = torch.rand(2, 3, *size)
    assert torch.equal(graphs.reflect_to_stride(images), pad_to_stride(images))


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@pytest.mark.parametrize("group, size", [(1, 1), (1, 3), (4, 3), (2, 5)])
def test_the_op_in_a_graph_of_any_batch(padding_mode, group, size):
    """Sample by sample, it is the op that takes the whole batch at once."""

    class Op(torch.nn.Module):
        def forward(self, *inputs):
            return adaconv(*inputs, padding_mode)

    torch.manual_seed(0)
    x, kernel, bias = torch.randn(3, 8, 6, 7), torch.randn(3, 8, group, size, size), torch.randn(3, 8)
    torch.compiler.reset()
    batch = graphs.BATCH
    exported = torch.export.export(Op(), (x, kernel, bias), dynamic_shapes=(({0: batch},) * 3,)).module()
    for n in (1, 3, 4):
        inputs = torch.randn(n, 8, 6, 7), torch.randn(n, 8, group, size, size), torch.randn(n, 8)
        torch.testing.assert_close(exported(*inputs), adaconv_reference(*inputs, padding_mode))


def test_without_the_exporter(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"onnxscript, which is not installed.*pip install"):
        write_onnx(tmp_path / "a.onnx", graphs.of_generator(tiny_generator())[0], {})


def test_a_stylizer_with_larger_kernels_takes_larger_images_only():
    """Its reflected borders are wider. These are larger than those that other graphs are traced with."""
    torch.manual_seed(0)
    model = Stylizer(StylizerConfig(1 / 16, "adaconv", 64, kernel_size=11)).eval().requires_grad_(False)
    content = graphs.of_stylizer(model)[1]
    assert content.least == model.config.min_size == 41 and "at least 41x41" in content.inputs["content"].meaning
    program = trace(content).module()
    assert largest_difference(lambda inputs: [program(*inputs)], content) < 1e-3
