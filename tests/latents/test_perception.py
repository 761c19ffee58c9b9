import pytest
import torch

from latents.perception import PatchFeatures, VGGFeatures, distance, normalized_patches, pyramid
from networks.vgg import VGG19


def test_a_pyramid_halves_by_means():
    x = torch.randn(2, 3, 32, 32)
    levels = pyramid(x)
    assert [level.shape[2] for level in levels] == [32, 16, 8]
    torch.testing.assert_close(levels[2][1, 2, 3, 5], x[1, 2, 12:16, 20:24].mean())


def test_normalized_patches_have_no_brightness_and_contrast():
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(normalized_patches(x), normalized_patches(3 * x + 2), atol=2e-2, rtol=0)
    patch = x[0, 1, 2:9, 5:12]
    expected = (x[0, 1, 5, 8] - patch.mean()) / (patch.var(correction=0) + 0.06**2).sqrt()
    torch.testing.assert_close(normalized_patches(x)[0, 1, 5, 8], expected)
    flat = torch.full([1, 1, 16, 16], 0.3) + 1e-4 * torch.randn(1, 1, 16, 16)
    assert normalized_patches(flat).abs().max() < 0.01


def test_distance_is_the_sum_of_mean_squares_of_each_sample():
    a, b = torch.randn(2, 3, 8, 8), torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(distance([a, b], [a, b]), torch.zeros(2))
    shifted = distance([a, b], [a + torch.tensor([1.0, 2.0]).view(2, 1, 1, 1), b])
    torch.testing.assert_close(shifted, torch.tensor([1.0, 4.0]))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("features", [PatchFeatures(), VGGFeatures(VGG19(1 / 16).eval().requires_grad_(False))])
def test_what_is_more_alike_is_nearer(features, channels):
    x = torch.rand(1, channels, 32, 32) * 2 - 1
    near, far = (distance(features(x + s * torch.randn_like(x)), features(x)) for s in (0.02, 0.2))
    assert 0 < near < far / 4
    moved = x.clone().requires_grad_()
    distance(features(moved), features(x + 0.1)).sum().backward()
    assert moved.grad.isfinite().all() and moved.grad.abs().sum() > 0


def test_vgg_sees_large_images_reduced():
    vgg = VGG19(1 / 16).eval().requires_grad_(False)
    features = VGGFeatures(vgg)
    x = torch.rand(1, 3, 256, 256) * 2 - 1
    large = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    for a, b in zip(features(x), features(large), strict=True):
        torch.testing.assert_close(a, b)
