"""torch_utils.distributed with two real processes on the CPU."""

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.scripts import free_port, join, start, wait_until
from torch_utils import distributed
from torch_utils.errors import Failure, UserError
from torch_utils.files import write_file

ROOT = Path(__file__).parents[2]


def model_and_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    return model, torch.randn(6, 5, dtype=torch.float64)


def gradients(model, batch):
    model.zero_grad()
    model(batch).square().mean().backward()
    return [p.grad for p in model.parameters()]


def average_in_any_order_of_memory(rank):
    """Parameters keep it, with gradients in that order or another; one has gaps in its memory."""
    torch.manual_seed(0)
    unused = nn.Parameter(torch.zeros(3))
    shapes = [torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)]
    parameters = [nn.Parameter(t) for t in [*shapes, torch.randn(3, 4)[:, ::2], torch.randn(5, 1), torch.randn(())]]
    own = [[torch.randn(p.shape) for p in parameters] for _ in range(2)]
    for p, g in zip(parameters, own[rank], strict=True):
        p.grad = g.clone()
    parameters[0].grad = parameters[0].grad.to(memory_format=torch.channels_last)
    parameters[3].grad = None if rank == 0 else parameters[3].grad
    own[0][3].zero_()
    distributed.average_gradients([*parameters, unused])
    for p, *both in zip(parameters, *own, strict=True):
        torch.testing.assert_close(p.grad, sum(both) / 2, rtol=0, atol=0)
    assert unused.grad is None
    distributed.average_gradients([unused])  # none at all
    assert unused.grad is None


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
    assert unused.grad is None  # Adam leaves it alone, as with one process

    # A gradient that one process lacks is zero there; half precision is summed in float32, where 2 × 60000 is finite.
    one, half, brain = (nn.Parameter(torch.zeros(2, dtype=t)) for t in (torch.float64, torch.float16, torch.bfloat16))
    if rank == 1:
        one.grad = torch.tensor([2.0, 1e-12], dtype=torch.float64)
    half.grad = torch.full_like(half, 60000.0)
    brain.grad = torch.full_like(brain, 1.0 + rank)
    distributed.average_gradients([one, half, brain])
    assert one.grad.tolist() == [1.0, 5e-13]
    assert half.grad.tolist() == [60000.0] * 2 and half.grad.dtype == torch.float16
    assert brain.grad.tolist() == [1.5] * 2 and brain.grad.dtype == torch.bfloat16

    average_in_any_order_of_memory(rank)

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

    assert distributed.total(value).tolist() == [3.0, 30.0]
    assert value.tolist() == [1.0 * (rank + 1), 10.0 * (rank + 1)]
    whole = distributed.total_on_rank_0(torch.tensor([[rank, 2**29]], dtype=torch.int32))
    assert whole.tolist() == [[1, 2**30]] if rank == 0 else whole is None

    for flags in [(False, False), (False, True), (True, False), (True, True)]:
        assert distributed.any_process(flags[rank]) is any(flags)

    assert [v.tolist() for v in distributed.gather(torch.tensor([rank, 5]))] == [[0, 5], [1, 5]]
    assert distributed.on_rank_0(lambda: {"path": folder, "rank": distributed.rank()}) == {"path": folder, "rank": 0}

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
    with pytest.raises(Failure, match=r"^process 1 failed, see above; the others were stopped$") as failure:
        distributed.launch(fail_in_process_one, tmp_path, processes=2)
    assert time.monotonic() - start < 90
    assert failure.value.exit_code == 1
    output = capfd.readouterr().err
    assert output.count("Traceback") == 1 and output.endswith("\nRuntimeError: process one fails\n"), output


def killed(number, waits_for):
    if distributed.rank() == number:
        os.kill(os.getpid(), signal.SIGKILL)
    parameter = nn.Parameter(torch.zeros(3))
    while True:
        if waits_for == "flag":
            distributed.any_process(False)
        else:
            distributed.average_gradients([parameter])


@pytest.mark.slow
@pytest.mark.parametrize("number, waits_for", [(0, "flag"), (1, "flag"), (1, "gradients")])
def test_a_process_that_is_killed_is_named(number, waits_for, capfd):
    start = time.monotonic()
    with pytest.raises(Failure, match=f"^process {number} was ended by SIGKILL, .* the others were stopped$"):
        distributed.launch(killed, number, waits_for, processes=2)
    assert time.monotonic() - start < 60
    assert capfd.readouterr().err == ""


HANGING = """
import sys, time
from datetime import timedelta
from pathlib import Path
from torch_utils import distributed

distributed.TIMEOUT = timedelta(seconds=4)
distributed.REPORT_TIMEOUT = timedelta(seconds=3)
Path(sys.argv[1], sys.argv[2]).touch()
while not all(Path(sys.argv[1], i).exists() for i in "012"):  # Python takes its time to start
    time.sleep(0.01)
with distributed.group(gpus=False):
    if distributed.rank() == 0:
        time.sleep(5)  # metrics, which the others wait for
    distributed.wait_for_rank_0()
    print("all there", flush=True)
    if distributed.rank() == 1:
        time.sleep(100)
    distributed.any_process(False)
"""


@pytest.mark.slow
def test_a_process_that_hangs_is_named(tmp_path):
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}
    folders = [tmp_path / f"process {i}" for i in range(3)]
    processes = []
    for i, folder in enumerate(folders):
        folder.mkdir()
        processes.append(start(folder, "-c", HANGING, tmp_path, i, **env, RANK=str(i), LOCAL_RANK=str(i)))
    for i in (0, 2):
        join(processes[i])
    processes[1].kill()
    join(processes[1])
    assert [process.exitcode for process in processes] == [1, -signal.SIGKILL, 1]
    assert [(folder / "stdout").read_text() for folder in folders] == ["all there\n"] * 3
    said = "".join((folders[i] / "stderr").read_text() for i in (0, 2))
    assert said.count("Failure: no answer from process 1 for 0:00:04") == 1, said


def wait_there(folder):
    write_file(Path(folder) / str(distributed.rank()), str(os.getpid()).encode())
    time.sleep(100)


INTERRUPTED = """
import sys
from tests.torch_utils.test_distributed import distributed, wait_there

if __name__ == "__main__":
    try:
        distributed.launch(wait_there, sys.argv[1], processes=2)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.slow
@pytest.mark.parametrize("to, number", [("all", signal.SIGINT), ("all", signal.SIGTERM), ("others", signal.SIGINT)])
def test_processes_that_are_interrupted_before_they_can_save_are_not_done(tmp_path, to, number):
    """Processes of their own, not forks, which would have the launcher's handlers of signals. The launcher does not
    wait for ever if the signal reaches all others, but not itself."""
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, text=True) as process:
        wait_until(lambda: all((tmp_path / name).exists() for name in "01"))
        if to == "all":
            os.killpg(process.pid, number)
        else:
            for name in "01":
                os.kill(int((tmp_path / name).read_text()), number)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "")


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
    assert distributed.mean(value) is distributed.total(value) is distributed.total_on_rank_0(value) is value
    assert distributed.any_process(True) is True and distributed.any_process(False) is False
    assert [v is value for v in distributed.gather(value)] == [True]


FAILING = """
import multiprocessing, sys, time
from contextlib import nullcontext
from multiprocessing.util import Finalize
from pathlib import Path
from torch_utils import distributed
from torch_utils.errors import UserError

folder, gpus, error = Path(sys.argv[1]), sys.argv[2] == "True", eval(sys.argv[3])
distributed.group = nullcontext  # there need not be GPUs
Finalize(None, (folder / "exit handlers").touch, exitpriority=1)  # where NCCL may wait for ever

def fail():
    if gpus:
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(300,))
        worker.start()
        (folder / "worker").write_text(str(worker.pid))
    print("before it failed", end="")
    raise error

distributed._run_process(folder, gpus, fail)
"""


@pytest.mark.parametrize("gpus", [False, True])
@pytest.mark.parametrize(
    "error, code, left",
    [
        ("UserError('a; b')", 2, "UserError"),
        ("ValueError('c')", 1, "Failure"),
        ("KeyboardInterrupt()", 130, None),
        ("MemoryError()", 2, "UserError"),
        ("PermissionError(13, 'Permission denied', 'd')", 2, "UserError"),
    ],
)
def test_a_process_that_fails_leaves_a_group_of_gpus_without_exit_handlers(tmp_path, gpus, error, code, left):
    """Its report, its output and its exit code are the same with and without GPUs."""
    process = start(tmp_path, "-c", FAILING, tmp_path, gpus, error, RANK="3")
    join(process, 60)
    assert process.exitcode == code
    assert (tmp_path / "stdout").read_text() == "before it failed"
    assert ("ValueError: c" in (tmp_path / "stderr").read_text()) == (left == "Failure")
    mistakes = {
        "UserError": "a; b",
        "MemoryError": "there is not enough memory; take a smaller --batch, or fewer or smaller images",
        "PermissionError": "d may not be read or looked into; change its permissions, or name another",
    }
    said = {"UserError": mistakes.get(error.partition("(")[0])}
    said["Failure"] = "process 3 failed, see above; the others were stopped"
    assert {name: (tmp_path / name).read_text() for name in said if (tmp_path / name).exists()} == (
        {left: said[left]} if left else {}
    )
    assert (tmp_path / "exit handlers").exists() is not gpus
    if gpus:
        worker = Path("/proc", (tmp_path / "worker").read_text())
        wait_until(lambda: not worker.exists() or "State:\tZ" in (worker / "status").read_text())


def mistaken(folder):
    """One process finds a mistake of the user; the other waits for it in a collective operation."""
    if distributed.rank() == 1:
        raise UserError("the image 7.png is cut off; copy it again")
    distributed.any_process(True)


def test_a_users_mistake_in_one_process_is_one_line(tmp_path, capfd):
    start = time.monotonic()
    with pytest.raises(UserError, match=r"^the image 7.png is cut off; copy it again$"):
        distributed.launch(mistaken, str(tmp_path), processes=2)
    assert time.monotonic() - start < 60
    assert "Traceback" not in capfd.readouterr().err


def too_large(folder):
    """One process has not enough memory; the other waits for it."""
    if distributed.rank() == 1:
        torch.empty(2**60, dtype=torch.uint8)
    distributed.any_process(True)


def test_too_little_memory_in_one_process_is_one_line(tmp_path, capfd):
    with pytest.raises(UserError, match=r"^there is not enough memory; take a smaller --batch"):
        distributed.launch(too_large, str(tmp_path), processes=2)
    assert "Traceback" not in capfd.readouterr().err


def lose_the_connection(folder):
    """Process 0 loses its connection to process 1 long before process 1 says what went wrong in it."""
    if distributed.rank() == 1:
        time.sleep(4)
        raise UserError("the image 7.png is cut off; copy it again")
    raise RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4242")


@pytest.mark.slow
def test_a_lost_connection_never_hides_its_cause(tmp_path, capfd):
    with pytest.raises(UserError, match=r"^the image 7.png is cut off; copy it again$"):
        distributed.launch(lose_the_connection, str(tmp_path), processes=2)
    assert capfd.readouterr().err == ""
