"""A training over a bad image: one line at once, from whichever process met it, in every launcher."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.scripts import ROOT, done, script


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """300 JPEGs. The header of 7.jpg is whole, but the file is cut off, so that only decoding finds it out."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(300):
        buffer = io.BytesIO()
        noise = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(buffer, "JPEG", quality=90)
        data = buffer.getvalue()
        (folder / f"{i}.jpg").write_bytes(data[: len(data) * 2 // 3] if i == 7 else data)
    return folder


LAUNCHERS = {
    "one process": ["train.py", "--procs", 1],
    "two processes": ["train.py", "--procs", 2],
    "torchrun": ["-m torch.distributed.run", "--nproc-per-node", 2, ROOT / "train.py", "--gpus", 0],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_bad_image_ends_a_training_with_one_line(images, tmp_path, launcher):
    options = ["--cfg", "demo", "--data", images, "--kimg", "0.5", "--metrics", "none", "--outdir", tmp_path]
    ended = script(*LAUNCHERS[launcher], *options)
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and lines[0].startswith(f"error: {images}: 7.jpg is a broken image"), ended.stderr
    if launcher != "torchrun":  # which has messages and an exit code of its own
        assert ended.returncode == 2 and "Traceback" not in ended.stderr


TINY = ["--cfg", "demo", "--cbase", "256", "--cmax", "8", "--map-depth", "1", "--metrics", "none"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["one process", "two processes"])
def test_a_bad_image_is_left_out_counted_and_named(images, tmp_path, launcher):
    options = [*TINY, "--workers", 1, "--batch", 300, "--kimg", 0.3]  # one step, with every image
    result = done(script(*LAUNCHERS[launcher], *options, "--data", images, "--skip-unreadable", "--outdir", tmp_path))
    assert result.stderr.count("skipped, as they cannot be decoded: 7.jpg\n") == 1
    (run,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert json.loads((run / "config.json").read_text())["about"]["unreadable"] == ["7.jpg"]
    assert json.loads((run / "stats.jsonl").read_text().splitlines()[-1])["unreadable"] == 1
