"""Process groups: the same calls for 1, 8 or 8 × N processes. With a single process, each call returns immediately."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from functools import reduce
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torch_utils.errors import Failure, UserError, explained
from torch_utils.files import atomic_write

TIMEOUT = timedelta(minutes=10)  # how long a process waits for the others within a training step
RANK_0_TIMEOUT = timedelta(days=1)  # how long it waits while only rank 0 works, as on metrics
REPORT_TIMEOUT = timedelta(seconds=10)  # how long a process that lost the others waits to learn why
SHUTDOWN_SECONDS = 600  # how long interrupted processes may take to save their state and stop
SAVED = "saved"  # the file by which a process of `launch` says that it did
INTERRUPTED = 128 + signal.SIGINT  # the exit code of a process that was, as a shell gives it

_rank_0_group: dist.ProcessGroup | None = None  # all processes, with RANK_0_TIMEOUT
_alone: ContextVar[bool] = ContextVar("alone", default=False)
T = TypeVar("T")


def rank() -> int:
    """The number of this process. Rank 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() and not _alone.get() else 0


def world_size() -> int:
    """The number of processes that work together."""
    return dist.get_world_size() if dist.is_initialized() and not _alone.get() else 1


@contextmanager
def alone() -> Iterator[None]:
    """This process works as if it were the only one, for the duration of the block, and waits for no other."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def count_gpus(requested: int | None = None) -> int:
    """The number of GPUs to use: the requested number, or all GPUs of this machine.

    Raises UserError if the machine has fewer than requested.
    """
    available = torch.cuda.device_count()
    gpus = available if requested is None else requested
    if gpus > available and not under_torchrun():
        cpu = " (the CPU)" if available == 0 else ""
        raise UserError(f"--gpus {gpus}: this machine has {available}; take --gpus {available}{cpu}")
    return gpus


def under_torchrun() -> bool:
    """Whether torchrun, or a launcher like it, started this process as one of a group."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


# --- starting and ending --------------------------------------------------------------------------------------------


def launch(function: Callable[..., Any], *args: Any, processes: int = 1, gpus: bool = False) -> None:
    """Calls `function(*args)` in several processes of this machine, which form a process group.

    With `processes` = 1, and in a process that already belongs to a group, the function runs in this process.
    Otherwise PyTorch's elastic launcher starts the processes and watches them: when one of them dies, it ends the
    others. The function and its arguments must be picklable. The function returns False if a signal interrupted it
    and it has saved what is needed to go on.

    Raises:
        UserError: the UserError that one of the processes raised.
        Failure: says which process failed or was killed. The traceback of the first one to fail is printed.
        KeyboardInterrupt: ^C or SIGTERM ended the processes before the function could save anything.
    """
    if processes == 1 or dist.is_initialized():
        function(*args)
        return
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_SECONDS))
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
    # The launcher would log each failure several times; `launch` reports it once. Loggers below these two have levels
    # of their own, so that setting a level here would not silence them.
    for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        log = logging.getLogger(name)
        log.addHandler(logging.NullHandler())
        log.propagate = False
    # The resource tracker warns about what it cleans up after a process that was killed.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    with tempfile.TemporaryDirectory() as folder:
        failed, interrupted = None, False
        try:
            # On ^C and SIGTERM, the launcher passes the signal on and waits until the processes have saved.
            elastic_launch(config, _run_process)(Path(folder), gpus, function, *args)
        except SignalException:
            interrupted = True
        except ChildFailedError as error:
            failed = error.get_first_failure()
        for kind in (UserError, Failure):
            if (message := Path(folder) / kind.__name__).exists():
                raise kind(message.read_text())
        if failed is not None and failed[1].exitcode == INTERRUPTED:
            failed, interrupted = None, True
        if failed is not None:
            number, failure = failed
            how = failure.signal_name() if failure.exitcode < 0 else f"exit code {failure.exitcode}"
            why = ", as when memory runs out" if failure.exitcode == -signal.SIGKILL else ""
            raise Failure(f"process {number} was ended by {how}{why}; the others were stopped")
        if interrupted and not (Path(folder) / SAVED).exists():
            raise KeyboardInterrupt


def _run_process(folder: Path, gpus: bool, function: Callable[..., Any], *args: Any) -> None:
    """The body of one process of `launch`. It leaves in `folder` the error that the launching process will raise."""
    try:
        with group(gpus):
            if interrupted := function(*args) is False:
                (folder / SAVED).touch()
    except KeyboardInterrupt:
        # The launcher hands on a ^C that the terminal has sent to all already; it would reach the exit handlers.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _leave(gpus, INTERRUPTED)
    except Exception as error:
        error = explained(error) or error
        if not isinstance(error, (UserError, Failure)):
            traceback.print_exc()
            error = Failure(f"process {os.environ['RANK']} failed, see above; the others were stopped")
        kind = UserError if isinstance(error, UserError) else Failure
        with atomic_write(folder / kind.__name__) as file:
            file.write(error.message.encode())
        _leave(gpus, error.exit_code)
    if interrupted:
        # The launcher is ending its processes and does not take their results, which they would wait to deliver.
        sys.exit(INTERRUPTED)


def _leave(gpus: bool, exit_code: int) -> NoReturn:
    """Exits out of a group that goes on without this process.

    On GPUs this is done without exit handlers, in which NCCL could wait for the others, and they for this process.
    """
    if gpus:
        for worker in multiprocessing.active_children():  # such as those that read data, which ignore SIGTERM
            worker.kill()
        _exit(exit_code)
    sys.exit(exit_code)


@contextmanager
def group(gpus: bool) -> Iterator[None]:
    """Joins the process group that torchrun's environment variables describe, for the duration of the block.

    If several processes fail, only the one that failed first raises its error; the others exit.

    Raises:
        Failure: names the processes that stopped answering.
    """
    global _rank_0_group
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    elif int(os.environ["LOCAL_WORLD_SIZE"]) > 1:
        torch.set_num_threads(1)  # there are as many processes as cores
    store, number, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    # With gloo beside NCCL, numbers on the CPU are exchanged without synchronizing the GPU.
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=TIMEOUT)
    _rank_0_group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=RANK_0_TIMEOUT))
    try:
        yield
    except Exception as error:
        if is_lost_connection(error):
            error = _error_of_lost_connection(store, number, size, error)
        if not _is_first_report(store):
            _wait_to_be_ended()
        raise error
    dist.destroy_process_group()


# When one process fails, the others lose their connection to it. Thus a failure is either a cause, an error of the
# process itself, or a consequence, a lost connection. A cause is reported at once, by the first process that has one.
# A consequence is reported only if no cause becomes known: neither a process that reports one, nor the launcher, which
# sees when a process is killed and then ends all others.


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error says that another process did not answer. Gloo raises plain RuntimeErrors, which name it."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _is_first_report(store: dist.Store) -> bool:
    """Notes that this process has an error to report. Whether it is the first process to have one."""
    try:
        return store.add("reports", 1) == 1
    except RuntimeError:  # the process that holds the store is gone
        return True


def _error_of_lost_connection(store: dist.Store, number: int, size: int, error: Exception) -> Exception:
    """What process `number` of `size` reports that lost its connection, after all processes had time to report.

    Does not return if another process reports a cause, or if the launcher ends this process.
    """
    # The handler of training would only note the signal and go on.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        store.set(f"lost connection {number}", "")
        with suppress(dist.DistStoreError):  # raised when the time is over
            store.wait(["reports"], REPORT_TIMEOUT)
            if "Timed out" in str(error):
                _wait_to_be_ended()
            _exit()  # a connection that closed belonged to a process that reported its error, and has exited
        silent = [str(i) for i in range(size) if not store.check([f"lost connection {i}"])]
    except RuntimeError:  # the process that holds the store is gone
        return error
    if not silent:
        return error
    how_long = f" for {TIMEOUT}" if "Timed out" in str(error) else ""
    failure = Failure(f"no answer from process {', '.join(silent)}{how_long}")
    failure.__cause__ = error
    return failure


def _wait_to_be_ended() -> NoReturn:
    """Leaves the report to another process: waits until the launcher ends this one, or exits if there is none.

    An exit at once would be taken for a failure of its own, for which the launcher would end the one that reports.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(REPORT_TIMEOUT.total_seconds())
    _exit()


def _exit(exit_code: int = 1) -> NoReturn:
    """Exits without a report, and without exit handlers, which could wait for the lost process."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(exit_code)


def on_rank_0(function: Callable[..., T], *args: Any) -> T:
    """Calls `function(*args)` in rank 0 only, and returns its result in all processes. The result must be picklable."""
    if world_size() == 1:
        return function(*args)
    result = [function(*args) if rank() == 0 else None]
    dist.broadcast_object_list(result, src=0, group=_rank_0_group)
    return cast(T, result[0])


def gather_on_rank_0(value: T) -> list[T]:
    """Returns the `value` of every process, in order of rank, in rank 0, and [] in the others.

    Values must be picklable, and may differ in size. Processes may reach this call at very different times.
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size() if rank() == 0 else []
    dist.gather_object(value, values or None, dst=0, group=_rank_0_group)
    return values


def wait_for_rank_0() -> None:
    """Waits until rank 0 gets here, for up to RANK_0_TIMEOUT."""
    if world_size() > 1:
        dist.barrier(group=_rank_0_group)


# --- exchanging tensors ---------------------------------------------------------------------------------------------


def broadcast(module: nn.Module) -> None:
    """Copies the parameters and buffers of rank 0 to all processes."""
    broadcast_tensors([*module.parameters(), *module.buffers()])


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Copies these tensors of rank 0 to all processes, which have as many of the same shapes and types."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its mean over the processes, exchanged as one tensor of at least float32.

    A gradient that only some processes have counts as zero in the others. A gradient that no process has stays None,
    so that the optimizer skips that parameter, as it does with a single process.
    """
    if world_size() == 1:
        return
    parameters = list(parameters)
    # Which parameters have a gradient anywhere is found out on the CPU, while the gradients are on their way: each
    # parameter has its place among them, so that no process has to know before.
    present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
    finding_out = dist.all_reduce(present, op=dist.ReduceOp.MAX, async_op=True)
    dtype = reduce(torch.promote_types, (p.dtype for p in parameters), torch.float32)
    sizes = [p.numel() for p in parameters]
    flat = parameters[0].new_zeros(sum(sizes), dtype=dtype)
    parts = [_laid_out_like(p, part) for p, part in zip(parameters, flat.split(sizes), strict=True)]
    _copy([(part, p.grad) for p, part in zip(parameters, parts, strict=True) if p.grad is not None])
    _average(flat)
    finding_out.wait()
    received = []
    for p, part, some in zip(parameters, parts, present.tolist(), strict=True):
        if some:
            p.grad = torch.empty_like(p) if p.grad is None else p.grad
            received.append((p.grad, part))
    _copy(received)


def _laid_out_like(p: Tensor, part: Tensor) -> Tensor:
    """`part`, of one dimension, in the shape of `p` and in its order of memory, as the fast kernel of `_copy` needs."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True))
    return part.as_strided(p.shape, p.stride()) if extent == p.numel() else part.view(p.shape)


def _copy(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Copies the second tensor of each pair to the first: on a GPU all with a few launches, not with one for each."""
    if pairs:
        torch._foreach_copy_([to for to, _ in pairs], [source for _, source in pairs])


def _average(value: Tensor) -> None:
    """Replaces `value` by its mean over the processes. NCCL, which exchanges what is on GPUs, divides by itself."""
    if value.is_cuda:
        dist.all_reduce(value, op=dist.ReduceOp.AVG)
    else:
        dist.all_reduce(value)
        value /= world_size()


def mean(value: Tensor) -> Tensor:
    """Returns the mean of `value` over the processes."""
    if world_size() > 1:
        value = value.clone()
        _average(value)
    return value


def total(value: Tensor) -> Tensor:
    """Returns the sum of `value`, on the CPU, over the processes, which may reach this call at very different times."""
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value, group=_rank_0_group)
    return value


def total_on_rank_0(value: Tensor) -> Tensor | None:
    """As `total`, in rank 0, and None in the others. `value` is overwritten."""
    if world_size() > 1:
        dist.reduce(value, dst=0, group=_rank_0_group)
    return value if rank() == 0 else None


def any_process(flag: bool) -> bool:
    """Whether `flag` is set in at least one process; the same answer in all of them."""
    if world_size() == 1:
        return flag
    value = torch.tensor(flag, dtype=torch.uint8)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value)


def gather(value: Tensor) -> list[Tensor]:
    """Returns the `value` of every process, in order of rank. All must have the same shape."""
    if world_size() == 1:
        return [value]
    values = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(values, value)
    return values
