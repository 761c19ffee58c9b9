"""styling.shifts: the mean over contents elsewhere on the encoder's grid has less of what keeps to the grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from media.images import to_float, to_uint8
from models.snapshot import load_stylizer
from styling.apply import FrameStylizer, Settings, stylize_image
from styling.shifts import SHIFTS, average
from styling.styles import CombinedStyle
from tests.styling.test_apply import ROOT, most, scene, style


def test_the_mean_is_rounded():
    images = [torch.tensor([value, 255, 0], dtype=torch.uint8) for value in (1, 2, 3, 4)]
    assert average(images).tolist() == [3, 255, 0] and average(images).dtype == torch.uint8
    assert average(images[:1]) is images[0]


def by_hand(model, content: torch.Tensor, kernels, count: int) -> torch.Tensor:
    """The mean of the model's images of contents that NumPy continues and cuts."""
    wide = np.pad(content.numpy(), [(0, 0), (48, 48), (48, 48)], mode="reflect")
    parts = []
    for top, left in {1: [(0, 0)], 2: [(0, 0), (4, 4)], 4: [(0, 0), (0, 4), (4, 0), (4, 4)]}[count]:
        y = to_uint8(model(to_float(torch.from_numpy(wide[:, top:, left:].copy())[None]), kernels))[0]
        height, width = content.shape[1:]
        parts.append(y[:, 48 - top : 48 - top + height, 48 - left : 48 - left + width])
    return torch.stack(parts).float().mean(dim=0)


@pytest.mark.parametrize("count", SHIFTS)
@pytest.mark.parametrize("tile", ["none", 64])
@torch.no_grad()
def test_images_are_means_over_contents_in_several_places(stylizer, count, tile):
    combined, content = CombinedStyle((style(stylizer, 1),)), scene(2, 72, 90)
    found = stylize_image(stylizer, content, combined, Settings(tile=tile, shifts=count))
    assert most(found, by_hand(stylizer, content, combined.kernels(), count)) <= 1


@pytest.mark.parametrize("settings", [{}, {"tile": 64}, {"strength": 0.5}, {"color": "luminance"}], ids=str)
def test_frames_are_stylized_as_images_are(stylizer, settings):
    combined, frames = CombinedStyle((style(stylizer, 1),)), torch.stack([scene(2, 72, 90), scene(3, 72, 90)])
    look = Settings(**settings, smooth=0, shifts=4)
    made = FrameStylizer(stylizer, combined, look)(frames)
    for frame, found in zip(frames, made, strict=True):
        assert most(found, stylize_image(stylizer, frame, combined, look)) <= 1


def test_smoothed_frames_do_not_depend_on_batches(stylizer):
    combined, frames = CombinedStyle((style(stylizer, 1),)), torch.stack([scene(2, 72, 90)] * 5)
    look = Settings(shifts=2)
    whole = FrameStylizer(stylizer, combined, look)(frames)
    single = FrameStylizer(stylizer, combined, look)
    assert most(whole, torch.cat([single(frame[None]) for frame in frames])) <= 1


def test_progress_counts_all_places(stylizer):
    combined, seen = CombinedStyle((style(stylizer, 1),)), []
    look = Settings(tile=64, shifts=4)
    stylize_image(stylizer, scene(2, 72, 90), combined, look, lambda done, total: seen.append((done, total)))
    total = seen[0][1]
    assert seen == [(number + 1, total) for number in range(total)] and total % 4 == 0


def test_even_areas_of_the_shipped_model_have_less_of_a_weave():
    """A pattern that repeats from cell to cell, of an even content with the noise of a camera."""
    model = load_stylizer(ROOT / "pretrained" / "stylizer-small.safetensors")[0]
    noise = torch.randn(3, 128, 128, generator=torch.Generator().manual_seed(0))
    content = (150 + 2 * noise).round().to(torch.uint8)

    def weave(image: torch.Tensor) -> float:
        cells = image.float().unfold(1, 8, 8).unfold(2, 8, 8)  # [3, rows, columns, 8, 8]
        pattern = cells.mean(dim=(1, 2))
        return (pattern - pattern.mean(dim=(1, 2), keepdim=True)).std().item()

    one, four = (
        sum(
            weave(stylize_image(model, content, CombinedStyle((style(model, seed),)), Settings(shifts=count)))
            for seed in range(3)
        )
        for count in (1, 4)
    )
    assert four < 0.97 * one and one < 3, (one, four)  # 1.69 and 1.81, of 255 for three styles
