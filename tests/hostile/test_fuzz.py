"""Two thousand damaged files: each is read or gets its line; nothing hangs, nothing grows, nothing else is touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from media.shard_writer import write_shards
from media.shards import ShardFiles
from media.video_writer import VideoWriter
from networks.vgg import VGG19
from tests.hostile.attacks import untouched
from tests.media.test_shards import write_parquet
from tests.models.stylegan2_pytorch import checkpoint
from tests.scripts import ROOT
from training.runs import list_states

SEED = int(os.environ.get("ADACONV_FUZZ_SEED", "0"))
COUNT = int(os.environ.get("ADACONV_FUZZ_COUNT", "2000"))


@pytest.fixture
def folder(place, tmp_path) -> Path:
    """One good file of each kind, by the names that fuzz.py knows."""
    folder = tmp_path / "work" / "files"
    folder.mkdir(parents=True)
    for name in ("model", "stylizer", "style", "encoder"):
        shutil.copy(getattr(place, name), folder / f"{name}.safetensors")
    shutil.copy(place.codes, folder / "codes.npz")
    shutil.copy(place.directions, folder / "directions.npz")
    shutil.copy(place.data, folder / "data.zip")
    shutil.copy(list_states(place.run)[-1], folder / "state.pt")
    for name in ("options.json", "config.json", "stats.jsonl"):
        shutil.copy(place.run / name, folder / name)
    with zipfile.ZipFile(place.data) as archive:
        files = [archive.read(name) for name in archive.namelist() if name.endswith(".png")]
    (folder / "counted").mkdir()
    write_shards(folder / "counted", [(data, "png", i % 3) for i, data in enumerate(files)], 10**9)
    (folder / "counted" / "00000.tar").rename(folder / "counted" / "counted.tar")
    shutil.copy(folder / "counted" / "counted.tar", folder / "images.tar")
    ShardFiles(str(folder / "counted" / "counted.tar"))  # writes what it counts beside it
    write_parquet(folder / "images.parquet", {"image": files, "label": [i % 3 for i in range(len(files))]})
    labels = {"labels": [[f"{i}.png", i % 3] for i in range(20)], "class_names": ["a", "b", "c"]}
    (folder / "dataset.json").write_text(json.dumps(labels))
    torch.save(VGG19(1 / 16).state_dict(), folder / "encoder.pth")
    torch.save(checkpoint(), folder / "checkpoint.pt")
    torch.save(checkpoint(), folder / "old-checkpoint.pt", _use_new_zipfile_serialization=False)
    image = Image.open(place.image).convert("RGB")
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "tiff", "ppm"):
        image.save(folder / f"image.{suffix}")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    for suffix in ("mp4", "mkv"):
        with VideoWriter(folder / f"video.{suffix}", 10) as writer:
            for shift in range(6):
                writer.write(pixels.roll(shift * 4, 2))
    shutil.copy(folder / "video.mp4", folder / "video.avi")  # by its content, an MP4
    image.save(folder / "video.gif", save_all=True, append_images=[image.rotate(90 * i) for i in (1, 2)], duration=50)
    return folder


@pytest.mark.slow  # about a minute: as many files as are asked for, in the limit of time that they need
def test_damaged_files(folder, place, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ADACONV_OPS": "reference"}
    names = sorted(path.name for path in folder.iterdir())
    command = [sys.executable, ROOT / "tests" / "hostile" / "fuzz.py", folder, "900", str(COUNT), str(SEED)]
    (tmp_path / "around").mkdir()
    (tmp_path / "around" / "precious").write_text("precious")
    with untouched(tmp_path / "around", place.folder, folder):
        run = subprocess.run(command, env=env, cwd=tmp_path / "work", capture_output=True, text=True, timeout=1000)
    assert run.returncode == 0, run.stderr[-3000:]
    result = json.loads(run.stdout.splitlines()[-1])
    wrong = {
        f"{name}: {what}": number
        for name, outcomes in result["found"].items()
        for what, number in outcomes.items()
        if what not in ("read", "refused")
    }
    assert not wrong, "\n".join(wrong)
    assert result["done"] == COUNT and result["peak_mib"] < 4096
    assert all(outcomes.get("refused") for outcomes in result["found"].values()) or COUNT < 2000
    assert sorted(path.name for path in folder.iterdir()) == names and list((tmp_path / "work").iterdir()) == [folder]
