"""Reading safetensors files: tensors by name, and a header of text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError, safe_open
from torch import Tensor

from torch_utils.errors import one_line


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, on the CPU, and the metadata of its header. The file need not be trusted.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not a safetensors file, or damaged.
    """
    with _open(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (not a dict)


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The metadata alone, without reading tensors; raises as `read_safetensors` does."""
    with _open(path) as file:
        return file.metadata() or {}


@contextmanager
def _open(path: str | os.PathLike) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(one_line(error, 200)) from None
