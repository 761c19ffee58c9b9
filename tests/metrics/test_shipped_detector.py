"""`@tiny-imagenet`, the detector that comes with the project: its file, its card, its features and what they see."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from media.faces import faces
from metrics import Evaluator
from metrics.encoders import SHIPPED, EncoderFeatures, read_encoder
from metrics.features import tensor_source
from metrics.frechet import frechet_distance
from metrics.names import DEFAULT_DETECTOR, LISTED, parse_metric
from models.encoder import load_encoder
from models.encoder import read_encoder as read_encoder_file
from models.snapshot import PRETRAINED
from tests.metrics.test_encoders import plain_features

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from compare_damages import damages, read

FILE = PRETRAINED / "tiny-imagenet.safetensors"
METRICS = ("fd{}@tiny-imagenet", "kd{}@tiny-imagenet")


def drawn(count: int, seed: int) -> Tensor:
    """Drawn faces, uint8 [count, 3, 32, 32]."""
    return torch.from_numpy(np.stack([np.asarray(image) for image, _ in faces(count, 32, seed)])).permute(0, 3, 1, 2)


def test_the_file_is_small_and_its_card_is_true():
    """Accuracy, classes, resolution and training length of the card are those of the file's info."""
    assert FILE.stat().st_size < 12e6
    encoder, info = read_encoder_file(FILE)
    card = (PRETRAINED / "README.md").read_text().split("\n# tiny-imagenet\n")[1].split("\n# ")[0]
    said = " ".join(card.split())
    assert f"{info['accuracy']:.1f} % of the 4,000 validation images of {info['classes']} classes" in said
    assert f"--kimg {info['kimg']:.0f} " in said and re.search(rf"\b{info['resolution']}²", said)
    assert f"{sum(weights.numel() for weights in encoder.parameters()) / 1e6:.2f} million" in said
    assert "never called FID" in said and "no licence" in said.lower()


def test_the_encoder_is_one_for_train_stylizer_too():
    assert load_encoder(FILE).width == 0.5


def test_it_is_the_detector_that_is_recommended():
    assert next(iter(SHIPPED)) == DEFAULT_DETECTOR and SHIPPED[DEFAULT_DETECTOR] == FILE
    assert {parse_metric(name).detector for name in LISTED if name.startswith(("fd5k", "kd5k"))} == {DEFAULT_DETECTOR}


def test_features_are_the_mean_of_relu4_1_at_the_size_of_the_training():
    network = EncoderFeatures(read_encoder(DEFAULT_DETECTOR))
    assert network.resolution == 64 and network.enlarge and network.dimensions == 256
    images = drawn(4, seed=0).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    (found,) = network(images)
    torch.testing.assert_close(found.double(), plain_features(FILE, images), rtol=1e-4, atol=1e-5)
    assert found.isfinite().all() and (found.std(dim=0) > 0).sum() > 100


def test_the_name_gives_the_bits_of_the_file():
    real, fake = drawn(12, seed=0), drawn(12, seed=1)
    names = ["fd12@{}", "kd12@{}", "pr123@{}", "dc125@{}"]
    found = []
    for detector in (DEFAULT_DETECTOR, str(FILE)):
        evaluator = Evaluator([name.format(detector) for name in names], torch.utils.data.TensorDataset(real))
        found.append(evaluator.evaluate(tensor_source(fake)))
        assert [*evaluator.settings()["detectors"]] == [detector]
    assert len(found[0]) == 7 and [*found[0].values()] == [*found[1].values()]


def worse_at_each_level(found: list[dict[str, float]]) -> bool:
    return all(b[name] > a[name] for a, b in itertools.pairwise(found) for name in a if "_std" not in name)


def test_distances_grow_with_the_damage_of_drawn_faces():
    images, others = drawn(144, seed=0).split(72), drawn(72, seed=1).flip(2)
    names = [name.format(72) for name in METRICS]
    evaluator = Evaluator(names, torch.utils.data.TensorDataset(images[0]))
    damage = damages(images[1], None, others, images[0])
    levels = {"blur, σ in pixels": (1, 2), "noise, σ of 255": (8, 32), "JPEG, quality": (60, 10)}
    levels |= {"images of another kind": (0.2, 0.5), "modes left": (0.2, 0.05)}
    undamaged = evaluator.evaluate(tensor_source(images[1]))
    for name, steps in levels.items():
        found = [undamaged, *(evaluator.evaluate(tensor_source(damage[name](level))) for level in steps)]
        assert worse_at_each_level(found), (name, found)


# --- real photographs -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(real_images) -> Tensor:
    """240 photographs of faces, uint8 [240, 3, 64, 64]."""
    return read(str(real_images / "faces64-photos.zip"), 240, seed=0)[0]


def test_features_of_photographs_are_finite_and_their_halves_alike(photographs):
    """The distance of two halves is a small part of that to blurred ones and to photographs of other things."""
    network = EncoderFeatures(read_encoder(DEFAULT_DETECTOR))
    halves = [network(half)[0].double() for half in photographs.split(120)]
    means = torch.stack([half.mean(dim=0) for half in halves])
    assert means.isfinite().all() and (torch.cat(halves).std(dim=0) > 0).all()
    blurred = damages(photographs[120:], None, photographs, photographs)["blur, σ in pixels"](2)
    moments = [{"mean": x.mean(dim=0), "covariance": x.T.cov()} for x in (*halves, network(blurred)[0].double())]
    assert frechet_distance(moments[0], moments[1]) < 0.2 * frechet_distance(moments[0], moments[2])


def test_distances_grow_with_the_damage_of_photographs(photographs, real_images):
    real, fake = photographs.split(120)
    others, _ = read(str(real_images / "tiny-imagenet-val.zip"), 120, seed=0)
    evaluator = Evaluator([name.format(120) for name in METRICS], torch.utils.data.TensorDataset(real))
    damage = damages(fake, None, others, real)
    undamaged = evaluator.evaluate(tensor_source(fake))
    for name, steps in {"blur, σ in pixels": (1, 2), "images of another kind": (0.2, 0.5)}.items():
        found = [undamaged, *(evaluator.evaluate(tensor_source(damage[name](level))) for level in steps)]
        assert worse_at_each_level(found), (name, found)
