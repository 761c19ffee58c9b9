"""Process groups: the same calls for 1, 8 or 8 × N processes. With one process each of them costs nothing."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torch_utils.errors import Failure, UserError
from torch_utils.files import atomic_write

TIMEOUT = timedelta(minutes=10)  # one process waits that long for the others in a step
PATIENCE = timedelta(days=1)  # ... and for what rank 0 does alone: metrics take long
SAVING = 600  # seconds that the processes have to save and stop

_patient: dist.ProcessGroup | None = None
T = TypeVar("T")


def rank() -> int:
    """This process's number, 0 for the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def count_gpus(asked: int | None = None) -> int:
    """How many GPUs to use: as many as asked for, or all of this machine. Raises UserError where they are missing."""
    there = torch.cuda.device_count()
    gpus = there if asked is None else asked
    if gpus > there and not under_torchrun():
        raise UserError(f"--gpus {gpus}: this machine has {there}; take --gpus {there}" + " (the CPU)" * (there == 0))
    return gpus


def under_torchrun() -> bool:
    """Whether this process was started as one of several, which are to find each other."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


# --- starting and ending --------------------------------------------------------------------------------------------


def launch(function: Callable, *args, processes: int = 1, gpus: bool = False) -> None:
    """Calls `function(*args)` in that many processes of this machine, which then form a group.

    One process is this one, and so it is for a process that is in a group already. More are started and watched by
    PyTorch's elastic launcher: when one dies, the others are ended. The function and its arguments have to be
    picklable; it returns False when a signal made it stop early. The first process that fails shows its traceback.

    Raises:
        UserError: what one of the processes raised as such.
        Failure: says which process failed, or was killed.
    """
    if processes == 1 or dist.is_initialized():
        return function(*args)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVING))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",  # not every machine can resolve its own name
        run_id="train",
        max_restarts=0,
    )
    # What is wrong is said below, once. The loggers under these have levels of their own.
    for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        log = logging.getLogger(name)
        log.addHandler(logging.NullHandler())
        log.propagate = False
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")  # it clears up after processes that were ended
    with tempfile.TemporaryDirectory() as folder:
        failure = None
        try:
            with suppress(SignalException):  # ^C or SIGTERM: the launcher has passed it on, and waited for them to save
                elastic_launch(config, _launched)(Path(folder), gpus, function, *args)
        except ChildFailedError as error:
            number, failure = error.get_first_failure()
        for kind in (UserError, Failure):
            if (message := Path(folder) / kind.__name__).exists():
                raise kind(message.read_text())
        if failure is not None:
            how = failure.signal_name() if failure.exitcode < 0 else f"exit code {failure.exitcode}"
            why = ", as when memory runs out" if failure.exitcode == -signal.SIGKILL else ""
            raise Failure(f"process {number} was ended by {how}{why}; the others were stopped")


def _launched(folder: Path, gpus: bool, function: Callable, *args) -> None:
    """One process of `launch`. In `folder` it leaves what the launching process is to raise."""
    try:
        with group(gpus):
            interrupted = function(*args) is False
    except Exception as error:
        if not isinstance(error, (UserError, Failure)):
            traceback.print_exc()
            error = Failure(f"process {os.environ['RANK']} failed, see above; the others were stopped")
        kind = UserError if isinstance(error, UserError) else Failure
        with atomic_write(folder / kind.__name__) as file:
            file.write(error.message.encode())
        sys.exit(error.exit_code)
    if interrupted:  # the launcher is ending its processes and would not take the result that they wait to give
        raise KeyboardInterrupt  # which it takes as an end without a result, after all exit handlers


@contextmanager
def group(gpus: bool) -> Iterator[None]:
    """Makes this process one of the group that torchrun's environment variables describe, for the time of the block.

    Of several processes that raise, one does so to the caller; the others exit, for theirs is about that one.

    Raises:
        Failure: names the processes that have not answered for TIMEOUT.
    """
    global _patient
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    elif int(os.environ["LOCAL_WORLD_SIZE"]) > 1:
        torch.set_num_threads(1)  # as many processes as cores
    store, number, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    # numbers that the processes have to know go over the network, so that no GPU has to stop for them
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=TIMEOUT)
    _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield
    except Exception as error:
        hanging = "Timed out waiting" in str(error)  # gloo's words
        with suppress(RuntimeError):  # of the store, when the machine that has it is gone
            store.set(f"failed {number}", "")
            first = store.add("failed", 1) == 1
            if not (first and isinstance(error, UserError)):
                # Where another process was killed, this is a complaint about that: the launcher says so, and ends this
                # one now. The first to fail goes first, for process 0 may have the store.
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                time.sleep(10 if not first else 5 if hanging else 1)
            if not first:
                sys.stdout.flush()
                os._exit(1)
            if hanging:
                silent = ", ".join(str(i) for i in range(size) if not store.check([f"failed {i}"]))
                raise Failure(f"no answer from process {silent} for {TIMEOUT}") from error
        raise
    dist.destroy_process_group()


def on_rank_0(function: Callable[..., T], *args) -> T:
    """What `function(*args)` returns in rank 0, in all processes; the others wait for it. It has to be picklable."""
    if world_size() == 1:
        return function(*args)
    result = [function(*args) if rank() == 0 else None]
    dist.broadcast_object_list(result, src=0, group=_patient)
    return result[0]


def gather_on_rank_0(value: T) -> list[T]:
    """`value` of every process in rank 0, in order of rank, and [] in the others. It has to be picklable.

    The values may differ in size, and the processes may be far apart in time.
    """
    if world_size() == 1:
        return [value]
    values = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, values, dst=0, group=_patient)
    return values or []


def wait_for_rank_0() -> None:
    """The other processes wait here until rank 0 comes, for as long as its metrics may take."""
    if world_size() > 1:
        dist.barrier(group=_patient)


# --- numbers of all processes ---------------------------------------------------------------------------------------


def broadcast(module: nn.Module) -> None:
    """Gives every process the parameters and buffers of rank 0."""
    if world_size() > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            dist.broadcast(tensor.detach(), src=0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its mean over the processes, in one message of at least float32.

    A gradient that only some processes have counts as zero in the others; what no process has stays None, so that the
    optimizer leaves it alone as it does with one process.
    """
    if world_size() == 1:
        return
    parameters = list(parameters)
    there = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
    dist.all_reduce(there, op=dist.ReduceOp.MAX)
    parameters = [p for p, some in zip(parameters, there.tolist(), strict=True) if some]
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    grads = [p.grad for p in parameters]
    flat = torch.cat([g.flatten().to(torch.promote_types(g.dtype, torch.float32)) for g in grads])
    dist.all_reduce(flat)
    flat /= world_size()
    for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def mean(value: Tensor) -> Tensor:
    """The mean of `value` over the processes."""
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= world_size()
    return value


def any_process(flag: bool) -> bool:
    """Whether `flag` is set in at least one process, so that all of them take the same way."""
    if world_size() == 1:
        return flag
    value = torch.tensor(flag, dtype=torch.uint8)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value)


def gather(value: Tensor) -> list[Tensor]:
    """`value` of every process, in order of rank; the same shape everywhere."""
    if world_size() == 1:
        return [value]
    values = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(values, value)
    return values
