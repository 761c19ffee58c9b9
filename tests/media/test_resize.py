"""media.resize: sizes that fit, and Lanczos with all pixels taken into account."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from media.resize import make_smaller, smaller_size


@pytest.mark.parametrize("most", [16, 97, 100, 101, 639, 640, 641, 2000])
@pytest.mark.parametrize("even", [False, True])
def test_sizes_fit_and_keep_their_shape(most, even):
    for height, width in ((640, 360), (361, 640), (640, 640), (639, 11)):
        found = smaller_size(height, width, most, even)
        if max(height, width) <= most:
            assert found == (height, width)
            continue
        step = 2 if even else 1
        assert most - step < max(found) <= most and all(side % step == 0 and side >= step for side in found)
        scale = max(found) / max(height, width)
        assert abs(found[0] - scale * height) <= step and abs(found[1] - scale * width) <= step
    assert smaller_size(640, 360, None, even) == (640, 360)


def test_stripes_become_their_mean():
    """Each pixel counts: without antialiasing every second stripe would be left out."""
    stripes = torch.zeros(2, 3, 64, 96, dtype=torch.uint8)
    stripes[0, :, ::2] = 200
    stripes[1, 1, :, ::2] = 100
    small = make_smaller(stripes, 24)
    assert small.shape == (2, 3, 16, 24) and small.dtype == torch.uint8
    assert (small[0, :, 2:-2].float() - 100).abs().max() <= 4 and (small[1, 1, :, 2:-2].float() - 50).abs().max() <= 3
    assert small[1, 0].max() == 0
    assert make_smaller(stripes, 96) is stripes and torch.equal(make_smaller(stripes[0], 24), small[0])


def test_the_filter_is_lanczos():
    """A wave that the smaller image can hold is kept, which a box or a triangle would flatten."""
    x = np.arange(256) / 256 * 2 * np.pi * 10
    wave = torch.from_numpy(np.rint(127 + 100 * np.sin(x))).to(torch.uint8).expand(3, 256, 256)
    small = make_smaller(wave, 64)[0, 32].double() - 127
    amplitude = small[8:-8].abs().max()
    assert 92 < amplitude < 102
