"""styling.apply at the borders of contents: a style draws no frame along them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from media.images import to_float, to_uint8
from models.snapshot import load_stylizer
from styling.apply import continued, inner, stylize_image
from styling.styles import CombinedStyle
from tests.styling.test_apply import PLAIN, ROOT, beyond, scene, style


@pytest.mark.parametrize("size", [(17, 300), (9, 9), (56, 57), (120, 40)], ids=str)
def test_contents_are_continued_by_reflection_as_far_as_they_reach(size):
    content = scene(3, *size)
    found = continued(content)
    y, x = (min(48, (side - 1) // 8 * 8) for side in size)
    assert torch.equal(found, torch.from_numpy(np.pad(content.numpy(), [(0, 0), (y, y), (x, x)], mode="reflect")))
    assert torch.equal(inner(found, content), content)
    assert torch.equal(continued(content[None].double()), found[None].double())


def edge_changes(content: torch.Tensor, stylize) -> tuple[float, float]:
    """How much the outer 8 pixels and the others change, of 255, if the content is extended by 96 reflected pixels."""
    larger = beyond(content[None].double(), 96)[0].to(torch.uint8)
    changes = (stylize(larger)[:, 96:-96, 96:-96].float() - stylize(content).float()).abs().mean(0)
    outer = torch.ones_like(changes, dtype=torch.bool)
    outer[8:-8, 8:-8] = False
    return changes[outer].mean().item(), changes[~outer].mean().item()


def test_the_shipped_model_draws_no_frame_around_a_disc_on_white():
    model = load_stylizer(ROOT / "pretrained" / "stylizer-small.safetensors")[0]
    y, x = torch.meshgrid(torch.arange(200.0), torch.arange(264.0), indexing="ij")
    content = (255 * (((y - 100) ** 2 + (x - 132) ** 2) > 30**2)).to(torch.uint8).expand(3, -1, -1)
    combined = CombinedStyle((style(model, 4),))

    def spread(image):  # of each channel along the border
        image = image.float()
        edges = (image[:, :8], image[:, -8:], image[:, :, :8], image[:, :, -8:])
        return torch.cat([edge.flatten(1) for edge in edges], 1).std(1).max().item()

    with torch.no_grad():
        bare = to_uint8(model(to_float(content[None]), combined.kernels()))[0]
    assert spread(bare) < 1 and spread(stylize_image(model, content, combined, PLAIN)) < 1


def test_the_shipped_model_changes_at_borders_hardly_more_than_inside():
    """A larger image has other statistics, which change all of its pixels a little.

    Without the continuation of contents the border changes more than that, although the network reflects at borders:
    each layer by its own pixel, where the continued image has another one.
    """
    model = load_stylizer(ROOT / "pretrained" / "stylizer-small.safetensors")[0]
    bare, now = [], []
    for seed in range(3):
        combined, content = CombinedStyle((style(model, seed),)), scene(10 + seed, 256, 256)
        kernels = combined.kernels()

        def without(image, kernels=kernels):
            with torch.no_grad():
                return to_uint8(model(to_float(image[None]), kernels))[0]

        def shipped(image, combined=combined):
            return stylize_image(model, image, combined, PLAIN)

        bare.append(edge_changes(content, without))
        now.append(edge_changes(content, shipped))
    assert all(outer < 4 and outer < inside + 1 for outer, inside in now), now
    assert sum(outer for outer, _ in now) < 0.8 * sum(outer for outer, _ in bare), (now, bare)
