"""Turns the CUDA sources into C++ for cuda.h here, with the line numbers of the original."""

from __future__ import annotations

import re
import shutil
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "torch_utils" / "ops" / "csrc"
FILES = sorted(path.name for path in SOURCES.glob("*.cu*"))


def loop_number(file: str, line: int) -> int:
    """By which the emulated kernels count the trips of the loop that begins on a line, from 1 on."""
    return 1000 * FILES.index(file) + line


def count_trips(text: str, file: str) -> str:
    """Has every loop that is not unrolled count how often its body is run."""
    lines = text.split("\n")
    for number, (before, line) in enumerate(pairwise(lines), start=2):
        if before.strip() == "#pragma unroll":
            continue
        trip = f"emulated::trip({loop_number(file, number)})"
        line = re.sub(r"^( *for \([^;]*; )([^;]+)(;.*)$", rf"\1(\2) && {trip}\3", line)
        lines[number - 1] = re.sub(r"^( *while \()([^()]+)(\) \{)$", rf"\1(\2) && {trip}\3", line)
    return "\n".join(lines)


def rewrite(text: str) -> str:
    """Launches, shared memory, results that begin as NaN, and registration as the CPU's ops, run in all orders."""
    text = re.sub(r"#include <c10/cuda/\w+\.h>", '#include "cuda.h"', text)
    text = re.sub(r"(\w+)<<<(.*?)>>>\((.*?)\);", r"emulated::launch(\1, \2, \3);", text, flags=re.DOTALL)
    text = re.sub(
        r"extern __shared__ (?:__align__\(\d+\) )?char (\w+)\[\];", r"char* \1 = emulated::launched_shared();", text
    )
    text = re.sub(
        r"__shared__ (?:__align__\(\d+\) )?([\w:<>]+) (\w+)((?:\[[^\]]+\])+);",
        r"auto& \2 = emulated::shared_array<\1\3>(__LINE__);",
        text,
    )
    text = text.replace("at::empty(", "emulated::empty(")
    text = re.sub(r"TORCH_LIBRARY_IMPL\((\w+), CUDA,", r"TORCH_LIBRARY_IMPL(\1, CPU,", text)
    return re.sub(r'm\.impl\("(\w+)", &(\w+)\)', r'm.impl("\1", &emulated::InAllOrders<&\2>::call)', text)


def write_sources(folder: Path, edits: dict[str, list[tuple[str, str]]] | None = None) -> list[str]:
    """Writes all that the emulated kernels are built from to a folder, and gives the names of what is to be compiled.

    Args:
        edits: file → (old, new) texts to exchange in it before; the bugs of bugs.py.

    Raises:
        ValueError: if an old text is not in its file exactly once, as after a change of the kernels.
    """
    names = []
    for path in [*SOURCES.glob("*.cu"), *SOURCES.glob("*.cuh"), SOURCES / "common.h"]:
        text = path.read_text()
        for old, new in (edits or {}).get(path.name, []):
            if text.count(old) != 1:
                raise ValueError(
                    f"{path.name}: {old!r} is there {text.count(old)} times; adjust tests/emulation/bugs.py"
                )
            text = text.replace(old, new)
        cuda = path.suffix in (".cu", ".cuh")
        name = path.name + ".cpp" if path.suffix == ".cu" else path.name
        (folder / name).write_text(f'#line 1 "{path.name}"\n{rewrite(count_trips(text, path.name))}' if cuda else text)
        if path.suffix == ".cu":
            names.append(name)
    for header in HERE.glob("*.h"):
        shutil.copy(header, folder)
    return sorted(names)
