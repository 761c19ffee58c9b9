"""The tensors of a TorchScript archive, such as the published models of CLIP, with nothing of its program executed.

`torch.jit.save` writes a ZIP: `data.pkl`, a pickle of the module, whose class names begin with `__torch__` and whose
tensors name storages; the storages, each a file of plain numbers; and the program in `code/`, which is not looked at.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.inert_modules import DAMAGED, layout, strided_view
from torch_utils.files import regular
from torch_utils.inert_pickle import Call, Global, PersistentId, read_pickle
from torch_utils.tensors import TENSOR, stored_members

SCRIPT = "__torch__"  # what the names of modules begin with
LISTS = "torch.jit._pickle "  # and those of lists that have a type
DTYPES = {  # → numpy's names
    "torch FloatStorage": "<f4",
    "torch DoubleStorage": "<f8",
    "torch HalfStorage": "<f2",
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
    "torch BoolStorage": "?",
}
MAX_MODULES = 10_000  # CLIP's ViT-L/14 has about 600
MAX_DEPTH = 20  # of modules in modules


class _Names(set):
    """The names that the pickle may have: those of tensors and storages, and all of modules and lists."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name.startswith((SCRIPT, LISTS)) or super().__contains__(name))


def is_torchscript(path: str | os.PathLike) -> bool:
    """Whether a file is an archive of `torch.jit.save`, which `torch.save` writes without constants."""
    try:
        with zipfile.ZipFile(regular(path)) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError):
        return False


def read_torchscript(path: str | os.PathLike) -> dict[str, Tensor]:
    """The parameters, buffers and other tensors of the module in the archive, by their dotted names.

    Raises:
        OSError: the file cannot be read.
        ValueError: says in a few words why the content is not as expected.
    """
    try:
        with zipfile.ZipFile(regular(path)) as archive:
            lengths = stored_members(archive, os.stat(path).st_size)
            (root,) = {name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")}
            pickled = io.BytesIO(_stored(archive, f"{root}data.pkl"))
            calls = _tensors(read_pickle(pickled, _Names({TENSOR, *DTYPES})))
            numbers = sum(math.prod(layout(call)[2]) for call in calls.values())  # of a byte or more each
            if numbers > sum(lengths.values()):
                raise ValueError("tensors that share more numbers than the archive has bytes")
            return {name: _tensor(archive, root, call) for name, call in calls.items()}
    except (*DAMAGED, zipfile.BadZipFile, EOFError, ValueError) as error:
        raise ValueError(f"not a TorchScript archive of tensors ({str(error)[:100]})") from None


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member of the archive. PyTorch compresses none of these, but only the program."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    return archive.read(info)


def _tensors(module: Any) -> dict[str, Call]:
    """The tensors among the attributes of a module and of all modules in it."""
    found: dict[str, Call] = {}
    pending, seen = [("", module)], 0
    while pending:
        prefix, module = pending.pop()
        seen += 1
        if seen > MAX_MODULES or prefix.count(".") > MAX_DEPTH:
            raise ValueError(f"more than {MAX_MODULES} modules, or more than {MAX_DEPTH} in each other")
        if type(module.state) is not dict:
            continue
        for name, value in module.state.items():
            if type(value) is not Call:
                continue
            if value.name == TENSOR:
                found[f"{prefix}{name}"] = value
            elif value.name.startswith(SCRIPT):
                pending.append((f"{prefix}{name}.", value))
    return found


def _tensor(archive: zipfile.ZipFile, root: str, call: Call) -> Tensor:
    storage, offset, size, stride = layout(call)
    _, kind, key, _, count = _fields(storage)
    data = _stored(archive, f"{root}data/{key}")
    dtype = np.dtype(DTYPES[kind.name])
    if count * dtype.itemsize != len(data):
        raise ValueError(f"a storage that claims to be larger or smaller than its {len(data):,} bytes")
    return torch.from_numpy(np.array(strided_view(np.frombuffer(data, dtype), offset, size, stride), order="C"))


def _fields(storage: Any) -> tuple[str, Global, str, str, int]:
    """ "storage", the kind of the numbers, the file's name, the device and the count."""
    if type(storage) is not PersistentId or type(storage.value) is not tuple or len(storage.value) != 5:
        raise ValueError("a tensor that is not stored as torch.jit.save stores it")
    _, kind, key, _, count = storage.value
    if type(kind) is not Global or type(key) is not str or type(count) is not int:
        raise ValueError("a tensor that is not stored as torch.jit.save stores it")
    return storage.value
