"""Pipes, devices and links: nothing waits for them, and nothing is written through them. What is right still works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from media.dataset import ImageDataset
from tests.hostile.attacks import SPECIAL, refused, untouched
from tests.hostile.readers import READERS, command
from tests.scripts import ROOT, TINY, done, script_here
from torch_utils.errors import UserError
from torch_utils.files import atomic_path, open_regular
from training.runs import find_state, list_states, save_state


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("reader", READERS)
def test_only_files_are_read(place, tmp_path, reader, kind):
    (tmp_path / "in").mkdir()
    bad = SPECIAL[kind](tmp_path / "in" / f"bad{READERS[reader][0]}")
    with untouched(tmp_path / "in", place.folder):
        assert str(bad) in refused(*command(reader, place, bad, tmp_path / "out"))


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", ["options.json", "config.json", "stats.jsonl", "metrics.jsonl", "state"])
def test_only_files_of_runs_are_read(run, tmp_path, name, kind):
    shutil.rmtree(run / name) if name == "state" else (run / name).unlink(missing_ok=True)
    SPECIAL[kind](run / name)
    refused("train.py", "--resume", run, "--kimg", 0.024)


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", ["snapshot-000001.safetensors", "00009-x/snapshot-000001.safetensors"])
def test_snapshots_in_folders_are_files(place, tmp_path, name, kind):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    SPECIAL[kind](tmp_path / name)
    refused("generate.py", "--network", tmp_path, "--seeds", 0, "--outdir", tmp_path / "out")


@pytest.mark.parametrize("kind", SPECIAL)
def test_special_files_in_data_sets_are_left_out(place, tmp_path, kind):
    shutil.copy(place.image, tmp_path / "a.png")
    SPECIAL[kind](tmp_path / "b.png")
    assert ImageDataset(tmp_path).names == ["a.png"]
    SPECIAL[kind](tmp_path / "dataset.json")
    done(script_here("dataset_tool.py", "check", "--data", tmp_path))


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_files_beside_a_model_are_not_waited_for(place, tmp_path, name, kind):
    model = shutil.copy(place.model, tmp_path / "snapshot-000001.safetensors")
    SPECIAL[kind](tmp_path / name)
    done(script_here("export.py", "--network", model, "--format", "safetensors", "--outdir", tmp_path / "out"))


@pytest.mark.parametrize("link", ["symbolic", "hard"])
@pytest.mark.parametrize("name", ["stats.jsonl", "metrics.jsonl", "state"])
def test_nothing_is_written_through_links_in_a_run(run, tmp_path, name, link):
    """A run of somebody else's, in which records and states are links to files of the user's."""
    target = tmp_path / "precious" / name
    target.parent.mkdir()
    if name == "state":
        if link == "hard":
            pytest.skip("folders have no hard links")
        shutil.copytree(run / name, target)
        (target / "state-000000.001.pt").write_bytes(b"an older one, which would be pruned")
        shutil.rmtree(run / name)
    else:
        target.write_text("")
        (run / name).unlink(missing_ok=True)
    (os.symlink if link == "symbolic" else os.link)(target, run / name)
    with untouched(target.parent, run):
        assert name in refused("train.py", "--resume", run, "--kimg", 0.024)
    if name == "state":
        with untouched(target.parent), pytest.raises(UserError, match="instead of a folder"):
            save_state(run, {}, 1.0)


def test_files_that_a_run_replaces_are_not_written_through_links(run, tmp_path):
    """Whatever of its files are links: they are replaced, and what they point to stays."""
    (tmp_path / "precious").mkdir()
    names = [path.name for path in run.iterdir() if path.is_file() and path.suffix in (".png", ".json", ".safetensors")]
    names += ["snapshot-000000.024.safetensors", "fakes000000.024.png", "best.safetensors"]
    for name in names:
        target = tmp_path / "precious" / name
        shutil.copy(run / name, target) if (run / name).exists() else target.write_text("precious")
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(target)
    with untouched(tmp_path / "precious"):
        done(script_here("train.py", "--resume", run, "--kimg", 0.024))
    assert not (run / "snapshot-000000.024.safetensors").is_symlink()


def test_names_of_temporary_files_cannot_be_foreseen(tmp_path):
    names = set()
    for _ in range(8):
        with atomic_path(tmp_path / "a") as beside:
            names.add(beside.name)
            assert beside.is_file() and not beside.is_symlink()
    assert len(names) == 8 and str(os.getpid()) not in "".join(names)


def test_leftovers_that_are_folders_do_not_stop_a_run(run, tmp_path):
    (run / ".x.tmp").mkdir()
    (run / ".y.tmp").symlink_to(tmp_path)
    done(script_here("train.py", "--resume", run, "--kimg", 0.024))
    assert tmp_path.is_dir()


def test_links_that_lead_nowhere_are_no_snapshots(place, tmp_path):
    shutil.copy(place.model, tmp_path / "snapshot-000001.safetensors")
    (tmp_path / "snapshot-000002.safetensors").symlink_to("nowhere")
    (tmp_path / "00001-x").mkdir()
    (tmp_path / "00001-x" / "snapshot-000002.safetensors").symlink_to(tmp_path / "nowhere")
    done(script_here("generate.py", "--network", tmp_path, "--seeds", 0, "--outdir", tmp_path / "out"))


# --- what is right --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["zip", "folder"])
def test_data_may_be_a_link_of_the_users_own(place, tmp_path, what):
    target = place.data
    if what == "folder":
        target = tmp_path / "folder"
        done(script_here("dataset_tool.py", "convert", "--source", place.data, "--resolution", 16, "--out", target))
    (tmp_path / "link").symlink_to(target)
    done(script_here("train.py", "--data", tmp_path / "link", "--dry-run", *TINY))


def test_runs_may_lie_in_a_linked_folder(place, run, tmp_path):
    (tmp_path / "linked").symlink_to(run.parent)
    (tmp_path / "linked-run").symlink_to(run)
    assert find_state(tmp_path / "linked").resolve() == list_states(run)[-1].resolve()
    done(script_here("train.py", "--resume", "--outdir", tmp_path / "linked", "--kimg", 0.024))
    done(script_here("train.py", "--resume", tmp_path / "linked-run", "--kimg", 0.032))
    assert list_states(run)[-1].name == "state-000000.032.pt"


def test_models_and_images_may_be_links(place, tmp_path):
    for name, path in (("a.safetensors", place.model), ("b.png", place.image)):
        (tmp_path / name).symlink_to(path)
        with open_regular(tmp_path / name) as file:
            assert file.read() == path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--data", "--resume", "--init-from"])
def test_standard_input_gets_one_line(place, tmp_path, option):
    data = [] if option == "--data" else ["--data", str(place.data)]
    command = [sys.executable, ROOT / "train.py", *data, option, "/dev/stdin", *TINY, "--outdir", tmp_path / "runs"]
    run = subprocess.run(command, stdin=subprocess.PIPE, capture_output=True, text=True, timeout=120, cwd=Path("/"))
    (line,) = run.stderr.splitlines()
    assert run.returncode == 2 and line.startswith("error: ") and "/dev/stdin" in line
