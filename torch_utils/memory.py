"""How much memory is free, how freed memory is kept for the next tensor or given back, and how its end is told."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

# malloc.h of glibc
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8
LIMIT, NEVER = 2**31 - 1, -1

UNKNOWN = 4 << 30  # bytes: taken as free where the system does not tell


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that can be had without swapping and within the limits of a container, a quarter of them left to others.

    `root` is where Linux has its /proc and /sys.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = int(dict(line.split(":") for line in lines)["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # another system than Linux
        return UNKNOWN
    return max(min([free, *_left_in_groups(root)]), 0) * 3 // 4


def _left_in_groups(root: Path) -> Iterator[int]:
    """Bytes that each control group of this process has left, of its own and of all above, of version 1 and 2.

    Files that were read count as used, but those not in use make room when it is needed. In a container the path of
    the own group may be that of the machine outside, where only the topmost is to be seen.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, used, unused = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, unused = "sys/fs/cgroup/memory", "total_inactive_file"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        own = root / top / path.lstrip("/")
        for group in [own, *own.parents][: len(own.relative_to(root / top).parts) + 1]:
            with suppress(OSError, KeyError, ValueError):  # not there, or "max": no limit
                left = int((group / limit).read_text()) - int((group / used).read_text())
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                yield left + int(stat[unused])


def keep_freed_memory() -> bool:
    """Has the C library keep large blocks when tensors are freed, in place of handing each back to the system.

    A block that comes fresh from the system costs a page fault for every 4 KiB when it is first written, which on the
    CPU takes longer than most operations on it. Training allocates the same sizes again and again, so that keeping
    them costs no memory beyond the peak. All threads share what is kept, if they begin after this: arenas of their own
    have 64 MiB at most, and larger blocks would always come fresh. Returns whether it could be asked for (glibc can).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    kept = mallopt(M_MMAP_THRESHOLD, LIMIT) or mallopt(M_MMAP_MAX, 0)
    return bool(kept and mallopt(M_TRIM_THRESHOLD, NEVER) and mallopt(M_ARENA_MAX, 1))


def release_freed_memory() -> None:
    """Hands back what was kept, so that the system counts it as free."""
    with suppress(AttributeError, OSError, TypeError):  # of other C libraries
        ctypes.CDLL(None).malloc_trim(0)


def out_of_memory(error: Exception) -> bool:
    """Whether that is how PyTorch says so: with a class of its own on GPUs, in words on the CPU."""
    words = ("DefaultCPUAllocator", "bad_alloc")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in words)
