"""What a run records of the options with which it goes on: those that have been tried, with the first state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.scripts import ROOT, TINY, done, mistake, script, script_here
from tests.training.test_loop import tiny
from torch_utils.errors import DiskFull
from training import loop
from training.gan import GANTrainer
from training.runs import find_state

STATES = {"tick": 0.032, "snap": 2}  # a state after every eighth step


class Killed(BaseException):
    pass


@pytest.fixture
def begun(tmp_path, faces16) -> Path:
    """A run of two steps."""
    options = ["--outdir", tmp_path / "runs", "--kimg", 0.016, *TINY]
    done(script_here("train.py", "--data", faces16, *options))
    (run,) = (tmp_path / "runs").iterdir()
    return run


def recorded(run: Path) -> tuple[bytes, bytes]:
    return (run / "options.json").read_bytes(), (run / "config.json").read_bytes()


def options_of(run: Path) -> dict:
    return json.loads(recorded(run)[0])


def test_a_mistake_in_resuming_is_forgotten(begun):
    """What shows only in the trainer as well: a file that is no encoder's."""
    before, longer = recorded(begun), ["train.py", "--resume", begun, "--kimg", 0.032]
    failed = script_here(*longer, "--metrics", "fd5k_full@pretrained/faces32.safetensors", cwd=ROOT)
    assert failed.returncode == 2 and "name the file of an encoder" in failed.stderr
    assert recorded(begun) == before
    done(script_here(*longer))
    assert options_of(begun)["kimg"] == json.loads(recorded(begun)[1])["kimg"] == 0.032
    assert options_of(begun)["metrics"] == []


@pytest.mark.parametrize("way", ["memory", "a crash"])
def test_a_step_that_fails_leaves_the_records_as_they_were(begun, monkeypatch, way):
    """The third of four, before a state is saved; the options that are typed again are recorded with it."""
    before, step, steps = recorded(begun), GANTrainer.train_step, 0
    longer = ["train.py", "--resume", begun, "--kimg", 0.048, "--batch-gpu", 4]

    def fail(self, *args):
        nonlocal steps
        steps += 1
        if steps == 3:
            raise torch.OutOfMemoryError("CUDA out of memory") if way == "memory" else Killed
        step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(GANTrainer, "train_step", fail)
        if way == "memory":
            failed = script_here(*longer)
            assert failed.returncode == 2 and "out of memory with 4 images at a time; resume the run" in failed.stderr
        else:
            with pytest.raises(Killed):
                script_here(*longer)
    assert recorded(begun) == before
    steps = 0
    done(script_here(*longer))
    assert options_of(begun).items() >= {"kimg": 0.048, "batch_gpu": 4}.items()
    about = [json.loads(config)["about"] for _, config in (before, recorded(begun))]
    assert about[0] == about[1]


def test_records_for_which_there_is_no_room_are_written_with_the_next_state(tmp_path, faces16):
    calls = []

    def record() -> None:
        calls.append(sorted(path.name for path in (tmp_path / "state").iterdir()))
        if len(calls) == 1:
            raise DiskFull("no room for the options")

    loop.train(GANTrainer, tiny(faces16, kimg=0.064, **STATES), tmp_path)
    loop.train(GANTrainer, tiny(faces16, kimg=0.256, keep=9, **STATES), tmp_path, find_state(tmp_path), record)
    names = [f"state-000000.{kimg}.pt" for kimg in ("064", "128")]
    assert calls == [names[:1], names]


def test_what_only_an_evaluation_goes_on_with_is_recorded(tmp_path, faces16, monkeypatch):
    """A training that was cut off in its last evaluation has no further state to save."""
    config, calls = tiny(faces16, kimg=0.064, **STATES), []
    with monkeypatch.context() as patch:
        patch.setattr(loop, "try_to_evaluate", lambda trainer, kimg, log: None)
        loop.train(GANTrainer, config, tmp_path)
    loop.train(GANTrainer, config, tmp_path, find_state(tmp_path), lambda: calls.append(1))
    assert calls == [1]


@pytest.mark.slow
def test_a_mistake_that_several_processes_meet_is_forgotten(begun):
    """That they record what they go on with is seen in `test_a_run_goes_on_in_as_many_processes_as_typed`."""
    before, mistaken = recorded(begun), ["--procs", 2, "--metrics", "fd5k_full@pretrained/faces32.safetensors"]
    failed = script("train.py", "--resume", begun, "--kimg", 0.024, *mistaken, cwd=ROOT)
    assert failed.returncode == 2 and "name the file of an encoder" in failed.stderr
    assert recorded(begun) == before


def test_a_run_goes_on_without_a_detectors_file_that_is_gone(begun, tmp_path):
    """What was recorded is left out with a note; what is typed has to be there."""
    files = [tmp_path / "gone.pth", tmp_path / "kept.pth"]
    for file in files:
        file.touch()
    weights = [word for file in files for word in ("--detector-weights", file)]
    done(script_here("train.py", "--resume", begun, "--kimg", 0.024, *weights))
    assert options_of(begun)["detector_weights"] == [str(file) for file in files]
    files[0].unlink()
    longer = ["train.py", "--resume", begun, "--kimg", 0.032]
    assert f"there is no {files[0]}; " in mistake(*longer, "--detector-weights", files[0])
    said = done(script_here(*longer)).stderr
    assert f"note: there is no {files[0]} here, which --detector-weights of {begun} was" in said
    assert options_of(begun)["detector_weights"] == [str(files[1])]
    assert "gone.pth" not in done(script_here("train.py", "--resume", begun, "--kimg", 0.04)).stderr
