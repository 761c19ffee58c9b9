"""The stylizer's losses are their formulas; training overfits a pair, and a resumed run is the run without a stop."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from media.faces import faces
from media.images import to_float
from models.encoder import save_encoder
from models.snapshot import load_stylizer, save_stylizer
from networks.stylizer import StylizerConfig, channel_statistics
from networks.vgg import VGG19
from tests.scripts import done, mistake, script_here
from tests.training.test_loop import assert_same
from torch_utils.errors import UserError
from torch_utils.precision import autocast
from training.config import StylizerTrainConfig
from training.loop import train
from training.runs import find_state, load_state
from training.stylizer import (
    StylizerTrainer,
    content_loss,
    covariance_loss,
    covariances,
    every_fourth,
    style_loss,
    stylize_and_measure,
    total_variation,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> dict[str, str]:
    """A few drawn faces as contents, patterns as styles, and an encoder of random weights."""
    folder = tmp_path_factory.mktemp("material")
    for name in ("contents", "styles"):
        (folder / name).mkdir()
    for i, (image, _) in enumerate(faces(4, 64, seed=0)):
        image.resize((80, 70)).save(folder / "contents" / f"{i}.png")
    generator = torch.Generator().manual_seed(0)
    for i in range(3):  # stripes and noise of a few colours
        pattern = torch.rand(1, 3, 9, 2 + 5 * i, generator=generator)
        pattern = torch.nn.functional.interpolate(pattern, (140, 150))[0].permute(1, 2, 0)
        Image.fromarray((pattern * 255).byte().numpy()).save(folder / "styles" / f"{i}.jpg")
    torch.manual_seed(0)
    encoder = VGG19(1 / 8)
    for layer in encoder.features:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            torch.nn.init.zeros_(layer.bias)
    save_encoder(folder / "encoder.safetensors", encoder, {})
    return {
        "data": str(folder / "contents"),
        "style": str(folder / "styles"),
        "encoder_weights": str(folder / "encoder.safetensors"),
    }


def test_a_run_of_the_script_is_resumed(material, tmp_path):
    """As it is typed: all recorded options are such as the script has."""
    data = ["--content", material["data"], "--style", material["style"]]
    small = ["--size", 32, "--style-size", 64, "--style-channels", 8, "--batch", 1, "--gpus", 0, "--workers", 0]
    encoder = ["--encoder-weights", material["encoder_weights"]]
    done(script_here("train_stylizer.py", *data, *small, *encoder, "--kimg", 0.002, "--outdir", tmp_path / "runs"))
    (run,) = (tmp_path / "runs").iterdir()
    done(script_here("train_stylizer.py", "--resume", run, "--kimg", 0.003))
    assert (run / "snapshot-000000.003.safetensors").exists()
    (tmp_path / "moved").mkdir()
    moved = Path(shutil.copytree(material["data"], tmp_path / "moved" / "contents"))
    done(script_here("train_stylizer.py", "--resume", run, "--kimg", 0.004, "--content", moved))
    change = json.loads((run / "options.json").read_text()) | {"content": ["a"]}
    (run / "options.json").write_text(json.dumps(change))
    assert "options.json is damaged (data: expected" in mistake("train_stylizer.py", "--resume", run, "--kimg", 1)
    both = ["--init-from", run / "snapshot-000000.003.safetensors", *encoder]
    assert "--encoder-weights would not be used" in mistake("train_stylizer.py", *data, *both, "--gpus", 0)


def tiny(material, modulation="adaconv", **options) -> StylizerTrainConfig:
    stylizer = StylizerConfig(width=1 / 8, style_size=64, style_channels=128, modulation=modulation)
    own = {"size": 32, "batch": 4, "batch_gpu": 4, "workers": 0, "lr": 1e-3, "tick": 0.016, "snap": 2, "kimg": 0.064}
    return StylizerTrainConfig(**{**material, **own, **options}, stylizer=stylizer)


def test_the_losses_are_their_formulas():
    torch.manual_seed(0)
    taps, others = ([torch.randn(2, 3 + i, 5, 4) * (i + 1) for i in range(4)] for _ in range(2))
    expected = 0.0
    for a, b in zip(taps, others, strict=True):
        for n in range(2):
            for c in range(a.shape[1]):
                x, y = a[n, c].double(), b[n, c].double()
                std = [float((t.var(correction=0) + 1e-5).sqrt()) for t in (x, y)]
                expected += (float(x.mean() - y.mean()) ** 2 + (std[0] - std[1]) ** 2) / (2 * a.shape[1])
    assert float(style_loss(taps, [channel_statistics(t) for t in others])) == pytest.approx(expected, rel=1e-4)
    assert float(style_loss(taps, [channel_statistics(t) for t in taps])) == 0
    assert float(content_loss(taps[0], others[0])) == pytest.approx(float((taps[0] - others[0]).pow(2).mean()))
    louder = 3 * taps[0] + 5  # the same, but for means and deviations
    assert float(content_loss(louder, taps[0], normalize=True)) == pytest.approx(0, abs=1e-5)
    n, c = (t.flatten(2).double().numpy() for t in (taps[0], others[0]))
    n, c = ((t - t.mean(2, keepdims=True)) / np.sqrt(t.var(2, keepdims=True) + 1e-5) for t in (n, c))
    assert float(content_loss(taps[0], others[0], normalize=True)) == pytest.approx(((n - c) ** 2).mean(), rel=1e-4)
    ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 3, 5, 4)
    assert float(total_variation(ramp)) == 1.0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_covariance_loss_is_its_formula(precision):
    """NumPy's covariances, also where matrix products are in half precision; it sees what the style loss does not."""
    torch.manual_seed(0)
    taps, others = ([torch.randn(2, 3 + i, 5, 4) * (i + 1) for i in range(4)] for _ in range(2))
    expected = 0.0
    for a, b in zip(taps, others, strict=True):
        for n in range(2):
            x, y = (np.cov(t[n].flatten(1).double().numpy(), bias=True) for t in (a, b))
            expected += ((x - y) ** 2).sum() / (np.trace(y) + 1e-5) / 2
    with autocast(CPU, precision):
        loss = covariance_loss(taps, [covariances(t) for t in others])
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    channel = torch.randn(1, 1, 8, 8)
    channel -= channel.mean()
    same, opposite = torch.cat([channel, channel], 1), torch.cat([channel, -channel], 1)
    assert float(style_loss([same], [channel_statistics(opposite)])) < 1e-6
    assert float(covariance_loss([same], [covariances(opposite)])) > 1


@pytest.mark.parametrize("modulation", ["adaconv", "adain"])
def test_it_overfits_a_pair(material, modulation):
    """In a hundred steps the content loss of one face in the colours of another falls to a fifth, the style's more."""
    torch.manual_seed(1)
    task = StylizerTrainer(tiny(material, modulation, style_weight=1.0), CPU)
    pair = [to_float(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]) for image, _ in faces(2, 64, seed=0)]
    before = losses_of(task, *pair)
    for _ in range(100):
        task.train_step([pair], 0)
    after = losses_of(task, *pair)
    assert after["style"] < before["style"] / 20, (before, after)
    assert after["content"] < before["content"] / 5, (before, after)


@torch.no_grad()
def losses_of(task: StylizerTrainer, contents: torch.Tensor, styles: torch.Tensor) -> dict[str, float]:
    return {name: float(loss) for name, loss in stylize_and_measure(task.model, contents, styles)[1].items()}


@pytest.mark.parametrize("batch_gpu", [1, 2, 4])
def test_the_identity_loss_is_a_quarters_however_the_batch_is_split(material, batch_gpu):
    """Of 8 contents the first and the fifth, whatever the parts."""
    alone = {"content_weight": 0.0, "style_weight": 0.0, "identity_weight": 1.0}
    task = StylizerTrainer(tiny(material, batch=8, batch_gpu=batch_gpu, **alone), CPU)
    pairs = next(task.batches(0))
    contents = torch.cat([contents for contents, _ in pairs])
    with torch.no_grad():
        chosen = contents[[0, 4]]
        same = task.model(chosen, task.model.kernels(chosen))
        expected = float((same - chosen).square().mean())
        losses = [float(task.loss(*pair, part)) for part, pair in enumerate(pairs)]
    assert sum(losses) / len(losses) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch, parts", [(1, 1), (2, 2), (3, 1), (5, 5), (6, 3), (6, 2), (8, 2)])
def test_what_is_of_every_fourth_content_is_a_mean_over_all_of_these(material, batch, parts):
    """Of a batch of any size: weighted as its losses are, each microbatch's part adds up to one mean."""
    task = StylizerTrainer(tiny(material, batch=batch, batch_gpu=batch // parts), CPU)
    microbatches = torch.arange(batch).chunk(parts)
    chosen = [contents[every_fourth(i, len(contents))] for i, contents in enumerate(microbatches)]
    weights = [task.weight_of(some, all_) / parts for some, all_ in zip(chosen, microbatches, strict=True)]
    assert sum(weights) == pytest.approx(1)
    assert weights == pytest.approx([len(some) / len(torch.cat(chosen)) for some in chosen])


@pytest.mark.parametrize("contrast", [1.0, 0.1])
@pytest.mark.parametrize("pattern, expected", [(8, 2 / (1 + 1 / 12)), (1, 0.0)])
def test_the_equivariance_loss_is_what_keeps_to_the_encoders_grid(material, pattern, expected, contrast):
    """Of a stylizer that adds the same noise of unit variance to each cell, and of one that changes pixels alone.

    As a part of the variance, so that less contrast does not lower it.
    """
    cell = torch.randn(3, pattern, pattern, generator=torch.Generator().manual_seed(0))
    cell = (cell - cell.mean()) / cell.std() if pattern > 1 else cell

    class AddsPattern:
        def kernels(self, styles):
            return None

        def __call__(self, contents, kernels):
            return contrast * (contents + cell.repeat(1, *(side // pattern for side in contents.shape[2:])))

    task = StylizerTrainer(tiny(material, size=128), CPU)
    task.model = model = AddsPattern()
    contents = torch.rand(8, 3, 128, 128)
    torch.manual_seed(0)
    losses = [float(task.equivariance_loss(contents, contents, model(contents, None), 0)) for _ in range(20)]
    assert sum(losses) / len(losses) == pytest.approx(expected, rel=0.2, abs=1e-6)
    assert float(task.equivariance_loss(contents[:1], contents[:1], contents[:1], 1)) == 0  # none of this microbatch


def test_every_weight_learns_but_the_encoders(material):
    task = StylizerTrainer(
        tiny(material, identity_weight=1.0, tv_weight=0.1, covariance_weight=1.0, equivariance_weight=1.0), CPU
    )
    before = {name: p.clone() for name, p in task.model.named_parameters()}
    task.train_step(next(task.batches(0)), 0)
    for name, p in task.model.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith("encoder."), name


def test_what_is_left_out_is_noted(material, tmp_path, capsys):
    folder = Path(shutil.copytree(material["style"], tmp_path / "styles"))
    (folder / "phone.heic").touch()
    StylizerTrainer(tiny({**material, "style": str(folder)}), CPU)
    assert capsys.readouterr().err.startswith("note: left out images of formats that are not read; save them as JPEG")


def test_images_that_cannot_be_used_are_named_once(material, tmp_path, capsys):
    folder = Path(shutil.copytree(material["style"], tmp_path / "styles"))
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no image")
    task = StylizerTrainer(tiny({**material, "style": str(folder)}), CPU)
    batches = task.batches(0)
    for _ in range(8):
        next(batches)
    assert task.statistics() == task.statistics() == {"unusable": 2}
    assert capsys.readouterr().err == (
        f"note: 2 images of {folder} cannot be used, and others take their place: empty.png is empty, "
        "text.png is not an image, or in an unknown format\n"
    )


def test_only_styles_are_drawn_at_several_scales(material):
    plain, scaled = (StylizerTrainer(tiny(material, style_scales=scales), CPU) for scales in (1.0, 2.0))
    (a, b), (c, d) = (next(task.batches(0))[0] for task in (plain, scaled))
    assert torch.equal(a, c) and b.shape == d.shape and not torch.equal(b, d)


def test_crops_are_cut_from_images_of_the_size_asked_for(tmp_path, material):
    """The contents' crops are 32², the styles' 64²: of a square of 64² that is the whole, whatever the position."""
    Image.effect_noise((90, 90), 50).convert("RGB").save(tmp_path / "style.png")
    material = {**material, "style": str(tmp_path)}
    resized, default = StylizerTrainer(tiny(material, resize=64), CPU), StylizerTrainer(tiny(material), CPU)
    assert torch.equal(resized.contents[0, 1], default.contents[0, 1])  # twice 32 is 64
    assert torch.equal(resized.styles[0, 0], resized.styles[5, 0])
    assert not torch.equal(default.styles[0, 0], default.styles[5, 0])


def test_resize_holds_for_the_sheets_and_for_what_init_from_reads(tmp_path, material, stylizer):
    """Images of 10 pixels are enough for 64, but not for twice the styles' size; and others are cut as in training."""
    small = tmp_path / "small"
    small.mkdir()
    for i in range(4):
        Image.effect_noise((10, 10), 50).convert("RGB").save(small / f"{i}.png")
    save_stylizer(tmp_path / "larger.safetensors", stylizer, {})
    config = tiny({**material, "style": str(small)}, resize=64, init_from=str(tmp_path / "larger.safetensors"))
    config.stylizer = replace(stylizer.config, style_channels=64)
    contents, styles = StylizerTrainer(config, CPU).shown
    assert contents.shape[2:] == (32, 32) and styles.shape[2:] == (64, 64)
    (tmp_path / "one").mkdir()
    Image.effect_noise((90, 90), 50).convert("RGB").save(tmp_path / "one" / "style.png")
    task = StylizerTrainer(tiny({**material, "style": str(tmp_path / "one")}, resize=64), CPU)
    assert torch.equal(task.shown[1][0], task.styles[0, 0])  # the whole image, as it is for training


@pytest.mark.parametrize(
    "options", [{}, {"precision": "bf16", "identity_weight": 1.0, "equivariance_weight": 1.0, "batch_gpu": 2}]
)
def test_a_resumed_run_equals_one_without_a_stop(tmp_path, material, options):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    straight.mkdir(), stopped.mkdir()
    train(StylizerTrainer, tiny(material, **options), straight)
    train(StylizerTrainer, tiny(material, **options, kimg=0.032), stopped)
    train(StylizerTrainer, tiny(material, **options), stopped, find_state(stopped))
    assert_same(*(load_state(find_state(run)) for run in (straight, stopped)))
    metrics = [[json.loads(line) for line in (run / "metrics.jsonl").open()] for run in (straight, stopped)]
    assert metrics[0] == metrics[1] and [line["kimg"] for line in metrics[0]] == [0, 0.032, 0.064]
    for name in ("styled000000.064.png", "snapshot-000000.064.safetensors"):
        assert (straight / name).read_bytes() == (stopped / name).read_bytes()
    with Image.open(straight / "styled000000.064.png") as sheet:
        assert sheet.size == (5 * 32, 5 * 32)


def test_the_snapshot_is_the_averaged_model_and_trains_on(tmp_path, material):
    train(StylizerTrainer, tiny(material, kimg=0.016), tmp_path)
    snapshot = tmp_path / "snapshot-000000.016.safetensors"
    model, info = load_stylizer(snapshot)
    state = load_state(find_state(tmp_path))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state["average"][name].half().float()), name
    assert info == {"kimg": 0.016, "contents": "contents", "styles": "styles"}
    again = StylizerTrainer(tiny(material, init_from=str(snapshot)), CPU)
    assert all(torch.equal(p, model.state_dict()[name]) for name, p in again.model.state_dict().items())
    with pytest.raises(UserError, match="has other layers"):
        StylizerTrainer(tiny(material, "adain", init_from=str(snapshot)), CPU)


def test_it_starts_from_a_larger_one(tmp_path, material):
    """With the main style channels of three styles, most of what these say to the kernels is still there."""
    train(StylizerTrainer, tiny(material, kimg=0.016), tmp_path)
    snapshot = tmp_path / "snapshot-000000.016.safetensors"
    config = tiny(material, init_from=str(snapshot))
    config.stylizer.style_channels = 64
    larger, smaller = load_stylizer(snapshot)[0], StylizerTrainer(config, CPU).model
    assert (larger.config.map_channels, smaller.config.map_channels) == (16, 8)
    style = to_float(StylizerTrainer(config, CPU).styles[0, 0][None])
    for before, after in zip(larger.kernels(style), smaller.kernels(style), strict=True):
        error = (before.pointwise - after.pointwise).norm() / (before.pointwise - before.pointwise.mean()).norm()
        assert error < 0.1


def test_predictors_learn_as_fast_as_layers(tmp_path, material):
    """The relative change by a step of Adam: weights of unit variance have so much larger a learning rate.

    At half the width of VGG-19: He's weights are larger in narrower layers, and what they learn is then less of them.
    """
    save_encoder(tmp_path / "encoder.safetensors", VGG19(1 / 2), {})
    config = tiny(material, encoder_weights=str(tmp_path / "encoder.safetensors"), batch=2, batch_gpu=2)
    config.stylizer = StylizerConfig(width=1 / 2, style_size=64)
    task = StylizerTrainer(config, CPU)
    before = {name: p.clone() for name, p in task.model.named_parameters()}
    task.train_step(next(task.batches(0)), 0)
    changes = {}
    for name, p in task.model.named_parameters():
        if name.endswith("weight") and not name.startswith("encoder."):
            changes[name] = ((p - before[name]).norm() / before[name].norm()).item()
    predictors = [change for name, change in changes.items() if ".predictor." in name]
    layers = [change for name, change in changes.items() if ".predictor." not in name]
    assert 0.2 < (sum(predictors) / len(predictors)) / (sum(layers) / len(layers)) < 5


def test_microbatches_are_counted_over_all_processes(material, monkeypatch):
    """The identity loss takes every fourth content of the whole batch, so a process has to know which ones it has."""
    task, numbers = StylizerTrainer(tiny(material, batch=4, batch_gpu=2), CPU), []
    pairs = next(task.batches(0))
    monkeypatch.setattr("torch_utils.distributed.rank", lambda: 3)

    def noted(contents, styles, number):
        numbers.append(number)
        return next(task.model.decoder.parameters()).sum() * 0

    task.loss = noted
    task.train_step(pairs, 0)
    assert task.microbatches == 2 and numbers == [6, 7]
