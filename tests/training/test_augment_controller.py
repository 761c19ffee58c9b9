"""training.augment.AdaptiveP: how p follows the sign of the discriminator's logits."""

import pytest
import torch

from training import augment
from training.augment import (
    AdaptiveP,
    AugmentPipe,
)

# The controller.


def steps(ada, p, logits, count, first=0):
    for step in range(first, first + count):
        ada.update(p, logits, step)


def test_p_goes_from_0_to_1_in_500_kimg_and_back():
    ada, p = AdaptiveP(), torch.zeros([])
    sure = torch.full([200, 1], 3.0)
    steps(ada, p, sure, 1248)
    assert float(p) == pytest.approx(1248 * 200 / 500_000, rel=1e-4)
    steps(ada, p, sure, 1252)
    assert float(p) == pytest.approx(1, rel=1e-4)
    steps(ada, p, sure, 100)
    assert float(p) == 1
    steps(ada, p, -sure, 400)
    assert float(p) == pytest.approx(1 - 400 * 200 / 500_000, rel=1e-4)
    steps(ada, p, -sure, 2500)
    assert float(p) == 0


def test_the_target_is_a_share_of_positive_logits():
    """r_t = 0.6 is 80 % positive: more raises p, less lowers it, exactly that leaves it, whatever the sizes."""
    for positive, direction in ((81, 1), (80, 0), (79, -1)):
        ada, p = AdaptiveP(target=0.6, kimg=10), torch.tensor(0.5)
        logits = torch.full([100], -50.0)
        logits[:positive] = 0.001
        steps(ada, p, logits, 4)
        assert float(p) == pytest.approx(0.5 + direction * 400 / 10_000, abs=1e-6)


def test_p_moves_every_four_steps_by_what_they_saw_together():
    ada, p = AdaptiveP(kimg=1), torch.tensor(0.5)
    for step, sign in enumerate((1, 1, 1, -1)):  # r = 0.5
        assert float(p) == 0.5
        ada.update(p, torch.full([10, 1], float(sign)), step)
    assert float(p) == pytest.approx(0.46)
    steps(ada, p, torch.ones(10, 1), 4, first=4)  # the first four are forgotten
    assert float(p) == pytest.approx(0.5)


def test_the_controller_goes_on_from_its_state():
    torch.manual_seed(0)
    logits = [torch.randn(8, 1) + 0.8 for _ in range(50)]

    def run(ada, pipe, first, last):
        for step in range(first, last):
            ada.update(pipe.p, logits[step], step)

    straight, pipe = AdaptiveP(kimg=1), AugmentPipe("bgc", 0.3)
    run(straight, pipe, 0, 50)
    ada, before = AdaptiveP(kimg=1), AugmentPipe("bgc", 0.3)
    run(ada, before, 0, 18)
    assert float(ada.count) == 16
    resumed, after = AdaptiveP(kimg=1), AugmentPipe("bgc")
    resumed.load_state_dict(ada.state_dict())
    after.load_state_dict(before.state_dict())
    run(resumed, after, 18, 50)
    assert torch.equal(after.p, pipe.p)
    assert float(pipe.p) not in (0, 0.3, 1)

    ada, p = AdaptiveP(kimg=1), torch.tensor(0.5)
    steps(ada, p, torch.ones(10), 3)
    resumed = AdaptiveP(kimg=1)
    resumed.load_state_dict(ada.state_dict())
    steps(resumed, p, torch.ones(10), 1, first=3)
    assert float(p) == pytest.approx(0.54)  # by the signs of all four steps


def test_the_controller_sees_all_processes(monkeypatch):
    """This process is unsure (r = 0); the mean over four processes is 0.75."""
    monkeypatch.setattr(augment.distributed, "world_size", lambda: 4)
    monkeypatch.setattr(augment.distributed, "mean", lambda value: value + 0.75 * 10)
    ada, p = AdaptiveP(kimg=1), torch.tensor(0.5)
    steps(ada, p, torch.tensor([1.0, -1.0] * 5), 4)
    assert float(p) == pytest.approx(0.5 + 4 * 4 * 10 / 1000)
