"""Arrays from .npz files that are not trusted: nothing is unpickled, and sizes are checked before they are read."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

MAX_BYTES = 1 << 33  # of all uncompressed arrays in a file


@contextmanager
def open_arrays(path: str | os.PathLike) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays of a file by name, each read when it is used.

    Raises FileNotFoundError if there is no such file, and ValueError if it is too large. NumPy and zipfile raise nearly
    any exception for a damaged file.
    """
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
            raise ValueError(f"it holds more than {MAX_BYTES:,} bytes")
    with np.load(path, allow_pickle=False) as file:
        yield file


def real_tensor(file: Mapping[str, np.ndarray], name: str) -> Tensor:
    """An array of finite real numbers as float32. Raises KeyError or ValueError if there is none."""
    array = file[name]
    if array.dtype.kind != "f":
        raise ValueError(f"{name} does not hold real numbers")
    with np.errstate(over="ignore"):  # numbers beyond float32 become infinite
        tensor = torch.from_numpy(array.astype(np.float32))
    if not tensor.isfinite().all():
        raise ValueError(f"{name} holds numbers that are not finite")
    return tensor
