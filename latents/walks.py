"""Walks through latents: paths that pass through every key, and return to the first one or end at the last."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from latents.mixing import Part, generate_mix
from media.images import grid, to_uint8
from networks.generator import Generator, Noise

Space = Literal["w", "z"]
Interpolation = Literal["linear", "slerp", "spline"]
INTERPOLATIONS: tuple[Interpolation, ...] = ("spline", "slerp", "linear")

# positions [N] → points [N, …, D]; the position i is at the key i, modulo the number of keys
Walk = Callable[[Tensor], Tensor]


def closed_walk(keys: Tensor, interpolation: Interpolation, origin: Tensor | float = 0.0) -> Walk:
    """The walk through keys [K, …, D] and back to the first one.

    "linear" is straight between keys. "slerp" follows arcs around the `origin` and keeps the distance to it (Shoemake
    1985), which suits z; for ws [K, num_ws, D] in each layer by itself. "spline" is the periodic cubic spline, whose
    velocity is smooth.
    """
    if interpolation == "spline":
        return _spline(keys)
    between = torch.lerp if interpolation == "linear" else slerp

    def walk(positions: Tensor) -> Tensor:
        start, t = _split(positions, keys)
        a, b = keys[start] - origin, keys[(start + 1) % len(keys)] - origin
        return origin + between(a, b, t)

    return walk


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """The point at the part t [N, …, 1] of the arc from a to b, [N, …, D] each. The length is interpolated linearly."""
    length_a, length_b = (x.norm(dim=-1, keepdim=True).clamp_min(1e-12) for x in (a, b))
    u, v = a / length_a, b / length_b
    angle = torch.atan2((u - v).norm(dim=-1, keepdim=True), (u + v).norm(dim=-1, keepdim=True)) * 2
    sine = angle.sin()
    arc = (((1 - t) * angle).sin() * u + (t * angle).sin() * v) / sine
    arc = torch.where(sine > 1e-4, arc, torch.lerp(u, v, t))  # for equal or opposite directions there is no single arc
    return arc * torch.lerp(length_a, length_b, t)


def _spline(keys: Tensor) -> Walk:
    """The cubic spline with m_{i−1} + 4 m_i + m_{i+1} = 6 (p_{i−1} − 2 p_i + p_{i+1}), m the second derivatives."""
    if not keys.numel():
        return lambda positions: keys.new_zeros(len(positions), *keys.shape[1:])
    points = keys.double().flatten(1)
    right = 6 * (points.roll(1, 0) - 2 * points + points.roll(-1, 0))
    # The system is periodic, that is, a circular convolution; the Fourier transform inverts it for any number of keys.
    angles = torch.arange(len(keys), dtype=torch.float64, device=keys.device) * (2 * math.pi / len(keys))
    factors = 4 + 2 * angles.cos()[:, None]
    bends = torch.fft.ifft(torch.fft.fft(right, dim=0) / factors, dim=0).real.to(keys).view_as(keys)

    def walk(positions: Tensor) -> Tensor:
        start, t = _split(positions, keys)
        end = (start + 1) % len(keys)
        a, b, s = keys[start], keys[end], 1 - t
        return s * a + t * b + ((s**3 - s) * bends[start] + (t**3 - t) * bends[end]) / 6

    return walk


def class_walk(c: Tensor) -> Walk:
    """The walk through classes c [K, c_dim] that is smooth and stays between the classes of each pair of keys.

    It is the monotone cubic interpolation of one-hot c (Fritsch and Carlson 1980), whose velocity is zero at the keys.
    A cubic spline would overshoot: it passes through negative shares of a class, for which no model is trained.
    """

    def walk(positions: Tensor) -> Tensor:
        start, t = _split(positions, c)
        return torch.lerp(c[start], c[(start + 1) % len(c)], t**2 * (3 - 2 * t))

    return walk


def _split(positions: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """The key before each position, and the part [N, …, 1] of the way from there to the next key."""
    whole = positions.floor()
    return whole.long().to(keys.device) % len(keys), (positions - whole).view(-1, *[1] * (keys.ndim - 1)).to(keys)


def there_and_back(keys: Tensor) -> Tensor:
    """The keys [K, …] and then those between the ends in reverse, [2 K − 2, …]: half a round is a walk to the last one.

    A spline through them comes to rest at both ends, as it is symmetric about them.
    """
    return torch.cat([keys, keys[1:-1].flip(0)])


def w_walk(G: Generator, z: Tensor, c: Tensor, space: Space, interpolation: Interpolation) -> Walk:
    """The walk of w [N, w_dim], before truncation, through the latents of z [K, z_dim] and c [K, c_dim], in w or in z.

    In w, slerp turns around the mean w. In z, the class is interpolated as well: smoothly for a spline, else linearly.
    """
    if space == "w":
        return closed_walk(G.mapping(z, c), interpolation, G.w_avg)
    walk_z = closed_walk(z, interpolation)
    walk_c = class_walk(c) if interpolation == "spline" else closed_walk(c, "linear")
    return lambda positions: G.mapping(walk_z(positions), walk_c(positions))


@torch.no_grad()
def frames(
    G: Generator,
    walk: Walk,
    count: int,
    keys: int,
    *,
    cells: tuple[int, int] = (1, 1),
    psi: float | Tensor = 1.0,
    layers: Sequence[int],
    part: Part = "all",
    noise: Noise = "const",
    batch: int = 16,
    scale: int = 1,
    centers: Tensor | None = None,
    half: bool = False,
) -> Iterator[Tensor]:
    """Yields `count` frames of one round of a walk with so many keys, uint8 [C, rows · H · scale, columns · W · scale].

    C is 4 for a model of transparent images, and 3 for others. The walk gives w [N, w_dim] or ws [N, num_ws, w_dim].

    `cells` are the columns and rows of a grid; each cell starts one key later than the cell before. Only the `part` of
    the `layers` follows the walk; all else stays as it is at the cell's start. Truncation is towards w_avg, or towards
    the `centers` [keys, w_dim], between which it passes as the walk does. Noise maps [keys, 1, H, W] for each layer
    pass along arcs, which keep their variance, in those layers of which all follows the walk. The frame after the last
    would be the first again; with `half` a round, as for `there_and_back`, the last one is in the middle of it.
    """
    columns, rows = cells
    center = (lambda positions: None) if centers is None else class_walk(centers)
    maps = noise_walk(noise, layers if part == "all" else [])
    starts = torch.arange(columns * rows, dtype=torch.float64)
    still = G.truncated(walk(starts), psi, center(starts))
    step = keys / 2 / max(count - 1, 1) if half else keys / count
    for first in range(0, count, some_frames := max(batch // len(starts), 1)):
        numbers = torch.arange(first, min(first + some_frames, count), dtype=torch.float64)
        positions = (numbers[:, None] * step + starts).flatten()
        images = []
        for some in torch.arange(len(positions)).split(batch):
            ws = G.truncated(walk(positions[some]), psi, center(positions[some]))
            own, cell = still[some.to(still.device) % len(starts)], starts[some % len(starts)]
            images.append(to_uint8(generate_mix(G, own, ws, layers, part, maps(cell, positions[some]))).cpu())
        for cells_of_frame in torch.cat(images).split(len(starts)):
            frame = grid(cells_of_frame, columns)
            frame = frame if len(frame) == 4 else frame.expand(3, -1, -1)
            yield frame.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)


def noise_walk(noise: Noise, layers: Sequence[int]) -> Callable[[Tensor, Tensor], Noise]:
    """Gives the noise for starts [N] and positions [N]: the maps at the positions in the layers, else at the starts."""
    if isinstance(noise, str):
        return lambda starts, positions: noise
    walks = [closed_walk(maps.flatten(1), "slerp") for maps in noise]

    def at(starts: Tensor, positions: Tensor) -> list[Tensor]:
        places = [positions if i in layers else starts for i in range(len(walks))]
        found = [walk(place) for walk, place in zip(walks, places, strict=True)]
        return [each.view(-1, *maps.shape[1:]) for each, maps in zip(found, noise, strict=True)]

    return at
