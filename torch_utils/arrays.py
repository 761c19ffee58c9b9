"""Arrays from .npz files that are not trusted: nothing is unpickled, and shapes are compared before they are read."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_utils.files import open_regular

MAX_BYTES = 1 << 33  # of one uncompressed array
MAX_RATIO = 64  # of the bytes of all arrays to those of the file; random numbers hardly become smaller
MAX_SMALL_BYTES = 1 << 20  # of arrays that may be compressed further, such as noise maps of zeros
MAX_TEXT_BYTES = 1 << 26  # of an array that holds a text: the names of a hundred thousand files, for example

Shape = tuple[int | None, ...]  # None: any size


class Arrays:
    """The arrays of an .npz file by name, each read when it is asked for."""

    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive

    def __contains__(self, name: str) -> bool:
        return f"{name}.npy" in self._archive.namelist()

    def array(self, name: str, *shapes: Shape, most: int = MAX_BYTES) -> np.ndarray:
        """An array of one of these shapes, or of any. Its header is read first. Raises ValueError."""
        if name not in self:
            raise ValueError(f"it holds no {name}")
        with self._archive.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"{name} is in a format of NumPy that it does not write for numbers")
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or min(shape, default=0) < 0 or size > most:
            raise ValueError(f"{name} holds something other than numbers, or too many of them")
        if size > self._archive.getinfo(f"{name}.npy").file_size:
            raise ValueError(f"{name} claims more numbers than it has")
        if shapes and not any(_fits(shape, wanted) for wanted in shapes):
            raise ShapeError(f"{name.rstrip('0123456789')} of shape {list(shape)[:8]}")
        with self._archive.open(f"{name}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    def numbers(self, name: str, *shapes: Shape) -> Tensor:
        """An array of finite real numbers as float32. Raises ValueError if there is none."""
        array = self.array(name, *shapes)
        if array.dtype.kind != "f":
            raise ValueError(f"{name} does not hold real numbers")
        with np.errstate(over="ignore"):  # numbers beyond float32 become infinite
            tensor = torch.from_numpy(array.astype(np.float32))
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite")
        return tensor

    def text(self, name: str) -> str:
        """An array that is a text. Raises ValueError if there is none."""
        array = self.array(name, (), most=MAX_TEXT_BYTES)
        if array.dtype.kind != "U":
            raise ValueError(f"{name} is no text")
        return str(array)


class ShapeError(ValueError):
    """An array of another shape than the model takes."""


@contextmanager
def open_arrays(path: str | os.PathLike) -> Iterator[Arrays]:
    """The arrays of a file.

    Raises FileNotFoundError if there is no such file, and ValueError if it would unpack to much more than it has.
    NumPy and zipfile raise nearly any exception for a damaged file.
    """
    with open_regular(path) as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no .npz file, or is cut off")
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > max(MAX_RATIO * os.fstat(file.fileno()).st_size, MAX_SMALL_BYTES):
                raise ValueError(f"it would unpack to {size:,} bytes, as only harmful files do")
            yield Arrays(archive)


def _fits(shape: Any, wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(b is None or a == b for a, b in zip(shape, wanted, strict=True))
