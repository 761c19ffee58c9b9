"""A cache of decoded images that worker processes share."""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np


class SharedImageCache:
    """Decoded images, uint8 [n, C, H, W], in memory that forked processes share: each image is decoded only once.

    Memory is taken page by page, as images are added. Processes that add the same image at the same time write the same
    bytes.
    """

    def __init__(self, count: int, shape: tuple[int, int, int]):
        memory = np.frombuffer(mmap.mmap(-1, count * (int(np.prod(shape)) + 1)), np.uint8)
        self._is_cached, self._pixels = memory[:count], memory[count:].reshape(count, *shape)

    @staticmethod
    def create(count: int, shape: tuple[int, int, int], max_bytes: int) -> SharedImageCache | None:
        """A cache for `count` images, or None if they take more than `max_bytes` or than the system provides."""
        if count * int(np.prod(shape)) > max_bytes:
            return None
        with suppress(OSError):
            return SharedImageCache(count, shape)
        return None

    def get(self, number: int) -> np.ndarray | None:
        """An image [C, H, W], or None if it was not added yet."""
        return self._pixels[number] if self._is_cached[number] else None

    def put(self, number: int, pixels: np.ndarray) -> None:
        """Adds an image [C, H, W]."""
        self._pixels[number] = pixels
        self._is_cached[number] = 1
