"""The classifier's training: augmentation by known images, the learning rate by its shape; runs learn and resume."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from media.convert import write_dataset
from media.dataset import ImageDataset
from media.faces import faces
from media.images import to_float
from models.encoder import ENCODER, load_encoder
from models.snapshot import load_model
from networks.vgg import VGG19, Classifier
from tests.scripts import launch
from tests.training.test_loop import assert_same
from torch_utils import distributed
from training.classifier import (
    ClassifierTrainer,
    augment,
    classification_loss,
    confusion_image,
    cutmix,
    one_cycle,
    predictions,
    random_crops,
    sgd,
)
from training.config import ClassifierConfig
from training.loop import train
from training.options import resolve_classifier
from training.runs import find_state, load_state


def numbered(count: int, size: int) -> torch.Tensor:
    """Images whose pixels are all different: channel 0 their row, channel 1 their column, channel 2 their image."""
    at = torch.arange(size, dtype=torch.uint8)
    images = torch.empty(count, 3, size, size, dtype=torch.uint8)
    images[:, 0], images[:, 1] = at[:, None], at
    images[:, 2] = torch.arange(count, dtype=torch.uint8)[:, None, None]
    return images


def test_every_augmented_image_is_one_of_the_padded_crops():
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
    assert len(seen) > 45  # of 50: the shifts and the flip are drawn for each image by itself
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
    decayed, others = (group["params"] for group in sgd(model, ClassifierConfig(data="x")).param_groups)
    assert len(decayed) == 17 and len(others) == 33  # 16 convolutions and the head; 16 gains, 16 + 1 biases
    assert {id(p) for p in [*decayed, *others]} == {id(p) for p in model.parameters()}


def test_the_loss_is_the_smoothed_cross_entropy():
    torch.manual_seed(0)
    model = Classifier(1 / 16, 3).eval()
    images = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 1, 0])
    config = ClassifierConfig(data="x", shift=0, mirror=False, smoothing=0.3, precision="fp32")
    loss, right = classification_loss(model, images, F.one_hot(labels, 3).float(), config)
    likelihoods = torch.log_softmax(model(to_float(images)), dim=1)
    target = torch.full([5, 3], 0.1)
    target[range(5), labels] = 0.8
    torch.testing.assert_close(loss, -(target * likelihoods).sum(dim=1).mean())
    assert right == (likelihoods.argmax(dim=1) == labels).float().mean()


def tiny(data, **options) -> ClassifierConfig:
    values = {"width": 1 / 16, "batch": 32, "lr": 0.05, "workers": 0, "kimg": 0.64, "tick": 0.16, "snap": 2}
    return resolve_classifier({"data": str(data), "precision": "fp32", **values, **options}, gpus=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_predictions_are_the_highest_logits(faces16, precision):
    """A classifier that always says class 1, and is left as it was."""
    dataset = ImageDataset(faces16, use_labels=True)
    model = Classifier(1 / 16, dataset.c_dim).train()
    torch.nn.init.zeros_(model.head.weight)
    model.head.bias.data = F.one_hot(torch.tensor(1), dataset.c_dim).float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert predictions(model, dataset, tiny(faces16, precision=precision)).tolist() == [1] * len(dataset)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_confusion_matrix_has_a_row_for_each_class():
    """Of class 0 a quarter is taken for class 2, all of class 2 is right, and nothing is known of class 1."""
    labels, predicted = torch.tensor([0, 0, 0, 0, 2]), torch.tensor([0, 0, 0, 2, 2])
    image = confusion_image(labels, predicted, 3)
    side = 256 // 3
    assert image.dtype == torch.uint8 and image.shape == (1, 3 * side, 3 * side)
    half, most = 255 // 2 + 1, round(255 - 255 * 0.75**0.5)
    assert image[0, side // 2 :: side, side // 2 :: side].tolist() == [[most, 255, half], [255] * 3, [255, 255, 0]]
    assert image[0, side - 1, 2 * side] == half and image[0, side, 2 * side] == 255


def test_the_image_of_many_classes_is_no_larger():
    labels = torch.tensor([0, 99_999, 50_000])
    image = confusion_image(labels, labels, 100_000)
    assert image.shape == (1, 256, 256) and (image[0] == 0).nonzero().tolist() == [[0, 0], [128, 128], [255, 255]]


# --- whole runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_learns(tmp_path, faces16, precision):
    """To tell six hair colours apart, of other faces: one in six would be right by chance."""
    test = tmp_path / "test.zip"
    write_dataset(test, faces(200, 16, seed=1))
    run = tmp_path / "run"
    run.mkdir()
    assert train(
        ClassifierTrainer, tiny(faces16, test=str(test), width=1 / 8, precision=precision, kimg=6.4, tick=3.2), run
    )
    metrics, stats = records(run, "metrics"), records(run, "stats")
    assert [line["kimg"] for line in metrics] == [0, 6.4] and metrics[-1]["images"] == 200
    assert metrics[0]["accuracy"] < 50 and metrics[-1]["accuracy"] > 90
    assert stats[-1]["loss/cross_entropy"] < stats[0]["loss/cross_entropy"] and stats[-1]["skipped"] == 0
    assert stats[-1]["accuracy/train"] > 80
    info = load_model(run / "snapshot-000006.4.safetensors", ENCODER, lambda config, _: VGG19(**config))[1]
    assert info == {"kimg": 6.4, "data": "faces16", "classes": 6, "resolution": 16, "accuracy": metrics[-1]["accuracy"]}


def test_float16_is_scaled(faces16):
    """Slow on CPUs, so that one step has to do: small gradients do not become 0."""
    gradients = []
    for precision in ("fp32", "fp16"):
        torch.manual_seed(0)
        task = ClassifierTrainer(tiny(faces16, precision=precision, shift=0, mirror=False), torch.device("cpu"))
        task.classifier.head.weight.data *= 1e-5
        task.train_step(next(task.batches(0)), 0)
        assert task.optimizer.skipped == 0 and task.optimizer.scale == (2**16 if precision == "fp16" else 1)
        gradients.append(task.classifier.encoder.features[0][0].weight.grad)
    assert gradients[0].norm() > 0
    assert (gradients[0] - gradients[1]).norm() < 0.3 * gradients[0].norm()


def test_the_snapshot_is_the_folded_encoder(tmp_path, faces16):
    train(ClassifierTrainer, tiny(faces16), tmp_path)
    encoder = load_encoder(tmp_path / "snapshot-000000.64.safetensors")
    classifier = Classifier(1 / 16, 6)
    classifier.load_state_dict(load_state(find_state(tmp_path))["classifier"])
    for name, value in classifier.fold().state_dict().items():
        assert torch.equal(encoder.state_dict()[name], value), name
    images = to_float(torch.stack([ImageDataset(faces16)[i][0] for i in range(8)]))
    torch.testing.assert_close(encoder(images)[-1], classifier.eval().encoder(images)[-1], rtol=1e-4, atol=1e-4)
    assert list(records(tmp_path, "metrics")[-1]) == ["kimg", "accuracy/data", "images"]  # of no other images


@pytest.mark.parametrize("options", [{}, {"precision": "bf16", "batch_gpu": 8, "workers": 1}])
def test_a_resumed_run_equals_one_without_a_stop(tmp_path, faces16, monkeypatch, options):
    config = tiny(faces16, **options)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    straight.mkdir(), stopped.mkdir()
    assert train(ClassifierTrainer, config, straight)
    first = tmp_path / "first"  # from a state between others, after which a snapshot was written and looked at
    (first / "state").mkdir(parents=True)
    states = sorted((straight / "state").iterdir())
    assert len(states) == 2
    (first / "state" / states[0].name).write_bytes(states[0].read_bytes())
    assert train(ClassifierTrainer, config, first, find_state(first))
    assert_same(load_state(find_state(first)), load_state(find_state(straight)))

    step = ClassifierTrainer.train_step

    def stop_at_7(self, batch, number):
        step(self, batch, number)
        if number == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierTrainer, "train_step", stop_at_7)
        assert not train(ClassifierTrainer, config, stopped)
    assert load_state(find_state(stopped))["step"] == 8
    assert train(ClassifierTrainer, config, stopped, find_state(stopped))

    a, b = (load_state(find_state(run)) for run in (straight, stopped))
    assert a["step"] == b["step"] == 20
    assert_same(a, b)
    for x, y in zip(records(straight, "stats"), records(stopped, "stats"), strict=True):
        del x["it_per_s"], y["it_per_s"]
        assert x == y
    assert records(straight, "metrics") == records(stopped, "metrics")
    snapshots = [run / "snapshot-000000.64.safetensors" for run in (straight, stopped)]
    assert snapshots[0].read_bytes() == snapshots[1].read_bytes()


def test_random_crops_are_enlarged_parts():
    """Of a ramp, whose values say where each pixel is from: straight, inside, and of the areas that were asked for."""
    torch.manual_seed(0)
    size = 32
    ramp = (torch.arange(size) + 0.5) / size
    images = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size)]).expand(400, 2, size, size)
    out = random_crops(images, smallest=0.4)
    assert out.shape == images.shape and out.min() >= ramp[0] and out.max() <= ramp[-1]
    inner = out[:, :, 2:-2, 2:-2]  # away from the border, where nothing is clamped
    across, down = inner[:, 0].diff(dim=2), inner[:, 1].diff(dim=1)
    assert inner[:, 0].diff(dim=1).abs().max() < 1e-5 and inner[:, 1].diff(dim=2).abs().max() < 1e-5
    width, height = across[:, 0, 0] * size, down[:, 0, 0] * size
    assert (across - across[:, :1, :1]).abs().max() < 1e-4  # one scale in each image
    area, ratio = width * height, width / height
    assert 0.38 < area.min() < 0.45 and 0.93 < area.max() <= 1.001 and 0.65 < area.mean() < 0.75
    assert 3 / 4 - 0.01 < ratio.min() < 0.8 and 1.25 < ratio.max() < 4 / 3 + 0.01


@pytest.mark.parametrize("smallest", [0.3, 0.9, 1.0])
def test_no_random_crop_is_smaller_than_asked_for(smallest):
    torch.manual_seed(0)
    ramp = torch.arange(64.0)
    out = random_crops(
        torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64)]).expand(2000, 2, 64, 64), smallest
    )
    width, height = ((out[:, 0, 32, 40] - out[:, 0, 32, 24]) / 16, (out[:, 1, 40, 32] - out[:, 1, 24, 32]) / 16)
    area = width * height
    assert area.min() > smallest - 1e-3 and area.max() < 1 + 1e-3
    assert area.mean() == pytest.approx((smallest + 1) / 2, abs=0.01)


def test_a_run_reduces_its_images_to_one_size_after_the_other(faces16, tmp_path):
    """In equal parts of the run."""
    write_dataset(data := tmp_path / "large.zip", [(Image.new("RGB", (32, 32)), i % 2) for i in range(64)])
    task = ClassifierTrainer(tiny(data, kimg=0.352, sizes=[16, 24, 32]), torch.device("cpu"))
    assert [task.side(step) for step in range(task.steps + 1)] == [16] * 4 + [24] * 4 + [32] * 4
    sides = []
    task.compiled = lambda x: sides.append(x.shape[2:]) or task.classifier(x)
    batches = task.batches(0)
    for step in (0, 4, 8):
        task.train_step(next(batches), step)
    assert sides == [(16, 16), (24, 24), (32, 32)]
    assert ClassifierTrainer(tiny(faces16), torch.device("cpu")).side(0) is None


def test_reduced_images_are_smoothed():
    """Stripes of one pixel become grey, not white or black as the pixels that are nearest would be."""
    seen = []
    stripes = (torch.arange(32) % 2 * 255).to(torch.uint8).expand(2, 3, 32, 32)
    config = ClassifierConfig(data="x", shift=0, mirror=False, precision="fp32")

    def model(x):
        seen.append(x)
        return torch.zeros(2, 3)

    classification_loss(model, stripes, F.one_hot(torch.tensor([0, 1]), 3).float(), config, side=16)
    assert seen[0].shape == (2, 3, 16, 16) and seen[0][..., 1:-1].abs().max() < 0.1


def test_cutmix_mixes_labels_by_area():
    torch.manual_seed(0)
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16)
    labels, areas = torch.eye(4), []
    for _ in range(300):
        mixed, soft = cutmix(images, labels)
        for i in range(4):
            assert set(mixed[i].unique().tolist()) <= {float(i), float((i - 1) % 4)}
            area = float((mixed[i, 0] != i).float().mean())
            assert float(soft[i, (i - 1) % 4]) == pytest.approx(area, abs=1e-6)
            assert float(soft[i].sum()) == pytest.approx(1)
        rows = (mixed[0, 0] != 0).any(dim=1).nonzero().flatten()
        assert rows.numel() == 0 or rows.numel() == rows[-1] - rows[0] + 1  # one rectangle
        areas.append(area)
    assert 0.45 < sum(areas) / len(areas) < 0.55 and min(areas) < 0.05 and max(areas) > 0.95


@pytest.mark.parametrize("kimg, steps", [(0.64, 20), (0.65, 21), (0.7, 22), (0.07, 3)])
def test_the_learning_rate_ends_with_the_run(tmp_path, faces16, kimg, steps):
    """The next step's would be 0."""
    train(ClassifierTrainer, tiny(faces16, kimg=kimg), tmp_path)
    state = load_state(find_state(tmp_path))
    assert state["step"] == steps
    last = one_cycle(steps - 1, steps, 0.05)
    assert 0 < last < 0.05 and one_cycle(steps, steps, 0.05) == 0
    assert [group["lr"] for group in state["optimizer"]["optimizer"]["param_groups"]] == [last, last]
    assert records(tmp_path, "stats")[-1]["lr"] == last


def test_parts_of_a_batch_have_its_gradient(faces16, monkeypatch):
    """But for the normalizations, which see less at a time: here they are left out."""
    monkeypatch.setattr("training.classifier.augment", lambda images, *options: images)
    weights = []
    for batch_gpu in (32, 8):
        torch.manual_seed(0)
        task = ClassifierTrainer(tiny(faces16, batch_gpu=batch_gpu), torch.device("cpu"))
        task.classifier.eval()
        batch = next(task.batches(0))
        assert [len(images) for images, _ in batch] == [batch_gpu] * (32 // batch_gpu)
        task.train_step(batch, 3)
        weights.append(task.classifier.head.weight)
    torch.testing.assert_close(*weights)


def test_a_step_that_is_not_finite_changes_nothing(faces16):
    """The normalizations' running means would never be finite again."""
    task = ClassifierTrainer(tiny(faces16), torch.device("cpu"))
    batches = task.batches(0)
    task.train_step(next(batches), 0)
    before = {name: value.clone() for name, value in task.classifier.state_dict().items()}
    weight = task.classifier.encoder.features[0][0].weight
    kept = weight.detach().clone()
    weight.data[0, 0, 0, 0] = float("inf")
    task.train_step(next(batches), 1)
    weight.data.copy_(kept)
    assert task.optimizer.skipped == 1
    after = task.classifier.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if "num_batches" not in name)


def train_two(folder: Path, data: Path) -> None:
    """What each of two processes does; it leaves a file with what its classifier has become."""
    task = ClassifierTrainer(tiny(data, procs=2, batch_gpu=8), torch.device("cpu"))
    distributed.broadcast(task.classifier)
    torch.manual_seed(distributed.rank())
    batches = task.batches(0)
    for step in range(3):
        task.train_step(next(batches), step)
    torch.save(task.classifier.state_dict(), folder / f"{distributed.rank()}.pt")


@pytest.mark.slow
def test_two_processes_agree(tmp_path, faces16):
    """In weights, and in the normalizations' statistics, though each has seen other images."""
    launch(train_two, tmp_path, faces16, processes=2)
    a, b = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    assert not torch.equal(a["encoder.features.0.1.running_mean"], torch.zeros(4))


def test_compiled_steps_are_the_same_steps(tmp_path, faces16, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    losses = []
    for compiled in (False, True):
        run = tmp_path / str(compiled)
        run.mkdir()
        torch._dynamo.reset(), torch._dynamo.utils.counters.clear()
        train(ClassifierTrainer, tiny(faces16, kimg=0.064, tick=0.032, compile=compiled), run)
        losses.append([line["loss/cross_entropy"] for line in records(run, "stats")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] >= 1 and not counters["graph_break"], dict(counters["graph_break"])


def test_greyscale_images_are_taken_too(tmp_path):
    write_dataset(tmp_path / "grey.zip", ((image.convert("L"), label) for image, label in faces(64, 16, seed=0)))
    train(ClassifierTrainer, tiny(tmp_path / "grey.zip", kimg=0.064), tmp_path)
    assert load_encoder(tmp_path / "snapshot-000000.064.safetensors").width == 1 / 16


def records(run: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]
