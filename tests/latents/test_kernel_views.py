"""latents.kernel_views: the numbers against their definitions, the images against the numbers."""

from __future__ import annotations

import base64
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from latents.kernel_views import (
    ABOVE,
    BELOW,
    LINE,
    WIDTH,
    ZERO,
    blocks,
    deviations,
    diverging,
    kernel_page,
    kernel_sheet,
    kernel_views,
    relative_difference,
    response,
    singular_values,
)
from networks.adaconv import AdaConvKernels
from tests.latents.small import VARIANTS, codes, generator


def identity(c: int = 4, g: int = 2, k: int = 3) -> AdaConvKernels:
    eye = torch.eye(g).repeat(c // g, 1)
    depthwise = torch.zeros(1, c, g, k, k)
    depthwise[0, :, :, k // 2, k // 2] = eye
    return AdaConvKernels(depthwise, eye[None])


def test_the_identity_deviates_nowhere_and_passes_everything():
    kernels = identity()
    depthwise, pointwise = deviations(kernels)
    assert not depthwise.any() and not pointwise.any()
    torch.testing.assert_close(response(kernels, 8), torch.ones(8, 8))
    torch.testing.assert_close(singular_values(kernels.pointwise[0]), torch.ones(2, 2))


def test_the_response_of_a_mean_and_of_a_difference():
    kernels = identity(2, 1)
    kernels.depthwise[0, :] = 1 / 9
    mean = response(kernels, 9)
    assert float(mean[4, 4]) == pytest.approx(1)  # zero is in the middle
    assert float(mean[1, 4]) == pytest.approx(abs(1 + 2 * math.cos(2 * math.pi / 3)) / 3, abs=1e-6)
    kernels = identity(2, 1)
    kernels.depthwise[0, :, 0, 1, 2] = -1  # from one pixel to the next
    edge = response(kernels, 8)
    assert float(edge[4, 4]) == pytest.approx(0, abs=1e-6) and float(edge[4, 0]) == pytest.approx(2)
    assert float(edge[0, 4]) == pytest.approx(0, abs=1e-6)


def test_relative_difference():
    torch.manual_seed(0)
    a, b = torch.randn(2, 10_000)
    assert relative_difference(a, a) == 0 and relative_difference(a, -a) == pytest.approx(2)
    assert relative_difference(a, b) == pytest.approx(math.sqrt(2), abs=0.03)
    assert relative_difference(0 * a, 0 * a) == 0


def test_blocks_put_outputs_in_rows_and_inputs_in_columns():
    values = torch.arange(8.0).view(4, 2, 1, 1).expand(-1, -1, 3, 3)  # two groups of two: 0 1 / 2 3 and 4 5 / 6 7
    matrix = blocks(values)
    kernels = matrix[1::4, 1::4]  # the middles, with a line between two and one more between groups
    assert matrix.shape == (7, 16) and kernels[:, :2].tolist() == [[0, 1], [2, 3]]
    assert matrix[1::4, 10::4].tolist() == [[4, 5], [6, 7]]
    assert matrix[3].isnan().all() and matrix[:, 7:9].isnan().all()
    single = blocks(torch.arange(4.0).view(4, 1, 1, 1))
    assert single.shape == (7, 7) and single[1::4, 1::4].tolist() == [[0, 1], [2, 3]]


def test_colours():
    colors = diverging(torch.tensor([[-2.0, 0, 2, 9, torch.nan]]), 2)
    assert [tuple(c) for c in colors[:, 0].t().tolist()] == [BELOW, ZERO, ABOVE, ABOVE, (255, 255, 255)]


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.sources, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.sources += [values["src"]] if "src" in values else []
        self.links += [values["href"]] if "href" in values else []


@pytest.mark.parametrize(("modulation", "norm"), VARIANTS)
@pytest.mark.parametrize("count", [1, 2])
def test_a_sheet_and_a_page_of_every_model(modulation, norm, count):
    G = generator(modulation, norm)
    shown = kernel_views(G, codes(G, count), [f"seed {i}" for i in range(count)], [0, 2])
    names = [view.name for view in shown.layers[0].views]
    spatial = ["structure"] * (modulation == "adaconv")
    expected = [*spatial, "channels", *["bias"] * (modulation == "adain"), *["frequencies"] * len(spatial)]
    assert names == [*expected, "singular values"] and [layer.number for layer in shown.layers] == [0, 2]
    assert all(len(view.images) == 2 * count - 1 for layer in shown.layers for view in layer.views)
    page = Page(kernel_page(shown))
    assert len(page.sources) == len(shown.images) + 2 * len(names) * (2 * count - 1)
    assert not page.links and all(re.match(r"data:image/png;base64,", source) for source in page.sources)
    first = Image.open(io.BytesIO(base64.b64decode(page.sources[0].partition(",")[2])))
    assert np.array_equal(np.asarray(first), np.asarray(next(iter(shown.images.values()))))
    sheet = kernel_sheet(shown)
    assert sheet.height > 2 * max(view.images[0].height for view in shown.layers[0].views)


@pytest.mark.parametrize("count", [1, 2])
def test_layers_without_spatial_kernels_have_empty_cells(count):
    G = generator(kernels_up_to=8)
    shown = kernel_views(G, codes(G, count), [f"seed {i}" for i in range(count)], [4, 2])
    assert [len(layer.views) for layer in shown.layers] == [2, 4]
    assert [view.name for view in shown.layers[0].views] == ["channels", "singular values"]
    sheet, page = kernel_sheet(shown), kernel_page(shown)
    without = kernel_sheet(replace(shown, layers=shown.layers[1:]))
    assert abs(sheet.width - without.width) < WIDTH / 2  # as many columns, those of the layer that has all views
    assert ("<td>–<td>" in page) == (count == 2)


def test_the_same_code_twice_does_not_differ():
    G = generator()
    ws = codes(G, 1).expand(2, -1, -1)
    shown = kernel_views(G, ws, ["a", "b"], range(5))
    assert all(value == 0 for layer in shown.layers for value in layer.differences.values())
    first, *others = shown.images.values()
    assert all(np.array_equal(np.asarray(first), np.asarray(other)) for other in others)


def test_images_of_kernels_stand_apart():
    """Most kernels are white at their borders: without a frame, one code's would run into the other's."""
    G = generator()
    shown = kernel_views(G, codes(G, 2), ["a", "b"], [1, 4])
    assert list(shown.images)[2] == "a with the structure\nof b, layers 1,4"
    for view in shown.layers[0].views[:3]:
        for image in view.images:
            pixels = np.asarray(image)
            for border in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
                assert (border == LINE).all()
    assert [view.last for view in shown.layers[0].views[-2:]] == ["difference", "both"]
