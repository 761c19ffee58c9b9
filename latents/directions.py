"""Directions of w along which images change, and editing images along them.

- "pca": the principal components of w, along which latents vary most (GANSpace, Härkönen et al. 2020, section 2).
- "sefa": the directions along which a step of w changes the predicted kernels and ToRGB's scales most, in closed form
  (SeFa, Shen and Zhou 2021, equation 4).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latents.mixing import FIELDS, PARTS, Part, generate_mix, some_noise
from latents.sheets import table, to_image
from media.images import to_uint8
from models.sampling import labels_in_turn, latents
from networks.adaconv import AdaConvKernels
from networks.generator import Generator, Noise, SynthesisBlock
from torch_utils.arrays import open_arrays
from torch_utils.errors import UserError, numbers_text, one_line
from torch_utils.files import write_file

Method = Literal["pca", "sefa"]
METHODS: tuple[Method, ...] = ("pca", "sefa")
W_COUNT = 10_000  # latents whose covariance is computed


@dataclass(frozen=True)
class Directions:
    """K directions of w, the strongest first.

    An edit along a direction changes the `part` of the `layers`.
    """

    method: Method
    vectors: Tensor  # [K, w_dim], of length 1
    sigma: Tensor  # [K], the standard deviation of w along each: the unit of an edit
    share: Tensor  # [K], of the variance of w (pca), or of the squared change of the kernels (sefa)
    layers: tuple[int, ...]
    part: Part = "all"
    origin: str | None = None  # the fingerprint of the model that they were found in

    @property
    def title(self) -> str:
        """The title of their sheet."""
        what = {"pca": "principal components of w", "sefa": "the largest changes of the predicted kernels"}[self.method]
        acts = "" if self.part == "all" else f"{self.part} of "
        return f"{self.method}: {what}; {acts}layers {numbers_text(self.layers)}"


@torch.no_grad()
def sample_w(G: Generator, count: int = W_COUNT, seed: int = 0, batch: int = 1000) -> Tensor:
    """w [count, w_dim] of `count` seeds from `seed` on, with each label in turn."""
    ws = []
    for start in range(seed, seed + count, batch):
        seeds = range(start, min(start + batch, seed + count))
        ws.append(G.mapping(latents(seeds, G.config.z_dim).to(G.w_avg.device), labels_in_turn(G, seeds)))
    return torch.cat(ws)


def find_directions(
    G: Generator, w: Tensor, methods: Sequence[Method], count: int, layers: Sequence[int], part: Part = "all"
) -> dict[str, Directions]:
    """The directions of each method, under the names `directions-pca` and `directions-sefa`.

    w [N, w_dim] are latents of the model, as from `sample_w`.
    """
    found = {}
    for method in methods:
        if method == "pca":
            found["directions-pca"] = principal_directions(w, count, layers, part)
        else:
            found["directions-sefa"] = factorized_directions(G, w, count, layers, part)
    return found


def check_numbers(directions: Directions, numbers: Sequence[int] | None) -> list[int]:
    """The chosen directions, or all of them for None. Raises UserError if there are fewer."""
    last = len(directions.vectors) - 1
    if numbers and max(numbers) > last:
        raise UserError(f"--direction {max(numbers)}: there are only the directions 0 to {last}")
    return list(numbers or range(last + 1))


def principal_directions(w: Tensor, count: int, layers: Sequence[int], part: Part = "all") -> Directions:
    """The principal components of w [N, w_dim], for edits in the layers."""
    covariance = torch.cov(w.double().t())
    values, vectors = torch.linalg.eigh(covariance)
    return _strongest("pca", values, vectors, covariance, count, layers, part)


@torch.no_grad()
def factorized_directions(G: Generator, w: Tensor, count: int, layers: Sequence[int], part: Part = "all") -> Directions:
    """The eigenvectors of AᵀA, where a step n of w changes the predictions of the layers (or a part of them) by A n.

    The predictors are affine in w: column i of A is their prediction for eᵢ minus that for 0. ToRGB's scales, which
    depend on the w of a layer as well (see `SynthesisNetwork`), are also affine. For the part "all", A includes their
    rows, so that A covers every transformation of w that an edit passes through. w [N, w_dim] only gives sigma.
    """
    size = G.config.w_dim
    basis = torch.cat([w.new_zeros(1, size), torch.eye(size).to(w)])
    gram = torch.zeros(size, size, dtype=torch.float64, device=w.device)
    for flat in _predictions(G, basis, layers, part):
        a = (flat[1:] - flat[:1]).double()  # [w_dim, values]: Aᵀ
        gram += a @ a.t()
    values, vectors = torch.linalg.eigh(gram)
    return _strongest("sefa", values, vectors, torch.cov(w.double().t()), count, layers, part)


def _predictions(G: Generator, w: Tensor, layers: Sequence[int], part: Part) -> Iterator[Tensor]:
    """What w [N, w_dim] predicts for each layer, or the part of it, as [N, values]; with "all" also ToRGB's scales."""
    modules, i = G.synthesis.layers(), 0
    for number in layers:
        if number < len(modules):  # the last w is only ToRGB's
            yield _flatten(modules[number].adaconv.predictor(w), part)
    for block in G.synthesis.modules():
        if isinstance(block, SynthesisBlock):
            i += len(block.layers())  # the index in ws of the w of the block's ToRGB
            if part == "all" and i in layers:
                yield block.torgb.scale(w)


def _flatten(kernels: AdaConvKernels, part: Part) -> Tensor:
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
    """The directions of the largest eigenvalues, with the sign that makes a vector's largest entry positive."""
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1).t()  # eigh gives the smallest first
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    vectors = (vectors * largest.sign())[:count]
    sigma = ((vectors @ covariance) * vectors).sum(dim=1).clamp_min(0).sqrt()
    share = (values / values.sum().clamp_min(1e-300))[:count]
    return Directions(method, vectors.float().cpu(), sigma.float().cpu(), share.float().cpu(), tuple(layers), part)


@torch.no_grad()
def generate_edits(
    G: Generator,
    ws: Tensor,
    directions: Directions,
    numbers: Sequence[int],
    amounts: Sequence[float],
    noise: Noise = "const",
    batch: int = 16,
) -> Iterator[Tensor]:
    """Moves every latent of ws [N, num_ws, w_dim] along every direction by every amount, in units of sigma.

    Yields uint8 images [≤ batch, C, H, W] on the CPU, in the order of nested loops over latents, directions and
    amounts. The amount 0 gives the unchanged image. Noise maps are those of the latents [N, 1, H, W].
    """
    steps, layers = directions.vectors[list(numbers)] * directions.sigma[list(numbers), None], list(directions.layers)
    triples = torch.cartesian_prod(*(torch.arange(n) for n in (len(ws), len(steps), len(amounts))))
    for some in triples.split(batch):
        code, step, amount = some.unbind(dim=1)
        own = ws[code.to(ws.device)]
        moved = own + (steps[step] * torch.tensor(amounts)[amount, None]).to(ws)[:, None]
        yield to_uint8(generate_mix(G, own, moved, layers, directions.part, some_noise(noise, code))).cpu()


def edit_sheet(
    images: Tensor,
    directions: Directions,
    numbers: Sequence[int],
    amounts: Sequence[float],
    names: Sequence[str],
    title: str,
    scale: int,
) -> Image.Image:
    """A sheet of the images [N, C, H, W] uint8 of `generate_edits`, with a row for each latent and direction."""
    enlarged = [to_image(image, scale) for image in images]
    rows = [enlarged[i : i + len(amounts)] for i in range(0, len(enlarged), len(amounts))]
    left = [f"{name}\ndirection {n}\n{directions.share[n]:.1%}" for name in names for n in numbers]
    return table(rows, [f"{amount:+g} sd" if amount else "0" for amount in amounts], left, title)


def save_directions(path: str | os.PathLike, directions: Directions) -> None:
    """Writes an .npz file with the fields of Directions. Raises DiskFull."""
    arrays: dict[str, Any] = {
        "method": directions.method,
        "vectors": directions.vectors.numpy(),
        "sigma": directions.sigma.numpy(),
        "share": directions.share.numpy(),
        "layers": np.array(directions.layers),
        "part": directions.part,
    }
    if directions.origin is not None:
        arrays["fingerprint"] = directions.origin
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_file(path, buffer.getbuffer())


def load_directions(path: str | os.PathLike, G: Generator) -> Directions:
    """Reads a file of `save_directions`. Nothing in it is unpickled.

    Raises UserError if it is not such a file, or is for a model of another size.
    """
    try:
        with open_arrays(path) as file:
            method, part, layers = file.text("method"), file.text("part"), file.array("layers", (None,)).tolist()
            vectors = file.numbers("vectors", (None, None))
            sigma, share = (file.numbers(name, (len(vectors),)) for name in ("sigma", "share"))
            origin = file.text("fingerprint") if "fingerprint" in file else None
        numbered = layers and all(type(layer) is int and layer >= 0 for layer in layers)
        if method not in METHODS or part not in PARTS or not numbered:
            raise ValueError("its method, part or layers do not exist")
        if not len(vectors):
            raise ValueError("no direction at all")
    except FileNotFoundError:
        raise UserError(f"there is no {path}; make it with generate.py directions") from None
    except Exception as error:
        reason = one_line(error)
        raise UserError(
            f"{path} holds no directions ({reason}); name a file that generate.py directions wrote"
        ) from None
    if vectors.shape[1] != G.config.w_dim or max(layers) >= G.config.num_ws:
        raise UserError(
            f"{path} is of another model, with {vectors.shape[1]} numbers in w and at least {max(layers) + 1} layers "
            f"(here {G.config.w_dim} and {G.config.num_ws}); make directions of this one with generate.py directions"
        )
    return Directions(method, vectors, sigma, share, tuple(layers), part, origin)
