"""Files as this project writes them, from which the attacks are made."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from media.convert import write_dataset
from media.faces import faces
from media.images import save_png
from models.encoder import save_encoder
from models.snapshot import save_snapshot, save_stylizer
from networks.generator import Generator, GeneratorConfig
from networks.vgg import VGG19
from styling.styles import save_style
from tests.conftest import tiny_stylizer
from tests.scripts import TINY, done, script_here

SMALL = {"cbase": 128, "cmax": 8, "map_depth": 1, "z_dim": 8, "w_dim": 8, "style_channels": 4}


@dataclass(frozen=True)
class Place:
    """A folder with one good file of each kind."""

    folder: Path
    data: Path  # a ZIP of drawn faces with labels
    image: Path
    model: Path  # a generator
    stylizer: Path
    style: Path  # a saved style of that stylizer
    encoder: Path
    codes: Path  # of projector.py
    directions: Path
    run: Path  # a run of train.py with one training state


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Place:
    folder = tmp_path_factory.mktemp("good")
    data = folder / "faces16.zip"
    write_dataset(data, faces(40, 16, seed=0))
    torch.manual_seed(0)
    G = Generator(GeneratorConfig(16, **SMALL)).eval().requires_grad_(False)
    save_snapshot(folder / "model.safetensors", G, {"kimg": 1.0})
    stylizer = tiny_stylizer()
    save_stylizer(folder / "stylizer.safetensors", stylizer, {"kimg": 1.0})
    image = (torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    save_png(image, folder / "image.png")
    save_style(folder / "style.safetensors", stylizer, stylizer.kernels(image[None] / 127.5 - 1))
    save_encoder(folder / "encoder.safetensors", VGG19(1 / 16), {"kimg": 1.0, "resolution": 16})
    model = folder / "model.safetensors"
    done(script_here("generate.py", "directions", "--network", model, "--seeds", 0, "--outdir", folder / "directions"))
    search = ("--network", model, "--target", folder / "image.png", "--steps", 1, "--candidates", 8)
    done(script_here("projector.py", *search, "--outdir", folder / "projected"))
    outdir = folder / "runs"
    done(script_here("train.py", "--data", data, "--outdir", outdir, *TINY, "--kimg", 0.016, "--tick", 0.008))
    (run,) = outdir.iterdir()
    (codes,), directions = (folder / "projected").glob("*.npz"), folder / "directions" / "directions-pca.npz"
    names = ("stylizer", "style", "encoder")
    files = [folder / f"{name}.safetensors" for name in names]
    return Place(folder, data, folder / "image.png", model, *files, codes, directions, run)


@pytest.fixture
def run(place, tmp_path) -> Path:
    """A copy of the run, in a folder of runs of its own."""
    return Path(shutil.copytree(place.run, tmp_path / "runs" / place.run.name))
