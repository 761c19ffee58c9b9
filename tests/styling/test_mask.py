"""styling.mask: masks of the content's size, soft where asked for, and blending by them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from styling.mask import blend, read_mask, soften
from torch_utils.errors import UserError


def half(path, mode: str = "L"):
    """White on the right half of 40 × 20 pixels."""
    image = Image.new("L", (40, 20), 0)
    image.paste(255, (20, 0, 40, 20))
    image.convert(mode).save(path)
    return path


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "P", "RGBA", "LA"])
def test_a_mask_is_one_where_it_is_white(tmp_path, mode):
    mask = read_mask(half(tmp_path / "mask.png", mode), (20, 40))
    assert mask.shape == (1, 20, 40) and mask.dtype == torch.float32
    assert mask[:, :, :20].abs().max() == 0 and (mask[:, :, 20:] - 1).abs().max() < 1e-6 and mask.max() <= 1


def test_greys_colours_and_transparency(tmp_path):
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    assert read_mask(tmp_path / "red.png", (8, 8)).mean().item() == pytest.approx(0.299)
    Image.new("L", (8, 8), 51).save(tmp_path / "grey.png")
    assert read_mask(tmp_path / "grey.png", (8, 8)).mean().item() == pytest.approx(0.2)
    Image.new("RGBA", (8, 8), (255, 255, 255, 0)).save(tmp_path / "clear.png")
    assert read_mask(tmp_path / "clear.png", (8, 8)).max() == 0


def test_another_size_is_refused_and_both_are_named(tmp_path):
    with pytest.raises(UserError, match=r"mask\.png has 40x20 pixels, but the content 41x20; resize the mask"):
        read_mask(half(tmp_path / "mask.png"), (20, 41))
    with pytest.raises(UserError, match="there is no"):
        read_mask(tmp_path / "none.png", (20, 40))


def test_soft_edges_are_gaussian(tmp_path):
    mask = soften(read_mask(half(tmp_path / "mask.png"), (20, 40)), 3)
    x = np.arange(40) + 0.5 - 20
    expected = [0.5 * (1 + math.erf(v / 3 / 2**0.5)) for v in x]  # the blur of a step
    assert np.abs(mask[0, 10].numpy() - expected).max() < 0.01
    assert torch.allclose(mask, mask[:, :1].expand_as(mask), atol=1e-6)
    assert mask.min() >= 0 and mask.max() <= 1
    point = torch.zeros(2, 1, 41, 41)
    point[:, :, 20, 20] = 1
    blurred = soften(point, 2.5)
    place = torch.arange(41) - 20.0
    assert blurred.sum((1, 2, 3)).tolist() == pytest.approx([1, 1])
    assert torch.allclose(blurred, blurred.mT)
    assert (blurred[0, 0].sum(0) * place**2).sum().item() == pytest.approx(2.5**2, rel=0.05)


def test_blending():
    inside, outside = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    mask = torch.rand(1, 4, 5)
    assert torch.allclose(blend(inside, outside, mask), mask * inside + (1 - mask) * outside, atol=1e-6)
    assert torch.equal(blend(inside, outside, torch.ones(1, 4, 5)), inside)
    assert torch.equal(blend(inside, outside, torch.zeros(1, 4, 5)), outside)


@pytest.mark.parametrize("sigma", [16, 23.5, 60, 300])
def test_wide_edges_are_gaussian_as_well(sigma):
    """They are blurred in a reduced image: as the convolution of the whole, within what 8 bits can tell."""
    masks = torch.zeros(2, 1, 150, 203)
    masks[0, :, :, 100:] = 1
    masks[1, :, 60:70, 20:120] = 1
    radius = math.ceil(4 * sigma)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    taps = taps / taps.sum()
    pad, convolve = torch.nn.functional.pad, torch.nn.functional.conv2d
    expected = convolve(pad(masks.double(), [radius, radius, 0, 0], "replicate"), taps.view(1, 1, 1, -1))
    expected = convolve(pad(expected, [0, 0, radius, radius], "replicate"), taps.view(1, 1, -1, 1))
    found = soften(masks, sigma)
    assert found.shape == masks.shape and (found - expected).abs().max() < 1.5 / 255
