"""Every way in which a user hands a file of somebody else's to a script, as the arguments that name it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.hostile.conftest import Place
from tests.scripts import TINY

Arguments = Callable[
    [Place, Path, Path], tuple[object, ...]
]  # of the good files, the bad one, and a folder for results

# reader → the extension that the bad file needs, and the command
READERS: dict[str, tuple[str, Arguments]] = {
    "generate --network": (
        ".safetensors",
        lambda good, bad, out: ("generate.py", "--network", bad, "--seeds", 0, "--outdir", out),
    ),
    "generate --network pickle": (
        ".pkl",
        lambda good, bad, out: ("generate.py", "--network", bad, "--seeds", 0, "--outdir", out),
    ),
    "generate --network checkpoint": (
        ".pt",
        lambda good, bad, out: ("generate.py", "--network", bad, "--seeds", 0, "--outdir", out),
    ),
    "generate --w": (
        ".npz",
        lambda good, bad, out: ("generate.py", "--network", good.model, "--w", bad, "--outdir", out),
    ),
    "generate directions --edit": (
        ".npz",
        lambda good, bad, out: ("generate.py", "directions", "--network", good.model, "--edit", bad, "--outdir", out),
    ),
    "projector --target": (
        ".png",
        lambda good, bad, out: ("projector.py", "--network", good.model, "--target", bad, "--outdir", out),
    ),
    "projector --target zip": (
        ".zip",
        lambda good, bad, out: ("projector.py", "--network", good.model, "--target", bad, "--outdir", out),
    ),
    "projector --encoder-weights": (
        ".pth",
        lambda good, bad, out: (
            *("projector.py", "--network", good.model, "--target", good.image, "--steps", 1, "--candidates", 8),
            *("--encoder-weights", bad, "--outdir", out),
        ),
    ),
    "export --network": (
        ".safetensors",
        lambda good, bad, out: ("export.py", "--network", bad, "--format", "safetensors", "--outdir", out),
    ),
    "export --model": (
        ".safetensors",
        lambda good, bad, out: ("export.py", "--model", bad, "--format", "safetensors", "--outdir", out),
    ),
    "stylize --model": (
        ".safetensors",
        lambda good, bad, out: _stylize(good, out, model=bad),
    ),
    "stylize --content": (".png", lambda good, bad, out: _stylize(good, out, content=bad)),
    "stylize --content video": (".mp4", lambda good, bad, out: _stylize(good, out / "out.mp4", content=bad)),
    "stylize --content of no known name": ("", lambda good, bad, out: _stylize(good, out, content=bad)),
    "stylize --style": (".jpg", lambda good, bad, out: _stylize(good, out, style=bad)),
    "stylize --style kernels": (".safetensors", lambda good, bad, out: _stylize(good, out, style=bad)),
    "stylize --mask": (".png", lambda good, bad, out: (*_stylize(good, out), "--style", good.image, "--mask", bad)),
    "metrics --data": (
        ".zip",
        lambda good, bad, out: ("metrics/__main__.py", *METRICS, "--data", bad, "--network", good.model),
    ),
    "metrics --fakes": (
        ".zip",
        lambda good, bad, out: ("metrics/__main__.py", *METRICS, "--data", good.data, "--fakes", bad),
    ),
    "metrics --network": (
        ".safetensors",
        lambda good, bad, out: ("metrics/__main__.py", *METRICS, "--data", good.data, "--network", bad),
    ),
    "metrics --detector-weights": (
        ".pth",
        lambda good, bad, out: (
            *("metrics/__main__.py", "--metrics", "fid10", "--data", good.data, "--network", good.model),
            *("--detector-weights", bad, *CPU),
        ),
    ),
    "metrics @encoder": (
        ".safetensors",
        lambda good, bad, out: (
            *("metrics/__main__.py", "--metrics", f"fd10@{bad}", "--data", good.data, "--network", good.model, *CPU),
        ),
    ),
    "dataset_tool check": (".zip", lambda good, bad, out: ("dataset_tool.py", "check", "--data", bad)),
    "dataset_tool convert": (
        ".zip",
        lambda good, bad, out: (
            *("dataset_tool.py", "convert", "--source", bad, "--resolution", 16, "--out", out / "converted.zip"),
        ),
    ),
    "train --data": (".zip", lambda good, bad, out: ("train.py", "--data", bad, "--outdir", out, *TINY)),
    "train --resume": (".pt", lambda good, bad, out: ("train.py", "--resume", bad)),
    "train --init-from state": (".pt", lambda good, bad, out: _finetune(good, bad, out)),
    "train --init-from snapshot": (".safetensors", lambda good, bad, out: _finetune(good, bad, out)),
    "train --init-from pickle": (".pkl", lambda good, bad, out: _finetune(good, bad, out)),
    "train_encoder --data": (
        ".zip",
        lambda good, bad, out: ("train_encoder.py", "--data", bad, "--outdir", out, "--gpus", 0, "--kimg", 0.001),
    ),
    "train_encoder --test": (
        ".zip",
        lambda good, bad, out: ("train_encoder.py", "--data", good.data, "--test", bad, "--outdir", out, "--gpus", 0),
    ),
    "train_stylizer --content": (".zip", lambda good, bad, out: _train_stylizer(good, out, "--content", bad)),
    "train_stylizer --style": (".zip", lambda good, bad, out: _train_stylizer(good, out, "--style", bad)),
    "train_stylizer --encoder-weights": (
        ".pth",
        lambda good, bad, out: _train_stylizer(good, out, "--encoder-weights", bad),
    ),
    "train_stylizer --init-from": (
        ".safetensors",
        lambda good, bad, out: _train_stylizer(good, out, "--init-from", bad),
    ),
}

CPU = ("--gpus", 0)
METRICS = ("--metrics", "swd10", *CPU)


def command(reader: str, good: Place, bad: Path, out: Path) -> tuple[object, ...]:
    """The script and its arguments with which a reader gets the bad file."""
    return READERS[reader][1](good, bad, out)


def of_kind(*suffixes: str) -> list[str]:
    """The readers of files with one of these extensions."""
    return [name for name, (suffix, _) in READERS.items() if suffix in suffixes]


def _stylize(good: Place, out: Path, **files: Path) -> tuple[object, ...]:
    named = {"model": good.stylizer, "content": good.image, "style": good.image, **files}
    options = [part for name, path in named.items() for part in (f"--{name}", path)]
    return ("stylize.py", *options, "--out", out if out.suffix else out / "out.png")


def _finetune(good: Place, bad: Path, out: Path) -> tuple[object, ...]:
    return ("train.py", "--data", good.data, "--outdir", out, *TINY, "--kimg", 0.008, "--init-from", bad)


def _train_stylizer(good: Place, out: Path, *options: object) -> tuple[object, ...]:
    named = {"--content": good.data, "--style": good.data, "--encoder-weights": good.encoder}
    named |= dict([options])
    if "--init-from" in named:  # which has an encoder
        del named["--encoder-weights"]
    given = [part for pair in named.items() for part in pair]
    return ("train_stylizer.py", *given, "--size", 64, "--outdir", out, "--gpus", 0, "--kimg", 0.001, "--batch", 1)
