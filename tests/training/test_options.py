"""training.options: presets by their published values, and options that do not go together."""

from __future__ import annotations

import pytest

from tests.training.test_loop import tiny
from torch_utils.errors import UserError
from training.options import resolve
from training.presets import PRESETS


def test_presets_have_the_published_values():
    """StyleGAN2-ADA, appendix D, table of hyperparameters; cbase 32768 is 1 ×, 16384 0.5 × the channels."""
    table = {  # batch, cbase, learning rate, gamma, EMA, mapping, minibatch std
        "stylegan2": (32, 32768, 0.002, 10, 10, 8, 4),
        "paper256": (64, 16384, 0.0025, 1, 20, 8, 8),
        "paper512": (64, 32768, 0.0025, 0.5, 20, 8, 8),
        "paper1024": (32, 32768, 0.002, 2, 10, 8, 4),
        "cifar": (64, 32768, 0.0025, 0.01, 500, 2, 32),
    }
    assert set(PRESETS) == {"auto", "demo", "r3gan", *table}
    for cfg, values in table.items():
        c = resolve({"cfg": cfg, "data": "x"}, 32, 3, 0, 0)
        assert (c.batch, c.generator.cbase, c.glr, c.gamma, c.ema_kimg) == values[:5]
        assert (c.generator.map_depth, c.discriminator.mbstd_group) == values[5:]
        assert c.dlr == c.glr
    assert resolve({"cfg": "cifar", "data": "x", "gamma": 1.0}, 32, 3, 0, 0).gamma == 1.0


@pytest.mark.parametrize(
    "options, words",
    [
        ({"batch_gpu": 3}, "--batch-gpu 3 does not divide the 8 images"),
        ({"p": 0.5}, "--p without augmentation"),
        ({"aug": "fixed"}, "--aug fixed needs --p"),
        ({"freezed": 3}, "--freezed without --init-from"),
    ],
)
def test_options_that_do_not_go_together(faces16, options, words):
    with pytest.raises(UserError, match=words):
        tiny(faces16, **options)
