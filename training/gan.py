"""The generator's training: what one step is, and how the generator is looked at on the way."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metrics import PPL_EPSILON, Evaluator, NotFinite
from networks.discriminator import Discriminator
from networks.generator import Generator
from torch_utils import distributed
from torch_utils.ops import native
from training.augment import AdaptiveP, AugmentPipe
from training.checkpoint import look_path, save_snapshot
from training.config import TrainConfig
from training.dataset import ImageDataset, endless_batches
from training.descent import Descent, ema_beta, lazy_adam, update_ema
from training.images import grid, save_png, to_float
from training.log import Averages, Log
from training.loss import PathLength, discriminator_loss, generator_loss, gradient_penalty, sample_ws
from training.sampling import Fakes, generate_batches, one_hot
from training.transfer import freeze, initialize

HALF_RESOLUTIONS = 4
Batch = list[tuple[Tensor, Tensor]]  # real pictures and their classes, in parts of `batch_gpu`


class GAN:
    """Generator and discriminator, trained against each other. A `training.loop.Task`."""

    script, look_name = "train.py", "fakes"
    remedy = "try a larger --gamma, smaller --glr and --dlr, or --precision fp32"

    def __init__(self, config: TrainConfig, device: torch.device, fresh: bool = True):
        """Builds networks and optimizers. `fresh`: no state will be loaded, so that --init-from is to be read."""
        self.config, self.device, self.averages = config, device, Averages()
        self.dataset = ImageDataset(config.data, use_labels=config.cond, mirror=config.mirror)
        self.G = G = Generator(config.generator).to(device)
        self.D = D = Discriminator(config.discriminator).to(device)
        self.G_ema = copy.deepcopy(G).eval().requires_grad_(False)
        self.path_length = PathLength().to(device)
        self.augment = AugmentPipe(config.augpipe, config.p).to(device)
        self.ada = AdaptiveP(config.target, config.ada_kimg).to(device)
        self.modules = {"G": G, "D": D, "G_ema": self.G_ema, "path_length": self.path_length}
        self.modules |= {"augment": self.augment, "ada": self.ada}
        if config.init_from and fresh and distributed.rank() == 0:
            print(initialize(self.modules, Path(config.init_from), config.freezed), file=sys.stderr)
        freeze(D, config.freezed)
        set_precision(G, D, config.precision)
        scaling = config.precision == "fp16"
        every = config.pl_interval if config.pl_weight else None
        self.G_opt = Descent(lazy_adam(G.parameters(), config.glr, every), scaling)
        trained = [p for p in D.parameters() if p.requires_grad]
        self.D_opt = Descent(lazy_adam(trained, config.dlr, config.r1_interval), scaling)
        self.optimizers = {"G_opt": self.G_opt, "D_opt": self.D_opt}

        self.parts = config.batch // distributed.world_size() // config.batch_gpu
        self.class_numbers = self.dataset.labels if config.cond else torch.zeros(1, dtype=torch.int64)
        # Only what is differentiated once can be compiled, with the kernels there before.
        native.available(device.type)
        compiled = torch.compile if config.compile else lambda module: module
        self.synthesize, self.compiled_D = compiled(G.synthesis), compiled(D)

        self.judged = ImageDataset(config.data, use_labels=config.cond)  # by the metrics: not mirrored
        self.at_a_time = min(config.batch_gpu, 64)  # in no more memory than training takes
        self.evaluator = Evaluator(
            config.metrics,
            self.judged,
            batch=self.at_a_time,
            workers=config.workers,
            seed=config.seed,
            device=device,
            weights=config.detector_weights,
            optional=True,
        )

    def batches(self, step: int) -> Iterator[Batch]:
        """What the steps take from that one on, without end."""
        for images, c in endless_batches(self.config, self.dataset, step, self.device):
            parts = to_float(images).split(self.config.batch_gpu), c.split(self.config.batch_gpu)
            yield list(zip(*parts, strict=True))

    def step(self, reals: Batch, step: int) -> None:
        """One step of the generator and one of the discriminator, with the regularizers that are due."""
        config = self.config
        self.generator_step(reals)
        if config.pl_weight and step % config.pl_interval == 0:
            self.path_length_step()
        logits = self.discriminator_step(reals)
        if step % config.r1_interval == 0:
            self.penalty_step(reals)
        if config.aug == "ada":
            self.ada.update(self.augment.p, logits, step)
        update_ema(self.G_ema, self.G, ema_beta(config, step * config.batch / 1000))

    # The four kinds of step. Each is down the mean of losses over the parts of a batch.

    def generator_step(self, reals: Batch) -> None:
        w_means = []

        def losses() -> Iterator[Tensor]:
            for real, real_c in reals:
                ws, c = self.random_ws(len(real))
                w_means.append(ws.detach()[:, 0].mean(dim=0))
                with torch.no_grad():
                    real_logits = self.judge(real, real_c) if self.config.loss == "relativistic" else None
                fake_logits = self.judge(self.synthesize(ws), c)
                loss = generator_loss(fake_logits, real_logits)
                self.averages.add(**{"loss/G": loss, "logits/G": fake_logits})
                yield loss

        self.D.requires_grad_(False)
        self.G_opt.step(losses(), self.parts)
        w_avg, beta = self.G.w_avg, self.config.w_avg_beta
        moved = w_avg.lerp(distributed.mean(torch.stack(w_means).mean(dim=0)), 1 - beta)
        w_avg.copy_(torch.where(moved.isfinite().all(), moved, w_avg))

    def path_length_step(self) -> None:
        def losses() -> Iterator[Tensor]:
            for _ in range(self.parts):
                ws, _ = self.random_ws(max(self.config.batch_gpu // self.config.pl_shrink, 1))
                penalty = self.path_length(self.G.synthesis(ws), ws)
                self.averages.add(**{"loss/path_length": penalty})
                yield penalty * self.config.pl_weight * self.config.pl_interval

        self.G_opt.step(losses(), self.parts)

    def discriminator_step(self, reals: Batch) -> Tensor:
        """Returns the logits of the reals."""
        logits = []

        def losses() -> Iterator[Tensor]:
            for real, real_c in reals:
                fake, c = self.random_fakes(len(real))
                real_logits, fake_logits = self.judge(real, real_c), self.judge(fake, c)
                loss = discriminator_loss(real_logits, fake_logits, self.config.loss == "relativistic")
                self.averages.add(**{"loss/D": loss, "logits/real": real_logits, "logits/fake": fake_logits})
                self.averages.add(**{"sign/real": real_logits.sign()})
                logits.append(real_logits.detach())
                yield loss

        self._unfreeze_D()
        self.D_opt.step(losses(), self.parts)
        return torch.cat(logits)

    def penalty_step(self, reals: Batch) -> None:
        """R1, and R2 with the relativistic loss."""
        judge = partial(self.judge, D=self.D)

        def losses() -> Iterator[Tensor]:
            for real, real_c in reals:
                penalty = gradient_penalty(judge, real, real_c)
                self.averages.add(**{"loss/r1": penalty})
                if self.config.loss == "relativistic":
                    r2 = gradient_penalty(judge, *self.random_fakes(len(real)))
                    self.averages.add(**{"loss/r2": r2})
                    penalty = penalty + r2
                yield penalty * (self.config.gamma / 2 * self.config.r1_interval)

        self._unfreeze_D()
        self.D_opt.step(losses(), self.parts)

    def _unfreeze_D(self) -> None:
        for parameter in self.D_opt.parameters:  # not those of --freezed
            parameter.requires_grad_(True)

    def random_classes(self, count: int) -> Tensor:
        """c [count, c_dim] with the data set's frequencies."""
        chosen = self.class_numbers[torch.randint(len(self.class_numbers), [count])]
        c = one_hot(chosen, self.config.generator.c_dim)
        # from pinned memory, so that nothing waits for the GPU
        return c.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else c

    def random_ws(self, count: int) -> tuple[Tensor, Tensor]:
        """w codes for every layer, and the classes that they were made for."""
        c = self.random_classes(count)
        z = torch.randn(count, self.config.generator.z_dim, device=self.device)
        return sample_ws(self.G, z, c, self.config.mixing), c

    @torch.no_grad()
    def random_fakes(self, count: int) -> tuple[Tensor, Tensor]:
        ws, c = self.random_ws(count)
        return self.synthesize(ws), c

    def judge(self, images: Tensor, c: Tensor, D: nn.Module | None = None) -> Tensor:
        """The discriminator's logits for augmented pictures."""
        return (D or self.compiled_D)(images if self.config.aug == "noaug" else self.augment(images), c)

    # What the loop asks for between the steps.

    def figures(self) -> dict[str, float]:
        """Of a tick, beside the averages."""
        return {} if self.config.aug == "noaug" else {"ada/p": float(self.augment.p)}

    def save(self, path: Path, kimg: float) -> None:
        """Writes the averaged generator. Raises DiskFull."""
        save_snapshot(path, self.G_ema, {"kimg": kimg, "data": self.dataset.name})

    def measure(self) -> dict[str, Any]:
        """Figures of the averaged generator and what they depend on; {} without metrics, and except in rank 0."""
        fakes = Fakes(self.G_ema, self.evaluator.count, self.config.seed, self.judged.labels)
        try:
            figures = self.evaluator.evaluate(fakes.pictures, partial(fakes.path_ends, epsilon=PPL_EPSILON))
        except NotFinite as error:  # in the process that writes, after all that they do together
            print(f"warning: {error.message}", file=sys.stderr)
            figures = error.figures
        settings = {**self.evaluator.settings(), "truncation": 1.0, "mirror": False}
        settings["data_hash"] = self.judged.fingerprint
        return {**figures, "pictures": self.evaluator.counts, "settings": settings} if figures else {}

    def monitor(self, run: Path, log: Log) -> Monitor:
        return Monitor(self, run, log)


class Monitor:
    """Looks at the generator from outside: grids of reals and fakes, and the metrics."""

    def __init__(self, gan: GAN, run: Path, log: Log):
        self.config, self.G, self.run, self.log = gan.config, gan.G_ema, run, log
        config, resolution = gan.config, gan.dataset.resolution
        self.dataset, self.at_a_time = gan.judged, gan.at_a_time
        self.columns = max(min(1024 // resolution, 12), 4)
        count = self.columns * max(min(768 // resolution, 8), 3)
        chosen = np.random.default_rng(config.seed).permutation(len(self.dataset))[:count]
        self.shown = [int(i) for i in chosen]
        for note in gan.evaluator.notes:
            log.say(note)

    def begin(self) -> None:
        """Writes a grid of reals."""
        reals = torch.stack([self.dataset[i][0] for i in self.shown])
        save_png(grid(reals, self.columns), self.run / "reals.png")

    def look(self, kimg: float, metrics: Mapping[str, Any]) -> None:
        """Writes the metrics and a grid of fakes, with the classes of the reals. Raises DiskFull."""
        labels = self.dataset.labels if self.config.cond else None
        classes = None if labels is None else labels[self.shown]
        fakes = torch.cat(list(generate_batches(self.G, range(len(self.shown)), self.at_a_time, classes)))
        picture = grid(fakes, self.columns)
        if metrics:
            self.log.metrics({"kimg": kimg, **metrics})
        self.log.image("fakes", picture, kimg)
        save_png(picture, look_path(self.run, GAN.look_name, kimg))


def set_precision(G: Generator, D: Discriminator, precision: str) -> None:
    """Has the highest 4 resolutions, of 8² and more, computed in half precision (StyleGAN2-ADA, appendix).

    There, on GPUs, the discriminator works in channels-last memory: its convolutions take the order of their weights.
    """
    half = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    for block in [*G.synthesis.blocks[1:][-HALF_RESOLUTIONS:], *D.blocks[:HALF_RESOLUTIONS]]:
        block.half = half
    if half and D.out.weight.is_cuda:
        for block in D.blocks[:HALF_RESOLUTIONS]:
            block.to(memory_format=torch.channels_last)
