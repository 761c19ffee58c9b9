"""Style mixing (Karras et al. 2019, section 3.1), also of a part of the style, as only predicted kernels allow.

A latent predicts three parts of a layer's style: how the layer filters space (the depthwise kernels), how it weights
and mixes channels (the pointwise kernels), and what it adds (the bias). Each can be taken from another latent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from latents.sheets import table, to_image
from media.images import to_uint8
from networks.adaconv import AdaConvKernels
from networks.generator import Generator, GeneratorConfig, Noise
from torch_utils.errors import UserError, numbers_text

Part = Literal["all", "structure", "channels", "bias"]
PARTS: tuple[Part, ...] = ("all", "structure", "channels", "bias")
FIELDS: dict[Part, str] = {"structure": "depthwise", "channels": "pointwise", "bias": "bias"}


def check_part(config: GeneratorConfig, part: Part) -> None:
    """Raises UserError if the model does not predict that part."""
    if part == "structure" and config.modulation != "adaconv":
        raise UserError(
            f"--part structure: this model is {config.modulation}, which predicts no spatial kernels; "
            "take --part channels or all"
        )
    predicts_bias = config.modulation == "adain" or (config.modulation == "adaconv" and config.predict_bias)
    if part == "bias" and not predicts_bias:
        others = "structure, channels" if config.modulation == "adaconv" else "channels"
        raise UserError(f"--part bias: this model predicts no bias; take --part {others} or all")


def check_layers(
    config: GeneratorConfig, layers: Sequence[int] | None, part: Part = "all", option: str = "--layers"
) -> list[int]:
    """The chosen layers, or all of them for None. Raises UserError if the model does not have the layers or the part.

    Layers are counted as in ws: one for each convolution, and a last one for the last ToRGB, which has no kernels and
    is therefore part of "all" only.
    """
    check_part(config, part)
    last = config.num_ws - 1
    if layers is None:
        return [i for i in range(config.num_ws if part == "all" else last) if predicts(config, i, part)]
    if max(layers) > last:
        raise UserError(f"{option} {max(layers)}: the model has the layers 0 to {last} ({last}: the last ToRGB)")
    if part != "all" and set(layers) == {last}:
        raise UserError(f"{option} {last} is the last ToRGB, which has no kernels; take one of 0 to {last - 1}")
    chosen = sorted(set(layers) - (set() if part == "all" else {last}))
    if not (found := [i for i in chosen if predicts(config, i, part)]):
        what = "biases" if part == "bias" else "spatial kernels"
        able = numbers_text([i for i in range(last) if predicts(config, i, part)]) or "none"
        raise UserError(
            f"--part {part}: of the layers of this model, {able} predict {what}; "
            f"take one of them with {option}, or --part channels"
        )
    return found


def predicts(config: GeneratorConfig, layer: int, part: Part) -> bool:
    """Whether a layer predicts a part that others predict: beyond `kernels_up_to`, it predicts scales only."""
    side = max(config.block_sizes[min((layer + 1) // 2, len(config.block_sizes) - 1)])
    return part not in ("structure", "bias") or config.kernels_up_to is None or side <= config.kernels_up_to


def mix_kernels(kernels: AdaConvKernels, other: AdaConvKernels, part: Part) -> AdaConvKernels:
    """The kernels, with one part replaced by that of other kernels."""
    return replace(kernels, **{FIELDS[part]: getattr(other, FIELDS[part])})


def generate_mix(
    G: Generator, ws: Tensor, other: Tensor, layers: Sequence[int], part: Part = "all", noise: Noise = "const"
) -> Tensor:
    """Images [N, C, H, W] of ws [N, num_ws, w_dim], with a part of `other` [N, num_ws, w_dim] in the chosen layers.

    "all" is StyleGAN's style mixing: it replaces the w of those layers, and with them the input of ToRGB. The other
    parts replace kernels only, and leave ToRGB as it is.
    """
    if part == "all":
        mixed = ws.clone()
        mixed[:, layers] = other[:, layers]
        return G.synthesis(mixed, noise)
    pairs = zip(G.synthesis.kernels(ws), G.synthesis.kernels(other), strict=True)
    kernels = [mix_kernels(own, new, part) if i in layers else own for i, (own, new) in enumerate(pairs)]
    return G.synthesis(ws, noise, kernels)


@torch.no_grad()
def generate_mixes(
    G: Generator,
    rows: Tensor,
    columns: Tensor,
    layers: Sequence[int],
    part: Part = "all",
    noise: Noise = "const",
    batch: int = 16,
) -> Iterator[Tensor]:
    """Mixes the latents of all rows [R, num_ws, w_dim] with a part of those of all columns [C, num_ws, w_dim].

    Yields uint8 images [≤ batch, channels, H, W] on the CPU, R · C in all, row after row. Noise maps are those of the
    rows [R, 1, H, W]: noise is no part of a style.
    """
    pairs = torch.cartesian_prod(torch.arange(len(rows)), torch.arange(len(columns))).view(-1, 2)
    for some in pairs.split(batch):
        row, column = (index.to(rows.device) for index in some.unbind(dim=1))
        own = some_noise(noise, row)
        yield to_uint8(generate_mix(G, rows[row], columns[column], layers, part, own)).cpu()


def some_noise(noise: Noise, numbers: Tensor) -> Noise:
    """The noise of the samples with these numbers [n], of noise maps [N, 1, H, W] for each layer or of a mode."""
    return noise if isinstance(noise, str) else [maps[numbers.to(maps.device)] for maps in noise]


def mixing_sheet(
    own: Tensor, mixed: Tensor, rows: Sequence[object], columns: Sequence[object], title: str, scale: int
) -> Image.Image:
    """A sheet with `own`, the images of the rows and then the columns, around the mixed images.

    `rows` and `columns` name them, by their seeds for example.

    Both are uint8 [N, channels, H, W]; `scale` enlarges them.
    """
    images = [to_image(image, scale) for image in own]
    cells = [to_image(image, scale) for image in mixed]
    lines: list[list[Image.Image | None]] = [[None, *images[len(rows) :]]]
    for i in range(len(rows)):
        lines.append([images[i], *cells[i * len(columns) :][: len(columns)]])
    return table(lines, ["", *map(str, columns)], ["", *map(str, rows)], title)
