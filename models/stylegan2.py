"""StyleGAN2's networks from the pickles of StyleGAN2-ADA-PyTorch and of StyleGAN3's `--cfg stylegan2`.

    pickle → attributes and tensors of its modules, as data (`models.inert_modules`) → Generator, Discriminator

The generator is one of this project's with the modulated convolution ("modconv"): only names differ, gains and layouts
are the same. Nothing of the file is executed, and what is in it is compared with what it should be.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from models.inert_modules import CALLS, DAMAGED, attributes, flatten, read_number, read_tensor, shape, tensors
from networks.discriminator import Discriminator, DiscriminatorConfig
from networks.generator import CLASS_MEANS, Generator, GeneratorConfig, SynthesisLayer
from networks.layers import RESAMPLE_TAPS
from torch_utils.errors import UserError, command_line, one_line
from torch_utils.inert_pickle import Call, Refused, read_pickle
from torch_utils.ops import setup_filter
from torch_utils.tensors import check_weights, what_it_seems

MAX_BYTES = 8 << 30  # of a file; the largest published ones have 0.4 GB
MAX_SIZE = 1 << 16  # of z, w and the classes
RESOLUTIONS = tuple(16 << i for i in range(7))  # of its networks: up to 1024
MBSTD_GROUP = 4  # of the discriminators of StyleGAN2 for TensorFlow that do not say it
NETWORKS = ("G_ema", "G", "D")
FILTER = "resample_filter"  # the buffer that is a constant here
# What pickletools says of a file that ends too early.
CUT_OFF = re.compile(r"exhausted|remain|not enough data|ran out|no newline found")
ANOTHER = "name a network pickle of StyleGAN2-ADA-PyTorch, or of StyleGAN3 with --cfg stylegan2"

Network = TypeVar("Network", Generator, Discriminator)
States = dict[str, dict[str, Any]]  # attributes of modules, by their names


def is_network_pickle(path: str | os.PathLike) -> bool:
    """Whether a file is one that this module reads, by its name: neither snapshots nor states are called so."""
    return Path(path).suffix == ".pkl"


def load_networks(
    path: str | os.PathLike, names: Iterable[str] | None = None, cls: type[Generator] = Generator
) -> tuple[dict[str, Generator | Discriminator], dict[str, Any]]:
    """Networks of a pickle by their names there, in eval mode and not to be trained; and where they are from.

    `names`: some of "G_ema", "G" and "D", all of which have to be there; None for those that are. The info has
    "kimg" (of the file's name, else 0) and "source": the file's name, SHA-256, kind and licence.

    Raises:
        UserError: if the file is missing, asks for anything to be executed, is damaged, or if one of the networks
            is not in it or is none that this project has.
    """
    path = Path(path)
    try:
        data = _bytes(path)
        found = read_pickle(io.BytesIO(data), CALLS)
        if type(found) is not dict:
            raise ValueError("it holds no dict of networks")
        networks: dict[str, Generator | Discriminator] = {}
        for name in [name for name in NETWORKS if name in found] if names is None else names:
            if type(found.get(name)) is not Call:
                raise ValueError(f"there is no {name} in it")
            try:
                states, size = flatten(found[name]), len(data)
                networks[name] = _discriminator(states, size) if name == "D" else _generator(states, size, cls)
            except (ValueError, *DAMAGED) as error:
                if name == "D" and "G_ema" in networks:
                    raise UserError(_without_discriminator(path, error)) from None
                raise
        kind = _kind(found)
    except Refused as error:
        raise UserError(_refusal(path, error.name)) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); {ANOTHER}") from None
    except (ValueError, *DAMAGED) as error:
        raise UserError(f"{path} cannot be read as StyleGAN2's networks ({_reason(path, error)}); {ANOTHER}") from None
    for network in networks.values():
        network.eval().requires_grad_(False)
    return networks, {"kimg": kimg_of_name(path), "source": source_of(path, hashlib.sha256(data).hexdigest(), kind)}


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError("it is no file" if path.exists() else "it does not exist")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES >> 30} GiB")
    return path.read_bytes()


def _reason(path: Path, error: Exception) -> str:
    """Why a file cannot be read; downloads that went wrong are called so."""
    if path.is_file() and (seems := what_it_seems(path, "a pickle")):
        return f"it is {seems}"
    if not isinstance(error, ValueError):
        return "damaged, or of another layout"
    reason = one_line(error, 200)
    return f"it is cut off; download it again: {reason}" if CUT_OFF.search(reason) else reason


def _without_discriminator(path: Path, error: Exception) -> str:
    """That D cannot be read, where the averaged generator can."""
    take = command_line("python", "export.py", "--network", path, "--format", "safetensors")
    return (
        f"{path}: its discriminator cannot be read ({_reason(path, error)}); name the result of this command, which "
        f"takes the generator alone: {take}"
    )


def _refusal(path: Path, name: str) -> str:
    if name.startswith("dnnlib.tflib"):
        return (
            f"{path} is a network of StyleGAN or StyleGAN2 for TensorFlow; convert it with the legacy.py of "
            "StyleGAN2-ADA-PyTorch first, and name its result"
        )
    return (
        f"{path} asks for {name[:80]!a}, which StyleGAN2's networks have no need of; nothing in the file was "
        f"executed; {ANOTHER}"
    )


# --- where a file is from -------------------------------------------------------------------------------------------


def source_of(path: Path, sha256: str, kind: str) -> dict[str, str]:
    """What a model's info says of a file of somebody else's, which a program of that `kind` has written."""
    return {
        "file": path.name,
        "sha256": sha256,
        "kind": kind,
        "license": "that of the publisher of the file",
    }


def _kind(found: dict[str, Any]) -> str:
    """Which program has written it: StyleGAN3's constructors take the channels beside `synthesis_kwargs`."""
    generator = found.get("G_ema", found.get("G"))
    arguments = attributes(generator).get("_init_kwargs", {}) if type(generator) is Call else {}
    return "stylegan3 --cfg stylegan2" if "channel_base" in arguments else "stylegan2-ada-pytorch"


def kimg_of_name(path: Path) -> float:
    """Of a name as network-snapshot-025000.pkl; 0 where the name does not say."""
    match = re.search(r"snapshot-(\d{1,9})$", path.stem, re.ASCII)
    return float(match[1]) if match else 0.0


# --- networks -------------------------------------------------------------------------------------------------------


def _generator(states: States, size: int, cls: type[Generator]) -> Generator:
    """`size`: bytes of the file, more than its networks can have numbers."""
    if "synthesis.input" in states:
        raise ValueError(
            "an alias-free network of StyleGAN3, --cfg stylegan3-t or -r, which this project does not have"
        )
    if (architecture := _other_architecture(states, "synthesis.b", "skip")) is not None:
        raise ValueError(f"its generator is of the {architecture} architecture, and this project has skip alone")
    own, first = states[""], states["synthesis.b4.conv1"]
    values = _common(states, "synthesis.b4.conv1")
    config = GeneratorConfig(
        **values,
        z_dim=_whole(own["z_dim"], "z_dim", least=0),
        w_dim=_whole(own["w_dim"], "w_dim"),
        map_depth=_depth(states),
        modulation="modconv",
        noise=first["use_noise"] is True,
    )
    return _build(lambda: cls(config), states, generator_name, size)


def _discriminator(states: States, size: int) -> Discriminator:
    """Of networks that were converted from TensorFlow, two of D's numbers can be unusual: it may say nothing of the
    groups of the minibatch standard deviation, and embed classes by a single layer (map_depth 0).
    """
    if (architecture := _other_architecture(states, "b", "resnet")) is not None:
        raise ValueError(f"it is of the {architecture} architecture, and this project has resnet alone")
    group, channels = states["b4.mbstd"]["group_size"], states["b4.mbstd"]["num_channels"]
    if type(channels) is not int or channels != 1:
        raise ValueError("a discriminator whose minibatch standard deviation has not one channel")
    config = DiscriminatorConfig(
        **_common(states, "b4.conv"),
        mbstd_group=MBSTD_GROUP if group is None else _whole(group, "mbstd_group_size"),
        map_depth=_depth(states, least=0),
    )
    first = len(config.block_sizes) + 1
    return _build(lambda: Discriminator(config), states, lambda name: discriminator_name(name, first), size)


def _common(states: States, layer: str) -> dict[str, Any]:
    """What generator and discriminator have in common. `layer` is the name of one that has the clamp of all."""
    own = states[""]
    arguments = own["_init_kwargs"]
    arguments = {**arguments, **arguments.get("synthesis_kwargs", {})}
    resolution, channels, clamp = own["img_resolution"], own["img_channels"], states[layer]["conv_clamp"]
    if type(resolution) is not int or type(channels) is not int:
        raise ValueError("images of a size that is no number")
    if resolution not in RESOLUTIONS or channels not in (1, 3):
        raise ValueError(f"images of {resolution} × {resolution} with {channels} channels")
    clamp = math.inf if clamp is None else read_number(clamp)
    if not clamp > 0:
        raise ValueError("conv_clamp is not above 0")
    return {
        "resolution": resolution,
        "img_channels": channels,
        "c_dim": _whole(own["c_dim"], "c_dim", least=0),
        "cbase": _whole(arguments.get("channel_base", 32768), "channel_base", most=1 << 20),
        "cmax": _whole(arguments.get("channel_max", 512), "channel_max"),
        "clamp": None if clamp == math.inf else clamp,
    }


def _whole(value: Any, name: str, least: int = 1, most: int = MAX_SIZE) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is no whole number from {least} to {most}")
    return value


def _depth(states: States, least: int = 1) -> int:
    """Layers of the mapping network; of a discriminator without classes, which has none, the usual 8."""
    return _whole(states["mapping"]["num_layers"], "num_layers", least, len(states)) if "mapping" in states else 8


def _other_architecture(states: States, prefix: str, expected: str) -> str | None:
    """The architecture of the blocks whose names begin so, where it is not the expected one."""
    for name, state in states.items():
        if re.fullmatch(re.escape(prefix) + r"\d+", name, re.ASCII) and state["architecture"] != expected:
            return state["architecture"] if state["architecture"] in ("orig", "skip", "resnet") else "unknown"
    return None


def _build(make: Callable[[], Network], states: States, rename: Callable[[str], str], size: int) -> Network:
    """The network that `make` builds, with the tensors of a pickle under the names that `rename` gives them.

    First it is built without memory, and everything compared: the file could ask for any amount.
    """
    with torch.device("meta"):
        empty = make()
    shapes = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    if sum(math.prod(s) for s in shapes.values()) > size:
        raise ValueError("more numbers than the file can hold")
    found: dict[str, Call] = {}
    filters: list[Call] = []
    for module, state in states.items():
        prefix = f"{module}." if module else ""
        for name, tensor in tensors(state).items():
            if name == FILTER:
                filters.append(tensor)
            else:
                found[rename(prefix + name)] = tensor
    for name in {**shapes, **found}:
        if name not in found and name in CLASS_MEANS:  # which these networks do not track
            continue
        if name not in found or name not in shapes or shape(found[name]) != _plain_shape(shapes[name]):
            raise ValueError(f"{name[:80]!a} is missing, unexpected or of another shape")
    for module, state in states.items():
        _check_layer(module, state, empty, rename)
    _check_filters(filters)
    weights = {name: read_tensor(tensor).view(shapes[name]) for name, tensor in found.items()}
    check_weights(weights)
    network = make()
    network.load_state_dict(weights)
    return network


def _plain_shape(size: tuple[int, ...]) -> tuple[int, ...]:
    """Of the constant noise, [R, R] there and [1, 1, R, R] here."""
    return size[2:] if size[:2] == (1, 1) and size[2:] > (1, 1) else size


def _check_layer(module: str, state: dict[str, Any], network: nn.Module, rename: Callable[[str], str]) -> None:
    """Raises ValueError where a layer scales its weights otherwise than ours, or has another activation."""
    name = rename(f"{module}.weight").removesuffix(".weight")
    try:
        layer = network.get_submodule(name)
    except AttributeError:
        return
    gain: Any = getattr(layer, "weight_gain", None)
    if "weight_gain" in state and not math.isclose(read_number(state["weight_gain"]), gain, rel_tol=1e-6):
        raise ValueError(f"{module[:80]!a} has another learning rate multiplier or scale of its weights than here")
    expected = "lrelu" if isinstance(layer, SynthesisLayer) else getattr(layer, "act", "linear")
    if state.get("activation", expected) != expected:
        raise ValueError(f"{module[:80]!a} has an activation other than {expected}")


def _check_filters(filters: list[Call]) -> None:
    """Raises ValueError where a filter for resampling is not [1, 3, 3, 1]."""
    taps = setup_filter(RESAMPLE_TAPS)
    expected = torch.outer(taps, taps)
    for f in filters:
        if shape(f) not in ((), (4, 4)) or not torch.allclose(read_tensor(f), expected):
            raise ValueError("a filter for resampling other than [1, 3, 3, 1]")


# --- names ----------------------------------------------------------------------------------------------------------


def generator_name(name: str) -> str:
    """`synthesis.b8.conv0.affine.weight` → `synthesis.blocks.1.conv0.adaconv.predictor.scale.weight`."""
    if name == "mapping.w_avg":
        return "w_avg"
    if name == "synthesis.b4.const":
        return "synthesis.const"
    name = re.sub(r"^synthesis\.b(\d+)\.", lambda match: f"synthesis.blocks.{_log2(match[1]) - 2}.", name)
    name = re.sub(r"\.(conv[01])\.affine\.", r".\1.adaconv.predictor.scale.", name)
    return _mapping_name(name.replace(".torgb.affine.", ".torgb.scale."))


def discriminator_name(name: str, first: int) -> str:
    """`b8.conv0.weight` → `blocks.2.conv0.weight` at 32 × 32, where `first`, the log2 of the resolution, is 5."""
    name = name.removeprefix("b4.")
    name = re.sub(r"^b(\d+)\.", lambda match: f"blocks.{first - _log2(match[1])}.", name)
    return _mapping_name(name.replace("blocks.0.fromrgb.", "fromrgb."))


def _mapping_name(name: str) -> str:
    return re.sub(r"^mapping\.fc(\d+)\.", r"mapping.layers.\1.", name)


def _log2(resolution: str) -> int:
    """Raises ValueError where it is no power of two that an image can have."""
    if resolution not in map(str, (4, 8, *RESOLUTIONS)):
        raise ValueError(f"a block of the resolution {resolution[:20]}")
    return int(resolution).bit_length() - 1
