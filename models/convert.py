"""A generator of StyleGAN2's or StyleGAN's modulation as an AdaConv generator that makes the same images.

The modulated convolution (Karras et al. 2020, section 2.2) scales each channel by a number that w predicts. AdaConv
contains it: where the depthwise kernels' deviations are 0, those kernels are the identity, and where all but the
diagonal of the pointwise kernels is 0, the diagonal holds the scales. With γ for `pointwise_scale`,

    scale_c(w) = a_c·w/√w_dim + b_c = 1 + γ · (a_c/γ · w/√w_dim + (b_c − 1)/γ)

whose right-hand side is what a KernelPredictor computes. AdaIN predicts a bias too, as AdaConv's `predict_bias` does.
What is 0 has a gradient all the same: the style map and the scales that multiply it are not 0.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from networks.generator import Generator, GeneratorConfig, Modulation

SCALE = re.compile(r"(synthesis\.blocks\.\d+\.conv[01]\.adaconv\.predictor)\.scale\.weight")  # of a ChannelStyle
BIAS = re.compile(SCALE.pattern.replace("scale", "bias"))  # of AdaIN
STYLE_MAP = ".adaconv.predictor.map."  # of a KernelStyle


def to_adaconv(G: Generator, like: GeneratorConfig | None = None) -> Generator:
    """An AdaConv generator of the same images as G, of `modulation` "modconv" or "adain"; its style maps are random.

    `like` says how large its kernels and style maps are; None for the defaults. New parameters are to be trained.
    Weights that G has already are copied, and random numbers are drawn from a stream of their own.

    Raises:
        ValueError: where G is an AdaConv generator, or `like` has a `pointwise_scale` of 0.
    """
    if G.config.modulation == "adaconv":
        raise ValueError("the generator is an AdaConv generator already")
    config = adaconv_config(G.config, like)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        converted = type(G)(config).to(G.w_avg)
    result = converted.load_state_dict(adaconv_weights(G.state_dict(), config), strict=False)
    if result.unexpected_keys or any(STYLE_MAP not in name for name in result.missing_keys):
        raise AssertionError(f"names that do not fit: {result}")
    return converted.train(G.training)


def adaconv_config(config: GeneratorConfig, like: GeneratorConfig | None = None) -> GeneratorConfig:
    """The construction of the AdaConv generator that a "modconv" or "adain" generator of `config` becomes."""
    like = like or GeneratorConfig()
    names = ("kernel_size", "style_channels", "depthwise_scale", "pointwise_scale", "mixing_scale", "map_lr")
    return replace(
        config,
        modulation="adaconv",
        kernels_up_to=None,
        predict_bias=like.predict_bias or config.modulation == "adain",
        **{name: getattr(like, name) for name in names},
    )


def modulation_of(weights: dict[str, Tensor]) -> Modulation | None:
    """The `modulation` of the generator that has these weights; None if it is none that AdaConv contains."""
    if any(STYLE_MAP in name for name in weights):  # of some layers at least, see kernels_up_to
        return "adaconv"
    if not any(map(SCALE.fullmatch, weights)):
        return None
    return "adain" if any(map(BIAS.fullmatch, weights)) else "modconv"


def adaconv_weights(weights: dict[str, Tensor], config: GeneratorConfig) -> dict[str, Tensor]:
    """The weights of a "modconv" or "adain" generator as those of the AdaConv generator of `config`.

    Those of the style maps are left out: whatever they are, the images are the same.

    Raises:
        ValueError: where `config` has a `pointwise_scale` of 0, or no biases for those of "adain".
    """
    if not config.pointwise_scale:
        raise ValueError("pointwise_scale: a generator whose pointwise kernels are fixed cannot hold predicted scales")
    if any(map(BIAS.fullmatch, weights)) and not config.predict_bias:
        raise ValueError("predict_bias: a generator without predicted biases cannot hold those of AdaIN")
    converted = {name: value for name, value in weights.items() if ".adaconv.predictor." not in name}
    for name, weight in weights.items():
        if match := SCALE.fullmatch(name):
            style = match[1]
            bias = [weights[key] for key in (f"{style}.bias.weight", f"{style}.bias.bias") if key in weights]
            predictor = _predictor_weights(weight, weights[f"{style}.scale.bias"], bias, config)
            converted |= {f"{style}.predictor.{part}": value for part, value in predictor.items()}
    return converted


def _predictor_weights(
    weight: Tensor, bias: Tensor, predicted_bias: list[Tensor], config: GeneratorConfig
) -> dict[str, Tensor]:
    """A KernelPredictor's weights that give C scales: weight [C, w_dim], bias [C]; of AdaIN also its bias's."""
    channels, w_dim = weight.shape
    group = config.group(channels)
    diagonal = torch.arange(channels) * group + torch.arange(channels) % group  # of [C, C/G], each channel to itself
    pointwise_weight, pointwise_bias = weight.new_zeros(channels * group, w_dim), bias.new_zeros(channels * group)
    pointwise_weight[diagonal] = weight / config.pointwise_scale
    pointwise_bias[diagonal] = (bias - 1) / config.pointwise_scale
    depthwise = (channels * group, config.style_channels, config.kernel_size, config.kernel_size)
    parts = {
        "depthwise_weight": weight.new_zeros(depthwise),
        "depthwise_bias": weight.new_zeros(channels * group),
        "pointwise_weight": pointwise_weight,
        "pointwise_bias": pointwise_bias,
    }
    if config.predict_bias:
        zeros = [weight.new_zeros(channels, w_dim), weight.new_zeros(channels)]
        parts["bias_weight"], parts["bias_bias"] = predicted_bias or zeros
    return parts
