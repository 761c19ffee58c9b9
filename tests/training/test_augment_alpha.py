"""training.augment with transparent images: alpha moves with the colours, and stays out of their changes."""

import pytest
import torch

from tests.training.test_augment import random_images
from training.augment import AugmentPipe, random_colors, recolor


def rgba(n, size, opaque=False):
    """Premultiplied colours in −1..1 with alpha; a quarter of the pixels is invisible."""
    alpha = torch.rand(n, 1, size, size) * (torch.rand(n, 1, size, size) > 0.25)
    alpha = torch.ones_like(alpha) if opaque else alpha
    return torch.cat([torch.rand(n, 3, size, size) * alpha, alpha], dim=1) * 2 - 1


def augmented(x, name, seed=5):
    torch.manual_seed(seed)
    return AugmentPipe(name, 1.0)(x)


@pytest.mark.parametrize("name", ["color", "noise"])
def test_alpha_keeps_out_of_colours(name):
    torch.manual_seed(0)
    x = rgba(20, 8)
    y = augmented(x, name)
    assert torch.equal(y[:, 3], x[:, 3])
    invisible = (x[:, 3:] == -1).expand(-1, 3, -1, -1)
    assert (y[:, :3][invisible] + 1).abs().max() < 1e-5
    assert (y[:, :3] - x[:, :3])[~invisible].abs().mean() > 0.02


def test_colours_change_as_in_an_opaque_image_under_the_same_alpha():
    """The straight colours are those of the RGB image after the same change, as far as alpha shows them."""
    torch.manual_seed(0)
    straight = rgba(20, 8, opaque=True)
    a = torch.rand(20, 1, 8, 8)
    premultiplied = torch.cat([(straight[:, :3] + 1) * a - 1, 2 * a - 1], dim=1)
    torch.manual_seed(1)
    C = random_colors(20, torch.tensor(1.0))
    expected = (recolor(straight[:, :3], C) + 1) * a - 1
    torch.testing.assert_close(recolor(premultiplied, C)[:, :3], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(recolor(straight, C)[:, :3], recolor(straight[:, :3], C), rtol=1e-5, atol=1e-5)


def test_alpha_moves_with_the_colours():
    """All four channels of one picture are moved and filtered alike."""
    torch.manual_seed(0)
    x = random_images(20, 1, 16, 16).expand(-1, 4, -1, -1)
    for name in ("blit", "geom", "filter", "cutout"):
        y = augmented(x, name)
        torch.testing.assert_close(y, y[:, 3:].expand_as(y), rtol=0, atol=1e-5)
        assert not torch.equal(y, x)
