"""The generator: StyleGAN2 (Karras et al. 2020) with AdaConv in place of the modulated convolution.

    z, c → MappingNetwork → ws → SynthesisNetwork → image

A synthesis layer is  AdaConv(w) → learned 3 × 3 convolution → demodulation → noise → bias, leaky ReLU, clamp.
`modulation` says what w predicts: AdaConv's kernels ("adaconv"), or one scale per channel, which makes the layer
StyleGAN2's modulated convolution ("modconv", norm "demod") or StyleGAN's AdaIN ("adain", norm "instance").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from networks.adaconv import AdaConv2d, AdaConvKernels, KernelPredictor, demodulation
from networks.label_vectors import LabelVectors
from networks.layers import RESAMPLE_TAPS, Linear, in_fast_order, normalize_2nd_moment, upsample2d, upsample_conv2d
from torch_utils.ops import bias_act, conv3x3, setup_filter
from torch_utils.precision import COMPUTE_DTYPES
from torch_utils.schema import Positive, Within
from torch_utils.sizes import Resolution, block_sizes, nominal_side, nominal_sides, to_resolution

Noise = Literal["random", "const", "none"] | Sequence[Tensor]
Modulation = Literal["adaconv", "modconv", "adain"]  # what w predicts for a layer: see `style_predictor`
MODULATIONS: tuple[Modulation, ...] = get_args(Modulation)
CLASS_MEANS = ("class_w_avg", "class_w_count")  # buffers that older files lack


@dataclass
class NetworkConfig:
    """The options that generator and discriminator have in common. Files are held to their bounds."""

    resolution: Resolution = 256  # the side of a square, or (width, height)
    img_channels: Annotated[int, Within(1, 64)] = 3
    c_dim: Annotated[int, Within(0, 2**17)] = 0  # classes, or numbers in a label vector; 0 for no labels
    cbase: Annotated[int, Within(16, 2**20)] = 32768  # channels of a block of side s: min(cbase / s, cmax)
    cmax: Annotated[int, Within(1, 2**13)] = 512
    map_depth: Annotated[int, Within(1, 64)] = 8  # layers of the mapping network; in D, of the class embedding
    clamp: Positive | None = 256.0  # limits the layers' outputs, so that half precision does not overflow
    vector_labels: bool = False  # whether a label is c_dim numbers, in place of one of c_dim classes

    def __post_init__(self):
        self.resolution = to_resolution(self.resolution)
        if self.cbase < (side := nominal_side(self.resolution)):
            raise ValueError(f"cbase: {self.cbase} leaves no channels at resolution {side}; take {side} or more")

    @property
    def classes(self) -> int:
        """The number of classes; 0 where there are no labels, or label vectors."""
        return 0 if self.vector_labels else self.c_dim

    @property
    def block_sizes(self) -> list[tuple[int, int]]:
        """Height and width of each block, from the constant to the image."""
        return block_sizes(self.resolution)

    @property
    def block_channels(self) -> list[int]:
        """The number of channels of each block, from the constant to the image."""
        return [self.channels(side) for side in nominal_sides(self.resolution)]

    def channels(self, side: int) -> int:
        """The number of channels of a block with this nominal side (`torch_utils.sizes.nominal_sides`)."""
        return min(self.cbase // side, self.cmax)


@dataclass
class GeneratorConfig(NetworkConfig):
    """Everything that is needed to build a Generator."""

    z_dim: Annotated[int, Within(0, 2**16)] = 512
    w_dim: Annotated[int, Within(1, 2**16)] = 512
    modulation: Modulation = "adaconv"
    norm: Literal["instance", "demod"] = "demod"
    kernel_size: Annotated[int, Within(1, 31)] = 3  # of the predicted kernels; also the size of the style map
    style_channels: Annotated[int, Within(1, 2**13)] = 64  # of the style map
    depthwise_scale: float = 0.03  # initial deviation of the depthwise kernels from the identity
    pointwise_scale: float = 1.0  # the same for the pointwise kernels' entries of each channel with itself
    mixing_scale: float = 0.3  # the same for their entries between channels
    map_lr: float = 0.1  # learning rate multiplier of the style map
    predict_bias: bool = False
    kernels_up_to: Annotated[int, Within(4, 2**14)] | None = None  # largest side whose layers have predicted kernels
    noise: bool = True  # whether layers add noise; small models that are trained briefly are better without it

    def __post_init__(self):
        super().__post_init__()
        if self.modulation not in MODULATIONS:
            raise ValueError(f"modulation: expected one of {', '.join(MODULATIONS)}, got {self.modulation!r}")
        if self.norm not in ("instance", "demod"):
            raise ValueError(f"norm: expected 'instance' or 'demod', got {self.norm!r}")
        if self.modulation == "modconv" and self.norm != "demod":
            raise ValueError("the modulated convolution (modconv) comes with StyleGAN2's demodulation, norm 'demod'")
        if self.modulation == "adain" and self.norm != "instance":
            raise ValueError("adain normalizes each input, norm 'instance'")

    def group(self, channels: int) -> int:
        """C/G: groups grow as channels shrink, so that all layers have about the same number of predicted values."""
        return next(g for g in range(max(1, min(channels, self.cmax // channels)), 0, -1) if channels % g == 0)

    @property
    def num_ws(self) -> int:
        """One w for each convolution, and one for the last ToRGB."""
        return 2 * len(self.block_sizes)


class MappingNetwork(nn.Module):
    """z [N, z_dim] and label c [N, c_dim] → w [N, w_dim]. StyleGAN2's f; with z_dim 0 an embedding of the label.

    c is a one-hot class or, with `vector_labels`, any numbers, which are standardized over the data set. Their
    embedding has biases of 1 at first. Without them the normalization after it would keep only the direction of c: of a
    single number, only its sign.
    """

    def __init__(
        self, z_dim: int, c_dim: int, w_dim: int, depth: int, lr_multiplier: float = 0.01, vector_labels: bool = False
    ):
        super().__init__()
        self.z_dim, self.c_dim = z_dim, c_dim
        self.labels = LabelVectors(c_dim) if c_dim and vector_labels else None
        self.embed = Linear(c_dim, w_dim, bias_init=1.0 if vector_labels else 0.0) if c_dim else None
        width = z_dim + (w_dim if c_dim else 0)
        sizes = [width] + [w_dim] * depth
        self.layers = nn.Sequential(
            *(Linear(i, o, act="lrelu", lr_multiplier=lr_multiplier) for i, o in pairwise(sizes))
        )

    def forward(self, z: Tensor | None, c: Tensor | None) -> Tensor:
        parts = []
        if self.z_dim:
            if z is None:
                raise ValueError(f"z: expected [N, {self.z_dim}], got None")
            parts.append(normalize_2nd_moment(z))
        if self.embed is not None:
            parts.append(normalize_2nd_moment(self.embed(c if self.labels is None else self.labels(c))))
        return self.layers(torch.cat(parts, dim=1))


class KernelStyle(nn.Module):
    """w [N, w_dim] → AdaConv's kernels: one linear layer makes the style map [N, S, k, k] that a KernelPredictor reads.

    w itself replaces the pooled map, so that the pointwise kernels depend on all of w, as StyleGAN2's scales do.
    """

    def __init__(self, config: GeneratorConfig, channels: int):
        super().__init__()
        size = config.kernel_size
        self.shape = (config.style_channels, size, size)
        self.map = Linear(config.w_dim, config.style_channels * size * size, lr_multiplier=config.map_lr)
        self.predictor = KernelPredictor(
            config.style_channels,
            channels,
            config.group(channels),
            config.kernel_size,
            config.depthwise_scale,
            config.pointwise_scale,
            config.mixing_scale,
            config.predict_bias,
            pooled_channels=config.w_dim,
        )

    def forward(self, w: Tensor) -> AdaConvKernels:
        return self.predictor(self.map(w).view(-1, *self.shape), w)


class ChannelStyle(nn.Module):
    """w [N, w_dim] → one scale per channel, and with `bias` one bias: the smallest AdaConv, 1 × 1 with G = C."""

    def __init__(self, w_dim: int, channels: int, bias: bool):
        super().__init__()
        self.scale = Linear(w_dim, channels, bias_init=1)
        self.bias = Linear(w_dim, channels) if bias else None

    def forward(self, w: Tensor) -> AdaConvKernels:
        scale = self.scale(w)[..., None]
        return AdaConvKernels(
            torch.ones_like(scale)[..., None, None], scale, None if self.bias is None else self.bias(w)
        )


def style_predictor(config: GeneratorConfig, channels: int, size: tuple[int, int]) -> nn.Module:
    """The module that predicts the kernels of a layer with `channels` input channels and this output size from w."""
    scales_only = config.kernels_up_to is not None and max(size) > config.kernels_up_to
    if config.modulation != "adaconv" or scales_only:
        return ChannelStyle(config.w_dim, channels, bias=config.modulation == "adain")
    return KernelStyle(config, channels)


class SynthesisLayer(nn.Module):
    """AdaConv(w) → learned 3 × 3 convolution → demodulation → noise → bias, leaky ReLU, clamp."""

    filter: Tensor
    noise_const: Tensor | None

    def __init__(
        self, config: GeneratorConfig, in_channels: int, out_channels: int, size: tuple[int, int], up: bool = False
    ):
        super().__init__()
        self.up, self.norm, self.clamp = up, config.norm, config.clamp
        instance = config.norm == "instance"
        self.adaconv = AdaConv2d(
            style_predictor(config, in_channels, size),
            norm="instance" if instance else "none",
            padding_mode="reflect" if instance else "zeros",
        )
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.weight_gain = (in_channels * 9) ** -0.5
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.size = size  # height and width of its output
        self.noise_strength = nn.Parameter(torch.zeros([])) if config.noise else None
        self.register_buffer("noise_const", torch.randn(1, 1, *size) if config.noise else None)
        self.register_buffer("filter", setup_filter(RESAMPLE_TAPS), persistent=False)

    def forward(self, x: Tensor, w: Tensor | AdaConvKernels, noise: Tensor | None) -> Tensor:
        """x [N, I, H, W], w [N, w_dim], noise [N or 1, 1, H', W'] → [N, O, H', W'], H' = 2H with `up`.

        Computed in the precision of x; kernels and demodulation in that of the weights. The kernels that w predicts
        may be given in place of w.
        """
        kernels = w if isinstance(w, AdaConvKernels) else self.adaconv.predictor(w)
        weight = self.weight * self.weight_gain
        demodulated = self.norm == "demod"
        if demodulated and x.dtype == torch.float16:
            # Could overflow before the demodulation, which cancels any constant factor.
            kernels = kernels.scaled(1 / kernels.composed.abs().amax(dim=(1, 2, 3, 4)))
            weight = weight / weight.abs().amax(dim=(1, 2, 3), keepdim=True) * self.weight_gain
        x = self.adaconv(x, kernels)
        applied = weight.to(x.dtype)
        x = upsample_conv2d(x, applied, self.filter) if self.up else conv3x3(x, applied)
        # ε stands beside the weights as they are before their gain, as in StyleGAN2.
        eps = 1e-8 * self.weight_gain**2
        scale = demodulation(weight, kernels.composed, eps).to(x.dtype)[:, :, None, None] if demodulated else None
        if noise is not None and self.noise_strength is not None:
            noise = (noise * self.noise_strength).to(x.dtype)
            x = x + noise if scale is None else torch.addcmul(noise, x, scale)  # both in one pass
        elif scale is not None:
            x = x * scale
        return bias_act(x, self.bias.to(x.dtype), "lrelu", clamp=self.clamp)


class ToRGB(nn.Module):
    """StyleGAN2's modulated 1 × 1 convolution without demodulation: [N, I, H, W] → [N, img_channels, H, W]."""

    def __init__(self, config: GeneratorConfig, in_channels: int):
        super().__init__()
        self.scale = Linear(config.w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(config.img_channels, in_channels, 1, 1))
        self.weight_gain = in_channels**-0.5
        self.bias = nn.Parameter(torch.zeros(config.img_channels))
        self.clamp = config.clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        weight = self.weight.flatten(1) * self.weight_gain * self.scale(w)[:, None]  # [N, img_channels, I]
        y = torch.bmm(weight.to(x.dtype), x.flatten(2)).unflatten(2, x.shape[2:])
        return bias_act(y.to(self.bias.dtype), self.bias, clamp=self.clamp)


class SynthesisBlock(nn.Module):
    """Two layers of one size (one in the first block), and ToRGB, whose output is added to the upsampled image."""

    filter: Tensor

    def __init__(self, config: GeneratorConfig, number: int):
        super().__init__()
        channels, size = config.block_channels[number], config.block_sizes[number]
        self.compute_dtype: torch.dtype | None = None  # precision of the layers; None for that of the weights
        self.conv0 = None
        if number > 0:
            self.conv0 = SynthesisLayer(config, config.block_channels[number - 1], channels, size, up=True)
        self.conv1 = SynthesisLayer(config, channels, channels, size)
        self.torgb = ToRGB(config, channels)
        self.register_buffer("filter", setup_filter(RESAMPLE_TAPS), persistent=False)

    def layers(self) -> list[SynthesisLayer]:
        return [self.conv1] if self.conv0 is None else [self.conv0, self.conv1]

    def forward(
        self, x: Tensor, img: Tensor | None, ws: Sequence[Tensor | AdaConvKernels], noise: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """ws: one, or its kernels, for each layer, and one for ToRGB; noise: one for each layer."""
        x = in_fast_order(x.to(self.compute_dtype or self.conv1.weight.dtype))
        for layer, w, n in zip(self.layers(), ws, noise, strict=False):
            x = layer(x, w, n)
        rgb = self.torgb(x, ws[-1])
        return x, rgb if img is None else upsample2d(img, self.filter) + rgb


class SynthesisNetwork(nn.Module):
    """ws [N, num_ws, w_dim] → image [N, img_channels, H, W], about −1..1. StyleGAN2's g."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.const = nn.Parameter(torch.randn(config.block_channels[0], *config.block_sizes[0]))
        blocks = nn.ModuleList(SynthesisBlock(config, number) for number in range(len(config.block_sizes)))
        self.blocks = cast(Sequence[SynthesisBlock], blocks)

    def layers(self) -> list[SynthesisLayer]:
        return [layer for block in self.blocks for layer in block.layers()]

    def compute_in(self, precision: str) -> None:
        """Lets all layers compute in half precision, or with "fp32" in that of the weights.

        The image is summed up, and kernels and demodulation are computed, in the precision of the weights in any case.

        Raises:
            ValueError: for "fp16" if the layers have no clamp, without which float16 can overflow.
        """
        if precision == "fp16" and any(layer.clamp is None for layer in self.layers()):
            raise ValueError("fp16 can overflow in a model without a clamp; take bf16 or fp32")
        for block in self.blocks:
            block.compute_dtype = COMPUTE_DTYPES[precision]

    def noise(self, mode: Noise, n: int) -> Sequence[Tensor | None]:
        """The noise of every layer for n samples: [n, 1, H, W], [1, 1, H, W] for "const", None for "none".

        Raises:
            ValueError: if the mode is unknown, or there is not one tensor for each layer.
        """
        layers = self.layers()
        if not isinstance(mode, str):
            if len(mode) != len(layers):
                raise ValueError(f"noise: expected a tensor for each of {len(layers)} layers, got {len(mode)}")
            return mode
        if mode == "none":
            return [None] * len(layers)
        if mode == "const":
            return [layer.noise_const for layer in layers]
        if mode == "random":
            device = self.const.device
            return [
                None if layer.noise_const is None else torch.randn(n, 1, *layer.size, device=device) for layer in layers
            ]
        raise ValueError(f"noise: expected 'random', 'const', 'none' or a tensor for each layer, got {mode!r}")

    def kernels(self, ws: Tensor) -> list[AdaConvKernels]:
        """The kernels that ws [N, num_ws, w_dim] predict for each layer. The last of ws is ToRGB's, which has none."""
        layers = self._checked(ws)
        return [layer.adaconv.predictor(w) for layer, w in zip(layers, ws.unbind(dim=1), strict=False)]

    def forward(self, ws: Tensor, noise: Noise = "random", kernels: Sequence[AdaConvKernels] | None = None) -> Tensor:
        """ws [N, num_ws, w_dim] → image. `kernels` replace those that ws predict; ToRGB still reads ws.

        Raises:
            ValueError: if ws, noise or kernels do not match the layers.
        """
        n, layers = ws.shape[0], self._checked(ws)
        if kernels is not None and len(kernels) != len(layers):
            raise ValueError(f"kernels: expected those of each of {len(layers)} layers, got {len(kernels)}")
        x, img = in_fast_order(self.const.expand(n, -1, -1, -1)), None
        noises, each_w = list(self.noise(noise, n)), ws.unbind(dim=1)
        styles = each_w if kernels is None else kernels
        i = 0
        for block in self.blocks:
            count = len(block.layers())
            # ToRGB shares its w with the next block's first layer (StyleGAN2's layout of ws)
            x, img = block(x, img, [*styles[i : i + count], each_w[i + count]], noises[i : i + count])
            i += count
        assert img is not None  # there is one block at least
        return img

    def _checked(self, ws: Tensor) -> list[SynthesisLayer]:
        """The layers. Raises ValueError if ws do not match them."""
        layers = self.layers()
        if ws.ndim != 3 or ws.shape[1] != len(layers) + 1:
            raise ValueError(f"ws: expected [N, {len(layers) + 1}, w_dim], got {list(ws.shape)}")
        return layers


class Generator(nn.Module):
    """z [N, z_dim], c [N, c_dim] → image [N, img_channels, H, W], about −1..1."""

    w_avg: Tensor
    class_w_avg: Tensor
    class_w_count: Tensor

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        self.mapping = MappingNetwork(
            config.z_dim, config.c_dim, config.w_dim, config.map_depth, vector_labels=config.vector_labels
        )
        self.synthesis = SynthesisNetwork(config)
        self.register_buffer("w_avg", torch.zeros(config.w_dim))  # running mean of w, for truncation
        if config.classes:  # running mean of w of each class, and how often it has moved (0: it is not known)
            self.register_buffer("class_w_avg", torch.zeros(config.classes, config.w_dim))
            self.register_buffer("class_w_count", torch.zeros(config.classes))

    def ws(self, z: Tensor, c: Tensor | None = None, psi: float | Tensor = 1.0, center: Tensor | None = None) -> Tensor:
        """w for every layer, [N, num_ws, w_dim], with truncation: w_avg + psi · (w − w_avg) (Karras et al. 2019).

        psi 1 does not truncate; a tensor [num_ws] truncates each layer by its own psi. A `center` [N, w_dim] takes the
        place of w_avg.
        """
        return self.truncated(self.mapping(z, c), psi, center)

    def truncated(self, w: Tensor, psi: float | Tensor = 1.0, center: Tensor | None = None) -> Tensor:
        """Repeats w [N, w_dim] for every layer, or takes ws [N, num_ws, w_dim], and truncates them as `ws` does."""
        center = self.w_avg if center is None else center
        if isinstance(psi, Tensor):
            ws = w if w.ndim == 3 else w[:, None].expand(-1, self.config.num_ws, -1)
            return center.to(w.dtype).unsqueeze(-2).lerp(ws, psi.to(w).reshape(-1, 1))
        if psi != 1:
            center = center.to(w.dtype)
            w = (center.unsqueeze(-2) if w.ndim == 3 else center).lerp(w, psi)
        return w if w.ndim == 3 else w[:, None].expand(-1, self.config.num_ws, -1)

    def forward(self, z: Tensor, c: Tensor | None = None, psi: float | Tensor = 1.0, noise: Noise = "random") -> Tensor:
        return self.synthesis(self.ws(z, c, psi), noise)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Weights from before the classes' means were tracked do not have them; these are then not known."""
        for name in CLASS_MEANS if self.config.classes else ():
            state_dict.setdefault(prefix + name, torch.zeros_like(getattr(self, name)))
        super()._load_from_state_dict(state_dict, prefix, *rest)
