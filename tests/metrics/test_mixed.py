"""Images of any sizes: metrics agree with torch-fidelity, and with the batched path where sizes are equal."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image

from media.dataset import ImageDataset
from media.mixed import MixedImages
from metrics import Evaluator, dataset_source
from metrics.detectors import PUBLISHED, given_weights
from metrics.features import Features, describe_images, describe_sizes
from tests.metrics.archives import photographs, write_images
from tests.metrics.test_detectors import PlainDINOv2
from tests.scripts import done, remedy, script_here

SIZES = ((32, 32), (40, 30), (31, 47), (32, 32), (77, 50))  # width and height


def write_mixed(folder: Path, images: torch.Tensor) -> Path:
    """Enlarged photographs of several sizes, as PNG."""
    folder.mkdir()
    for number, image in enumerate(images):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture.resize(SIZES[number % len(SIZES)], Image.Resampling.BICUBIC).save(folder / f"{number:04d}.png")
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, real_images) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("mixed")
    return (
        write_mixed(folder / "real", photographs(real_images / "cifar10-train.zip", 66)),
        write_mixed(folder / "fake", photographs(real_images / "cifar10-test.zip", 60)),
    )


def evaluated(command, names: str, mixed: tuple[Path, Path], *options) -> dict[str, float]:
    real, fake = mixed
    arguments = ["--metrics", names, "--data", real, "--fakes", fake, "--gpus", 0, "--batch", 16, "--json", *options]
    code, out, err = command(*arguments)
    assert code == 0, err
    assert "has images of sizes such as 32x32 and 77x50" in err
    return json.loads(out)


COMMON = {"cuda": False, "cache": False, "verbose": False, "save_cpu_ram": True, "batch_size": 1}
VALUES = {
    "fid60_full": "frechet_inception_distance",
    "kid60_full": "kernel_inception_distance_mean",
    "kid60_full_std": "kernel_inception_distance_std",
    "is60_mean": "inception_score_mean",
    "is60_std": "inception_score_std",
    "pr603_full_precision": "precision",
    "pr603_full_recall": "recall",
}


@pytest.mark.slow  # torch-fidelity's FID takes the eigenvalues of a matrix that is not symmetric, 2048 × 2048
def test_folders_of_mixed_sizes_agree_with_torch_fidelitys_command(
    mixed, small, command, inception, vgg16, monkeypatch
):
    """Which takes such a folder in batches of one."""
    monkeypatch.setattr("metrics.scores.KID_SUBSET_SIZE", 20)
    weights = ["--detector-weights", inception, "--detector-weights", vgg16]
    found = evaluated(command, "fid60_full,kid60_full,is60,pr603_full", mixed, *weights)
    common = COMMON | {"input1": str(mixed[1]), "input2": str(mixed[0])}
    reference = torch_fidelity.calculate_metrics(
        isc=True, fid=True, kid=True, kid_subset_size=20, feature_extractor_weights_path=inception, **common
    )
    reference |= torch_fidelity.calculate_metrics(
        prc=True, feature_extractor="vgg16", feature_extractor_weights_path=vgg16, **common
    )
    for ours, theirs in VALUES.items():
        assert found[ours] == pytest.approx(reference[theirs], rel=1e-4), ours
    assert found["fid60_full"] > 1e-3 and 0 < found["pr603_full_precision"] < 1


def test_transformers_of_mixed_sizes_agree_with_torch_fidelitys_command(mixed, small, command, dinov2, monkeypatch):
    monkeypatch.setattr("metrics.scores.KID_SUBSET_SIZE", 20)
    name = "dinov2-vit-s-14"
    found = evaluated(command, f"fd60_full@{name},kd60_full@{name}", mixed, "--detector-weights", dinov2)
    tensors = given_weights([dinov2])[PUBLISHED[name]].tensors
    monkeypatch.setattr(torch.hub, "load", lambda *args: PlainDINOv2(tensors))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = torch_fidelity.calculate_metrics(
            fid=True, kid=True, kid_subset_size=20, feature_extractor=name, **COMMON,
            input1=str(mixed[1]), input2=str(mixed[0]),
        )  # fmt: skip
    for ours, theirs in (("fd60_full", "fid60_full"), ("kd60_full", "kid60_full")):
        assert found[f"{ours}@{name}"] == pytest.approx(reference[VALUES[theirs]], rel=1e-4), ours


def test_features_come_in_the_images_order(mixed):
    """In batches of any size, read by processes or not; each batch is described by its sizes."""
    images = MixedImages(mixed[0])
    expected = torch.stack([images[i][0].float().mean(dim=(1, 2)) for i in range(66)])
    for batch, workers in ((1, 0), (16, 0), (16, 2), (66, 0)):
        collected, shapes = Features(66), []

        def describe(some: torch.Tensor, shapes=shapes) -> dict[str, torch.Tensor]:
            shapes.append(some.shape)
            return {"mean": some.float().mean(dim=(2, 3))}

        for part in describe_images(dataset_source(images, range(66), workers), 66, batch, describe):
            collected.add(part["mean"])
        assert torch.allclose(collected.finish()["features"], expected)
        assert sum(shape[0] for shape in shapes) == 66 and (batch < 66 or len(shapes) == 4)


def test_one_size_is_described_at_once():
    images = [torch.full((3, 4, 4 + number % 2), number) for number in range(5)]
    found = describe_sizes(images, lambda x: {"first": x.flatten(1)[:, :1], "count": torch.full((len(x), 1), len(x))})
    assert found["first"].flatten().tolist() == [0, 1, 2, 3, 4] and found["count"].flatten().tolist() == [3, 2, 3, 2, 3]


def test_images_of_one_size_give_the_values_of_the_batched_path(slices, small, inception):
    real, fake = (ImageDataset(folder) for folder in slices)
    other, other_fake = (MixedImages(folder) for folder in slices)
    names = ["kid60_full", "is60"]
    values = [
        Evaluator(names, a, fakes=60, batch=16, weights=[inception]).evaluate(dataset_source(b, range(60)))
        for a, b in ((real, fake), (other, other_fake))
    ]
    assert values[0] == values[1]


def test_statistics_of_mixed_images_are_kept_by_their_content(mixed, small, command, tmp_path, monkeypatch):
    names, weights = "kd60_full@tiny-imagenet,fd60_full@tiny-imagenet", ()
    first = evaluated(command, names, mixed, *weights)
    kept = sorted((small / "statistics").iterdir())
    assert len(kept) == 2
    times = [path.stat().st_mtime_ns for path in kept]
    again = evaluated(command, names, mixed, *weights)
    assert again == first and [path.stat().st_mtime_ns for path in kept] == times
    evaluated(command, names, mixed, "--background", "black")  # on which transparent images, if there are any, lie
    assert len(list((small / "statistics").iterdir())) == 4
    other = write_mixed(tmp_path / "other", torch.randint(0, 255, (66, 3, 32, 32), dtype=torch.uint8))
    assert evaluated(command, names, (other, mixed[1])) != first
    assert len(list((small / "statistics").iterdir())) == 6


def test_two_sizes_are_compared_by_detectors_and_not_by_pixels(command, tmp_path, real_images, monkeypatch):
    """And the message's remedy makes them comparable."""
    monkeypatch.chdir(tmp_path)
    images = photographs(real_images / "cifar10-test.zip", 40)
    small, large = write_images(tmp_path / "small", images[:20]), tmp_path / "large"
    large.mkdir()
    for path in small.iterdir():
        Image.open(path).resize((64, 64)).save(large / path.name)
    options = ["--gpus", 0, "--workers", 0]
    code, out, err = command("--metrics", "fd20@tiny-imagenet", "--fakes", "small", "--data", "large", *options)
    assert code == 0 and out.startswith("fd20@tiny-imagenet ")
    assert "note: small has images of 32x32, large of 64x64; the detectors resize each to their own size\n" in err
    code, out, err = command("--metrics", "fd20@tiny-imagenet,swd20", "--fakes", "small", "--data", "large", *options)
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    message = "error: swd20 compares pixels, and needs images of one size (metrics of a detector take any): small gives"
    assert err.startswith(message)
    done(script_here(*remedy(err)))
    code, out, _ = command(
        "--metrics", "fd20@tiny-imagenet,swd20", "--fakes", "small", "--data", "large-32.zip", *options
    )
    assert code == 0 and "swd20 " in out


def test_pixels_need_images_of_one_size(mixed, command):
    code, _, err = command("--metrics", "swd20", "--fakes", mixed[1], "--data", mixed[0], "--gpus", 0)
    assert code == 2 and len(err.splitlines()) == 1
    assert "0001.png is 40x30 RGB, but 0000.png is 32x32 RGB; convert the images with: python dataset_tool.py" in err


def test_classes_of_mixed_images(mixed, command, tmp_path):
    """Each class alone gives what its images give in folders of their own."""
    folders = []
    for folder in mixed:
        images = sorted(folder.glob("*.png"))
        for number in (0, 1):
            part = tmp_path / f"{folder.name}{number}"
            part.mkdir()
            for path in images[number::2][:20]:
                Image.open(path).save(part / path.name)
        both = tmp_path / folder.name
        both.mkdir()
        labels = []
        for number in (0, 1):
            for path in sorted((tmp_path / f"{folder.name}{number}").iterdir()):
                (both / path.name).write_bytes(path.read_bytes())
                labels.append([path.name, number])
        (both / "dataset.json").write_text(json.dumps({"labels": labels}))
        folders.append(both)
    name = "kd20_full@tiny-imagenet"
    found = evaluated(command, name, tuple(folders), "--per-class")
    for number in (0, 1):
        alone = evaluated(command, name, (tmp_path / f"real{number}", tmp_path / f"fake{number}"))
        assert found["classes"][str(number)][name] == pytest.approx(alone[name], rel=1e-4)


def test_images_that_nobody_reads_are_named(mixed, command, tmp_path):
    real = write_images(tmp_path / "real", torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8))
    (real / "a.heic").write_bytes(b"x")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(real / "b.bmp")
    code, out, err = command(
        "--metrics", "kd4_full@tiny-imagenet", "--fakes", mixed[1], "--data", real, "--gpus", 0, "--json"
    )
    assert code == 0 and json.loads(out)["images"]["kd4_full@tiny-imagenet"]["real"] == 5
    assert (
        f"note: {real}: left out images of formats that are not read; save them as JPEG or PNG: 1, first a.heic" in err
    )
