"""Pictures as tensors, bytes and PNG files."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from PIL import Image
from torch import Tensor

from torch_utils.files import write_file


def to_float(images: Tensor) -> Tensor:
    """uint8 [N, C, H, W] → float32 in −1..1."""
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float [N, C, H, W] in −1..1 → uint8; what lies outside is cut off."""
    return (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def grid(images: Tensor, columns: int) -> Tensor:
    """uint8 [N, C, H, W] → one picture [C, rows·H, columns·W]; places without a picture are white."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    filled = images.new_full([rows * columns, c, h, w], 255)
    filled[:n] = images
    return filled.view(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w)


def save_png(image: Tensor, path: str | os.PathLike, sync: bool = True) -> None:
    """Writes uint8 [C, H, W], C = 1 or 3, as a PNG that is whole or not there; `sync` as in `write_file`.

    Raises DiskFull.
    """
    array = image.permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(buffer, format="PNG")
    write_file(path, buffer.getbuffer(), sync)


@contextmanager
def png_writers(threads: int = 1, waiting: int = 256) -> Iterator[Callable[[Tensor, str | os.PathLike], None]]:
    """Gives a `save_png` that returns at once: threads encode and write meanwhile, without `sync`.

    At most so many pictures are `waiting`, so that memory does not grow; at the end of the block all are written. An
    error comes from a later call, or at the end.
    """
    futures: deque[Future] = deque()
    with ThreadPoolExecutor(threads) as pool:

        def save(image: Tensor, path: str | os.PathLike) -> None:
            while futures and (futures[0].done() or len(futures) >= waiting):
                futures.popleft().result()
            futures.append(pool.submit(save_png, image, path, sync=False))

        try:
            yield save
            while futures:
                futures.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, the others are not waited for
