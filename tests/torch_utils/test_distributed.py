"""torch_utils.distributed with two real processes on the CPU."""

import copy
import time

import pytest
import torch
from torch import nn

from torch_utils import distributed
from torch_utils.cli import UserError

CPU = torch.device("cpu")


def model_and_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    return model, torch.randn(6, 5, dtype=torch.float64)


def gradients(model, batch):
    model.zero_grad()
    model(batch).square().mean().backward()
    return [p.grad for p in model.parameters()]


def in_two_processes(folder):
    """What each process checks; it leaves a file when all of it holds."""
    rank = distributed.rank()
    assert distributed.world_size() == 2

    # Each process has half of the batch; the mean of their gradients is the whole batch's.
    model, batch = model_and_batch()
    expected = [g.clone() for g in gradients(copy.deepcopy(model), batch)]
    unused = nn.Parameter(torch.zeros(3))
    half = gradients(model, batch[3 * rank : 3 * rank + 3])
    assert not torch.allclose(half[0], expected[0])
    distributed.average_gradients([unused, *model.parameters()])
    for p, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-12, atol=1e-14)
    assert unused.grad is None

    # Rank 0's parameters and buffers go to all.
    torch.manual_seed(rank)
    module = nn.BatchNorm1d(4)
    nn.init.normal_(module.weight)
    module.running_mean.normal_()
    module.num_batches_tracked.fill_(7 + rank)
    own = copy.deepcopy(module.state_dict())
    distributed.broadcast(module)
    torch.manual_seed(0)
    assert torch.equal(module.weight, torch.randn(4))
    assert torch.equal(module.running_mean, torch.randn(4))
    assert module.num_batches_tracked == 7
    assert torch.equal(module.weight, own["weight"]) == (rank == 0)

    value = torch.tensor([1.0, 10.0]) * (rank + 1)
    assert distributed.mean(value).tolist() == [1.5, 15.0]
    assert value.tolist() == [1.0 * (rank + 1), 10.0 * (rank + 1)]  # left alone

    for flags in [(False, False), (False, True), (True, False), (True, True)]:
        assert distributed.any_process(flags[rank], CPU) is any(flags)

    assert [v.tolist() for v in distributed.gather(torch.tensor([rank, 5]))] == [[0, 5], [1, 5]]

    (folder / f"rank {rank}").touch()


def fail_in_process_one(folder):
    (folder / f"rank {distributed.rank()}").touch(exist_ok=False)  # there is no second attempt
    if distributed.rank() == 1:
        raise RuntimeError("process one fails")
    time.sleep(120)


@pytest.mark.slow
def test_two_processes(tmp_path):
    distributed.launch(in_two_processes, tmp_path, processes=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank 0", "rank 1"]
    assert distributed.world_size() == 1


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others(tmp_path, capfd):
    start = time.monotonic()
    with pytest.raises(Exception, match="process one fails"):
        distributed.launch(fail_in_process_one, tmp_path, processes=2)
    assert time.monotonic() - start < 90
    assert "\nRuntimeError: process one fails\n" in capfd.readouterr().err


def test_one_process_is_this_one():
    calls = []
    distributed.launch(calls.append, 3, processes=1)
    assert calls == [3]
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


def test_with_one_process_nothing_changes():
    model, batch = model_and_batch()
    before = [g.clone() for g in gradients(model, batch)]
    distributed.average_gradients(model.parameters())
    distributed.broadcast(model)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
    value = torch.tensor([1.0, 2.0])
    assert distributed.mean(value) is value
    assert distributed.any_process(True, CPU) is True and distributed.any_process(False, CPU) is False
    assert [v is value for v in distributed.gather(value)] == [True]


def mistaken(folder):
    """One process finds a mistake, the other waits for it."""
    if distributed.rank() == 1:
        raise UserError("the picture 7.png is cut off; copy it again")
    distributed.any_process(True, CPU)


def test_a_users_mistake_in_one_process_is_one_line(tmp_path, capfd):
    start = time.monotonic()
    with pytest.raises(UserError, match=r"^the picture 7.png is cut off; copy it again$"):
        distributed.launch(mistaken, str(tmp_path), processes=2)
    assert time.monotonic() - start < 60
    assert "Traceback" not in capfd.readouterr().err
