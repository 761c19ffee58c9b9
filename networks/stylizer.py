"""The stylizer: a content image rebuilt in the style of another one (Chandran et al., CVPR 2021).

    style   → VGG-19 → StyleEncoder → W → KernelPredictor of each stage → kernels
    content → VGG-19 → StyleDecoder(kernels) → image

A stage of the decoder is  ×2 → AdaConv(kernels) → learned 3 × 3 convolutions with ReLU. With `modulation="adain"` the
content's features take the style's mean and standard deviation once, before the first stage's convolution, and no other
stage is modulated: AdaIN (Huang and Belongie 2017), in the same code.

A style is a list of AdaConvKernels, one for each modulated stage. `Stylizer.kernels` reads it once from an image; it
then applies to any number of images, and can be mixed with others (`mix_styles`), taken apart
(`structure_and_statistics`) and stored in a file (`to_tensors`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.adaconv import AdaConv2d, AdaConvKernels, KernelPredictor
from networks.layers import Conv3x3, normalize_2nd_moment
from networks.vgg import STRIDE, VGG19, scale_channels
from torch_utils.ops import moments
from torch_utils.ops.adaconv import PaddingMode
from torch_utils.schema import Within

Kernels = list[AdaConvKernels]
Statistics = tuple[Tensor, Tensor]  # mean and variance, both [N, C]

CHANNELS = (512, 256, 128, 64)  # of the stages' inputs, at full width
GROUP = (1, 2, 4, 8)  # C/G: the same number of predicted values in each stage
CONVOLUTIONS = ((256,), (256, 256, 256, 128), (128, 64), (64, 3))  # output channels: VGG-19's in reverse order
HALO = (2, 3, 2, 2)  # pixels of a stage's input around its own that an output depends on, for 3 × 3 kernels
ENCODER_HALO = 30  # the same for relu4_1, in pixels of the image: 2 + 2·2 + 4·4 + 8
MIN_SIZE = STRIDE + 1  # two pixels per side of relu4_1, so that it can be reflected
EPS = 1e-5  # of instance normalization
SLOPE = 0.2  # of the style encoder's leaky ReLU


@dataclass
class StylizerConfig:
    """Everything that is needed to build a Stylizer."""

    width: Annotated[float, Within(0, 4, above=True)] = 1.0  # factor on all channels
    modulation: Literal["adaconv", "adain"] = "adaconv"
    style_size: Annotated[int, Within(64, 4096)] = 256  # side of the style image in pixels
    style_channels: Annotated[int, Within(1, 2**13)] = 512  # of the style map W, at full width
    kernel_size: Annotated[int, Within(1, 31)] = 3  # of the predicted kernels; also the size of W
    depthwise_scale: float = 0.1  # initial deviation of the depthwise kernels from the identity
    pointwise_scale: float = 1.0  # the same for the pointwise kernels' entries of each channel with itself
    mixing_scale: float = 0.3  # the same for their entries between channels
    # What VGG-19, the style encoder and the predictors see beyond a border; the decoder always reflects. Zeros draw a
    # frame. They are the default because models from before this option were trained so; new trainings reflect.
    border: PaddingMode = "zeros"

    def __post_init__(self):
        if not 0 < self.width <= 4:
            raise ValueError(f"width: expected a number above 0, up to 4, got {self.width}")
        if self.modulation not in ("adaconv", "adain"):
            raise ValueError(f"modulation: expected 'adaconv' or 'adain', got {self.modulation!r}")
        if self.style_size < 64 or self.style_size % 64:
            raise ValueError(f"style_size: expected a multiple of 64, got {self.style_size}")
        if self.style_channels < 1:
            raise ValueError(f"style_channels: expected at least 1, got {self.style_channels}")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {self.kernel_size}")
        if self.border not in ("zeros", "reflect"):
            raise ValueError(f"border: expected 'zeros' or 'reflect', got {self.border!r}")

    def channels(self, stage: int) -> int:
        return scale_channels(CHANNELS[stage], self.width)

    def group(self, stage: int) -> int:
        """C/G of a stage; in narrow models the largest size that divides the channels."""
        return next(g for g in range(GROUP[stage], 0, -1) if self.channels(stage) % g == 0)

    @property
    def min_size(self) -> int:
        """The smallest side of a content in pixels: relu4_1 is reflected by half a predicted kernel."""
        reach = self.kernel_size // 2 if self.modulation == "adaconv" else 0
        return max(STRIDE * reach + 1, MIN_SIZE)

    @property
    def map_channels(self) -> int:
        return scale_channels(self.style_channels, self.width)


class StyleEncoder(nn.Module):
    """relu4_1 of the style [N, 512, s, s], s = style_size / 8 → style map W [N, S, k, k] of unit mean square.

    Three times 3 × 3 convolution, leaky ReLU, average pooling; then one fully connected layer (paper, section 3.2.1).
    The normalization gives the predictors an input of unit variance, whatever the scale of VGG's features.
    """

    def __init__(self, config: StylizerConfig):
        super().__init__()
        channels, side = config.channels(0), config.style_size // STRIDE // 8
        self.shape = (config.map_channels, config.kernel_size, config.kernel_size)
        convs = nn.ModuleList(Conv3x3(channels, channels, config.border) for _ in range(3))
        self.convs = cast(Sequence[Conv3x3], convs)
        self.linear = nn.Linear(channels * side**2, config.map_channels * config.kernel_size**2)
        layers: list[nn.Conv2d | nn.Linear] = [*self.convs, self.linear]
        for layer in layers:
            initialize(layer, nn.init.calculate_gain("leaky_relu", SLOPE))
        self.to(memory_format=torch.channels_last)

    def forward(self, features: Tensor) -> Tensor:
        x = features
        for conv in self.convs:
            x = F.avg_pool2d(F.leaky_relu(conv(x), SLOPE, inplace=True), 2)
        return normalize_2nd_moment(at_least_float32(self.linear(x.flatten(1)))).view(-1, *self.shape)


class DecoderStage(nn.Module):
    """[×2 →] AdaConv → learned 3 × 3 convolutions with reflected borders and ReLU; the last stage's end in RGB."""

    def __init__(self, config: StylizerConfig, index: int):
        super().__init__()
        self.up, self.last = index > 0, index == len(CHANNELS) - 1
        channels = config.channels(index)
        self.adaconv: AdaConv2d | None = None
        if config.modulation == "adain":
            if index == 0:
                self.adaconv = AdaConv2d(nn.Identity())
        else:
            predictor = KernelPredictor(
                config.map_channels,
                channels,
                config.group(index),
                config.kernel_size,
                config.depthwise_scale,
                config.pointwise_scale,
                config.mixing_scale,
                border=config.border,
            )
            self.adaconv = AdaConv2d(predictor)
        self.convs = nn.ModuleList()
        for out in CONVOLUTIONS[index]:
            out = out if out == 3 else scale_channels(out, config.width)
            conv = Conv3x3(channels, out, "reflect")
            initialize(conv, 2**0.5 if out != 3 else 0.5)  # keeps the first images within −1..1
            self.convs.append(conv)
            channels = out
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, kernels: AdaConvKernels | None, statistics: Statistics | None = None) -> Tensor:
        """x [N, C, h, w] → [N, C', h, w], or twice the size with `up`. See StyleDecoder.stage."""
        if self.adaconv is not None:
            x = x.contiguous()
            # computed before the enlargement: repeating every pixel changes neither mean nor variance
            statistics = moments(at_least_float32(x)) if statistics is None else statistics
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        if self.adaconv is not None:
            x = self.adaconv(x, kernels, statistics)
        x = x.contiguous(memory_format=torch.channels_last)
        for i, conv in enumerate(self.convs):
            x = conv(x, relu=not (self.last and i + 1 == len(self.convs)))
        return x


class StyleDecoder(nn.Module):
    """Content features relu4_1 [N, 512, h, w] and kernels → image [N, 3, 8h, 8w], about −1..1."""

    def __init__(self, config: StylizerConfig):
        super().__init__()
        stages = nn.ModuleList(DecoderStage(config, i) for i in range(len(CHANNELS)))
        self.stages = cast(Sequence[DecoderStage], stages)

    def modulated(self) -> list[DecoderStage]:
        """The stages that a style modulates: all of them, or with AdaIN only the first."""
        return [stage for stage in self.stages if stage.adaconv is not None]

    def stage(
        self, index: int, x: Tensor, kernels: AdaConvKernels | None, statistics: Statistics | None = None
    ) -> Tensor:
        """One stage, [N, C_i, h, w] → [N, C_{i+1}, h', w']: h' = h in the first, 2h in the others.

        `statistics` are the mean and variance of each channel, [N, C_i], that x is normalized by; None for those of x.
        With the statistics of a whole image, x may be a tile of it: outputs at least `HALO[index]` pixels of the input
        from the tile's edges equal those of the whole image (with k × k kernels, k // 2 − 1 pixels more). That is 16,
        24, 8 and 4 pixels of the content for the four stages; the encoder's halo is `ENCODER_HALO`.
        """
        return self.stages[index](x, kernels, statistics)

    def forward(self, features: Tensor, kernels: Sequence[AdaConvKernels]) -> Tensor:
        """The image of features and kernels, of one style for all samples or of one for each. Raises ValueError."""
        x = features
        n = x.shape[0]
        if any(k.depthwise.shape[0] not in (1, n) for k in kernels):
            raise ValueError(f"kernels: expected those of one style or of {n}, got {len(kernels[0].depthwise)}")
        for i, k in enumerate(self.kernels_by_stage(kernels)):
            x = self.stage(i, x, k)
        return x

    def kernels_by_stage(self, kernels: Sequence[AdaConvKernels]) -> list[AdaConvKernels | None]:
        """The kernels of each stage, None for stages without; ValueError if there are too many or too few."""
        expected = len(self.modulated())
        if len(kernels) != expected:
            raise ValueError(f"kernels: expected those of {expected} stages, got {len(kernels)}")
        return [*kernels, *[None] * (len(self.stages) - expected)]


class Stylizer(nn.Module):
    """content [N, 3, H, W] in −1..1 and kernels → the content in that style, [N, 3, H, W].

    kernels = model.kernels(style) reads styles, one for each content or one for all of them. The encoder, VGG-19, is
    not trained: whoever builds a new model loads its weights, which are usually ImageNet's.
    """

    def __init__(self, config: StylizerConfig):
        super().__init__()
        self.config = config
        self.encoder = VGG19(config.width, config.border).requires_grad_(False)
        self.style_encoder = StyleEncoder(config) if config.modulation == "adaconv" else None
        self.decoder = StyleDecoder(config)

    def encode(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in −1..1 → relu4_1 [N, 512, H / 8, W / 8]."""
        return self.encoder(images)[-1]

    def kernels(self, style: Tensor) -> Kernels:
        """Style images [N, 3, H, W] of any size → the kernels for each stage, of N samples.

        Reads the square in the middle of each image, resized to `style_size`.
        """
        return self.kernels_of(self.encode(resize_square(style, self.config.style_size)))

    def kernels_of(self, features: Tensor) -> Kernels:
        """The kernels from relu4_1 of the style, [N, 512, s, s] with s = style_size / 8, or of any size with AdaIN."""
        if self.style_encoder is None:
            mean, std = channel_statistics(features)
            std = std[..., None]
            return [AdaConvKernels(torch.ones_like(std)[..., None, None], std, mean)]
        style = self.style_encoder(features)
        return [stage.adaconv.predictor(style) for stage in self.decoder.stages if stage.adaconv is not None]

    def forward(self, content: Tensor, kernels: Sequence[AdaConvKernels]) -> Tensor:
        height, width = content.shape[2:]
        image = self.decoder(self.encode(pad_to_stride(content, self.config.min_size)), kernels)
        return image[:, :, :height, :width]


def initialize(layer: nn.Conv2d | nn.Linear, gain: float) -> None:
    """An input of unit mean square gives such an output after an activation with that gain (He et al. 2015, eq. 10)."""
    nn.init.normal_(layer.weight, std=gain / layer.weight[0].numel() ** 0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def channel_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of [N, C, h, w], both [N, C], in float32 at least."""
    mean, var = moments(at_least_float32(features))
    return mean, (var + EPS).sqrt()


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or as it is in float64. Squares and variances of half precision could overflow."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pad_to_stride(images: Tensor, least: int = MIN_SIZE) -> Tensor:
    """Pads images [N, 3, H, W] by reflection at the right and the bottom to multiples of VGG's stride, 8.

    Raises:
        ValueError: if a side is smaller than `least`.
    """
    height, width = images.shape[2:]
    if min(height, width) < least:
        raise ValueError(f"content: expected at least {least}x{least} pixels, got {width}x{height}")
    right, bottom = -width % STRIDE, -height % STRIDE
    return F.pad(images, [0, right, 0, bottom], mode="reflect") if right or bottom else images


def resize_square(images: Tensor, size: int) -> Tensor:
    """The square in the middle of images [N, 3, H, W], resized to [N, 3, size, size].

    Resizing a whole oblong image to a square instead would change the shape of the strokes.
    """
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[:, :, top : top + side, left : left + side]
    if side == size:
        return square
    return F.interpolate(square, [size, size], mode="bilinear", antialias=True, align_corners=False)


# Arithmetic of styles. A style is its kernels, so all of it works on these.


def mix_styles(styles: Sequence[Sequence[AdaConvKernels]], weights: Sequence[float]) -> Kernels:
    """Mixes several styles into one: Σ weight · kernels, with the weights scaled to sum to 1.

    With AdaIN this is Huang and Belongie's interpolation of styles (section 7.3), where features are linear in the
    kernels.

    Raises:
        ValueError: if there is not one weight for each style, or the weights sum to 0 or are not finite.
    """
    if not styles or len(styles) != len(weights):
        raise ValueError(f"weights: expected one for each of {len(styles)} styles, got {len(weights)}")
    total = float(sum(weights))
    if not 0 < abs(total) < float("inf"):
        raise ValueError(f"weights: expected numbers that do not sum to 0, got {list(weights)}")
    shares = [weight / total for weight in weights]

    def weighted_sum(tensors: Sequence[Tensor]) -> Tensor:
        total = torch.zeros_like(tensors[0])
        for share, t in zip(shares, tensors, strict=True):
            total = total + share * t
        return total

    return [
        AdaConvKernels(
            weighted_sum([k.depthwise for k in stage]),
            weighted_sum([k.pointwise for k in stage]),
            weighted_sum([k.bias for k in stage]),
        )
        for stage in zip(*styles, strict=True)
    ]


def structure_and_statistics(structure: Sequence[AdaConvKernels], statistics: Sequence[AdaConvKernels]) -> Kernels:
    """The depthwise kernels of one style with the pointwise kernels and biases of another."""
    return [AdaConvKernels(a.depthwise, b.pointwise, b.bias) for a, b in zip(structure, statistics, strict=True)]


def own_kernels(model: Stylizer, content: Tensor) -> Kernels:
    """The kernels of a content [N, 3, H, W] as its own style.

    AdaIN reads the whole content and not its square, so that its own style changes nothing.
    """
    if model.style_encoder is None:
        return model.kernels_of(model.encode(pad_to_stride(content)))
    return model.kernels(content)


def apply_strength(own: Sequence[AdaConvKernels], style: Sequence[AdaConvKernels], strength: float) -> Kernels:
    """Kernels between a content's own (strength 0) and those of a style (strength 1): the content–style trade-off.

    AdaIN's trade-off blends the stylized features with the content's (Huang and Belongie, section 7.3), which is the
    same as blending the style's statistics with the content's; AdaConv has kernels in place of the statistics. To blend
    AdaConv's features instead, one would need the content's at all four stages, which exist only in a decoder that runs
    with the content's kernels; and the next convolutions would see two images, one on top of the other.
    """
    return mix_styles([own, style], [1 - strength, strength])


def reduce_style_channels(model: Stylizer, maps: Tensor, style_channels: int) -> Stylizer:
    """A stylizer with fewer style channels than `model`: the principal directions P of the style maps [N, S, k, k].

    W' = PᵀW, and the weights of every predictor are multiplied by P, so that W ≈ P W' gives the same kernels. Both
    scales, W's unit mean square and the predictors' 1/√fan-in, cancel. Exact if the maps lie in the span of P.
    """
    new = Stylizer(replace(model.config, style_channels=style_channels)).to(maps)
    directions = maps.movedim(1, 0).flatten(1).double()  # every position of every map
    P = torch.linalg.eigh(directions @ directions.t())[1].flip(1)[:, : new.config.map_channels].to(maps.dtype)
    weights = model.state_dict()
    for name, value in weights.items():
        if name.startswith("style_encoder.linear."):
            value = torch.einsum("s...,sr->r...", value.unflatten(0, (maps.shape[1], -1)), P).flatten(0, 1)
        elif name.endswith(("predictor.depthwise_weight", "predictor.pointwise_weight", "predictor.bias_weight")):
            value = torch.einsum("os...,sr->or...", value, P)
        weights[name] = value
    new.load_state_dict(weights)
    return new


def to_tensors(kernels: Sequence[AdaConvKernels]) -> dict[str, Tensor]:
    """The tensors of kernels by name ("0.depthwise", …), as a safetensors file stores them."""
    return {
        f"{i}.{name}": getattr(k, name).detach().contiguous()
        for i, k in enumerate(kernels)
        for name in ("depthwise", "pointwise", "bias")
    }


def from_tensors(tensors: dict[str, Tensor]) -> Kernels:
    """The kernels that `to_tensors` turned into tensors. Raises ValueError if names or shapes are others."""
    stages = len(tensors) // 3
    names = [f"{i}.{name}" for i in range(stages) for name in ("depthwise", "pointwise", "bias")]
    if not stages or set(names) != set(tensors):
        raise ValueError(f"kernels: expected depthwise, pointwise and bias of each stage, got {sorted(tensors)[:6]}")
    kernels = [AdaConvKernels(*(tensors[name] for name in names[3 * i : 3 * i + 3])) for i in range(stages)]
    for k in kernels:
        n, c, group = k.depthwise.shape[:3] if k.depthwise.ndim == 5 else (0, 0, 0)
        if k.depthwise.ndim != 5 or k.pointwise.shape != (n, c, group) or k.bias is None or k.bias.shape != (n, c):
            raise ValueError("kernels: the shapes of depthwise, pointwise and bias do not match")
    return kernels
