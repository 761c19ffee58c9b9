"""What a run says: a progress line, stats.jsonl, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from torch_utils import distributed
from torch_utils.files import atomic_write


class Averages:
    """Means of numbers that live on the device, read only when they are asked for, so that no step waits."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, **values: Tensor) -> None:
        for name, value in values.items():
            value = value.detach().double().mean()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] += 1

    def take(self) -> dict[str, float]:
        """The means over steps and processes since the last call."""
        means = {
            name: float(distributed.mean(total / self._counts[name])) for name, total in sorted(self._sums.items())
        }
        self.__init__()
        return means


class Log:
    """Writes the records of a run; resumed at `kimg`, what was written after that is dropped, for it happens again."""

    def __init__(self, run: Path, kimg: float, total_kimg: float):
        self.run = run
        for name in ("stats.jsonl", "metrics.jsonl"):
            _drop_after(run / name, kimg)
        self._board = SummaryWriter(str(run), purge_step=round(kimg * 1000))
        self.begin(kimg)
        self._bar = tqdm(
            total=total_kimg,
            initial=kimg,
            unit="kimg",
            disable=not sys.stderr.isatty(),
            bar_format="{desc}{percentage:3.0f}%|{bar}| {n:.2f}/{total:g} kimg [{elapsed}, {postfix}]",
        )

    def begin(self, kimg: float) -> None:
        """The clock for speed and time left starts here."""
        self._start = (kimg, time.monotonic())

    def step(self, kimg: float, steps_per_s: float) -> None:
        """Moves the progress line."""
        self._bar.set_postfix_str(f"{steps_per_s:.1f} it/s, left {self.left(kimg)}", refresh=False)
        self._bar.update(kimg - self._bar.n)

    def left(self, kimg: float) -> str:
        """The time left at the mean speed since the start, as h:mm:ss."""
        kimg0, time0 = self._start
        seconds = (time.monotonic() - time0) / max(kimg - kimg0, 1e-9) * max(self._bar.total - kimg, 0)
        return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02d}:{int(seconds % 60):02d}"

    def say(self, line: str) -> None:
        """A line on stderr, above the progress line."""
        self._bar.clear()
        print(line, file=sys.stderr, flush=True)
        self._bar.refresh()

    def tick(self, kimg: float, step: int, steps_per_s: float, means: dict[str, float]) -> None:
        """One tick's numbers, and a line of the main ones."""
        kimg0, time0 = self._start
        s_per_kimg = (time.monotonic() - time0) / max(kimg - kimg0, 1e-9)
        self._record("stats.jsonl", {"kimg": kimg, "step": step, "it_per_s": steps_per_s, **means})
        losses = "  ".join(
            f"{name.removeprefix('loss/')} {means[name]:.3f}" for name in means if name.startswith("loss/")
        )
        self.say(
            f"kimg {kimg:g}/{self._bar.total:g}  {steps_per_s:.1f} it/s  {s_per_kimg:.1f} s/kimg  "
            f"left {self.left(kimg)}  {losses}"
        )

    def metrics(self, values: dict[str, Any]) -> None:
        """A snapshot's figures; `values["kimg"]` says when."""
        self._record("metrics.jsonl", values)

    def image(self, name: str, picture: Tensor, kimg: float) -> None:
        """uint8 [C, H, W] for TensorBoard."""
        self._board.add_image(name, picture, round(kimg * 1000))

    def close(self) -> None:
        self._bar.close()
        self._board.close()

    def _record(self, name: str, values: dict[str, Any]) -> None:
        with open(self.run / name, "a") as file:
            file.write(json.dumps(values) + "\n")
        for key, value in values.items():
            if isinstance(value, (int, float)) and key != "kimg":
                self._board.add_scalar(key, value, round(values["kimg"] * 1000))


def _drop_after(path: Path, kimg: float) -> None:
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["kimg"] <= kimg]
        with atomic_write(path) as file:
            file.write("".join(kept).encode())
