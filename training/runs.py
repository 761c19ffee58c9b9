"""The folders of runs, and the training states in them that a run resumes from."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.snapshot import kimg_name, list_runs, run_number
from torch_utils.errors import UserError, one_line
from torch_utils.files import RUN_MARKER, write_file


def save_state(run: Path, state: Mapping[str, Any], kimg: float, keep: int = 2) -> Path:
    """Writes a training state (tensors, numbers, strings, in dicts and lists), and then removes others.

    Of the run's states `keep` stay: this one and those before. Later ones are of a training that was not gone on with.

    Raises DiskFull, and leaves the others.
    """
    path = run / "state" / f"state-{kimg_name(kimg)}.pt"
    buffer = io.BytesIO()  # the size is known before, and errors of the disk come as they are
    torch.save(dict(state), buffer)
    write_file(path, buffer.getbuffer())
    earlier = [other for other in list_states(run) if other.stem < path.stem]
    for other in {*list_states(run)} - {path, *earlier[max(len(earlier) - keep + 1, 0) :]}:
        other.unlink()
    return path


def evaluation_is_due(run: Path, sheet_name: str, state: Mapping[str, Any], kimg: float) -> bool:
    """Whether the evaluation that belongs to a state was cut off: its sheet, which is written last, is missing."""
    return state.get("evaluating", False) and not sheet_path(run, sheet_name, kimg).exists()


def sheet_path(run: Path, name: str, kimg: float) -> Path:
    """The sheet of images that an evaluation leaves, `fakes000200.png`."""
    return run / f"{name}{kimg_name(kimg)}.png"


def load_state(path: Path) -> dict[str, Any]:
    """Reads a training state. No pickle is executed: anything but tensors and plain values is refused."""
    if path.suffix == ".safetensors":
        raise UserError(f"{path} is a snapshot, not a training state; give --resume the run's folder, {path.parent}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is no state
        reason = one_line(error, 120)
        raise UserError(f"{path} cannot be read as a training state ({reason}); name another with --resume") from None
    if not isinstance(state, dict) or not {"config", "step", "random", "averages", "evaluating"} <= state.keys():
        raise UserError(f"{path} holds no training state of this version of the project; name another with --resume")
    return state


def find_state(path: Path) -> Path:
    """The state that `path` means: the file itself, the newest of a run, or that of the newest run that has one."""
    if path.is_file():
        return path
    for run in [path, *sorted(list_runs(path), key=run_number, reverse=True)]:
        if states := list_states(run):
            return states[-1]
    raise UserError(f"no training state under {path}; leave out --resume to start a new run, or name a run with it")


def list_states(run: Path) -> list[Path]:
    return sorted((run / "state").glob("state-*.pt"), key=lambda path: path.stem)


def new_run(outdir: Path, description: str) -> Path:
    """Makes the next free run folder, `00003-description`."""
    number = max((run_number(run) for run in list_runs(outdir)), default=-1) + 1
    while True:
        run = outdir / f"{number:05d}-{description}"
        try:
            run.mkdir()
            mark(run)
            return run
        except FileExistsError:  # another training started in the same moment
            number += 1
        except OSError as error:  # as for a name that is too long
            raise UserError(f"cannot make the folder {run}: {error.strerror or error}; take another --desc") from None


def mark(run: Path) -> None:
    """Marks a folder as that of a run, so that its sheets of fakes never count as images of a data set around it."""
    write_file(run / RUN_MARKER, b"The folder of a training run. Its images are left out of data sets around it.\n")


def module_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's tensors on the CPU."""
    return {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
