"""Two processes, each with half of the batch, train as one process with all of it."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from networks.discriminator import Discriminator, DiscriminatorConfig
from networks.generator import Generator, GeneratorConfig
from tests.scripts import launch
from torch_utils import distributed
from training.loss import PathLength, discriminator_loss, generator_loss, gradient_penalty

NETWORK = {"resolution": 16, "img_channels": 3, "c_dim": 3, "cbase": 128, "cmax": 8, "map_depth": 2}


def gradients(module: nn.Module, loss: Tensor) -> list[Tensor | None]:
    module.zero_grad()
    loss.backward()
    distributed.average_gradients(module.parameters())
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def equal_gradients(folder: Path) -> None:
    """What each process checks; it leaves a file when all of it holds."""
    torch.manual_seed(0)
    G = Generator(GeneratorConfig(**NETWORK, z_dim=8, w_dim=8, style_channels=8, noise=False)).double()
    D = Discriminator(DiscriminatorConfig(**NETWORK, mbstd_group=4)).double()
    for p in [*G.parameters(), *D.parameters()]:
        p.data += 0.1 * torch.randn_like(p)  # nothing starts at zero
    z, real = torch.randn(8, 8, dtype=torch.float64), torch.randn(8, 3, 16, 16, dtype=torch.float64)
    c = nn.functional.one_hot(torch.arange(8) % 3, 3).double()
    y = torch.randn_like(real)

    def path_length(part: slice) -> Tensor:
        penalty, ws = PathLength().double(), G.ws(z[part], c[part])
        penalty.mean.fill_(0.3)
        with mock.patch("torch.randn_like", return_value=y[part]):
            loss = penalty(G.synthesis(ws), ws)
        seen.append(penalty.mean)
        return loss

    def fakes(part: slice) -> Tensor:
        return G.synthesis(G.ws(z[part], c[part]))

    def d_loss(part: slice) -> Tensor:
        return discriminator_loss(D(real[part], c[part]), D(fakes(part).detach(), c[part]))

    losses = {
        "generator": (G, lambda part: generator_loss(D(fakes(part), c[part]))),
        "path length": (G, path_length),
        "discriminator": (D, d_loss),
        "R1": (D, lambda part: gradient_penalty(D, real[part], c[part])),
    }
    # The sampler deals the stream out in turn, and a group of the minibatch standard deviation is made of samples that
    # lie evenly apart: so the groups of the parts are groups of the whole batch.
    part = slice(distributed.rank(), None, 2)
    seen: list[Tensor] = []
    for name, (module, loss) in losses.items():
        whole, parts = gradients(module, loss(slice(None))), gradients(module, loss(part))
        scale = max(float(a.norm()) for a in whole if a is not None)
        assert scale > 1e-3, name
        for (parameter, _), a, b in zip(module.named_parameters(), whole, parts, strict=True):
            assert (a is None) == (b is None), f"{name}: {parameter}"
            if a is not None:
                # many biases have nothing to do with R1 and get rounding only
                assert (a - b).norm() <= 1e-9 * a.norm() + 1e-15 * scale, f"{name}: {parameter}"
    torch.testing.assert_close(*seen, rtol=1e-12, atol=0)  # the path lengths' running mean
    (folder / f"rank {distributed.rank()}").touch()


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_the_whole_batch(tmp_path):
    launch(equal_gradients, tmp_path, processes=2)
    assert len(list(tmp_path.iterdir())) == 2
