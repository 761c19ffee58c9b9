"""Starting from what another run has learned: `--init-from`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from networks.discriminator import Discriminator
from networks.generator import Generator
from torch_utils.cli import UserError
from training.checkpoint import find_state, load_generator, load_state


def initial_weights(path: str | Path) -> tuple[str, dict[str, dict[str, Tensor]]]:
    """Weights of G, and of D and G_ema where there are any, from a snapshot, a state or a run; and what they were.

    A snapshot holds the averaged generator alone.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        weights = load_generator(path)[0].state_dict()
        return path.name, {"G": weights, "G_ema": weights}
    path = find_state(path)
    state = load_state(path)
    return path.name, {name: state[name] for name in ("G", "G_ema", "D")}


def transfer(module: nn.Module, weights: dict[str, Tensor]) -> tuple[int, int]:
    """Copies into a generator or discriminator what fits of another's weights → how many tensors, of how many.

    Blocks meet by their resolution, so that the other may be of half the resolution, or twice. Tensors whose shape
    differs, as those for other classes, keep their own values.
    """
    prefix = "synthesis.blocks." if isinstance(module, Generator) else "blocks."
    own = module.state_dict()
    shift = 0
    if isinstance(module, Discriminator):  # blocks are counted from the picture on
        shift = _blocks(own, prefix) - _blocks(weights, prefix)
    copied = 0
    with torch.no_grad():
        for name, value in weights.items():
            if name.startswith("fromrgb") and shift:
                continue  # of another resolution
            if name.startswith(prefix):
                number, rest = name.removeprefix(prefix).split(".", 1)
                name = f"{prefix}{int(number) + shift}.{rest}"
            if name in own and own[name].shape == value.shape:
                own[name].copy_(value)
                copied += 1
    return copied, len(own)


def _blocks(weights: dict[str, Tensor], prefix: str) -> int:
    return 1 + max((int(n.removeprefix(prefix).split(".")[0]) for n in weights if n.startswith(prefix)), default=-1)


def initialize(modules: dict[str, nn.Module], path: str, freezed: int) -> str:
    """Gives G, G_ema and D the weights of `--init-from`, and returns a line on what was taken.

    Raises:
        UserError: where nothing of the generator fits, or there is no discriminator to freeze layers of.
    """
    name, found = initial_weights(path)
    if freezed and "D" not in found:
        raise UserError(f"{path} has no discriminator for --freezed; name the run, or a state in it, with --init-from")
    taken = []
    for part in ("G", "G_ema", "D"):
        if part not in found:
            taken.append(f"{part} anew")
            continue
        copied, total = transfer(modules[part], found[part])
        if 2 * copied < total and part != "D":
            raise UserError(
                f"{path} fits {copied} of the generator's {total} tensors; take the --modulation, --cbase, --cmax and "
                f"--map-depth of that run, at its resolution or twice it"
            )
        taken.append(f"{copied} of {part}'s {total} tensors")
    return f"starting from {name}: {', '.join(taken)}"


def freeze(D: Discriminator, layers: int) -> None:
    """Keeps the first `layers` layers of D as they are: FreezeD (Mo et al. 2020), with StyleGAN2-ADA's counting."""
    order = [D.fromrgb]
    for block in D.blocks:
        order += [block.conv0, block.conv1, block.skip]
    for layer in order[:layers]:
        layer.requires_grad_(False)
