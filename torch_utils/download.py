"""Published weights: downloaded once, verified by their SHA-256, and read without executing anything."""

from __future__ import annotations

import hashlib
import os
import sys
import urllib.request
from http.client import HTTPException
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from torch_utils.cache import NotPrivate, cache_folder, check_private, make_private_folder
from torch_utils.errors import UserError, printable
from torch_utils.files import atomic_write, open_regular
from torch_utils.tensors import read_pickled, read_safetensors

TIMEOUT = 30  # seconds that a server may stay silent


def cached_path(url: str) -> Path:
    """Where the file at `url` is, in the cache folder, after its download."""
    return cache_folder() / url.rpartition("/")[2]


def download(url: str, sha256: str, option: str) -> Path:
    """The path of the file at `url` in the cache folder. Downloads the file if it is not there yet.

    The SHA-256 of a download must begin with `sha256`. Raises UserError with the name of the command line option that
    takes a copy of the file.
    """
    path = cached_path(url)
    try:
        make_private_folder(path.parent)
        if path.exists():
            check_private(path)
        else:
            _fetch(url, path, sha256)
    except NotPrivate as error:
        raise UserError(f"{error}, or a copy of {path.name} with {option}") from None
    except (OSError, HTTPException) as error:
        raise UserError(
            f"cannot download {url} to {path} ({error}); "
            f"put the file {path.name} there yourself, or name a copy of it with {option}"
        ) from None
    return path


def _fetch(url: str, path: Path, sha256: str) -> None:
    """Writes the file at `url` to `path` if its SHA-256 begins with `sha256`. Raises OSError or HTTPException."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, atomic_write(path) as file:
        size = int(answer.headers.get("Content-Length") or 0) or None
        bar = tqdm(total=size, desc=printable(path), unit="B", unit_scale=True, file=sys.stderr, disable=None)
        with bar:
            while chunk := answer.read(1 << 20):
                file.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
        if not digest.hexdigest().startswith(sha256):
            raise OSError(f"the SHA-256 of the {bar.n:,} bytes received does not begin with {sha256}")


def file_sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, 64 hex digits. Raises OSError."""
    with open_regular(path) as file:
        digest = hashlib.sha256()  # hashlib.file_digest comes with Python 3.11
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_tensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """Reads named tensors from a .safetensors file, or from a .pth or .pt file that holds nothing but tensors.

    The file is not trusted: no code in a pickle is executed, and it takes no more memory than it has bytes.

    Raises:
        OSError: the file cannot be read.
        ValueError: says in a few words why the content is not as expected.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    state = read_pickled(path)
    if not isinstance(state, dict):
        raise ValueError(f"a {type(state).__name__} instead of named tensors")
    return state
