"""R3GAN's recipe (Huang et al. 2024, "The GAN is dead; long live the GAN! A Modern Baseline GAN"), `--cfg r3gan`.

The relativistic loss, with R1 and R2 in every step of the discriminator and on the same images as the loss. Path length
regularization, style mixing and the minibatch standard deviation are left out. Learning rate, Adam's β₂, γ, the
half-life of the averaged weights and the probability of the augmentation follow cosines.
"""

from __future__ import annotations

import math
from collections import abc
from contextlib import closing

import torch
from torch import Tensor, nn

from training.config import Ramp, TrainConfig
from training.gan import Batch, GANTrainer
from training.loss import discriminator_loss, squared_gradient
from training.optimizer import ema_beta, update_ema


def ramp(values: Ramp, kimg: float, decay_kimg: float) -> float:
    """From the first value to the second along half a cosine that ends at decay_kimg, and the second from there on."""
    part = min(kimg / decay_kimg, 1.0)
    first, last = values
    return last + (first - last) * (1 + math.cos(math.pi * part)) / 2


class R3GANTrainer(GANTrainer):
    """Generator and discriminator, trained by R3GAN's recipe. A `training.loop.Trainer`."""

    def __init__(self, config: TrainConfig, device: torch.device, fresh: bool = True):
        super().__init__(config, device, fresh)
        assert config.schedules is not None
        self.schedules = config.schedules
        self.gamma = config.gamma  # of the current step

    def make_adam(self, G: list[nn.Parameter], D: list[nn.Parameter]) -> tuple[torch.optim.Adam, torch.optim.Adam]:
        """The optimizers of the parameters of both networks; learning rates and β₂ follow their schedules."""
        return torch.optim.Adam(G, eps=1e-8, fused=True), torch.optim.Adam(D, eps=1e-8, fused=True)

    def batches(self, step: int) -> abc.Generator[tuple[Batch, Batch]]:  # type: ignore[override]
        """Images for the discriminator's step, and others for the generator's, from `step` on without end."""
        with closing(super().batches(2 * step)) as stream:
            while True:
                yield next(stream), next(stream)

    def train_step(self, reals: tuple[Batch, Batch], step: int) -> None:  # type: ignore[override]
        """One step of the discriminator, then one of the generator, with the schedules' values at this step."""
        ema_kimg = self.follow_schedules(step * self.config.batch / 1000)
        self.discriminator_step(reals[0])
        self.generator_step(reals[1])
        update_ema(self.G_ema, self.G, ema_beta(ema_kimg, self.config.batch))

    def follow_schedules(self, kimg: float) -> float:
        """Sets learning rates, β₂, γ and the augmentation's p of this moment; returns the EMA's half-life in kimg."""
        config, schedules = self.config, self.schedules
        lr, beta2, gamma, ema_kimg, p = (
            ramp(values, kimg, schedules.decay_kimg)
            for values in (schedules.lr, schedules.beta2, schedules.gamma, schedules.ema_kimg, schedules.p)
        )
        for optimizer, first_lr in ((self.G_opt, config.glr), (self.D_opt, config.dlr)):
            for group in optimizer.optimizer.param_groups:
                group["lr"], group["betas"] = first_lr * lr, (0.0, beta2)
        self.gamma = config.gamma * gamma
        self.augment.p.fill_(p)
        return ema_kimg

    def discriminator_step(self, reals: Batch) -> Tensor:
        """Lowers softplus(D(G(z)) − D(x)) + γ/2 (R1 + R2); returns D(x). Each fake has the class of its real image."""
        self._unfreeze_D()
        self.D_opt.zero_grad()
        logits = []
        for real, c in reals:
            with torch.no_grad():
                fake = self.synthesize(self.codes_beside(c)[0])
            real, fake = real.detach().requires_grad_(), fake.detach().requires_grad_()
            real_logits = self.run_discriminator(real, c, self.D)
            fake_logits = self.run_discriminator(fake, c, self.D)
            r1, r2 = squared_gradient(real_logits, real), squared_gradient(fake_logits, fake)
            loss = discriminator_loss(real_logits, fake_logits, relativistic=True)
            self.D_opt.backward(loss + self.gamma / 2 * (r1 + r2), len(reals))
            self.averages.add({"loss/D": loss, "loss/r1": r1, "loss/r2": r2})
            self.averages.add({"logits/real": real_logits, "logits/fake": fake_logits})
            logits.append(real_logits.detach())
        self.D_opt.step()
        return torch.cat(logits)

    def codes_beside(self, real_c: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [N, num_ws, w_dim] of random z, without style mixing, and the classes [N, c_dim] of the real images."""
        z = torch.randn(len(real_c), self.config.generator.z_dim, dtype=real_c.dtype, device=self.device)
        return self.G.ws(z, real_c), real_c

    def statistics(self) -> dict[str, float]:
        """Numbers of a tick beside the averages."""
        lr = self.G_opt.optimizer.param_groups[0]["lr"]
        return super().statistics() | {"lr": lr, "gamma": self.gamma}


def trainer_of(config: TrainConfig) -> type[GANTrainer]:
    """The trainer for a configuration: R3GAN's recipe if it has that recipe's schedules, otherwise StyleGAN2's."""
    return R3GANTrainer if config.schedules else GANTrainer
