"""media.loader: whatever ends the reading, the worker processes end with it, and the program can exit."""

import multiprocessing
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
