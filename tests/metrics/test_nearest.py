"""Nearest real images: known neighbours, flipped copies, and copies that the command catches."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d, pad

from media.dataset import ImageDataset
from media.faces import faces
from media.files import read_image
from metrics.nearest import Nearest, find_nearest
from models.sampling import generate_batches
from models.snapshot import load_generator, save_snapshot
from networks.generator import Generator, GeneratorConfig
from tests.metrics.archives import write_images
from tests.metrics.test_encoders import encoder_file  # noqa: F401 (a fixture)


def cloud(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def test_nearest_are_those_of_a_plain_search(monkeypatch):
    monkeypatch.setattr("metrics.nearest.BLOCK_ROWS", 7)
    fake, real = cloud(5), cloud(20, seed=1)
    found = find_nearest(fake, real, k=3)
    for n, point in enumerate(fake.double()):
        distances = (real.double() - point).norm(dim=1)
        assert found.indices[n].tolist() == distances.argsort()[:3].tolist()
        torch.testing.assert_close(found.distances[n], distances.sort().values[:3])
        others = (real.double() - real[found.indices[n, 0]].double()).norm(dim=1).sort().values
        assert found.own_distances[n] == pytest.approx(float(others[1]))
        assert bool(found.authentic[n]) == bool(distances.min() > others[1])


def test_an_image_and_its_flipped_copy_count_once():
    images, flipped = cloud(10, seed=1), cloud(10, seed=2)
    real = torch.cat([images, flipped])
    found = find_nearest(flipped[[3, 4]], real, k=2, mirrored=True)
    assert found.indices[:, 0].tolist() == [13, 14] and found.distances[:, 0].tolist() == [0, 0]
    assert all(len({index % 10 for index in row}) == 2 for row in found.indices.tolist())
    # the flipped copy of the same image is no other image
    others = torch.cat([images[:3], images[4:], flipped[:3], flipped[4:]])
    assert found.own_distances[0] == pytest.approx(float((others - images[3]).double().norm(dim=1).min()))
    assert not found.authentic.any()


def test_twins_are_no_other_images():
    """In a set that has each image twice, up to rounding and flipped or not, copies are found as in a set of one."""
    images = cloud(10, seed=1)
    flipped = images.flip(1)  # as distances are the same if both images are flipped
    fake = torch.cat([images[:5] + 1e-3, flipped[5:] + 1e-3, cloud(4, seed=3)])
    alone = find_nearest(fake, torch.cat([images, flipped]), k=1, mirrored=True)
    assert not alone.authentic[:10].any() and alone.authentic[10:].any()
    twins = images * (1 + 1e-6), flipped * (1 - 1e-6)
    for first, second in (twins, twins[::-1]):
        found = find_nearest(fake, torch.cat([images, first, flipped, second]), k=1, mirrored=True)
        torch.testing.assert_close(found.own_distances, alone.own_distances, rtol=1e-4, atol=0)
        assert torch.equal(found.authentic, alone.authentic)
        assert set(found.most_suspicious(10)) == set(range(10))


def test_a_set_of_one_image_again_and_again():
    """There is no other image, and distances stay numbers."""
    found = find_nearest(torch.cat([cloud(1), cloud(1, seed=1)]), cloud(1).expand(4, -1), k=2)
    assert found.own_distances.tolist() == [0, 0] and found.authentic.tolist() == [False, True]


def test_more_neighbours_than_images():
    assert find_nearest(cloud(2), cloud(3, seed=1), k=5).indices.shape == (2, 3)


def test_the_most_suspicious_come_first():
    distances = torch.tensor([[2.0], [0.0], [1.0], [3.0]], dtype=torch.float64)
    found = Nearest(torch.zeros(4, 1).long(), distances, torch.tensor([1.0, 0, 4, 1], dtype=torch.float64))
    assert found.most_suspicious(2) == [1, 2]
    assert found.most_suspicious(4) == [0, 1, 2, 3]


@pytest.fixture
def copies(tmp_path):
    """A snapshot, and a data set with the image of seed 1 and the flipped image of seed 3 among others."""
    torch.manual_seed(0)
    config = GeneratorConfig(resolution=32, cbase=256, cmax=8, map_depth=1, z_dim=16, w_dim=16, style_channels=8)
    snapshot = tmp_path / "snapshot-000001.safetensors"
    save_snapshot(snapshot, Generator(config), {"kimg": 1.0})
    fakes = torch.cat(list(generate_batches(load_generator(snapshot)[0], range(5))))
    others = torch.randint(0, 256, (20, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = torch.cat([others[:10], fakes[1:2], others[10:], fakes[3:4].flip(3)])
    return snapshot, write_images(tmp_path / "data", images)


@pytest.mark.parametrize("of", ["adaconv", "stylegan2"])
def test_without_a_class_seeds_take_the_classes_in_turn(command, encoder_file, tmp_path, of):  # noqa: F811
    """As in generate.py, whose images are then copies of these data."""
    torch.manual_seed(0)
    config = GeneratorConfig(32, cbase=256, cmax=8, map_depth=1, z_dim=16, w_dim=16, style_channels=8, c_dim=3)
    snapshot = tmp_path / "snapshot-000001.safetensors"
    save_snapshot(snapshot, Generator(config), {"kimg": 1.0})
    images = torch.cat(list(generate_batches(load_generator(snapshot)[0], range(6), 6, torch.arange(6) % 3, of=of)))
    data = write_images(tmp_path / "data", images)
    arguments = ["--detector", encoder_file, "--workers", 0, "--seeds", "0-5", "--json", "--out", tmp_path / "a.png"]
    arguments += [] if of == "adaconv" else ["--seeds-of", of]
    code, out, err = command("nearest", "--network", snapshot, "--data", data, *arguments)
    assert code == 0, err
    assert max(row["distance"] for row in json.loads(out)["images"]) < 1e-3


@pytest.mark.parametrize("shipped", [False, True])
def test_copies_are_found(command, copies, encoder_file, tmp_path, shipped):  # noqa: F811
    """By an encoder's file, and by what a fresh clone has: without --detector."""
    snapshot, data = copies
    arguments = ["nearest", "--network", snapshot, "--data", data, "--seeds", "1-3", "--neighbours", 2]
    arguments += ["--workers", 0, "--out", tmp_path / "sheet.png"]
    arguments += [] if shipped else ["--detector", encoder_file]
    code, out, err = command(*arguments, "--json")
    assert code == 0, err
    rows = {row["seed"]: row for row in json.loads(out)["images"]}
    assert rows.keys() == {1, 2, 3}
    assert (rows[1]["nearest"], rows[1]["flipped"]) == ("0010.png", False)
    assert (rows[3]["nearest"], rows[3]["flipped"]) == ("0021.png", True)
    assert rows[1]["distance"] < 1e-3 and rows[3]["distance"] < 1e-3 < rows[2]["distance"]
    assert not rows[1]["authentic"] and not rows[3]["authentic"]
    sheet = read_image(tmp_path / "sheet.png")
    assert sheet.shape == (3, 3 * 32, 4 * 32)
    copy = ImageDataset(data)[10][0]
    assert torch.equal(sheet[:, :32, :32], copy) and torch.equal(sheet[:, :32, 64:96], copy)
    assert torch.equal(sheet[:, 64:, :32], sheet[:, 64:, 64:96])  # the flipped copy is shown as it is near

    code, out, _ = command(*arguments)
    assert code == 0 and out.startswith("seed 1: 0010.png, distance ")
    assert "seed 3: 0021.png, flipped, " in out and "nearer than real images are to each other" in out


def test_copies_among_many_images_are_shown_first(command, copies, encoder_file, tmp_path):  # noqa: F811
    """Of a folder of images, of which two are in the training set."""
    _, data = copies
    dataset = ImageDataset(data)
    noise = torch.randint(0, 256, (20, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    noise[17], noise[5] = dataset[10][0], dataset[21][0].flip(2)
    arguments = ["nearest", "--fakes", write_images(tmp_path / "fakes", noise), "--data", data, "--workers", 0]
    arguments += ["--detector", encoder_file, "--rows", 2, "--out", tmp_path / "sheet.png"]
    code, out, err = command(*arguments)
    assert code == 0, err
    assert [line.partition(", distance")[0] for line in out.splitlines()[:2]] in (
        ["0017.png: 0010.png", "0005.png: 0021.png, flipped"],
        ["0005.png: 0021.png, flipped", "0017.png: 0010.png"],
    )
    assert read_image(tmp_path / "sheet.png").shape == (3, 2 * 32, 7 * 32)
    assert len(json.loads(command(*arguments, "--json")[1])["images"]) == 20


def test_the_shipped_detector_finds_changed_copies(command, tmp_path):
    """Of drawn faces, which resemble each other: copies with noise, of fewer levels, blurred or mirrored."""
    images = torch.stack([torch.from_numpy(np.array(face)).permute(2, 0, 1) for face, _ in faces(120, 32, seed=1)])
    train, new = images[:100], images[100:]
    noise = 4 * torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    soft = avg_pool2d(pad(train[10:15].float(), [1, 1, 1, 1], mode="replicate"), 3, stride=1)
    changed = [train[:5] + noise, train[5:10] // 8 * 8 + 4, 0.3 * soft + 0.7 * train[10:15], train[15:20].flip(3)]
    copied = torch.cat([part.round().clamp(0, 255).byte() for part in changed])
    fakes = write_images(tmp_path / "fakes", torch.cat([copied, new]))
    arguments = ["nearest", "--fakes", fakes, "--data", write_images(tmp_path / "data", train), "--workers", 0]
    code, out, err = command(*arguments, "--out", tmp_path / "sheet.png", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["detector"] == "tiny-imagenet"
    rows = found["images"]
    assert [row["nearest"] for row in rows[:20]] == [f"{n:04}.png" for n in range(20)]
    assert [row["flipped"] for row in rows[15:20]] == [True] * 5 and not any(row["flipped"] for row in rows[:15])
    assert not any(row["authentic"] for row in rows[:20])
    assert sum(row["authentic"] for row in rows[20:]) >= 5


def test_copies_of_transparent_images_are_found_on_the_background_that_they_were_trained_on(command, tmp_path):
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (12, 4, 32, 32), generator=random, dtype=torch.uint8)
    pixels[:, 3] = 255 * (pixels[:, 3] > 127)
    data = write_images(tmp_path / "data", pixels)
    fakes = write_images(tmp_path / "fakes", pixels[:3, :3] * (pixels[:3, 3:] > 0))
    arguments = ["nearest", "--fakes", fakes, "--data", data, "--workers", 0, "--out", tmp_path / "sheet.png", "--json"]
    for color, copied in (("black", True), ("white", False)):
        code, out, err = command(*arguments, "--background", color)
        assert code == 0, err
        assert all((row["distance"] < 1e-3) == copied for row in json.loads(out)["images"])


def test_c_t_tells_copies_from_new_images(command, copies, encoder_file, tmp_path):  # noqa: F811
    """Of images of one source: those of the training set, slightly changed, against those of neither set."""
    images = torch.stack([torch.from_numpy(np.array(face)).permute(2, 0, 1) for face, _ in faces(180, 32, seed=1)])
    train, test, new = images.split(60)
    copied = (train.float() + 2 * torch.randn(train.shape)).clamp(0, 255).byte()
    folders = {"data": train, "test": test}
    arguments = [
        word for name, part in folders.items() for word in (f"--{name}", write_images(tmp_path / f"c-{name}", part))
    ]
    values = []
    for name, fakes in (("copied", copied), ("new", new)):
        fakes = write_images(tmp_path / name, fakes)
        out = command(
            "nearest", "--fakes", fakes, *arguments, "--detector", encoder_file, "--workers", 0, "--json", "--fld",
            "--out", tmp_path / "sheet.png",
        )  # fmt: skip
        assert out[0] == 0, out[2]
        values.append(json.loads(out[1]))
    assert values[0]["c_t"] < -5 and abs(values[1]["c_t"]) < 3
    assert values[0]["authentic"] < 0.1 < values[1]["authentic"]
    assert values[0]["fld"] > values[1]["fld"] + 10


def test_mistakes_are_one_line(command, copies, encoder_file, tmp_path, faces16):  # noqa: F811
    snapshot, data = copies
    out = ["--out", tmp_path / "sheet.png"]
    for arguments, words in [
        (["--data", data, "--detector", "nowhere/encoder"], "name a file of train_encoder.py"),
        (["--data", faces16, "--detector", encoder_file], "16x16"),
        (["--data", data, "--detector", encoder_file, "--class", 1], "trained without classes"),
        (["--detector", encoder_file], "--data"),
        (["--data", data, "--detector", encoder_file, "--test", data], "the same images"),
        (
            ["--data", data, "--detector", encoder_file, "--test", faces16],
            f"convert the images that {faces16} was made of again, with --resolution 32",
        ),
        (["--data", data, "--detector", encoder_file, "--fld"], "name them with --test"),
        (
            ["--data", data, "--detector", encoder_file, "--seeds-of", "stylegan2", "--seeds", 2**32],
            "leave out --seeds-of",
        ),
        (["--data", data, "--detector", encoder_file, "--fakes", data], "name --network or --fakes, not both"),
    ]:
        code, _, err = command("nearest", "--network", snapshot, *arguments, *out)
        assert code == 2 and words in err and len(err.splitlines()) == 1, err
