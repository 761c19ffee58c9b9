"""Sliced Wasserstein distance: how far the local structure of two sets of images lies apart.

Karras, Aila, Laine, Lehtinen: "Progressive Growing of GANs for Improved Quality, Stability, and Variation",
ICLR 2018, section 5. Every image is split into a Laplacian pyramid; small patches of every level are
normalized per channel and set, and the two clouds of patches are compared along random directions. Several processes
share a set: each cuts and projects the patches of the images that it has, and only counts are exchanged.

The normalization makes it blind to a change of the brightness or contrast of a whole set; it sees edges,
textures and the relations between colours. For two samples of one source it is not 0, and falls as they grow:
compare distances at equal numbers of images only.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
import torch.nn.functional as F

from torch_utils import distributed

PATCH = 7  # side of a patch, in pixels
PATCHES = 128  # patches per image and level
DIRECTIONS = 4 * 128  # the paper's 4 repeats of 128 directions: their mean is the mean over all 512
SMALLEST = 16  # shorter side of the last level

# How much is computed at a time. It bounds the memory for intermediate results, and small blocks are faster: up to
# 32 MiB the allocator can reuse memory that the system would otherwise clear first, which takes longer than the
# arithmetic.
BLOCK_VALUES = 1 << 22
BLOCK_PATCHES = 1 << 16
BLOCK_DIRECTIONS = 64

# The bits of a float16, read as an integer, ascend with its magnitude; inverted where the sign is set, they ascend with
# its value. Every finite float16 has such a code; VALUES lists the float16 in ascending order.
LARGEST = 0x7C00  # the finite values have the codes −LARGEST … LARGEST − 1
CODES = torch.arange(-LARGEST, LARGEST, dtype=torch.int16)
VALUES = (CODES ^ (CODES >> 15 & 0x7FFF)).view(torch.float16)


def smooth(x: torch.Tensor) -> torch.Tensor:
    """Filters `x [N, C, H, W]` with the 5×5 binomial kernel [1, 4, 6, 4, 1]/16 ⊗ itself, borders mirrored.

    Plain sums of shifted images: an image's result does not depend on the others in its batch.
    """
    height, width = x.shape[2:]
    x = F.pad(x, (2, 2, 2, 2), mode="reflect")
    x = (x[:, :, :height] + x[:, :, 4:] + 4 * (x[:, :, 1:-3] + x[:, :, 3:-1]) + 6 * x[:, :, 2:-2]) / 16
    return (x[..., :width] + x[..., 4:] + 4 * (x[..., 1:-3] + x[..., 3:-1]) + 6 * x[..., 2:-2]) / 16


def downsample(x: torch.Tensor) -> torch.Tensor:
    """Halves `x [N, C, H, W]`: smooths it and keeps every second row and column."""
    return smooth(x)[:, :, ::2, ::2]


def upsample(x: torch.Tensor) -> torch.Tensor:
    """Doubles `x [N, C, H, W]`: puts zeros in between, smooths, and compensates for the zeros (×4)."""
    n, c, height, width = x.shape
    spread = x.new_zeros(n, c, 2 * height, 2 * width)
    spread[:, :, ::2, ::2] = x
    return 4 * smooth(spread)


def laplacian_pyramid(x: torch.Tensor) -> list[torch.Tensor]:
    """Splits `x [N, C, H, W]` into bands of detail, the finest first (Burt and Adelson 1983).

    Level l is gₗ − upsample(gₗ₊₁) with g₀ = x and gₗ₊₁ = downsample(gₗ); the last one, of 16 to 31 pixels, is g itself.
    So `level + upsample(coarser)`, from the last level up, gives `x` back. It ends earlier at an odd size;
    an image whose shorter side is below 32 is the only level.
    """
    levels = []
    while min(x.shape[2:]) >= 2 * SMALLEST and x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0:
        coarser = downsample(x)
        levels.append(x - upsample(coarser))
        x = coarser
    return [*levels, x]


def cut_patches(x: torch.Tensor, rng: np.random.Generator, skip: int = 0) -> torch.Tensor:
    """Cuts 128 random 7×7 patches from each of `x [N, C, H, W]`: [N·128, C, 7, 7].

    The positions are drawn image by image, so that batches of any size give the same patches. Those of `skip` images
    before these are drawn as well and dropped: how many random numbers a position takes is not known before.
    """
    n, _, height, width = x.shape
    corners = rng.integers(0, (height - PATCH + 1, width - PATCH + 1), size=(skip + n, PATCHES, 2))[skip:]
    top, left = torch.from_numpy(corners).to(x.device).unbind(-1)
    windows = x.unfold(2, PATCH, 1).unfold(3, PATCH, 1)
    return windows[torch.arange(n, device=x.device)[:, None], :, top, left].flatten(0, 1)


def random_directions(size: int, rng: np.random.Generator) -> torch.Tensor:
    """Draws 512 directions, uniform on the unit sphere of `size` dimensions: float64 [512, size]."""
    directions = torch.from_numpy(rng.standard_normal((DIRECTIONS, size)))
    return directions / directions.norm(dim=1, keepdim=True)


def set_statistics(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel over the `patches` of all processes: float64 [C] each.

    `patches`, float16 [P, C, 7, 7], are those of this process. The sums are taken of counts of their values, and
    rounded once: they do not depend on which process has which patches.
    """
    own = np.zeros((patches.shape[1], len(VALUES)), dtype=np.int64)
    for block in patches.split(BLOCK_PATCHES // 4):
        count_values(block.transpose(0, 1).flatten(1), own)
    counts, values = distributed.total(torch.from_numpy(own)).numpy(), VALUES.double().numpy()
    sums = [[math.fsum((row * values**power).tolist()) for row in counts] for power in (1, 2)]
    mean, square = torch.tensor(sums, dtype=torch.float64) / int(counts[0].sum())
    return mean, (square - mean.square()).clamp(min=0).sqrt()


def count_values(x: torch.Tensor, counts: np.ndarray) -> None:
    """Rounds `x [rows, n]` to float16 and adds to `counts [rows, len(VALUES)]` how often each value occurs.

    This sorts a row in one pass: many times faster than comparing values, and the result does not grow with n. The
    rounding (relative error ≤ 2⁻¹¹) goes up as often as down.
    """
    bits = x.half().view(torch.int16)
    codes = (bits ^ (bits >> 15 & 0x7FFF)).cpu().numpy().view(np.uint16) ^ 0x8000  # from 0: −32768 … 32767
    for row, total in zip(codes, counts, strict=True):
        total += np.bincount(row, minlength=0x10000)[0x8000 - LARGEST : 0x8000 + LARGEST]


def project_patches(patches: torch.Tensor, rng: np.random.Generator, device: torch.device | str) -> torch.Tensor:
    """Normalizes `patches`, float16 [P, C, 7, 7], projects them on 512 random directions and sorts the projections.

    Returns int32 [512, len(VALUES)] on the CPU: for each direction, how many patches fall on each of `VALUES`. The
    directions include the normalization: d·((p − μ)/σ) = (d/σ)·p − (d/σ)·μ, with μ and σ of the channel over the
    patches of all processes, each of which has to call this with its own. A channel that never changes has σ = 0 and
    counts as 0.
    """
    mean, std = set_statistics(patches)
    directions = random_directions(math.prod(patches.shape[1:]), rng).unflatten(1, patches.shape[1:])
    directions = directions / std.where(std > 0, 1)[:, None, None]
    offsets = -(directions * mean[:, None, None]).sum(dim=(1, 2, 3))[:, None].float().to(device)
    directions = directions.flatten(1).float().to(device)

    counts = np.zeros((DIRECTIONS, len(VALUES)), dtype=np.int32)
    for block in patches.split(BLOCK_PATCHES):
        count = len(block)
        block = block.to(device).float().flatten(1)
        if block.is_cuda:  # where products of another shape may be summed in another order: give all of them one
            block = F.pad(block, (0, 0, 0, BLOCK_PATCHES - count))
        for first in range(0, DIRECTIONS, BLOCK_DIRECTIONS):
            chosen = slice(first, first + BLOCK_DIRECTIONS)
            projections = torch.addmm(offsets[chosen], directions[chosen], block.T)
            count_values(projections[:, :count], counts[chosen])
    return torch.from_numpy(counts)


class PatchDescriptors:
    """Collects the patches of the first `count` images of a set, batch by batch, and projects them.

    Make one in every process: each takes the images that it has. Patches are kept as float16 on the CPU:
    `count`·128·C·49·2 bytes per level for all processes together; for 8192 colour images that is 0.3 GB, at 1024²
    (7 levels) 2.2 GB. `finish` frees it; its result takes 0.13 GB per level for any count. The arithmetic runs on
    `device`. Two sets to be compared need the same `seed`.
    """

    def __init__(self, count: int, *, seed: int = 0, device: torch.device | str = "cpu"):
        self.count = count
        self.seed = seed
        self.device = device
        self.images = 0  # seen so far, in this process
        self.next = 0  # number of the image in the set that follows on them
        self.shape: tuple[int, ...] = ()  # [C, H, W]
        self.patches: dict[int, torch.Tensor] = {}  # by the level's shorter side: [count·128, C, 7, 7]
        self.positions: dict[int, np.random.Generator] = {}

    @torch.no_grad()
    def add(self, images: torch.Tensor, first: int | None = None) -> None:
        """Takes the images uint8 [N, C, H, W]; those beyond `count` are left out.

        `first` is the number of their first in the set, on which the positions of their patches depend: by default,
        they follow on the images before. Raises ValueError for images of another kind, and for a lower number.
        """
        first = self.next if first is None else first
        shape = tuple(images.shape[1:])
        if images.dtype != torch.uint8 or len(shape) != 3 or min(shape[1:]) < PATCH:
            raise ValueError(
                f"expected uint8 images [N, C, H, W] of {PATCH}×{PATCH} or more, "
                f"got {images.dtype} {list(images.shape)}"
            )
        if shape != (self.shape or shape):
            raise ValueError(f"images {list(shape)} after images {list(self.shape)} in one set")
        if first < self.next:
            raise ValueError(f"image {first} after image {self.next - 1}: positions are drawn in the order of the set")
        self.shape = shape
        block_size = max(1, BLOCK_VALUES // math.prod(shape))
        images = images[: max(0, self.count - first)]
        for start in range(0, len(images), block_size):
            block = images[start : start + block_size]
            for level in laplacian_pyramid(block.to(self.device).float()):
                self._keep(level, first + start - self.next)
            self.images += len(block)
            self.next = first + start + len(block)

    def _keep(self, level: torch.Tensor, skip: int) -> None:
        size = min(level.shape[2:])
        if size not in self.patches:
            # Pages that are never written take no memory: each process has those of its own images.
            self.patches[size] = torch.empty(self.count * PATCHES, level.shape[1], PATCH, PATCH, dtype=torch.float16)
            self.positions[size] = np.random.default_rng([self.seed, size, 0])
        patches = cut_patches(level, self.positions[size], skip)
        first = self.images * PATCHES
        self.patches[size][first : first + len(patches)] = patches

    @torch.no_grad()
    def finish(self) -> dict[int, torch.Tensor]:
        """Returns the result of `project_patches` for every level, by its shorter side, and frees the patches.

        That is of the images of all processes, in rank 0, which must have some of them if any has; {} in the others.
        """
        projected = {}
        sizes, shape = distributed.on_rank_0(lambda: (list(self.patches), self.shape))
        for size in sizes:
            none = torch.empty(0, shape[0], PATCH, PATCH, dtype=torch.float16)  # in a process without images
            patches = self.patches.pop(size, none)[: self.images * PATCHES]
            rng = np.random.default_rng([self.seed, size, 1])
            counts = distributed.total_on_rank_0(project_patches(patches, rng, self.device))
            if counts is not None:
                projected[size] = counts
        return projected


def packed(projected: dict[int, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The result of `PatchDescriptors.finish`, compressed for a file to about a tenth: most of it are zeros."""
    return {
        str(size): torch.frombuffer(bytearray(zlib.compress(counts.numpy().tobytes(), 1)), dtype=torch.uint8)
        for size, counts in projected.items()
    }


def unpacked(tensors: dict[str, torch.Tensor]) -> dict[int, torch.Tensor]:
    """The inverse of `packed`, the finest level first."""
    return {
        size: torch.frombuffer(bytearray(zlib.decompress(tensors[str(size)].numpy().data)), dtype=torch.int32).view(
            -1, len(VALUES)
        )
        for size in sorted(map(int, tensors), reverse=True)
    }


def wasserstein(real: torch.Tensor, fake: torch.Tensor) -> float:
    """Mean over the rows of the Wasserstein-1 distance of two distributions over `VALUES`.

    `real` and `fake` are counts [directions, len(VALUES)]. W₁ = ∫ |F(v) − G(v)| dv, with F and G the
    cumulative distributions. For sets of one size this is the mean absolute difference of the sorted values.
    """
    gaps = VALUES.double().diff()
    total = 0.0
    for rows in zip(real.split(BLOCK_DIRECTIONS // 2), fake.split(BLOCK_DIRECTIONS // 2), strict=True):
        f, g = (row.cumsum(1, dtype=torch.float64) for row in rows)
        difference = f / f[:, -1:] - g / g[:, -1:]
        total += (difference[:, :-1].abs() @ gaps).sum().item()
    return total / len(real)


def sliced_wasserstein(real: dict[int, torch.Tensor], fake: dict[int, torch.Tensor]) -> dict[str, float]:
    """Compares two sets, each from `PatchDescriptors.finish`.

    Returns 1000 × the distance per level as `swd_<shorter side>`, and the mean of the levels, first, as `swd`.
    """
    if real.keys() != fake.keys():
        raise ValueError(f"levels {list(real)} against {list(fake)}: the images differ in size")
    distances = {f"swd_{size}": 1000 * wasserstein(real[size], fake[size]) for size in real}
    return {"swd": sum(distances.values()) / len(distances), **distances}
