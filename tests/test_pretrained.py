"""The models that come with the project do what their README says."""

import json

import numpy as np
import pytest
import torch

from media.convert import write_dataset
from media.dataset import ImageDataset
from media.faces import HAIR_COLORS, faces
from media.files import list_images, read_image
from media.images import to_float
from metrics import swd
from metrics.__main__ import main as judge
from metrics.encoders import EncoderFeatures, read_encoder
from metrics.frechet import frechet_distance
from models.sampling import generate_batches
from models.snapshot import PRETRAINED, find_snapshot, load_generator, load_stylizer
from networks.stylizer import channel_statistics, resize_square
from training.stylizer import content_loss, style_loss

FACES = PRETRAINED / "faces32.safetensors"
PHOTOGRAPHS = PRETRAINED / "faces64.safetensors"
STYLIZER = PRETRAINED / "stylizer-small.safetensors"


@pytest.fixture(scope="module")
def reals() -> tuple[torch.Tensor, torch.Tensor]:
    """1000 faces that the generator was not trained with, float [N, 3, H, W] of 0 to 255, and their classes."""
    drawn = list(faces(1000, 32, seed=3000))
    images = np.stack([np.asarray(image) for image, _ in drawn])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float(), torch.tensor([label for _, label in drawn])


@pytest.fixture(scope="module")
def fakes() -> tuple[torch.Tensor, torch.Tensor]:
    """40 of the shipped generator of each class, likewise."""
    G, _ = load_generator(FACES)
    classes = torch.arange(len(HAIR_COLORS)).repeat_interleave(40)
    return torch.cat(list(generate_batches(G, range(len(classes)), 64, classes))).float(), classes


def test_the_generators_are_small_and_one_is_found_where_there_are_no_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_snapshot(None) == PHOTOGRAPHS and PHOTOGRAPHS.stat().st_size < 12e6 and FACES.stat().st_size < 2e6


@torch.no_grad()
def test_the_generator_of_photographs_makes_images_like_them(real_images):
    """FD of 400 fakes to 400 photographs, in the encoder's features: twice that of other photographs when shipped."""
    G, _ = load_generator(PHOTOGRAPHS)
    photographs = ImageDataset(real_images / "faces64-photos.zip")
    some, others = ([photographs[i][0] for i in range(start, 8000, 20)] for start in (0, 10))
    fakes = torch.cat(list(generate_batches(G, range(400), 64)))
    features = EncoderFeatures(read_encoder("tiny-imagenet"))

    def gaussian(images: torch.Tensor) -> dict[str, torch.Tensor]:
        values = torch.cat([features(part)[0] for part in images.split(100)]).double()
        return {"mean": values.mean(dim=0), "covariance": values.T.cov()}

    real, other, fake = (gaussian(torch.as_tensor(np.stack(images))) for images in (some, others, fakes))
    found = frechet_distance(fake, real), frechet_distance(other, real)
    assert found[0] < 3 * found[1], found


def test_every_class_has_the_hair_of_its_faces(reals, fakes):
    """Where the hair is, the mean colour of a class is that of the real ones, and no other's."""
    colours = [
        torch.stack([x[c == label, :, 6:11, 10:22].mean(dim=(0, 2, 3)) for label in range(len(HAIR_COLORS))])
        for x, c in (reals, fakes)
    ]
    apart = torch.cdist(colours[1], colours[0])
    others = apart + 1000 * torch.eye(len(apart))
    assert apart.diagonal().max() < 12 and others.min() > 40, apart


def test_no_two_faces_are_the_same(reals, fakes):
    """The nearest of 240 fakes to each is about as far as that of 240 real ones."""
    nearest = []
    for x in (reals[0][:240], fakes[0]):
        distances = torch.cdist(x.flatten(1), x.flatten(1)).fill_diagonal_(torch.inf)
        nearest.append(distances.min(dim=1).values)
    real, fake = nearest
    assert fake.min() > 0.75 * real.min() and fake.median() > 0.8 * real.median()


def test_the_generator_is_near_to_faces_it_has_not_seen(tmp_path, monkeypatch, capsys):
    """SWD of 1000 fakes to held-out faces, beside that of 1000 real ones to the same: 1.2 times when it was shipped."""
    monkeypatch.setattr(swd, "DIRECTIONS", 64)
    write_dataset(tmp_path / "reals.zip", faces(1000, 32, seed=3000))
    write_dataset(tmp_path / "others.zip", faces(1000, 32, seed=4000))
    found = []
    for judged in (["--network", FACES], ["--fakes", tmp_path / "others.zip"]):
        command = ["--metrics", "swd1k", "--data", tmp_path / "reals.zip", "--workers", 0, "--json", *judged]
        judge([*map(str, command)], standalone_mode=False)
        found.append(json.loads(capsys.readouterr().out)["swd1k"])
    assert found[0] < 1.6 * found[1], found


def images(folder, count):
    return torch.cat([resize_square(to_float(read_image(file)[None]), 256) for file in list_images(folder)[:count]])


def test_the_stylizer_is_small():
    model, info = load_stylizer(STYLIZER)
    assert STYLIZER.stat().st_size <= 16e6
    assert model.config.modulation == "adaconv" and model.config.width == 0.5 and info["kimg"] > 0


@torch.no_grad()
def test_the_stylizer_keeps_contents_and_moves_styles(real_images):
    """Three photos in four styles: each is told by its content, and most are nearest to their style."""
    model, _ = load_stylizer(STYLIZER)
    contents, styles = images(real_images / "photos", 3), images(real_images / "paintings", 4)
    kernels = [model.kernels(style) for style in styles.split(1)]
    nearest = 0
    content_features, style_taps = model.encode(contents), [model.encoder(style) for style in styles.split(1)]
    for i, content in enumerate(contents.split(1)):
        for j in range(len(styles)):
            taps = model.encoder(model(content, kernels[j]).clamp(-1, 1))
            kept = [float(content_loss(taps[-1], features, normalize=True)) for features in content_features.split(1)]
            assert kept[i] == min(kept) and kept[i] < 0.75 * sorted(kept)[1], (i, j, kept)
            moved = [float(style_loss(taps, [channel_statistics(tap) for tap in style])) for style in style_taps]
            before = float(style_loss(model.encoder(content), [channel_statistics(tap) for tap in style_taps[j]]))
            assert moved[j] < 0.8 * before, (i, j, moved, before)
            nearest += moved[j] == min(moved)
    assert nearest >= 8  # of 12; by chance it would be three


def test_the_readme_names_every_model():
    text = (PRETRAINED / "README.md").read_text()
    models = {file.name for file in PRETRAINED.glob("*.safetensors")}
    assert models and all(name in text for name in models)
    for name in models:
        assert f"{(PRETRAINED / name).stat().st_size / 1e6:.1f} MB" in text, name
