"""Networks that other programs have trained: which files hold them, and reading them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

from models import stylegan2, stylegan2_pytorch
from networks.discriminator import Discriminator
from networks.generator import Generator


def is_foreign(path: str | os.PathLike, unreadable: bool = False) -> bool:
    """Whether a file is a network pickle of NVIDIA's (.pkl) or a checkpoint of rosinality's stylegan2-pytorch (.pt).

    `unreadable` for a .pt that cannot be read.
    """
    return stylegan2.is_network_pickle(path) or stylegan2_pytorch.is_checkpoint(path, unreadable)


def has_foreign_name(path: str | os.PathLike) -> bool:
    """`is_foreign` of a file that need not be there, by its name: this project's own .pt files are training states."""
    name = PurePath(path).name
    is_state = name.startswith(("state-", "autosave-"))
    return stylegan2.is_network_pickle(path) or (name.endswith(stylegan2_pytorch.SUFFIXES) and not is_state)


def load_foreign(
    path: str | os.PathLike, names: Iterable[str] | None = None, cls: type[Generator] = Generator
) -> tuple[dict[str, Generator | Discriminator], dict[str, Any]]:
    """Networks of such a file by the names "G_ema", "G" and "D", in eval mode and not to be trained; and the file's
    info, with "kimg" and "source". `names`: None for those that are there.

    Raises UserError if the file is missing, asks for anything to be executed, is damaged, or if one of the networks
    is not in it or is none that this project has.
    """
    load = stylegan2.load_networks if stylegan2.is_network_pickle(path) else stylegan2_pytorch.load_checkpoint
    return load(path, names, cls)
