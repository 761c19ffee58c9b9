"""A short training of a small GAN in float64, with the emulated kernels and again with the references.

    python -m tests.emulation.train 200

Prints both losses of the last step, and the largest relative difference of any loss. In float64, what rounding differs
by stays small over hundreds of steps; in float32 the two would be different trainings after some dozens.

EMULATED_FAULTY=adaconv,moments leaves these ops to their references, as the self-check does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from networks.discriminator import Discriminator, DiscriminatorConfig
from networks.generator import Generator, GeneratorConfig
from tests.emulation.emulate import Emulation, build
from torch_utils.ops import native


def losses(steps: int) -> list[float]:
    """Of discriminator and generator in turn. Every fourth step has R1, which is differentiated twice."""
    torch.manual_seed(0)
    small = {"resolution": 16, "cbase": 128, "cmax": 16, "map_depth": 2}
    g = Generator(GeneratorConfig(**small, z_dim=16, w_dim=16, style_channels=8, norm="instance", noise=False)).double()
    d = Discriminator(DiscriminatorConfig(**small)).double()
    g_optimizer, d_optimizer = (torch.optim.Adam(m.parameters(), lr=2e-3, betas=(0.0, 0.99)) for m in (g, d))
    result = []
    for step in range(steps):
        real = torch.rand(4, 3, 1, 1, dtype=torch.float64) * torch.linspace(-1, 1, 16, dtype=torch.float64)
        real = real.expand(4, 3, 16, 16).clone().requires_grad_(step % 4 == 0)
        z = torch.randn(4, 16, dtype=torch.float64)
        scores = d(real)
        loss = F.softplus(-scores).mean() + F.softplus(d(g(z).detach())).mean()
        if step % 4 == 0:
            (gradient,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
            loss = loss + gradient.square().sum([1, 2, 3]).mean()
        for optimizer, value in ((d_optimizer, loss), (g_optimizer, None)):
            value = F.softplus(-d(g(z))).mean() if value is None else value
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            result.append(float(value.detach()))
    return result


def main(steps: int) -> None:
    torch.set_num_threads(1)
    library = os.environ.get("EMULATED_LIBRARY")
    emulation = Emulation(Path(library) if library else build())
    emulation.orders(1)
    faulty = [op for op in os.environ.get("EMULATED_FAULTY", "").split(",") if op]
    native._faulty["cpu"] = dict.fromkeys(faulty, "left to its reference")
    emulated = losses(steps)
    launches = emulation.launches()
    native._loaded["cpu"] = False
    reference = losses(steps)
    assert emulation.launches() == launches > steps, "the emulated kernels were not used, or the references were not"
    worst = max(abs(a - b) / abs(b) for a, b in zip(emulated, reference, strict=True))
    print(f"last losses: {emulated[-2:]} and {reference[-2:]}")
    print(f"largest relative difference in {steps} steps: {worst:.2e}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
