"""The generator's training: what one step is, and how the generator is evaluated."""

from __future__ import annotations

import copy
from collections import abc
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from media.alpha import Color
from media.dataset import ImageDataset
from media.decode import WHITE
from media.images import preview_grid, save_png, to_float
from media.loader import endless_batches
from metrics import PPL_EPSILON, Evaluator, NotFinite, higher_is_better
from models.sampling import Fakes, conditions, generate_batches
from models.snapshot import save_snapshot
from networks.discriminator import Discriminator
from networks.generator import Generator
from torch_utils import distributed
from torch_utils.errors import DiskFull, note, print_notes
from torch_utils.ops import native
from torch_utils.precision import COMPUTE_DTYPES
from torch_utils.sizes import width_and_height
from training.augment import AdaptiveP, AugmentPipe
from training.config import TrainConfig
from training.finetune import freeze, load_initial_weights
from training.log import Averages, Log
from training.loss import PathLength, discriminator_loss, generator_loss, gradient_penalty, sample_ws
from training.optimizer import GuardedOptimizer, ema_beta, lazy_adam, ramped_half_life, update_ema
from training.runs import BEST, SKIPPED, best_kimg, record_unreadable

HALF_RESOLUTIONS = 4
METRICS_BACKGROUND = WHITE  # of transparent images in metrics
Batch = list[tuple[Tensor, Tensor]]  # microbatches of real images and their classes, each of `batch_gpu` images


class GANTrainer:
    """Generator and discriminator, trained against each other. A `training.loop.Trainer`."""

    script, sheet_name = "train.py", "fakes"
    use: tuple[str, ...] = ("generate.py", "--seeds", "0-15", "--network")
    hint = "try a larger --gamma, smaller --glr and --dlr, or --precision fp32"

    @staticmethod
    def fingerprint(config: TrainConfig) -> str:
        return open_data(config).fingerprint

    def __init__(self, config: TrainConfig, device: torch.device, fresh: bool = True):
        """Builds networks and optimizers. `fresh`: the weights do not come from a state, so --init-from is read."""
        if config.schedules and type(self) is GANTrainer:
            raise ValueError("schedules: those of R3GAN's recipe are followed by training.r3gan.R3GANTrainer")
        self.config, self.device, self.averages = config, device, Averages()
        self.dataset = open_data(config, config.mirror, config.background)
        self.unmirrored = open_data(config, background=config.background)  # what sheets show
        self.measured = self.unmirrored  # what metrics see: RGBA images on a background
        if self.dataset.channels == 4:
            self.measured = open_data(config, background=METRICS_BACKGROUND)
        self.unreadable: list[str] = []  # the names of images that were skipped
        self.class_numbers = self.dataset.required_labels if config.cond else torch.zeros(1, dtype=torch.int64)
        self.microbatches = config.batch // distributed.world_size() // config.batch_gpu

        self.G = G = Generator(config.generator).to(device)
        self.D = D = Discriminator(config.discriminator).to(device)
        self.G_ema = copy.deepcopy(G).eval().requires_grad_(False)
        self.path_length = PathLength().to(device)
        self.augment = AugmentPipe(config.augpipe, config.p).to(device)
        self.ada = AdaptiveP(config.target, config.ada_kimg).to(device)
        self.modules: dict[str, nn.Module] = {"G": G, "D": D, "G_ema": self.G_ema, "path_length": self.path_length}
        self.modules |= {"augment": self.augment, "ada": self.ada}
        if self.dataset.unreadable is not None:
            self.modules[SKIPPED] = SkippedImages(self.dataset.unreadable)
        if config.init_from and fresh and distributed.rank() == 0:
            note(load_initial_weights(self.modules, Path(config.init_from), config.freezed))
        for network in (G, D, self.G_ema):
            if network.mapping is not None and network.mapping.labels is not None:
                network.mapping.labels.fit(self.dataset.required_labels)
        freeze(D, config.freezed)
        set_precision(G, D, config.precision)
        # Only steps without regularizers can be compiled: a compiled graph cannot be differentiated twice.
        native.available(device.type)  # the kernels have to be built before
        compiled = torch.compile if config.compile else lambda module: module
        self.synthesize, self.compiled_D = compiled(G.synthesis), compiled(D)

        adam = self.make_adam(list(G.parameters()), [p for p in D.parameters() if p.requires_grad])
        self.G_opt, self.D_opt = (GuardedOptimizer(one, config.precision == "fp16") for one in adam)
        self.optimizers = {"G_opt": self.G_opt, "D_opt": self.D_opt}

        self.eval_batch = min(config.batch_gpu, 64)  # evaluation takes no more memory than training
        self.evaluator = Evaluator(
            config.metrics,
            self.measured,
            batch=self.eval_batch,
            workers=config.workers,
            seed=config.seed,
            device=device,
            weights=config.detector_weights,
            optional=True,
            remedy="add some, or train with --metrics none",
        )
        if distributed.rank() == 0:
            if config.keep_best and not self.computes(config.keep_best):
                note(f"warning: no best.safetensors will be kept: --keep-best {config.keep_best} is left out")
            print_notes(self.unmirrored.notes)
            for line in self.evaluator.notes:
                note(line)

    def make_adam(self, G: list[nn.Parameter], D: list[nn.Parameter]) -> tuple[torch.optim.Adam, torch.optim.Adam]:
        """The optimizers of the parameters of both networks."""
        config = self.config
        return lazy_adam(G, config.glr, config.pl_interval), lazy_adam(D, config.dlr, config.r1_interval)

    def batches(self, step: int) -> abc.Generator[Batch]:
        """The batches from `step` on, without end: this process's share of each, in microbatches."""
        config = self.config
        for images, c in endless_batches(
            self.dataset,
            batch=config.batch,
            step=step,
            seed=config.seed,
            workers=config.workers,
            device=self.device,
        ):
            yield list(zip(to_float(images).split(config.batch_gpu), c.split(config.batch_gpu), strict=True))

    def train_step(self, reals: Batch, step: int) -> None:
        """One step of the generator and one of the discriminator, and of the regularizers that are due."""
        config = self.config
        self.generator_step(reals)
        if config.pl_weight and step % config.pl_interval == 0:
            self.path_length_step()
        logits = self.discriminator_step(reals)
        if step % config.r1_interval == 0:
            self.penalty_step(reals)
        if config.aug == "ada":
            self.ada.update(self.augment.p, logits, step)
        half_life = ramped_half_life(config, step * config.batch / 1000)
        update_ema(self.G_ema, self.G, ema_beta(half_life, config.batch))

    # The four kinds of step, each down the mean of the losses of the microbatches.

    def generator_step(self, reals: Batch) -> None:
        """Lowers `generator_loss`, and moves the mean of w, which truncation pulls towards."""
        self.D.requires_grad_(False)
        self.G_opt.zero_grad()
        codes = []
        for real, real_c in reals:
            ws, c = self.codes_beside(real_c)
            codes.append((ws.detach()[:, 0], c))
            fake_logits = self.run_discriminator(self.synthesize(ws), c)
            with torch.no_grad():
                real_logits = self.run_discriminator(real, real_c) if self.config.loss == "relativistic" else None
            loss = generator_loss(fake_logits, real_logits)
            self.G_opt.backward(loss, len(reals))
            self.averages.add({"loss/G": loss, "logits/G": fake_logits})
        self.G_opt.step()
        self.update_w_avg(codes)

    def update_w_avg(self, codes: list[tuple[Tensor, Tensor]]) -> None:
        """Moves the running means of w, of all images and of each class, by w [N, w_dim] and c of each microbatch.

        The mean of a class moves with each step in which the class occurs, and until there are as many of these as it
        averages over, it is the plain mean over them. A mean that is not finite changes nothing.
        """
        G, beta = self.G, self.config.w_avg_beta
        w_means = torch.stack([w.mean(dim=0) for w, _ in codes])
        moved = G.w_avg.lerp(distributed.mean(w_means.mean(dim=0)), 1 - beta)
        G.w_avg.copy_(torch.where(moved.isfinite().all(), moved, G.w_avg))
        if not G.config.classes:
            return
        sums = torch.stack([torch.cat([c.T @ w, c.sum(dim=0)[:, None]], dim=1) for w, c in codes]).sum(dim=0)
        sums = distributed.mean(sums)  # of w and of images for each class, [c_dim, w_dim + 1]
        means = sums[:, :-1] / sums[:, -1:]  # NaN for classes that do not occur
        count = torch.clamp(G.class_w_count + 1, max=round(1 / (1 - beta)))
        seen = means.isfinite().all(dim=1)
        G.class_w_avg.copy_(torch.where(seen[:, None], G.class_w_avg.lerp(means, 1 / count[:, None]), G.class_w_avg))
        G.class_w_count.copy_(torch.where(seen, count, G.class_w_count))

    def path_length_step(self) -> None:
        """Lowers the path length penalty, weighted for the steps in which it is not computed."""
        config = self.config
        self.G_opt.zero_grad()
        for _ in range(self.microbatches):
            ws, _ = self.random_ws(max(config.batch_gpu // config.pl_shrink, 1))
            penalty = self.path_length(self.G.synthesis(ws), ws)
            self.G_opt.backward(penalty * config.pl_weight * config.pl_interval, self.microbatches)
            self.averages.add({"loss/path_length": penalty})
        self.G_opt.step(of_loss=False)

    def discriminator_step(self, reals: Batch) -> Tensor:
        """Lowers `discriminator_loss`, and returns the logits of the real images."""
        self._unfreeze_D()
        self.D_opt.zero_grad()
        logits = []
        for real, real_c in reals:
            with torch.no_grad():
                ws, c = self.codes_beside(real_c)
                fake = self.synthesize(ws)
            real_logits, fake_logits = self.run_discriminator(real, real_c), self.run_discriminator(fake, c)
            loss = discriminator_loss(real_logits, fake_logits, self.config.loss == "relativistic")
            self.D_opt.backward(loss, len(reals))
            self.averages.add({"loss/D": loss, "logits/real": real_logits, "logits/fake": fake_logits})
            self.averages.add({"sign/real": real_logits.sign()})
            logits.append(real_logits.detach())
        self.D_opt.step()
        return torch.cat(logits)

    def penalty_step(self, reals: Batch) -> None:
        """Lowers R1, and with the relativistic loss R2, weighted for the steps in which they are not computed."""
        config, D = self.config, partial(self.run_discriminator, D=self.D)
        self._unfreeze_D()
        self.D_opt.zero_grad()
        for real, real_c in reals:
            penalty = gradient_penalty(D, real, real_c)
            self.averages.add({"loss/r1": penalty})
            if config.loss == "relativistic":
                r2 = gradient_penalty(D, *self.random_fakes(len(real)))
                self.averages.add({"loss/r2": r2})
                penalty = penalty + r2
            self.D_opt.backward(penalty * (config.gamma / 2 * config.r1_interval), len(reals))
        self.D_opt.step(of_loss=False)

    def _unfreeze_D(self) -> None:
        for parameter in self.D_opt.parameters:  # without the layers that --freezed keeps
            parameter.requires_grad_(True)

    def random_classes(self, count: int) -> Tensor:
        """c [count, c_dim], the labels of images that are drawn from the data set."""
        chosen = self.class_numbers[torch.randint(len(self.class_numbers), [count])]
        c = conditions(chosen, count, self.config.generator.c_dim)
        # from pinned memory, so that nothing waits for the GPU
        return c.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else c

    def random_ws(self, count: int, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Random codes ws [count, num_ws, w_dim] and their classes c [count, c_dim], which are random if not given."""
        c = self.random_classes(count) if c is None else c
        z = torch.randn(count, self.config.generator.z_dim, device=self.device)
        return sample_ws(self.G, z, c, self.config.mixing), c

    def codes_beside(self, real_c: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and classes for as many fakes as there are real images of the classes `real_c`.

        The classes are random, or those of the real images with the relativistic loss, which compares a fake with one
        real image: with two of different classes, D could tell from the classes alone.
        """
        return self.random_ws(len(real_c), real_c if self.config.loss == "relativistic" else None)

    @torch.no_grad()
    def random_fakes(self, count: int) -> tuple[Tensor, Tensor]:
        """Images [count, C, H, W] of random codes, without a graph, and their classes."""
        ws, c = self.random_ws(count)
        return self.synthesize(ws), c

    def run_discriminator(self, images: Tensor, c: Tensor, D: nn.Module | None = None) -> Tensor:
        """The discriminator's logits [N, 1] of augmented images [N, C, H, W]."""
        return (D or self.compiled_D)(images if self.config.aug == "noaug" else self.augment(images), c)

    # What the loop asks for between the steps.

    def statistics(self) -> dict[str, float]:
        """Numbers of a tick beside the averages. Raises ImageError where too many images cannot be decoded."""
        values = {} if self.config.aug == "noaug" else {"ada/p": float(self.augment.p)}
        if self.config.skip_unreadable:
            self.collect_unreadable()
            values["unreadable"] = float(len(self.unreadable))
        return values

    def collect_unreadable(self) -> None:
        """Collects from all processes which images were skipped, and names new ones."""
        opened = (self.dataset, self.unmirrored, self.measured)
        flags = torch.stack([data.unreadable for data in opened if data.unreadable is not None]).amax(dim=0)
        flags = torch.stack(distributed.gather(flags.to(self.device))).amax(dim=0).cpu()
        if self.dataset.unreadable is not None:  # it is in the state; workers may set others at the same time
            self.dataset.unreadable[flags.bool()] = 1
        names = self.dataset.check_unreadable(flags)
        if distributed.rank() == 0 and (new := sorted(set(names) - set(self.unreadable))):
            note(f"skipped, as they cannot be decoded: {', '.join(new)}")
        self.unreadable = names

    def save(self, path: Path, kimg: float) -> None:
        """Writes the averaged generator. Raises DiskFull."""
        info: dict[str, Any] = {"kimg": kimg, "data": self.dataset.name}
        if self.dataset.class_names:
            info["class_names"] = list(self.dataset.class_names)
        if self.config.init_from:
            info["init_from"] = Path(self.config.init_from).name
        if self.config.source:
            info["source"] = {name: value for name, value in asdict(self.config.source).items() if value}
        save_snapshot(path, self.G_ema, info)
        if self.unreadable:
            record_unreadable(path.parent, self.unreadable)

    def evaluate(self, kimg: float, log: Log) -> None:
        """Writes the metrics and a sheet of fakes, with the classes of the reals beside it. Raises DiskFull."""
        if kimg == 0 and log.writes:
            reals = torch.stack([self.unmirrored[i][0] for i in self.shown])
            save_png(preview_grid(reals, self.columns), log.run / "reals.png")
        metrics = self.compute_metrics()
        if not log.writes:
            return
        labels = self.unmirrored.labels if self.config.cond else None
        classes = None if labels is None else labels[self.shown]
        fakes = torch.cat(list(generate_batches(self.G_ema, range(len(self.shown)), self.eval_batch, classes)))
        full: DiskFull | None = None
        if metrics:
            if self.config.keep_best and self.is_best(metrics, log):
                try:
                    self.save(log.run / BEST, kimg)
                except DiskFull as error:
                    full = error
            log.metrics({"kimg": kimg, **metrics})
        if full:
            raise full  # before the sheet: where there is none, --resume evaluates again
        log.sheet(self.sheet_name, preview_grid(fakes, self.columns), kimg)

    def computes(self, value: str) -> bool:
        """Whether one of the metrics that are not left out has a value of this name."""
        return any(value in metric.rankings() for metric in self.evaluator.metrics)

    def is_best(self, metrics: dict[str, Any], log: Log) -> bool:
        """Whether the averaged generator is better than the one in best.safetensors, by the metric of --keep-best.

        There may be no such file after evaluations: that of an abandoned part of the training was renamed, or the
        option is new. Then this one is the best.
        """
        name = self.config.keep_best
        if name not in metrics:  # it came out as NaN
            return False
        kept = log.recorded(name).get(best_kimg(log.run / BEST))
        sign = 1 if higher_is_better(name, self.config.metrics) else -1
        return kept is None or sign * metrics[name] > sign * kept

    def compute_metrics(self) -> dict[str, Any]:
        """Metrics of the averaged generator with their settings, by all processes; {} except in rank 0."""
        background = METRICS_BACKGROUND
        fakes = Fakes(self.G_ema, self.evaluator.count, self.config.seed, self.unmirrored.labels, background=background)
        try:
            values = self.evaluator.evaluate(fakes.images, partial(fakes.path_ends, epsilon=PPL_EPSILON))
        except NotFinite as error:
            note(f"warning: {error.message}")
            values = error.values
        if not values:
            return {}
        settings = {**self.evaluator.settings(), "truncation": 1.0, "noise": "random", "mirror": False}
        settings["data_hash"] = self.unmirrored.fingerprint
        if self.dataset.transparent:
            settings["background"] = self.config.background or METRICS_BACKGROUND
        return {**values, "images": self.evaluator.counts, "settings": settings}

    @property
    def columns(self) -> int:
        """Columns of the sheets."""
        return max(min(1024 // width_and_height(self.dataset.resolution)[0], 12), 4)

    @cached_property
    def shown(self) -> list[int]:
        """The real images of the sheets, by their numbers in the data set."""
        count = self.columns * max(min(768 // width_and_height(self.dataset.resolution)[1], 8), 3)
        return self.unmirrored.choose(count, self.config.seed)


class SkippedImages(nn.Module):
    """Which images could not be decoded, in the training state: a resumed run goes on counting and naming them."""

    def __init__(self, unreadable: Tensor):
        super().__init__()
        self.register_buffer("unreadable", unreadable)  # the data set's own uint8 [images], into which a state is read


def open_data(config: TrainConfig, mirror: bool = False, background: Color | None = None) -> ImageDataset:
    return ImageDataset(
        config.data,
        use_labels=config.cond,
        mirror=mirror,
        background=background,
        skip_unreadable=config.skip_unreadable,
    )


def set_precision(G: Generator, D: Discriminator, precision: str) -> None:
    """Lets the highest 4 resolutions but that of the constant compute in half precision (StyleGAN2-ADA, appendix).

    Both work in channels-last memory there (`in_fast_order`). On GPUs the discriminator's weights get that order too,
    so that they are not copied at each use.
    """
    compute_dtype = COMPUTE_DTYPES[precision]
    for block in [*G.synthesis.blocks[1:][-HALF_RESOLUTIONS:], *D.blocks[:HALF_RESOLUTIONS]]:
        block.compute_dtype = compute_dtype
    if compute_dtype:
        for block in D.blocks[:HALF_RESOLUTIONS]:
            block.to(memory_format=torch.channels_last)
