"""The training loop, top to bottom: the same for generators, stylizers and encoders."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.snapshot import kimg_name
from torch_utils import distributed
from torch_utils.errors import DiskFull, Failure, UserError, command_line, plural
from torch_utils.files import remove_leftovers
from torch_utils.memory import keep_freed_memory, out_of_memory
from training.config import RunConfig
from training.log import Averages, Log
from training.optimizer import GuardedOptimizer, without_moments
from training.resume import with_less_memory
from training.runs import (
    SKIPPED,
    autosave,
    check_state,
    evaluation_is_due,
    load_state,
    module_state,
    save_state,
    set_aside,
)

MAX_NONFINITE_STEPS = 50  # in a row, after which training has diverged
SECOND_INTERRUPT_SECONDS = 3  # after the first ^C, from which on another one ends the training at once


class Trainer(Protocol):
    """What is trained: `training.gan.GANTrainer`, `training.stylizer.StylizerTrainer`, `…classifier.ClassifierTrainer`.

    Made by `Trainer(config, device, fresh)`; `fresh` says that no state will be loaded into it.
    """

    script: str  # the script that resumes a run
    use: tuple[str, ...]  # the command that uses the model: a script, and the option that takes the snapshot
    sheet_name: str  # begins the file names of the sheets that evaluations leave
    hint: str  # what to try where training diverges

    modules: dict[str, nn.Module]  # everything with weights or buffers that a state holds
    optimizers: dict[str, GuardedOptimizer]
    averages: Averages  # of the steps since the last tick

    def __init__(self, config: Any, device: torch.device, fresh: bool = True): ...

    @staticmethod
    def fingerprint(config: Any) -> str:
        """A hash of the training data."""

    def batches(self, step: int) -> Generator[Any]:
        """The batches from `step` on, without end."""

    def train_step(self, batch: Any, step: int) -> None:
        """One step of every optimizer."""

    def statistics(self) -> dict[str, float]:
        """Numbers of a tick beside the averages."""

    def save(self, path: Path, kimg: float) -> None:
        """Writes the model. Raises DiskFull."""

    def evaluate(self, kimg: float, log: Log) -> None:
        """Computes metrics, by all processes together, and writes them and, last, a sheet. Raises DiskFull."""


Record = Callable[[], None]  # writes the options and the configuration of a run, and may raise DiskFull


def train(
    trainer_class: type[Trainer],
    config: RunConfig,
    run: Path,
    state_path: Path | None = None,
    record: Record | None = None,
) -> bool:
    """`run_training`, with one line where the memory does not suffice."""
    try:
        return run_training(trainer_class, config, run, state_path, record)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(out_of_memory_message(config, resumed=state_path is not None)) from None


def out_of_memory_message(config: RunConfig, resumed: bool) -> str:
    """What to do where a training needs more memory than there is."""
    kind = "GPU memory" if config.gpus else "memory"
    remedy = "resume the run on a machine with more memory, or " if resumed else ""
    if smaller := with_less_memory(config, resumed):
        remedy = f"take --batch-gpu {smaller}, which leaves --batch as it is, or "
    begin = "; --init-from begins with this one's weights" if hasattr(config, "init_from") else ""
    return (
        f"out of {kind} with {plural(config.batch_gpu, 'image')} at a time; {remedy}take a smaller model or smaller "
        f"images (in a new run{begin})"
    )


def run_training(
    trainer_class: type[Trainer], config: RunConfig, run: Path, state_path: Path | None, record: Record | None
) -> bool:
    """Trains in the folder `run`, from the start or from a state. `record` is called with the first state that is
    saved: what fails before, as options may let it, leaves the run as it was.

    Returns False where a signal asked it to stop, with everything saved to resume, and otherwise True. A full
    disk on the way costs the files for which there is no room, and nothing else; at the end DiskFull is raised.
    """
    stop = StopSignal()
    device = prepare_device(config)
    trainer = trainer_class(config, device, state_path is None)
    step, evaluation_due = restore(trainer, config, run, state_path, device)
    kimg = step * config.batch / 1000

    if distributed.rank() == 0:
        remove_leftovers(run)
    log = Log(run, kimg, config.kimg, evaluation_due, writes=distributed.rank() == 0)
    evaluate_at_start(trainer, kimg, log, evaluation_due)
    tick_images = round(config.tick * 1000)
    tick, stopping, full, saved_at = step * config.batch // tick_images, False, None, kimg
    saved_time = time.monotonic()
    log.start_clock(kimg, step)
    with closing(trainer.batches(step)) as batches:  # the loader's processes end with it, also after an error
        while kimg < config.kimg and not stopping:
            trainer.train_step(next(batches), step)
            step += 1
            kimg = step * config.batch / 1000
            log.step(kimg, step)
            stopping, done = distributed.any_process(stop.set), kimg >= config.kimg
            ticked = done or step * config.batch // tick_images > tick
            if ticked:
                before, tick = tick, step * config.batch // tick_images
                log.tick(kimg, step, collect_statistics(trainer, device))
                check_divergence(trainer, run, kimg)
            evaluating = done or (ticked and tick // config.snap > before // config.snap)  # a step may be many ticks
            autosaving = ticked and distributed.any_process(autosave_is_due(config, saved_time))
            if evaluating or stopping or autosaving:
                # a stop between two ticks leaves its part of the averages in the state
                state = training_state(trainer, config, step, evaluating, device)
                full = save(trainer, run, state, kimg, config.keep, saved_at, evaluating or stopping, record)
                saved_at, saved_time, record = kimg, time.monotonic(), record if full else None
                if full and not (done or stopping):
                    log.say(f"warning: {full.message}; training goes on, and tries again at the next state")
                if evaluating and not stopping:
                    try_to_evaluate(trainer, kimg, log)
                distributed.wait_for_rank_0()
            if ticked:
                log.restart_tick(step)
    if record and not full and distributed.rank() == 0:  # no step was left, only the evaluation
        record()
    if not full:
        log.say(last_line(trainer, run, kimg, stopping))
    log.close()
    if full:
        raise full
    return not stop.set


def evaluate_at_start(trainer: Trainer, kimg: float, log: Log, due: bool) -> None:
    """The evaluation of a new run, or the one that is `due` because it was cut off."""
    if kimg == 0:
        trainer.evaluate(kimg, log)
    elif due:
        try_to_evaluate(trainer, kimg, log)
    distributed.wait_for_rank_0()


def autosave_is_due(config: RunConfig, saved_time: float) -> bool:
    """Whether the last state was saved `config.autosave` minutes ago; `saved_time` is of `time.monotonic`."""
    return config.autosave > 0 and time.monotonic() - saved_time >= 60 * config.autosave


def last_line(trainer: Trainer, run: Path, kimg: float, stopping: bool) -> str:
    """What to type next, after a training that was stopped or is complete."""
    if stopping:
        return f"stopped at kimg {kimg:g}; continue with: {command_line('python', trainer.script, '--resume', run)}"
    command = command_line("python", *trainer.use, snapshot_path(run, kimg))
    return f"finished at kimg {kimg:g}; use the model with: {command}"


def prepare_device(config: RunConfig) -> torch.device:
    """The device of this process; sets the seed that all processes build their networks with."""
    torch.manual_seed(config.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
    if config.gpus:
        torch.backends.cudnn.benchmark = True  # shapes hardly change, so trying out the algorithms pays off
        return torch.device("cuda", torch.cuda.current_device())
    keep_freed_memory()
    return torch.device("cpu")


def restore(
    trainer: Trainer, config: RunConfig, run: Path, state_path: Path | None, device: torch.device
) -> tuple[int, bool]:
    """Loads a state, if there is one: the steps that it has taken, and whether its evaluation was cut off.

    From here on every process draws random numbers of its own, and all have the same weights.
    """
    torch.manual_seed(config.seed * distributed.world_size() + distributed.rank() + 1)
    step, evaluation_due = 0, False
    if state_path is not None:
        try:
            state = distributed.on_rank_0(load_tensors, trainer, state_path)  # other machines may not have the file
            restore_random_numbers(state, config, device)
        except ValueError as error:
            raise UserError(f"{state_path} is no state of this run ({error}); name another with --resume") from None
        for name, optimizer in trainer.optimizers.items():
            if distributed.rank() > 0:
                optimizer.load_state_dict(state[name])
            optimizer.broadcast_moments()
        step = state["step"]
        trainer.averages.load(state["averages"], device)
        kimg = step * config.batch / 1000
        evaluation_due = distributed.on_rank_0(evaluation_is_due, run, trainer.sheet_name, state, kimg)
    for module in trainer.modules.values():
        distributed.broadcast(module)
    return step, evaluation_due


def load_tensors(trainer: Trainer, state_path: Path) -> dict[str, Any]:
    """Loads the modules and optimizers of a state in this process, and returns what the others need of it.

    They get the tensors of modules and the moments of optimizers, nearly all of its bytes, by broadcasts. Raises
    ValueError where the state is of other modules or optimizers.
    """
    state = load_state(state_path)
    if SKIPPED in trainer.modules:  # which a run that began without --skip-unreadable has not counted
        state.setdefault(SKIPPED, module_state(trainer.modules[SKIPPED]))
    check_state(state, trainer.modules, trainer.optimizers)
    for name, module in trainer.modules.items():
        module.load_state_dict(state.pop(name))
    for name, optimizer in trainer.optimizers.items():
        optimizer.load_state_dict(state[name])
        state[name] = without_moments(state[name])
    return state


def collect_statistics(trainer: Trainer, device: torch.device) -> dict[str, float]:
    """The averages since the last tick over all processes, and the trainer's other numbers."""
    statistics = trainer.averages.take()
    statistics["skipped"] = float(sum(optimizer.skipped for optimizer in trainer.optimizers.values()))
    statistics |= trainer.statistics()
    if device.type == "cuda":
        statistics["gpu_gib"] = torch.cuda.max_memory_reserved(device) / 2**30
    return statistics


def check_divergence(trainer: Trainer, run: Path, kimg: float) -> None:
    """Raises Failure where an optimizer has skipped too many steps in a row."""
    if max(float(optimizer.nonfinite_in_a_row) for optimizer in trainer.optimizers.values()) < MAX_NONFINITE_STEPS:
        return
    snapshots = sorted(run.glob("snapshot-*.safetensors"), key=lambda path: path.stem)
    good = [path for path in snapshots if path.stem <= snapshot_path(run, kimg).stem]  # later ones were abandoned
    raise Failure(
        f"training has diverged: {MAX_NONFINITE_STEPS} steps in a row had gradients that are not finite, and were "
        f"skipped; the last good model is {good[-1] if good else 'none yet'}; {trainer.hint}"
    )


def training_state(
    trainer: Trainer, config: RunConfig, step: int, evaluating: bool, device: torch.device
) -> dict[str, Any]:
    """Everything that the next step depends on, gathered from all processes in rank 0; {} in the others."""
    trainer.statistics()  # gathers what the modules count in each process, such as the images that were skipped
    random, averages = random_states(device), trainer.averages.state()
    if distributed.rank() > 0:
        return {}
    state: dict[str, Any] = {name: module_state(module) for name, module in trainer.modules.items()}
    state |= {name: optimizer.state_dict() for name, optimizer in trainer.optimizers.items()}
    state |= {"step": step, "random": random, "averages": averages}
    return state | {"evaluating": evaluating, "config": asdict(config)}


def save(
    trainer: Trainer,
    run: Path,
    state: dict[str, Any],
    kimg: float,
    keep: int,
    saved_at: float,
    with_model: bool,
    record: Record | None,
) -> DiskFull | None:
    """Writes the model, and last the state, in rank 0; without the model, the state is an autosave. `record` goes
    before, where it is still to be written.

    Returns the first DiskFull, if there was one.

    `saved_at` is the kimg of the save before, or of the state that the run was resumed from.
    """
    disk_full = None
    if distributed.rank() == 0:
        writes: list[Callable[[], Any]] = [partial(autosave, run, state, kimg, keep)]
        if with_model:
            writes = [
                partial(trainer.save, snapshot_path(run, kimg), kimg),
                partial(save_state, run, state, kimg, keep),
            ]
        for write in [record, *writes] if record else writes:
            try:
                write()
            except DiskFull as error:
                disk_full = disk_full or error
        set_aside(run, trainer.sheet_name, saved_at, kimg if with_model else None)
    return disk_full


def snapshot_path(run: Path, kimg: float) -> Path:
    return run / f"snapshot-{kimg_name(kimg)}.safetensors"


def try_to_evaluate(trainer: Trainer, kimg: float, log: Log) -> None:
    """An evaluation that a full disk does not stop."""
    try:
        trainer.evaluate(kimg, log)
    except DiskFull as error:
        log.say(f"warning: {error.message}")


def random_states(device: torch.device) -> list[dict[str, Tensor]]:
    """The states of the random number generators of every process, in order of rank."""
    cpu = distributed.gather(torch.get_rng_state())
    if device.type != "cuda":
        return [{"cpu": s} for s in cpu]
    cuda = distributed.gather(torch.cuda.get_rng_state(device))
    return [{"cpu": a, "cuda": b} for a, b in zip(cpu, cuda, strict=True)]


def restore_random_numbers(state: dict[str, Any], config: RunConfig, device: torch.device) -> None:
    """Sets the generators of this process to where they were; in other processes than those of the state, to where no
    process has been before. Raises ValueError where the state is damaged.
    """
    states, before = state["random"], {"procs": RunConfig.procs, "gpus": RunConfig.gpus, **state["config"]}
    if len(states) != before["procs"]:
        raise ValueError(f"it has random numbers of {len(states)} processes, and was trained by {before['procs']}")
    rank, processes = distributed.rank(), distributed.world_size()
    if (before["procs"], before["gpus"] > 0) != (processes, config.gpus > 0):
        # a hash, as the CPU's generator takes 32 bits of a seed only
        torch.manual_seed(Random(f"{config.seed}, {state['step']}, {rank} of {processes}").getrandbits(63))
        return
    mine = states[rank]
    try:
        torch.set_rng_state(mine["cpu"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(mine["cuda"], device)
    except (RuntimeError, TypeError, KeyError, AttributeError):
        raise ValueError("the state of a random number generator is damaged") from None


class StopSignal:
    """Takes ^C or SIGTERM as the wish to save and stop (`set`), and says so; a later second ^C ends at once.

    The launcher hands on a ^C that the terminal has sent to all processes already: that is not a second one.
    """

    def __init__(self) -> None:
        self.set, self.time = False, 0.0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        if self.set and number == signal.SIGINT and time.monotonic() - self.time > SECOND_INTERRUPT_SECONDS:
            raise KeyboardInterrupt
        if not self.set:
            self.set, self.time = True, time.monotonic()
            if distributed.rank() == 0:
                end = f"^C in {SECOND_INTERRUPT_SECONDS} s or later ends it at once"
                with suppress(OSError):  # ^C has ended what read the output as well, as `| tee` does
                    os.write(2, f"stopping after this step, with everything saved; {end}\n".encode())
