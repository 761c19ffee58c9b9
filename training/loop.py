"""The training loop, top to bottom: the same for everything that is trained here."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from torch_utils import distributed
from torch_utils.cli import Failure, UserError
from torch_utils.files import DiskFull, remove_leftovers
from torch_utils.memory import keep_freed_memory, out_of_memory
from training.checkpoint import kimg_name, load_state, look_is_due, module_state, save_state
from training.config import RunConfig
from training.descent import Descent
from training.log import Averages, Log

HOPELESS = 50  # steps one after the other without a finite gradient


class Monitor(Protocol):
    """Looks at what is trained from outside, in the process that writes."""

    def begin(self) -> None:
        """Before the first step."""

    def look(self, kimg: float, metrics: Mapping[str, Any]) -> None:
        """Writes what `measure` found, and last the picture of that moment, `look_name`. Raises DiskFull."""


class Task(Protocol):
    """What is trained: `training.gan.GAN`, `training.classify.Classification`."""

    script: str  # that goes on with a run
    look_name: str  # of the picture that a look leaves
    remedy: str  # what to try where gradients are not finite any more

    modules: Mapping[str, nn.Module]  # all that a state holds, equal in all processes
    optimizers: Mapping[str, Descent]
    averages: Averages  # of the steps since the last tick

    def batches(self, step: int) -> Iterator[Any]:
        """A generator of what the steps take from that one on, without end."""

    def step(self, batch: Any, step: int) -> None:
        """One step of every optimizer."""

    def figures(self) -> dict[str, float]:
        """Of a tick, beside the averages."""

    def save(self, path: Path, kimg: float) -> None:
        """Writes the model. Raises DiskFull."""

    def measure(self) -> Mapping[str, Any]:
        """Metrics, worked out by all processes together, in the one that writes."""

    def monitor(self, run: Path, log: Log) -> Monitor: ...


Build = Callable[[RunConfig, torch.device, bool], Task]


def train(build: Build, config: RunConfig, run: Path, state_path: Path | None = None) -> bool:
    """`training`, with a line where memory does not suffice."""
    try:
        return training(build, config, run, state_path)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        kind = "GPU memory" if config.gpus else "memory"
        raise UserError(
            f"out of {kind} with {config.batch_gpu} pictures at a time; halve --batch-gpu, which leaves --batch as it "
            "is, or take a smaller model or smaller pictures (in a new run; --init-from begins with this one's weights)"
        ) from None


def training(build: Build, config: RunConfig, run: Path, state_path: Path | None = None) -> bool:
    """Trains what `build` makes of `config`, in the folder `run`, from the start or from a state.

    Returns whether it came to the end; False when it was interrupted, with everything saved to go on. A disk that is
    full on the way costs a state and no more; in the end, DiskFull is raised.
    """
    interrupted = StopSignal()
    device = torch.device("cuda", torch.cuda.current_device()) if config.gpus else torch.device("cpu")
    main_process = distributed.rank() == 0
    torch.manual_seed(config.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
    if device.type == "cpu":
        keep_freed_memory()
    task = build(config, device, state_path is None)
    averages = task.averages

    # From here on every process draws its own numbers.
    torch.manual_seed(config.seed * distributed.world_size() + distributed.rank() + 1)
    step, look_due = 0, False
    if state_path is not None:
        state = distributed.on_rank_0(load_state, state_path)  # the other machines may not have the file
        for name, part in {**task.modules, **task.optimizers}.items():
            part.load_state_dict(state[name])
        step = state["step"]
        set_random_state(state["random"][distributed.rank()], device)
        averages.load(state["averages"], device)
        look_due = distributed.on_rank_0(look_is_due, run, task.look_name, state, step * config.batch / 1000)
    for module in task.modules.values():
        distributed.broadcast(module)

    # The run's records, written by one process.
    kimg = step * config.batch / 1000
    if main_process:
        remove_leftovers(run)
    log = Log(run, kimg, config.kimg, look_due) if main_process else None
    monitor = task.monitor(run, log) if main_process else None
    if step == 0:
        if main_process:
            monitor.begin()
        metrics = task.measure()
        if main_process:
            monitor.look(kimg, metrics)
    if look_due:
        try_to_look(task, monitor, kimg, log)
    distributed.wait_for_rank_0()
    if main_process:
        log.begin(kimg)
    tick_pictures = round(config.tick * 1000)
    tick, tick_step, tick_time = step * config.batch // tick_pictures, step, time.monotonic()
    full: DiskFull | None = None  # why the last snapshot or state could not be written

    with closing(task.batches(step)) as batches:  # its processes end with it, also where something is raised
        while kimg < config.kimg:
            task.step(next(batches), step)
            step += 1
            kimg = step * config.batch / 1000
            stop = distributed.any_process(interrupted.set)
            done = kimg >= config.kimg
            ticked = done or step * config.batch // tick_pictures > tick
            if main_process:
                log.step(kimg, (step - tick_step) / (time.monotonic() - tick_time))
            if not ticked and not stop:
                continue

            # A tick: statistics; every `snap` ticks, and at the end, a snapshot, a state and a look. A stop between two
            # ticks leaves its part of the statistics in the state.
            tick = step * config.batch // tick_pictures
            seconds = time.monotonic() - tick_time
            if ticked:
                means = averages.take()
                means |= {"skipped": float(sum(optimizer.skipped for optimizer in task.optimizers.values()))}
                means |= task.figures()
                if device.type == "cuda":
                    means["gpu_gib"] = torch.cuda.max_memory_reserved(device) / 2**30
                if main_process:
                    log.tick(kimg, step, (step - tick_step) / seconds, means)
                check_hope(task, run)
            look = done or (ticked and tick % config.snap == 0)
            if look or stop:
                state = {name: module_state(module) for name, module in task.modules.items()}
                state |= {name: optimizer.state_dict() for name, optimizer in task.optimizers.items()}
                state |= {"step": step, "random": random_states(device), "averages": averages.state()}
                state |= {"look": look, "config": asdict(config)}
                if main_process:
                    full = save(task, run, state, kimg, config.keep)
                    if full and not done and not stop:
                        log.say(f"warning: {full.message}; training goes on, and tries again at the next state")
                if look and not stop:
                    try_to_look(task, monitor, kimg, log)
                distributed.wait_for_rank_0()
            if stop:
                if main_process and not full:
                    log.say(f"stopped at kimg {kimg:g}; continue with: python {task.script} --resume {run}")
                break
            tick_step, tick_time = step, time.monotonic()

    if main_process:
        log.close()
        if full:
            raise full
    return kimg >= config.kimg


def check_hope(task: Task, run: Path) -> None:
    """Raises Failure where no step of an optimizer was finite for long."""
    if max(float(optimizer.streak) for optimizer in task.optimizers.values()) < HOPELESS:
        return
    good = sorted(run.glob("snapshot-*.safetensors"), key=lambda path: path.stem)
    raise Failure(
        f"{HOPELESS} steps one after the other had gradients that are not finite, and were left out; the last good "
        f"model is {good[-1] if good else 'none yet'}; {task.remedy}"
    )


def save(task: Task, run: Path, state: dict[str, Any], kimg: float, keep: int) -> DiskFull | None:
    """Writes the model, and last the state: with it, all before is there. Returns what there was no room for."""
    full = None
    model = run / f"snapshot-{kimg_name(kimg)}.safetensors"
    for write in (partial(task.save, model, kimg), partial(save_state, run, state, kimg, keep)):
        try:
            write()
        except DiskFull as error:
            full = full or error
    return full


def try_to_look(task: Task, monitor: Monitor | None, kimg: float, log: Log | None) -> None:
    """Metrics, by all processes, and a look by the one that has a monitor, which a full disk does not stop."""
    metrics = task.measure()
    if monitor is None:
        return
    try:
        monitor.look(kimg, metrics)
    except DiskFull as error:
        log.say(f"warning: {error.message}")


def random_states(device: torch.device) -> list[dict[str, Tensor]]:
    """The state of the random number generators of every process, in order of rank."""
    cpu = distributed.gather(torch.get_rng_state())
    if device.type != "cuda":
        return [{"cpu": s} for s in cpu]
    cuda = distributed.gather(torch.cuda.get_rng_state(device))
    return [{"cpu": a, "cuda": b} for a, b in zip(cpu, cuda, strict=True)]


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


class StopSignal:
    """Takes ^C or SIGTERM as a wish to save and stop (`set`), and says so; a second ^C, seconds later, ends it at once.

    The launcher hands a ^C on that the terminal has sent to all processes already: that is not a second one.
    """

    def __init__(self) -> None:
        self.set, self.time = False, 0.0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        if self.set and number == signal.SIGINT and time.monotonic() - self.time > 3:
            raise KeyboardInterrupt
        if not self.set:
            self.set, self.time = True, time.monotonic()
            if distributed.rank() == 0:
                os.write(2, b"stopping after this step, with everything saved; ^C in 3 s or later ends it at once\n")
