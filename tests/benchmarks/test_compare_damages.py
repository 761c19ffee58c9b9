"""What is compared are images of the data set, with their own classes."""

import sys
from pathlib import Path

import pytest
import torch

from media.convert import write_dataset
from media.dataset import ImageDataset
from media.faces import faces

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from compare_damages import LEVELS, damages, read


@pytest.mark.parametrize("labelled", [True, False])
def test_read(tmp_path, labelled):
    path = tmp_path / "faces.zip"
    write_dataset(path, ((image, label if labelled else None) for image, label in faces(60, 16, seed=0)))
    images, labels = read(str(path), 40, seed=0)
    assert images.shape == (40, 3, 16, 16)
    assert (labels is not None) == labelled
    dataset = ImageDataset(path, use_labels=labelled)
    own = [dataset[i][0] for i in range(len(dataset))]
    places = [next(i for i, image in enumerate(own) if torch.equal(image, drawn)) for drawn in images]
    assert len(set(places)) == 40
    if labels is not None:
        assert torch.equal(labels, dataset.required_labels[places])


def test_fewer_modes_leave_fewer_classes(faces16):
    images, labels = read(str(faces16), 100, seed=0)
    damage = damages(images, labels, images)
    assert list(damage) == list(LEVELS)
    left = damage["modes left"](0.5)
    kept = labels.unique()[: round(0.5 * len(labels.unique()))]
    allowed = images[torch.isin(labels, kept)]
    assert left.shape == images.shape
    assert all(any(torch.equal(image, one) for one in allowed) for image in left)
