"""PyTorch modules in a pickle, as data: their attributes, numbers and tensors, of which nothing is built or called.

StyleGAN2-ADA-PyTorch and StyleGAN3 pickle a module as one call with a dict: the name of its class, the source of the
program that defined it (which is not looked at here) and the module's attributes, in which its submodules are such
calls again. A tensor's numbers are bytes in the layout of `torch.save` before PyTorch 1.6.

What is not as it should be raises ValueError, or one of `DAMAGED` where the layout itself is another.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_utils.inert_pickle import Call, Global, PersistentId, read_pickle
from torch_utils.tensors import PARAMETER, TENSOR

MODULE = "torch_utils.persistence _reconstruct_persistent_obj"
STORAGE = "torch.storage _load_from_bytes"
NUMBERS = {"numpy.core.multiarray scalar", "numpy._core.multiarray scalar"}  # before numpy 2, and since
NUMBER_TYPE = "numpy dtype"
CALLS = {MODULE, PARAMETER, TENSOR, STORAGE, NUMBER_TYPE} | NUMBERS

DTYPES = {"torch FloatStorage": "<f4", "torch DoubleStorage": "<f8", "torch HalfStorage": "<f2"}  # → numpy's names
STORAGE_MAGIC, STORAGE_VERSION = 0x1950A86A20F9469CFC6C, 1001  # of torch.save
NUMBER_FORMATS = {"f8": "d", "f4": "f", "i8": "q", "i4": "i"}  # numpy's names → those of struct
DAMAGED = (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, RuntimeError, struct.error)

MAX_MODULES = 1000  # a network of 1024 × 1024 has 100
MAX_DEPTH = 8  # of modules in modules; a network has 4
MAX_ENTRIES = 100  # tensors, or submodules, of one module
MAX_STORAGE_OPERATIONS = 1000  # of one of the pickles around a tensor's numbers


def attributes(module: Call) -> dict[str, Any]:
    """The attributes of one module."""
    (meta,) = _arguments(module, {MODULE})
    return _typed(_typed(meta, dict)["state"], dict)


def flatten(module: Call) -> dict[str, dict[str, Any]]:
    """The attributes of a module and of all modules in it, by their dotted names; its own name is ""."""
    found: dict[str, dict[str, Any]] = {}
    pending = [("", module)]
    while pending:
        name, module = pending.pop()
        found[name] = attributes(module)
        if len(found) > MAX_MODULES or name.count(".") >= MAX_DEPTH:
            raise ValueError(f"more than {MAX_MODULES} modules, or more than {MAX_DEPTH} in each other")
        for child, value in _entries(found[name], "_modules").items():
            if len(child) > 100:
                raise ValueError("a module with a name of more than 100 characters")
            if value is not None:
                pending.append((f"{name}.{child}" if name else child, value))
    return found


def tensors(state: dict[str, Any]) -> dict[str, Call]:
    """The parameters and buffers among a module's attributes, for `shape` and `read_tensor`."""
    found = {**_entries(state, "_parameters"), **_entries(state, "_buffers")}
    return {name: value for name, value in found.items() if value is not None}


def shape(tensor: Call) -> tuple[int, ...]:
    """The shape that a tensor claims."""
    return layout(tensor)[2]


def read_tensor(tensor: Call) -> Tensor:
    """The numbers of a tensor, in float32 and in an order of their own: it may be a view of what is stored.

    No memory is taken before its claims are compared with the bytes that are there.
    """
    storage, offset, size, stride = layout(tensor)
    view = strided_view(_stored_numbers(storage), offset, size, stride)
    return torch.from_numpy(np.array(view, dtype=np.float32, order="C"))


def strided_view(stored: np.ndarray, offset: int, size: Sequence[int], stride: Sequence[int]) -> np.ndarray:
    """The tensor that lies like this in the numbers of a storage. Raises ValueError if the storage is too small."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > len(stored) or last >= len(stored):
        raise ValueError(f"a tensor of {math.prod(size):,} numbers in a storage of {len(stored):,}")
    steps = [step * stored.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(stored[offset:], size, steps, writeable=False)


def read_number(value: Any) -> float:
    """A number of Python or numpy."""
    if type(value) in (int, float):
        return float(value)
    dtype, data = _arguments(value, NUMBERS)
    kind, order = _arguments(dtype, {NUMBER_TYPE})[0], _typed(dtype.state, tuple)[1]
    order = {"<": "<", "|": "<", ">": ">"}[_typed(order, str)]
    (number,) = struct.unpack(order + NUMBER_FORMATS[_typed(kind, str)], data)
    return float(number)


def layout(tensor: Call) -> tuple[Any, int, tuple[int, ...], tuple[int, ...]]:
    """Storage, offset in it, size and stride of a tensor or parameter."""
    if tensor.name == PARAMETER:
        tensor = _arguments(tensor, {PARAMETER})[0]
    storage, offset, size, stride, *_ = _arguments(tensor, {TENSOR})
    if type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride) or len(size) > 8:
        raise ValueError("a tensor whose size and stride do not fit")
    if not all(type(n) is int and 0 <= n < 1 << 48 for n in (offset, *size, *stride)) or 0 in size:
        raise ValueError("a tensor of an impossible size")
    return storage, offset, size, stride


def _stored_numbers(storage: Call) -> np.ndarray:
    """All numbers of a storage, [n], where they lie.

    A storage is five pickles (what it is, and a name for the numbers), a count, and the bytes.
    """
    (data,) = _arguments(storage, {STORAGE})
    file = io.BytesIO(_typed(data, bytes))
    magic, version, system, content, _ = (read_pickle(file, DTYPES, MAX_STORAGE_OPERATIONS) for _ in range(5))
    if type(magic) is not int or type(version) is not int or (magic, version) != (STORAGE_MAGIC, STORAGE_VERSION):
        raise ValueError("a tensor that is not stored as torch.save stores it")
    if _typed(system, dict)["little_endian"] is not True:
        raise ValueError("a tensor that a machine of the other byte order has stored")
    _, kind, _, _, count, view = _typed(_typed(content, PersistentId).value, tuple)
    dtype, start = np.dtype(DTYPES[_typed(kind, Global).name]), file.tell() + 8
    if view is not None or type(count) is not int or count < 1 or count * dtype.itemsize != len(data) - start:
        raise ValueError(f"a storage that claims to be larger or smaller than its {len(data) - start:,} bytes")
    return np.frombuffer(data, dtype, count, start)


def _arguments(call: Any, names: set[str]) -> tuple:
    """The arguments of a call of one of the names."""
    if type(call) is not Call or call.name not in names:
        raise ValueError(f"something else where {min(names).split()[-1]} should be")
    return call.args


def _entries(state: dict[str, Any], name: str) -> dict[str, Any]:
    """The tensors or submodules in a module's attributes: not many, for modules may share one dict."""
    found = _typed(state[name], dict)
    if len(found) > MAX_ENTRIES:
        raise ValueError(f"a module with more than {MAX_ENTRIES} entries in {name}")
    return found


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{type(value).__name__} where {kind.__name__} should be")
    return value
