"""One step of Adam: over the parts of a batch, over all processes, and not at all where a gradient is not finite."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from torch_utils import distributed


class Descent:
    """Adam(0, 0.99) for the parameters of a module that are to be trained.

    Corrected for a regularizer that takes a step of its own every `interval` steps (Karras et al. 2020, StyleGAN2,
    appendix B): with c = interval / (interval + 1), lr ← c·lr and β ← βᶜ.

    A step whose gradient has an infinity or NaN is left out and counted: `skipped` in all, `streak` without a good one
    between. With `scaling`, for float16, the loss is multiplied by `scale`, so that small gradients are not rounded to
    zero; it is halved by every such step, and doubled after 2000 good ones. All that is decided on the device.
    """

    def __init__(self, module: nn.Module, lr: float, interval: int | None, device: torch.device, scaling: bool = False):
        c = 1.0 if interval is None else interval / (interval + 1)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.adam = torch.optim.Adam(self.parameters, lr=lr * c, betas=(0.0, 0.99**c), eps=1e-8, fused=True)
        self.scaling = scaling
        self.scale = torch.tensor(2.0**16 if scaling else 1.0, device=device)
        self.good = torch.zeros([], device=device)  # steps since the scale changed
        self.streak = torch.zeros([], device=device)
        self.skipped = torch.zeros([], device=device)

    def step(self, losses: Iterable[Tensor], parts: int = 1) -> None:
        """A step down the mean of `parts` losses, each made, differentiated and forgotten before the next."""
        self.adam.zero_grad(set_to_none=True)
        for loss in losses:
            (loss * (self.scale / parts)).backward()
        distributed.average_gradients(self.parameters)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not gradients:
            return
        if self.scaling:
            torch._foreach_div_(gradients, self.scale)
        bad = (~torch.nn.utils.get_total_norm(gradients).isfinite()).float()
        self.adam.found_inf = bad  # Adam's fused kernel does nothing where this is 1
        self.adam.step()
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
        return {"adam": self.adam.state_dict(), **counters}

    def load_state_dict(self, state: dict) -> None:
        self.adam.load_state_dict(state["adam"])
        for name in ("scale", "good", "streak", "skipped"):
            getattr(self, name).copy_(state[name])
