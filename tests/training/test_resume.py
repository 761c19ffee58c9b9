"""A run that was stopped, killed or met a full disk is, resumed, the run that was not: bit for bit."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import zipfile
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from media.convert import write_dataset
from media.faces import faces
from media.loader import EndlessSampler
from metrics import Evaluator
from models.snapshot import find_snapshot, save_snapshot
from networks.generator import Generator, GeneratorConfig
from tests.scripts import TINY as SCRIPT_TINY
from tests.scripts import done, launch, mistake, script
from tests.training.killing import evaluate
from tests.training.test_loop import assert_same
from torch_utils.errors import DiskFull, UserError
from training import gan, log, loop
from training import runs as training_runs
from training.config import TrainConfig
from training.gan import GANTrainer
from training.options import resolve
from training.runs import find_state, load_state

TINY = {"cfg": "demo", "cbase": 256, "cmax": 8, "map_depth": 1, "z_dim": 16, "w_dim": 16, "style_channels": 8}
TIMES = ("it_per_s",)


def tiny(data: Path, **options) -> TrainConfig:
    """Sixteen steps, a state after every eighth, a line of the log after every fourth."""
    own = {"batch": 8, "workers": 0, "procs": 1, "metrics": ["swd50"], "tick": 0.032, "snap": 2, "kimg": 0.128}
    return resolve({**TINY, **own, "data": str(data), **options}, 16, 3, 0, 0)


def train_until(step: int, config: TrainConfig, run: Path, state: Path | None = None) -> None:
    """Trains with a SIGTERM in that step; of which the launcher of several processes knows nothing."""

    class Stop:
        asked = 0

        @property
        def set(self) -> bool:
            self.asked += 1
            return self.asked == step

    loop.StopSignal, Evaluator.evaluate = Stop, evaluate
    loop.train(GANTrainer, config, run, state)


def records(run: Path, name: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / name).read_text().splitlines()] if (run / name).exists() else []
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows."""
    events = EventAccumulator(str(run), {"scalars": 0, "images": 0}).Reload()
    shown = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    shown |= {name: [(e.step, e.encoded_image_string) for e in events.Images(name)] for name in events.Tags()["images"]}
    return {name: values for name, values in shown.items() if name not in TIMES}


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, optimizers' moments, random states, every number and every image."""
    assert_same(load_state(find_state(a)), load_state(find_state(b)))
    for name in ("stats.jsonl", "metrics.jsonl"):
        assert records(a, name) == records(b, name)
    assert scalars(a) == scalars(b)
    for path in (*a.glob("*.png"), *a.glob("snapshot-*")):
        assert path.read_bytes() == (b / path.name).read_bytes(), path.name
    assert not list(b.rglob(".*"))


@pytest.fixture(autouse=True)
def fast_figures(monkeypatch):
    monkeypatch.setattr(Evaluator, "evaluate", evaluate)


@pytest.fixture
def runs(tmp_path) -> tuple[Path, Path]:
    for name in ("straight", "other"):
        (tmp_path / name).mkdir()
    return tmp_path / "straight", tmp_path / "other"


class Killed(BaseException):
    pass


# Stops after 6, 8 and 11 steps: between two ticks, where a look is due, and between two again.
@pytest.mark.parametrize("procs, stops", [(1, (6, 2, 3)), pytest.param(2, (11,), marks=pytest.mark.slow)])
def test_twice_n_is_n_and_a_stop_and_n_more(runs, faces16, monkeypatch, procs, stops):
    straight, stopped = runs
    config = tiny(faces16, procs=procs, aug="ada", target=0.0)
    monkeypatch.setattr(loop, "StopSignal", loop.StopSignal)  # to be put back
    launch(train_until, 0, config, straight, processes=procs)
    for step in stops:
        state = find_state(stopped) if (stopped / "state").exists() else None
        launch(train_until, step, config, stopped, state, processes=procs)
    assert load_state(find_state(stopped))["step"] == 11
    launch(train_until, 0, config, stopped, find_state(stopped), processes=procs)
    assert_same_run(straight, stopped)


def damage(faces16: Path, out: Path, places: tuple[int, ...]) -> Path:
    """300 faces, of which those that are shown at these places in the order of a training cannot be decoded."""
    order = list(islice(EndlessSampler(300, seed=0), 128))
    bad = [order[place] for place in places]
    with zipfile.ZipFile(faces16) as source, zipfile.ZipFile(out, "w") as archive:
        for i, name in enumerate([name for name in source.namelist() if name.endswith(".png")][:300]):
            data = source.read(name)
            archive.writestr(f"{i:03d}.png", data[:-40] if i in bad else data)
    return out


@pytest.mark.parametrize("procs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_leaves_images_out_goes_on_bit_for_bit(runs, faces16, tmp_path, monkeypatch, procs):
    """The second of three is met between the last tick and the stop, by the second process if there are two."""
    damaged = damage(faces16, tmp_path / "damaged.zip", (6, 43, 124))  # none is in the sheets
    straight, stopped = runs
    for run in (straight, stopped):
        (run / "config.json").write_text('{"about": {}}')  # where train.py has written what the run is
    config = tiny(damaged, procs=procs, skip_unreadable=True)
    monkeypatch.setattr(loop, "StopSignal", loop.StopSignal)  # to be put back
    launch(train_until, 0, config, straight, processes=procs)
    launch(train_until, 7, config, stopped, processes=procs)
    assert load_state(find_state(stopped))["step"] == 7
    launch(train_until, 0, config, stopped, find_state(stopped), processes=procs)
    assert [line["unreadable"] for line in records(straight, "stats.jsonl")] == [1, 2, 2, 3]
    assert_same_run(straight, stopped)


def test_a_run_that_met_a_bad_image_goes_on_with_skip_unreadable(runs, faces16, tmp_path, monkeypatch):
    run, _ = runs
    (run / "config.json").write_text('{"about": {}}')
    damaged = damage(faces16, tmp_path / "damaged.zip", (101,))
    monkeypatch.setattr(loop, "StopSignal", loop.StopSignal)  # to be put back
    train_until(7, tiny(damaged), run)
    train_until(0, tiny(damaged, skip_unreadable=True), run, find_state(run))
    assert [line["unreadable"] for line in records(run, "stats.jsonl")[1:]] == [0, 0, 1]


def test_a_run_goes_on_from_a_state_that_was_saved_between_two_snapshots(runs, faces16, monkeypatch):
    straight, killed = runs
    config = tiny(faces16, keep=9, aug="ada", target=0.0)
    loop.train(GANTrainer, config, straight)
    update_ema, calls = gan.update_ema, 0

    def kill(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 14:  # of 16 steps; the last snapshot is of the eighth
            raise Killed
        return update_ema(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "autosave_is_due", lambda config, saved_time: True)
        patch.setattr(gan, "update_ema", kill)
        loop.train(GANTrainer, config, killed)
    assert [path.stem for path in training_runs.list_states(killed)] == ["state-000000.064", "autosave-000000.096"]
    assert [path.stem for path in killed.glob("snapshot-*")] == ["snapshot-000000.064"]
    assert load_state(find_state(killed))["step"] == 12
    loop.train(GANTrainer, config, killed, find_state(killed))
    assert_same_run(straight, killed)


@pytest.mark.parametrize("minutes, seconds, due", [(15.0, 899, False), (15.0, 901, True), (0.0, 1e6, False)])
def test_a_state_is_due_so_many_minutes_after_the_last(faces16, monkeypatch, minutes, seconds, due):
    monkeypatch.setattr(loop.time, "monotonic", lambda: 100.0 + seconds)
    assert loop.autosave_is_due(tiny(faces16, autosave=minutes), saved_time=100.0) is due


@pytest.mark.parametrize("moment", ["step", "snapshot", "state", "evaluation", "sheet"])
def test_what_was_written_after_the_state_is_written_again(runs, faces16, monkeypatch, moment):
    straight, killed = runs
    config = tiny(faces16)
    loop.train(GANTrainer, config, straight)

    where = {
        "step": (gan, "update_ema", 14),  # there is a line of the log since the state
        "snapshot": (gan, "save_snapshot", 2),
        "state": (loop, "save_state", 2),
        "evaluation": (GANTrainer, "compute_metrics", 2),  # the state has just been written
        "sheet": (log, "save_png", 2),  # ... and the metrics
    }
    place, name, call = where[moment]
    original, calls = getattr(place, name), 0

    def kill(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(place, name, kill)
        loop.train(GANTrainer, config, killed)
    (killed / "state" / ".state-000000.128.pt.1.tmp").write_bytes(b"half a state")
    (killed / ".fakes000000.128.png.1.tmp").write_bytes(b"half an image")
    loop.train(GANTrainer, config, killed, find_state(killed))
    assert_same_run(straight, killed)


@pytest.mark.slow
@pytest.mark.parametrize("kind, kills", [("zip", 6), ("tars", 4)])
def test_killed_at_any_moment(tmp_path, faces16, kind, kills):
    """Half of the moments are random, and at the other half a file is being written."""
    data = str(faces16)
    if kind == "tars":
        write_dataset(tmp_path / "tars", faces(100, 16, seed=0), shard_bytes=60_000)
        data = f"{tmp_path / 'tars'}/*.tar"
    result = done(script("tests/training/killing.py", data, tmp_path, kills, 0))
    assert int(result.stdout) >= 1  # met a file half written
    for outdir in tmp_path.glob("killed-*"):
        assert_same_run(*(next(folder.iterdir()) for folder in (tmp_path / "straight", outdir)))


def test_a_final_evaluation_that_was_cut_off_is_repeated(faces16, tmp_path, monkeypatch):
    """The training is done, and its last figures are not: --resume is not told that there is nothing to do."""
    config = tiny(faces16, kimg=0.064)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "try_to_evaluate", lambda trainer, kimg, log: None)
        loop.train(GANTrainer, config, tmp_path)
    state = load_state(find_state(tmp_path))
    assert training_runs.evaluation_is_due(tmp_path, "fakes", state, 0.064)
    loop.train(GANTrainer, config, tmp_path, find_state(tmp_path))
    assert not training_runs.evaluation_is_due(tmp_path, "fakes", state, 0.064)
    assert [line["kimg"] for line in records(tmp_path, "metrics.jsonl")] == [0, 0.064]


# --- a full disk ----------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(path: Path, megabytes: float):
    """A file system of its own, or a skip where this user may not mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1e6)}", "tmpfs", str(path)]
    if os.name != "posix" or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_costs_a_state_and_no_more(runs, faces16, capsys, monkeypatch):
    straight, full = runs
    config = tiny(faces16, keep=1, kimg=0.192)
    loop.train(GANTrainer, config, straight)
    with small_disk(full, 20):
        evaluate_there, filler = loop.try_to_evaluate, full / "filler"

        def fill(trainer, kimg, log):
            evaluate_there(trainer, kimg, log)
            if kimg == 0.064:  # to the last byte
                with pytest.raises(OSError), open(filler, "wb", buffering=0) as file:
                    while True:
                        file.write(bytes(4096))
            if kimg == 0.128:
                assert [path.name for path in (full / "state").iterdir()] == ["state-000000.064.pt"]
                assert not list(full.rglob(".*"))
                filler.unlink()

        monkeypatch.setattr(loop, "try_to_evaluate", fill)
        assert loop.train(GANTrainer, config, full)
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
        assert all("no room for" in line and "bytes needed" in line for line in said)
        # two logs, a snapshot and an image; the figures go with the lines of the log that wait
        assert sum("snapshot-000000.128" in line for line in said) == 1 and len(said) <= 5, said
        monkeypatch.undo()
        for name in ("snapshot-000000.128.safetensors", "fakes000000.128.png"):  # there was no room for these
            assert not (full / name).exists()
            (straight / name).unlink()
        assert_same_run(straight, full)


def test_a_state_that_found_no_room_sets_nothing_of_its_own_training_aside(faces16, tmp_path, monkeypatch):
    save, saved = loop.save_state, []

    def once_full(run, state, kimg, keep):
        saved.append(kimg)
        if len(saved) == 2:
            raise DiskFull("no room for the state")
        return save(run, state, kimg, keep)

    monkeypatch.setattr(loop, "save_state", once_full)
    loop.train(GANTrainer, tiny(faces16, kimg=0.256), tmp_path)
    assert len(saved) == 4 and not list(tmp_path.glob("abandoned-*"))
    assert len(list(tmp_path.glob("snapshot-*"))) == 4


def test_a_disk_that_is_full_from_the_start(runs, faces16):
    with small_disk(runs[1], 0.01), pytest.raises(DiskFull, match=r"no room for .*reals\.png"):
        (runs[1] / "filler").write_bytes(bytes(8192))
        loop.train(GANTrainer, tiny(faces16), runs[1])


def test_a_last_state_that_finds_no_room_is_an_error(tmp_path, faces16, monkeypatch):
    def no_room(*args):
        raise DiskFull("no room for the state")

    monkeypatch.setattr(loop, "save_state", no_room)
    with pytest.raises(DiskFull, match="no room for the state") as error:
        loop.train(GANTrainer, tiny(faces16, kimg=0.064), tmp_path)
    assert error.value.exit_code == 1
    assert len(records(tmp_path, "stats.jsonl")) == 2


def test_results_after_the_state_gone_back_to_are_of_another_training(faces16, tmp_path):
    """No model of it is the newest one, and its sheets do not stand for evaluations of this one."""
    loop.train(GANTrainer, tiny(faces16, kimg=0.192, keep=9), tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    gone_back_to, *_ = training_runs.list_states(tmp_path)
    loop.train(GANTrainer, tiny(faces16, kimg=0.128, keep=9), tmp_path, gone_back_to)
    names = {path.name for path in tmp_path.iterdir()}
    assert find_snapshot(tmp_path).name == "snapshot-000000.128.safetensors"
    assert before - names == {"snapshot-000000.192.safetensors", "fakes000000.192.png"}
    renamed = {name for name in names if name.startswith("abandoned-")}
    assert renamed == {f"abandoned-{name}" for name in (*(before - names), "fakes000000.128.png")}
    loop.train(GANTrainer, tiny(faces16, kimg=0.192, keep=9), tmp_path, find_state(tmp_path))
    assert {path.name for path in tmp_path.glob("abandoned-*")} == renamed  # this time nothing was gone back from


def test_a_best_model_of_a_training_that_was_not_gone_on_with_is_set_aside(tmp_path):
    G = Generator(GeneratorConfig(16, cbase=128, cmax=8, z_dim=8, w_dim=8))
    best = tmp_path / "best.safetensors"
    for kimg, kept in ((10.0, True), (12.0, True), (20.0, False)):  # of the state, of this save, of what came later
        save_snapshot(best, G, {"kimg": kimg})
        training_runs.set_aside(tmp_path, "fakes", 10.0, 12.0)
        assert best.exists() == kept
    assert (tmp_path / "abandoned-best.safetensors").exists()


@pytest.mark.parametrize("name", ["ffhq.pkl", "a.safetensors"])
def test_trained_weights_are_no_state(tmp_path, name):
    """The option for them is named, as StyleGAN2's --resume took a pickle."""
    (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(UserError, match=rf"not a training state; .* with --init-from .*{name}$"):
        load_state(tmp_path / name)


def test_a_folder_of_states_means_its_run(tmp_path):
    training_runs.save_state(tmp_path, {}, 1, keep=9)
    assert find_state(tmp_path / "state") == find_state(tmp_path)


def test_a_newest_state_that_is_missing_leaves_no_stale_model(faces16, tmp_path):
    """It was removed, or found no room; a link to the best model does not lead nowhere either."""
    loop.train(GANTrainer, tiny(faces16, kimg=0.192, snap=1, keep=9), tmp_path)
    for state in training_runs.list_states(tmp_path)[2:]:  # after 0.064 of 0.032, 0.064, ... 0.192
        state.unlink()
    (tmp_path / "best.safetensors").symlink_to("snapshot-000000.16.safetensors")
    loop.train(GANTrainer, tiny(faces16, kimg=0.128, keep=9, tick=0.064), tmp_path, find_state(tmp_path))
    assert find_snapshot(tmp_path).name == "snapshot-000000.128.safetensors"
    kept = {"snapshot-000000", "snapshot-000000.032", "snapshot-000000.064", "snapshot-000000.128"}
    assert {path.stem for path in tmp_path.glob("snapshot-*")} <= kept
    assert not (tmp_path / "best.safetensors").is_symlink()


def test_states_after_the_one_gone_back_to_are_of_another_training(tmp_path):
    for kimg in (1, 2, 3, 4):
        training_runs.save_state(tmp_path, {}, kimg, keep=9)
    training_runs.save_state(tmp_path, {}, 2.5, keep=2)
    assert sorted(path.stem for path in (tmp_path / "state").iterdir()) == ["state-000002", "state-000002.5"]


def test_what_is_set_aside_is_of_the_run(tmp_path):
    """Not images that the user has put there, nor a snapshot that has just been written."""
    names = ["snapshot-000012.safetensors", "fakes000012.png", "frame000500.png", "seed1000000.png", "reals.png"]
    for name in names:
        (tmp_path / name).touch()
    training_runs.set_aside(tmp_path, "fakes", 10.0, 12.0)
    of_others = {"frame000500.png", "seed1000000.png", "reals.png"}
    assert {path.name for path in tmp_path.iterdir()} == {names[0], "abandoned-fakes000012.png", *of_others}
    training_runs.set_aside(tmp_path, "fakes", 10.0, None)  # an autosave at 12 has no snapshot of its own
    assert (tmp_path / "abandoned-snapshot-000012.safetensors").exists() and not (tmp_path / names[0]).exists()


def test_autosaves_do_not_use_up_the_states_that_are_kept(tmp_path):
    def stems() -> list[str]:
        return [path.stem for path in training_runs.list_states(tmp_path)]

    for kimg in (10, 20, 30):
        training_runs.save_state(tmp_path, {}, kimg, keep=2)
        for part in (2, 4.5):
            training_runs.autosave(tmp_path, {}, kimg + part, keep=2)
    assert stems() == ["state-000020", "state-000030", "autosave-000034.5"]
    assert find_state(tmp_path).stem == "autosave-000034.5"
    training_runs.autosave(tmp_path, {}, 25, keep=2)  # resumed from the state of kimg 20
    assert stems() == ["state-000020", "autosave-000025"]
    training_runs.save_state(tmp_path, {}, 30, keep=2)
    assert stems() == ["state-000020", "state-000030"]


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_as_many_states_stay_as_asked(tmp_path, keep):
    for kimg in range(1, 10):
        training_runs.save_state(tmp_path, {}, kimg, keep)
        newest = [f"state-{number:06d}" for number in range(max(kimg - keep, 0) + 1, kimg + 1)]
        assert sorted(path.stem for path in (tmp_path / "state").iterdir()) == newest


@pytest.mark.slow
def test_a_run_goes_on_in_as_many_processes_as_typed(tmp_path, faces16):
    done(script("train.py", "--data", faces16, "--outdir", tmp_path, "--kimg", 0.016, *SCRIPT_TINY))
    (run,) = tmp_path.iterdir()
    resume = ["train.py", "--resume", run, "--kimg"]
    machine = r"(\d) CPU process(?:es)?, microbatches of (\d)"
    for kimg, options, said in (
        (0.032, ["--procs", 2], [("2", "4", "1", "8")]),
        (0.048, [], []),  # as it was before
        (0.064, ["--procs", 1, "--batch-gpu", 4], [("1", "4", "2", "4")]),
    ):
        note = done(script(*resume, kimg, *options)).stderr
        assert re.findall(f"goes on with {machine}, and so far had {machine}:", note) == said
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert [line["kimg"] for line in lines] == [0.016, 0.032, 0.048, 0.064]  # nothing was begun again
    message = mistake(*resume, 9, "--procs", 3)
    assert "--batch 8 cannot be split evenly over 3 processes; take a multiple of 3, or another number of" in message
