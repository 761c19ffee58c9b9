"""Images of the kernels that a code predicts, layer by layer, on a sheet and on a page.

Kernels are shown less the identity from which they start, blue below and red above zero. A layer of C channels in
groups of g has C · g depthwise kernels of k × k: each group is a block of g × g small multiples, the row an output
and the column an input, as in the group's pointwise matrix beside it.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from latents.mixing import mix, numbers_text
from latents.sheets import INK, captioned, enlargement, png, stacked, table, to_image
from media.images import to_uint8
from networks.adaconv import AdaConvKernels
from networks.generator import Generator, Noise

WIDTH = 192  # pixels of a view
SPECTRUM = 32  # frequencies a side
BELOW, ABOVE, ZERO = (33, 102, 172), (178, 24, 43), (247, 247, 247)  # a diverging scale that the colour-blind can read
LINE = (208, 208, 208)
INKS = (ABOVE, BELOW, INK)  # of the codes' curves


# --- numbers --------------------------------------------------------------------------------------------------------


def deviations(kernels: AdaConvKernels) -> tuple[Tensor, Tensor]:
    """Depthwise [C, g, k, k] and pointwise [C, g] of the first sample less the identity."""
    depthwise, pointwise = kernels.depthwise[0].clone(), kernels.pointwise[0].clone()
    c, g, k, _ = depthwise.shape
    identity = torch.eye(g).to(depthwise).repeat(c // g, 1)
    depthwise[:, :, k // 2, k // 2] -= identity
    return depthwise, pointwise - identity


def response(kernels: AdaConvKernels, size: int = SPECTRUM) -> Tensor:
    """How strongly the layer's composed kernels pass each spatial frequency [size, size], zero in the middle.

    The root of the mean over the outputs of Σ_i |K̂_oi|²: 1 everywhere for the identity.
    """
    spectrum = torch.fft.fftshift(torch.fft.fft2(kernels.composed[0].float(), s=(size, size)), dim=(-2, -1))
    return spectrum.abs().square().sum(dim=1).mean(dim=0).sqrt()


def singular_values(pointwise: Tensor) -> Tensor:
    """Of each group's matrix, pointwise [C, g] → [C/g, g], the largest first: how unevenly it weighs the channels."""
    c, g = pointwise.shape
    return torch.linalg.svdvals(pointwise.float().view(c // g, g, g))


def relative_difference(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ over the root mean square of ‖a‖ and ‖b‖: 0 for the same, √2 for independent ones."""
    scale = ((a.square().sum() + b.square().sum()) / 2).sqrt()
    return float((a - b).norm() / scale) if scale > 0 else 0.0


# --- images of tensors --------------------------------------------------------------------------------------------


def diverging(values: Tensor, limit: float) -> Tensor:
    """Numbers [H, W] from −limit to limit as colours, uint8 [3, H, W]; white is none: NaN."""
    ends = torch.tensor([BELOW, ZERO, ABOVE], dtype=torch.float32)
    t = (values.float() / max(limit, 1e-12)).clamp(-1, 1).nan_to_num(0)[..., None]
    colors = torch.where(t < 0, ends[1].lerp(ends[0], -t), ends[1].lerp(ends[2], t))
    colors[values.isnan()] = 255
    return colors.round().to(torch.uint8).permute(2, 0, 1)


def sequential(values: Tensor, limit: float) -> Tensor:
    """Numbers [H, W] from 0 to limit as greys, uint8 [3, H, W], black for 0."""
    return (values / max(limit, 1e-12) * 255).clamp(0, 255).round().to(torch.uint8).expand(3, -1, -1)


def blocks(values: Tensor) -> Tensor:
    """Tiles [C, g, h, w] as one matrix: groups of g × g tiles in rows as even as they get, NaN between them."""
    c, g, h, _ = values.shape
    inner = int(h > 1)  # a line between the kernels of a group
    if not inner:  # single numbers are as large as kernels of 3 × 3
        values = values.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    tiles = torch.nn.functional.pad(values, (0, inner, 0, inner), value=torch.nan)
    groups = tiles.view(c // g, g, g, *tiles.shape[2:]).transpose(2, 3).flatten(3).flatten(1, 2)
    groups = torch.nn.functional.pad(groups, (0, 1, 0, 1), value=torch.nan)
    n, high, wide = groups.shape
    rows = next(i for i in range(max(int(n**0.5), 1), 0, -1) if n % i == 0)
    matrix = groups.view(rows, n // rows, high, wide).transpose(1, 2).reshape(rows * high, -1)
    return matrix[: -1 - inner, : -1 - inner]


def fitted(pixels: Tensor) -> Image.Image:
    """uint8 [3, H, W] enlarged by a whole factor to about the width of a view, in a frame: white is a part of most."""
    image = to_image(pixels, max(WIDTH // max(pixels.shape[1:]), 1))
    return ImageOps.expand(ImageOps.expand(image, 3, "white"), 1, LINE)


def curves(lines: Sequence[Tensor], limit: float) -> Image.Image:
    """Falling curves from 0 to limit, each with a dotted one at 1, which is the identity's."""
    high, wide = WIDTH // 2, WIDTH
    image = Image.new("RGB", (wide, high), "white")
    draw = ImageDraw.Draw(image)

    def height(value: float) -> float:
        return (high - 3) * (1 - value / max(limit, 1e-12)) + 1

    for x in range(0, wide, 6):
        draw.line([(x, height(1)), (x + 2, height(1))], LINE, 1)
    for line, ink in zip(lines, INKS, strict=False):
        xs = torch.linspace(2, wide - 3, max(len(line), 2)).tolist()
        draw.line([(x, height(float(v))) for x, v in zip(xs, line.expand(len(xs)), strict=True)], ink, 2)
    draw.line([(0, 0), (0, high - 1), (wide - 1, high - 1)], INK, 1)
    return image


# --- what is shown --------------------------------------------------------------------------------------------------


@dataclass
class View:
    """One part of a layer's kernels: an image for each code, and for two codes one of their difference."""

    name: str
    images: list[Image.Image]
    captions: list[str]  # the ends of each one's scale
    last: str = "difference"  # what two codes' third image shows


@dataclass
class Layer:
    number: int
    about: str
    views: list[View]
    differences: dict[str, float]  # of each part, where there are two codes


def layer_views(number: int, resolution: int, kernels: Sequence[AdaConvKernels]) -> Layer:
    """The views of one layer for one code or two; the same colours mean the same numbers in all images of a view."""
    c, g = kernels[0].depthwise.shape[1:3]
    parts = [deviations(each) for each in kernels]
    spatial = any(bool(depthwise.any()) for depthwise, _ in parts)  # not where only scales are predicted
    views: list[View] = []
    differences: dict[str, float] = {}

    def signed(name: str, tensors: list[Tensor]) -> None:
        if len(tensors) == 2:
            differences[name] = relative_difference(*tensors)
            tensors = [*tensors, tensors[0] - tensors[1]]
        limit = max(float(t.abs().max()) for t in tensors)
        images = [fitted(diverging(blocks(t.cpu()), limit)) for t in tensors]
        views.append(View(name, images, [f"± {limit:.2g}"] * len(images)))

    if spatial:
        signed("structure", [depthwise for depthwise, _ in parts])
    signed("channels", [pointwise[..., None, None] for _, pointwise in parts])
    if kernels[0].bias is not None:
        signed("bias", [each.bias[0][:, None, None, None] for each in kernels])
    if spatial:
        spectra = [response(each).cpu() for each in kernels]
        limit = max(float(s.max()) for s in spectra)
        images, captions = [fitted(sequential(s, limit)) for s in spectra], [f"0 to {limit:.2g}"] * len(spectra)
        if len(spectra) == 2:
            change = spectra[0] - spectra[1]
            limit = float(change.abs().max())
            images.append(fitted(diverging(change, limit)))
            captions.append(f"± {limit:.2g}")
        views.append(View("frequencies", images, captions))
    falls = [singular_values(each.pointwise[0]).flatten().sort(descending=True).values.cpu() for each in kernels]
    limit = max(float(f.max()) for f in falls) * 1.05
    images = [curves([f], limit) for f in falls] + ([curves(falls, limit)] if len(falls) == 2 else [])
    views.append(View("singular values", images, [f"0 to {limit:.2g}"] * len(images), "both"))
    about = f"{resolution} x {resolution}, {c} channels" + f"\nin groups of {g}" * (g > 1)
    return Layer(number, about, views, differences)


@dataclass
class KernelViews:
    """All that is shown of one code, or of two and what differs between them."""

    names: list[str]  # of the codes
    images: dict[str, Image.Image]  # theirs, and of two the first with parts of the second in these layers
    layers: list[Layer]


@torch.no_grad()
def kernel_views(
    G: Generator, ws: Tensor, names: Sequence[str], layers: Sequence[int], noise: Noise = "const"
) -> KernelViews:
    """The views of the codes ws [1 or 2, num_ws, w_dim] in the layers; of two, what each part does to the image."""
    scale = enlargement(G.config.resolution, 128)

    def enlarged(batch: Tensor) -> Image.Image:
        return to_image(to_uint8(batch)[0].cpu(), scale)

    images = {name: enlarged(G.synthesis(ws[i : i + 1], noise)) for i, name in enumerate(names)}
    if len(ws) == 2:
        parts = ["structure", "channels"] if G.config.modulation == "adaconv" else ["channels"]
        parts += ["bias"] * (G.synthesis.kernels(ws[:1])[0].bias is not None)
        where = "" if len(layers) == len(G.synthesis.layers()) else f", layers {numbers_text(layers)}"
        for part in parts:
            name = f"{names[0]} with the {part}\nof {names[1]}" + where
            images[name] = enlarged(mix(G, ws[:1], ws[1:], layers, part, noise))
    of_codes = [G.synthesis.kernels(w[None]) for w in ws]
    modules = G.synthesis.layers()
    views = [layer_views(i, modules[i].resolution, [kernels[i] for kernels in of_codes]) for i in layers]
    return KernelViews(list(names), images, views)


def kernel_sheet(shown: KernelViews) -> Image.Image:
    """Everything on one image: a row for each layer. Of two codes, how much they differ stands beside it."""
    head = table([list(shown.images.values())], list(shown.images), [""], gap=12)
    if len(shown.names) == 1:
        top = [view.name for view in shown.layers[0].views]
    else:
        top = [f"{view.name}\n{name}" for view in shown.layers[0].views for name in [*shown.names, view.last]]
    rows = [
        [image for view in layer.views for image in map(captioned, view.images, view.captions)]
        for layer in shown.layers
    ]
    left = [
        f"layer {layer.number}\n{layer.about}\n"
        + "\n".join(f"{name} {value:.2f} apart" for name, value in layer.differences.items())
        for layer in shown.layers
    ]
    return stacked([head, table(rows, top, left, gap=12)])


PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 sans-serif; margin: 2em auto; max-width: 1320px; color: #282828 }}
figure {{ display: inline-block; margin: 0 12px 12px 0; vertical-align: top; text-align: center }}
figcaption {{ font-size: 13px; white-space: pre-line }}
.view {{ display: inline-block; margin-right: 16px }}
img {{ image-rendering: pixelated }}
table {{ border-collapse: collapse }} td, th {{ padding: 2px 12px; text-align: right }}
h2 {{ font-size: 17px; border-top: 1px solid #ccc; padding-top: 8px }}
</style>
<h1>{title}</h1>
<p>What the code says to each layer, less the identity: blue is below zero, red above, and the numbers are the ends of
the scale. <b>Structure</b>: the depthwise kernels; <b>channels</b>: the pointwise kernels, each block the matrix of a
group, its rows outputs and its columns inputs. <b>Frequencies</b>: how strongly both together pass each spatial
frequency, zero in the middle. <b>Singular values</b> of the groups' matrices, in order; the identity's are all 1, the
dotted line.</p>
{body}
</html>
"""


def kernel_page(shown: KernelViews) -> str:
    """The same as one HTML page that holds its images."""
    parts = [_figure(image, name) for name, image in shown.images.items()]
    if len(shown.names) == 2:
        parts.append(_differences(shown.layers))
    for layer in shown.layers:
        about = layer.about.replace("\n", " ")
        parts.append(f"<h2>Layer {layer.number}: {html.escape(about)}</h2>")
        for view in layer.views:
            if len(shown.names) == 1:
                parts.append(_figure(view.images[0], f"{view.name}\n{view.captions[0]}"))
            else:
                names = [*shown.names, view.last]
                words = [f"{view.name}: {name}\n{ends}" for name, ends in zip(names, view.captions, strict=True)]
                parts.append(f"<div class=view>{''.join(map(_figure, view.images, words))}</div>")
    return PAGE.format(title=html.escape("Kernels of " + " and ".join(shown.names)), body="\n".join(parts))


def _figure(image: Image.Image, words: str) -> str:
    data = base64.b64encode(png(image)).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt=""><figcaption>{html.escape(words)}</figcaption></figure>'
    )


def _differences(layers: Sequence[Layer]) -> str:
    """A table of how much each part differs in each layer."""
    names = list(layers[0].differences)
    head = "".join(f"<th>{name}" for name in ["layer", *names])
    rows = [
        f"<tr><td>{layer.number}" + "".join(f"<td>{layer.differences[name]:.2f}" for name in names) for layer in layers
    ]
    return (
        "<p>Relative differences: 0 where the codes say the same, 1.41 where what they say is unrelated. Of both "
        "curves of singular values, the first code's is red.</p>"
        f"<table><tr>{head}{''.join(rows)}</table>"
    )
