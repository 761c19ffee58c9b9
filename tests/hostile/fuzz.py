"""Damages good files at random and reads each: run in a process of its own, whose memory is limited.

    python tests/hostile/fuzz.py FOLDER SECONDS COUNT SEED

FOLDER holds one good file of each kind. Prints a JSON object: how many files of each kind were read, refused, and what
else happened, which should be nothing.
"""

from __future__ import annotations

import io
import json
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from latents.codes import load_codes
from latents.directions import load_directions
from media.check import check_dataset
from media.files import read_image
from media.labels import parse_labels
from media.shard_index import read_index
from media.shards import ShardFiles
from media.video import frames
from models.encoder import load_encoder, read_encoder
from models.snapshot import load_generator, load_stylizer
from models.stylegan2_pytorch import load_checkpoint
from styling.styles import load_kernels
from tests.damage import damaged
from torch_utils.errors import UserError
from training.log import read_records
from training.resume import check_options, recorded
from training.runs import load_state

MEMORY = 4 << 30  # bytes of address space beyond what is taken at the start
SECONDS = 5  # that a reader may take
MANY_FRAMES = 200  # of a damaged video


class Hung(BaseException):
    """Not an Exception: no reader may take it for a broken file."""


def read_run(path: Path) -> None:
    """The records of the run that a file lies in."""
    options, _ = recorded(path.parent)
    check_options(path.parent, options, "train.py")


def read_video(path: Path) -> None:
    for number, _ in enumerate(frames(path)):
        if number > MANY_FRAMES:
            return


def read_shard(path: Path) -> None:
    """All images of a shard. What is counted of it, which is kept beside it, goes again."""
    try:
        ShardFiles(str(path))
    finally:
        for counts in path.parent.glob("adaconv-shards-*.npz"):
            counts.unlink()


def read_counts(path: Path) -> None:
    """What is known of the shard beside it."""
    if read_index([str(path.parent / "counted.tar")]) is None:
        raise UserError("it is counted again")


def readers(folder: Path) -> dict[str, Callable[[Path], Any]]:
    """How each of the files in the folder is read, by its name."""
    (counts,) = (folder / "counted").glob("*.npz")
    G, stylizer = load_generator(folder / "model.safetensors")[0], load_stylizer(folder / "stylizer.safetensors")[0]
    return {
        "model.safetensors": load_generator,
        "stylizer.safetensors": load_stylizer,
        "style.safetensors": lambda path: load_kernels(stylizer, path),
        "encoder.safetensors": read_encoder,
        "encoder.pth": load_encoder,
        "state.pt": load_state,
        **dict.fromkeys(("checkpoint.pt", "old-checkpoint.pt"), load_checkpoint),
        "codes.npz": lambda path: load_codes(path, G),
        "directions.npz": lambda path: load_directions(path, G),
        "options.json": read_run,
        "config.json": read_run,
        "stats.jsonl": read_records,
        "dataset.json": lambda path: parse_labels(path.read_bytes(), "dataset.json"),
        "data.zip": check_dataset,
        **{f"images.{suffix}": read_shard for suffix in ("tar", "parquet")},
        f"counted/{counts.name}": read_counts,
        **{f"image.{suffix}": read_image for suffix in ("png", "jpg", "webp", "gif", "bmp", "tiff", "ppm")},
        **{f"video.{suffix}": read_video for suffix in ("mp4", "mkv", "avi", "gif")},
    }


def outcome(read: Callable[[Path], Any], path: Path) -> str:
    """What comes of reading a file: `read`, `refused`, or what should not happen."""
    stdout, stderr = io.StringIO(), io.StringIO()
    signal.alarm(SECONDS)
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr):
            read(path)
        result = "read"
    except UserError as error:
        result = "refused" if error.message.isprintable() and len(error.message) < 1500 else f"line {error.message!a}"
    except Hung:
        result = f"more than {SECONDS} s"
    except MemoryError:
        result = "refused"  # the limit was reached, and nothing else happened; counted by the memory of the process
    except Exception:
        result = traceback.format_exc()[-1500:]
    finally:
        signal.alarm(0)
    printed = stdout.getvalue() + stderr.getvalue()
    return result if all(line.isprintable() for line in printed.split("\n")) else f"printed {printed!a}"


def main(folder: Path, seconds: float, count: int, seed: int) -> None:
    def stop(*_: object) -> None:
        raise Hung

    signal.signal(signal.SIGALRM, stop)
    torch.set_num_threads(1)
    rng, kinds = random.Random(seed), readers(folder)
    good = {name: (folder / name).read_bytes() for name in kinds}
    for name, read in kinds.items():
        assert outcome(read, folder / name) == "read", (name, outcome(read, folder / name))
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))

    found: dict[str, Counter[str]] = {name: Counter() for name in kinds}
    start, done = time.monotonic(), 0
    while done < count and time.monotonic() - start < seconds:
        name = rng.choice(list(kinds))
        path = folder / name
        path.write_bytes(damaged(good[name], rng))
        found[name][outcome(kinds[name], path)] += 1
        path.write_bytes(good[name])
        done += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"done": done, "peak_mib": peak >> 10, "found": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
