"""The classifier's training: its augmentation by known pictures, its learning rate by its shape, and that it learns."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from networks.vgg import Classifier
from training.classify import (
    ClassifierConfig,
    accuracy,
    augment,
    classification_loss,
    fastest_precision,
    make_optimizer,
    one_cycle,
    train_step,
)
from training.dataset import ImageDataset
from training.images import to_float


def numbered(count: int, size: int) -> torch.Tensor:
    """Pictures whose pixels are all different: channel 0 their row, channel 1 their column, channel 2 their picture."""
    at = torch.arange(size, dtype=torch.uint8)
    images = torch.empty(count, 3, size, size, dtype=torch.uint8)
    images[:, 0], images[:, 1] = at[:, None], at
    images[:, 2] = torch.arange(count, dtype=torch.uint8)[:, None, None]
    return images


def test_every_augmented_picture_is_one_of_the_padded_crops():
    torch.manual_seed(0)
    images = numbered(200, 16)
    padded = F.pad(images.float(), (2, 2, 2, 2), mode="reflect").byte()
    out = augment(images, shift=1 / 8)
    assert out.dtype == torch.uint8 and out.shape == images.shape
    seen = set()
    for i in range(len(images)):
        crops = {}
        for y in range(5):
            for x in range(5):
                crop = padded[i, :, y : y + 16, x : x + 16]
                crops[y, x, False], crops[y, x, True] = crop, crop.flip(2)
        found = [key for key, crop in crops.items() if torch.equal(crop, out[i])]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 45  # of 50: the shifts and the flip are drawn for each picture by itself
    flips = sum(flip for *_, flip in seen)
    assert 20 <= flips <= 25


def test_nothing_is_augmented_where_nothing_is_asked_for():
    images = numbered(8, 16)
    assert torch.equal(augment(images, shift=0, mirror=False), images)
    assert torch.equal(images, numbered(8, 16))


def test_one_cycle():
    rates = [one_cycle(step, 100, 0.5) for step in range(100)]
    assert max(rates) == rates[19] == 0.5
    assert rates[0] == pytest.approx(0.5 / 20) and rates[9] == pytest.approx(0.25)
    assert rates[60] == pytest.approx(0.5 * 40 / 81) and rates[99] == pytest.approx(0.5 / 81)
    differences = [b - a for a, b in pairwise(rates)]
    assert all(d > 0 for d in differences[:19]) and all(d < 0 for d in differences[19:])
    assert one_cycle(0, 1, 0.5) == 0.5


def test_only_weights_decay():
    model = Classifier(1 / 16, 3)
    decayed, others = (group["params"] for group in make_optimizer(model, ClassifierConfig(data="x")).param_groups)
    assert len(decayed) == 10 and len(others) == 19  # 9 convolutions and the head; 9 gains, 9 + 1 biases
    assert {id(p) for p in [*decayed, *others]} == {id(p) for p in model.parameters()}


def test_the_loss_is_the_smoothed_cross_entropy():
    torch.manual_seed(0)
    model = Classifier(1 / 16, 3).eval()
    images = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 1, 0])
    config = ClassifierConfig(data="x", shift=0, mirror=False, smoothing=0.3, precision="fp32")
    loss = classification_loss(model, images, F.one_hot(labels, 3).float(), config)
    likelihoods = torch.log_softmax(model(to_float(images)), dim=1)
    target = torch.full([5, 3], 0.1)
    target[range(5), labels] = 0.8
    torch.testing.assert_close(loss, -(target * likelihoods).sum(dim=1).mean())


def test_accuracy_is_the_part_that_is_right(faces16):
    """A classifier that always says class 1 is right as often as there is class 1."""
    dataset = ImageDataset(faces16, use_labels=True)
    model = Classifier(1 / 16, dataset.c_dim).train()
    torch.nn.init.zeros_(model.head.weight)
    model.head.bias.data = F.one_hot(torch.tensor(1), dataset.c_dim).float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert accuracy(model, dataset, batch=64) == pytest.approx(float((dataset.labels == 1).float().mean()))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_half_precision_is_taken_where_the_processor_has_it(monkeypatch):
    for capabilities, precision in [
        ({"avx512_f": True, "avx512_bf16": False}, "fp32"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({}, "fp32"),
    ]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda value=capabilities: value, raising=False)
        assert fastest_precision(torch.device("cpu")) == precision


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns_to_tell_colours_apart(precision):
    torch.manual_seed(0)
    config = ClassifierConfig(data="x", width=0.125, lr=0.05, precision=precision)
    labels = torch.arange(64) % 3
    images = torch.randint(100, (64, 3, 16, 16), dtype=torch.uint8)
    images[range(64), labels] += 60  # the class's channel is lighter
    onehot = F.one_hot(labels, 3).float()
    model = Classifier(config.width, 3).train()
    optimizer = make_optimizer(model, config)
    losses = [
        float(train_step(model, optimizer, images, onehot, one_cycle(i, 20, config.lr), config)) for i in range(20)
    ]
    assert losses[-1] < 0.6 * losses[0]
    assert optimizer.param_groups[1]["lr"] == one_cycle(19, 20, config.lr)
    assert accuracy(model, torch.utils.data.TensorDataset(images, onehot)) == 1
