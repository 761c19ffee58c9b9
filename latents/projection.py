"""Projection: finding w or w+ of an image by gradient descent, as in StyleGAN2 (Karras et al. 2020, appendix D).

    w₀ = the nearest of some random w;   w ← Adam on  distance(g(w + noise), target) + α · noise regularization

Every target is optimized independently, with the same random numbers, so that its result is the same in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from latents.perception import Features, distance
from models.sampling import labels_in_turn, random_generator
from networks.generator import Generator

W_COUNT = 10_000  # random w for the mean and the standard deviation
MIN_SIDE = 8  # of the last level of a noise map
CANDIDATE_SIDE = 32  # at which candidates are compared with targets
CANDIDATE_BATCH = 16

Progress = Callable[[int, Tensor, Tensor], bool | None]  # step, loss [N], images [N, C, H, W]; True ends the search


@dataclass(frozen=True)
class ProjectionConfig:
    """The settings of StyleGAN2's appendix D, but with half its 1000 steps and twice its learning rate.

    Starting from the nearest of many random w needs fewer steps than starting from the mean, as the paper does.
    """

    space: Literal["w", "w+"] = "w"  # one w for all layers, or one for each
    steps: int = 500
    lr: float = 0.2  # the maximum of the schedule
    warmup: float = 0.05  # part of the steps in which the learning rate rises
    cooldown: float = 0.25  # part of the steps in which it falls
    exploration: float = 0.05  # noise added to w at the first step, in standard deviations of w
    exploring: float = 0.75  # part of the steps with that noise
    noise: Literal["optimize", "const"] = "optimize"  # whether the noise maps are optimized, if the model has any
    noise_weight: float = 1e5  # α of the noise maps' regularization
    candidates: int = 500  # random w, of which each target starts from the nearest; 0 for the mean w
    starts: int = 1  # number of the nearest candidates to start from; the best result is kept
    seed: int = 0


def learning_rate(step: int, config: ProjectionConfig) -> float:
    """The learning rate of a step: it rises linearly, stays, and falls to 0 along a cosine."""
    up = min((step + 1) / max(config.warmup * config.steps, 1), 1)
    down = min((config.steps - step) / max(config.cooldown * config.steps, 1), 1)
    return config.lr * up * (0.5 - 0.5 * math.cos(math.pi * down))


def exploration(step: int, config: ProjectionConfig) -> float:
    """The noise added to w at a step, in standard deviations of w: 0.05 t², where t falls from 1 to 0."""
    t = max(1 - step / (config.exploring * config.steps), 0) if config.exploring else 0
    return config.exploration * t**2


def noise_regularization(noise: Sequence[Tensor]) -> Tensor:
    """Σ ((mean n(x, y) n(x − 1, y))² + (mean n(x, y) n(x, y − 1))²) over all maps n [N, 1, H, W] and scales → [N].

    The paper's regularization L: a noise map that depicts the image correlates with itself at an offset of one pixel.
    Each scale has half the sides of the one before, until the shorter one is below 16: the sum of 2 × 2 pixels divided
    by 2, which keeps the variance of independent pixels. Maps wrap around at their borders.
    """
    total = torch.zeros(len(noise[0]), device=noise[0].device)
    for n in noise:
        while True:
            for dim in (2, 3):
                total = total + (n * n.roll(1, dim)).mean(dim=(1, 2, 3)).square()
            if min(n.shape[2:]) < 2 * MIN_SIDE:
                break
            n = F.avg_pool2d(n, 2) * 2
    return total


@torch.no_grad()
def normalize_noise(noise: Sequence[Tensor]) -> None:
    """Gives every map [N, 1, H, W] a mean of 0 and a variance of 1."""
    for n in noise:
        n -= n.mean(dim=(2, 3), keepdim=True)
        n *= n.square().mean(dim=(2, 3), keepdim=True).rsqrt()


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """10 log₁₀(range² / MSE) [N] in dB, of images in −1..1, at most 100. Values beyond are clamped, as in files."""
    error = (images.clamp(-1, 1) - targets).square().mean(dim=(1, 2, 3))
    return 10 * (4 / error.clamp(min=4e-10)).log10()


@dataclass(frozen=True)
class Projection:
    """The results for N targets, on the generator's device."""

    ws: Tensor  # [N, num_ws, w_dim]
    noise: list[Tensor] | None  # [N, 1, H, W] for each layer; None for the model's constant noise
    images: Tensor  # [N, C, H, W], generated from them
    distance: Tensor  # [N], to the targets


@torch.no_grad()
def random_ws(G: Generator, count: int, seed: int, label: Tensor | None = None) -> Tensor:
    """w [count, w_dim] of random z, of one label c [c_dim] or of all labels in turn."""
    z = torch.randn(count, G.config.z_dim, generator=random_generator(seed))
    c = labels_in_turn(G, range(count)) if label is None else label.expand(count, -1)
    return G.mapping(z.to(G.w_avg.device), c.to(G.w_avg.device))


@torch.no_grad()
def nearest(G: Generator, candidates: Tensor, targets: Tensor, count: int) -> Tensor:
    """The `count` candidates of [K, w_dim] whose images are nearest to each target → [N, count, w_dim].

    Pixels are compared at 32 × 32 at most, where large shapes matter and the exact positions of edges do not.
    """

    def reduced(images: Tensor) -> Tensor:
        height, width = (min(side, CANDIDATE_SIDE) for side in images.shape[2:])
        return F.adaptive_avg_pool2d(images, (height, width)).flatten(1)

    ws = candidates[:, None].expand(-1, G.config.num_ws, -1)
    images = torch.cat([reduced(G.synthesis(part, "const")) for part in ws.split(CANDIDATE_BATCH)])
    return candidates[torch.cdist(reduced(targets), images).topk(count, largest=False).indices]


def project(
    G: Generator,
    targets: Tensor,
    features: Features,
    config: ProjectionConfig,
    label: Tensor | None = None,
    progress: Progress | None = None,
) -> Projection:
    """Finds w or w+ of images [N, C, H, W] in −1..1, on the device of the generator.

    After each step, `progress` is called with the loss and the image of each target's best start. If it returns True,
    the search ends, and the result is what it has found so far.
    """
    n, starts, num_ws = len(targets), config.starts, G.config.num_ws
    w, sigma = initial_w(G, targets, config, label)
    noise = None
    if config.noise == "optimize" and G.config.noise:  # the model's maps are random, and as good a start as others
        noise = [
            cast(Tensor, layer.noise_const).repeat(len(w), 1, 1, 1).requires_grad_() for layer in G.synthesis.layers()
        ]
    wanted = [f.repeat_interleave(starts, dim=0) for f in features(targets)]
    first = torch.arange(n, device=targets.device) * starts
    optimizer = torch.optim.Adam([w, *(noise or [])], lr=config.lr)
    generator = random_generator(config.seed)

    def best(loss: Tensor) -> Tensor:
        return first + loss.view(n, starts).argmin(dim=1)

    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, config)
        added = torch.randn(1, *w.shape[1:], generator=generator).to(w.device) * (sigma * exploration(step, config))
        images = G.synthesis((w + added).expand(-1, num_ws, -1), noise or "const")
        loss = distance(features(images), wanted)
        if noise:
            loss = loss + config.noise_weight * noise_regularization(noise)
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()
        optimizer.step()
        if noise:
            normalize_noise(noise)
        if progress:
            loss = loss.detach()
            if progress(step, loss[best(loss)], images.detach()[best(loss)]):
                break

    with torch.no_grad():
        ws = w.expand(-1, num_ws, -1)
        images = G.synthesis(ws, noise or "const")
        loss = distance(features(images), wanted)
        chosen = best(loss)
        return Projection(ws[chosen], noise and [maps.detach()[chosen] for maps in noise], images[chosen], loss[chosen])


def initial_w(G: Generator, targets: Tensor, config: ProjectionConfig, label: Tensor | None) -> tuple[Tensor, Tensor]:
    """The w that the search starts from, [N · starts, 1 or num_ws, w_dim], and the standard deviation of w, []."""
    random = random_ws(G, W_COUNT, config.seed, label)
    mean = random.mean(dim=0)
    sigma = (random - mean).square().sum(dim=1).mean().sqrt()
    if config.candidates:
        w = nearest(G, random[: config.candidates], targets, config.starts).flatten(0, 1)
    else:
        w = mean.expand(len(targets), -1)
    return w[:, None].repeat(1, G.config.num_ws if config.space == "w+" else 1, 1).requires_grad_(), sigma
