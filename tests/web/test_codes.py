"""web.codes: what becomes of the latents of an inverted image."""

from pathlib import Path

import pytest
import torch

from latents.cli import Model
from latents.codes import Codes
from networks.generator import Generator, GeneratorConfig
from torch_utils.errors import UserError
from web.codes import Inverted, find_codes

SMALL = {"cbase": 128, "cmax": 8, "map_depth": 1, "z_dim": 8, "w_dim": 8, "style_channels": 4, "c_dim": 3}


@pytest.fixture
def model() -> Model:
    G = Generator(GeneratorConfig(16, **SMALL)).eval().requires_grad_(False)
    return Model(G, Path("a.safetensors"), 0.0, 0.5, [], 1)


def test_an_inverted_image_is_truncated_towards_the_mean_of_all(model):
    ws = torch.randn(1, model.G.config.num_ws, 8)
    found = find_codes(model, "a.png", None, [Inverted("a.png", model.path, Codes(ws))])
    torch.testing.assert_close(found.ws, model.G.w_avg.lerp(ws, 0.5))


def test_it_is_where_the_model_is(model):
    """Inversion keeps its result in main memory."""
    shapes = [layer.noise_const.shape for layer in model.G.synthesis.layers()]
    inverted = Codes(torch.zeros(1, model.G.config.num_ws, 8), [torch.zeros(1, 1, *shape) for shape in shapes])
    model.G.to("meta")
    found = find_codes(model, "a.png", None, [Inverted("a.png", model.path, inverted)])
    assert {found.ws.device.type, *(maps.device.type for maps in found.noise)} == {"meta"}


def test_it_has_no_class_whose_mean_it_could_be_truncated_towards(model):
    inverted = [Inverted("a.png", model.path, Codes(torch.zeros(1, model.G.config.num_ws, 8)))]
    model.trunc_class = True
    with pytest.raises(UserError, match=r"a\.png is of no class"):
        find_codes(model, "a.png", None, inverted)
    with pytest.raises(UserError, match="no longer there"):
        find_codes(model, "b.png", None, inverted)
