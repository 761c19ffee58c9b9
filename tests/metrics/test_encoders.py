"""Encoders of train_encoder.py as detectors: the features, the names, and what a wrong file gets."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from media.dataset import ImageDataset
from metrics import Evaluator, choose, encoders
from metrics.encoders import EncoderFeatures, EncoderWeights, find_encoder, read_encoder
from metrics.features import tensor_source
from metrics.frechet import frechet_distance
from metrics.names import DEFAULT_DETECTOR
from models.encoder import save_encoder
from models.snapshot import PRETRAINED, load_stylizer
from networks.vgg import MEAN, STD, VGG19
from tests.metrics.archives import photographs
from tests.metrics.evaluating import evaluate
from tests.scripts import launch
from torch_utils import distributed
from torch_utils.errors import UserError


def write_encoder(path: Path, seed: int = 0, **info) -> Path:
    """An encoder of an eighth of the width with random weights, which keep the size of what goes through."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = VGG19(width=0.125)
        for parameter in encoder.parameters():
            if parameter.ndim == 4:
                torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            else:
                torch.nn.init.normal_(parameter, std=0.1)
    save_encoder(path, encoder, {"kimg": 0.0, **info})
    return path


@pytest.fixture(scope="session")
def encoder_file(tmp_path_factory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "encoder.safetensors", resolution=32)


def plain_features(path: Path, images: torch.Tensor) -> torch.Tensor:
    """relu4_1 in float64, layer by layer from the file's tensors, and its mean over the positions."""
    weights = read_encoder(str(path)).encoder.state_dict()
    x = images.double() / 255
    x = (x - torch.tensor(MEAN).double().view(3, 1, 1)) / torch.tensor(STD).double().view(3, 1, 1)
    for layer in (0, 2, "pool", 5, 7, "pool", 10, 12, 14, 16, "pool", 19):
        if layer == "pool":
            x = F.max_pool2d(x, 2)
        else:
            weight, bias = (weights[f"features.{layer}.{kind}"].double() for kind in ("weight", "bias"))
            x = F.conv2d(x, weight, bias, padding=1).relu()
    return x.mean(dim=(2, 3))


def random_images(count: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def test_features_are_the_mean_of_relu4_1(encoder_file):
    network = EncoderFeatures(read_encoder(str(encoder_file)))
    images = random_images(5)
    (found,) = network(images)
    assert found.shape == (5, network.dimensions) == (5, 64)
    torch.testing.assert_close(found.double(), plain_features(encoder_file, images), rtol=1e-4, atol=1e-5)
    assert found.std(dim=0).mean() > 0.001


def test_images_are_resized_to_the_resolution_of_the_training(encoder_file, tmp_path):
    network = EncoderFeatures(read_encoder(str(encoder_file)))
    small = random_images(3, size=16)
    assert network(small)[0].shape == (3, 64)
    flat = torch.full((1, 3, 16, 16), 200, dtype=torch.uint8)
    larger = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
    torch.testing.assert_close(network(flat)[0], network(larger)[0], rtol=1e-5, atol=1e-6)
    wide = random_images(3, size=48)[:, :, :32]  # one side alone is right; the squeezed image counts
    squeezed = torch.nn.functional.interpolate(
        wide.float() / 127.5 - 1, [32, 32], mode="bicubic", align_corners=False, antialias=True
    ).clamp(-1, 1)
    torch.testing.assert_close(network(wide)[0], network.encoder(squeezed)[-1].mean(dim=(2, 3)))
    unknown = EncoderFeatures(read_encoder(str(write_encoder(tmp_path / "encoder.safetensors"))))
    assert unknown.resolution == 0
    torch.testing.assert_close(
        unknown(small)[0].double(), plain_features(encoder_file, small), rtol=1e-4, atol=1e-5
    )  # of the size that they have


@pytest.mark.parametrize("border, least", [("zeros", 8), ("reflect", 16)])
@pytest.mark.parametrize("resolution", [0, 64])
def test_images_of_any_size_are_described(border, least, resolution):
    """Sides that leave nothing after three poolings, or nothing to reflect, are enlarged; all others stay."""
    encoder = VGG19(width=0.125, border=border)
    network = EncoderFeatures(EncoderWeights(encoder, resolution, "", enlarge=False))
    for height, width in ((1, 1), (5, 40), (least - 1, least), (least, 33)):
        images = random_images(2, size=40)[:, :, :height, :width]
        sides = [max(height, least), max(width, least)]
        enlarged = F.interpolate(images / 127.5 - 1, sides, mode="bicubic", antialias=True).clamp(-1, 1)
        torch.testing.assert_close(network(images)[0], encoder(enlarged)[-1].mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)


def test_metrics_are_those_of_the_features(small, encoder_file):
    real, fake = random_images(80), random_images(80, seed=1) // 2
    names = [f"fd70@{encoder_file}", f"kd80@{encoder_file}", f"pr803@{encoder_file}", f"dc805@{encoder_file}"]
    evaluator = Evaluator(names, torch.utils.data.TensorDataset(real))
    found = evaluator.evaluate(tensor_source(fake))
    assert found.keys() == {
        *(f"fd70@{encoder_file}", f"kd80@{encoder_file}", f"kd80_std@{encoder_file}"),
        *(f"pr803_precision@{encoder_file}", f"pr803_recall@{encoder_file}"),
        *(f"dc805_density@{encoder_file}", f"dc805_coverage@{encoder_file}"),
    }
    sides = (plain_features(encoder_file, x) for x in (real[choose(80, 70, seed=0)], fake[:70]))
    expected = frechet_distance(*({"mean": x.mean(dim=0), "covariance": x.T.cov()} for x in sides))
    assert found[f"fd70@{encoder_file}"] == pytest.approx(expected, rel=1e-3)
    assert evaluator.settings()["detectors"].keys() == {str(encoder_file)}


def test_no_torch_fidelity_is_needed(small, encoder_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    names = [f"fd20@{encoder_file}", f"kd20@{encoder_file}", f"dc205@{encoder_file}"]
    found = Evaluator(names, torch.utils.data.TensorDataset(random_images(20))).evaluate(
        tensor_source(random_images(20, seed=1))
    )
    assert len(found) == 5


def test_a_warning_where_the_covariance_is_singular(encoder_file):
    dataset = torch.utils.data.TensorDataset(random_images(64))
    (note,) = {note.partition(":")[0] for note in Evaluator([f"fd64@{encoder_file}"], dataset).notes}
    assert note == "warning"
    assert Evaluator([f"kd64@{encoder_file}"], dataset).notes == []


def test_two_encoders_in_one_evaluation(small, encoder_file, tmp_path):
    other = write_encoder(tmp_path / "other.safetensors", seed=1)
    dataset, fakes = torch.utils.data.TensorDataset(random_images(20)), tensor_source(random_images(20, seed=1))
    names = [f"kd20@{encoder_file}", f"kd20@{other}"]
    both = Evaluator(names, dataset).evaluate(fakes)
    assert both[names[0]] != both[names[1]]
    for name in names:
        assert Evaluator([name], dataset).evaluate(fakes)[name] == both[name]


def test_another_file_of_the_same_name_has_another_place_in_the_cache(small, slices, tmp_path):
    path = write_encoder(tmp_path / "encoder.safetensors")
    name = f"kd60_full@{path}"
    first = evaluate([name], *slices, [])
    assert evaluate([name], *slices, []) == first
    assert len(list((small / "statistics").iterdir())) == 1
    write_encoder(path, seed=1)
    assert evaluate([name], *slices, []) != first
    assert len(list((small / "statistics").iterdir())) == 2


def test_random_numbers_stay(encoder_file):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Evaluator([f"fd70@{encoder_file}"], torch.utils.data.TensorDataset(random_images(80)))
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.slow
def test_distances_grow_with_the_damage(small, encoder_file, real_images):
    from tests.metrics.test_swd import blur

    images = photographs(real_images / "cifar10-train.zip", 300)
    real, fake = images[:150], images[150:]
    noise = torch.randn(fake.shape, generator=torch.Generator().manual_seed(0))
    damaged = {
        "blurred": [blur(fake, times) for times in (2, 8)],
        "noisy": [(fake + level * noise).clamp(0, 255).byte() for level in (30, 90)],
        "mixed": [torch.cat([fake[n:], random_images(n)]) for n in (30, 120)],
    }
    names = [f"fd150@{encoder_file}", f"kd150@{encoder_file}"]
    evaluator = Evaluator(names, torch.utils.data.TensorDataset(real))
    undamaged = evaluator.evaluate(tensor_source(fake))
    for damage, sets in damaged.items():
        found = [undamaged, *(evaluator.evaluate(tensor_source(images)) for images in sets)]
        for name in names:
            values = [values[name] for values in found]
            assert all(b > a for a, b in itertools.pairwise(values)), (damage, name, values)


def write_values(names: list[str], real: Path, fake: Path, result: Path) -> None:
    result.with_suffix(f".{distributed.rank()}").write_text(json.dumps(evaluate(names, real, fake, [])))


@pytest.mark.slow
def test_two_processes_compute_the_same(small, slices, encoder_file, tmp_path):
    names = [f"fd60_full@{encoder_file}", f"dc605_full@{encoder_file}"]
    one = evaluate(names, *slices, [])
    (small / "statistics").rename(tmp_path / "statistics")
    launch(write_values, names, *slices, tmp_path / "result", processes=2)
    assert json.loads((tmp_path / "result.0").read_text()) == pytest.approx(one, rel=1e-6)


# --- names and files ------------------------------------------------------------------------------------------------


def test_the_encoder_of_the_shipped_stylizer():
    """Of small images as they are; of larger ones, each side that is longer than a style's is reduced to that."""
    path = PRETRAINED / "stylizer-small.safetensors"
    stylizer, _ = load_stylizer(path)
    network, side = EncoderFeatures(read_encoder(str(path))), stylizer.config.style_size
    for height, width in ((32, 32), (40, 24), (side, side)):
        images = random_images(2, size=side)[:, :, :height, :width]
        features = stylizer.encode(images / 127.5 - 1).mean(dim=(2, 3))
        assert features.shape == (2, network.dimensions) and features.std(dim=0).mean() > 0
        torch.testing.assert_close(network(images)[0], features, rtol=1e-4, atol=1e-4)
    flat = torch.full((1, 3, 2 * side, 32), 90, dtype=torch.uint8)
    torch.testing.assert_close(network(flat)[0], network(flat[:, :, :side])[0], rtol=1e-4, atol=1e-4)


def test_a_missing_shipped_encoder_is_one_line(monkeypatch, tmp_path, encoder_file):
    file = tmp_path / "shipped.safetensors"
    monkeypatch.setattr(encoders, "SHIPPED", {DEFAULT_DETECTOR: file})
    with pytest.raises(UserError, match=r"the encoder tiny-imagenet is not in this copy .* name the file of"):
        find_encoder(DEFAULT_DETECTOR)
    file.write_bytes(encoder_file.read_bytes())
    assert find_encoder(DEFAULT_DETECTOR) == file


def test_other_files_are_refused(faces16, tmp_path, encoder_file):
    dataset = ImageDataset(faces16)
    (tmp_path / "encoder.txt").touch()
    write_encoder(tmp_path / "huge.safetensors", resolution=10**6)
    for file, message in {
        "nowhere/encoder.safetensors": r"there is no .*name a file of train_encoder\.py",
        tmp_path / "encoder.txt": "cannot be read as an encoder",
        Path(__file__).parents[2]
        / "pretrained/faces32.safetensors": "holds a generator, .*name the file of an encoder",
        tmp_path / "huge.safetensors": "its resolution is '1000000'",
    }.items():
        for optional in (False, True):  # a wrong name is a mistake also where a detector is optional
            with pytest.raises(UserError, match=message) as error:
                Evaluator([f"fd70@{file}"], dataset, optional=optional)
            assert "\n" not in error.value.message and error.value.message.startswith("fd70@")
