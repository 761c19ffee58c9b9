"""latents.mixing: what a part of another code does to an image."""

from __future__ import annotations

import pytest
import torch

from latents.mixing import check_layers, generate_mix, generate_mixes, mix_kernels, mixing_sheet
from media.images import to_uint8
from networks.generator import GeneratorConfig
from tests.latents.small import VARIANTS, codes, generator
from torch_utils.errors import UserError, numbers_text


@pytest.mark.parametrize(("modulation", "norm"), VARIANTS)
def test_all_of_all_layers_is_the_other_and_none_is_the_own(modulation, norm):
    G = generator(modulation, norm)
    ws, other = codes(G, 2), codes(G, 2)
    everything = check_layers(G.config, None)
    assert torch.equal(generate_mix(G, ws, other, everything), G.synthesis(other, "const"))
    for part in ("all", "channels"):
        assert torch.equal(generate_mix(G, ws, other, [], part), G.synthesis(ws, "const"))
        assert torch.equal(generate_mix(G, ws, ws, everything, part), G.synthesis(ws, "const"))


@pytest.mark.parametrize("predict_bias", [False, True])
def test_the_parts_together_are_the_whole_but_for_torgb(predict_bias):
    G = generator(predict_bias=predict_bias)
    own, other = codes(G, 1), codes(G, 1)
    mixed = G.synthesis.kernels(own)
    for part in ["structure", "channels", "bias"][: 2 + predict_bias]:
        theirs = G.synthesis.kernels(other)
        before = G.synthesis(own, "const", mixed)
        mixed = [mix_kernels(a, b, part) for a, b in zip(mixed, theirs, strict=True)]
        assert not torch.allclose(G.synthesis(own, "const", mixed), before)
    assert torch.equal(G.synthesis(own, "const", mixed), G.synthesis(own, "const", G.synthesis.kernels(other)))


def test_a_part_leaves_the_others_and_the_other_layers():
    G = generator(predict_bias=True)
    ws, other = codes(G, 1), codes(G, 1)
    (own,), (new,) = ([G.synthesis.kernels(w)[2]] for w in (ws, other))
    for part, field in (("structure", "depthwise"), ("channels", "pointwise"), ("bias", "bias")):
        mixed = mix_kernels(own, new, part)
        for name in ("depthwise", "pointwise", "bias"):
            assert getattr(mixed, name) is getattr(new if name == field else own, name)
    kernels = G.synthesis.kernels(ws)
    kernels[2] = mix_kernels(own, new, "structure")
    assert torch.equal(generate_mix(G, ws, other, [2], "structure"), G.synthesis(ws, "const", kernels))


def test_mixes_are_row_by_row_and_do_not_depend_on_the_batch():
    G = generator()
    rows, columns = codes(G, 2), codes(G, 3)
    found = torch.cat(list(generate_mixes(G, rows, columns, [0, 1], batch=4)))
    assert found.shape == (6, 3, 16, 16) and found.dtype == torch.uint8
    for i in range(2):
        for j in range(3):
            expected = to_uint8(generate_mix(G, rows[i : i + 1], columns[j : j + 1], [0, 1]))[0]
            assert (found[3 * i + j].int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("options", "layers", "part", "words"),
    [
        ({}, [6], "all", "--layers 6: the model has the layers 0 to 5 (5: the last ToRGB)"),
        ({}, [5], "structure", "--layers 5 is the last ToRGB"),
        ({}, None, "bias", "--part bias: this model predicts no bias"),
        (
            {"kernels_up_to": 8},
            [3, 4],
            "structure",
            "0-2 predict spatial kernels; take one of them with --layers",
        ),
        (
            {"kernels_up_to": 8, "predict_bias": True},
            [3, 4],
            "bias",
            "0-2 predict biases; take one of them",
        ),
        ({"modulation": "modconv"}, None, "bias", "--part bias: this model predicts no bias"),
        ({"modulation": "modconv"}, None, "structure", "--part structure: this model is modconv"),
        ({"modulation": "adain", "norm": "instance"}, None, "structure", "--part structure: this model is adain"),
    ],
)
def test_what_a_model_does_not_have(options, layers, part, words):
    with pytest.raises(UserError) as error:
        check_layers(GeneratorConfig(16, **options), layers, part)
    assert words in error.value.message


def test_layers():
    config = GeneratorConfig(16)
    assert check_layers(config, None) == [0, 1, 2, 3, 4, 5]
    assert check_layers(config, None, "channels") == [0, 1, 2, 3, 4]
    assert check_layers(config, [5, 3, 3], "channels") == [3]
    upto = GeneratorConfig(16, kernels_up_to=8)
    assert check_layers(upto, None, "structure") == [0, 1, 2]
    assert check_layers(upto, None, "channels") == [0, 1, 2, 3, 4]
    assert check_layers(GeneratorConfig(16, modulation="adain", norm="instance"), [1], "bias") == [1]
    assert numbers_text([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"


def test_a_sheet_has_every_image_in_its_place():
    colors = torch.tensor([[20 * i, 200, 0] for i in range(11)], dtype=torch.uint8)  # 5 own ones, 6 mixes
    images = colors[:, :, None, None].expand(-1, -1, 8, 8)
    sheet = mixing_sheet(images[:5], images[5:], [1, 2], [7, 8, 9], "", scale=2)
    from_sheet = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8).view(sheet.height, sheet.width, 3)
    places = {}
    for i, color in enumerate(colors):
        found = (from_sheet == color).all(dim=2).nonzero()
        corner, end = found.min(dim=0).values.tolist(), found.max(dim=0).values.tolist()
        assert [b - a + 1 for a, b in zip(corner, end, strict=True)] == [16, 16]
        places[i] = corner
    rows = [[None, 2, 3, 4], [0, 5, 6, 7], [1, 8, 9, 10]]
    assert all(places[i][0] == places[row[1]][0] for row in rows for i in row if i is not None)
    assert all(places[i][1] == places[column[1]][1] for column in zip(*rows, strict=True) for i in column if i)
    assert places[2][1] < places[3][1] < places[4][1] and places[2][0] < places[5][0] < places[9][0]
