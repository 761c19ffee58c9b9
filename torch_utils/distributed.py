"""Process groups: the same calls for 1, 8 or 8 × N processes. With one process each of them costs nothing."""

from __future__ import annotations

import logging
import os
import tempfile
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torch_utils.cli import UserError
from torch_utils.files import atomic_write


def rank() -> int:
    """This process's number, 0 for the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def launch(function: Callable, *args, processes: int = 1) -> None:
    """Calls `function(*args)` in that many processes of this machine, which then form a group.

    One process is this one. More are started and watched by PyTorch's elastic launcher: when one dies, the others
    are ended and its error is raised here. The function and its arguments have to be picklable; it returns False when
    a signal made it stop early.

    Raises:
        UserError: what one of the processes raised as such.
    """
    if processes == 1:
        return function(*args)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="train",
        max_restarts=0,
    )
    # what is wrong is said below, once; the loggers under this one have levels of their own
    log = logging.getLogger("torch.distributed.elastic")
    log.addHandler(logging.NullHandler())
    log.propagate = False
    with tempfile.TemporaryDirectory() as folder:
        mistake = Path(folder) / "mistake"
        try:
            with suppress(SignalException):  # ^C or SIGTERM: the launcher has passed it on, and waited for them to save
                elastic_launch(config, _in_group)(mistake, function, *args)
        except ChildFailedError:
            if mistake.exists():
                raise UserError(mistake.read_text()) from None
            raise


def _in_group(mistake: Path, function: Callable, *args) -> None:
    """One process of `launch`. A user's mistake is left in the file `mistake`, and ends the process without a word."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        torch.set_num_threads(1)  # as many processes as cores
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        interrupted = function(*args) is False
    except UserError as error:
        with atomic_write(mistake) as file:
            file.write(error.message.encode())
        os._exit(2)
    except Exception:
        if mistake.exists():  # this is about the process that found it having gone away
            os._exit(2)
        # The launcher reports one error, which may be another process's complaint that this one went away.
        traceback.print_exc()
        raise
    dist.destroy_process_group()
    if interrupted:  # the launcher is ending its processes and would not take the result that they wait to give
        raise KeyboardInterrupt  # which it takes as an end without a result, after all exit handlers


def broadcast(module: nn.Module) -> None:
    """Gives every process the parameters and buffers of rank 0."""
    if world_size() > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            dist.broadcast(tensor.detach(), src=0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its mean over the processes, in one message."""
    if world_size() == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
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


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set in at least one process, so that all of them take the same way."""
    if world_size() == 1:
        return flag
    value = torch.tensor(float(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value)


def gather(value: Tensor) -> list[Tensor]:
    """`value` of every process, in order of rank; the same shape everywhere."""
    if world_size() == 1:
        return [value]
    values = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(values, value)
    return values
