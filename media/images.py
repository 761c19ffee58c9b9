"""Images as float and uint8 tensors, in grids, and as PNG files."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from media.alpha import on_chequerboard, straighten
from torch_utils.files import write_file

MAX_THREADS = 8  # threads that generate and write images


def to_float(images: Tensor) -> Tensor:
    """uint8 [N, C, H, W] → float32 in −1..1."""
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float [N, C, H, W] in −1..1 → uint8; values outside are clamped."""
    return (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def grid(images: Tensor, columns: int) -> Tensor:
    """uint8 [N, C, H, W] → one image [C, rows·H, columns·W]. Cells of the grid without an image are white."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    filled = images.new_full([rows * columns, c, h, w], 255)
    filled[:n] = images
    return filled.view(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w)


def encode_png(image: Tensor) -> bytes:
    """The PNG file of an image uint8 [C, H, W]: grey, RGB or premultiplied RGBA."""
    buffer = io.BytesIO()
    to_pillow(image).save(buffer, format="PNG")
    return buffer.getvalue()


def save_png(image: Tensor, path: str | os.PathLike, sync: bool = True) -> None:
    """Writes the PNG of an image as `encode_png` makes it, atomically; `sync` as in `write_file`. Raises DiskFull."""
    write_file(path, encode_png(image), sync)


def to_pillow(image: Tensor) -> Image.Image:
    """uint8 [C, H, W], grey, RGB or premultiplied RGBA, as Pillow's image of mode L, RGB or RGBA. Raises ValueError."""
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3, 4):
        raise ValueError(
            f"expected one image, uint8 [C, H, W] with 1, 3 or 4 channels, got {str(image.dtype)[6:]} "
            f"{list(image.shape)}; to_uint8(images)[0] is the first of images in -1..1"
        )
    array = image.permute(1, 2, 0).cpu().contiguous().numpy()
    if array.shape[2] == 4:
        array = straighten(array)
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def preview_grid(images: Tensor, columns: int) -> Tensor:
    """`grid` of images as they can be shown: transparent ones over a chequerboard."""
    return grid(on_chequerboard(images), columns)


def write_pngs(
    make_images: Callable[[slice], Iterable[Tensor]], paths: Sequence[Path], batch: int, device: torch.device
) -> Iterator[int]:
    """Generates images and writes them as PNG files, without `sync`. Yields the number of images of each finished part.

    `make_images(part)` yields batches of uint8 [N, C, H, W], with one image for each path in `paths[part]`. Each part
    is generated and written by one of several threads, so that encoding and writing overlap with computing. On a CPU,
    the threads divide the `batch` and the cores among them, because small layers gain little from several cores. On a
    GPU, only one thread at a time generates its part, of `batch` images. After an error, files already written remain.

    Raises DiskFull.
    """
    cores = torch.get_num_threads()
    on_cpu = device.type == "cpu"
    threads = min(min(cores, batch) if on_cpu else os.cpu_count() or 1, MAX_THREADS)
    size = -(-batch // threads) if on_cpu else batch
    gpu_lock: AbstractContextManager = nullcontext() if on_cpu else threading.Lock()

    def generate_and_write(part: slice) -> int:
        with gpu_lock:
            images = torch.cat(list(make_images(part)))
        for image, path in zip(images, paths[part], strict=True):
            save_png(image, path, sync=False)
        return len(images)

    torch.set_num_threads(max(cores // threads, 1))  # used by each thread
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(
                generate_and_write, [slice(start, start + size) for start in range(0, len(paths), size)]
            )
    finally:
        torch.set_num_threads(cores)
