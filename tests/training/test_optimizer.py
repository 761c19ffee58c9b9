"""One step of Adam: against torch's own, in parts, and not where a gradient is not finite."""

import copy

import pytest
import torch

from training.optimizer import GuardedOptimizer, lazy_adam


def optimizer_of(module: torch.nn.Module, lr: float = 0.01, scaling: bool = False) -> GuardedOptimizer:
    trained = [p for p in module.parameters() if p.requires_grad]
    return GuardedOptimizer(torch.optim.Adam(trained, lr=lr, betas=(0.0, 0.99), fused=True), scaling)


def take_step(optimizer: GuardedOptimizer, *losses: torch.Tensor) -> None:
    """One step down the mean of the losses of microbatches."""
    optimizer.zero_grad()
    for loss in losses:
        optimizer.backward(loss, len(losses))
    optimizer.step()


def linear(seed: int = 0) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(5, 3)


def test_adam_is_corrected_as_in_stylegan2():
    group = lazy_adam(linear().parameters(), 0.0025, interval=16).param_groups[0]
    assert group["lr"] == pytest.approx(0.0025 * 16 / 17)
    assert group["betas"] == pytest.approx((0.0, 0.99 ** (16 / 17)))


@pytest.mark.parametrize("scaling", [False, True])
def test_parts_are_the_whole_batch(scaling):
    """With plain gradient descent, whose steps are as long as the gradient: Adam ignores a factor on it."""
    whole, parts = linear(), linear()
    x = torch.randn(8, 5)
    sgd = torch.optim.SGD(whole.parameters(), lr=0.01, momentum=0.9)
    optimizer = GuardedOptimizer(torch.optim.SGD(parts.parameters(), lr=0.01, momentum=0.9, fused=True), scaling)
    for _ in range(5):
        sgd.zero_grad()
        whole(x).square().mean().backward()
        sgd.step()
        take_step(optimizer, *(parts(part).square().mean() for part in x.split(2)))
    torch.testing.assert_close(whole.weight, parts.weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_step_that_is_not_finite_is_left_out(value, kind):
    module = linear()
    sgd = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1, fused=True)
    optimizer = GuardedOptimizer(sgd) if kind == "sgd" else optimizer_of(module)
    x = torch.randn(8, 5)

    def step(factor: float) -> None:
        take_step(optimizer, (module(x) * factor).square().mean())

    step(1.0)
    before = {name: p.clone() for name, p in module.named_parameters()}
    moments = {k: copy.deepcopy(v) for k, v in optimizer.optimizer.state_dict()["state"][0].items()}
    step(value), step(value)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    for key, moment in optimizer.optimizer.state_dict()["state"][0].items():
        assert torch.equal(torch.as_tensor(moment), torch.as_tensor(moments[key])), key
    assert (float(optimizer.skipped), float(optimizer.nonfinite_in_a_row)) == (2, 2)
    step(1.0)
    assert not torch.equal(module.weight, before["weight"])
    assert (float(optimizer.skipped), float(optimizer.nonfinite_in_a_row)) == (2, 0)


def test_a_finite_regularizer_does_not_hide_a_loss_that_is_not():
    module = linear()
    optimizer = optimizer_of(module)
    for _ in range(3):
        for factor, of_loss in ((float("nan"), True), (1.0, False)):
            optimizer.zero_grad()
            optimizer.backward((module(torch.ones(8, 5)) * factor).mean())
            optimizer.step(of_loss)
    assert (float(optimizer.skipped), float(optimizer.nonfinite_in_a_row)) == (3, 3)


def test_a_first_step_that_is_left_out_leaves_nothing_behind(monkeypatch):
    """SGD's momenta begin in the first step, even where that is skipped; what lay in their memory must not count."""
    monkeypatch.setattr(torch, "empty_like", lambda p, **options: torch.full_like(p, float("nan")))
    results = []
    for skips in (0, 1):
        module = linear()
        sgd = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=True)
        optimizer = GuardedOptimizer(sgd)
        for factor in [float("nan")] * skips + [1.0, 1.0]:
            take_step(optimizer, (module(torch.ones(8, 5)) * factor).square().mean())
        results.append(module.weight.detach().clone())
    assert results[0].isfinite().all() and torch.equal(*results)


def test_the_scale_is_halved_by_overflow_and_doubled_by_patience():
    module = linear()
    optimizer = optimizer_of(module, 1e-6, scaling=True)
    assert optimizer.scale == 2**16
    take_step(optimizer, module(torch.ones(1, 5)).mean() * float("inf"))
    assert optimizer.scale == 2**15
    for _ in range(1999):
        take_step(optimizer, module(torch.ones(1, 5)).mean())
    assert optimizer.scale == 2**15
    take_step(optimizer, module(torch.ones(1, 5)).mean())
    assert optimizer.scale == 2**16
    for _ in range(20):  # a loss that is not finite at any scale
        take_step(optimizer, module(torch.ones(1, 5)).mean() * float("nan"))
    assert optimizer.scale == 1


def test_what_is_frozen_stays():
    module = linear()
    module.bias.requires_grad_(False)
    before = module.bias.clone()
    take_step(optimizer_of(module, 0.1), module(torch.ones(1, 5)).mean())
    assert torch.equal(module.bias, before)


def test_its_state_goes_on_exactly():
    x = torch.randn(8, 5)
    module = linear()
    optimizer = optimizer_of(module, scaling=True)
    for _ in range(3):
        take_step(optimizer, module(x).square().mean())
    again = linear(1)
    again.load_state_dict(module.state_dict())
    resumed = optimizer_of(again, scaling=True)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # as through a file
    for d, m in ((optimizer, module), (resumed, again)):
        take_step(d, m(x).square().mean())
    assert torch.equal(module.weight, again.weight)
    assert optimizer.steps_since_change == resumed.steps_since_change == 4
