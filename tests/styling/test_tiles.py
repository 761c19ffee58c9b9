"""styling.tiles: tiles give what the whole image gives, whatever the sizes."""

from functools import partial

import numpy as np
import pytest
import torch

from networks.stylizer import MIN_SIZE, Stylizer, StylizerConfig
from styling import tiles as module
from styling.tiles import RunningMoments, stylize_tiled, tile_for, tiles


def image(height, width, seed=0):
    """Smooth, with a bright corner: its statistics differ from tile to tile."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3)).cumsum(axis=0).cumsum(axis=1)
    noise = (noise - noise.min()) / np.ptp(noise) * 200
    noise[: height // 3, : width // 3] += 55
    return noise.astype(np.uint8)


def untiled(model, content, kernels):
    with torch.no_grad():
        y = model(torch.from_numpy(content).permute(2, 0, 1)[None].float() / 127.5 - 1, kernels)[0]
    return (y * 127.5 + 127.5).round().clamp(0, 255).permute(1, 2, 0).numpy().astype(np.uint8)


@pytest.fixture(scope="module", params=["adaconv", "adain"])
def stylizer(request):
    """A model and a style of random weights, whose images use most of the range and are rarely beyond it."""
    torch.manual_seed(0)
    model = Stylizer(StylizerConfig(1 / 8, request.param, 64)).eval().requires_grad_(False)
    for parameter in model.encoder.parameters():
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    kernels = model.kernels(torch.rand(1, 3, 64, 64) * 2 - 1)
    y = model(torch.from_numpy(image(64, 64)).permute(2, 0, 1)[None].float() / 127.5 - 1, kernels)
    last = model.decoder.stages[3].convs[-1]
    last.weight *= 0.4 / y.std()
    last.bias -= 0.4 * y.mean() / y.std()
    return model, kernels


@pytest.mark.parametrize("size", [(203, 181), (96, 160), (33, 250), (MIN_SIZE, MIN_SIZE), (17, 90)])
@pytest.mark.parametrize("tile", [16, 56, 128, module.MAX_TILE])
def test_tiles_are_the_whole(stylizer, size, tile):
    model, kernels = stylizer
    content = image(*size)
    y, expected = stylize_tiled(model, content, kernels, tile), untiled(model, content, kernels)
    assert y.shape == content.shape and y.dtype == np.uint8
    difference = np.abs(y.astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01
    assert expected.std() > 10 and np.isin(expected, (0, 255)).mean() < 0.5  # there was something to be seen


@pytest.mark.parametrize("side", [None, (120, 136)])
@pytest.mark.parametrize("size", [1, 5, 9])
def test_kernels_of_any_size(size, side):
    """They reach further, and so do the tiles."""
    torch.manual_seed(0)
    config = StylizerConfig(1 / 8, "adaconv", 64, kernel_size=size, depthwise_scale=0.3)
    model = Stylizer(config).eval().requires_grad_(False)
    for parameter in model.encoder.parameters():
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    least = config.min_size
    content, kernels = image(*(side or (least, least))), model.kernels(torch.rand(1, 3, 64, 64) * 2 - 1)
    for tile in (16, 56):
        y, expected = stylize_tiled(model, content, kernels, tile), untiled(model, content, kernels)
        assert np.abs(y.astype(int) - expected).max() <= 1 and expected.std() > 10
    for function in (partial(stylize_tiled, tile=16), untiled):
        with pytest.raises(ValueError, match=rf"at least {least}x{least} pixels, got {least - 1}x90"):
            function(model, image(90, least - 1), kernels=kernels)


def test_tiles_alone_would_not_do(stylizer):
    """Each tile as an image of its own has other statistics: what the passes are for."""
    model, kernels = stylizer
    content = image(128, 128)
    alone = np.concatenate([untiled(model, content[:64], kernels), untiled(model, content[64:], kernels)])
    assert np.abs(alone.astype(int) - untiled(model, content, kernels)).mean() > 2


def test_moments_of_parts_are_those_of_the_whole():
    torch.manual_seed(0)
    x = 1000 + torch.randn(2, 3, 40, 50, dtype=torch.float64) * torch.linspace(0.01, 9, 50, dtype=torch.float64)
    running = RunningMoments()
    for part in (x[:, :, :7], x[:, :, 7:30, :11], x[:, :, 7:30, 11:], x[:, :, 30:31], x[:, :, 31:]):
        running.add(part)
    mean, var = running.result(torch.float64)
    torch.testing.assert_close(mean, x.mean(dim=(2, 3)), rtol=1e-13, atol=0)
    torch.testing.assert_close(var, x.var(dim=(2, 3), correction=0), rtol=1e-11, atol=0)


@pytest.mark.parametrize(("size", "side", "halo"), [((20, 33), 8, 3), ((5, 5), 8, 3), ((16, 16), 8, 0)])
def test_every_pixel_is_in_one_tile(size, side, halo):
    covered = np.zeros(size, dtype=int)
    for (top, bottom, left, right), (outer_top, outer_bottom, outer_left, outer_right) in tiles(*size, side, halo):
        covered[top:bottom, left:right] += 1
        assert outer_top == max(top - halo, 0) and outer_bottom == min(bottom + halo, size[0])
        assert outer_left == max(left - halo, 0) and outer_right == min(right + halo, size[1])
    assert (covered == 1).all()


def test_progress(stylizer):
    model, kernels = stylizer
    calls = []
    stylize_tiled(model, image(70, 50), kernels, 32, progress=lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == list(range(1, 3 * 2 * 5 + 1))  # 3 × 2 tiles by the encoder and four stages
    assert {total for _, total in calls} == {30}


def test_the_tile_follows_from_the_memory():
    sizes = [tile_for(1.0, 1000, 1000, memory) for memory in (300 << 20, 1 << 30, 100 << 30)]
    assert sizes == sorted(sizes) and 64 <= sizes[0] < sizes[1] < sizes[2] == module.MAX_TILE
    assert tile_for(0.5, 1000, 1000, 300 << 20) > sizes[0]
    with pytest.raises(ValueError, match=r"8000x6000 pixels need 4\.\d GiB, 2\.0 are free"):
        tile_for(1.0, 6000, 8000, 2 << 30)


def test_what_is_refused(stylizer):
    model, kernels = stylizer
    for content in (image(16, 16)[..., :1], image(16, 16).astype(np.float32), image(16, 16)[0]):
        with pytest.raises(ValueError, match="uint8"):
            stylize_tiled(model, content, kernels, 16)
    with pytest.raises(ValueError, match="at least 9x9 pixels, got 30x8"):
        stylize_tiled(model, image(8, 30), kernels, 16)
    for tile in (0, 8, 20, -16):
        with pytest.raises(ValueError, match="tile"):
            stylize_tiled(model, image(16, 16), kernels, tile)
    with pytest.raises(ValueError, match="one style"):
        stylize_tiled(model, image(16, 16), model.kernels(torch.zeros(2, 3, 64, 64)), 16)
