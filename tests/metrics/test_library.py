"""`metrics.compute` gives the values of `python -m metrics`, of images in files and in tensors."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from PIL import Image

import metrics
from media.images import to_float
from torch_utils import distributed
from torch_utils.errors import UserError

NAMES = "fd20_full@tiny-imagenet,kd20@tiny-imagenet,swd20"


@pytest.fixture(autouse=True)
def quick(monkeypatch, own_cache):
    monkeypatch.setattr("metrics.swd.DIRECTIONS", 64)


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    coarse = torch.randint(0, 256, (50, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    whole = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return whole[:30], whole[30:] // 2


@pytest.fixture(scope="module")
def folders(images, tmp_path_factory) -> tuple[Path, Path]:
    from tests.metrics.archives import write_images

    folder = tmp_path_factory.mktemp("sets")
    return write_images(folder / "real", images[0]), write_images(folder / "fake", images[1])


def by_command(command, real, fake, names: str = NAMES) -> dict[str, float]:
    code, out, err = command("--metrics", names, "--data", real, "--fakes", fake, "--json", "--gpus", 0, "--workers", 0)
    assert code == 0, err
    return {name: value for name, value in json.loads(out).items() if isinstance(value, float)}


def test_folders_give_the_values_of_the_command(folders, command):
    real, fake = folders
    expected = by_command(command, real, fake)
    assert metrics.compute(NAMES, real=real, fake=str(fake), device="cpu") == expected
    assert metrics.compute(NAMES.split(","), real=real, fake=fake, device="cpu", workers=1) == expected


def test_tensors_and_iterators_are_as_folders(folders, images):
    expected = metrics.compute(NAMES, real=folders[0], fake=folders[1], device="cpu")
    real, fake = images
    labelled = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(real, torch.arange(30)), 7)
    forms = {
        "bytes": (real, fake),
        "floats": (to_float(real), to_float(fake).requires_grad_()),
        "lists": (list(real.split(8)), list(fake.split(3))),
        "iterators": (labelled, (to_float(part) for part in fake.split(6))),
        "endless": (folders[0], itertools.chain(fake.split(6), itertools.repeat(fake[:5]))),
    }
    for form, (a, b) in forms.items():
        assert metrics.compute(NAMES, real=a, fake=b, device="cpu") == pytest.approx(expected, rel=1e-6), form
    unit = metrics.compute(NAMES, real=real / 255, fake=fake / 255, value_range=(0, 1), device="cpu")
    assert unit == pytest.approx(expected, rel=1e-6)
    by_255 = metrics.compute(NAMES, real=real.float(), fake=fake.double(), value_range=(0, 255), device="cpu")
    assert by_255 == pytest.approx(expected, rel=1e-6)


def test_images_of_several_sizes(folders, images, tmp_path, command):
    """In tensors as in files."""
    real, _ = folders
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for number, image in enumerate(images[1]):
        Image.fromarray(image[:, : 32 - number % 3].permute(1, 2, 0).numpy()).save(mixed / f"{number:02d}.png")
    names = "kd20_full@tiny-imagenet"
    expected = by_command(command, real, mixed, names)
    batches = [image[None, :, : 32 - number % 3] for number, image in enumerate(images[1])]
    assert metrics.compute(names, real=images[0], fake=iter(batches), device="cpu") == pytest.approx(expected, rel=1e-5)
    assert metrics.compute(names, real=images[0], fake=batches, device="cpu") == pytest.approx(expected, rel=1e-5)
    for sides in ({"real": images[0], "fake": iter(batches)}, {"real": batches, "fake": images[1]}):
        with pytest.raises(UserError, match=r"swd10 compares pixels, and needs images of one size: "):
            metrics.compute("swd10", **sides, device="cpu")


def test_of_the_fakes_alone_and_by_statistics(small, inception, folders, images, command, tmp_path):
    found = metrics.compute("is20", fake=images[1], weights=[inception], device="cpu")
    assert found.keys() == {"is20_mean", "is20_std"}
    name = "fd20_full@tiny-imagenet"
    command("--metrics", name, "--data", folders[0], "--save-stats", tmp_path / "stats.npz", "--gpus", 0)
    found = metrics.compute(name, real=tmp_path / "stats.npz", fake=images[1], device="cpu")
    assert found == pytest.approx(metrics.compute(name, real=images[0], fake=images[1], device="cpu"), rel=1e-6)


def test_mistakes_are_told(folders, images, capsys, tmp_path):
    real, fake = images
    name = "kd20@tiny-imagenet"
    cases = [
        ({"names": name, "fake": iter([fake[:7]])}, "fake has given 7 images, and a metric asks for more"),
        ({"names": name, "fake": fake[0]}, r"fake: expected batches of images .*, got \[3, 32, 32\]"),
        ({"names": name, "fake": iter(["a"])}, "got str"),
        ({"names": name, "fake": fake.repeat(1, 2, 1, 1)[:, :4]}, "with 1 or 3 channels"),
        ({"names": name, "fake": fake.long()}, "images are uint8 or float, not int64"),
        ({"names": name, "fake": fake.float()}, "floats from 0 to 127 are no images in -1 to 1"),
        ({"names": name, "fake": fake * float("nan")}, "floats from nan to nan"),
        ({"names": name, "fake": to_float(fake), "value_range": (1, 0)}, "the first number is black"),
        ({"names": name, "fake": fake[:0]}, "0 fake images"),
        ({"names": name, "fake": tmp_path / "absent"}, "absent"),
        ({"names": "ppl2_wend20", "fake": fake}, "ppl2_wend20 is of a generator"),
        ({"names": "fid", "fake": fake}, "no metric is called 'fid'"),
        ({"names": name, "fake": fake, "real": None}, "real images to compare with are missing"),
    ]
    for options, words in cases:
        with pytest.raises(UserError, match=words):
            metrics.compute(**{"real": real, "device": "cpu", **options})
    capsys.readouterr()
    metrics.compute(name, real=real, fake=fake / 255, device="cpu")
    assert (
        "the first float images of fake are nowhere darker than 0, in a range from -1 to 1; if"
        in capsys.readouterr().err
    )


def test_one_process_of_a_group_can_call_it_alone(images, monkeypatch):
    """As rank 1 of two, whose other process never comes."""
    expected = metrics.compute("swd20", real=images[0], fake=images[1], device="cpu")
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    assert metrics.compute("swd20", real=images[0], fake=images[1], device="cpu") == expected
    assert (distributed.rank(), distributed.world_size()) == (1, 2)
