"""Two processes, each with half of the batch, train as one process with all of it."""

from __future__ import annotations

import copy
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from networks.discriminator import Discriminator, DiscriminatorConfig
from networks.generator import Generator, GeneratorConfig
from tests.scripts import FORKS, join, launch, prepare
from tests.training.test_loop import assert_same
from torch_utils import distributed
from torch_utils.errors import UserError
from training import loop
from training.log import Averages
from training.loss import PathLength, discriminator_loss, generator_loss, gradient_penalty
from training.optimizer import GuardedOptimizer, lazy_adam
from training.runs import save_state

NETWORK = {"resolution": 16, "img_channels": 3, "c_dim": 3, "cbase": 128, "cmax": 8, "map_depth": 2}


def gradients(module: nn.Module, loss: Tensor) -> list[Tensor | None]:
    module.zero_grad()
    loss.backward()
    distributed.average_gradients(module.parameters())
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def equal_gradients(folder: Path) -> None:
    """What each process checks; it leaves a file when all of it holds."""
    torch.manual_seed(0)
    G = Generator(GeneratorConfig(**NETWORK, z_dim=8, w_dim=8, style_channels=8, noise=False)).double()
    D = Discriminator(DiscriminatorConfig(**NETWORK, mbstd_group=4)).double()
    for p in [*G.parameters(), *D.parameters()]:
        p.data += 0.1 * torch.randn_like(p)  # nothing starts at zero
    z, real = torch.randn(8, 8, dtype=torch.float64), torch.randn(8, 3, 16, 16, dtype=torch.float64)
    c = nn.functional.one_hot(torch.arange(8) % 3, 3).double()
    y = torch.randn_like(real)

    def path_length(part: slice) -> Tensor:
        penalty, ws = PathLength().double(), G.ws(z[part], c[part])
        penalty.mean.fill_(0.3)
        with mock.patch("torch.randn_like", return_value=y[part]):
            loss = penalty(G.synthesis(ws), ws)
        seen.append(penalty.mean)
        return loss

    def fakes(part: slice) -> Tensor:
        return G.synthesis(G.ws(z[part], c[part]))

    def d_loss(part: slice) -> Tensor:
        return discriminator_loss(D(real[part], c[part]), D(fakes(part).detach(), c[part]))

    losses = {
        "generator": (G, lambda part: generator_loss(D(fakes(part), c[part]))),
        "path length": (G, path_length),
        "discriminator": (D, d_loss),
        "R1": (D, lambda part: gradient_penalty(D, real[part], c[part])),
    }
    # The sampler deals the stream out in turn, and a group of the minibatch standard deviation is made of samples that
    # lie evenly apart: so the groups of the parts are groups of the whole batch.
    part = slice(distributed.rank(), None, 2)
    seen: list[Tensor] = []
    for name, (module, loss) in losses.items():
        whole, parts = gradients(module, loss(slice(None))), gradients(module, loss(part))
        scale = max(float(a.norm()) for a in whole if a is not None)
        assert scale > 1e-3, name
        for (parameter, _), a, b in zip(module.named_parameters(), whole, parts, strict=True):
            assert (a is None) == (b is None), f"{name}: {parameter}"
            if a is not None:
                # many biases have nothing to do with R1 and get rounding only
                assert (a - b).norm() <= 1e-9 * a.norm() + 1e-15 * scale, f"{name}: {parameter}"
    torch.testing.assert_close(*seen, rtol=1e-12, atol=0)  # the path lengths' running mean
    (folder / f"rank {distributed.rank()}").touch()


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_the_whole_batch(tmp_path):
    launch(equal_gradients, tmp_path, processes=2)
    assert len(list(tmp_path.iterdir())) == 2


@dataclass
class Config:
    seed: int = 0
    batch: int = 8
    gpus: int = 0
    procs: int = 2


def small_trainer(seed: int) -> Any:
    """A megabyte of weights, some in another order of memory, and one that gets no gradient; Adam and SGD."""
    torch.manual_seed(seed)
    net = nn.ModuleDict({"a": nn.Conv2d(9, 8, 3).to(memory_format=torch.channels_last), "b": nn.Linear(400, 600)})
    net["b"].register_parameter("unused", nn.Parameter(torch.randn(3)))
    net["norm"] = nn.BatchNorm2d(8)
    other = nn.Linear(3, 3)
    sgd = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9, fused=True)
    optimizers = {"adam": GuardedOptimizer(lazy_adam(net.parameters(), 0.01, 4), scaling=True)}
    optimizers["sgd"] = GuardedOptimizer(sgd)
    modules, sheet_name = {"net": net, "other": other}, "fakes"
    return SimpleNamespace(
        modules=modules, optimizers=optimizers, averages=Averages(), statistics=dict, sheet_name=sheet_name
    )


def train_for(trainer: Any, steps: int) -> None:
    """Steps on the same numbers in every process."""
    net, other = trainer.modules.values()
    torch.manual_seed(7)
    for _ in range(steps):
        loss = net["norm"](net["a"](torch.randn(2, 9, 4, 4))).square().mean() + net["b"](torch.randn(2, 400)).sum()
        for optimizer, value in zip(trainer.optimizers.values(), (loss, other(torch.randn(2, 3)).sum()), strict=True):
            optimizer.zero_grad()
            optimizer.backward(value)
            optimizer.step()


def resume_in_all(folder: Path) -> None:
    """A state that rank 0 alone collects, writes and reads is that of all processes, without being sent as pickles."""
    cpu, rank = torch.device("cpu"), distributed.rank()
    trained = small_trainer(0)
    train_for(trained, 3)
    trained.averages.add({"loss": torch.tensor(1.0 + rank)})
    torch.manual_seed(100 + rank)
    if rank == 1:  # the others copy no tensors
        with mock.patch.object(loop, "module_state", side_effect=AssertionError):
            assert loop.training_state(trained, Config(), 3, False, cpu) == {}
    else:
        save_state(folder, loop.training_state(trained, Config(), 3, False, cpu), 0.024)
    distributed.wait_for_rank_0()
    next_number = torch.rand(())

    resumed, sent = small_trainer(1 + rank), []
    send = torch.distributed.broadcast_object_list

    def measured(objects: list, **options: Any) -> None:
        sent.append(len(pickle.dumps(objects)))
        send(objects, **options)

    path = folder / "state" / "state-000000.024.pt" if rank == 0 else folder / "only rank 0 has it.pt"
    with mock.patch("torch.distributed.broadcast_object_list", measured):
        assert loop.restore(resumed, Config(), folder, path, cpu) == (3, False)
    assert path.stat().st_size > 2e6 if rank == 0 else not path.exists()
    assert sum(sent) < 1e5  # random states, and numbers
    assert torch.rand(()) == next_number
    assert resumed.averages.take() == {"loss": 1.5}

    def tensors(trainer: Any) -> list[Any]:
        states = [copy.deepcopy(module.state_dict()) for module in trainer.modules.values()]
        return [*states, *(copy.deepcopy(optimizer.state_dict()) for optimizer in trainer.optimizers.values())]

    for steps in (0, 2):  # as they are, and as they go on
        train_for(trained, steps), train_for(resumed, steps)
        assert_same(tensors(trained), tensors(resumed))
    moments = resumed.optimizers["adam"].optimizer.state
    assert resumed.modules["net"]["b"].unused not in moments
    weight = resumed.modules["net"]["a"].weight
    assert moments[weight]["exp_avg_sq"].stride() == weight.stride()
    (folder / f"rank {rank}").touch()


def resume_from_another(state: Path) -> None:
    loop.restore(small_trainer(0), Config(), state.parent, state, torch.device("cpu"))


def refusal(environment: dict[str, str], state: Path, said: Path) -> None:
    prepare(environment)
    try:
        distributed.launch(resume_from_another, state, processes=2)
    except UserError as error:
        said.write_text(error.message)


@pytest.mark.slow
def test_a_state_of_another_run_is_refused_by_rank_0_for_all(tmp_path):
    """The others wait for what it reads, meanwhile."""
    other = small_trainer(0)
    other.modules["other"] = nn.Linear(3, 4)
    state = save_state(tmp_path, loop.training_state(other, Config(), 3, False, torch.device("cpu")), 0.024)
    process = FORKS.Process(target=refusal, args=(dict(os.environ), state, tmp_path / "said"))
    process.start()
    join(process)
    why = "is no state of this run (other.weight is of another shape or type); name another with --resume"
    assert (tmp_path / "said").read_text() == f"{state} {why}"


@pytest.mark.slow
def test_a_state_is_collected_and_read_by_rank_0_for_all(tmp_path):
    launch(resume_in_all, tmp_path, processes=2)
    assert len(list(tmp_path.glob("rank *"))) == 2


def begin(folder: Path) -> None:
    """Trains, counts and draws a number in each process, and saves the state."""
    rank, processes = distributed.rank(), distributed.world_size()
    trained = small_trainer(0)
    train_for(trained, 3)
    trained.averages.add({"loss": torch.tensor(1.0 + 2 * rank)})
    torch.manual_seed(100 + rank)
    torch.rand(rank + 1)
    state = loop.training_state(trained, Config(procs=processes), 3, False, torch.device("cpu"))
    if rank == 0:
        save_state(folder, state, 0.024)
    torch.save(torch.rand(3), folder / f"next {rank} of {processes}")


def go_on(folder: Path) -> None:
    """Restores that state in each of other processes, goes on, and keeps what all of it is for comparison."""
    rank, processes = distributed.rank(), distributed.world_size()
    resumed = small_trainer(1 + rank)
    state, cpu = folder / "state" / "state-000000.024.pt", torch.device("cpu")
    assert loop.restore(resumed, Config(procs=processes), folder, state, cpu) == (3, False)
    numbers, averages = torch.rand(3), resumed.averages.take()
    train_for(resumed, 2)
    modules = {name: module.state_dict() for name, module in resumed.modules.items()}
    optimizers = {name: optimizer.state_dict() for name, optimizer in resumed.optimizers.items()}
    torch.save([modules, optimizers, averages, numbers], folder / f"went on {rank} of {processes}")


@pytest.mark.slow
@pytest.mark.parametrize("before, now", [(1, 2), (2, 1), (2, 4)])
def test_a_run_goes_on_in_other_processes(tmp_path, before, now):
    """With all that its weights depend on, but with random numbers that no process has drawn before."""
    launch(begin, tmp_path, processes=before)
    launch(go_on, tmp_path, processes=now)
    trained = small_trainer(0)
    train_for(trained, 3), train_for(trained, 2)
    modules = {name: module.state_dict() for name, module in trained.modules.items()}
    optimizers = {name: optimizer.state_dict() for name, optimizer in trained.optimizers.items()}
    drawn = [torch.load(tmp_path / f"next {rank} of {before}", weights_only=True) for rank in range(before)]
    for rank in range(now):
        found = torch.load(tmp_path / f"went on {rank} of {now}", weights_only=True)
        assert_same(found[:2], [modules, optimizers])
        assert found[2] == {"loss": 1.0 if before == 1 else 2.0}  # the mean over the processes
        assert not any((found[3] == numbers).any() for numbers in drawn)
        drawn.append(found[3])


def test_a_state_without_random_numbers_of_each_process_is_refused(tmp_path):
    trained = small_trainer(0)
    state = loop.training_state(trained, Config(procs=1), 3, False, torch.device("cpu"))
    path = save_state(tmp_path, {**state, "config": {**state["config"], "procs": 2}}, 0.024)
    with pytest.raises(UserError, match="it has random numbers of 1 processes, and was trained by 2"):
        loop.restore(trained, Config(procs=1), tmp_path, path, torch.device("cpu"))


def test_a_state_of_a_version_that_had_one_process_is_of_one_process(tmp_path):
    trained = small_trainer(0)
    state = loop.training_state(trained, Config(procs=1), 3, False, torch.device("cpu"))
    old = {name: value for name, value in state["config"].items() if name not in ("procs", "gpus")}
    path, number = save_state(tmp_path, {**state, "config": old}, 0.024), torch.rand(())
    assert loop.restore(trained, Config(procs=1), tmp_path, path, torch.device("cpu")) == (3, False)
    assert torch.rand(()) == number
