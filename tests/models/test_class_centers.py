"""Truncation towards the mean of the class: tracked means, means of older files, and what reaches the images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import adaconv
from media.images import to_uint8
from models.sampling import MEAN_SAMPLES, class_centers, generate_batches, random_generator
from models.snapshot import load_generator, save_snapshot
from networks.generator import CLASS_MEANS, Generator
from tests.scripts import mistake
from tests.test_generate import pixels, run, snapshot
from tests.training.test_loop import tiny
from torch_utils.tensors import read_metadata
from training.gan import GANTrainer
from training.loop import train
from training.runs import find_state, load_state, save_state


@pytest.fixture
def G(tmp_path) -> Generator:
    """Of three classes, of which the last has no tracked mean."""
    G, _ = load_generator(snapshot(tmp_path / "snapshot.safetensors"))
    G.class_w_avg.copy_(torch.randn(3, 8, generator=torch.Generator().manual_seed(1)))
    G.class_w_count.copy_(torch.tensor([7.0, 500, 0]))
    return G


def sampled_mean(G: Generator, number: int) -> torch.Tensor:
    z = torch.randn(MEAN_SAMPLES, G.config.z_dim, generator=random_generator(0))
    c = torch.nn.functional.one_hot(torch.full([MEAN_SAMPLES], number), 3).float()
    return G.mapping(z, c).mean(dim=0)


def test_centers(G):
    """A tracked mean as it is; one that was not tracked from samples; a mixture has the mean of its classes' means."""
    c = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0.25, 0.5, 0.25]])
    third = sampled_mean(G, 2)
    expected = torch.stack([G.class_w_avg[0], third, G.class_w_avg[0] / 4 + G.class_w_avg[1] / 2 + third / 4])
    assert torch.allclose(class_centers(G, c), expected, atol=1e-6)
    assert G.class_w_count[2] == 0 and G.class_w_avg[2].any()  # nothing of the model has changed


def test_truncation_is_towards_the_center(G):
    z, c = torch.randn(3, 8), torch.eye(3)
    center, w = class_centers(G, c), G.mapping(z, c)
    for psi in (0.0, 0.7, 1.0):
        expected = center + psi * (w - center)
        ws = G.ws(z, c, psi, center)
        assert torch.allclose(ws, expected[:, None].expand_as(ws), atol=1e-6)
        assert torch.allclose(G.truncated(ws, psi, center), center[:, None] + psi * (ws - center[:, None]), atol=1e-6)
    layers = torch.linspace(0, 1, G.config.num_ws)
    ws = G.ws(z, c, layers, center)
    assert torch.allclose(ws[:, 0], center, atol=1e-6) and torch.allclose(ws[:, -1], w, atol=1e-6)


def test_every_command_and_the_library_truncate_alike(G, tmp_path):
    save_snapshot(tmp_path / "a.safetensors", G, {})
    base = ["--network", tmp_path / "a.safetensors", "--trunc", 0, "--trunc-class", "--class", "0,1,2"]
    run("--seeds", "4-6", *base, "--outdir", tmp_path)
    images = [pixels(tmp_path / f"seed000{4 + i}-class{i}.png") for i in range(3)]
    expected = to_uint8(G.synthesis(class_centers(G, torch.eye(3))[:, None].expand(-1, G.config.num_ws, -1), "const"))
    for image, other in zip(images, expected, strict=True):
        assert np.abs(image - other.permute(1, 2, 0).int().numpy()).max() <= 1
    assert min(np.abs(images[i] - images[i - 1]).mean() for i in range(3)) > 3  # each class has its own
    walk = tmp_path / "walk.webp"
    run("video", "--seeds", "4-6", *base, "--seconds", 1, "--fps", 6, "--scale", 1, "--out", walk)
    with Image.open(walk) as frames:
        for i, image in enumerate(images):
            frames.seek(2 * i)
            assert np.abs(np.asarray(frames.convert("RGB")).astype(int) - image).mean() < 12  # it is compressed
    model = adaconv.Generator.from_pretrained(tmp_path / "a.safetensors")
    made = to_uint8(model(model.latents([4, 5, 6]), [0, 1, 2], psi=0.0, trunc_class=True))
    assert (made.int() - expected.int()).abs().max() <= 1
    batches = generate_batches(G, [4, 5, 6], 2, torch.arange(3), 0.0, centers=class_centers(G, torch.eye(3)))
    assert (torch.cat(list(batches)).int() - expected.int()).abs().max() <= 1


def test_where_it_changes_nothing_it_is_refused(tmp_path):
    classes, plain = snapshot(tmp_path / "a.safetensors"), snapshot(tmp_path / "b.safetensors", c_dim=0)
    for words, *arguments in (
        ("add e.g. --trunc 0.7", "--network", classes),
        ("was trained without classes", "--network", plain, "--trunc", 0.5),
    ):
        assert words in mistake("generate.py", "--seeds", 1, "--trunc-class", "--outdir", tmp_path / "o", *arguments)
    with pytest.raises(ValueError, match="trunc_class"):
        model = adaconv.Generator.from_pretrained(plain)
        model(model.latents([1]), trunc_class=True)


def test_files_of_earlier_versions_load(tmp_path):
    """Snapshots without tracked means have them from samples, and states go on; other tensors may not be missing."""
    path = snapshot(tmp_path / "new.safetensors")
    tensors = {name: value for name, value in load_file(path).items() if name not in CLASS_MEANS}
    save_file(tensors, tmp_path / "old.safetensors", metadata=read_metadata(path))
    G, _ = load_generator(tmp_path / "old.safetensors")
    assert not G.class_w_count.any()
    assert torch.allclose(class_centers(G, torch.eye(3))[1], sampled_mean(G, 1), atol=1e-6)


def test_training_tracks_the_mean_of_each_class(tmp_path, faces16):
    """Equal to a loop over classes that follows the definition; a run whose state has no means goes on."""
    config = tiny(faces16, kimg=0.08, cond=True, batch_gpu=4, w_avg_beta=0.9)
    trainer = GANTrainer(config, torch.device("cpu"))
    seen, update = [], trainer.update_w_avg
    trainer.update_w_avg = lambda codes: (seen.append(codes), update(codes))
    mean, count = torch.zeros(6, config.generator.w_dim), torch.zeros(6)
    for reals, _ in zip(trainer.batches(0), range(14), strict=False):
        trainer.generator_step(reals)
        w, c = (torch.cat(parts) for parts in zip(*seen[-1], strict=True))
        for number in range(6):
            of_class = w[c[:, number] == 1]
            if len(of_class):
                count[number] = min(count[number] + 1, 10)
                mean[number] += (of_class.mean(dim=0) - mean[number]) / count[number]
    assert torch.allclose(trainer.G.class_w_avg, mean, atol=1e-5)
    assert torch.equal(trainer.G.class_w_count, count) and count.max() == 10 and count.unique().numel() > 1

    train(GANTrainer, tiny(faces16, kimg=0.08, cond=True), tmp_path)
    path = find_state(tmp_path)
    state = load_state(path)
    for part in ("G", "G_ema"):
        for name in CLASS_MEANS:
            assert state[part].pop(name).any()
    save_state(tmp_path, state, 0.08)
    train(GANTrainer, tiny(faces16, kimg=0.16, cond=True), tmp_path, path)
    assert load_state(find_state(tmp_path))["G_ema"]["class_w_count"].any()


def test_weights_that_diverge_leave_the_means(faces16):
    trainer = GANTrainer(tiny(faces16, cond=True), torch.device("cpu"))
    c = torch.eye(6)[[0, 0, 1]]
    w = torch.ones(3, trainer.G.config.w_dim)
    w[0] = torch.nan
    trainer.update_w_avg([(w, c)])
    assert not trainer.G.class_w_count.any() and not trainer.G.class_w_avg.any() and not trainer.G.w_avg.any()
