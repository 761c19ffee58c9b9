"""Trains as train.py does, in forks of this process, and kills them: `python killing.py DATA OUTDIR KILLS SEED`.

Forks start with everything imported, so that a trial takes a moment. After every kill the newest state and the
snapshots have to load. OUTDIR/straight is trained without a kill, OUTDIR/killed-0 with them; where that is done before
its last kill, OUTDIR/killed-1 takes the rest of them, and so on. Prints how many kills met a file half written.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

import metrics
import train
import training.gan  # noqa: F401 (train.py imports it late)
from metrics import Source
from models.snapshot import load_generator
from torch_utils import cli, distributed
from training.runs import find_state, load_state

# A state and a look after every step.
OPTIONS = ["--cfg", "demo", "--cbase", "256", "--cmax", "8", "--map-depth", "1", "--batch", "8", "--gpus", "0"]
OPTIONS += ["--workers", "0", "--procs", "1", "--metrics", "swd50", "--tick", "0.008", "--snap", "1", "--kimg", "0.32"]
OPTIONS += ["--aug", "ada", "--target", "-1"]


def start(arguments: list[str]) -> int:
    """Runs train.py in a fork, quietly, and returns its number."""
    if number := os.fork():
        return number
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.argv = ["train.py", *arguments]
        cli.run(train.main)
    except SystemExit as end:
        os._exit(end.code)
    finally:
        os._exit(1)


def ended(number: int) -> bool:
    """Whether it has come to its end by itself, which has to be a good one."""
    done, status = os.waitpid(number, os.WNOHANG)
    assert status == 0, f"train.py ended with {status}"
    return done == number


def half_written(outdir: Path) -> bool:
    run = next(outdir.glob("0*"), outdir)
    return any(
        name.startswith(".") for folder in (run, run / "state") if folder.exists() for name in os.listdir(folder)
    )


def stopped_in_writing(number: int, outdir: Path) -> bool:
    """Whether the process has a file half written, in which case it is stopped there."""
    if half_written(outdir):
        os.kill(number, signal.SIGSTOP)
        if half_written(outdir):
            return True
        os.kill(number, signal.SIGCONT)
    return False


def evaluate(self: metrics.Evaluator, fakes: Source, paths: Source | None = None) -> dict[str, float]:
    """A figure that takes no time."""
    if distributed.rank():
        return {}
    return {"swd50": float(torch.cat(list(fakes([range(self.count)]))).double().mean())}


def straight(arguments: list[str]) -> float:
    """Trains without a kill; returns the seconds that it took."""
    begin = time.monotonic()
    assert os.waitpid(start(arguments), 0)[1] == 0
    return time.monotonic() - begin


def killed(arguments: list[str], parent: Path, kills: int, longest: float, rng: random.Random) -> int:
    """Trains with that many kills, each after `longest` seconds at most; returns how many met a file half written."""
    met, begin, done, outdir = 0, arguments, 0, parent / "killed-0"
    for kill in range(kills):
        number = start([*arguments, "--outdir", str(outdir)])
        # One in two waits for one of the files that are written beside their names.
        deadline, watch = time.monotonic() + rng.uniform(0, longest), kill % 2
        while time.monotonic() < deadline or (watch and not stopped_in_writing(number, outdir)):
            if ended(number):
                arguments, done = begin, done + 1
                outdir = parent / f"killed-{done}"
                number = start([*arguments, "--outdir", str(outdir)])
            time.sleep(0 if watch else 0.001)
        os.kill(number, signal.SIGKILL)
        os.waitpid(number, 0)
        met += half_written(outdir)
        if any(outdir.glob("*/state/*.pt")):
            load_state(find_state(outdir))
            for snapshot in outdir.glob("*/snapshot-*"):
                load_generator(snapshot)
            arguments = ["--resume"]
        else:
            arguments = begin
            shutil.rmtree(outdir, ignore_errors=True)
    straight([*arguments, "--outdir", str(outdir)])
    return met


def main(data: str, outdir: Path, kills: int, seed: int) -> None:
    arguments = ["--data", data, *OPTIONS]
    seconds = straight([*arguments, "--outdir", str(outdir / "straight")])
    print(killed(arguments, outdir, kills, 1.6 * seconds / kills, random.Random(seed)))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    metrics.Evaluator.evaluate = evaluate
    torch.optim.Adam([torch.zeros(1)])  # imports much
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
