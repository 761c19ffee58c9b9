"""Memory: how much is free, whether the allocator keeps freed blocks, and how to recognize that it ran out."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

# malloc.h of glibc
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8
LARGEST, NEVER = 2**31 - 1, -1  # values for mallopt

DEFAULT_FREE = 4 << 30  # bytes that are assumed to be free where the system does not say


def free_memory(root: Path = Path("/")) -> int:
    """Three quarters of the bytes that can be allocated without swapping, within the limits of a container.

    The last quarter is left to other processes. `root` is the folder that holds Linux's /proc and /sys.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = int(dict(line.split(":") for line in lines)["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        return DEFAULT_FREE
    return max(min([free, *_left_in_control_groups(root)]), 0) * 3 // 4


def _left_in_control_groups(root: Path) -> Iterator[int]:
    """Yields the bytes left in each control group of this process and in their parents, of versions 1 and 2.

    Linux counts cached files as used memory, but frees those that are not in use when memory is needed: they count as
    left. Within a container, /proc may give a group's path on the host, of which only the topmost group is visible.
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
            with suppress(OSError, KeyError, ValueError):  # no such file, or "max": there is no limit
                left = int((group / limit).read_text()) - int((group / used).read_text())
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                yield left + int(stat[unused])


def keep_freed_memory() -> bool:
    """Makes the C library keep the large blocks of freed tensors, instead of returning each to the system.

    A new block costs a page fault for every 4 KiB that is first written, which on the CPU takes longer than most
    operations on it. Training allocates the same sizes again and again, so that keeping blocks does not raise the peak.
    Threads that start later share the kept blocks: arenas of their own would hold no block over 64 MiB.
    Returns whether the C library supports this, as glibc does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    no_mmap = mallopt(M_MMAP_THRESHOLD, LARGEST) or mallopt(M_MMAP_MAX, 0)
    return bool(no_mmap and mallopt(M_TRIM_THRESHOLD, NEVER) and mallopt(M_ARENA_MAX, 1))


def release_freed_memory() -> None:
    """Returns the freed blocks that the C library kept to the system."""
    with suppress(AttributeError, OSError, TypeError):  # C libraries other than glibc
        ctypes.CDLL(None).malloc_trim(0)


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out. PyTorch has an exception for GPUs, but for the CPU only a message."""
    words = ("DefaultCPUAllocator", "bad_alloc")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in words)
