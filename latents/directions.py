"""Directions of w along which images change, and images edited along them.

- "pca": where the codes themselves vary, the principal components of w (GANSpace, Härkönen et al. 2020, section 2).
- "sefa": where the predicted kernels, and with them ToRGB's scales, vary most for a step of w, in closed form (SeFa,
  Shen and Zhou 2021, equation 4).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latents.arrays import open_arrays, real_tensor
from latents.mixing import FIELDS, Part, mix, numbers_text
from latents.sheets import table, to_image
from media.images import to_uint8
from models.sampling import latents, one_hot
from networks.adaconv import AdaConvKernels
from networks.generator import Generator, Noise
from torch_utils.errors import UserError, one_line
from torch_utils.files import write_file

Method = Literal["pca", "sefa"]
METHODS = ("pca", "sefa")
SAMPLES = 10_000


@dataclass(frozen=True)
class Directions:
    """K directions of w, the strongest first.

    vectors: [K, w_dim], of length 1. sigma: [K], the standard deviation of w along each: the unit of an edit.
    share: [K], of the variance of w (pca), or of the squared change of the kernels (sefa). They act on `part` of the
    `layers`.
    """

    method: Method
    vectors: Tensor
    sigma: Tensor
    share: Tensor
    layers: tuple[int, ...]
    part: Part = "all"

    @property
    def title(self) -> str:
        """What they are, for a sheet."""
        what = {"pca": "principal components of w", "sefa": "what moves the predicted kernels most"}[self.method]
        acts = "" if self.part == "all" else f"{self.part} of "
        return f"{self.method}: {what}; {acts}layers {numbers_text(self.layers)}"


@torch.no_grad()
def sample_w(G: Generator, count: int = SAMPLES, seed: int = 0, batch: int = 1000) -> Tensor:
    """w [count, w_dim] of so many seeds from `seed` on, of each class in turn."""
    ws = []
    for start in range(seed, seed + count, batch):
        seeds = range(start, min(start + batch, seed + count))
        c = one_hot(torch.tensor([s % max(G.config.c_dim, 1) for s in seeds]), G.config.c_dim)
        ws.append(G.mapping(latents(seeds, G.config.z_dim).to(G.w_avg.device), c.to(G.w_avg.device)))
    return torch.cat(ws)


def find_directions(
    G: Generator, w: Tensor, methods: Sequence[Method], count: int, layers: Sequence[int], part: Part = "all"
) -> dict[str, Directions]:
    """The directions of each method, called `directions-pca` and so on; w [N, w_dim] are codes of the model."""
    found = {}
    for method in methods:
        if method == "pca":
            found["directions-pca"] = principal_directions(w, count, layers, part)
        else:
            found["directions-sefa"] = factorized_directions(G, w, count, layers, part)
    return found


def check_numbers(directions: Directions, numbers: Sequence[int] | None) -> list[int]:
    """The chosen directions, with None all of them. Raises UserError where there are not so many."""
    last = len(directions.vectors) - 1
    if numbers and max(numbers) > last:
        raise UserError(f"--direction {max(numbers)}: there are the directions 0 to {last}")
    return list(numbers or range(last + 1))


def principal_directions(w: Tensor, count: int, layers: Sequence[int], part: Part = "all") -> Directions:
    """The principal components of w [N, w_dim], for edits in the layers."""
    covariance = torch.cov(w.double().t())
    values, vectors = torch.linalg.eigh(covariance)
    return _strongest("pca", values, vectors, covariance, count, layers, part)


@torch.no_grad()
def factorized_directions(G: Generator, w: Tensor, count: int, layers: Sequence[int], part: Part = "all") -> Directions:
    """The eigenvectors of AᵀA, where a step n of w changes what the layers are told (one part of it) by A n.

    The predictors are affine in w, so that column i of A is what they say of eᵢ less what they say of 0. So are ToRGB's
    scales, which the w of a layer moves as well (see `SynthesisNetwork`): with the part "all", A has their rows too, as
    it has those of every transformation of w that an edit goes through. w [N, w_dim] gives the unit of the edits alone.
    """
    size = G.config.w_dim
    basis = torch.cat([w.new_zeros(1, size), torch.eye(size).to(w)])
    gram = torch.zeros(size, size, dtype=torch.float64, device=w.device)
    for flat in _told(G, basis, layers, part):
        a = (flat[1:] - flat[:1]).double()  # [w_dim, values]: Aᵀ
        gram += a @ a.t()
    values, vectors = torch.linalg.eigh(gram)
    return _strongest("sefa", values, vectors, torch.cov(w.double().t()), count, layers, part)


def _told(G: Generator, w: Tensor, layers: Sequence[int], part: Part) -> Iterator[Tensor]:
    """What w [N, w_dim] says to each of the layers, or one part of it, and with "all" to ToRGB; [N, values] each."""
    synthesis, place = G.synthesis, 0
    for i in layers:
        if i < len(synthesis.layers()):  # the last is ToRGB's alone
            yield _flat(synthesis.layers()[i].adaconv.predictor(w), part)
    for block in synthesis.blocks:
        place += len(block.layers())  # of the w of a block's ToRGB
        if part == "all" and place in layers:
            yield block.torgb.scale(w)


def _flat(kernels: AdaConvKernels, part: Part) -> Tensor:
    """The values of kernels, or of one part of them, as [N, values]."""
    fields = FIELDS.values() if part == "all" else [FIELDS[part]]
    values = [getattr(kernels, name) for name in fields]
    return torch.cat([value.flatten(1) for value in values if value is not None], dim=1)


def _strongest(
    method: Method,
    values: Tensor,
    vectors: Tensor,
    covariance: Tensor,
    count: int,
    layers: Sequence[int],
    part: Part,
) -> Directions:
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1).t()  # eigh gives the smallest first
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    vectors = (vectors * largest.sign())[:count]  # of both signs the one whose largest entry is positive
    sigma = ((vectors @ covariance) * vectors).sum(dim=1).clamp_min(0).sqrt()
    share = (values / values.sum().clamp_min(1e-300))[:count]
    parts = (x.float().cpu() for x in (vectors, sigma, share))
    return Directions(method, *parts, tuple(layers), part)


@torch.no_grad()
def edits(
    G: Generator,
    ws: Tensor,
    directions: Directions,
    numbers: Sequence[int],
    amounts: Sequence[float],
    noise: Noise = "const",
    batch: int = 16,
) -> Iterator[Tensor]:
    """Every code of ws [N, num_ws, w_dim] along every direction by every amount of σ, in this order.

    Yields uint8 [≤ batch, C, H, W] on the CPU. The amount 0 is the code's own image.
    """
    steps = directions.vectors[list(numbers)] * directions.sigma[list(numbers), None]
    triples = torch.cartesian_prod(*(torch.arange(n) for n in (len(ws), len(steps), len(amounts))))
    for some in triples.split(batch):
        code, step, amount = some.unbind(dim=1)
        own = ws[code.to(ws.device)]
        moved = own + (steps[step] * torch.tensor(amounts)[amount, None]).to(ws)[:, None]
        yield to_uint8(mix(G, own, moved, list(directions.layers), directions.part, noise)).cpu()


def edit_sheet(
    images: Tensor,
    directions: Directions,
    numbers: Sequence[int],
    amounts: Sequence[float],
    seeds: Sequence[int],
    title: str,
    scale: int,
) -> Image.Image:
    """What `edits` gave, [N, C, H, W] uint8, for codes of these seeds: a row for each seed and direction."""
    enlarged = [to_image(image, scale) for image in images]
    rows = [enlarged[i : i + len(amounts)] for i in range(0, len(enlarged), len(amounts))]
    left = [f"seed {s}\ndirection {n}\n{directions.share[n]:.1%}" for s in seeds for n in numbers]
    return table(rows, [f"{amount:+g} sd" if amount else "0" for amount in amounts], left, title)


def save_directions(path: str | os.PathLike, directions: Directions) -> None:
    """Writes an .npz with the fields of Directions. Raises DiskFull."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        method=directions.method,
        vectors=directions.vectors.numpy(),
        sigma=directions.sigma.numpy(),
        share=directions.share.numpy(),
        layers=np.array(directions.layers),
        part=directions.part,
    )
    write_file(path, buffer.getbuffer())


def load_directions(path: str | os.PathLike, G: Generator) -> Directions:
    """Reads what `save_directions` wrote; nothing in it is unpickled.

    Raises UserError where it is no such file, or not for a model of this size.
    """
    try:
        with open_arrays(path) as file:
            method, part, layers = str(file["method"]), str(file["part"]), [int(i) for i in file["layers"]]
            vectors, sigma, share = (real_tensor(file, name) for name in ("vectors", "sigma", "share"))
        if method not in METHODS or part not in ("all", *FIELDS) or not layers or min(layers) < 0:
            raise ValueError("its description is none of directions")
        if vectors.ndim != 2 or not len(vectors) or sigma.shape != vectors.shape[:1] or share.shape != sigma.shape:
            raise ValueError("its arrays do not fit each other")
    except FileNotFoundError:
        raise UserError(f"there is no {path}; make one with generate.py directions") from None
    except Exception as error:
        reason = one_line(error)
        raise UserError(f"{path} holds no directions ({reason}); name what generate.py directions wrote") from None
    if vectors.shape[1] != G.config.w_dim or max(layers) >= G.config.num_ws:
        raise UserError(
            f"{path} is of another model (w of {vectors.shape[1]} numbers, layers to {max(layers)}; here "
            f"{G.config.w_dim} and {G.config.num_ws - 1}); make directions of this one with generate.py directions"
        )
    return Directions(method, vectors, sigma, share, tuple(layers), part)
