"""Images of the kernels that a latent predicts, layer by layer, as a sheet and as an HTML page.

Kernels are shown as their difference from the identity, from which training starts: blue below zero, red above. A layer
of C channels in groups of g has C · g depthwise kernels of k × k pixels. Each group is a block of g × g kernels, with a
row for each output and a column for each input, like the group's pointwise matrix beside it.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from latents.mixing import Part, generate_mix
from latents.sheets import INK, Row, add_caption, encode_png, enlargement, stack, table, to_image
from media.images import to_uint8
from networks.adaconv import AdaConvKernels
from networks.generator import Generator, Noise
from torch_utils.errors import numbers_text

WIDTH = 192  # pixels of a view
SPECTRUM = 32  # frequencies in each dimension
BELOW, ABOVE, ZERO = (33, 102, 172), (178, 24, 43), (247, 247, 247)  # a scale that colour-blind people can read
LINE = (208, 208, 208)
INKS = (ABOVE, BELOW, INK)  # of the curves, one for each latent


# --- numbers --------------------------------------------------------------------------------------------------------


def deviations(kernels: AdaConvKernels) -> tuple[Tensor, Tensor]:
    """Depthwise [C, g, k, k] and pointwise [C, g] kernels of the first sample, minus the identity."""
    depthwise, pointwise = kernels.depthwise[0].clone(), kernels.pointwise[0].clone()
    c, g, k, _ = depthwise.shape
    identity = torch.eye(g).to(depthwise).repeat(c // g, 1)
    depthwise[:, :, k // 2, k // 2] -= identity
    return depthwise, pointwise - identity


def response(kernels: AdaConvKernels, size: int = SPECTRUM) -> Tensor:
    """The gain of the layer's composed kernels at each spatial frequency [size, size], with zero in the middle.

    It is the square root of the mean over outputs o of Σᵢ |K̂_oi|², which is 1 everywhere for the identity.
    """
    spectrum = torch.fft.fftshift(torch.fft.fft2(kernels.composed[0].float(), s=(size, size)), dim=(-2, -1))
    return spectrum.abs().square().sum(dim=1).mean(dim=0).sqrt()


def singular_values(pointwise: Tensor) -> Tensor:
    """The singular values of each group's matrix, pointwise [C, g] → [C/g, g], in descending order."""
    c, g = pointwise.shape
    return torch.linalg.svdvals(pointwise.float().view(c // g, g, g))


def relative_difference(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ divided by the root mean square of ‖a‖ and ‖b‖: 0 for equal tensors, √2 for independent ones."""
    scale = ((a.square().sum() + b.square().sum()) / 2).sqrt()
    return float((a - b).norm() / scale) if scale > 0 else 0.0


# --- images of tensors --------------------------------------------------------------------------------------------


def diverging(values: Tensor, limit: float) -> Tensor:
    """Numbers [H, W] from −limit to limit as colours, uint8 [3, H, W]; NaN is white."""
    ends = torch.tensor([BELOW, ZERO, ABOVE], dtype=torch.float32)
    t = (values.float() / max(limit, 1e-12)).clamp(-1, 1).nan_to_num(0)[..., None]
    colors = torch.where(t < 0, ends[1].lerp(ends[0], -t), ends[1].lerp(ends[2], t))
    colors[values.isnan()] = 255
    return colors.round().to(torch.uint8).permute(2, 0, 1)


def sequential(values: Tensor, limit: float) -> Tensor:
    """Numbers [H, W] from 0 to limit as shades of grey, uint8 [3, H, W]; 0 is black."""
    return (values / max(limit, 1e-12) * 255).clamp(0, 255).round().to(torch.uint8).expand(3, -1, -1)


def blocks(values: Tensor) -> Tensor:
    """Tiles [C, g, h, w] as one matrix of groups, each with g × g tiles, with lines of NaN between them.

    The groups are arranged in a rectangle that is as square as possible.
    """
    c, g, h, _ = values.shape
    inner = int(h > 1)  # whether there are lines between the kernels of a group
    if not inner:  # single numbers are enlarged to the size of 3 × 3 kernels
        values = values.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    tiles = torch.nn.functional.pad(values, (0, inner, 0, inner), value=torch.nan)
    groups = tiles.view(c // g, g, g, *tiles.shape[2:]).transpose(2, 3).flatten(3).flatten(1, 2)
    groups = torch.nn.functional.pad(groups, (0, 1, 0, 1), value=torch.nan)
    n, high, wide = groups.shape
    rows = next(i for i in range(max(int(n**0.5), 1), 0, -1) if n % i == 0)
    matrix = groups.view(rows, n // rows, high, wide).transpose(1, 2).reshape(rows * high, -1)
    return matrix[: -1 - inner, : -1 - inner]


def enlarge(pixels: Tensor) -> Image.Image:
    """uint8 [3, H, W] enlarged by a whole factor to about the width of a view, in a frame."""
    image = to_image(pixels, max(WIDTH // max(pixels.shape[1:]), 1))
    return ImageOps.expand(ImageOps.expand(image, 3, "white"), 1, LINE)


def curves(lines: Sequence[Tensor], limit: float, first: int = 0) -> Image.Image:
    """A diagram of descending curves between 0 and limit, with a dotted line at 1, the curve of the identity.

    They have the colours of the latents from number `first` on.
    """
    high, wide = WIDTH // 2, WIDTH
    image = Image.new("RGB", (wide, high), "white")
    draw = ImageDraw.Draw(image)

    def height(value: float) -> float:
        return (high - 3) * (1 - value / max(limit, 1e-12)) + 1

    for x in range(0, wide, 6):
        draw.line([(x, height(1)), (x + 2, height(1))], LINE, 1)
    for line, ink in zip(lines, INKS[first:], strict=False):
        xs = torch.linspace(2, wide - 3, max(len(line), 2)).tolist()
        draw.line([(x, height(float(v))) for x, v in zip(xs, line.expand(len(xs)), strict=True)], ink, 2)
    draw.line([(0, 0), (0, high - 1), (wide - 1, high - 1)], INK, 1)
    return image


# --- what is shown --------------------------------------------------------------------------------------------------


@dataclass
class View:
    """One part of a layer's kernels: an image for each latent, and for two latents a third one of their difference."""

    name: str
    images: list[Image.Image]
    captions: list[str]  # the range of each image's scale
    last: str = "difference"  # what the third image for two latents shows


@dataclass
class Layer:
    """The views of one layer."""

    number: int
    about: str
    views: list[View]
    differences: dict[str, float]  # of each part, for two latents


def layer_views(number: int, size: tuple[int, int], kernels: Sequence[AdaConvKernels]) -> Layer:
    """The views of a layer for the kernels of one latent or two. All images of a view have the same scale."""
    c, g = kernels[0].depthwise.shape[1:3]
    depthwise, pointwise = zip(*map(deviations, kernels), strict=True)
    spatial = any(bool(tensor.any()) for tensor in depthwise)  # not if only scales are predicted
    parts: dict[str, list[Tensor]] = {"structure": list(depthwise)} if spatial else {}
    parts["channels"] = [tensor[..., None, None] for tensor in pointwise]
    biases = [each.bias[0][:, None, None, None] for each in kernels if each.bias is not None]
    if biases:
        parts["bias"] = biases
    views = [_part_view(name, tensors) for name, tensors in parts.items()]
    if spatial:
        views.append(_frequency_view([response(each).cpu() for each in kernels]))
    views.append(_singular_value_view([singular_values(each.pointwise[0]).flatten().cpu() for each in kernels]))
    differences = {name: relative_difference(*tensors) for name, tensors in parts.items() if len(tensors) == 2}
    about = f"{size[1]} x {size[0]}, {c} channels" + f"\nin groups of {g}" * (g > 1)
    return Layer(number, about, views, differences)


def _part_view(name: str, tensors: list[Tensor]) -> View:
    """The kernels of one part."""
    if len(tensors) == 2:
        tensors = [*tensors, tensors[0] - tensors[1]]
    limit = max(float(tensor.abs().max()) for tensor in tensors)
    images = [enlarge(diverging(blocks(tensor.cpu()), limit)) for tensor in tensors]
    return View(name, images, [f"± {limit:.2g}"] * len(images))


def _frequency_view(gains: list[Tensor]) -> View:
    """The gains at all frequencies."""
    limit = max(float(gain.max()) for gain in gains)
    images, captions = [enlarge(sequential(gain, limit)) for gain in gains], [f"0 to {limit:.2g}"] * len(gains)
    if len(gains) == 2:
        change = gains[0] - gains[1]
        limit = float(change.abs().max())
        images.append(enlarge(diverging(change, limit)))
        captions.append(f"± {limit:.2g}")
    return View("frequencies", images, captions)


def _singular_value_view(values: list[Tensor]) -> View:
    """The singular values as curves."""
    falling = [each.sort(descending=True).values for each in values]
    limit = max(float(curve.max()) for curve in falling) * 1.05
    images = [curves([curve], limit, first=i) for i, curve in enumerate(falling)]
    if len(falling) == 2:
        images.append(curves(falling, limit))
    return View("singular values", images, [f"0 to {limit:.2g}"] * len(images), "both")


@dataclass
class KernelViews:
    """All that is shown of one latent, or of two and their differences."""

    names: list[str]  # of the latents
    images: dict[str, Image.Image]  # of each latent; for two also of the first with parts of the second
    layers: list[Layer]


@torch.no_grad()
def kernel_views(
    G: Generator, ws: Tensor, names: Sequence[str], layers: Sequence[int], noise: Noise = "const"
) -> KernelViews:
    """The views of the layers for ws [1 or 2, num_ws, w_dim]; for two also the effect of each part on the image."""
    scale = enlargement(G.config.resolution, 128)

    def enlarged(batch: Tensor) -> Image.Image:
        return to_image(to_uint8(batch)[0].cpu(), scale)

    images = {name: enlarged(G.synthesis(ws[i : i + 1], noise)) for i, name in enumerate(names)}
    if len(ws) == 2:
        parts: list[Part] = ["structure", "channels"] if G.config.modulation == "adaconv" else ["channels"]
        if G.synthesis.kernels(ws[:1])[0].bias is not None:
            parts.append("bias")
        where = "" if len(layers) == len(G.synthesis.layers()) else f", layers {numbers_text(layers)}"
        for part in parts:
            name = f"{names[0]} with the {part}\nof {names[1]}" + where
            images[name] = enlarged(generate_mix(G, ws[:1], ws[1:], layers, part, noise))
    predicted = [G.synthesis.kernels(w[None]) for w in ws]
    modules = G.synthesis.layers()
    views = [layer_views(i, modules[i].size, [kernels[i] for kernels in predicted]) for i in layers]
    return KernelViews(list(names), images, views)


def kernel_sheet(shown: KernelViews) -> Image.Image:
    """A sheet with a row for each layer; for two latents, their differences are written beside it.

    Layers without spatial kernels (`kernels_up_to`) leave the columns of those empty.
    """
    columns = max((layer.views for layer in shown.layers), key=len)
    each = 1 if len(shown.names) == 1 else 3
    head = table([list(shown.images.values())], list(shown.images), [""], gap=12)
    if len(shown.names) == 1:
        top = [view.name for view in columns]
    else:
        top = [f"{view.name}\n{name}" for view in columns for name in [*shown.names, view.last]]
    rows: list[Row] = []
    for layer in shown.layers:
        views = {view.name: [*map(add_caption, view.images, view.captions)] for view in layer.views}
        rows.append([image for view in columns for image in views.get(view.name, [None] * each)])
    left = [
        f"layer {layer.number}\n{layer.about}\n"
        + "\n".join(f"{name} {value:.2f} apart" for name, value in layer.differences.items())
        for layer in shown.layers
    ]
    return stack([head, table(rows, top, left, gap=12)])


@torch.no_grad()
def style_sheet(
    names: Sequence[str], images: Mapping[str, Tensor], kernels: Sequence[Sequence[AdaConvKernels]], size: int
) -> bytes:
    """A PNG of the kernels of one or two styles of a stylizer, below the styles' images, float [1, 3, H, W] in −1..1.

    `size` is the side in pixels of the content that they are applied to; each stage doubles relu4_1's, an eighth.
    """
    sides = [size >> 3 - i for i in range(len(kernels[0]))]
    layers = [layer_views(i, (side, side), [each[i] for each in kernels]) for i, side in enumerate(sides)]
    head = {name: to_image(to_uint8(image)[0].cpu(), 1) for name, image in images.items()}
    return encode_png(kernel_sheet(KernelViews(list(names), head, layers)))


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
<p>The kernels that a latent predicts for each layer, minus the identity: blue is below zero, red above, and the
numbers are the range of the scale. <b>Structure</b>: the depthwise kernels. <b>Channels</b>: the pointwise kernels;
each block is the matrix of a group, with outputs in rows and inputs in columns. <b>Frequencies</b>: the gain of both
together at each spatial frequency, with zero in the middle. <b>Singular values</b>: those of the groups' matrices in
descending order; the identity's are all 1, which is the dotted line.</p>
{body}
</html>
"""


def kernel_page(shown: KernelViews) -> str:
    """An HTML page with the same content, which contains its images."""
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
    data = base64.b64encode(encode_png(image)).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt=""><figcaption>{html.escape(words)}</figcaption></figure>'
    )


def _differences(layers: Sequence[Layer]) -> str:
    """An HTML table of the difference of each part in each layer."""
    names = max((list(layer.differences) for layer in layers), key=len)
    head = "".join(f"<th>{name}" for name in ["layer", *names])
    rows = [
        f"<tr><td>{layer.number}"
        + "".join(f"<td>{layer.differences[name]:.2f}" if name in layer.differences else "<td>–" for name in names)
        for layer in layers
    ]
    return (
        "<p>Relative differences: 0 for equal kernels, 1.41 for unrelated ones. In the diagrams with both curves of "
        "singular values, the first latent's is red.</p>"
        f"<table><tr>{head}{''.join(rows)}</table>"
    )
