"""The optimizers' steps: gradients accumulated over microbatches, averaged over processes, skipped if not finite."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from torch_utils import distributed

GROWTH_INTERVAL = 2000  # finite steps after which the loss scale of float16 is doubled
COUNTERS = ("scale", "steps_since_change", "nonfinite_in_a_row", "skipped")


def lazy_adam(parameters: Iterable[nn.Parameter], lr: float, interval: int) -> torch.optim.Adam:
    """Adam(0, 0.99), corrected for a regularizer that takes a step of its own every `interval` steps.

    Karras et al. 2020 (StyleGAN2), appendix B: with c = interval / (interval + 1), lr ← c·lr and β ← βᶜ.
    """
    c = interval / (interval + 1)
    return torch.optim.Adam(parameters, lr=lr * c, betas=(0.0, 0.99**c), eps=1e-8, fused=True)


class GuardedOptimizer:
    """An optimizer of PyTorch's, made with `fused=True`, that skips steps whose gradient has an infinity or NaN.

    One step is `zero_grad`, then `backward` for each microbatch, then `step`. With `scaling`, for float16, the loss is
    multiplied by `scale` so that small gradients are not rounded to zero; every skipped step halves the scale, and
    GROWTH_INTERVAL finite steps double it. All decisions are taken on the device, so that nothing waits for it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scaling: bool = False):
        self.optimizer = optimizer
        self.parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        self.scaling = scaling
        device = self.parameters[0].device
        self.scale = torch.tensor(2.0**16 if scaling else 1.0, device=device)
        self.steps_since_change = torch.zeros([], device=device)  # finite steps since the scale changed
        self.nonfinite_in_a_row = torch.zeros([], device=device)
        self.skipped = torch.zeros([], device=device)  # steps, since the training began

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor, microbatches: int = 1) -> None:
        """Adds the gradient of loss / microbatches, so that all microbatches together give the batch's mean."""
        (loss * (self.scale / microbatches)).backward()

    def step(self, of_loss: bool = True) -> None:
        """Takes a step along the accumulated gradient, averaged over all processes, if all of it is finite.

        Steps of a regularizer alone are not `of_loss`: a loss that is not finite in any step has diverged, even if the
        regularizer between is finite.
        """
        distributed.average_gradients(self.parameters)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not gradients:
            return
        if self.scaling:
            torch._foreach_div_(gradients, self.scale)
        nonfinite = (~torch.nn.utils.get_total_norm(gradients).isfinite()).float()
        self._begin_momenta()
        self.optimizer.found_inf = nonfinite  # type: ignore[attr-defined]  # fused kernels skip the step where it is 1
        self.optimizer.step()
        self._count(nonfinite, of_loss)

    def _begin_momenta(self) -> None:
        """Gives SGD's momenta zeros to begin with: the fused kernel leaves new memory as it is if it skips a step."""
        for group in self.optimizer.param_groups:
            for p in group["params"] if group.get("momentum") else ():
                if p.grad is not None and self.optimizer.state[p].get("momentum_buffer") is None:
                    self.optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)

    def _count(self, nonfinite: Tensor, of_loss: bool) -> None:
        self.skipped += nonfinite
        if of_loss:
            self.nonfinite_in_a_row.add_(1).mul_(nonfinite)
        if self.scaling:
            self.steps_since_change.add_(1).mul_(1 - nonfinite)
            grown = (self.steps_since_change >= GROWTH_INTERVAL).float()
            self.scale.mul_((1 - 0.5 * nonfinite) * (1 + grown)).clamp_(min=1.0)
            self.steps_since_change *= 1 - grown

    def state_dict(self) -> dict[str, Any]:
        counters = {name: getattr(self, name).cpu() for name in COUNTERS}
        return {"optimizer": self.optimizer.state_dict(), **counters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        for p, moments in self.optimizer.state.items():
            for name, moment in moments.items():
                if name != "step":  # the fused kernels take the memory order of the parameter for granted
                    moments[name] = torch.empty_like(p).copy_(moment)
        for name in COUNTERS:
            getattr(self, name).copy_(state[name])

    def broadcast_moments(self) -> None:
        """Copies the moments of rank 0 to all processes, which have loaded the same state `without_moments`."""
        of_parameters = [self.optimizer.state.get(p, {}) for p in self.parameters]
        distributed.broadcast_tensors(m for moments in of_parameters for name, m in moments.items() if name != "step")


def without_moments(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a GuardedOptimizer with a zero in place of each moment, which `load_state_dict` takes as well."""
    own = state["optimizer"]
    moments = {
        index: {name: value if name == "step" else value.new_zeros([]) for name, value in of_parameter.items()}
        for index, of_parameter in own["state"].items()
    }
    return {**state, "optimizer": {**own, "state": moments}}


class AveragedConfig(Protocol):
    """The part of a configuration that says how the weights are averaged."""

    batch: int
    ema_kimg: float  # half-life of the averaged weights, in thousands of images
    ema_rampup: float | None  # limits the half-life to this fraction of the images seen so far


def ramped_half_life(config: AveragedConfig, kimg: float) -> float:
    """The half-life of the averaged weights in kimg: shorter at the start of the training (`ema_rampup`)."""
    return config.ema_kimg if config.ema_rampup is None else min(config.ema_kimg, kimg * config.ema_rampup)


def ema_beta(half_life: float, batch: int) -> float:
    """0.5^(batch / half-life), the decay β of the averaged weights at a step of `batch` images; half-life in kimg."""
    return 0.5 ** (batch / 1000 / max(half_life, 1e-8))


@torch.no_grad()
def update_ema(averaged: nn.Module, module: nn.Module, beta: float) -> None:
    """averaged ← β · averaged + (1 − β) · module; buffers are copied. On a GPU all tensors in a few launches."""
    torch._foreach_lerp_(list(averaged.parameters()), list(module.parameters()), 1 - beta)
    if buffers := list(averaged.buffers()):
        torch._foreach_copy_(buffers, list(module.buffers()))
