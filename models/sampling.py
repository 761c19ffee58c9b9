"""Latents and images from seeds. A seed gives the same image in a batch of any size, up to rounding."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from media.alpha import Color, opaque
from media.decode import WHITE
from media.images import to_uint8
from networks.generator import Generator, Noise, SynthesisBlock
from torch_utils.errors import UserError

SeedsOf = Literal["adaconv", "stylegan2"]  # what draws z from a seed
SEEDS_OF: tuple[SeedsOf, ...] = ("adaconv", "stylegan2")
SEEDS_OF_HELP = (  # of --seeds-of
    "How seeds draw latents. stylegan2: as StyleGAN2-ADA-PyTorch and StyleGAN3 draw them, so that a seed gives a "
    "network of theirs the same image as there."
)

# "latent" in ASCII. It keeps the random numbers of images apart from those of training: a network whose first weights
# were drawn from seed 0 would have met the latent of seed 0 as one of them.
STREAM = 0x6C6174656E740000
STRETCH = 1 << 20  # the number of latents that one seed of a metric can draw
MEAN_SAMPLES, MEAN_SEED = 4096, 0  # of the mean of a class that was not tracked in training
STATE_WORDS = 624  # of the Mersenne Twister, each stored as a 64-bit integer
STATE_START = 24  # the byte of the generator's state at which they begin


def random_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random numbers of one image, from a seed of up to 64 bits. Those of a GPU are others than the CPU's.

    PyTorch's `manual_seed` uses the lower 32 bits on the CPU, which are enough for seeds below 2³². Larger seeds fill
    the generator's whole state, so that no two seeds share their random numbers.
    """
    if torch.device(device).type != "cpu":
        return torch.Generator(device).manual_seed(seed ^ STREAM)
    generator = torch.Generator().manual_seed(seed ^ STREAM)
    if seed >> 32:
        state = generator.get_state()
        words = np.random.SeedSequence([seed, STREAM]).generate_state(STATE_WORDS)
        state[STATE_START:][: 8 * STATE_WORDS].view(torch.int64).copy_(torch.from_numpy(words.astype(np.int64)))
        generator.set_state(state)
    return generator


def check_seeds(seeds: Sequence[int], of: SeedsOf) -> None:
    """Raises UserError if what --seeds-of names does not draw latents from such large seeds."""
    if of == "stylegan2" and (largest := max(seeds, default=0)) >= 1 << 32:
        raise UserError(
            f"--seeds-of stylegan2: NumPy's seeds go up to {(1 << 32) - 1}, and {largest} is larger; take smaller "
            "seeds, or leave out --seeds-of"
        )


def latents(seeds: Sequence[int], z_dim: int, of: SeedsOf = "adaconv") -> Tensor:
    """z [N, z_dim], each row drawn by a generator of its own from its seed.

    With `of="stylegan2"` these are the z that StyleGAN2-ADA-PyTorch and StyleGAN3 draw from a seed, by NumPy's
    `RandomState(seed).randn(1, z_dim)`, rounded to float32 as there. The mapping network normalizes z in both.

    Raises TypeError for what is no integer, and ValueError beyond 0 to 2⁶⁴ − 1, or 2³² − 1 for StyleGAN2's, or where
    nothing is known to draw `of`.
    """
    if of not in SEEDS_OF:
        raise ValueError(f"of: expected {' or '.join(map(repr, SEEDS_OF))}, got {of!r}")
    bits = 64 if of == "adaconv" else 32
    if wrong := [seed for seed in seeds if not 0 <= operator.index(seed) < 1 << bits]:
        raise ValueError(f"seeds: expected 0 to 2**{bits} - 1, got {wrong[0]}")
    if of == "adaconv":
        rows = [torch.randn(z_dim, generator=random_generator(operator.index(seed))) for seed in seeds]
    else:
        drawn = [np.random.RandomState(operator.index(seed)).randn(z_dim) for seed in seeds]
        rows = [torch.from_numpy(z).float() for z in drawn]
    return torch.stack(rows) if rows else torch.zeros(0, z_dim)


def noise_from_seeds(G: Generator, seeds: Sequence[int], device: torch.device | str = "cpu") -> list[Tensor]:
    """Random noise [N, 1, H, W] for every layer, each sample's drawn from its seed.

    Noise that is drawn on the CPU is the same on every machine. At high resolutions a GPU draws it much faster.
    """
    generators = [random_generator(seed, device) for seed in seeds]
    shapes = [(1, *layer.size) for layer in G.synthesis.layers()]
    # z is drawn from the same seeds: its numbers are skipped
    for generator in generators:
        torch.randn(G.config.z_dim, generator=generator, device=device)
    return [
        torch.stack([torch.randn(shape, generator=generator, device=device) for generator in generators]).to(
            G.w_avg.device
        )
        for shape in shapes
    ]


def one_hot(classes: Tensor, c_dim: int) -> Tensor:
    """Class numbers [N] → c [N, c_dim] float32; [N, 0] for a model without classes."""
    return F.one_hot(classes, c_dim).float() if c_dim else torch.zeros(len(classes), 0)


def conditions(classes: Tensor | None, n: int, c_dim: int) -> Tensor:
    """c [n, c_dim] from class numbers [n], from None (class 0), or from c itself [n, c_dim], shares of the classes."""
    if classes is not None and classes.ndim == 2:
        return classes
    return one_hot(torch.zeros(n, dtype=torch.int64) if classes is None else classes, c_dim)


def labels_in_turn(G: Generator, numbers: Sequence[int]) -> Tensor:
    """c [N, c_dim] that has each of the model's labels in turn, for consecutive numbers; on the model's device.

    Of classes these are the ones that occurred in training, as far as that is known; of label vectors, the model's
    examples from the data. A model without labels has c [N, 0].
    """
    if (vectors := G.mapping.labels) is not None:
        return vectors.in_turn(numbers)
    classes = torch.arange(max(G.config.c_dim, 1))
    if G.config.c_dim and G.class_w_count.any():
        classes = G.class_w_count.cpu().nonzero().flatten()
    chosen = classes[torch.tensor([number % len(classes) for number in numbers], dtype=torch.int64)]
    return one_hot(chosen, G.config.c_dim).to(G.w_avg.device)


@torch.no_grad()
def ws_from_seeds(
    G: Generator,
    seeds: Sequence[int],
    classes: Tensor | None = None,
    psi: float | Tensor = 1.0,
    centers: Tensor | None = None,
    of: SeedsOf = "adaconv",
) -> Tensor:
    """ws [N, num_ws, w_dim] of the seeds; classes, psi, centers and `of` as in `generate_batches`."""
    z = latents(seeds, G.config.z_dim, of).to(G.w_avg.device)
    return G.ws(z, conditions(classes, len(seeds), G.config.c_dim).to(z.device), psi, centers)


@torch.no_grad()
def class_centers(G: Generator, c: Tensor) -> Tensor:
    """The mean w of each of c [N, c_dim], shares of classes or label vectors, for truncation towards it: [N, w_dim].

    The mean of a class is tracked in training. Where it was not, as in older files, and of label vectors, it is that of
    MEAN_SAMPLES codes z drawn by the seed MEAN_SEED.
    """
    z = torch.randn(MEAN_SAMPLES, G.config.z_dim, generator=random_generator(MEAN_SEED)).to(G.w_avg)
    if G.config.vector_labels:
        labels, which = c.to(G.w_avg).unique(dim=0, return_inverse=True)
        return torch.stack([G.mapping(z, label.expand(len(z), -1)).mean(dim=0) for label in labels])[which]
    c, means = c.to(G.class_w_avg), G.class_w_avg.clone()
    for number in ((c != 0).any(dim=0) & (G.class_w_count == 0)).nonzero().flatten().tolist():
        one = one_hot(torch.tensor([number]), G.config.c_dim).to(means)
        means[number] = G.mapping(z, one.expand(len(z), -1)).mean(dim=0)
    return c @ means


@torch.no_grad()
def images_of(G: Generator, ws: Tensor, noise: Noise = "const", batch: int = 64) -> Iterator[Tensor]:
    """Yields uint8 images [≤ batch, C, H, W] on the CPU, one for each of ws [N, num_ws, w_dim]."""
    for some in ws.split(batch):
        yield to_uint8(G.synthesis(some, noise)).cpu()


@torch.no_grad()
def generate_batches(
    G: Generator,
    seeds: Sequence[int],
    batch: int = 64,
    classes: Tensor | None = None,
    psi: float | Tensor = 1.0,
    noise: Noise = "const",
    centers: Tensor | None = None,
    of: SeedsOf = "adaconv",
) -> Iterator[Tensor]:
    """Yields uint8 images [≤ batch, C, H, W] on the CPU, one for each seed, whose z is that `of` `latents`.

    `classes` are class numbers [len(seeds)], or c [len(seeds), c_dim], shares of the classes or label vectors; psi is
    one number, or one for each layer [num_ws]. With `noise="random"` each sample's noise is drawn from its seed as
    well. Truncation is towards w_avg, or towards the `centers` [len(seeds), w_dim] of the images.
    """
    if classes is None and G.config.vector_labels:
        classes = labels_in_turn(G, seeds)
    classes = conditions(classes, len(seeds), G.config.c_dim)
    for start in range(0, len(seeds), batch):
        part = seeds[start : start + batch]
        toward = None if centers is None else centers[start : start + batch]
        ws = ws_from_seeds(G, part, classes[start : start + batch], psi, toward, of)
        yield to_uint8(G.synthesis(ws, noise_from_seeds(G, part) if noise == "random" else noise)).cpu()


@dataclass
class Fakes:
    """A generator's images by their numbers, as the metrics ask for them. Two seeds have no image in common.

    Each image has random noise, drawn from its number on the generator's device: it is the same in a batch of any size
    and for any number of processes. `labels` are the classes of a data set. With them, the `count` images have classes
    of the same frequencies. Transparent images are laid on the background, since metrics see colours only.
    """

    G: Generator
    count: int
    seed: int = 0
    labels: Tensor | None = None
    psi: float = 1.0
    background: Color = WHITE  # of transparent images

    def __post_init__(self) -> None:
        self.classes = torch.zeros(self.count, dtype=torch.int64)
        if self.labels is not None:
            drawn = torch.randint(len(self.labels), [self.count], generator=random_generator(self.seed))
            self.classes = self.labels[drawn]

    def images(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Yields uint8 [N, C, H, W] on the CPU for each batch of numbers below `count`."""
        G, noisy = self.G, self.G.config.noise
        for numbers in batches:
            seeds = [self.seed * STRETCH + number for number in numbers]
            noise: Noise = noise_from_seeds(G, seeds, G.w_avg.device) if noisy else "none"
            batches_of_these = generate_batches(G, seeds, len(seeds), self.classes[list(numbers)], self.psi, noise)
            yield from (opaque(images, self.background) for images in batches_of_these)

    @torch.no_grad()
    def path_ends(self, batches: Sequence[Sequence[int]], epsilon: float) -> Iterator[Tensor]:
        """Yields images float [2N, C, H, W] at w₁, then at w₁ + ε (w₂ − w₁), for each batch of numbers below `count`.

        Both ends have the model's constant noise, and float32 throughout: half precision would round ε away.
        """
        G, device = self.G, self.G.w_avg.device
        for numbers in batches:
            seeds = [self.seed * STRETCH + 2 * number for number in numbers]
            c = conditions(self.classes[list(numbers)], len(numbers), G.config.c_dim).to(device)
            first, second = (
                G.ws(latents([seed + end for seed in seeds], G.config.z_dim).to(device), c, self.psi) for end in (0, 1)
            )
            with full_precision(G):
                images = G.synthesis(torch.cat([first, first.lerp(second, epsilon)]), "const").float()
            yield opaque(images, self.background)


@contextmanager
def full_precision(G: Generator) -> Iterator[None]:
    """All of the generator computes in the precision of its weights."""
    blocks = [module for module in G.synthesis.modules() if isinstance(module, SynthesisBlock)]
    before = [block.compute_dtype for block in blocks]
    for block in blocks:
        block.compute_dtype = None
    try:
        yield
    finally:
        for block, compute_dtype in zip(blocks, before, strict=True):
            block.compute_dtype = compute_dtype
