"""How freed memory is kept for the next tensor, given back, and how its end is told."""

from __future__ import annotations

import ctypes
from contextlib import suppress

import torch

# malloc.h of glibc
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
LIMIT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Has the C library keep large blocks when tensors are freed, in place of handing each back to the system.

    A block that comes fresh from the system costs a page fault for every 4 KiB when it is first written, which on the
    CPU takes longer than most operations on it. Training allocates the same sizes again and again, so that keeping
    them costs no memory beyond the peak. Returns whether it could be asked for (glibc can).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    kept = mallopt(M_MMAP_THRESHOLD, LIMIT) or mallopt(M_MMAP_MAX, 0)
    return bool(kept and mallopt(M_TRIM_THRESHOLD, LIMIT))


def release_freed_memory() -> None:
    """Hands back what was kept, so that the system counts it as free."""
    with suppress(AttributeError, OSError, TypeError):  # of other C libraries
        ctypes.CDLL(None).malloc_trim(0)


def out_of_memory(error: Exception) -> bool:
    """Whether that is how PyTorch says so: with a class of its own on GPUs, in words on the CPU."""
    words = ("DefaultCPUAllocator", "bad_alloc")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in words)
