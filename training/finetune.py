"""Starting from the weights of another run: `--init-from`, and the layers that `--freezed` keeps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.convert import adaconv_weights, modulation_of
from models.foreign import has_foreign_name, is_foreign, load_foreign
from models.snapshot import Source, load_discriminator, load_generator
from models.stylegan2 import source_of
from networks.discriminator import Discriminator
from networks.generator import Generator, GeneratorConfig
from torch_utils.errors import UserError, listed, one_line, plural
from torch_utils.files import missing_message
from torch_utils.schema import build, check_values
from training.config import TAKEN_OVER
from training.runs import find_state, load_state

BLOCK = re.compile(r"(\d{1,4})\.(.+)", re.ASCII)  # the number of a block, and the rest of a tensor's name


def find_initial(path: str | Path) -> Path:
    """The snapshot or state that `--init-from` means: the file itself, else the newest state of a run or of runs."""
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise UserError(missing_message(path, "name a snapshot, a state or a run with --init-from"))
    try:
        return find_state(path)
    except UserError:
        raise UserError(f"{path} holds no run with a state for --init-from; name one, or a snapshot") from None


def initial_weights(path: Path, option: str = "--init-from") -> dict[str, dict[str, Tensor]]:
    """Weights of G, and of D and G_ema where there are any.

    A snapshot holds the averaged generator alone, unless export.py --with-discriminator wrote it. Raises UserError,
    which tells to name another file with `option`.
    """
    if is_foreign(path):
        found = {name: network.state_dict() for name, network in load_foreign(path)[0].items()}
        if "G" not in found and "G_ema" not in found:
            raise UserError(f"{path} holds no generator; name another with {option}")
        generator = found["G_ema"] if "G_ema" in found else found["G"]
        return {"G": generator, "G_ema": generator} | found
    if path.suffix == ".safetensors":
        weights = load_generator(path)[0].state_dict()
        discriminator = load_discriminator(path)
        return {"G": weights, "G_ema": weights} | ({"D": discriminator} if discriminator else {})
    state = load_state(path, option)
    if not {"G", "G_ema", "D"} <= state.keys():
        raise UserError(f"{path} is of a run that trains no generator; name another with {option}")
    weights = {name: state[name] for name in ("G", "G_ema", "D")}
    for name, tensors in weights.items():
        if not all(type(key) is str and isinstance(tensor, Tensor) for key, tensor in tensors.items()):
            raise UserError(f"{path} is damaged ({name} holds more than tensors); name another with {option}")
    return weights


def initial_fields(path: Path, modulation: str | None) -> dict[str, Any]:
    """The fields that a training with `--modulation` takes from the file of `--init-from`: those of a GeneratorConfig,
    and `source`, where the weights are from if somebody else has trained them.
    """
    if is_foreign(path) or path.suffix == ".safetensors":
        G, info = load_generator(path)
        fields, source = asdict(G.config), known_source(info)
    else:
        config = load_state(path, "--init-from")["config"]
        fields = config.get("generator")
        if fields is None:
            raise UserError(f"{path} is of a run that trains no generator; name another with --init-from")
        try:
            if type(fields) is not dict or "modulation" not in fields:
                raise ValueError("its generator has no modulation")
            used = {"modulation", *TAKEN_OVER}
            check_values(GeneratorConfig, {name: value for name, value in fields.items() if name in used})
            source = known_source(config)
        except ValueError as error:
            raise UserError(f"{path} is damaged ({one_line(error)}); name another with --init-from") from None
    taken = {name: fields[name] for name in TAKEN_OVER if name in fields}  # states of earlier versions lack some
    if modulation not in (None, fields["modulation"]):  # the norm belongs to the modulation
        taken.pop("norm", None)
    if fields["modulation"] == "adain" and modulation in (None, "adaconv"):
        # becomes AdaConv behind the same normalization
        taken |= {"norm": "instance", "predict_bias": True}
    return taken | {"source": source}


def known_source(facts: Mapping[str, Any]) -> Source | None:
    """Where weights are from, by a snapshot's info or a run's configuration: its `source`, or, as earlier versions
    wrote none, the name of the file that the run began with, if it is one of another program. Raises ValueError.
    """
    source, init_from = facts.get("source"), facts.get("init_from")
    if source is None and isinstance(init_from, str) and has_foreign_name(init_from):
        source = source_of(Path(init_from), sha256="", kind="")
    return None if source is None else build(Source, source)


def copy_matching_weights(module: nn.Module, weights: dict[str, Tensor]) -> set[str]:
    """Copies the weights of another generator or discriminator that fit, and returns the names of the copied tensors.

    Blocks are matched by their resolution, so that the other network may have another one than this one. Tensors
    of another shape, such as those for other classes, keep their values.
    """
    prefix = "synthesis.blocks." if isinstance(module, Generator) else "blocks."
    own = module.state_dict()
    shift = 0
    if isinstance(module, Discriminator):  # blocks are counted from the image on
        shift = _blocks(own, prefix) - _blocks(weights, prefix)
    copied = set()
    with torch.no_grad():
        for name, value in weights.items():
            if name.startswith("fromrgb") and shift:
                continue  # of another resolution
            if block := _block(name, prefix):
                name = f"{prefix}{block[0] + shift}.{block[1]}"
            if name in own and own[name].shape == value.shape:
                own[name].copy_(value)
                copied.add(name)
    return copied


def _block(name: str, prefix: str) -> tuple[int, str] | None:
    """The number of the block that a tensor is of, and its name there; None for tensors outside of blocks."""
    found = BLOCK.fullmatch(name.removeprefix(prefix)) if name.startswith(prefix) else None
    return (int(found[1]), found[2]) if found else None


def _blocks(weights: dict[str, Tensor], prefix: str) -> int:
    """How many blocks a network has, by the names of its tensors."""
    return 1 + max((block[0] for name in weights if (block := _block(name, prefix))), default=-1)


def load_initial_weights(modules: dict[str, nn.Module], path: Path, freezed: int) -> str:
    """Gives G, G_ema and D the weights of `--init-from`, and returns a line on what was taken.

    Raises:
        UserError: where nothing of the generator fits, or there is no discriminator to freeze layers of.
    """
    found = initial_weights(path)
    config = cast(Generator, modules["G"]).config
    modulation = modulation_of(found["G"])
    norm = {"modconv": "demod", "adain": "instance"}.get(modulation or "")
    converted = config.modulation == "adaconv" and norm == config.norm
    if converted:
        found |= {part: adaconv_weights(found[part], config) for part in ("G", "G_ema")}
    if freezed and "D" not in found:
        raise UserError(f"{path} has no discriminator for --freezed; name the run, or a state in it, with --init-from")
    taken = []
    for part in ("G", "G_ema", "D"):
        if part not in found:
            taken.append(f"{part} anew")
            continue
        names, own = copy_matching_weights(modules[part], found[part]), modules[part].state_dict()
        copied, total = len(names), len(own)
        if part == "D":
            for layer in first_layers(cast(Discriminator, modules["D"]), freezed):
                if f"{layer}.weight" not in names:
                    raise UserError(
                        f"--freezed {freezed} would keep {layer}, which {path} has no weights for; take fewer, or a "
                        "run of the same resolution and channels"
                    )
        elif 2 * copied < total:
            raise UserError(
                f"{path} fits {copied} of the generator's {total} tensors; take the --modulation, --cbase, --cmax and "
                f"--map-depth of that run, at its resolution, twice it or less"
            )
        new = list(dict.fromkeys(name.rpartition(".")[0] for name in own if name not in names))  # the layers
        named = f" (new: {listed(new, 3)})" if new and part != "G_ema" else ""  # G_ema's are those of G
        taken.append(f"{copied} of {part}'s {total} tensors{named}")
    layers = "AdaIN layers" if modulation == "adain" else "modulated convolutions"
    note = f"; the {layers} became AdaConv layers, whose style maps are new" if converted else ""
    prefix = "synthesis.blocks."
    if more := max(_blocks(found["G"], prefix) - _blocks(modules["G"].state_dict(), prefix), 0):
        note += f"; it makes larger images, whose last {plural(more, 'block')} are left out"
    return f"starting from {path}: {', '.join(taken)}{note}"


def first_layers(D: Discriminator, layers: int) -> list[str]:
    """The names of the first `layers` layers of D, counted from the image as in StyleGAN2-ADA. Raises UserError."""
    names = ["fromrgb"]
    for i in range(len(D.blocks)):
        names += [f"blocks.{i}.conv0", f"blocks.{i}.conv1", f"blocks.{i}.skip"]
    if layers > len(names):
        raise UserError(f"--freezed {layers}: this discriminator has {len(names)} layers before the last; take fewer")
    return names[:layers]


def freeze(D: Discriminator, layers: int) -> None:
    """Keeps the first `layers` layers of D as they are: FreezeD (Mo et al. 2020)."""
    for name in first_layers(D, layers):
        D.get_submodule(name).requires_grad_(False)
