"""train.py and generate.py as a user types them: a run from data to images, and mistakes in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from media.convert import write_dataset
from media.dataset import ImageDataset
from media.faces import faces
from tests.scripts import ROOT, TINY, done, image_zip, mistake, remedy, script, script_here, start, wait_until
from training.runs import find_state, list_states, load_state


@pytest.fixture(scope="module")
def runs(tmp_path_factory, faces16) -> Path:
    """A folder with one short run, conditional on the class."""
    outdir = tmp_path_factory.mktemp("work") / "runs"
    done(script("train.py", "--data", faces16, "--outdir", outdir, "--cond", "--kimg", "0.04", *TINY))
    return outdir


# --- the way that works ---------------------------------------------------------------------------------------------


def test_a_run_has_what_a_run_has(runs):
    (run,) = runs.iterdir()
    assert run.name == "00000-faces16-adaconv-demo-cpu"
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "stats.jsonl", "reals.png", "fakes000000.png", "snapshot-000000.04.safetensors"} <= names
    assert [path.name for path in (run / "state").iterdir()] == ["state-000000.04.pt"]
    config = json.loads((run / "config.json").read_text())
    assert config["generator"]["c_dim"] == 6 and config["about"]["torch"] == torch.__version__


def test_resume_goes_on_and_generate_takes_the_newest(runs):
    finished = done(script("train.py", "--outdir", runs, "--resume", "--kimg", "0.08"))
    (run,) = runs.iterdir()
    assert finished.stderr.splitlines()[-1].startswith("finished at kimg 0.08; use the model with: python generate.py")
    command = remedy(finished.stderr)
    done(script(*command, "--outdir", runs.parent / "used"))
    assert run in Path(command[-1]).parents and len(list((runs.parent / "used").glob("seed*.png"))) == 16
    assert json.loads((run / "stats.jsonl").read_text().splitlines()[-1])["step"] == 10
    result = done(script("generate.py", "--seeds", "0-2,7", cwd=runs.parent))
    assert str(Path("runs") / run.name) in result.stderr
    assert {p.name for p in (runs.parent / "out").iterdir()} == {f"seed{i:04d}.png" for i in (0, 1, 2, 7)}


def test_the_same_seed_gives_the_same_image(runs, tmp_path):
    for name, arguments in {
        "a": ["--seeds", "0-8", "--batch", 4],
        "b": ["--seeds", "8,3", "--batch", 1],
        "c": ["--seeds", "3", "--noise-mode", "random"],
        "d": ["--seeds", "2-4", "--noise-mode", "random", "--batch", 2],
        "e": ["--seeds", "0-8", "--grid", "3x3"],
    }.items():
        done(script("generate.py", "--network", runs, "--outdir", tmp_path / name, *arguments))

    def image(path):
        return np.asarray(Image.open(tmp_path / path)).astype(int)

    for seed in (3, 8):
        assert np.abs(image(f"a/seed000{seed}.png") - image(f"b/seed000{seed}.png")).max() <= 1
    assert np.abs(image("c/seed0003.png") - image("d/seed0003.png")).max() <= 1
    sheet = image("e/seeds0000-0008.png")
    assert np.abs(sheet[32:48, 32:48] - image("a/seed0008.png")).max() <= 1


def test_dry_run_prints_the_configuration_and_makes_nothing(faces16, tmp_path):
    result = done(script("train.py", "--data", faces16, "--outdir", tmp_path / "runs", "--dry-run", "--gpus", 0))
    config = json.loads(result.stdout)
    assert config["generator"]["resolution"] == 16 and config["batch"] == 32
    assert config["gamma"] == pytest.approx(0.0002 * 16**2 / 32)
    assert not (tmp_path / "runs").exists()


def test_a_run_of_r3gan_goes_on_with_the_schedules_that_it_began_with(faces16, tmp_path):
    """They end with the kimg that were asked for first: a longer training keeps their last values."""
    small = ["--cfg", "r3gan", "--cbase", 256, "--cmax", 16, "--batch", 8, "--gpus", 0, "--workers", 0, "--procs", 1]
    done(script_here("train.py", "--data", faces16, "--outdir", tmp_path, "--kimg", 0.016, "--metrics", "none", *small))
    (run,) = tmp_path.iterdir()
    name, *longer = remedy(done(script_here("train.py", "--resume", run)).stderr)
    done(script_here(name, *longer))
    config = json.loads((run / "config.json").read_text())
    assert config["kimg"] == 0.032 and config["schedules"]["decay_kimg"] == 0.016
    assert json.loads((run / "stats.jsonl").read_text().splitlines()[-1])["step"] == 4


def test_a_state_may_be_named_from_any_folder(runs):
    (run,) = runs.iterdir()
    for folder, name in ((run, "state/"), (run / "state", ""), (runs, f"{run.name}/state/")):
        state = list_states(run)[-1]
        result = done(script_here("train.py", "--resume", name + state.name, "--dry-run", cwd=folder))
        assert json.loads(result.stdout)["generator"]["c_dim"] == 6


def test_a_run_in_a_folder_that_cannot_be_written_is_not_resumed(runs, monkeypatch):
    (run,) = runs.iterdir()

    def read_only(dir, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("torch_utils.cli.tempfile.TemporaryFile", read_only)
    message = mistake("train.py", "--resume", run, "--kimg", 10)
    assert f"cannot write to {run / 'state'}: Permission denied; copy {run} to where it can be written" in message


def test_a_run_that_is_done_says_so(runs):
    (run,) = runs.iterdir()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    result = done(script("train.py", "--outdir", runs, "--resume"))
    assert result.stderr.count("\n") == 1 and "that were asked for; train longer" in result.stderr
    name, *longer = remedy(result.stderr)
    assert name == "train.py" and longer[:2] == ["--resume", str(run)] and float(longer[3]) > 0.04
    done(script_here(name, *longer, "--dry-run"))
    other = mistake("train.py", "--resume", run, "--gamma", 2)
    assert f"leave these out, or begin a new run from its weights with --init-from {run}" in other
    new = ["--data", json.loads((run / "options.json").read_text())["data"], "--cond", "--gamma", 2, *TINY]
    done(script_here("train.py", "--init-from", run, *new, "--dry-run"))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_data_may_move_but_not_change(runs, faces16, tmp_path):
    moved, less, other, larger = (tmp_path / f"{name}.zip" for name in ("moved", "less", "other", "larger"))
    shutil.copy(faces16, moved)
    write_dataset(less, faces(499, 16, seed=0))
    write_dataset(other, faces(500, 16, seed=1))
    write_dataset(larger, faces(2, 32, seed=0))
    resume = ["train.py", "--outdir", runs, "--resume", "--dry-run", "--data"]
    assert json.loads(done(script(*resume, moved)).stdout)["data"] == str(moved)
    for path in (less, other, larger):
        message = mistake(*resume, path)
        assert f"{path} is not the data set that" in message and "--data" in message


def test_resume_keeps_what_it_was_given(faces16, tmp_path):
    train = ["train.py", "--outdir", tmp_path, "--kimg"]
    done(script(*train, "0.008", "--data", faces16, *TINY))
    done(script(*train, "0.016", "--resume", "--tick", "0.008"))
    (run,) = tmp_path.iterdir()
    options, config = (json.loads((run / name).read_text()) for name in ("options.json", "config.json"))
    assert options["kimg"] == config["kimg"] == 0.016 and options["batch"] == 8
    assert "0.008" in config["about"]["command"] and config["about"]["data_hash"] == ImageDataset(faces16).fingerprint
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert config["about"]["commit"].removesuffix("+") == head
    names = [path.name for path in sorted(run.glob("snapshot-*"))]
    assert names == ["snapshot-000000.008.safetensors", "snapshot-000000.016.safetensors"]


def test_a_run_whose_data_has_moved_says_how_to_name_it(faces16, tmp_path):
    shutil.copy(faces16, tmp_path / "here.zip")
    done(script_here("train.py", "--data", "here.zip", *TINY, "--kimg", "0.008", cwd=tmp_path))
    (run,) = (tmp_path / "runs").iterdir()
    (tmp_path / "here.zip").rename(tmp_path / "there.zip")
    message = mistake("train.py", "--resume", "--dry-run", cwd=tmp_path)
    assert f"--resume runs/{run.name} --data PATH" in message and "here.zip" in message
    remedy = ["--resume", f"runs/{run.name}", "--data", "there.zip"]
    assert json.loads(done(script_here("train.py", *remedy, "--dry-run", cwd=tmp_path)).stdout)["data"] == "there.zip"


def test_a_run_inside_its_own_data_neither_sees_its_fakes_nor_stops_resuming(tmp_path):
    for i in range(8):
        Image.fromarray(np.full((16, 16, 3), 30 * i, np.uint8)).save(tmp_path / f"{i}.png")
    train = ["train.py", "--data", ".", *TINY, "--kimg"]
    done(script_here(*train, "0.008", cwd=tmp_path))
    assert list(tmp_path.glob("runs/*/fakes*.png"))
    done(script_here("train.py", "--resume", "--kimg", "0.016", cwd=tmp_path))
    again = done(script_here(*train, "0.008", cwd=tmp_path))
    first, second = sorted((tmp_path / "runs").iterdir())
    assert "left out folders of training runs: 2, first runs/" in again.stderr
    hashes = {json.loads((run / "config.json").read_text())["about"]["data_hash"] for run in (first, second)}
    assert len(hashes) == 1


def test_auto_on_a_cpu_is_warned_of(faces16, tmp_path):
    tiny = [*TINY[2:], "--kimg", "0.008", "--map-depth", 1]
    result = done(script("train.py", "--data", faces16, "--outdir", tmp_path, *tiny))
    assert "note: --cfg auto is meant for GPUs" in result.stderr


@pytest.mark.parametrize("procs", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_saves_and_says_how_to_go_on(faces16, tmp_path, number, procs):
    options = ["--data", faces16, "--outdir", tmp_path / "runs", "--kimg", 999, *TINY, "--tick", 0.02, "--workers", 1]
    process = start(tmp_path, "train.py", *options, "--procs", procs)
    said = tmp_path / "stderr"
    wait_until(lambda: said.exists() and "\nkimg" in said.read_text())  # the first tick
    before = said.read_text().count("\n")
    os.killpg(process.pid, number)  # as a terminal or a job scheduler does
    process.join(60)
    assert process.exitcode == 0
    rest = said.read_text().splitlines()[before:]
    *ticks, last = rest
    ticks.remove("stopping after this step, with everything saved; ^C in 3 s or later ends it at once")
    assert "train.py --resume" in last and all(line.startswith("kimg") for line in ticks), rest
    (run,) = (tmp_path / "runs").iterdir()
    assert list(run.glob("state/state-*.pt")) and list(run.glob("snapshot-*.safetensors"))


def test_interrupted_with_nobody_to_read_its_output_it_saves_as_well(faces16, tmp_path):
    """As with `2>&1 | tee log`: ^C ends tee first."""
    options = ["--data", faces16, "--outdir", tmp_path / "runs", "--kimg", 999, *TINY, "--tick", 0.02]
    command = [sys.executable, "train.py", *map(str, options)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert any(line.startswith("kimg") for line in process.stdout)
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert list(run.glob("state/state-*.pt")) and list(run.glob("snapshot-*.safetensors"))


def test_a_run_that_is_being_trained_is_not_resumed_beside_it(faces16, tmp_path):
    runs = tmp_path / "runs"
    options = ["--data", faces16, "--outdir", runs, "--kimg", 999, *TINY, "--tick", 0.02, "--snap", 1, "--workers", 1]
    process = start(tmp_path, "train.py", *options)
    wait_until(lambda: bool(list(runs.glob("*/state/*.pt"))))
    (run,) = runs.iterdir()
    records = (run / "config.json").stat().st_mtime_ns
    message = mistake("train.py", "--outdir", runs, "--resume")
    assert f"{run} is being trained by another process" in message and process.is_alive()
    assert (run / "config.json").stat().st_mtime_ns == records
    os.kill(process.pid, signal.SIGKILL)  # with a process that reads images, which may live for some seconds more
    process.join(60)
    state = load_state(find_state(run))
    step, batch = state["step"], state["config"]["batch"] / 1000
    done(script("train.py", "--outdir", runs, "--resume", "--kimg", (step + 1) * batch))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10-train", "emoji64-rgba"])
def test_real_images_from_archive_to_images(real_images, tmp_path, name):
    data, arguments = tmp_path / "data.zip", ["--cond", "--cmax", "8"] if name.startswith("cifar") else ["--cmax", "8"]
    if name.startswith("cifar"):
        slice_of_archive(real_images / f"{name}.zip", data, 200)
    else:
        source = tmp_path / "slice.zip"
        slice_of_archive(real_images / f"{name}.zip", source, 100)
        done(script("dataset_tool.py", "convert", "--source", source, "--out", data, "--resolution", 64))
    tiny = [*TINY, "--outdir", tmp_path / "runs", "--metrics", "swd50"]
    done(script("train.py", "--data", data, *tiny, "--kimg", "0.04", *arguments))
    done(script("train.py", "--resume", tmp_path / "runs", "--kimg", "0.08"))
    done(script("generate.py", "--network", tmp_path / "runs", "--seeds", "0-3", "--outdir", tmp_path / "out"))
    assert len(list((tmp_path / "out").glob("*.png"))) == 4
    (metrics,) = tmp_path.glob("runs/*/metrics.jsonl")
    assert [json.loads(line)["kimg"] for line in metrics.read_text().splitlines()] == [0.0, 0.04, 0.08]
    snapshot = max(tmp_path.glob("runs/*/snapshot-*.safetensors"))
    result = done(script("-m metrics", "--metrics", "swd50", "--network", snapshot, "--data", data, "--json"))
    assert json.loads(result.stdout)


def slice_of_archive(source: Path, target: Path, count: int) -> None:
    """The first images of a data set, with their labels."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        names = sorted(n for n in old.namelist() if n.endswith((".png", ".jpg")))[:count]
        for name in names:
            new.writestr(name, old.read(name))
        if "dataset.json" in old.namelist():
            labels = json.loads(old.read("dataset.json"))["labels"]
            labels = labels and [label for label in labels if label[0] in set(names)]
            new.writestr("dataset.json", json.dumps({"labels": labels}))


# --- mistakes -------------------------------------------------------------------------------------------------------


def test_bad_data(tmp_path):
    (tmp_path / "corrupt.zip").write_bytes(b"PK\3\4 no archive")
    cases = {
        "absent.zip": tmp_path / "absent.zip",
        "corrupt.zip": tmp_path / "corrupt.zip",
        "empty.zip": image_zip(tmp_path / "empty.zip", []),
        "64x64": image_zip(tmp_path / "mixed.zip", [(32, 32), (64, 64)]),
        "50x50": image_zip(tmp_path / "odd.zip", [(50, 50)]),
    }
    for word, data in cases.items():
        assert word in mistake("train.py", "--data", data, "--outdir", tmp_path / "runs", "--gpus", 0)
    data = image_zip(tmp_path / "plain.zip", [(32, 32)] * 3)
    assert "dataset.json" in mistake("train.py", "--data", data, "--cond", "--outdir", tmp_path / "r", "--gpus", 0)
    assert not (tmp_path / "runs").exists()


def test_bad_options(faces16, tmp_path, runs):
    train = ["train.py", "--data", faces16, "--outdir", tmp_path / "runs"]
    gpus = torch.cuda.device_count() + 8
    assert f"--gpus {gpus}" in mistake(*train, "--gpus", gpus)
    assert "--data" in mistake("train.py")
    assert "modconv" in mistake(*train, "--gpus", 0, "--modulation", "modconv", "--norm", "instance")
    assert "fid" in mistake(*train, "--gpus", 0, "--metrics", "fid")
    (tmp_path / "file").touch()
    assert "file" in mistake("train.py", "--data", faces16, "--gpus", 0, "--outdir", tmp_path / "file")
    assert "no training state" in mistake("train.py", "--resume", "--outdir", tmp_path)
    message = mistake("train.py", "--outdir", runs, "--resume", "--gamma", "3", "--cmax", "8")
    assert "gamma" in message and "3.0 asked" in message and "generator.cmax: 16 in the run, 8 asked" in message


def test_what_keeps_a_run_from_going_on_is_mended_as_the_message_says(runs):
    (run,) = runs.iterdir()
    start = ["train.py", "--outdir", runs, "--resume"]
    reached = json.loads((run / "stats.jsonl").read_text().splitlines()[-1])["kimg"]
    message = mistake(*start, "--kimg", 0.01)
    assert f"has reached kimg {reached:g}, beyond --kimg 0.01; train longer, for example with: python train" in message
    assert f"there is no {run.name}; did you mean {run}?" in mistake(*start[:-1], "--resume", run.name)
    done(script(*start, "--procs", 1, "--kimg", 9, "--dry-run"))


def test_a_run_whose_last_step_went_beyond_is_complete(tmp_path, faces16):
    small = ["--cfg", "demo", "--cbase", 64, "--cmax", 8, "--procs", 1, "--workers", 0, "--metrics", "none"]
    outdir = ["--outdir", tmp_path]
    done(script_here("train.py", "--data", faces16, *small, *outdir, "--gpus", 0, "--batch", 8, "--kimg", 0.018))
    again = done(script_here("train.py", "--resume", *outdir))
    assert "is complete: it has reached kimg 0.024 of the 0.018" in again.stderr


def test_crops_that_are_too_small_to_be_cut_off(faces16):
    data = ["--content", faces16, "--style", faces16]
    options = [*data, "--gpus", 0, "--width", 0.125, "--style-size", 64, "--equivariance-weight", 1, "--size"]
    assert "cuts off 8 pixels; take --size 24" in mistake("train_stylizer.py", *options, 16)
    done(script("train_stylizer.py", *options, 24, "--dry-run"))


def test_crops_that_are_too_small_for_the_kernels(faces16):
    data = ["--content", faces16, "--style", faces16]
    options = [*data, "--gpus", 0, "--width", 0.125, "--kernel-size", 5, "--size", 16]
    assert "--size 16 is too small for kernels of 5²; take 24 or more" in mistake("train_stylizer.py", *options)


def test_images_that_are_resized_to_less_than_their_crops(faces16):
    data = ["--content", faces16, "--style", faces16]
    options = [*data, "--gpus", 0, "--width", 0.125, "--style-size", 64, "--resize"]
    message = mistake("train_stylizer.py", *options, 96, "--size", 128)
    assert "--resize 96: images of that size have no crops of --size 128; take --resize 128 or more" in message
    assert "--style-size 64; take --resize 64 or more" in mistake("train_stylizer.py", *options, 32, "--size", 32)
    encoder = ["--encoder-weights", "nowhere.pth"]  # what is wrong is said before the encoder is looked for
    for size in (["--size", 128], ["--size", 64]):
        assert "take --resize" in mistake("train_stylizer.py", *data, *encoder, *size, "--resize", 96)
    remedied = done(script("train_stylizer.py", *options, 128, "--size", 128, "--dry-run"))
    assert '"resize": 128' in remedied.stdout


@pytest.mark.parametrize("missing", ["--content", "--style"])
def test_a_stylizers_images_are_looked_for_before_weights_are_downloaded(faces16, missing):
    data = {"--content": faces16, "--style": faces16, missing: "nowhere.zip"}
    assert "there is no nowhere.zip" in mistake("train_stylizer.py", *(word for pair in data.items() for word in pair))


@pytest.mark.parametrize("procs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_failed_start_leaves_no_run(tmp_path, procs):
    data = image_zip(tmp_path / "one.zip", [(32, 32)])
    result = script(
        "train.py", "--cfg", "demo", "--data", data, "--gpus", 0, "--outdir", tmp_path / "r", "--procs", procs
    )
    assert (
        result.returncode == 2
        and "only one real image, and the metrics need at least 2; add some, or train with --metrics none"
        in result.stderr
    )
    assert list((tmp_path / "r").iterdir()) == []


@pytest.mark.parametrize("option", ["--kimg", "--tick", "--gamma", "--glr", "--dlr"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_numbers_that_are_none(option, value):
    assert option in mistake("train.py", "--data", "x.zip", option, value)


def test_bad_runs(runs, tmp_path):
    (run,) = runs.iterdir()
    (snapshot,) = run.glob("snapshot-000000.04*")
    assert "is a snapshot" in mistake("train.py", "--resume", snapshot)
    assert "--desc is for new runs" in mistake("train.py", "--outdir", runs, "--resume", "--desc", "more")
    elsewhere = ["--resume", run, "--outdir", runs.parent / "elsewhere", "--dry-run"]
    assert "--outdir is for new runs; leave it out with --resume" in mistake("train.py", *elsewhere)
    done(script("train.py", "--resume", run, "--outdir", runs, "--dry-run"))
    for desc in ("a/b", "..\\x", "new\nline", "x" * 300):
        train = ["train.py", "--data", json.loads((run / "options.json").read_text())["data"], "--gpus", 0]
        assert "--desc" in mistake(*train, "--outdir", tmp_path / "runs", "--desc", desc)
    assert not any((tmp_path / "runs").iterdir())
    (state,) = run.glob("state/state-000000.04*")
    shutil.copy(state, tmp_path / "state.pt")
    assert "cannot be read as a training state" in mistake("train.py", "--resume", run / "config.json")
    assert "is not a run that can be resumed" in mistake("train.py", "--resume", tmp_path / "state.pt")


def test_bad_seeds_and_networks(runs, tmp_path):
    generate = ["generate.py", "--outdir", tmp_path / "out", "--network"]
    assert "'x'" in mistake(*generate, runs, "--seeds", "1,x")
    assert "0 to 5" in mistake(*generate, runs, "--seeds", "1", "--class", "6")
    for trunc in ("nan", "inf", "1e9", "x"):
        assert "--trunc" in mistake(*generate, runs, "--seeds", "1", "--trunc", trunc)
    for device in ("tpu", "meta", "cuda:99"):
        assert "--device" in mistake(*generate, runs, "--seeds", "1", "--device", device)
    for grid in ("3", "0x3", "3x", "10000x1", "9" * 5000 + "x1"):
        assert "--grid" in mistake(*generate, runs, "--seeds", "1", "--grid", grid)
    assert "no room" in mistake(*generate, runs, "--seeds", "0-9", "--grid", "3x3")
    assert "absent" in mistake(*generate, tmp_path / "absent", "--seeds", "1")
    (tmp_path / "text.safetensors").write_text("no tensors")
    assert "text.safetensors" in mistake(*generate, tmp_path / "text.safetensors", "--seeds", "1")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "other.safetensors is not of this" in mistake(*generate, tmp_path / "other.safetensors", "--seeds", "1")
    assert "--seeds" in mistake("generate.py")


def test_the_shipped_model_where_there_are_no_runs(tmp_path):
    result = done(script("generate.py", "--seeds", "0-3", cwd=tmp_path))
    assert "faces64.safetensors" in result.stderr and len(list((tmp_path / "out").glob("seed*.png"))) == 4


def test_a_run_from_another_with_all_that_training_has(faces16, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    done(script("train.py", "--outdir", first, "--kimg", "0.016", "--data", faces16, *TINY))
    options = [
        "--aug",
        "fixed",
        "--augpipe",
        "bgcfnc",
        "--p",
        "0.5",
        "--precision",
        "bf16",
        "--batch-gpu",
        "4",
        "--loss",
        "relativistic",
        "--cond",
    ]
    options += ["--init-from", first / "00000-faces16-adaconv-demo-cpu", "--freezed", "2", "--kimg", "0.16"]
    result = script("train.py", "--outdir", second, "--data", faces16, *TINY, *options)
    done(result)
    assert re.search(r"starting from .*state-000000.016.pt: ", result.stderr)
    (run,) = second.iterdir()
    (line,) = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert {"ada/p", "loss/r1", "loss/r2", "loss/path_length", "sign/real"} <= line.keys() and line["skipped"] == 0
    assert all(np.isfinite(value) for value in line.values())
    shutil.rmtree(first)  # which is read once
    done(script("train.py", "--outdir", second, "--resume", "--kimg", "0.176"))
