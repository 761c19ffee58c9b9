"""The records of a run: progress on stderr, stats.jsonl, metrics.jsonl, TensorBoard events and sheets of images."""

from __future__ import annotations

import io
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary
from tqdm import tqdm

from media.images import save_png
from torch_utils import distributed
from torch_utils.errors import DiskFull, UserError, note, one_line
from torch_utils.files import append_file, read_regular, write_file
from torch_utils.schema import is_number, parse_json
from training.runs import METRICS, STATS, sheet_path

MAX_RECORDS_BYTES = 1 << 30


class Averages:
    """Means of numbers that live on the device, read only when they are asked for, so that no step waits."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Adds the mean of each tensor, such as a loss or the logits of a batch, under its name."""
        for name, value in values.items():
            value = value.detach().double().mean()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] += 1

    def take(self) -> dict[str, float]:
        """The means over steps and processes since the last call."""
        means = {
            name: float(distributed.mean(total / self._counts[name])) for name, total in sorted(self._sums.items())
        }
        self._sums.clear()
        self._counts.clear()
        return means

    def state(self) -> dict[str, Any]:
        """The sums of all processes, for `load`: where training stops between two ticks, the next one is the same."""
        names = sorted(self._sums)
        if not names:
            return {}
        sums = distributed.gather(torch.stack([self._sums[name] for name in names]))
        return {"counts": {name: self._counts[name] for name in names}, "sums": [s.cpu() for s in sums]}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Takes over the sums of this process; where there were more or fewer processes, each gets their mean."""
        if not state:
            return
        self._counts.update(state["counts"])
        sums = state["sums"]
        mine = sums[distributed.rank()] if len(sums) == distributed.world_size() else torch.stack(sums).mean(dim=0)
        self._sums = dict(zip(self._counts, mine.to(device), strict=True))


class Log:
    """Writes the records of a run: progress on stderr, stats.jsonl, metrics.jsonl, TensorBoard events and sheets.

    In processes that do not write, nothing leaves it, so that all processes can call it alike. Resumed at `kimg`, it
    drops what was recorded after that, because it happens again; with `evaluating`, the metrics of that moment too.
    Everything is on the disk when a call returns. Records for which the disk has no room are written with later ones.
    """

    def __init__(self, run: Path, kimg: float, total_kimg: float, evaluating: bool = False, *, writes: bool = True):
        self.run, self.writes = run, writes
        self._unwritten: dict[Path, bytes] = {}
        self.start_clock(kimg, 0)
        show_bar = writes and sys.stderr.isatty()
        self._bar = tqdm(
            total=total_kimg,
            initial=kimg,
            unit="kimg",
            disable=not show_bar,
            bar_format="{desc}{percentage:3.0f}%|{bar}| {n:.2f}/{total:g} kimg [{elapsed}, {postfix}]",
        )
        if not writes:
            return
        _drop(run / STATS, lambda at: at > kimg)
        _drop(run / METRICS, lambda at: at > kimg or (evaluating and at == kimg))
        self._last_metrics = next(iter(read_records(run / METRICS)[-1:]), None)
        # One file for each start: TensorBoard reads them in order, and forgets what earlier ones have of the START's
        # step and later. Where an evaluation is repeated, START is that moment, and its statistics are written again.
        self._events = run / f"events.out.tfevents.{time.time():.3f}"
        self._event(0, file_version="brain.Event:2")
        self._event(round(kimg * 1000) + (not evaluating), session_log=SessionLog(status=SessionLog.START))
        if evaluating:
            for values in read_records(run / STATS)[-1:]:  # none where the disk was full
                if values["kimg"] == kimg:
                    self._scalars(values)

    def start_clock(self, kimg: float, step: int) -> None:
        """Speed and time left are measured from here on."""
        self._start = (kimg, time.monotonic())
        self.restart_tick(step)

    def restart_tick(self, step: int) -> None:
        """The speed of the next tick is measured from here on."""
        self._tick_start = (step, time.monotonic())

    def steps_per_s(self, step: int) -> float:
        """The mean speed since the last tick."""
        first, start = self._tick_start
        return (step - first) / (time.monotonic() - start)

    def step(self, kimg: float, step: int) -> None:
        """Moves the progress bar."""
        self._bar.set_postfix_str(f"{self.steps_per_s(step):.1f} it/s, left {self.left(kimg)}", refresh=False)
        with suppress(OSError):
            self._bar.update(kimg - self._bar.n)

    def left(self, kimg: float) -> str:
        """The time left at the mean speed since the start, as h:mm:ss."""
        kimg0, time0 = self._start
        seconds = (time.monotonic() - time0) / max(kimg - kimg0, 1e-9) * max(self._bar.total - kimg, 0)
        return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02d}:{int(seconds % 60):02d}"

    def say(self, line: str) -> None:
        """A line on stderr, above the progress bar."""
        if self.writes:
            with suppress(OSError):  # nobody reads it any more, as after ^C with `| tee`; the records say the same
                self._bar.clear()
                note(line)
                self._bar.refresh()

    def tick(self, kimg: float, step: int, statistics: dict[str, float]) -> None:
        """Records one tick's numbers, and prints a line of the main ones."""
        if not self.writes:
            return
        speed = self.steps_per_s(step)
        s_per_kimg = step / (speed * kimg)
        self._record(STATS, {"kimg": kimg, "step": step, "it_per_s": speed, **statistics})
        values = {name.removeprefix("loss/"): value for name, value in statistics.items() if name.startswith("loss/")}
        losses = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
        for name, text in (("ada/p", "p {:.3f}"), ("gpu_gib", "{:.1f} GiB"), ("skipped", "{:g} steps skipped")):
            if statistics.get(name) or (name == "ada/p" and name in statistics):  # a p of 0 says something
                losses += "  " + text.format(statistics[name])
        if last := self._last_metrics:
            losses += f"  ({_metrics_text(last)} at kimg {last['kimg']:g})"
        self.say(
            f"kimg {kimg:g}/{self._bar.total:g}  {speed:.1f} it/s  {s_per_kimg:.1f} s/kimg  "
            f"left {self.left(kimg)}  {losses}"
        )

    def metrics(self, values: dict[str, Any]) -> None:
        """Records metrics at `values["kimg"]`, and prints them, now and at the end of every line that follows."""
        if self.writes:
            self._record(METRICS, values)
            self.say(_metrics_text(values))
            self._last_metrics = values

    def recorded(self, name: str) -> dict[float, float]:
        """The values of a metric that have been recorded so far, by their kimg, where this process writes."""
        records = read_records(self.run / METRICS)
        return {values["kimg"]: values[name] for values in records if is_number(values.get(name))}

    def sheet(self, name: str, pixels: Tensor, kimg: float) -> None:
        """Writes the sheet [C, H, W], uint8, of an evaluation as PNG and for TensorBoard. Raises DiskFull."""
        if self.writes:
            self._event(round(kimg * 1000), summary=summary.image(name, pixels, dataformats="CHW"))
            save_png(pixels, sheet_path(self.run, name, kimg))

    def close(self) -> None:
        """Raises DiskFull where there is no room for all of the records."""
        with suppress(OSError):
            self._bar.close()
        for path, data in self._unwritten.items():
            append_file(path, data)

    def _record(self, name: str, values: dict[str, Any]) -> None:
        self._append(self.run / name, (json.dumps(values) + "\n").encode())
        self._scalars(values)

    def _scalars(self, values: dict[str, Any]) -> None:
        """The numbers of a record, for TensorBoard."""
        scalars = [
            Summary.Value(tag=key, simple_value=value)
            for key, value in values.items()
            if isinstance(value, (int, float)) and key != "kimg"
        ]
        self._event(round(values["kimg"] * 1000), summary=Summary(value=scalars))

    def _event(self, step: int, **content: Any) -> None:
        """One record of TensorBoard's."""
        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), step=step, **content).SerializeToString())
        self._append(self._events, record.getvalue())

    def _append(self, path: Path, data: bytes) -> None:
        waiting = self._unwritten.pop(path, b"")
        try:
            append_file(path, waiting + data)
        except DiskFull as error:
            self._unwritten[path] = waiting + data
            if not waiting:
                self.say(f"warning: {error.message}; training goes on, and tries again")


def _drop(path: Path, unwanted: Callable[[float], bool]) -> None:
    """Removes the records whose kimg is unwanted, and a last line that was cut off."""
    lines = _lines(path)
    kept = [line for line in lines if line.endswith(b"\n") and not unwanted(_parsed(path, line)["kimg"])]
    if kept != lines:
        write_file(path, b"".join(kept))


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records in a file of lines. Raises UserError where a line is no record of a `kimg`."""
    return [_parsed(path, line) for line in _lines(path)]


def _lines(path: Path) -> list[bytes]:
    try:
        return read_regular(path, MAX_RECORDS_BYTES).splitlines(keepends=True) if path.exists() else []
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); remove it") from None


def _parsed(path: Path, line: bytes) -> dict[str, Any]:
    """One record: a JSON object with a `kimg`. Losses and metrics in it may be NaN. Raises UserError."""
    try:
        values = parse_json(line, nan=True)
    except ValueError:
        values = None
    if not isinstance(values, dict) or not is_number(values.get("kimg")):
        raise UserError(
            f"{path} has the line {one_line(line.decode(errors='replace'), 40)}, which is no record; remove it"
        )
    return values


def _metrics_text(values: dict[str, Any]) -> str:
    """The numbers of a record of metrics.jsonl, for people."""
    return "  ".join(
        f"{name} {value:.4g}" for name, value in values.items() if isinstance(value, float) and name != "kimg"
    )
