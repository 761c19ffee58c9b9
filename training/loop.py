"""The generator's training, top to bottom."""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from metrics import Evaluator
from networks.discriminator import Discriminator
from networks.generator import Generator
from torch_utils import distributed
from torch_utils.files import DiskFull, remove_leftovers
from torch_utils.memory import keep_freed_memory
from training.checkpoint import (
    fakes_path,
    kimg_name,
    load_state,
    look_is_due,
    module_state,
    save_snapshot,
    save_state,
)
from training.config import TrainConfig
from training.dataset import EndlessSampler, ImageDataset
from training.images import grid, save_png, to_float
from training.log import Averages, Log
from training.loss import PathLength, discriminator_loss, generator_loss, r1_penalty, sample_ws
from training.sampling import generate_batches, one_hot


def train(config: TrainConfig, run: Path, state_path: Path | None = None) -> bool:
    """Trains a generator as `config` says, in the folder `run`, from the start or from a state.

    Returns whether it came to the end; False when it was interrupted, with everything saved to go on. A disk that is
    full on the way costs a state and no more; in the end, DiskFull is raised.
    """
    interrupted = StopSignal()
    device = torch.device("cuda", torch.cuda.current_device()) if config.gpus else torch.device("cpu")
    main_process = distributed.rank() == 0
    torch.manual_seed(config.seed)
    if device.type == "cpu":
        keep_freed_memory()

    # Data, networks, optimizers.
    dataset = ImageDataset(config.data, use_labels=config.cond, mirror=config.mirror)
    G = Generator(config.generator).to(device)
    D = Discriminator(config.discriminator).to(device)
    G_ema = copy.deepcopy(G).eval().requires_grad_(False)
    path_length = PathLength().to(device)
    G_opt = lazy_adam(G, config.glr, config.pl_interval if config.pl_weight else None)
    D_opt = lazy_adam(D, config.dlr, config.r1_interval)
    modules = {"G": G, "D": D, "G_ema": G_ema, "path_length": path_length}
    optimizers = {"G_opt": G_opt, "D_opt": D_opt}

    # From here on every process draws its own numbers.
    torch.manual_seed(config.seed * distributed.world_size() + distributed.rank() + 1)
    step, look_due, averages = 0, False, Averages()
    if state_path is not None:
        state = distributed.on_rank_0(load_state, state_path)  # the other machines may not have the file
        for name, part in {**modules, **optimizers}.items():
            part.load_state_dict(state[name])
        step = state["step"]
        set_random_state(state["random"][distributed.rank()], device)
        averages.load(state["averages"], device)
        look_due = look_is_due(run, state, step * config.batch / 1000)
    for module in modules.values():
        distributed.broadcast(module)

    batches = real_batches(config, dataset, step, device)
    n = config.batch // distributed.world_size()
    class_numbers = dataset.labels if config.cond else torch.zeros(1, dtype=torch.int64)

    def random_classes(count: int) -> Tensor:
        """c [count, c_dim] with the data set's frequencies."""
        chosen = class_numbers[torch.randint(len(class_numbers), [count])]
        return one_hot(chosen, config.generator.c_dim).to(device)

    def fakes(count: int) -> tuple[Tensor, Tensor, Tensor]:
        c = random_classes(count)
        z = torch.randn(count, config.generator.z_dim, device=device)
        ws = sample_ws(G, z, c, config.mixing)
        return G.synthesis(ws), c, ws

    # The run's records, written by one process.
    kimg = step * config.batch / 1000
    if main_process:
        remove_leftovers(run)
    log = Log(run, kimg, config.kimg, look_due) if main_process else None
    monitor = Monitor(config, dataset, run, log) if main_process else None
    if main_process and step == 0:
        monitor.write_reals()
        monitor.look(G_ema, kimg)
    if main_process and look_due:
        monitor.try_to_look(G_ema, kimg)
    distributed.wait_for_rank_0()
    if main_process:
        log.begin(kimg)
    tick_pictures = round(config.tick * 1000)
    tick, tick_step, tick_time = step * config.batch // tick_pictures, step, time.monotonic()
    full: DiskFull | None = None  # why the last snapshot or state could not be written

    while kimg < config.kimg:
        real, real_c = next(batches)

        # Generator.
        D.requires_grad_(False)
        images, c, ws = fakes(n)
        with torch.no_grad():
            G.w_avg.lerp_(distributed.mean(ws.detach()[:, 0].mean(dim=0)), 1 - config.w_avg_beta)
        fake_logits = D(images, c)
        loss = generator_loss(fake_logits)
        descend(G_opt, G, loss)
        averages.add(**{"loss/G": loss, "logits/G": fake_logits})

        if config.pl_weight and step % config.pl_interval == 0:
            images, _, ws = fakes(max(n // config.pl_shrink, 1))
            penalty = path_length(images, ws)
            descend(G_opt, G, penalty * config.pl_weight * config.pl_interval)
            averages.add(**{"loss/path_length": penalty})

        # Discriminator.
        D.requires_grad_(True)
        with torch.no_grad():
            images, c, _ = fakes(n)
        real_logits, fake_logits = D(real, real_c), D(images, c)
        loss = discriminator_loss(real_logits, fake_logits)
        descend(D_opt, D, loss)
        averages.add(**{"loss/D": loss, "logits/real": real_logits, "logits/fake": fake_logits})

        if step % config.r1_interval == 0:
            penalty = r1_penalty(D, real, real_c)
            descend(D_opt, D, penalty * (config.gamma / 2 * config.r1_interval))
            averages.add(**{"loss/r1": penalty})

        # Averaged weights.
        update_ema(G_ema, G, ema_beta(config, kimg))

        step += 1
        kimg = step * config.batch / 1000
        stop = distributed.any_process(interrupted.set)
        done = kimg >= config.kimg
        ticked = done or step * config.batch // tick_pictures > tick
        if main_process:
            log.step(kimg, (step - tick_step) / (time.monotonic() - tick_time))
        if not ticked and not stop:
            continue

        # A tick: statistics; every `snap` ticks, and at the end, a snapshot, a state and a look. A stop between two
        # ticks leaves its part of the statistics in the state.
        tick = step * config.batch // tick_pictures
        seconds = time.monotonic() - tick_time
        if ticked:
            means = averages.take()
            if main_process:
                log.tick(kimg, step, (step - tick_step) / seconds, means)
        look = done or (ticked and tick % config.snap == 0)
        if look or stop:
            state = {name: module_state(module) for name, module in modules.items()}
            state |= {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
            state |= {"step": step, "random": random_states(device), "averages": averages.state()}
            state |= {"look": look, "config": asdict(config)}
            if main_process:
                try:
                    snapshot = run / f"snapshot-{kimg_name(kimg)}.safetensors"
                    save_snapshot(snapshot, G_ema, {"kimg": kimg, "data": dataset.name})
                    save_state(run, state, kimg, config.keep)  # the last: with it, all before is there
                    full = None
                except DiskFull as error:
                    full = error
                    if not done and not stop:
                        log.say(f"warning: {error.message}; training goes on, and tries again at the next state")
                if look and not stop:
                    monitor.try_to_look(G_ema, kimg)
            distributed.wait_for_rank_0()
        if stop:
            if main_process and not full:
                log.say(f"stopped at kimg {kimg:g}; continue with: python train.py --resume {run}")
            break
        tick_step, tick_time = step, time.monotonic()

    if main_process:
        log.close()
        if full:
            raise full
    return kimg >= config.kimg


class Monitor:
    """Looks at the generator from outside: grids of reals and fakes, and the metrics."""

    def __init__(self, config: TrainConfig, dataset: ImageDataset, run: Path, log: Log):
        self.config, self.run, self.log = config, run, log
        self.dataset = ImageDataset(config.data, use_labels=config.cond)  # not mirrored
        self.columns = max(min(1024 // dataset.resolution, 12), 4)
        count = self.columns * max(min(768 // dataset.resolution, 8), 3)
        chosen = np.random.default_rng(config.seed).permutation(len(self.dataset))[:count]
        self.shown = [int(i) for i in chosen]
        device = "cuda" if config.gpus else "cpu"
        self.evaluator = Evaluator(
            config.metrics, self.dataset, seed=config.seed, workers=config.workers, device=device
        )
        if self.evaluator.shortage:
            log.say(self.evaluator.shortage)

    def write_reals(self) -> None:
        reals = torch.stack([self.dataset[i][0] for i in self.shown])
        save_png(grid(reals, self.columns), self.run / "reals.png")

    def look(self, G: Generator, kimg: float) -> None:
        """Writes the metrics and a grid of fakes, with the classes of the reals. Raises DiskFull."""
        labels = self.dataset.labels if self.config.cond else None
        classes = None if labels is None else labels[self.shown]
        fakes = torch.cat(list(generate_batches(G, range(len(self.shown)), 16, classes)))
        picture = grid(fakes, self.columns)
        if self.config.metrics:
            self.measure(G, kimg, labels)
        self.log.image("fakes", picture, kimg)
        save_png(picture, fakes_path(self.run, kimg))

    def try_to_look(self, G: Generator, kimg: float) -> None:
        """`look`, which a full disk does not stop."""
        try:
            self.look(G, kimg)
        except DiskFull as error:
            self.log.say(f"warning: {error.message}")

    def measure(self, G: Generator, kimg: float, labels: Tensor | None) -> None:
        count = self.evaluator.count
        if labels is not None:
            labels = labels[torch.randint(len(labels), [count], generator=torch.Generator().manual_seed(0))]
        figures = self.evaluator.evaluate(generate_batches(G, range(count), 64, labels))
        self.log.metrics({"kimg": kimg, **figures, "pictures": self.evaluator.counts})
        self.log.say("  ".join(f"{name} {value:.1f}" for name, value in figures.items()))


def lazy_adam(module: nn.Module, lr: float, interval: int | None) -> torch.optim.Adam:
    """Adam(0, 0.99), corrected for a regularizer every `interval` steps (Karras et al. 2020, StyleGAN2, appendix B).

    With c = interval / (interval + 1): lr ← c·lr, β ← βᶜ.
    """
    c = 1.0 if interval is None else interval / (interval + 1)
    return torch.optim.Adam(module.parameters(), lr=lr * c, betas=(0.0, 0.99**c), eps=1e-8, fused=True)


def descend(optimizer: torch.optim.Optimizer, module: nn.Module, loss: Tensor) -> None:
    """One step of the optimizer along the gradient of the loss, averaged over the processes."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    distributed.average_gradients(module.parameters())
    optimizer.step()


def ema_beta(config: TrainConfig, kimg: float) -> float:
    """How much of the averaged weights a step keeps: a half-life of ema_kimg, less at the start."""
    half_life = config.ema_kimg
    if config.ema_rampup is not None:
        half_life = min(half_life, kimg * config.ema_rampup)
    return 0.5 ** (config.batch / 1000 / max(half_life, 1e-8))


@torch.no_grad()
def update_ema(G_ema: Generator, G: Generator, beta: float) -> None:
    """G_ema ← β·G_ema + (1 − β)·G; buffers are copied."""
    for average, value in zip(G_ema.parameters(), G.parameters(), strict=True):
        average.lerp_(value, 1 - beta)
    for average, value in zip(G_ema.buffers(), G.buffers(), strict=True):
        average.copy_(value)


def real_batches(
    config: TrainConfig, dataset: ImageDataset, step: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Real pictures in −1..1 and their classes for this process, without end, from that step on."""
    sampler = EndlessSampler(
        len(dataset),
        seed=config.seed,
        start=step * config.batch,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    loader = DataLoader(
        dataset,
        batch_size=config.batch // distributed.world_size(),
        sampler=sampler,
        num_workers=config.workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=ignore_stop_signals,
        # the loader seeds its workers from this, and not from the random state that the training depends on
        generator=torch.Generator().manual_seed(0),
    )
    for images, c in loader:
        yield to_float(images.to(device, non_blocking=True)), c.to(device, non_blocking=True)


def random_states(device: torch.device) -> list[dict[str, Tensor]]:
    """The state of the random number generators of every process, in order of rank."""
    cpu = distributed.gather(torch.get_rng_state())
    if device.type != "cuda":
        return [{"cpu": s} for s in cpu]
    cuda = distributed.gather(torch.cuda.get_rng_state(device))
    return [{"cpu": a, "cuda": b} for a, b in zip(cpu, cuda, strict=True)]


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def ignore_stop_signals(worker: int) -> None:
    """^C and SIGTERM reach the whole process group; the loader's workers leave it to the training to end them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class StopSignal:
    """Takes ^C or SIGTERM as a wish to save and stop (`set`); a second ^C, seconds later, ends it at once.

    The launcher hands a ^C on that the terminal has sent to all processes already: that is not a second one.
    """

    def __init__(self) -> None:
        self.set, self.time = False, 0.0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        if self.set and number == signal.SIGINT and time.monotonic() - self.time > 3:
            raise KeyboardInterrupt
        if not self.set:
            self.set, self.time = True, time.monotonic()
