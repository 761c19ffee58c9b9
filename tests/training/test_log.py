"""What a person reads while a model is trained."""

from __future__ import annotations

import json

from training.log import Log


def test_the_progress_line_has_the_last_metrics(tmp_path, capsys):
    log = Log(tmp_path, 0, 24)
    means = {"loss/D": 1.25, "ada/p": 0.125, "gpu_gib": 3.5, "skipped": 2.0, "logits/G": 7.0}
    log.tick(4, 100, 2.0, means)
    log.metrics({"kimg": 4.0, "swd2k": 35.23456, "fid": 7.5, "pictures": {"swd2k": 2000}})
    log.tick(8, 200, 2.0, {"loss/D": 1.5, "ada/p": 0.0, "skipped": 0.0})
    log.close()
    resumed = Log(tmp_path, 8, 24)
    resumed.tick(12, 300, 2.0, {})
    resumed.close()
    first, metrics, second, third = capsys.readouterr().err.splitlines()
    assert first.startswith("kimg 4/24  2.0 it/s") and first.endswith("D 1.250  p 0.125  3.5 GiB  2 steps skipped")
    assert metrics == "swd2k 35.23  fid 7.5"
    assert second.endswith("D 1.500  (swd2k 35.23  fid 7.5 at kimg 4)")
    assert third.endswith("(swd2k 35.23  fid 7.5 at kimg 4)")
    assert [json.loads(line)["kimg"] for line in (tmp_path / "stats.jsonl").read_text().splitlines()] == [4, 8, 12]
