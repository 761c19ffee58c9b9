"""training.r3gan: its steps against a plain version in float64, its schedules, and that it resumes exactly."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.training.test_loop import assert_same, stats, tiny
from torch_utils.errors import UserError
from training.gan import GANTrainer
from training.loop import train
from training.options import resolve
from training.r3gan import R3GANTrainer, ramp, trainer_of
from training.runs import find_state, load_state

SMALL = {"cfg": "r3gan", "cbase": 256, "cmax": 16, "z_dim": 16, "w_dim": 16, "style_channels": 8, "noise": False}


def config_of(data, **options):
    return tiny(data, **{**SMALL, "kimg": 0.08, "tick": 0.04, **options})


class PlainAdam:
    """Adam with β₁ = 0, as its paper writes it (Kingma and Ba 2015, algorithm 1)."""

    def __init__(self, module: nn.Module):
        self.parameters = list(module.parameters())
        self.v, self.t = [torch.zeros_like(p) for p in self.parameters], 0

    @torch.no_grad()
    def step(self, loss: Tensor, lr: float, beta2: float) -> None:
        self.t += 1
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        for p, g, v in zip(self.parameters, gradients, self.v, strict=True):
            if g is not None:
                v.mul_(beta2).add_((1 - beta2) * g**2)
                p -= lr * g / ((v / (1 - beta2**self.t)).sqrt() + 1e-8)


def squared_norm_of_gradient(logits: Tensor, images: Tensor) -> Tensor:
    total = torch.zeros([], dtype=images.dtype)
    for i in range(len(images)):  # one by one: no batch statistics connect the images
        (g,) = torch.autograd.grad(logits[i].sum(), images, create_graph=True, retain_graph=True)
        total = total + g[i].square().sum()
    return total / len(images)


@pytest.mark.parametrize("cond", [False, True])
def test_ten_steps_are_the_papers(faces16, cond):
    """In float64: D down the relativistic loss and γ/2 (R1 + R2) of the same images, then G, by Adam and EMA."""
    config = config_of(faces16, aug="noaug", cond=cond)
    trainer = R3GANTrainer(config, torch.device("cpu"))
    for module in trainer.modules.values():
        module.double()
    G, D = copy.deepcopy(trainer.G), copy.deepcopy(trainer.D)
    average = copy.deepcopy(G)
    adam_G, adam_D = PlainAdam(G), PlainAdam(D)
    batches = trainer.batches(0)
    for step in range(10):
        batch = tuple([(x.double(), c.double()) for x, c in part] for part in next(batches))
        torch.manual_seed(step)
        trainer.train_step(batch, step)

        torch.manual_seed(step)
        kimg = step * 8 / 1000
        cosine = (1 - math.cos(math.pi * kimg / 0.08)) / 2  # 0 at the start, 1 after the 0.08 kimg of this training
        lr, beta2, gamma = 2e-4 * (1 - 0.75 * cosine), 0.9 + 0.09 * cosine, 0.05 * (1 - 0.9 * cosine)
        (x, c), (x_of_G, c_of_G) = batch[0][0], batch[1][0]
        fake = G.synthesis(G.ws(torch.randn(8, 16, dtype=torch.float64), c)).detach().requires_grad_()
        x = x.clone().requires_grad_()
        real_logits, fake_logits = D(x, c), D(fake, c)
        penalty = squared_norm_of_gradient(real_logits, x) + squared_norm_of_gradient(fake_logits, fake)
        adam_D.step(F.softplus(-(real_logits - fake_logits)).mean() + gamma / 2 * penalty, lr, beta2)
        fakes_of_G = G.synthesis(G.ws(torch.randn(8, 16, dtype=torch.float64), c_of_G))
        adam_G.step(F.softplus(-(D(fakes_of_G, c_of_G) - D(x_of_G, c_of_G))).mean(), lr, beta2)
        half_life = 5000 * 0.08 / 20000 * cosine
        beta = 0.5 ** (8 / 1000 / max(half_life, 1e-8))
        for a, p in zip(average.parameters(), G.parameters(), strict=True):
            a.data = beta * a.data + (1 - beta) * p.data
    for ours, plain in ((trainer.G, G), (trainer.D, D), (trainer.G_ema, average)):
        for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_a_ramp_is_half_a_cosine():
    assert ramp((2.0, 0.5), 0, 10) == 2.0 and ramp((2.0, 0.5), 10, 10) == 0.5 and ramp((2.0, 0.5), 99, 10) == 0.5
    assert ramp((0.0, 1.0), 5, 10) == pytest.approx(0.5)
    assert ramp((0.0, 1.0), 2.5, 10) == pytest.approx((1 - math.sqrt(0.5)) / 2)


def test_published_values():
    table = {32: (512, 0.05, 0.55, 5000), 64: (256, 2.0, 0.3, 500), 256: (256, 150.0, 0.3, 500)}
    for resolution, values in table.items():
        c = resolve({"cfg": "r3gan", "data": "x", "kimg": 30000.0}, resolution, 3, 0, 0)
        assert (c.batch, c.gamma, c.schedules.p[1], c.schedules.ema_kimg[1]) == values
        assert c.schedules.decay_kimg == 20000 and (c.glr, c.dlr) == (2e-4, 2e-4)
        assert c.schedules.lr[1] * c.glr == 5e-5 and c.schedules.beta2 == (0.9, 0.99) and c.schedules.gamma == (1, 0.1)
        assert c.discriminator.mbstd_group == 0 and c.loss == "relativistic"
    assert resolve({"cfg": "r3gan", "data": "x", "p": 0.2}, 32, 3, 0, 0).schedules.p == (0.0, 0.2)


def test_averaged_weights_of_another_run_are_not_replaced_by_the_first_step():
    schedules = [
        resolve({"cfg": "r3gan", "data": "x", **more}, 32, 3, 0, 0).schedules for more in ({}, {"init_from": "y"})
    ]
    assert [s.ema_kimg for s in schedules] == [(0.0, 5000), (5000, 5000)]


def test_the_discriminator_never_compares_images():
    """Without the minibatch standard deviation, what D says of an image does not depend on the others."""
    config = resolve({**SMALL, "data": "x"}, 16, 3, 0, 0)
    torch.manual_seed(0)
    from networks.discriminator import Discriminator

    D, x = Discriminator(config.discriminator), torch.randn(8, 3, 16, 16)
    torch.testing.assert_close(D(x)[:2], D(x[:2]))


def test_ada_has_nothing_to_go_by_with_the_relativistic_loss():
    for options in ({"loss": "relativistic"}, {"cfg": "r3gan"}):
        with pytest.raises(UserError, match="the sign of D"):
            resolve({"cfg": "demo", "data": "x", "aug": "ada", **options}, 32, 3, 0, 0)


def test_a_resumed_run_equals_one_without_a_stop(tmp_path, faces16):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    straight.mkdir(), stopped.mkdir()
    options = {"cond": True, "batch_gpu": 4, "kimg": 0.16}
    train(R3GANTrainer, config_of(faces16, **options), straight)
    config = config_of(faces16, **options)
    config.kimg = 0.08  # as if stopped there: the schedules are those of the whole training
    train(R3GANTrainer, config, stopped)
    train(R3GANTrainer, config_of(faces16, **options), stopped, find_state(stopped))
    assert_same(load_state(find_state(straight)), load_state(find_state(stopped)))
    for x, y in zip(stats(straight), stats(stopped), strict=True):
        assert {**x, "it_per_s": 0} == {**y, "it_per_s": 0}
    assert 0 < stats(straight)[-1]["ada/p"] < 0.55 and stats(straight)[-1]["lr"] < 2e-4


def test_no_other_trainer_takes_its_configuration(faces16):
    """It would train by StyleGAN2's recipe under the name of R3GAN's."""
    config, other = config_of(faces16), tiny(faces16)
    assert trainer_of(config) is R3GANTrainer and trainer_of(other) is GANTrainer
    with pytest.raises(ValueError, match=r"followed by training\.r3gan\.R3GANTrainer"):
        GANTrainer(config, torch.device("cpu"))
