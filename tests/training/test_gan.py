"""training.gan: what each step changes, which steps have which regularizer, and what is averaged."""

from __future__ import annotations

import pytest
import torch

from media.images import grid
from models.sampling import generate_batches
from models.snapshot import load_generator
from networks.discriminator import Discriminator
from networks.generator import Generator
from tests.training.test_loop import stats, tiny
from training.gan import GANTrainer, set_precision
from training.log import Log
from training.loop import train
from training.loss import gradient_penalty
from training.optimizer import GuardedOptimizer
from training.runs import find_state, load_state


@pytest.mark.parametrize(
    "modulation, norm", [("adaconv", "demod"), ("adaconv", "instance"), ("modconv", "demod"), ("adain", "instance")]
)
def test_one_step_changes_every_parameter(tmp_path, faces16, modulation, norm):
    config = tiny(faces16, modulation=modulation, norm=norm, kimg=0.008, cond=True)
    torch.manual_seed(config.seed)
    before = {"G": Generator(config.generator), "D": Discriminator(config.discriminator)}
    train(GANTrainer, config, tmp_path)
    state = load_state(find_state(tmp_path))
    assert state["step"] == 1
    for name, module in before.items():
        for parameter, old in module.named_parameters():
            assert not torch.equal(state[name][parameter], old), f"{name}.{parameter} did not learn"


def test_the_snapshot_is_the_averaged_generator(tmp_path, faces16):
    train(GANTrainer, tiny(faces16, kimg=0.08, cond=True), tmp_path)
    G, info = load_generator(tmp_path / "snapshot-000000.08.safetensors")
    state = load_state(find_state(tmp_path))
    for name, value in G.state_dict().items():
        assert torch.equal(value, state["G_ema"][name])
    assert info["kimg"] == pytest.approx(0.08)


def test_ada_follows_the_sign_of_the_logits(tmp_path, faces16):
    """With a target that is always passed, p goes up by 1/500 a kimg; the fixed one stays."""
    for aug, expected in (("ada", 0.32 / 500), ("fixed", 0.3)):
        run = tmp_path / aug
        run.mkdir()
        options = {"target": -1.0} if aug == "ada" else {"p": 0.3}
        # a target of -1 is below every mean of signs, unless all are -1
        train(GANTrainer, tiny(faces16, kimg=0.32, tick=0.16, aug=aug, **options), run)
        assert load_state(find_state(run))["augment"]["p"] == pytest.approx(expected, rel=0.3)
        assert stats(run)[-1]["ada/p"] == pytest.approx(expected, rel=0.3)


def test_regularizers_have_the_weight_of_the_steps_that_they_stand_for(faces16, monkeypatch):
    """R1 is taken every 16th time and weighs 16 · γ/2, the path length every 4th and weighs 4 · 2."""
    gan = GANTrainer(tiny(faces16, gamma=3.0), torch.device("cpu"))
    monkeypatch.setattr("training.gan.gradient_penalty", lambda D, x, c: D(x, c).mean() * 0 + 1)
    gan.path_length.forward = lambda images, ws: images.mean() * 0 + 1
    taken = []
    monkeypatch.setattr(GuardedOptimizer, "backward", lambda self, loss, microbatches: taken.append(loss.item()))
    gan.penalty_step(next(gan.batches(0)))
    gan.path_length_step()
    assert taken == [16 * 3 / 2, 4 * 2]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_the_whole(faces16, precision):
    config = tiny(faces16)
    torch.manual_seed(0)
    G, D = Generator(config.generator), Discriminator(config.discriminator)
    z = torch.randn(64, config.generator.z_dim)  # the rounding of a few gradients' sum depends on the machine
    dtypes = []
    G.synthesis.blocks[-1].conv1.register_forward_hook(lambda module, args, y: dtypes.append(y.dtype))
    D.blocks[0].conv0.register_forward_hook(lambda module, args, y: dtypes.append(y.dtype))

    def images_logits_and_gradient():
        G.zero_grad()
        images = G(z, noise="const")
        logits = D(images)
        logits.sum().backward()
        return images.detach(), logits.detach(), G.synthesis.const.grad.clone()

    whole = images_logits_and_gradient()
    set_precision(G, D, precision)
    half = images_logits_and_gradient()
    kind = torch.bfloat16 if precision == "bf16" else torch.float16
    assert dtypes == [torch.float32] * 2 + [kind] * 2
    for a, b in zip(whole, half, strict=True):
        assert b.dtype == torch.float32
        assert 0 < (a - b).norm() / a.norm() < (0.05 if precision == "bf16" else 0.02)


@pytest.mark.parametrize("pl_weight", [2.0, 0.0])
def test_each_step_has_its_place(tmp_path, faces16, monkeypatch, pl_weight):
    """G and D take every step, in this order; R1 every 16th and the path length every 4th, from the first on."""
    taken = []

    def noting(name):
        step = getattr(GANTrainer, name)

        def noted(self, *args):
            taken.append(name)
            return step(self, *args)

        return noted

    for name in ("generator_step", "path_length_step", "discriminator_step", "penalty_step"):
        monkeypatch.setattr(GANTrainer, name, noting(name))
    train(GANTrainer, tiny(faces16, kimg=0.272, tick=1, pl_weight=pl_weight), tmp_path)
    expected = []
    for step in range(34):
        expected.append("generator_step")
        expected += ["path_length_step"] * (step % 4 == 0 and pl_weight > 0)
        expected.append("discriminator_step")
        expected += ["penalty_step"] * (step % 16 == 0)
    assert taken == expected


def test_w_avg_is_the_running_mean_of_w(tmp_path, faces16, monkeypatch):
    """Of the first codes of every generator step, with all its microbatches, and of no other step."""
    expected, seen, during = torch.zeros(16), [], []
    random_ws, generator_step = GANTrainer.random_ws, GANTrainer.generator_step

    def noted_ws(self, count, c=None):
        ws, c = random_ws(self, count, c)
        if during:
            seen.append(ws.detach()[:, 0])
        return ws, c

    def noted_step(self, reals):
        nonlocal expected
        during.append(True)
        generator_step(self, reals)
        during.clear()
        expected = 0.998 * expected + 0.002 * torch.cat(seen).mean(dim=0)
        seen.clear()

    monkeypatch.setattr(GANTrainer, "random_ws", noted_ws)
    monkeypatch.setattr(GANTrainer, "generator_step", noted_step)
    train(GANTrainer, tiny(faces16, kimg=0.048, tick=1, batch_gpu=4), tmp_path)
    state = load_state(find_state(tmp_path))
    assert state["step"] == 6 and expected.norm() > 0
    torch.testing.assert_close(state["G"]["w_avg"], expected, rtol=1e-4, atol=1e-7)
    G = load_generator(next(tmp_path.glob("snapshot*")))[0]
    torch.testing.assert_close(G.w_avg, expected, rtol=1e-4, atol=1e-7)


def test_averaged_weights_follow_by_the_published_rule(faces16):
    """After one step from 0 images on, all of the new weights; later 0.5^(batch / half-life) of the old ones."""
    trainer = GANTrainer(tiny(faces16), torch.device("cpu"))
    batches = trainer.batches(0)
    trainer.train_step(next(batches), 0)
    for averaged, weight in zip(trainer.G_ema.parameters(), trainer.G.parameters(), strict=True):
        assert torch.equal(averaged, weight)
    before = [p.clone() for p in trainer.G_ema.parameters()]
    step = 1000  # 8 kimg: the rampup limits the half-life to 0.05 · 8 kimg
    trainer.train_step(next(batches), step)
    beta = 0.5 ** (8 / (0.05 * step * 8))
    for averaged, old, weight in zip(trainer.G_ema.parameters(), before, trainer.G.parameters(), strict=True):
        torch.testing.assert_close(averaged, beta * old + (1 - beta) * weight)


def test_the_discriminator_sees_each_image_with_its_class(faces16, monkeypatch):
    """Real images with the classes of their files, fakes with the classes that they were made for."""
    trainer = GANTrainer(tiny(faces16, cond=True, batch_gpu=4), torch.device("cpu"))
    seen, made = [], []
    run_discriminator, random_ws = GANTrainer.run_discriminator, GANTrainer.random_ws

    def noted_run(self, images, c, D=None):
        seen.append((images.detach(), c))
        return run_discriminator(self, images, c, D)

    def noted_ws(self, count, c=None):
        ws, c = random_ws(self, count, c)
        made.append((self.G.synthesis(ws).detach(), c))
        return ws, c

    monkeypatch.setattr(GANTrainer, "run_discriminator", noted_run)
    monkeypatch.setattr(GANTrainer, "random_ws", noted_ws)
    reals = next(trainer.batches(0))
    for step in (trainer.discriminator_step, trainer.generator_step, trainer.penalty_step):
        seen.clear(), made.clear()
        step(reals)
        real_images = [(x, c) for x, c in seen if any(torch.equal(x, real) for real, _ in reals)]
        fakes = [(x, c) for x, c in seen if not any(torch.equal(x, real) for real, _ in reals)]
        if step != trainer.generator_step:
            assert len(real_images) == 2
            for (x, c), (real, real_c) in zip(real_images, reals, strict=True):
                assert torch.equal(x, real) and torch.equal(c, real_c)
        assert len(fakes) == len(made) == (0 if step == trainer.penalty_step else 2)
        for (x, c), (fake, fake_c) in zip(fakes, made, strict=True):
            torch.testing.assert_close(x, fake)
            assert torch.equal(c, fake_c)


def test_the_relativistic_loss_compares_images_of_one_class(faces16, monkeypatch):
    """In both steps the logits that are subtracted belong to a real image and a fake of the same class."""
    trainer = GANTrainer(tiny(faces16, cond=True, loss="relativistic", batch_gpu=4), torch.device("cpu"))
    seen = []
    run_discriminator = GANTrainer.run_discriminator

    def noted_run(self, images, c, D=None):
        seen.append(c)
        return run_discriminator(self, images, c, D)

    monkeypatch.setattr(GANTrainer, "run_discriminator", noted_run)
    reals = next(trainer.batches(0))
    for step in (trainer.discriminator_step, trainer.generator_step):
        seen.clear()
        step(reals)
        for c, expected in zip(seen, [reals[0][1]] * 2 + [reals[1][1]] * 2, strict=True):
            assert torch.equal(c, expected)


def test_what_is_evaluated_is_the_averaged_generator(tmp_path, faces16, monkeypatch):
    """Sheets and metrics show G_ema, which snapshots hold too."""
    trainer = GANTrainer(tiny(faces16, metrics=["swd50"]), torch.device("cpu"))
    with torch.no_grad():
        for p in trainer.G.parameters():
            p.add_(0.1 * torch.randn_like(p))
    shown, judged = [], []
    evaluate = trainer.evaluator.evaluate

    def noted(images, paths):
        judged.append(torch.cat(list(images([range(8)]))))
        return evaluate(images, paths)

    monkeypatch.setattr(trainer.evaluator, "evaluate", noted)
    log = Log(tmp_path, 0, 1)
    monkeypatch.setattr(log, "sheet", lambda name, pixels, kimg: shown.append(pixels))
    trainer.evaluate(1, log)
    for G, same in ((trainer.G_ema, True), (trainer.G, False)):
        fakes = torch.cat(list(generate_batches(G, range(len(trainer.shown)), 8)))
        assert torch.equal(shown[0], grid(fakes, trainer.columns)) == same
        assert torch.equal(judged[0], torch.cat(list(generate_batches(G, range(8), 8)))) == same


def test_r1_is_taken_at_real_images_and_r2_at_fakes(faces16, monkeypatch):
    trainer = GANTrainer(tiny(faces16, cond=True, loss="relativistic"), torch.device("cpu"))
    penalized, made = [], []
    random_fakes = GANTrainer.random_fakes

    def noted(D, images, c):
        penalized.append((images, c))
        return gradient_penalty(D, images, c)

    def noted_fakes(self, count):
        made.append(random_fakes(self, count))
        return made[-1]

    monkeypatch.setattr("training.gan.gradient_penalty", noted)
    monkeypatch.setattr(GANTrainer, "random_fakes", noted_fakes)
    (reals,) = next(trainer.batches(0))
    trainer.penalty_step([reals])
    for (images, c), (expected, expected_c) in zip(penalized, [reals, *made], strict=True):
        assert torch.equal(images, expected) and torch.equal(c, expected_c)


def test_style_mixing_has_the_configured_probability(faces16, monkeypatch):
    trainer, asked = GANTrainer(tiny(faces16, mixing=0.375), torch.device("cpu")), []
    monkeypatch.setattr("training.gan.sample_ws", lambda G, z, c, mixing: asked.append(mixing) or G.ws(z, c))
    trainer.random_ws(2)
    assert asked == [0.375]


@pytest.mark.parametrize("aug", ["noaug", "fixed"])
def test_the_discriminator_sees_augmented_images_only(faces16, aug):
    trainer = GANTrainer(tiny(faces16, aug=aug, **({"p": 0.5} if aug == "fixed" else {})), torch.device("cpu"))
    trainer.augment.forward = lambda images: images * 0 + 0.25
    seen = []
    trainer.D.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    reals = next(trainer.batches(0))
    for step in (trainer.generator_step, trainer.discriminator_step, trainer.penalty_step):
        step(reals)
    assert len(seen) == 4
    assert all(bool((images == 0.25).all()) == (aug == "fixed") for images in seen)
