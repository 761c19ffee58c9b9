"""Snapshots (a model, one safetensors file), training states, and the folders of runs that hold them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from media.dataset import CHANNELS, RESOLUTIONS
from models.stylegan2 import is_network_pickle, load_stylegan2
from networks.generator import Generator, GeneratorConfig
from networks.stylizer import Stylizer, StylizerConfig
from torch_utils.errors import UserError, one_line
from torch_utils.files import write_file

GENERATOR = "adaconv-generator"
STYLIZER = "adaconv-stylizer"
TRAINED_BY = {GENERATOR: ("train.py", "--network"), STYLIZER: ("train_stylizer.py", "--model")}
PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained"  # models that come with the project
SHIPPED = {GENERATOR: "faces32.safetensors", STYLIZER: "stylizer-small.safetensors"}
WEIGHTS = "model.safetensors"  # what the file is called in a folder of its own, as on the Hub
VERSION = 1


def kimg_name(kimg: float) -> str:
    """`000200`, and between whole kimg `000200.5`: what a file of that moment is called.

    In the order of `Path.stem` they are in the order of time.
    """
    return f"{kimg:010.3f}".rstrip("0").rstrip(".")


# --- models ---------------------------------------------------------------------------------------------------------


def save_model(
    path: str | os.PathLike,
    kind: str,
    module: nn.Module,
    config: Mapping[str, Any],
    info: Mapping[str, Any],
    half: bool = False,
) -> None:
    """Writes weights, construction and `info` (anything JSON): the file alone is enough to build and run the module.

    `kind` says what builds it, e.g. "adaconv-generator". With `half`, in float16. Raises DiskFull.
    """
    meta = {"format": kind, "version": VERSION, "config": dict(config), "info": dict(info)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    if half:
        tensors = {name: tensor.half() for name, tensor in tensors.items()}
    write_file(path, save(tensors, metadata={"adaconv": json.dumps(meta)}))


def load_model(
    path: str | os.PathLike, kind: str, build: Callable[[dict[str, Any], dict[str, torch.Tensor]], nn.Module]
) -> tuple[nn.Module, dict[str, Any]]:
    """The module of a file that `save_model` wrote, in eval mode and not to be trained; and the file's info.

    The file is not trusted. `build(config, tensors)` makes the module of the construction that the file claims, and
    raises ValueError where that is none; first it is built without memory, for the file could ask for any amount, and
    every shape compared.

    Raises:
        UserError: if the file is missing, no safetensors file, of another kind, or damaged.
    """
    name = kind.removeprefix("adaconv-")
    article = "an" if name[0] in "aeiou" else "a"
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("adaconv")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        reason = one_line(error, 200)
        raise UserError(f"{path} cannot be read as {article} {name} ({reason}); name a .safetensors of one") from None
    try:
        meta = json.loads(text or "{}")
        if not isinstance(meta, dict) or meta.get("format") != kind:
            what = str(meta.get("format", "")).removeprefix("adaconv-")[:40] if isinstance(meta, dict) else ""
            raise UserError(
                f"{path} is a safetensors file, but no {name} of this project{f' but of kind {what!r}' * bool(what)}; "
                "name another"
            )
        if meta["version"] > VERSION:
            raise UserError(f"{path} was written by a newer version of this project; update it to load the file")
        with torch.device("meta"):
            shapes = {key: tensor.shape for key, tensor in build(meta["config"], tensors).state_dict().items()}
        for key in {**shapes, **tensors}:
            if key not in tensors or key not in shapes or tensors[key].shape != shapes[key]:
                raise ValueError(f"{key[:80]} is missing, unexpected or of another shape")
        module = build(meta["config"], tensors)
        module.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
        info = {"kimg": 0.0, **meta.get("info", {})}
        info["kimg"] = float(info["kimg"])
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError) as error:
        reason = one_line(error, 200)
        raise UserError(f"{path} does not fit its own description ({reason}); name another") from None
    return module.eval().requires_grad_(False), info


def check_types(config: Any, **others: tuple[type, ...]) -> None:
    """Raises ValueError where a field of a configuration has a value of another type than its default.

    `others` are types that a field may have in their place.
    """
    for f in fields(config):
        value, kind = getattr(config, f.name), type(f.default)
        kinds = others.get(f.name, (float, int) if kind is float else (kind,))
        if type(value) not in kinds:
            raise ValueError(f"{f.name}: expected {kind.__name__}, got {str(value)[:40]!r}")


def save_snapshot(path: str | os.PathLike, G: Generator, info: Mapping[str, Any]) -> None:
    """Writes a generator. Raises DiskFull."""
    save_model(path, GENERATOR, G, asdict(G.config), info)


def load_generator(
    path: str | os.PathLike, device: torch.device | str = "cpu", cls: type[Generator] = Generator
) -> tuple[Generator, dict[str, Any]]:
    """The generator of a snapshot or of StyleGAN2's network pickle (.pkl), in eval mode, with the file's info.

    Raises UserError as `load_model` does.
    """
    if is_network_pickle(path):
        return load_stylegan2(path, device, cls)
    G, info = load_model(path, GENERATOR, partial(_build_generator, cls))
    return G.to(device), info


def _build_generator(cls: type[Generator], values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Generator:
    config = GeneratorConfig(**values)
    check_types(config, clamp=(float, int, type(None)))
    if config.img_channels not in CHANNELS.values() or config.resolution not in RESOLUTIONS:
        raise ValueError(f"images of {config.resolution}² with {config.img_channels} channels")
    if config.z_dim + config.c_dim < 1 or config.map_depth > len(tensors):  # every layer has tensors
        raise ValueError(f"{config.map_depth} layers for {config.z_dim} numbers and {config.c_dim} classes")
    return cls(config)


def save_stylizer(path: str | os.PathLike, model: Stylizer, info: Mapping[str, Any], half: bool = False) -> None:
    """Writes a stylizer with its encoder, with `half` in float16. Raises DiskFull."""
    save_model(path, STYLIZER, model, asdict(model.config), info, half)


def load_stylizer(
    path: str | os.PathLike, device: torch.device | str = "cpu", cls: type[Stylizer] = Stylizer
) -> tuple[Stylizer, dict[str, Any]]:
    """The stylizer of a snapshot, in eval mode, with the snapshot's info. Raises UserError as `load_model` does."""
    model, info = load_model(path, STYLIZER, partial(_build_stylizer, cls))
    return model.to(device), info


def _build_stylizer(cls: type[Stylizer], values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Stylizer:
    config = StylizerConfig(**values)
    check_types(config)
    if config.style_size > 4096 or config.kernel_size > 31:  # the decoder's work grows with them, not its file
        raise ValueError(f"style_size {config.style_size}, kernel_size {config.kernel_size}")
    return cls(config)


def find_snapshot(path: str | os.PathLike | None, kind: str = GENERATOR) -> Path:
    """The snapshot that `path` means: the file itself, or the last one of that kind in a run or the newest of runs.

    Or the one of a folder that `save_pretrained` wrote (adaconv.py).

    With None the newest one under `runs`, or else the one that comes with the project. Raises UserError.
    """
    script, option = TRAINED_BY[kind]
    if path is None:
        return _newest(Path("runs"), kind) or _shipped(kind)
    path = Path(path)
    if os.path.isfile(path):
        return path
    if not os.path.exists(path):
        raise UserError(f"{path} does not exist; name a snapshot or a folder of runs with {option}")
    if (newest := _newest(path, kind)) is None:
        name = kind.removeprefix("adaconv-")
        raise UserError(f"no snapshot of a {name} under {path}; train one with {script}, or name one with {option}")
    return newest


def _newest(path: Path, kind: str) -> Path | None:
    """The newest run's snapshot of the most kimg, by their numbers as --resume does: copies have other times.

    Folders that are no runs are older than all runs, and among each other the last written is the newest.
    """
    patterns = ("snapshot-*.safetensors", "*/snapshot-*.safetensors", WEIGHTS)
    found = [p for pattern in patterns for p in path.glob(pattern)]
    written: dict[Path, int] = {}
    for p in found:
        written[p.parent] = max(written.get(p.parent, 0), p.stat().st_mtime_ns)

    def age(snapshot: Path) -> tuple:
        folder = snapshot.parent
        return run_number(folder) if folder in runs else -1, written[folder], folder.name, snapshot.stem

    runs = set(list_runs(path))
    return next((p for p in sorted(found, key=age, reverse=True) if _may_be(p, kind)), None)


def _shipped(kind: str) -> Path:
    path, (script, option) = PRETRAINED / SHIPPED[kind], TRAINED_BY[kind]
    if not path.is_file():
        raise UserError(
            f"no {kind.removeprefix('adaconv-')} under runs, and {path} is not there; train one with {script}, "
            f"name one with {option}, or get the file from where this project is from"
        )
    return path


def _may_be(path: Path, kind: str) -> bool:
    """Whether a file says that it is of that kind; only its header is read.

    A file that cannot be read may be: rather than to pass it over in favour of an older one, loading it says why.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("adaconv", "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError):
        return True
    return isinstance(meta, dict) and meta.get("format") == kind


# --- runs -----------------------------------------------------------------------------------------------------------


def list_runs(outdir: Path) -> list[Path]:
    return [p for p in outdir.glob("*") if p.is_dir() and re.match(r"\d{5}-", p.name)]


def run_number(run: Path) -> int:
    return int(run.name[:5])
