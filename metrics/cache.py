"""What has been computed of real images, kept in the cache folder for the next time."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from torch_utils.cache import NotPrivate, cache_folder, check_private, make_private_folder
from torch_utils.errors import DiskFull
from torch_utils.files import write_file
from torch_utils.tensors import read_safetensors


@dataclass(frozen=True)
class CacheKey:
    """All that a summary of real images depends on."""

    content: str  # hash of the images, flipped or not, in their order
    shape: tuple[int, ...]  # [C, H, W]
    count: int
    kind: str  # of `evaluator.Summary`
    layer: str  # of the detector; nothing for patches
    detector: str  # SHA-256 of its weights; for patches, how they are drawn
    version: int = 1

    @property
    def path(self) -> Path:
        name = hashlib.sha256(self.text.encode()).hexdigest()[:32]
        return cache_folder() / "statistics" / f"{self.kind}-{name}.safetensors"

    @property
    def text(self) -> str:
        return json.dumps(asdict(self))


def read_cached(key: CacheKey) -> dict[str, Tensor] | None:
    """The tensors that were kept under a key; None where there are none, or they are damaged or not private."""
    try:
        check_private(key.path)
        tensors, meta = read_safetensors(key.path)
    except (ValueError, OSError):  # writing them anew reports what can be mended
        return None
    return tensors if meta == {"key": key.text, "sha256": _digest(tensors)} else None


def write_cached(key: CacheKey, tensors: dict[str, Tensor]) -> str:
    """Keeps tensors under a key. Returns why that is impossible, or an empty string."""
    try:
        make_private_folder(key.path.parent)
        write_file(key.path, save(tensors, metadata={"key": key.text, "sha256": _digest(tensors)}))
    except NotPrivate as error:
        return str(error)
    except (DiskFull, OSError) as error:
        return getattr(error, "message", "") or f"cannot write {key.path}: {error}"
    return ""


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
