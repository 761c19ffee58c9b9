"""Files of latent codes (`projected-photo.npz`), which projector.py writes and generate.py reads."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from media.images import to_uint8
from networks.generator import Generator, Noise
from torch_utils.arrays import Arrays, ShapeError, open_arrays
from torch_utils.download import file_sha256
from torch_utils.errors import UserError, one_line
from torch_utils.files import missing_message, write_file
from torch_utils.schema import parse_json


@dataclass(frozen=True)
class Codes:
    """Latent codes of N images in w, their noise maps, and any JSON about how they were found."""

    ws: Tensor  # [N, num_ws, w_dim]
    noise: list[Tensor] | None = None  # [N, 1, H, W] for each layer; None for the model's constant noise
    about: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, part: slice) -> Codes:
        return Codes(self.ws[part], self.noise and [maps[part] for maps in self.noise], self.about)

    def to(self, device: torch.device) -> Codes:
        """The same codes on a device."""
        return Codes(self.ws.to(device), self.noise and [maps.to(device) for maps in self.noise], self.about)

    @property
    def targets(self) -> list[str] | None:
        """The names of the images that they were found for, as the file says; None if it does not, or not for each."""
        names = self.about.get("targets")
        known = isinstance(names, list) and len(names) == len(self.ws) and all(isinstance(name, str) for name in names)
        return names if known else None


def join_codes(G: Generator, parts: Sequence[Codes]) -> Codes:
    """The codes of all parts as one. If some have noise maps, the others get the model's constant ones.

    Nothing is said about how they were found.
    """
    ws = torch.cat([G.w_avg.new_zeros(0, G.config.num_ws, G.config.w_dim), *(part.ws for part in parts)])
    if not any(part.noise for part in parts):
        return Codes(ws)
    constant = [cast(Tensor, layer.noise_const) for layer in G.synthesis.layers()]  # a model of noise maps has them
    maps = [part.noise or [noise.expand(len(part.ws), 1, -1, -1) for noise in constant] for part in parts]
    return Codes(ws, [torch.cat(layer) for layer in zip(*maps, strict=True)])


def fingerprint(path: str | os.PathLike) -> str:
    """16 hex digits that identify a model: the beginning of the SHA-256 of its file. Remembered until that changes."""
    status = os.stat(path)
    return _fingerprint(os.fspath(path), status.st_mtime_ns, status.st_size)


@lru_cache(64)
def _fingerprint(path: str, written_ns: int, size: int) -> str:
    return file_sha256(path)[:16]


def save_codes(path: str | os.PathLike, codes: Codes) -> None:
    """Writes codes as `w`, `noise0` …, and `about`, a JSON string. Raises DiskFull."""
    arrays: dict[str, Any] = {"w": codes.ws.cpu().numpy(), "about": np.array(json.dumps(codes.about))}
    for i, noise in enumerate(codes.noise or []):
        arrays[f"noise{i}"] = noise.cpu().numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_file(path, buffer.getbuffer())


def load_codes(path: str | os.PathLike, G: Generator) -> Codes:
    """The codes of a file, on the device of the generator, which must have the shapes of the codes' own.

    Only `w`, [N, num_ws, w_dim] or [N, w_dim], is required, so that files of other programs can be read. The file is
    not trusted: nothing is unpickled, and all shapes are checked.

    Raises:
        UserError: if the file is missing, not an .npz of codes, for a model of other shapes, or damaged.
    """
    path, device = Path(path), G.w_avg.device
    num_ws, w_dim = G.config.num_ws, G.config.w_dim
    try:
        with open_arrays(path) as file:
            w = file.numbers("w", (None, num_ws, w_dim), (None, w_dim))
            noise = _read_noise(file, G, len(w)) if G.config.noise and "noise0" in file else None
            about = parse_json(file.text("about")) if "about" in file else {}
        if not isinstance(about, dict):
            raise ValueError("about is not a JSON object")
        if not len(w):
            raise ShapeError("no w")
    except ShapeError as error:
        raise UserError(
            f"{path} holds {error}, but the model takes w of [N, {num_ws}, {w_dim}] and noise maps of its layers; name "
            "their model with --network"
        ) from None
    except FileNotFoundError:
        raise UserError(missing_message(path, "name an .npz file that projector.py wrote")) from None
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as latents ({one_line(error)}); name an .npz file that projector.py wrote"
        ) from None
    ws = w[:, None].expand(-1, num_ws, -1) if w.ndim == 2 else w
    return Codes(ws, noise, about).to(device)


def _read_noise(file: Arrays, G: Generator, count: int) -> list[Tensor]:
    """The noise maps of `count` images for each layer. Raises ValueError."""
    return [file.numbers(f"noise{i}", (count, 1, *layer.size)) for i, layer in enumerate(G.synthesis.layers())]


@torch.no_grad()
def generate_codes(
    G: Generator, codes: Codes, batch: int, psi: float | Tensor = 1.0, noise: Noise = "const"
) -> Iterator[Tensor]:
    """Yields uint8 images [≤ batch, C, H, W] on the CPU, one for each code.

    With `noise="const"` they have the codes' noise maps, if there are any, or else the model's; with "none" no noise.
    """
    for start in range(0, len(codes.ws), batch):
        some = codes[start : start + batch]
        yield to_uint8(G.synthesis(G.truncated(some.ws, psi), noise_of(some, noise))).cpu()


def noise_of(codes: Codes, noise: Noise) -> Noise:
    """The noise of the codes' images: with "const" their own noise maps if they have any, or else `noise` itself."""
    return codes.noise if codes.noise and noise == "const" else noise
