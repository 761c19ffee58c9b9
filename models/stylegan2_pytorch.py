"""StyleGAN2's networks from the checkpoints of rosinality's stylegan2-pytorch (550000.pt, stylegan2-ffhq-config-f.pt),
whose layout many later projects have taken over.

    checkpoint → tensors by their names there → by those of StyleGAN2-ADA-PyTorch → Generator, Discriminator

The networks are those of `models.stylegan2`; besides the names, only dimensions of one element differ. What no tensor
says is that program's default: a learning rate multiplier of 0.01 in the mapping network, groups of four images for the
discriminator's standard deviation, no clamping.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from models.stylegan2 import RESOLUTIONS, discriminator_name, generator_name, source_of
from networks.discriminator import Discriminator, DiscriminatorConfig
from networks.generator import CLASS_MEANS, Generator, GeneratorConfig
from networks.layers import RESAMPLE_TAPS
from torch_utils.download import file_sha256
from torch_utils.errors import UserError, one_line
from torch_utils.ops import setup_filter
from torch_utils.tensors import check_weights, pickled_keys, read_pickled

SUFFIXES = (".pt", ".pth")
KEYS = {"G_ema": "g_ema", "G": "g", "D": "d"}  # here → in the checkpoint
MEAN_OF_W = "latent_avg"
OPTIONS = (argparse.Namespace,)  # the options of its train.py, which are in the checkpoint too, and are not looked at
W_SAMPLES = 10_000  # from which the mean of w is computed, where the checkpoint has none
MAX_SIZE = 1 << 16  # of w, and of the channels of a layer
ANOTHER = "name a checkpoint of stylegan2-pytorch with its averaged generator, g_ema"

Network = TypeVar("Network", Generator, Discriminator)
Tensors = dict[str, Tensor]


def is_checkpoint(path: str | os.PathLike, unreadable: bool = False) -> bool:
    """Whether a file is such a checkpoint: training states of this project have the same suffix, but other keys.

    `unreadable` where it cannot be read.
    """
    if Path(path).suffix not in SUFFIXES:
        return False
    try:
        return KEYS["G_ema"] in pickled_keys(path, OPTIONS)
    except (OSError, ValueError):
        return unreadable


def load_checkpoint(
    path: str | os.PathLike, names: Iterable[str] | None = None, cls: type[Generator] = Generator
) -> tuple[dict[str, Generator | Discriminator], dict[str, Any]]:
    """Networks of a checkpoint by the names "G_ema", "G" and "D", in eval mode and not to be trained; and where they
    are from, as `models.stylegan2.load_networks` says it. `names`: None for those that are there.

    Raises UserError if the file is missing, asks for anything to be executed, is damaged, or if one of the networks
    is not in it or is none that this project has.
    """
    path = Path(path)
    try:
        found = read_pickled(path, OPTIONS)
        if type(found) is not dict:
            raise ValueError("it holds no dict of networks")
        networks: dict[str, Generator | Discriminator] = {}
        for name in [name for name, key in KEYS.items() if key in found] if names is None else names:
            tensors = _tensors(found.get(KEYS[name]), KEYS[name])
            if name == "D":
                networks[name] = _discriminator(tensors)
            else:
                networks[name] = _generator(tensors, found.get(MEAN_OF_W), cls)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); {ANOTHER}") from None
    except (ValueError, KeyError) as error:
        reason = f"{str(error)[:80]} is missing" if isinstance(error, KeyError) else one_line(error, 200)
        raise UserError(f"{path} cannot be read as StyleGAN2's networks ({reason}); {ANOTHER}") from None
    # the names of these files count steps, whose images nothing says
    return networks, {"kimg": 0.0, "source": source_of(path, file_sha256(path), "stylegan2-pytorch")}


def _tensors(found: Any, key: str) -> Tensors:
    if not isinstance(found, dict) or not all(type(n) is str and isinstance(t, Tensor) for n, t in found.items()):
        raise ValueError(f"{key} is missing, or holds more than tensors")
    return dict(found)


def _generator(tensors: Tensors, mean: Any, cls: type[Generator]) -> Generator:
    """`mean`: of w, if the checkpoint has it."""
    if mean is not None and not isinstance(mean, Tensor):
        raise ValueError(f"{MEAN_OF_W} is no tensor")
    resolution = _resolution(tensors, r"to_rgbs\.(\d+)\.bias")
    w_dim = _size(tensors, "style.1.weight", 1)
    config = GeneratorConfig(
        resolution=resolution,
        img_channels=3,
        c_dim=0,
        # channels halve from layer to layer up to the last one, where they are not at their most
        cbase=_size(tensors, f"convs.{2 * _blocks(resolution) - 1}.conv.weight", 1) * resolution,
        cmax=_size(tensors, "input.input", 1),
        z_dim=w_dim,
        w_dim=w_dim,
        map_depth=sum(re.fullmatch(r"style\.\d+\.weight", name, re.ASCII) is not None for name in tensors),
        modulation="modconv",
        noise=True,
        clamp=None,
    )
    renamed = _rename(tensors, 4, lambda name: generator_name(_generator_name(name)))
    if mean is not None:
        renamed["w_avg"] = mean
    G = _build(lambda: cls(config), renamed, re.compile(rf"{'|'.join(CLASS_MEANS)}|w_avg|.*\.noise_const"))
    if mean is None:
        z = torch.randn(W_SAMPLES, w_dim, generator=torch.Generator().manual_seed(0))
        G.w_avg.copy_(G.mapping(z, None).mean(dim=0))
    return G


def _discriminator(tensors: Tensors) -> Discriminator:
    resolution = _resolution(tensors, r"convs\.([1-9]\d*)\.conv1\.1\.bias")
    config = DiscriminatorConfig(
        resolution=resolution,
        img_channels=3,
        c_dim=0,
        cbase=_size(tensors, "convs.0.0.weight", 0) * resolution,
        cmax=_size(tensors, "final_conv.0.weight", 0),
        clamp=None,
    )
    first = len(config.block_sizes) + 1
    renamed = _rename(tensors, 1, lambda name: discriminator_name(_discriminator_name(name, resolution), first))
    return _build(lambda: Discriminator(config), renamed)


def _resolution(tensors: Tensors, block: str) -> int:
    """Of images, by the number of blocks, each of which has one tensor whose name is the pattern `block`."""
    blocks = sum(re.fullmatch(block, name, re.ASCII) is not None for name in tensors)
    if not RESOLUTIONS[0] <= 4 << min(blocks, 20) <= RESOLUTIONS[-1]:
        raise ValueError(f"a network of {blocks} blocks beyond the first")
    return 4 << blocks


def _blocks(resolution: int) -> int:
    """Blocks beyond that of 4 × 4."""
    return resolution.bit_length() - 3


def _size(tensors: Tensors, name: str, dim: int) -> int:
    """A dimension of the tensor of that name."""
    shape = tensors[name].shape
    if len(shape) <= dim or not 1 <= shape[dim] <= MAX_SIZE:
        raise ValueError(f"{name} has the shape {list(shape)[:8]}")
    return shape[dim]


def _rename(tensors: Tensors, gain: float, rename: Callable[[str], str]) -> Tensors:
    """The tensors under other names, without the filters, which are constants here: [1, 3, 3, 1] with that gain."""
    taps = setup_filter(RESAMPLE_TAPS)
    f = torch.outer(taps, taps)
    renamed = {}
    for name, tensor in tensors.items():
        if not name.endswith(".kernel"):
            renamed[rename(name)] = tensor
        elif tensor.shape != f.shape or not torch.allclose(tensor.float(), f * gain):
            raise ValueError("a filter for resampling other than [1, 3, 3, 1]")
    return renamed


def _build(make: Callable[[], Network], tensors: Tensors, optional: re.Pattern | None = None) -> Network:
    """The network that `make` builds, with these tensors, of which those with `optional` names may be missing.

    First it is built without memory, and all shapes compared: the file could ask for any amount.
    """
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in make().state_dict().items()}
    for name in shapes.keys() | tensors.keys():
        if name not in tensors and optional and optional.fullmatch(name):
            continue
        known = name in shapes and name in tensors
        if not known or _without_ones(shapes[name]) != _without_ones(tensors[name].shape):
            raise ValueError(f"{name[:80]!a} is missing, unexpected or of another shape")
    single = {name: tensor.float() if tensor.dtype == torch.float64 else tensor for name, tensor in tensors.items()}
    check_weights(single)
    weights = {name: tensor.float().reshape(shapes[name]) for name, tensor in single.items()}
    with torch.random.fork_rng([]):  # constant noise that is missing is the same each time
        torch.manual_seed(0)
        network = make().eval().requires_grad_(False)
    network.load_state_dict(network.state_dict() | weights)
    return network


def _without_ones(shape: Iterable[int]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


# --- names ----------------------------------------------------------------------------------------------------------

GENERATOR_PARTS: Mapping[str, str] = {
    "conv.weight": "weight",
    "conv.modulation.weight": "affine.weight",
    "conv.modulation.bias": "affine.bias",
    "activate.bias": "bias",
    "bias": "bias",
    "noise.weight": "noise_strength",
}
DISCRIMINATOR_PARTS: Mapping[str, str] = {
    "conv1.0.weight": "conv0.weight",
    "conv1.1.bias": "conv0.bias",
    "conv2.1.weight": "conv1.weight",
    "conv2.2.bias": "conv1.bias",
    "skip.1.weight": "skip.weight",
}
DISCRIMINATOR_ENDS: Mapping[str, str] = {
    "final_conv.0.weight": "b4.conv.weight",
    "final_conv.1.bias": "b4.conv.bias",
    "final_linear.0.weight": "b4.fc.weight",
    "final_linear.0.bias": "b4.fc.bias",
    "final_linear.1.weight": "b4.out.weight",
    "final_linear.1.bias": "b4.out.bias",
}


def _generator_name(name: str) -> str:
    """`convs.1.conv.weight` → `synthesis.b8.conv1.weight`, the name in StyleGAN2-ADA-PyTorch. Raises ValueError."""
    if name == "input.input":
        return "synthesis.b4.const"
    if match := re.fullmatch(r"style\.(\d{1,2})\.(weight|bias)", name, re.ASCII):
        return f"mapping.fc{int(match[1]) - 1}.{match[2]}"  # style.0 normalizes z
    if match := re.fullmatch(r"noises\.noise_(\d{1,2})", name, re.ASCII):
        return f"synthesis.{_layer(int(match[1]))}.noise_const"
    if match := re.fullmatch(r"(conv1|to_rgb1|convs\.(\d{1,2})|to_rgbs\.(\d{1,2}))\.(.+)", name, re.ASCII):
        kind, conv, rgb, part = match.groups()
        if part in GENERATOR_PARTS:
            torgb = f"b{8 << int(rgb)}.torgb" if rgb else "b4.torgb"
            layer = torgb if kind.startswith("to_rgb") else _layer(int(conv) + 1 if conv else 0)
            return f"synthesis.{layer}.{GENERATOR_PARTS[part]}"
    raise ValueError(f"{name[:80]!a} is unexpected")


def _layer(number: int) -> str:
    """The convolutions in their order: one at 4 × 4, then two at each resolution."""
    return "b4.conv1" if number == 0 else f"b{8 << (number - 1) // 2}.conv{(number - 1) % 2}"


def _discriminator_name(name: str, resolution: int) -> str:
    """`convs.1.conv2.1.weight` → `b64.conv1.weight` at 64 × 64, as in StyleGAN2-ADA-PyTorch. Raises ValueError."""
    if name in DISCRIMINATOR_ENDS:
        return DISCRIMINATOR_ENDS[name]
    if match := re.fullmatch(r"convs\.0\.(?:0\.(weight)|1\.(bias))", name, re.ASCII):
        return f"b{resolution}.fromrgb.{match[1] or match[2]}"
    match = re.fullmatch(r"convs\.([1-9]\d?)\.(.+)", name, re.ASCII)
    if match and match[2] in DISCRIMINATOR_PARTS:
        return f"b{resolution >> int(match[1]) - 1}.{DISCRIMINATOR_PARTS[match[2]]}"
    raise ValueError(f"{name[:80]!a} is unexpected")
