"""styling.color: luminance from one image and chroma from another; colours matched in mean and covariance."""

from __future__ import annotations

import pytest
import torch

from media.files import read_image
from styling.color import keep_colors, luma, match_colors

# RGB → YIQ, from FCC 47 CFR 73.682 (rounded as there)
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], dtype=torch.float64)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values * 2 - 1) * scale


def moments(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [3] and covariance [3, 3] of an image's colours, by PyTorch's own function."""
    x = image.double().flatten(1)
    return x.mean(1), torch.cov(x, correction=0)


def test_luma_of_known_colours():
    colors = torch.tensor([[1.0, 1, 1], [-1, -1, -1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]).view(5, 3, 1, 1)
    assert luma(colors).flatten().tolist() == pytest.approx([1, -1, -0.402, 0.174, -0.772])


def test_luminance_is_the_stylized_ones_and_chroma_the_contents():
    stylized, content = random(2, 3, 8, 8, scale=0.3), random(2, 3, 8, 8, seed=1, scale=0.3)
    out = keep_colors(stylized, content)
    yiq = torch.stack([torch.einsum("ij,njhw->nihw", YIQ, x) for x in (out, stylized, content)])
    assert torch.allclose(yiq[0][:, 0], yiq[1][:, 0])
    assert torch.allclose(yiq[0][:, 1:], yiq[2][:, 1:], atol=1e-3)  # of YIQ's rounded digits


def test_colours_that_do_not_exist_become_greyer_and_keep_luminance_and_hue():
    stylized, content = random(1, 3, 50, 50), random(1, 3, 50, 50, seed=1)
    out = keep_colors(stylized, content)
    assert out.abs().max() <= 1 + 1e-9
    assert torch.allclose(luma(out), luma(stylized))
    chroma, wanted = out - luma(out), content - luma(content)
    share = (chroma * wanted).sum(1) / wanted.square().sum(1)
    assert torch.allclose(chroma, wanted * share.unsqueeze(1)) and share.min() >= 0 and share.max() <= 1 + 1e-9
    cut = share < 1 - 1e-6  # there a channel is at its end: it shrank no more than needed
    assert 0.1 < cut.double().mean() < 0.9
    assert torch.allclose(out.abs().amax(1)[cut], torch.ones(()).double())


def test_a_grey_content_gives_grey_and_the_same_image_itself():
    content = random(3, 8, 8).mean(0, keepdim=True).repeat(3, 1, 1)
    out = keep_colors(random(3, 8, 8, seed=1), content)
    assert torch.allclose(out, out[:1].expand_as(out))
    image = random(3, 8, 8).float()
    assert torch.allclose(keep_colors(image, image), image, atol=1e-6)
    white = torch.ones(3, 4, 4)
    assert torch.equal(keep_colors(white, random(3, 4, 4).float()), white)
    with pytest.raises(ValueError, match="different shapes"):
        keep_colors(torch.zeros(3, 8, 8), torch.zeros(3, 8, 9))


def test_matched_colours_have_the_contents_mean_and_covariance():
    mix = random(3, 3, seed=5)
    style = torch.einsum("ij,jhw->ihw", mix, random(3, 30, 40)) * 0.4 + 0.2
    content = torch.einsum("ij,jhw->ihw", random(3, 3, seed=6), random(3, 20, 25, seed=7)) * 0.3 - 0.1
    out = match_colors(style, content)
    assert out.shape == style.shape and out.dtype == style.dtype
    for found, wanted in zip(moments(out), moments(content), strict=True):
        assert torch.allclose(found, wanted, atol=1e-9)
    batch = match_colors(torch.stack([style, content.new_zeros(3, 30, 40)]), torch.stack([content, content]))
    assert torch.allclose(batch[0], out)
    assert torch.allclose(match_colors(style.float(), content.float()), out.float(), atol=1e-5)


def test_the_root_is_symmetric():
    # Of all maps that fit the covariance, A = Σc^½ Σs^−½; with Σs = v·I it is Σc^½ / √v, symmetric and positive.
    corner = torch.tensor([[s if i == j else 0.0 for s in (0.3, -0.3) for i in range(3)] for j in range(3)])
    style = corner.double().view(3, 2, 3)  # covariance 0.03 · I
    root = torch.tensor([[0.3, 0.1, 0.0], [0.1, 0.2, 0.05], [0.0, 0.05, 0.4]]).double()  # symmetric and positive
    content = torch.einsum("ij,jhw->ihw", root, style / 0.03**0.5)
    assert torch.allclose(match_colors(style, content), content)
    # an asymmetric mixture has the same covariance as its symmetric one: the map may not rotate colours
    turned = torch.linalg.qr(random(3, 3))[0]
    rotated = torch.einsum("ij,jhw->ihw", root @ turned, style / 0.03**0.5)
    assert torch.allclose(match_colors(style, rotated), content)


@pytest.mark.parametrize("content_kind", ["full", "grey", "flat"])
@pytest.mark.parametrize("style_kind", ["full", "grey", "flat", "line"])
def test_degenerate_covariances(style_kind, content_kind):
    def image(kind: str, seed: int) -> torch.Tensor:
        x = random(3, 16, 16, seed=seed).float() * 0.5
        if kind == "grey":
            return x[:1].repeat(3, 1, 1)
        if kind == "line":  # one colour direction
            return x[:1] * torch.tensor([0.9, -0.2, 0.1]).view(3, 1, 1) + 0.1
        return torch.full_like(x, 0.3) if kind == "flat" else x

    style, content = image(style_kind, 0), image(content_kind, 1)
    out = match_colors(style, content)
    (mean, covariance), (goal, wanted) = moments(out), moments(content)
    assert torch.isfinite(out).all() and torch.allclose(mean, goal, atol=1e-5)
    assert covariance.trace() <= wanted.trace() + 1e-5  # nothing is blown up
    if style_kind == "flat" or content_kind == "flat":
        assert out.flatten(1).std(1).max() < 1e-4
    if content_kind == "grey" and style_kind in ("grey", "full"):
        assert (out - out[:1]).abs().max() < 1e-4
        assert torch.allclose(covariance, wanted, atol=1e-5)


def test_real_images(real_images):
    style = read_image(real_images / "paintings" / "picasso_self_portrait.jpg") / 127.5 - 1
    content = read_image(real_images / "photos" / "chicago.jpg") / 127.5 - 1
    out = match_colors(style, content)
    for found, wanted in zip(moments(out), moments(content), strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)
