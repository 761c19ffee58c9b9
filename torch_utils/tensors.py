"""Files of tensors: safetensors, and what torch.save writes. None has to be trusted: what is read takes no more memory
than the file has bytes, and nothing in a pickle is executed.
"""

from __future__ import annotations

import io
import math
import os
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from torch_utils.errors import one_line
from torch_utils.files import open_regular, regular
from torch_utils.inert_pickle import Call, Global, PersistentId, Refused, read_pickle

FLOATS = {torch.float16, torch.bfloat16, torch.float32}  # the types that weights may have

# What a pickle of torch.save may name: tensors, and the type of the numbers of each storage, here with its bytes.
TENSOR, PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
STORAGES = {
    "torch DoubleStorage": 8, "torch FloatStorage": 4, "torch HalfStorage": 2, "torch BFloat16Storage": 2,
    "torch LongStorage": 8, "torch IntStorage": 4, "torch ShortStorage": 2, "torch CharStorage": 1,
    "torch ByteStorage": 1, "torch BoolStorage": 1,
}  # fmt: skip
NAMES = {TENSOR, PARAMETER, *STORAGES}
MAGIC = {  # what files begin with that are named by mistake
    b"PK": "a ZIP", b"\x89PNG": "a PNG image", b"\xff\xd8\xff": "a JPEG image", b"\x80": "a pickle",
    b"\x1f\x8b": "a gzip file",
}  # fmt: skip
MAX_PICKLE_BYTES = 1 << 23  # of the pickle without the tensors' numbers; that of a large network has 300,000
ALLOWING = threading.Lock()  # PyTorch has one list of types that may be read, for all threads
NO_PICKLE = "not a PyTorch file of nothing but tensors and plain values"


# --- safetensors ----------------------------------------------------------------------------------------------------


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, on the CPU, and the metadata of its header.

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
        with safe_open(regular(path), framework="pt") as file:
            yield file
    except SafetensorError as error:
        found = what_it_seems(path)
        raise ValueError(f"it is {found}" if found else one_line(error, 200)) from None


def what_it_seems(path: str | os.PathLike, wanted: str = "a .safetensors file") -> str | None:
    """What a file begins like that is none of those `wanted`; None if it may be a damaged one, or cannot be told."""
    with open_regular(path) as file:
        start = file.read(512)
    if not start:
        return "empty"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS; fetch the file itself with: git lfs pull"
    if start.startswith(b"PK") and Path(path).suffix in (".pt", ".pth"):
        return f"a file of torch.save, not {wanted}"
    for magic, kind in MAGIC.items():
        if start.startswith(magic) and kind != wanted:
            return f"{kind}, not {wanted}"
    if len(start) > 8 and start[8:9] != b"{" and all(byte >= 32 or byte in b"\t\n\r" for byte in start):
        return f"text, not {wanted}"
    return None


def check_types(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless all tensors hold real numbers of 16 or 32 bits."""
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS or tensor.layout != torch.strided:
            raise ValueError(f"{name[:80]!a} holds numbers of the type {str(tensor.dtype).removeprefix('torch.')}")


def check_weights(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless all tensors hold finite real numbers of 16 or 32 bits."""
    check_types(tensors)
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise ValueError(f"{name[:80]!a} holds numbers that are not finite")


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity: nearly always by its sum alone, which takes no memory."""
    if not tensor.dtype.is_floating_point:
        return True
    total = tensor.sum(dtype=torch.float32 if tensor.element_size() < 4 else None)
    return bool(total.isfinite()) or bool(tensor.isfinite().all())  # a sum of finite numbers can be too large


def tensors_in(content: Any) -> list[Tensor]:
    """All tensors in dicts, lists and tuples in each other."""
    return [found for found in _walk(content) if isinstance(found, Tensor)]


# --- torch.save -----------------------------------------------------------------------------------------------------


def read_pickled(path: str | os.PathLike, plain: Sequence[type] = ()) -> Any:
    """What torch.save has written of tensors, plain values and objects of the types `plain`, on the CPU.

    First the pickle in the file is read as data, and what it claims is compared with the bytes that are there.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is something else, asks for anything to be executed, or is damaged.
    """
    with open_regular(path) as file:
        _checked_content(file, Path(path).stat().st_size, plain)
        file.seek(0)
        try:
            with ALLOWING, torch.serialization.safe_globals(list(plain)):
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # of many types; some of their messages recommend to execute the file's code
            raise ValueError(f"{NO_PICKLE}, or damaged") from None


def pickled_keys(path: str | os.PathLike, plain: Sequence[type] = ()) -> set[Any]:
    """The keys of the dict that torch.save has written, of which no tensor is read; empty where it is no dict.

    Raises as `read_pickled` does.
    """
    with open_regular(path) as file:
        content = _checked_content(file, Path(path).stat().st_size, plain)
    return set(content) if type(content) is dict else set()


def _checked_content(file: BinaryIO, size: int, plain: Sequence[type]) -> Any:
    """The content of a file of torch.save as data, once its claims are known to be right. Raises ValueError."""
    names = {f"{kind.__module__} {kind.__qualname__}" for kind in plain}
    try:
        is_archive = file.read(2) == b"PK"
        file.seek(0)
        return _check_archive(file, size, names) if is_archive else _check_stream(file, size, names)
    except Refused as error:
        raise ValueError(f"{NO_PICKLE}: {error}") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, UnicodeDecodeError, EOFError, struct.error):
        raise ValueError(f"{NO_PICKLE}, or damaged") from None


def _check_archive(file: BinaryIO, size: int, plain: set[str]) -> Any:
    """Checks a ZIP of torch.save, before PyTorch 1.6 and since. Compressed, it could be small and fill the memory."""
    with zipfile.ZipFile(file) as archive:
        lengths = stored_members(archive, size)
        if len(lengths) < len(archive.infolist()):
            raise ValueError("its members are compressed, which torch.save never does")
        pickles = [name for name in lengths if name.endswith("/data.pkl")]
        if len(pickles) != 1 or lengths[pickles[0]] > MAX_PICKLE_BYTES:
            raise ValueError(NO_PICKLE)
        folder = pickles[0].removesuffix("data.pkl")
        content = read_pickle(io.BytesIO(archive.read(pickles[0])), NAMES | plain)
    _check_tensors(content, plain, lambda key: lengths.get(f"{folder}data/{key}", 0))
    return content


def stored_members(archive: zipfile.ZipFile, size: int) -> dict[str, int]:
    """The bytes of each member of a ZIP that is not compressed, where the ZIP itself has `size` bytes.

    Raises ValueError if all members claim more than that, one more than is stored of it, or several one name.
    """
    members = archive.infolist()
    names = {member.filename for member in members}
    if len(names) < len(members) or sum(member.compress_size for member in members) > size:
        raise ValueError("its members overlap")
    stored = {member.filename: member for member in members if member.compress_type == zipfile.ZIP_STORED}
    if any(member.file_size != member.compress_size for member in stored.values()):
        raise ValueError("its members claim more bytes than are stored")
    return {name: member.file_size for name, member in stored.items()}


def _check_stream(file: BinaryIO, size: int, plain: set[str]) -> Any:
    """Checks what torch.save wrote before PyTorch 1.6: pickles one after the other, and then the numbers."""
    # a magic number, a version, the system, and the content
    *_, content = (read_pickle(file, NAMES | plain) for _ in range(4))
    _check_tensors(content, plain, lambda key: size)
    found = [_storage(value) for value in _walk(content) if type(value) is PersistentId]
    storages = {key: count * STORAGES[kind.name] for _, kind, key, _, count in found}
    if sum(storages.values()) > size:
        raise ValueError("its tensors claim more bytes than the file has")
    return content


def _check_tensors(content: Any, plain: set[str], bytes_of: Callable[[str], int]) -> None:
    """Raises ValueError where a storage claims more than its bytes, or a tensor more numbers than its storage."""
    tensors = []
    for found in _walk(content):
        if type(found) is PersistentId:
            _, kind, key, _, count = _storage(found)
            if count * STORAGES[kind.name] > bytes_of(key):
                raise ValueError("a tensor claims more bytes than the file has")
        elif type(found) is Call and found.name == TENSOR:
            tensors.append(found)
        elif type(found) is Call and found.name != PARAMETER and (found.name not in plain or found.args):
            raise ValueError(NO_PICKLE)
    for call in tensors:  # once all storages are known to be right
        storage, _, shape = call.args[:3]
        sizes_are_numbers = type(shape) is tuple and all(type(n) is int and n >= 0 for n in shape)
        if type(storage) is not PersistentId or not sizes_are_numbers or math.prod(shape) > storage.value[4]:
            raise ValueError("a tensor claims more numbers than its storage has")


def _storage(found: PersistentId) -> tuple[str, Global, str, str, int]:
    """A storage as a pickle names it: "storage", the type of its numbers, its name, device and count."""
    match found.value:
        case ("storage", Global(name), str(), str(), int(count), *_) if name in STORAGES and count >= 0:
            return found.value[:5]
    raise ValueError(NO_PICKLE)


def _walk(content: Any) -> Iterator[Any]:
    """All that a pickle holds, each thing once: it may be in itself, or be shared so often that it would never end."""
    pending, seen = [content], set()
    while pending:
        found = pending.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        if type(found) is dict:
            pending += found.values()
        elif type(found) in (list, tuple):
            pending += found
        elif type(found) is Call:
            pending += [*found.args, found.state]
