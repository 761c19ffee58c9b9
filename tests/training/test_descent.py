"""One step of Adam: against torch's own, in parts, and not where a gradient is not finite."""

import copy

import pytest
import torch

from training.descent import Descent

CPU = torch.device("cpu")


def linear(seed: int = 0) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(5, 3)


def test_adam_is_corrected_as_in_stylegan2():
    group = Descent(linear(), lr=0.0025, interval=16, device=CPU).adam.param_groups[0]
    assert group["lr"] == pytest.approx(0.0025 * 16 / 17)
    assert group["betas"] == pytest.approx((0.0, 0.99 ** (16 / 17)))
    group = Descent(linear(), lr=0.0025, interval=None, device=CPU).adam.param_groups[0]
    assert (group["lr"], group["betas"]) == (0.0025, (0.0, 0.99))


@pytest.mark.parametrize("scaling", [False, True])
def test_parts_are_the_whole_batch(scaling):
    whole, parts = linear(), linear()
    x = torch.randn(8, 5)
    adam = torch.optim.Adam(whole.parameters(), lr=0.01, betas=(0.0, 0.99), eps=1e-8)
    descent = Descent(parts, 0.01, None, CPU, scaling)
    for _ in range(5):
        adam.zero_grad()
        whole(x).square().mean().backward()
        adam.step()
        descent.step((parts(part).square().mean() for part in x.split(2)), 4)
    torch.testing.assert_close(whole.weight, parts.weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_step_that_is_not_finite_is_left_out(value):
    module = linear()
    descent = Descent(module, 0.01, None, CPU)
    x = torch.randn(8, 5)

    def step(factor: float) -> None:
        descent.step([(module(x) * factor).square().mean()])

    step(1.0)
    before = {name: p.clone() for name, p in module.named_parameters()}
    moments = {k: v.clone() for k, v in descent.adam.state_dict()["state"][0].items()}
    step(value), step(value)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    for key, moment in descent.adam.state_dict()["state"][0].items():
        assert torch.equal(moment, moments[key]), key
    assert (float(descent.skipped), float(descent.streak)) == (2, 2)
    step(1.0)
    assert not torch.equal(module.weight, before["weight"])
    assert (float(descent.skipped), float(descent.streak)) == (2, 0)


def test_the_scale_is_halved_by_overflow_and_doubled_by_patience():
    module = linear()
    descent = Descent(module, 1e-6, None, CPU, scaling=True)
    assert descent.scale == 2**16
    descent.step([module(torch.ones(1, 5)).mean() * float("inf")])
    assert descent.scale == 2**15
    for _ in range(1999):
        descent.step([module(torch.ones(1, 5)).mean()])
    assert descent.scale == 2**15
    descent.step([module(torch.ones(1, 5)).mean()])
    assert descent.scale == 2**16


def test_what_is_frozen_stays():
    module = linear()
    module.bias.requires_grad_(False)
    before = module.bias.clone()
    Descent(module, 0.1, None, CPU).step([module(torch.ones(1, 5)).mean()])
    assert torch.equal(module.bias, before)


def test_its_state_goes_on_exactly():
    x = torch.randn(8, 5)
    module = linear()
    descent = Descent(module, 0.01, None, CPU, scaling=True)
    for _ in range(3):
        descent.step([module(x).square().mean()])
    again = linear(1)
    again.load_state_dict(module.state_dict())
    resumed = Descent(again, 0.01, None, CPU, scaling=True)
    resumed.load_state_dict(copy.deepcopy(descent.state_dict()))  # as through a file
    for d, m in ((descent, module), (resumed, again)):
        d.step([m(x).square().mean()])
    assert torch.equal(module.weight, again.weight)
    assert descent.good == resumed.good == 4
