"""media.loader: whatever ends the reading, the worker processes end with it, and the program can exit."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from media.dataset import ImageDataset
from media.loader import endless_batches
from metrics.features import dataset_source
from torch_utils.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    """120 JPEGs, of which number 7 is cut off behind its header: only decoding it finds that out."""
    draw = np.random.default_rng(0)
    for number in range(120):
        path = tmp_path / f"{number:03d}.jpg"
        Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
        if number == 7:
            path.write_bytes(path.read_bytes()[:-150])
    return tmp_path


def batches(path):
    return endless_batches(ImageDataset(path), batch=4, step=0, seed=0, workers=2, device=torch.device("cpu"))


def workers_of():
    return multiprocessing.active_children()


def test_workers_end_with_the_error_although_its_traceback_is_kept(folder):
    stream = batches(folder)
    next(stream)
    workers = workers_of()
    assert all(worker.is_alive() for worker in workers)
    with pytest.raises(UserError, match=r"007\.jpg is a broken image"):
        for _ in range(40):
            next(stream)
    assert not any(worker.is_alive() for worker in workers)


def test_workers_end_with_the_generator(folder):
    stream = batches(folder)
    next(stream)
    workers = workers_of()
    stream.close()
    assert not any(worker.is_alive() for worker in workers)


@pytest.fixture
def one_core():
    """This process, and those that it starts, may use one core."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("only Linux can bind a process to a core")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.filterwarnings("error")
def test_more_workers_than_cores_are_no_news(folder, one_core):
    """Users of a machine or a container with one core have asked for no other number of workers."""
    (folder / "007.jpg").unlink()
    stream = batches(folder)
    assert len(next(stream)[0]) == 4
    stream.close()
    source = dataset_source(ImageDataset(folder), range(8), workers=2)
    assert [len(batch) for batch in source([range(8)])] == [8]
    with pytest.raises(UserWarning, match="suggested max number of worker"):  # as PyTorch's own loader would say
        torch.utils.data.DataLoader(ImageDataset(folder), num_workers=2)


def test_a_worker_that_does_not_answer_is_killed(folder):
    stream = batches(folder)
    next(stream)
    workers = workers_of()
    subprocess.run(["kill", "-STOP", str(workers[0].pid)], check=True)
    stream.close()
    assert not any(worker.is_alive() for worker in workers)


PROGRAM = """
import sys, torch
from media.dataset import ImageDataset
from media.loader import endless_batches
from metrics.features import dataset_source

stream = endless_batches(ImageDataset(sys.argv[1]), batch=4, step=0, seed=0, workers=2, device=torch.device("cpu"))
try:
    for number, _ in enumerate(stream):
        if sys.argv[2] == "elsewhere" and number == 1:
            raise RuntimeError("an error of the program's own")
except Exception as error:
    kept = error  # and with it the traceback, its frames, and what these refer to
    sys.exit(2)
"""


@pytest.mark.parametrize("where", ["reading", "elsewhere"])
def test_the_program_exits_after_an_error(folder, where):
    start = time.monotonic()
    command = [sys.executable, "-c", PROGRAM, folder, where]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr == ""
    assert time.monotonic() - start < 45  # importing PyTorch included
