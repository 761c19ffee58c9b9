"""Labels that are numbers, from dataset.json through training to images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import adaconv
from media.check import check_dataset
from media.convert import Conversion, convert, write_dataset
from media.dataset import ImageDataset
from models.sampling import class_centers, labels_in_turn
from models.snapshot import load_generator
from networks.generator import MappingNetwork
from networks.label_vectors import EXAMPLES, LabelVectors
from tests.media.test_dataset import fails, make_folder, numbered
from tests.scripts import done, mistake, script_here
from tests.test_generate import pixels, run
from tests.training.test_loop import TINY
from torch_utils.errors import UserError
from training.gan import GANTrainer
from training.loop import train
from training.options import configure_gan as configure

NAMES = [f"{i // 2:05d}/img{i:08d}.png" for i in range(3)]


def labelled(*labels: object) -> dict[str, bytes]:
    entries = [list(entry) for entry in zip(NAMES, labels, strict=True)]
    return numbered(3) | {"dataset.json": json.dumps({"labels": entries}).encode()}


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    """300 plain images; the label is their brightness and the position of a bar, of which only 20 pairs occur."""
    rng = np.random.default_rng(0)
    pairs = np.stack([rng.uniform(1000, 1200, 20), rng.uniform(-1, 1, 20)], axis=1).round(3)

    def images():
        for number in range(300):
            brightness, position = pairs[number % 20]
            image = Image.new("RGB", (16, 16), (round(brightness) - 990,) * 3)
            image.paste((255, 0, 0), (round(7 + 6 * position), 0, round(9 + 6 * position), 16))
            yield image, (float(brightness), float(position))

    path = tmp_path_factory.mktemp("data") / "shades.zip"
    write_dataset(path, images())
    return path, pairs.astype(np.float32)


@pytest.fixture(scope="module")
def trained(shades, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "00000-shades"
    folder.mkdir()
    config = configure({**TINY, "data": str(shades[0]), "cond": True, "kimg": 0.064, "batch": 8, "gpus": 0})
    train(GANTrainer, config, folder)
    return folder


def test_read(tmp_path):
    """One number counts as a vector of one, if a label is no whole number; what is read is converted as it is."""
    for labels, expected in (
        (([0.5, 2], [1, -3e4], [0, 0]), [[0.5, 2], [1, -3e4], [0, 0]]),
        ((0.5, 2, 1e-3), [[0.5], [2], [1e-3]]),
        (([3], [4], [5]), [[3], [4], [5]]),
    ):
        path = make_folder(tmp_path / str(len(list(tmp_path.iterdir()))), labelled(*labels))
        data = ImageDataset(path, use_labels=True, mirror=True)
        expected = torch.tensor(expected, dtype=torch.float32)
        assert data.vector_labels and data.c_dim == expected.shape[1] and data.labels.dtype == torch.float32
        assert torch.equal(data.labels, torch.cat([expected, expected])) and torch.equal(data[4][1], expected[1])
        out = path.with_suffix(".zip")
        convert(path, out, Conversion(16))
        assert torch.equal(ImageDataset(out, use_labels=True).labels, expected)
        out.unlink()
        found = check_dataset(path)
        assert found.problems == [] and found.classes is None
        assert torch.equal(torch.tensor(found.ranges), torch.stack([*expected.aminmax(dim=0)]).T)
    assert not ImageDataset(make_folder(tmp_path / "classes", labelled(2, 0, 1)), use_labels=True).vector_labels


@pytest.mark.parametrize("odd", ["a", None, [], [1, "a"], [1, [2]], [True, 1], [1e31, 1], [1] * 1025])
def test_what_is_no_label(tmp_path, odd):
    fails(make_folder(tmp_path / "a", labelled([0.5, 1], odd, [1, 2])), "labels of numbers", use_labels=True)


def test_labels_that_do_not_go_together(tmp_path):
    fails(make_folder(tmp_path / "a", labelled([1, 2], [1], [1, 2])), "of 1 and of 2 numbers", use_labels=True)
    named = json.loads(labelled([1, 2], [1, 2], [1, 2])["dataset.json"]) | {"class_names": ["cat"]}
    path = make_folder(tmp_path / "b", numbered(3) | {"dataset.json": json.dumps(named).encode()})
    fails(path, "names classes, but its labels are numbers", use_labels=True)
    with pytest.raises(UserError, match="shards hold classes"):
        convert(tmp_path / "a2", tmp_path / "s", Conversion(16), shard_bytes=10**6) if make_folder(
            tmp_path / "a2", labelled([1, 2], [1, 2], [1, 2])
        ) else None
    message = mistake("train_encoder.py", "--data", tmp_path / "a2", "--outdir", tmp_path / "runs", "--gpus", 0)
    assert "an encoder learns from classes" in message


def test_statistics_of_labels():
    labels = torch.tensor([[10.0, 5, -1], [20, 5, 1], [60, 5, 3]])
    vectors = LabelVectors(3)
    vectors.fit(labels)
    standardized = vectors(labels)
    assert torch.allclose(standardized.mean(dim=0), torch.zeros(3), atol=1e-6)
    assert torch.allclose(standardized.square().mean(dim=0), torch.tensor([1.0, 0, 1]), atol=1e-5)
    assert vectors.low.tolist() == [10, 5, -1] and vectors.high.tolist() == [60, 5, 3]
    assert {tuple(row) for row in vectors.examples.tolist()} == {tuple(row) for row in labels.tolist()}
    assert torch.equal(vectors.in_turn([0, EXAMPLES, 2 * EXAMPLES + 1]), vectors.examples[[0, 0, 1]])


def test_the_size_of_a_single_number_reaches_w():
    """Not only its sign: the embedding is normalized, so that without its biases 1 and 2 would be the same."""
    torch.manual_seed(0)
    mapping = MappingNetwork(4, 1, 16, 2, vector_labels=True)
    w = mapping(torch.ones(3, 4), torch.tensor([[1.0], [2.0], [-1.0]]))
    assert torch.pdist(w).min() > 0.02 * w.norm(dim=1).mean()
    plain = MappingNetwork(4, 3, 16, 2)
    assert plain.labels is None and not plain.embed.bias.any()  # classes are as they were


def test_training_draws_labels_that_occur(shades, trained):
    """Also where images are generated without --label; never a combination of numbers that no image has."""
    path, pairs = shades
    occurring = {tuple(pair) for pair in pairs.tolist()}
    config = configure({**TINY, "data": str(path), "cond": True, "batch": 8, "gpus": 0})
    trainer = GANTrainer(config, torch.device("cpu"))
    assert {tuple(c) for c in trainer.random_classes(200).tolist()} == occurring
    for network in (trainer.G, trainer.D, trainer.G_ema):
        assert torch.allclose(network.mapping.labels.mean, torch.tensor(pairs).mean(dim=0), rtol=1e-3)
    G, _ = load_generator(trained / "snapshot-000000.064.safetensors")
    assert {tuple(c) for c in labels_in_turn(G, range(EXAMPLES)).tolist()} <= occurring
    assert G.mapping.labels.low.tolist() == pairs.min(axis=0).tolist()
    assert "class_w_avg" not in G.state_dict()


def test_images_of_labels(shades, trained, tmp_path):
    """The library, images, walks and the projector take labels; what varies is in the names."""
    first, second = ([round(float(x), 3) for x in pair] for pair in shades[1][:2])
    base = ["--network", trained, "--outdir", tmp_path]
    texts = [",".join(map(str, label)) for label in (first, second)]
    run("--seeds", "5,5", "--label", texts[0], "--label", texts[1], *base)
    files = sorted(tmp_path.glob("seed0005-label*.png"))
    assert len(files) == 2
    G = adaconv.Generator.from_pretrained(trained)
    z = G.latents([5, 5])
    made = adaconv.to_uint8(G(z, [first, second]))
    for label, image in zip((first, second), made, strict=True):
        name = f"seed0005-label{'_'.join(f'{x:.6g}' for x in label)}.png"
        assert np.abs(pixels(tmp_path / name) - image.permute(1, 2, 0).int().numpy()).max() <= 1
    assert torch.equal(G(z, first)[:1], G(z, [first, second])[:1]) and len(G.label_ranges) == 2
    for c in (None, 1, "cat", [1.0], [[1.0, 2.0]] * 3):
        with pytest.raises(ValueError, match="a label of 2 numbers"):
            G(z, c)
    assert f"of labels of 2 numbers ({G.label_ranges[0][0]:.6g} to" in G.card()
    centers = class_centers(G, torch.tensor([first, second, first]))
    assert torch.equal(centers[0], centers[2]) and not torch.equal(centers[0], centers[1])
    (line,) = run("video", "--seeds", 5, "--label", texts[0], "--label", texts[1], "--space", "z", "--seconds", 1,
                  "--fps", 4, "--out", tmp_path / "walk.gif", *base[:2])  # fmt: skip
    assert line.endswith("4 frames, 1 second")
    noted = done(script_here("generate.py", "--seeds", 1, "--label", "5,0", *base)).stderr
    assert "note: --label 5,0 is beyond what training has seen: " in noted
    for words, *arguments in (
        ("--label 1: the model takes 2 numbers, such as", "--label", "1"),
        ("are 2 numbers; write --label", "--class", "1"),
        ("are classes; write --class", "--label", "1,2", "--network", "pretrained/faces32.safetensors"),
    ):
        assert words in mistake("generate.py", "--seeds", 1, *base, *arguments), words
