"""What a person reads while a model is trained."""

from __future__ import annotations

import json

import pytest
import torch

from training.log import Log


class Clock:
    """A clock that a test sets, in place of the time."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("training.log.time", clock)
    return clock


def test_the_progress_line_has_speed_and_the_last_metrics(tmp_path, capsys, clock):
    log = Log(tmp_path, 0, 24)
    means = {"loss/D": 1.25, "ada/p": 0.125, "gpu_gib": 3.5, "skipped": 2.0, "logits/G": 7.0}
    clock.now += 50
    log.tick(4, 100, means)
    log.restart_tick(100)
    log.metrics({"kimg": 4.0, "swd2k": 35.23456, "fid": 7.5, "images": {"swd2k": 2000}})
    clock.now += 25
    log.tick(8, 200, {"loss/D": 1.5, "ada/p": 0.0, "skipped": 0.0})
    log.close()
    resumed = Log(tmp_path, 8, 24)
    clock.now += 1
    resumed.tick(12, 300, {})
    resumed.close()
    first, metrics, second, third = capsys.readouterr().err.splitlines()
    assert first.startswith("kimg 4/24  2.0 it/s  12.5 s/kimg  left 0:04:10")
    assert first.endswith("D 1.250  p 0.125  3.5 GiB  2 steps skipped")
    assert metrics == "swd2k 35.23  fid 7.5"
    assert second.startswith("kimg 8/24  4.0 it/s  6.2 s/kimg  left 0:02:30")
    assert second.endswith("D 1.500  p 0.000  (swd2k 35.23  fid 7.5 at kimg 4)")
    assert " p " not in third  # without augmentation
    assert third.endswith("(swd2k 35.23  fid 7.5 at kimg 4)")
    assert [json.loads(line)["kimg"] for line in (tmp_path / "stats.jsonl").read_text().splitlines()] == [4, 8, 12]


def test_a_process_that_does_not_write_leaves_nothing(tmp_path, capsys):
    log = Log(tmp_path, 0, 24, writes=False)
    log.tick(4, 100, {"loss/D": 1.25})
    log.metrics({"kimg": 4.0, "swd2k": 35.0})
    log.say("a line")
    log.sheet("fakes", torch.zeros(3, 8, 8, dtype=torch.uint8), 4)
    log.step(8, 200)
    log.close()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr() == ("", "")
