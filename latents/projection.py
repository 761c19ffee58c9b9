"""Finding the code of an image: w or w+ by gradient descent, as in StyleGAN2 (Karras et al. 2020, appendix D).

    w₀ = the nearest of some random w;   w ← Adam on  distance(g(w + noise), target) + α · noise regularization

Every target is optimized on its own, with the same random numbers, and so has the same result in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from latents.perception import Features, distance
from models.sampling import one_hot, random_generator
from networks.generator import Generator

STATISTICS = 10_000  # random codes, for their mean and deviation
SMALLEST = 8  # side of the last level of a noise map
COARSE = 32  # side at which candidates are compared
AT_A_TIME = 16  # candidates

Progress = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class ProjectionConfig:
    """How codes are looked for: as in StyleGAN2's appendix D, but in half its 1000 steps at twice its learning rate.

    From the nearest of many codes it is not as far as from the mean, where the paper starts.
    """

    space: Literal["w", "w+"] = "w"  # one code for all layers, or one for each
    steps: int = 500
    lr: float = 0.2  # at its highest
    warmup: float = 0.05  # the part of the steps in which the learning rate rises
    cooldown: float = 0.25  # ... and falls
    exploration: float = 0.05  # noise added to w at the start, as a part of the codes' deviation
    exploring: float = 0.75  # the part of the steps with such noise
    noise: Literal["optimize", "const"] = "optimize"  # the noise maps of models that have some
    noise_weight: float = 1e5  # α of the noise maps' regularization
    candidates: int = 500  # random codes, of which each target starts from the nearest; 0: from the mean code
    starts: int = 1  # ... from so many of the nearest, of which the best result is kept
    seed: int = 0


def learning_rate(step: int, config: ProjectionConfig) -> float:
    """Rises in a line, stays, and falls to 0 as a cosine."""
    up = min((step + 1) / max(config.warmup * config.steps, 1), 1)
    down = min((config.steps - step) / max(config.cooldown * config.steps, 1), 1)
    return config.lr * up * (0.5 - 0.5 * math.cos(math.pi * down))


def exploration(step: int, config: ProjectionConfig) -> float:
    """What the deviation of w is multiplied by for the noise added to it: 0.05 t², where t falls from 1 to 0."""
    t = max(1 - step / (config.exploring * config.steps), 0) if config.exploring else 0
    return config.exploration * t**2


def noise_regularization(noise: Sequence[Tensor]) -> Tensor:
    """Σ ((mean n(x, y) n(x − 1, y))² + (mean n(x, y) n(x, y − 1))²) over all maps n [N, 1, H, W] and scales → [N].

    The paper's L: noise that has learned to be an image is like itself one pixel on. Scales are halved, down to 8 × 8,
    by the sum of 2 × 2 pixels over 2, which keeps the variance of what is independent; maps go round at the border.
    """
    total = torch.zeros(len(noise[0]), device=noise[0].device)
    for n in noise:
        while True:
            for dim in (2, 3):
                total = total + (n * n.roll(1, dim)).mean(dim=(1, 2, 3)).square()
            if n.shape[2] < 2 * SMALLEST:
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
    """10 log₁₀(range² / MSE) [N] of images in −1..1, in dB, up to 100.

    What lies outside is cut off, as it is in a file.
    """
    error = (images.clamp(-1, 1) - targets).square().mean(dim=(1, 2, 3))
    return 10 * (4 / error.clamp(min=4e-10)).log10()


@dataclass(frozen=True)
class Projection:
    """What was found for N targets, on the generator's device."""

    ws: Tensor  # [N, num_ws, w_dim]
    noise: list[Tensor] | None  # [N, 1, H, W] for each layer; None where the model's own is taken
    images: Tensor  # [N, C, H, W], made from them
    distance: Tensor  # [N], from the targets


@torch.no_grad()
def random_ws(G: Generator, count: int, seed: int, class_number: int | None = None) -> Tensor:
    """w [count, w_dim] of random z; of one class, or of all in turn."""
    z = torch.randn(count, G.config.z_dim, generator=random_generator(seed))
    classes = torch.arange(count) % max(G.config.c_dim, 1)
    if class_number is not None:
        classes = torch.full_like(classes, class_number)
    return G.mapping(z.to(G.w_avg.device), one_hot(classes, G.config.c_dim).to(G.w_avg.device))


@torch.no_grad()
def nearest(G: Generator, candidates: Tensor, targets: Tensor, count: int) -> Tensor:
    """Those `count` of the candidates [K, w_dim] whose images are nearest to each target → [N, count, w_dim].

    Nearest pixel by pixel at 32 × 32, where the shapes count and no edge has to lie where it should.
    """

    def reduced(images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images, min(images.shape[2], COARSE)).flatten(1)

    ws = candidates[:, None].expand(-1, G.config.num_ws, -1)
    images = torch.cat([reduced(G.synthesis(part, "const")) for part in ws.split(AT_A_TIME)])
    return candidates[torch.cdist(reduced(targets), images).topk(count, largest=False).indices]


def project(
    G: Generator,
    targets: Tensor,
    features: Features,
    config: ProjectionConfig,
    class_number: int | None = None,
    progress: Progress | None = None,
) -> Projection:
    """Finds the codes of images [N, C, H, W] in −1..1, on the device of the generator.

    After each step comes `progress(step, loss [N], images [N, C, H, W])`, of the best start of each target.
    """
    n, starts, num_ws = len(targets), config.starts, G.config.num_ws
    random = random_ws(G, STATISTICS, config.seed, class_number)
    mean = random.mean(dim=0)
    sigma = (random - mean).square().sum(dim=1).mean().sqrt()
    if config.candidates:
        w = nearest(G, random[: config.candidates], targets, starts).flatten(0, 1)
    else:
        w = mean.expand(n, -1)
    w = w[:, None].repeat(1, num_ws if config.space == "w+" else 1, 1).requires_grad_()
    noise = None
    if config.noise == "optimize" and G.config.noise:  # the model's own is as random as any to start from
        noise = [layer.noise_const.repeat(len(w), 1, 1, 1).requires_grad_() for layer in G.synthesis.layers()]
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
            progress(step, loss[best(loss)], images.detach()[best(loss)])

    with torch.no_grad():
        ws = w.expand(-1, num_ws, -1)
        images = G.synthesis(ws, noise or "const")
        loss = distance(features(images), wanted)
        chosen = best(loss)
        return Projection(ws[chosen], noise and [maps.detach()[chosen] for maps in noise], images[chosen], loss[chosen])
