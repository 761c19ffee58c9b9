"""train.py under torchrun, as on several machines: one result, and mistakes in one line."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from media.convert import write_dataset
from media.faces import faces
from tests.scripts import ROOT, TINY, Result, done, free_port, image_zip, script
from training.runs import load_state


def machines(*options, folders=(None, None), processes: int = 1, logs: Path | None = None) -> list[Result]:
    """Runs train.py as on several machines, one in each of the folders, with so many processes each.

    With `logs`, torchrun writes the stderr of the processes of machine i into the folder `logs/i`.
    """
    torchrun = ["-m torch.distributed.run", "--nnodes", len(folders), "--nproc-per-node", processes]
    torchrun += ["--master-addr", "127.0.0.1", "--master-port", free_port()]
    redirects = [["--redirects", "2", "--log-dir", logs / str(i)] if logs else [] for i in range(len(folders))]
    train = [ROOT / "train.py", *options]
    with ThreadPoolExecutor() as pool:
        started = [
            pool.submit(script, *torchrun, *redirects[number], "--node-rank", number, *train, cwd=folder)
            for number, folder in enumerate(folders)
        ]
        return [machine.result() for machine in started]


def stderr_of(log: Path) -> str:
    """The stderr of a machine's one process, without torchrun's own messages."""
    (file,) = log.glob("*/attempt_0/0/stderr.log")
    return file.read_text()


@pytest.mark.slow
def test_two_machines_train_as_one_with_two_processes(faces16, tmp_path):
    tiny = ["--data", faces16, *TINY[:-4], "--metrics", "swd50"]  # and without --procs
    done(script("train.py", *tiny, "--procs", 2, "--outdir", tmp_path / "one", "--kimg", "0.08", "--tick", "0.04"))
    for i, options in enumerate((["--kimg", "0.04"], ["--kimg", "0.08", "--resume"])):
        logs = tmp_path / f"logs{i}"
        for machine in machines(*tiny, "--outdir", tmp_path / "two", "--tick", "0.04", *options, logs=logs):
            done(machine)
        assert "run: " in stderr_of(logs / "0") and stderr_of(logs / "1") == ""

    (one,), (two,) = (list((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert one.name == two.name
    a, b = (load_state(run / "state" / "state-000000.08.pt") for run in (one, two))
    assert a["step"] == b["step"] == 10
    for name in ("G", "D", "G_ema", "path_length"):
        assert all(torch.equal(value, b[name][key]) for key, value in a[name].items()), name
    metrics = [(run / "metrics.jsonl").read_text() for run in (one, two)]
    assert json.loads(metrics[0].splitlines()[-1]) == json.loads(metrics[1].splitlines()[-1])


@pytest.mark.slow
def test_mistakes_under_torchrun_are_one_line(faces16, tmp_path):
    outdir = tmp_path / "runs"
    tiny = ["--data", faces16, *TINY[:-4], "--kimg", "0.04", "--outdir", outdir]
    for mistaken, words in (
        (["--procs", "3"], "--procs 3: torchrun has started 2 processes here"),
        (["--data", image_zip(tmp_path / "one.zip", [(16, 16)])], "only one real image"),
    ):
        (result,) = machines(*tiny, *mistaken, folders=[None], processes=2)
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert words in line
        assert "exitcode  : 2" in result.stderr  # in torchrun's own words
        assert not outdir.exists() or list(outdir.iterdir()) == []


@pytest.mark.slow
def test_two_machines_need_the_same_data(tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder, count in zip(folders, (20, 21), strict=True):
        folder.mkdir()
        write_dataset(folder / "data.zip", faces(count, 16, seed=0))
    tiny = ["--data", "data.zip", *TINY[:-4], "--kimg", "0.04"]
    first, second = machines(*tiny, folders=folders)
    assert "error: data.zip on " in second.stderr and "is not the data set that process 0 has" in second.stderr
    assert "error: " not in first.stderr and "RuntimeError" not in first.stderr
    assert not any(path.is_dir() for path in folders[0].glob("runs/*"))
