"""Files of codes: `projected_w.npz`, what projector.py finds and generate.py makes images of."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latents.arrays import open_arrays, real_tensor
from media.images import to_uint8
from networks.generator import Generator
from torch_utils.errors import UserError, one_line
from torch_utils.files import missing, write_file


@dataclass(frozen=True)
class Codes:
    """Codes of N images, the noise that belongs to them, and what is to be known about them, as JSON."""

    ws: Tensor  # [N, num_ws, w_dim]
    noise: list[Tensor] | None = None  # [N, 1, H, W] for each layer; None: the model's own
    about: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, part: slice) -> Codes:
        return Codes(self.ws[part], self.noise and [maps[part] for maps in self.noise], self.about)


def fingerprint(path: str | os.PathLike) -> str:
    """16 hex digits that say which model codes belong to: the beginning of the SHA-256 of its file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def save_codes(path: str | os.PathLike, codes: Codes) -> None:
    """Writes codes as `w`, `noise0` …, and `about`, a JSON string. Raises DiskFull."""
    arrays = {"w": codes.ws.cpu().numpy(), "about": np.array(json.dumps(codes.about))}
    for i, noise in enumerate(codes.noise or []):
        arrays[f"noise{i}"] = noise.cpu().numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_file(path, buffer.getbuffer())


def load_codes(path: str | os.PathLike, G: Generator) -> Codes:
    """The codes of a file, for the generator that they were made with or one of the same shape, on its device.

    All that is needed is `w` [N, num_ws, w_dim] or [N, w_dim], so that files of other programs can be read. The file is
    not trusted: nothing is unpickled, and every shape is checked.

    Raises:
        UserError: if the file is missing, no .npz of codes, of another model, or damaged.
    """
    path, device = Path(path), G.w_avg.device
    layers = G.synthesis.layers() if G.config.noise else []
    try:
        with open_arrays(path) as file:
            w = real_tensor(file, "w")
            noise = [real_tensor(file, f"noise{i}") for i in range(len(layers))] if "noise0" in file else None
            about = json.loads(str(file["about"])) if "about" in file else {}
        if not isinstance(about, dict):
            raise ValueError("about is no object")
    except FileNotFoundError:
        raise UserError(missing(path, "name a projected_w.npz of projector.py")) from None
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as codes ({one_line(error)}); name a projected_w.npz of projector.py"
        ) from None
    ws = w[:, None].expand(-1, G.config.num_ws, -1) if w.ndim == 2 else w
    if ws.ndim != 3 or not len(ws) or ws.shape[1:] != (G.config.num_ws, G.config.w_dim):
        raise UserError(
            f"{path} holds codes of the shape {list(w.shape)}, but the model takes "
            f"[N, {G.config.num_ws}, {G.config.w_dim}]; name the model that they belong to with --network"
        )
    for maps, layer in zip(noise or [], layers, strict=bool(noise)):
        if maps.shape != (len(ws), 1, layer.resolution, layer.resolution):
            raise UserError(
                f"{path} holds noise of the shape {list(maps.shape)}, but the model takes "
                f"[{len(ws)}, 1, {layer.resolution}, {layer.resolution}]; name its model with --network"
            )
    return Codes(ws.to(device), noise and [maps.to(device) for maps in noise], about)


@torch.no_grad()
def generate_codes(
    G: Generator, codes: Codes, batch: int, psi: float | Tensor = 1.0, noise: str = "const"
) -> Iterator[Tensor]:
    """Yields uint8 images [≤ batch, C, H, W] on the CPU, one for each code.

    With `noise` "const", with the noise that belongs to them; "none", without any.
    """
    for start in range(0, len(codes.ws), batch):
        some = codes[start : start + batch]
        own = some.noise if some.noise and noise == "const" else noise
        yield to_uint8(G.synthesis(G.truncated(some.ws, psi), own)).cpu()
