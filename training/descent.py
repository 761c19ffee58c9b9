"""One step of an optimizer: over the parts of a batch, over all processes, and not where a gradient is not finite."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from torch_utils import distributed


def lazy_adam(parameters: Iterable[nn.Parameter], lr: float, interval: int | None) -> torch.optim.Adam:
    """Adam(0, 0.99), corrected for a regularizer that takes a step of its own every `interval` steps.

    Karras et al. 2020 (StyleGAN2), appendix B: with c = interval / (interval + 1), lr ← c·lr and β ← βᶜ.
    """
    c = 1.0 if interval is None else interval / (interval + 1)
    return torch.optim.Adam(parameters, lr=lr * c, betas=(0.0, 0.99**c), eps=1e-8, fused=True)


class Descent:
    """An optimizer of PyTorch's, made with `fused=True`, and how its steps are taken.

    A step whose gradient has an infinity or NaN is left out and counted: `skipped` in all, `streak` without a good one
    between. With `scaling`, for float16, the loss is multiplied by `scale`, so that small gradients are not rounded to
    zero; it is halved by every such step, and doubled after 2000 good ones. All that is decided on the device.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scaling: bool = False):
        self.optimizer = optimizer
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.scaling = scaling
        device = self.parameters[0].device
        self.scale = torch.tensor(2.0**16 if scaling else 1.0, device=device)
        self.good = torch.zeros([], device=device)  # steps since the scale changed
        self.streak = torch.zeros([], device=device)
        self.skipped = torch.zeros([], device=device)

    def step(self, losses: Iterable[Tensor], parts: int = 1) -> None:
        """A step down the mean of `parts` losses, each made, differentiated and forgotten before the next."""
        self.optimizer.zero_grad(set_to_none=True)
        for loss in losses:
            (loss * (self.scale / parts)).backward()
        distributed.average_gradients(self.parameters)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not gradients:
            return
        if self.scaling:
            torch._foreach_div_(gradients, self.scale)
        bad = (~torch.nn.utils.get_total_norm(gradients).isfinite()).float()
        self.optimizer.found_inf = bad  # the fused kernels do nothing where this is 1
        self.optimizer.step()
        self._count(bad)

    def _count(self, bad: Tensor) -> None:
        self.skipped += bad
        self.streak.add_(1).mul_(bad)
        if self.scaling:
            self.good.add_(1).mul_(1 - bad)
            grown = (self.good >= 2000).float()
            self.scale *= (1 - 0.5 * bad) * (1 + grown)
            self.good *= 1 - grown

    def state_dict(self) -> dict:
        counters = {name: getattr(self, name).cpu() for name in ("scale", "good", "streak", "skipped")}
        return {"optimizer": self.optimizer.state_dict(), **counters}

    def load_state_dict(self, state: dict) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("scale", "good", "streak", "skipped"):
            getattr(self, name).copy_(state[name])


class Averaged(Protocol):
    """A configuration of a training with averaged weights."""

    batch: int
    ema_kimg: float  # half-life
    ema_rampup: float | None  # ... but at most this part of what was shown so far


def ema_beta(config: Averaged, kimg: float) -> float:
    """How much of the averaged weights a step keeps: a half-life of ema_kimg, less at the start."""
    half_life = config.ema_kimg
    if config.ema_rampup is not None:
        half_life = min(half_life, kimg * config.ema_rampup)
    return 0.5 ** (config.batch / 1000 / max(half_life, 1e-8))


@torch.no_grad()
def update_ema(averaged: nn.Module, module: nn.Module, beta: float) -> None:
    """averaged ← β · averaged + (1 − β) · module; buffers are copied."""
    for average, value in zip(averaged.parameters(), module.parameters(), strict=True):
        average.lerp_(value, 1 - beta)
    for average, value in zip(averaged.buffers(), module.buffers(), strict=True):
        average.copy_(value)
