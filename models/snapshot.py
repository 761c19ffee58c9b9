"""Snapshots: a model in one safetensors file, with all that is needed to build it; and finding the newest in runs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from media.dataset import CHANNELS
from models.classes import names_beside
from models.foreign import is_foreign, load_foreign
from networks.generator import CLASS_MEANS, Generator, GeneratorConfig
from networks.stylizer import Stylizer, StylizerConfig
from torch_utils.errors import UserError, command_line, one_line
from torch_utils.files import as_typed, missing_message, open_regular, write_file
from torch_utils.schema import Count, Within, build, check_values, parse_json, repr_of
from torch_utils.tensors import check_types, is_finite, read_metadata, read_safetensors

Module = TypeVar("Module", bound=nn.Module)

GENERATOR = "adaconv-generator"
STYLIZER = "adaconv-stylizer"
TRAINED_BY = {GENERATOR: ("train.py", "--network"), STYLIZER: ("train_stylizer.py", "--model")}
ENCODER = "adaconv-encoder"
TAKEN_BY = {  # what a message says of a file of another kind than the one that is asked for
    GENERATOR: "a generator, which generate.py, projector.py, export.py and python -m metrics take with --network",
    STYLIZER: "a stylizer, which stylize.py and export.py take with --model",
    ENCODER: "an encoder, which train_stylizer.py and projector.py take with --encoder-weights",
}
PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained"  # the models that are shipped with the project
SHIPPED = {GENERATOR: "faces64.safetensors", STYLIZER: "stylizer-small.safetensors"}
WEIGHTS = "model.safetensors"  # the file's name in a folder that `save_pretrained` writes, and on the Hub
META = "adaconv"  # the entry of the metadata that describes the model, as JSON
VERSION = 1
DISCRIMINATOR = "discriminator."  # begins the names of tensors that only training goes on with; the models are without


def kimg_name(kimg: float) -> str:
    """The number in a file's name: `000200`, and `000200.5` between whole kimg.

    The alphabetical order of names, without their extension, is the order of time.
    """
    return f"{kimg:010.3f}".rstrip("0").rstrip(".")


# --- models ---------------------------------------------------------------------------------------------------------


@dataclass
class Source:
    """Where weights are from that somebody else has trained."""

    file: str
    sha256: str = ""
    kind: str = ""
    license: str = ""


@dataclass
class Info:
    """What the `info` of a file may say that is read again; what else is in it is only shown."""

    kimg: Annotated[float, Within(0, 1e12)] = 0.0
    data: str = ""
    contents: str = ""
    styles: str = ""
    init_from: str = ""
    source: Source | None = None
    classes: Count = 0
    resolution: Count = 0


INFO = {field.name for field in fields(Info)}


def save_model(
    path: str | os.PathLike,
    kind: str,
    module: nn.Module,
    config: Mapping[str, Any],
    info: Mapping[str, Any],
    half: bool = False,
    discriminator: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes weights, configuration and `info` (any JSON) as one file, from which the module can be built again.

    `kind` tells `load_model` what the file holds, e.g. "adaconv-generator". With `half`, tensors that `fits_half` are
    written in float16. `discriminator`: the weights of a generator's opponent, which `load_discriminator` reads.

    Raises DiskFull.
    """
    description = {"format": kind, "version": VERSION, "config": dict(config), "info": dict(info)}
    weights = module.state_dict() | {DISCRIMINATOR + name: tensor for name, tensor in (discriminator or {}).items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    if half:
        tensors = {name: tensor.half() if fits_half(name) else tensor for name, tensor in tensors.items()}
    write_file(path, save(tensors, metadata={META: json.dumps(description)}))


def fits_half(name: str) -> bool:
    """Whether float16 is enough for a tensor: not for the statistics of labels, which may be years or prices."""
    return not name.removeprefix(DISCRIMINATOR).startswith("mapping.labels.")


def load_model(
    path: str | os.PathLike, kind: str, make: Callable[[dict[str, Any], dict[str, Tensor]], Module]
) -> tuple[Module, dict[str, Any]]:
    """The module that `save_model` wrote, in eval mode and without gradients, and the file's info.

    The file is not trusted. `make(config, tensors)` builds a module from the configuration in the file, and raises
    ValueError if it is invalid. Because a file could ask for any amount of memory, the module is first built on
    PyTorch's meta device, and all shapes are compared with those of the tensors.

    Raises:
        UserError: if the file is missing, not a safetensors file, of another kind, or damaged.
    """
    name = kind_name(kind)
    article = "an" if name[0] in "aeiou" else "a"
    try:
        open_regular(path).close()  # of a file that may not be read, safetensors says that there is none
        tensors, metadata = read_safetensors(path)
    except (ValueError, OSError) as error:
        reason = one_line(error, 200)
        raise UserError(
            f"{path} cannot be read as {article} {name} ({reason}); name the .safetensors file of one"
        ) from None
    try:
        description = read_description(metadata)
        if (found := description.get("format")) != kind:
            other = f"holds a model of kind {kind_name(str(found))[:40]!r}" if found else "is not of this project"
            known = f"holds {TAKEN_BY[found]}" if isinstance(found, str) and found in TAKEN_BY else other
            raise UserError(f"{path} {known}; name the file of {article} {name}")
        if (version := description.get("version")) != VERSION or type(version) is not int:
            if type(version) is int and version > VERSION:
                raise UserError(f"{path} was written by a newer version of this project; update the project to load it")
            raise UserError(
                f"{path} has the version {one_line(repr_of(version), 20)}, not {VERSION}; name another file"
            )
        check_types(tensors)
        if not all(map(is_finite, tensors.values())):
            raise UserError(f"{path} has weights that are not finite: its training diverged; name an earlier snapshot")
        if kind == GENERATOR:
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(DISCRIMINATOR)}
        with torch.device("meta"):
            shapes = {key: value.shape for key, value in make(description["config"], tensors).state_dict().items()}
        tensors = {name: torch.zeros(shapes[name]) for name in CLASS_MEANS if name in shapes} | tensors
        for key in {**shapes, **tensors}:
            if key not in tensors or key not in shapes or tensors[key].shape != shapes[key]:
                raise ValueError(f"{one_line(key, 80)} is missing, unexpected or of another shape")
        module = make(description["config"], tensors)
        module.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
        info = {"kimg": 0.0, **description.get("info", {})}
        check_values(Info, {name: value for name, value in info.items() if name in INFO})
        if "source" in info:
            build(Source, info["source"])
        info["kimg"] = float(info["kimg"])
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError) as error:
        reason = one_line(error, 200)
        raise UserError(f"{path} contradicts its own description ({reason}); name another file") from None
    return module.eval().requires_grad_(False), info


def read_description(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The description of a model in a file's metadata; empty if there is none. Raises ValueError if it is damaged."""
    description = parse_json(metadata.get(META, "{}"))
    return description if isinstance(description, dict) else {}


def kind_name(kind: str) -> str:
    """`generator` for "adaconv-generator"."""
    return kind.removeprefix("adaconv-")


def save_snapshot(path: str | os.PathLike, G: Generator, info: Mapping[str, Any]) -> None:
    """Writes a generator. Raises DiskFull."""
    save_model(path, GENERATOR, G, asdict(G.config), info)


def load_generator(
    path: str | os.PathLike, device: torch.device | str = "cpu", cls: type[Generator] = Generator
) -> tuple[Generator, dict[str, Any]]:
    """The generator of a snapshot or of a file of StyleGAN2's networks (.pkl, .pt), in eval mode, and the file's info.

    Raises UserError as `load_model` does.
    """
    if is_foreign(path, unreadable=True):
        networks, info = load_foreign(path, ["G_ema"], cls)
        G = cast(Generator, networks["G_ema"])
    else:
        G, info = load_model(path, GENERATOR, partial(_build_generator, cls))
    if "class_names" not in info and (names := names_beside(path, G.config.classes)):
        info["class_names"] = names
    return G.to(device), info


def load_discriminator(path: str | os.PathLike) -> dict[str, Tensor]:
    """The weights of the discriminator in a snapshot that `load_generator` has read; {} where there is none."""
    tensors, _ = read_safetensors(path)
    found = {name: tensor.float() for name, tensor in tensors.items() if name.startswith(DISCRIMINATOR)}
    return {name.removeprefix(DISCRIMINATOR): tensor for name, tensor in found.items()}


def _build_generator(cls: type[Generator], values: dict[str, Any], tensors: dict[str, Tensor]) -> Generator:
    config = build(GeneratorConfig, values)
    if config.img_channels not in CHANNELS.values():
        raise ValueError(f"images with {config.img_channels} channels")
    if config.z_dim + config.c_dim < 1 or config.map_depth > len(tensors):  # every layer has tensors of its own
        raise ValueError(f"{config.map_depth} layers for {config.z_dim} numbers and {config.c_dim} classes")
    return cls(config)


def save_stylizer(path: str | os.PathLike, model: Stylizer, info: Mapping[str, Any], half: bool = False) -> None:
    """Writes a stylizer with its encoder; with `half`, in float16. Raises DiskFull."""
    save_model(path, STYLIZER, model, asdict(model.config), info, half)


def load_stylizer(
    path: str | os.PathLike, device: torch.device | str = "cpu", cls: type[Stylizer] = Stylizer
) -> tuple[Stylizer, dict[str, Any]]:
    """The stylizer of a snapshot, in eval mode, and the snapshot's info. Raises UserError as `load_model` does."""
    model, info = load_model(path, STYLIZER, partial(_build_stylizer, cls))
    return model.to(device), info


def _build_stylizer(cls: type[Stylizer], values: dict[str, Any], tensors: dict[str, Tensor]) -> Stylizer:
    return cls(build(StylizerConfig, values))


# --- finding them ---------------------------------------------------------------------------------------------------


def find_snapshot(path: str | os.PathLike | None, kind: str = GENERATOR, hint: str | None = None) -> Path:
    """The snapshot that `path` names: the file itself, or the newest one of that kind in a run or a folder of runs.

    A folder may also be one that `save_pretrained` wrote (adaconv.py). Without a path, it is the newest snapshot under
    `runs`, or the model that is shipped with the project.

    Raises UserError, which ends with the `hint`, if there is none. The default hint names the script and the option
    for that kind of model.
    """
    script, option = TRAINED_BY[kind]
    if path is None:
        return _newest(Path("runs"), kind) or _shipped(kind)
    path = Path(path)
    if os.path.isfile(path):
        return path
    if not os.path.exists(path):
        raise UserError(missing_message(path, hint or f"name a snapshot or a folder of runs with {option}"))
    if (newest := _newest(path, kind)) is None:
        there = sorted(file for file in path.glob("*.safetensors") if says_kind(file, kind))
        named = f"name a file with {option}, such as {there[0]}" if there else f"name one with {option}"
        hint = hint or f"train one with {script}, or {named}"
        raise UserError(f"no snapshot of a {kind_name(kind)} under {path}; {hint}")
    return newest


def found_text(given: str | os.PathLike | None, found: Path, kind: str = GENERATOR) -> str:
    """What to say of a snapshot that `find_snapshot` found under `runs` without being given a path; else nothing."""
    shipped = PRETRAINED / SHIPPED[kind]
    if given is not None or found == shipped:
        return ""
    return f", the newest under runs; {command_line(TRAINED_BY[kind][1], as_typed(shipped))} is the shipped one"


def _newest(path: Path, kind: str) -> Path | None:
    """The newest run's snapshot with the most kimg, by the numbers in their names: copying changes the files' times.

    Folders that are not runs count as older than all runs; of several, the last written one is the newest.
    """
    patterns = ("snapshot-*.safetensors", "*/snapshot-*.safetensors", WEIGHTS)
    found = [p for pattern in patterns for p in path.glob(pattern) if p.exists()]  # links may lead nowhere
    written: dict[Path, int] = {}
    for p in found:
        written[p.parent] = max(written.get(p.parent, 0), p.stat().st_mtime_ns)

    def age(snapshot: Path) -> tuple[int, int, str, str]:
        folder = snapshot.parent
        return run_number(folder) if folder in runs else -1, written[folder], folder.name, snapshot.stem

    runs = set(list_runs(path))
    return next((p for p in sorted(found, key=age, reverse=True) if _may_be(p, kind)), None)


def _shipped(kind: str) -> Path:
    path, (script, option) = PRETRAINED / SHIPPED[kind], TRAINED_BY[kind]
    if not path.is_file():
        raise UserError(
            f"no {kind_name(kind)} under runs, and the shipped {path} is not there; train one with {script}, "
            f"name one with {option}, or restore that file"
        )
    return path


def _may_be(path: Path, kind: str) -> bool:
    """Whether a file says in its header that it is of that kind.

    A file that cannot be read counts as one, so that loading it reports the damage, in place of an older file.
    """
    return says_kind(path, kind, unreadable=True)


def says_kind(path: Path, kind: str, unreadable: bool = False) -> bool:
    """Whether a file says in its header that it holds a model of that kind; `unreadable` where it cannot be read."""
    try:
        return read_description(read_metadata(path)).get("format") == kind
    except (OSError, ValueError):
        return unreadable


# --- runs -----------------------------------------------------------------------------------------------------------


def list_runs(outdir: Path) -> list[Path]:
    """The folders of runs: those whose names begin with five digits and a dash."""
    return [p for p in outdir.glob("*") if p.is_dir() and re.match(r"\d{5}-", p.name)]


def run_number(run: Path) -> int:
    """The number that the name of a run's folder begins with."""
    return int(run.name[:5])
