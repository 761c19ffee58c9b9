"""C_T: Mann and Whitney's test against scipy's, its distribution where nothing is copied, and where all is."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch

from metrics.memorization import copying_test, divide, nearest_centre, rank_z
from metrics.nearest import find_nearest


def cloud(count: int, size: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ties", [False, True])
def test_rank_test_is_scipys(ties):
    new, fake = cloud(30, 1)[:, 0].double(), cloud(50, 1, seed=1)[:, 0].double() + 0.3
    if ties:
        new, fake = new.round(), fake.round()
    u = scipy.stats.mannwhitneyu(fake.numpy(), new.numpy()).statistic
    assert rank_z(new, fake) == pytest.approx((u - 30 * 50 / 2) / math.sqrt(30 * 50 * 81 / 12))


def test_rank_test_of_extremes():
    new, fake = torch.arange(1.0, 11.0), torch.zeros(10)
    assert rank_z(new, fake) == pytest.approx(-50 / math.sqrt(100 * 21 / 12))  # all fakes are nearer
    assert rank_z(fake, new) == pytest.approx(50 / math.sqrt(100 * 21 / 12))
    assert rank_z(new, new) == 0


def test_cells_are_the_clusters_that_there_are():
    """Each image's centre is the mean of its cell; well separated clusters are found, from a start in each of them."""
    where = torch.arange(60) % 3
    features = cloud(60) + 100 * where[:, None]
    centres = divide(features, 3, seed=next(s for s in range(50) if started_in_all(where, s)))
    own = nearest_centre(features, centres)
    assert len({(int(a), int(b)) for a, b in zip(own, where, strict=True)}) == 3
    for cell in range(3):
        torch.testing.assert_close(centres[cell], features[own == cell].double().mean(dim=0))


def started_in_all(where: torch.Tensor, seed: int) -> bool:
    chosen = torch.randperm(len(where), generator=torch.Generator().manual_seed(seed))[:3]
    return len(where[chosen].unique()) == 3


def c_t(train: torch.Tensor, new: torch.Tensor, fake: torch.Tensor) -> float:
    distances = (find_nearest(x, train, 1).distances[:, 0] for x in (new, fake))
    return copying_test(train, new, fake, *distances)


def test_c_t_of_one_source_copies_and_a_bad_fit():
    train, new, fake = cloud(400), cloud(200, seed=1), cloud(300, seed=2)
    values = [c_t(train, cloud(200, seed=3 + s), cloud(300, seed=20 + s)) for s in range(8)]
    assert abs(sum(values) / 8) < 1 and all(abs(value) < 4 for value in values)
    copied = train[:300] + 0.01 * fake
    assert c_t(train, new, copied) < -5
    assert c_t(train, new, torch.cat([copied[:150], fake[:150]])) < -1.5  # half of them
    assert c_t(train, new, 3 * fake) > 3


def test_copies_in_one_region_do_not_hide_behind_a_bad_fit_elsewhere(monkeypatch):
    """Why there are cells: over all of space, copies and bad images even out (Meehan et al., section 3.2)."""
    train = torch.cat([cloud(200), cloud(200, seed=1) + 50])
    new = torch.cat([cloud(100, seed=2), cloud(100, seed=3) + 50])
    fake = torch.cat([train[:100] + 0.01 * cloud(100, seed=4), 3 * cloud(100, seed=5) + 50])
    distances = [find_nearest(x, train, 1).distances[:, 0] for x in (new, fake)]
    cells = nearest_centre(new, divide(train, 10))
    assert len(cells.unique()) > 3
    near = distances[0][:100], distances[1][:100]
    assert rank_z(*near) < -5 and abs(rank_z(*distances)) < 3


def test_where_no_cell_has_both_new_images_and_fakes_all_are_in_one():
    """As of a model that has collapsed to a part of the data from which there is no test image."""
    train = torch.cat([cloud(110), cloud(110, seed=1) + 100])
    new, fake = cloud(60, seed=2), cloud(16, seed=3) + 100
    distances = [find_nearest(images, train, 1).distances[:, 0] for images in (new, fake)]
    assert copying_test(train, new, fake, *distances) == pytest.approx(rank_z(*distances))
