"""Small generators of random weights, with biases as after some training."""

from __future__ import annotations

import torch

from networks.generator import Generator, GeneratorConfig

VARIANTS = [("adaconv", "demod"), ("adaconv", "instance"), ("modconv", "demod"), ("adain", "instance")]


def generator(modulation="adaconv", norm="demod", **options) -> Generator:
    torch.manual_seed(0)
    small = {"z_dim": 8, "w_dim": 8, "map_depth": 1, "cbase": 128, "cmax": 8, "depthwise_scale": 0.5}
    G = Generator(GeneratorConfig(16, modulation=modulation, norm=norm, **small | options)).double()
    for name, parameter in G.named_parameters():
        if name.endswith(("bias", "noise_strength")):
            torch.nn.init.normal_(parameter, std=0.3)
    return G.eval().requires_grad_(False)


def codes(G: Generator, n: int) -> torch.Tensor:
    return G.ws(torch.randn(n, 8, dtype=torch.float64))
