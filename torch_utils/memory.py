"""How freed memory is kept for the next tensor."""

from __future__ import annotations

import ctypes

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
