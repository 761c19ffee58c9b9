"""The folders of runs, and the training states in them that a run resumes from."""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.foreign import is_foreign
from models.snapshot import META, kimg_name, list_runs, run_number
from networks.generator import CLASS_MEANS
from torch_utils.errors import UserError, command_line, one_line
from torch_utils.files import RUN_MARKER, check_own_file, check_own_folder, missing_message, open_own, write_file
from torch_utils.schema import Count, check_values, is_number
from torch_utils.tensors import FLOATS, is_finite, read_metadata, read_pickled, tensors_in

STATE_TYPES = FLOATS | {torch.float64, torch.int64, torch.uint8}  # of the tensors in a training state
SKIPPED = "skipped_images"  # the part of a state that has the images that could not be decoded
SNAPSHOT = re.compile(r"snapshot-(\d+(?:\.\d+)?)\.safetensors", re.ASCII)
STATE, AUTOSAVE = "state-", "autosave-"  # begin the names of states: with a snapshot, and between two snapshots
BEST = "best.safetensors"  # the model of --keep-best
ABANDONED = "abandoned-"  # begins the names of results that are later than the state from which a run was resumed
STATS, METRICS = "stats.jsonl", "metrics.jsonl"  # records of a run, to which lines are added


def save_state(run: Path, state: Mapping[str, Any], kimg: float, keep: int = 2) -> Path:
    """Writes a training state (tensors, numbers, strings, in dicts and lists), and then removes others.

    Of the run's states `keep` stay: this one and those before, autosaves not counted, none of which stays. Later ones
    were abandoned when the run was resumed.

    Raises DiskFull, and leaves the others.
    """
    return _write_state(run / "state" / f"{STATE}{kimg_name(kimg)}.pt", state, run, keep - 1)


def autosave(run: Path, state: Mapping[str, Any], kimg: float, keep: int = 2) -> Path:
    """Writes a training state between two snapshots, in place of the last such one. `keep` others stay.

    Raises DiskFull, and leaves the last one.
    """
    return _write_state(run / "state" / f"{AUTOSAVE}{kimg_name(kimg)}.pt", state, run, keep)


def _write_state(path: Path, state: Mapping[str, Any], run: Path, others: int) -> Path:
    check_own_folder(run / "state")
    buffer = io.BytesIO()  # the size is known before, and errors of the disk come as they are
    torch.save(dict(state), buffer)
    write_file(path, buffer.getbuffer())
    states = list_states(run)
    earlier = [other for other in states if state_kimg(other) < state_kimg(path) and other.name.startswith(STATE)]
    for other in {*states} - {path, *earlier[max(len(earlier) - others, 0) :]}:
        other.unlink()
    return path


def state_kimg(path: Path) -> str:
    """The kimg in a state's name, as text that is in order (`kimg_name`)."""
    return path.stem.partition("-")[2]


def set_aside(run: Path, sheet_name: str, since: float, written: float | None) -> None:
    """Renames the snapshots and sheets that were abandoned when the run was resumed from an earlier state.

    `since` is the kimg of the save before this one, or of the state that the run was resumed from. Whatever is later
    than that was abandoned, except the snapshot at the kimg `written`, which has just been; None if there is none.
    Renamed, it is not taken for the newest snapshot, or for an evaluation that was cut off.
    """
    just_written = None if written is None else kimg_name(written)
    best = run / BEST
    if best.is_file() and not best.is_symlink():
        of_best = kimg_name(best_kimg(best))
        if of_best > kimg_name(since) and of_best != just_written:
            best.replace(run / (ABANDONED + best.name))
    sheet = re.compile(rf"{sheet_name}(\d{{6,}}(?:\.\d+)?)\.png", re.ASCII)
    for path in run.iterdir():
        snapshot = SNAPSHOT.fullmatch(path.name)
        found = snapshot or sheet.fullmatch(path.name)
        if found and found[1] > kimg_name(since) and not (snapshot and found[1] == just_written):
            path.replace(path.with_name(ABANDONED + path.name))
            if best.is_symlink() and not best.exists():  # a link to it, of metrics --all
                best.unlink()


def best_kimg(best: Path) -> float:
    """The kimg of the model of --keep-best; −1 if there is none that can be read."""
    try:
        kimg = json.loads(read_metadata(best)[META])["info"]["kimg"]
        return float(kimg)
    except (OSError, ValueError, TypeError, LookupError):
        return -1.0


def evaluation_is_due(run: Path, sheet_name: str, state: Mapping[str, Any], kimg: float) -> bool:
    """Whether the evaluation that belongs to a state was cut off: its sheet, which is written last, is missing."""
    return state.get("evaluating", False) and not sheet_path(run, sheet_name, kimg).exists()


def sheet_path(run: Path, name: str, kimg: float) -> Path:
    """The sheet of images that an evaluation leaves, `fakes000200.png`."""
    return run / f"{name}{kimg_name(kimg)}.png"


@dataclass
class TrainingState:
    """What a state holds beside the tensors of modules and optimizers, which are dicts under their names."""

    config: dict
    step: Count
    random: list[dict]  # of the random number generators, for each process
    averages: dict
    evaluating: bool


def load_state(path: Path, option: str = "--resume") -> dict[str, Any]:
    """Reads a training state, which need not be trusted. No pickle is executed.

    Raises UserError, which tells to name another with `option`.
    """
    if is_foreign(path):
        begin = command_line("--init-from", path)
        raise UserError(
            f"{path} holds networks of another program, not a training state; begin a new run from its weights with "
            f"{begin}"
        )
    if path.suffix == ".safetensors":
        remedy = f"give {option} the run's folder, {path.parent}"
        if not list_states(path.parent):
            remedy = f"begin a new run from its weights with {command_line('--init-from', path)}"
        raise UserError(f"{path} is a snapshot, not a training state; {remedy}")
    try:
        state = read_pickled(path)
    except (OSError, ValueError) as error:
        reason = one_line(getattr(error, "strerror", None) or error, 200)
        raise UserError(f"{path} cannot be read as a training state ({reason}); name another with {option}") from None
    own = {field.name for field in fields(TrainingState)}
    if not isinstance(state, dict) or not own <= state.keys():
        raise UserError(
            f"{path} holds no training state, or one of another version of this project; name another with {option}"
        )
    try:
        check_values(TrainingState, {name: state[name] for name in own})
        for name in state.keys() - own:
            _check_numbers(one_line(name, 40), state[name])
        _check_averages(state["averages"], len(state["random"]))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); name another with {option}") from None
    return state


def _check_numbers(name: str, part: Any) -> None:
    """Raises ValueError unless all tensors in a dict of dicts and lists are finite and of a type that we write."""
    if type(part) is not dict:
        raise ValueError(f"{name} is no dict")
    for found in tensors_in(part):
        if found.dtype not in STATE_TYPES or not is_finite(found):
            raise ValueError(f"{name} has {one_line(found.dtype)} or numbers that are not finite")


def _check_averages(averages: dict, processes: int) -> None:
    """Raises ValueError unless these are sums and counts of `training.log.Averages`; losses in them may be NaN."""
    if not averages:
        return
    counts, sums = averages.get("counts"), averages.get("sums")
    if type(counts) is not dict or type(sums) is not list or averages.keys() != {"counts", "sums"}:
        raise ValueError("averages are no sums and counts")
    numbered = all(type(name) is str and type(count) is int and count > 0 for name, count in counts.items())
    rows = all(isinstance(row, Tensor) and row.shape == (len(counts),) and row.is_floating_point() for row in sums)
    if not numbered or not rows or len(sums) != processes:
        raise ValueError("averages are no sums and counts of each process")


def check_state(state: dict[str, Any], modules: Mapping[str, nn.Module], optimizers: Mapping[str, Any]) -> None:
    """Raises ValueError unless a state is one of these modules and optimizers, in names, shapes and types."""
    for name, module in modules.items():
        _check_alike(name, state.get(name), module.state_dict())
    for name, optimizer in optimizers.items():
        found, own = state.get(name), optimizer.state_dict()
        if type(found) is not dict or found.keys() != own.keys() or type(found["optimizer"]) is not dict:
            raise ValueError(f"there is no {name} in it")
        counters = own.keys() - {"optimizer"}
        _check_alike(name, {key: found[key] for key in counters}, {key: own[key] for key in counters})
        _check_optimizer(name, found["optimizer"], optimizer)


def _check_alike(name: str, found: Any, own: Mapping[str, Tensor]) -> None:
    optional = {key for key in own if key in CLASS_MEANS}  # states of earlier versions lack these
    if type(found) is not dict or found.keys() | optional != own.keys():
        raise ValueError(f"{name} has other tensors than the network of the run's configuration")
    for key, tensor in own.items():
        value = found.get(key, tensor if key in optional else None)
        if not isinstance(value, Tensor) or value.shape != tensor.shape or value.dtype != tensor.dtype:
            raise ValueError(f"{name}.{key} is of another shape or type")


def _check_optimizer(name: str, found: dict, optimizer: Any) -> None:
    """Of PyTorch's own state only learning rates and betas may differ, which follow schedules."""
    own, groups = optimizer.optimizer.state_dict()["param_groups"], found.get("param_groups")
    if type(groups) is not list or type(found.get("state")) is not dict or len(groups) != len(own):
        raise ValueError(f"{name} has other groups of parameters")
    for group, mine in zip(groups, own, strict=True):
        moving = {key: group.get(key) for key in ("lr", "betas") if key in mine} if type(group) is dict else {}
        if not moving or {**group, **{key: mine[key] for key in moving}} != mine:
            raise ValueError(f"{name} has other settings than the run's configuration")
        rate, betas = moving.get("lr"), moving.get("betas", (0.0, 0.0))
        are_betas = type(betas) is tuple and len(betas) == 2 and all(is_number(b) and 0 <= b < 1 for b in betas)
        if type(rate) is not float or not 0 <= rate < math.inf or not are_betas:
            raise ValueError(f"{name} has a learning rate or betas that are none")
    for index, moments in found["state"].items():
        if type(index) is not int or not 0 <= index < len(optimizer.parameters) or type(moments) is not dict:
            raise ValueError(f"{name} has moments of other parameters")
        shape, is_adam = optimizer.parameters[index].shape, "betas" in own[0]
        shapes = {"step": (), "exp_avg": shape, "exp_avg_sq": shape} if is_adam else {"momentum_buffer": shape}
        if moments.keys() != shapes.keys() or not all(isinstance(m, Tensor) for m in moments.values()):
            raise ValueError(f"{name} has other moments than its optimizer")
        # The fused kernels trust shapes: a smaller tensor would be written beyond its end.
        if not all(m.is_floating_point() and m.shape == shapes[key] for key, m in moments.items()):
            raise ValueError(f"{name} has moments of another shape or type")
        if "step" in moments and moments["step"] < 0:
            raise ValueError(f"{name} has a negative number of steps")


NO_STATE = (
    "name a stopped run with --resume, or leave it out to start a new run, which --init-from lets begin with trained "
    "weights"
)


def find_state(path: Path) -> Path:
    """The state that `path` means: the file itself, the newest of a run, or that of the newest run that has one."""
    if path.is_file():
        return path
    if not os.path.exists(path):
        raise UserError(missing_message(path, NO_STATE))
    if path.name == "state" and list_states(path.parent):
        path = path.parent
    for run in [path, *sorted(list_runs(path), key=run_number, reverse=True)]:
        if states := list_states(run):
            return states[-1]
    raise UserError(f"no training state under {path}; {NO_STATE}")


def list_states(run: Path) -> list[Path]:
    """The states of a run, by kimg. Raises UserError where their folder is a link to a place elsewhere."""
    check_own_folder(run / "state")
    found = [path for begin in (STATE, AUTOSAVE) for path in (run / "state").glob(f"{begin}*.pt")]
    return sorted(filter(Path.is_file, found), key=state_kimg)


def check_run(run: Path) -> None:
    """Raises UserError where resuming a run, which may be somebody else's, would write to what links in it point to.

    The run's folder itself may be a link.
    """
    check_own_folder(run / "state")
    for name in (STATS, METRICS, RUN_MARKER):
        check_own_file(run / name)


def new_run(outdir: Path, description: str) -> Path:
    """Makes the next free run folder, `00003-description`."""
    number = max((run_number(run) for run in list_runs(outdir)), default=-1) + 1
    while True:
        run = outdir / f"{number:05d}-{description}"
        try:
            run.mkdir()
            if len(list(outdir.glob(f"{number:05d}-*"))) == 1:
                mark(run)
                return run
            run.rmdir()  # another training started in the same moment, and has the number
            number += 1
        except FileExistsError:
            number += 1
        except OSError as error:  # as for a name that is too long
            raise UserError(f"cannot make the folder {run}: {error.strerror or error}; take another --desc") from None


def mark(run: Path) -> None:
    """Marks a folder as that of a run, so that its sheets of fakes never count as images of a data set around it."""
    write_file(run / RUN_MARKER, b"The folder of a training run. Its images are left out of data sets around it.\n")


@contextmanager
def training_in(run: Path) -> Iterator[None]:
    """Keeps other processes from training in the same folder for as long as this lasts, in which they would remove each
    other's files. The system lets go of the lock when the process ends, however it does.

    Raises UserError where another process trains there.
    """
    try:
        import fcntl
    except ImportError:  # not Linux or macOS
        yield
        return
    if not (run / RUN_MARKER).exists():  # in runs of earlier versions
        mark(run)
    with open_own(run / RUN_MARKER, "ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone, not of those it forks
        except (BlockingIOError, PermissionError):
            raise UserError(
                f"{run} is being trained by another process; wait for it, stop it, or name another run with --resume"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield


def check_free(run: Path) -> None:
    """Raises UserError where another process trains in a run."""
    with training_in(run):
        pass


def record_unreadable(run: Path, names: Sequence[str]) -> None:
    """Names the images that a run goes on without in its config.json. Raises DiskFull."""
    path = run / "config.json"
    content = json.loads(path.read_text())
    if content["about"].get("unreadable", []) != list(names):
        content["about"]["unreadable"] = list(names)
        write_file(path, json.dumps(content, indent=2).encode())


def module_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's tensors on the CPU."""
    return {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
