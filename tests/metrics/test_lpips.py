"""LPIPS is the paper's, and torch-fidelity's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from metrics import lpips
from metrics.detectors import VGG16, given_weights, load_lpips
from tests.metrics.test_detectors import images
from torch_utils.download import read_tensors


def plain_lpips(a: torch.Tensor, b: torch.Tensor, vgg: torch.nn.Module) -> torch.Tensor:
    """Zhang et al., equation 1, with the weights that are shipped; images in −1..1."""
    linear = list(read_tensors(lpips.CHANNEL_WEIGHTS).values())
    mean, std = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    a, b = ((x - mean.view(3, 1, 1)) / std.view(3, 1, 1) for x in (a, b))
    total, taps = 0.0, [3, 8, 15, 22, 29]  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
    for i, layer in enumerate(vgg.features):
        a, b = layer(a), layer(b)
        if i in taps:
            difference = F.normalize(a, dim=1, eps=1e-10) - F.normalize(b, dim=1, eps=1e-10)
            weighted = difference.square() * linear[taps.index(i)].view(-1, 1, 1)
            total = total + weighted.sum(dim=1).mean(dim=(1, 2))
    return total


@torch.no_grad()
def test_lpips_is_the_papers(small, vgg16):
    from torchvision.models import vgg16 as model  # the small one

    vgg = model()
    vgg.load_state_dict(torch.load(vgg16, weights_only=True))
    distance = load_lpips(given_weights([vgg16])[VGG16], "cpu")
    a, b = (images(4, seed=seed).float() / 127.5 - 1 for seed in (0, 1))
    b[1], b[2] = a[1], a[2] + 0.01
    found = distance(a, b)
    torch.testing.assert_close(found, plain_lpips(a, b, vgg), rtol=1e-4, atol=1e-7)
    assert found[1] == 0 and 0 < found[2] < found[0]
    large = F.interpolate(a, scale_factor=16, mode="nearest")  # of 512²: reduced to 256²
    expected = distance(*(F.interpolate(x, scale_factor=8, mode="nearest") for x in (a[:1], b[:1])))
    found = distance(large[:1], F.interpolate(b, scale_factor=16, mode="nearest")[:1])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    grey = a[:, :1]
    torch.testing.assert_close(
        distance(grey, grey.flip(2)), distance(*(x.repeat(1, 3, 1, 1) for x in (grey, grey.flip(2))))
    )


@torch.no_grad()
def test_what_a_factor_does_not_divide_is_left_out(small, vgg16, monkeypatch):
    """As of 1280x768, so of an eighth of it: means of 3 × 3 pixels leave the last columns, and nothing more."""
    monkeypatch.setattr(lpips, "MAX_SIDE", 32)
    distance = load_lpips(given_weights([vgg16])[VGG16], "cpu")
    a, b = (F.interpolate(images(1, seed=seed) / 127.5 - 1, [96, 158], mode="bilinear") for seed in (0, 1))
    reduced = [x[..., :156].unflatten(3, (-1, 3)).unflatten(2, (-1, 3)).mean(dim=(3, 5)) for x in (a, b)]
    assert reduced[0].shape[2:] == (32, 52)
    torch.testing.assert_close(distance(a, b), distance(*reduced), rtol=1e-4, atol=1e-7)


def test_shipped_weights_are_lpips_0_1():
    tensors = read_tensors(lpips.CHANNEL_WEIGHTS)
    assert [tensor.numel() for tensor in tensors.values()] == [64, 128, 256, 512, 512]
    assert all(tensor.min() >= 0 for tensor in tensors.values())
    sums = [6.92599, 8.85833, 17.51501, 51.52132, 47.03485]  # of lpips/weights/v0.1/vgg.pth
    assert [float(tensor.sum()) for tensor in tensors.values()] == pytest.approx(sums, rel=1e-5)
