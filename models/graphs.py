"""The graphs that are exported: the modules that they are traced from, with named inputs and outputs.

A generator is one graph: z, c, psi → images. A stylizer is two, because one style can be applied to many images:
style → kernels, and content, kernels → images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim

from models.sampling import labels_in_turn
from networks.generator import Generator
from networks.stylizer import MIN_SIZE, STRIDE, Stylizer, from_tensors, to_tensors
from torch_utils.errors import ranges_text
from torch_utils.sizes import width_and_height

BATCH = Dim("batch", min=1, max=2**16)  # which stays open, so that one file takes any number of samples


@dataclass(frozen=True)
class Port:
    """An input or output: its shape, with the names of open sizes, and its meaning."""

    shape: tuple[int | str, ...]
    meaning: str


@dataclass(frozen=True)
class Graph:
    """A module of tensors. Its inputs are in the order of the arguments, its outputs in the order of the results.

    `example(batch, height, width)` makes inputs, with images of that height and width where sizes are open.
    """

    name: str
    title: str
    module: nn.Module
    inputs: dict[str, Port]
    outputs: dict[str, Port]
    example: Callable[[int, int, int], tuple[Tensor, ...]]
    least: int = MIN_SIZE  # of open heights and widths

    def open_sizes(self, batch: int | None) -> tuple[dict[int, Dim], ...]:
        """The open sizes of each input. With `batch`, the number of samples is not one of them."""
        dims = {name: Dim(name, min=self.least, max=2**14) for name in ("height", "width")}
        if batch is None:
            dims["batch"] = BATCH
        return tuple(
            {i: dims[size] for i, size in enumerate(port.shape) if size in dims} for port in self.inputs.values()
        )


class GeneratorGraph(nn.Module):
    """G with its constant noise: z [N, z_dim] and c [N, c_dim], if the model has them, and psi [] → images."""

    def __init__(self, G: Generator):
        super().__init__()
        self.G = G

    def forward(self, *inputs: Tensor) -> Tensor:
        *rest, psi = inputs
        config = self.G.config
        z = rest.pop(0) if config.z_dim else None
        c = rest.pop(0) if config.c_dim else None
        return self.G(z, c, psi, "const")


class StyleGraph(nn.Module):
    """Style images [N, 3, S, S] → the tensors of their kernels."""

    def __init__(self, model: Stylizer):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        (style,) = inputs
        return tuple(to_tensors(self.model.kernels(style)).values())


class ContentGraph(nn.Module):
    """Content images [N, 3, H, W] and the tensors of kernels → images [N, 3, H, W]."""

    def __init__(self, model: Stylizer, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        content, *kernels = inputs
        height, width = content.shape[2:]
        features = self.model.encode(reflect_to_stride(content))
        image = self.model.decoder(features, from_tensors(dict(zip(self.names, kernels, strict=True))))
        for dim, size in ((2, height), (3, width)):  # not a slice: the tracer cannot prove its bounds
            image = image.index_select(dim, torch.arange(size, device=image.device))
        return image


def reflect_to_stride(images: Tensor) -> Tensor:
    """`networks.stylizer.pad_to_stride` for open sizes: padding written as an index of the pixels to copy."""
    for dim in (2, 3):
        size = images.shape[dim]
        last = size - 1
        pixels = torch.arange((last + STRIDE) // STRIDE * STRIDE, device=images.device)
        images = images.index_select(dim, last - (pixels - last).abs())
    return images


def of_generator(G: Generator) -> list[Graph]:
    """The graph of a generator."""
    config = G.config
    width, height = width_and_height(config.resolution)
    inputs = {}
    if config.z_dim:
        inputs["z"] = Port(("batch", config.z_dim), "latent codes, drawn from a standard normal distribution")
    if config.c_dim:
        meaning = "class: 1 at the class, 0 elsewhere; values between them mix classes"
        if (vectors := G.mapping.labels) is not None:
            meaning = f"label: numbers, which were in training {ranges_text(vectors.ranges())}"
        inputs["c"] = Port(("batch", config.c_dim), meaning)
    inputs["psi"] = Port((), "truncation psi: 1 for none; towards 0, images approach the mean image")
    meaning = "images from -1 (black) to 1 (white); clamp values beyond"
    if config.img_channels == 4:
        meaning += "; RGBA, the colours multiplied by alpha: divide (x + 1) / 2 of a colour by that of alpha for a file"
    images = Port(("batch", config.img_channels, height, width), meaning)

    def example(batch: int, _height: int, _width: int) -> tuple[Tensor, ...]:
        z = [torch.randn(batch, config.z_dim)] if config.z_dim else []
        c = [labels_in_turn(G, range(batch))] if config.c_dim else []
        return (*z, *c, torch.tensor(0.7))

    title = f"AdaConv generator of {width}x{height} images"
    return [Graph("generator", title, GeneratorGraph(G), inputs, {"images": images}, example)]


def of_stylizer(model: Stylizer) -> list[Graph]:
    """The two graphs of a stylizer."""
    size = model.config.style_size

    def image(height: int, width: int, batch: int) -> Tensor:
        return torch.rand(batch, 3, height, width) * 2 - 1

    def style(batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        return (image(size, size, batch),)

    def content(batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        return (image(height, width, batch), *read(*style(batch, height, width)))

    read = StyleGraph(model)
    tensors = to_tensors(model.kernels(*style(1, size, size)))
    meanings = {
        "depthwise": "spatial kernels [N, C, C/G, k, k]",
        "pointwise": "how the channels of a group mix [N, C, C/G]",
        "bias": "biases [N, C]",
    }
    kernels = {
        name: Port(("batch", *tensor.shape[1:]), f"stage {name[0]} of the decoder: {meanings[name[2:]]}")
        for name, tensor in tensors.items()
    }
    styles = Port(
        ("batch", 3, size, size), f"style images from -1 to 1: the square in the middle, resized to {size}x{size}"
    )
    least = model.config.min_size
    contents = Port(("batch", 3, "height", "width"), f"content images from -1 to 1, of at least {least}x{least}")
    images = Port(("batch", 3, "height", "width"), "the contents in the styles, from -1 to 1; clamp values beyond")
    return [
        Graph("style", "AdaConv stylizer: the kernels of styles", read, {"style": styles}, kernels, style),
        Graph(
            "content",
            "AdaConv stylizer: contents in styles, one style for each",
            ContentGraph(model, list(tensors)),
            {"content": contents, **kernels},
            {"images": images},
            content,
            least,
        ),
    ]
