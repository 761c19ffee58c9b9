"""The losses of the generator's training, each with its equation."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.generator import Generator
from torch_utils import distributed


def generator_loss(fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
    """softplus(−D(G(z))): the non-saturating logistic loss (Goodfellow et al. 2014).

    With D(x) of as many real images, softplus(D(x) − D(G(z))): the relativistic one (R3GAN, Huang et al. 2024).
    """
    return F.softplus(-fake_logits if real_logits is None else real_logits - fake_logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, relativistic: bool = False) -> Tensor:
    """softplus(−D(x)) + softplus(D(G(z))); relativistic, softplus(D(G(z)) − D(x))."""
    if relativistic:
        return F.softplus(fake_logits - real_logits).mean()
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def gradient_penalty(D: Callable[[Tensor, Tensor], Tensor], images: Tensor, c: Tensor) -> Tensor:
    """E ‖∇D(x)‖², to be weighted by γ/2: R1 over real images x, R2 over generated ones.

    Mescheder et al. 2018, equation 9. D may augment the images first.
    """
    images = images.detach().requires_grad_()
    return squared_gradient(D(images, c), images)


def squared_gradient(logits: Tensor, images: Tensor) -> Tensor:
    """E ‖∂D(x)/∂x‖² of logits [N, 1] that were computed from images [N, C, H, W] with their graph."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


class PathLength(nn.Module):
    """E (‖Jᵀy‖ − a)²: the length of ∂g(w)/∂w's projection on a random image y, and its running mean a.

    Karras et al. 2020 (StyleGAN2), equation 4, with y scaled by 1/√(H·W). The length is the root mean square over
    the layers' w, and a the running mean over all processes. The default interval, `pl_interval` = 4, is
    StyleGAN2-ADA's; StyleGAN2's is 8. a is a buffer, so it belongs to the training state.
    """

    mean: Tensor

    def __init__(self, decay: float = 0.01):
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros([]))

    def forward(self, images: Tensor, ws: Tensor) -> Tensor:
        """images [N, C, H, W] made from ws [N, num_ws, w_dim], with their graph → the penalty."""
        y = torch.randn_like(images) / (images.shape[2] * images.shape[3]) ** 0.5
        (gradient,) = torch.autograd.grad((images * y).sum(), ws, create_graph=True)
        lengths = gradient.square().sum(dim=2).mean(dim=1).sqrt()
        mean_length = distributed.mean(lengths.detach().mean())
        moved = self.mean.lerp(mean_length, self.decay)
        self.mean.copy_(torch.where(moved.isfinite(), moved, self.mean))  # it would not become finite again
        a = self.mean.clone()
        # a depends on the lengths too, and the published code differentiates it: ∂a = decay · ∂E‖Jᵀy‖.
        slope = -2 * (mean_length - a) * self.decay
        return (lengths - a).square().mean() + slope * (lengths.mean() - lengths.mean().detach())


def sample_ws(G: Generator, z: Tensor, c: Tensor, mixing: float) -> Tensor:
    """ws [N, num_ws, w_dim] of z [N, z_dim]; with probability `mixing` two codes meet at a random layer.

    Style mixing, Karras et al. 2019 (StyleGAN), section 3.1. One crossover for the batch, as in StyleGAN2-ADA.
    """
    ws = G.ws(z, c)
    if mixing > 0:
        other = G.ws(torch.randn_like(z), c)
        cutoff = int(torch.randint(1, ws.shape[1], [])) if float(torch.rand([])) < mixing else ws.shape[1]
        ws = torch.cat([ws[:, :cutoff], other[:, cutoff:]], dim=1)
    return ws
