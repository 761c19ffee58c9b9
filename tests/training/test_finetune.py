"""Starting from another run: what fits is taken, by resolution, and frozen layers stay."""

import dataclasses
from pathlib import Path

import pytest
import torch

from models.snapshot import load_generator, save_snapshot
from networks.discriminator import Discriminator
from networks.generator import Generator, GeneratorConfig
from tests.training.test_loop import tiny
from torch_utils.errors import UserError
from training import cli, finetune
from training.finetune import copy_matching_weights, find_initial, freeze, initial_weights, load_initial_weights
from training.gan import GANTrainer
from training.loop import train
from training.optimizer import ramped_half_life
from training.options import configure_gan
from training.runs import find_state, load_state


def networks(faces16, resolution: int, seed: int, **options):
    config = tiny(faces16, **options)
    G, D = (dataclasses.replace(c, resolution=resolution) for c in (config.generator, config.discriminator))
    torch.manual_seed(seed)
    return Generator(G), Discriminator(D)


def test_the_same_resolution_is_taken_whole(faces16):
    (G0, D0), (G1, D1) = networks(faces16, 16, 0), networks(faces16, 16, 1)
    for old, new in ((G0, G1), (D0, D1)):
        assert copy_matching_weights(new, old.state_dict()) == set(new.state_dict())
    z = torch.randn(2, 16)
    assert torch.equal(G0(z, noise="const"), G1(z, noise="const"))
    assert torch.equal(D0(G0(z, noise="const")), D1(G0(z, noise="const")))


def test_blocks_of_half_the_resolution_meet_theirs(faces16):
    (G0, D0), (G1, D1) = networks(faces16, 16, 0), networks(faces16, 32, 1)
    own = G1.synthesis.blocks[3].conv1.weight.clone(), D1.fromrgb.weight.clone(), D1.blocks[0].conv0.weight.clone()
    for old, new in ((G0, G1), (D0, D1)):
        copy_matching_weights(new, old.state_dict())
    for i in range(3):  # 4², 8², 16² from 4² on
        assert torch.equal(G0.synthesis.blocks[i].conv1.weight, G1.synthesis.blocks[i].conv1.weight)
    for i in range(2):  # 16², 8² behind 32²
        assert torch.equal(D0.blocks[i].conv0.weight, D1.blocks[i + 1].conv0.weight)
    assert torch.equal(D0.out.weight, D1.out.weight)
    kept = G1.synthesis.blocks[3].conv1.weight, D1.fromrgb.weight, D1.blocks[0].conv0.weight
    assert all(torch.equal(a, b) for a, b in zip(own, kept, strict=True))


@pytest.mark.parametrize("name", ["blocks.x.weight", "blocks.1", "blocks.", "blocks.-1.conv0.weight", "blocks.٣.a"])
def test_names_that_no_network_has_are_left_alone(faces16, name):
    """As anybody may write them into the file of --init-from."""
    (_, D0), (_, D1) = networks(faces16, 16, 0), networks(faces16, 16, 1)
    strange = {name: torch.zeros(1), f"blocks.{10**30}.conv0.weight": torch.zeros(1)}
    assert copy_matching_weights(D1, D0.state_dict() | strange) == set(D1.state_dict())


@pytest.mark.parametrize("part", [{"x": [torch.zeros(1)]}, {1: torch.zeros(1)}, {"x": {"y": torch.zeros(1)}}])
def test_a_state_whose_weights_are_none_is_damaged(tmp_path, faces16, part):
    train(GANTrainer, tiny(faces16, kimg=0.008), tmp_path)
    path = find_state(tmp_path)
    torch.save(load_state(path) | {"D": part}, path)
    with pytest.raises(UserError, match=r"damaged .* name another with --network"):
        initial_weights(path, "--network")
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="name another with --init-from"):
        initial_weights(path)


def test_other_classes_keep_their_own_embedding(faces16):
    (G0, _), (G1, _) = networks(faces16, 16, 0), networks(faces16, 16, 1, cond=True)
    embed = G1.mapping.embed.weight.clone()
    copy_matching_weights(G1, G0.state_dict())
    assert torch.equal(G1.mapping.embed.weight, embed)
    assert torch.equal(G1.synthesis.const, G0.synthesis.const)


def test_a_run_starts_from_another_and_keeps_frozen_layers(tmp_path, faces16, capsys):
    first, second = tmp_path / "00000-first", tmp_path / "00001-second"
    first.mkdir(), second.mkdir()
    train(GANTrainer, tiny(faces16, kimg=0.04), first)
    train(GANTrainer, tiny(faces16, kimg=0.04, init_from=str(find_initial(tmp_path)), freezed=4), second)
    assert f"starting from {first}/state/state-000000.04.pt" in capsys.readouterr().err
    a, b = (load_state(find_state(run))["D"] for run in (first, second))
    for name in ("fromrgb", "blocks.0.conv0", "blocks.0.conv1", "blocks.0.skip"):
        assert torch.equal(a[f"{name}.weight"], b[f"{name}.weight"]), name
    assert not torch.equal(a["blocks.1.conv0.weight"], b["blocks.1.conv0.weight"])


def test_every_deviation_of_a_converted_network_learns(tmp_path, faces16):
    """200 steps after a generator with modulated convolutions became AdaConv, no kernel is the identity any more."""
    first, second = tmp_path / "00000-modconv", tmp_path / "00001-adaconv"
    first.mkdir(), second.mkdir()
    train(GANTrainer, tiny(faces16, modulation="modconv", cbase=128, kimg=0.02), first)
    config = tiny(faces16, cbase=128, init_from=str(find_initial(tmp_path)))
    train(GANTrainer, dataclasses.replace(config, kimg=200 * config.batch / 1000), second)
    for part in ("G", "G_ema"):
        G = Generator(config.generator)
        G.load_state_dict(load_state(find_state(second))[part])
        for layer in G.synthesis.layers():
            predictor = layer.adaconv.predictor.predictor
            channels, group = predictor.identity.shape
            assert (predictor.depthwise_weight != 0).all() and (predictor.depthwise_bias != 0).all()
            mixing = predictor.pointwise_weight.view(channels, group, -1)[predictor.identity == 0]
            assert (mixing != 0).all()
        assert group == 2  # the last layer's, so that channels mix somewhere


@pytest.mark.parametrize("modulation", ["modconv", "adain", "adaconv"])
def test_a_run_starts_as_the_generator_that_it_is_given(tmp_path, faces16, modulation):
    """Its sizes and its images are those of the other run, whose options need not be given again."""
    first = tmp_path / "first"
    first.mkdir()
    old = tiny(faces16, modulation=modulation, kimg=0.008, style_channels=4, cbase=128)
    train(GANTrainer, old, first)
    for path in (first, *first.glob("snapshot-*.safetensors")):
        new = configure_gan({"cfg": "demo", "data": str(faces16), "procs": 1, "init_from": str(path)})
        assert new.generator.modulation == "adaconv" and new.generator.norm == old.generator.norm
        assert new.generator.predict_bias == (modulation == "adain")
        modules = {name: Generator(new.generator) for name in ("G", "G_ema")} | {"D": Discriminator(new.discriminator)}
        load_initial_weights(modules, Path(new.init_from), 0)
        before = load_generator(next(first.glob("snapshot-*.safetensors")))[0]
        z = torch.randn(4, before.config.z_dim)
        with torch.no_grad():
            images, same = before(z, noise="const"), modules["G_ema"].eval()(z, noise="const")
        assert torch.allclose(same, images, rtol=0, atol=1e-5 * images.abs().max().clamp_min(1).item())
        recorded = new.recorded_options({"cfg": "demo", "data": str(faces16), "procs": 1, "init_from": str(path)})
        assert configure_gan(recorded, resuming=True).generator == new.generator


def test_a_snapshot_has_no_discriminator(tmp_path, faces16):
    G, _ = networks(faces16, 16, 0)
    save_snapshot(tmp_path / "x.safetensors", G, {"kimg": 1})
    new = dict(zip("GD", networks(faces16, 16, 1), strict=True)) | {"G_ema": networks(faces16, 16, 2)[0]}
    line = load_initial_weights(new, tmp_path / "x.safetensors", freezed=0)
    assert "x.safetensors: " in line and "D anew" in line
    assert torch.equal(new["G_ema"].synthesis.const, G.synthesis.const)
    with pytest.raises(UserError, match="no discriminator for --freezed"):
        load_initial_weights(new, tmp_path / "x.safetensors", freezed=2)


def test_what_does_not_fit_is_said(tmp_path, faces16):
    save_snapshot(tmp_path / "x.safetensors", networks(faces16, 16, 0)[0], {"kimg": 1})
    G, D = networks(faces16, 16, 0, modulation="modconv", cmax=8)
    with pytest.raises(
        UserError, match=r"x.safetensors fits \d+ of the generator's \d+ tensors; take the --modulation"
    ):
        load_initial_weights({"G": G, "D": D, "G_ema": G}, tmp_path / "x.safetensors", freezed=0)


def test_layers_that_begin_anew_are_named(tmp_path, faces16):
    """The line names the first layers that took no weights; where all fit, it names none."""
    old = networks(faces16, 16, 0)[0]
    save_snapshot(tmp_path / "x.safetensors", old, {"kimg": 1})
    for resolution, changes, named in [
        (32, {}, "synthesis.blocks.3.conv0, synthesis.blocks.3.conv0.adaconv.predictor.map,"),
        (16, {"modulation": "modconv"}, "synthesis.blocks.0.conv1.adaconv.predictor.scale, "),
        (16, {}, None),
    ]:
        G, D = networks(faces16, resolution, 1, **changes)
        line = load_initial_weights({"G": G, "D": D, "G_ema": G}, tmp_path / "x.safetensors", freezed=0)
        assert f"tensors (new: {named}" in line if named else "new: " not in line
    save_snapshot(tmp_path / "x.safetensors", networks(faces16, 64, 0)[0], {"kimg": 1})
    G, D = networks(faces16, 16, 1)
    line = load_initial_weights({"G": G, "D": D, "G_ema": G}, tmp_path / "x.safetensors", freezed=0)
    assert line.endswith("; it makes larger images, whose last 2 blocks are left out")


def test_freezing_counts_from_the_image(faces16):
    _, D = networks(faces16, 16, 0)
    freeze(D, 6)
    frozen = {name for name, p in D.named_parameters() if not p.requires_grad}
    assert {name.rsplit(".", 1)[0] for name in frozen} == {
        "fromrgb", "blocks.0.conv0", "blocks.0.conv1", "blocks.0.skip", "blocks.1.conv0", "blocks.1.conv1",
    }  # fmt: skip


def test_what_is_frozen_has_learned(tmp_path, faces16):
    """At twice the resolution the first block is new: frozen, it would stay random."""
    train(GANTrainer, tiny(faces16, kimg=0.008), tmp_path)
    state, freezed = find_initial(tmp_path), 2
    modules = dict(zip("GD", networks(faces16, 32, 1), strict=True))
    with pytest.raises(UserError, match=r"--freezed 2 would keep fromrgb, which .* has no weights for"):
        load_initial_weights(modules | {"G_ema": modules["G"]}, state, freezed)
    with pytest.raises(UserError, match="--freezed 11: this discriminator has 10 layers"):
        freeze(modules["D"], 11)


def test_a_path_that_leads_nowhere(tmp_path):
    with pytest.raises(UserError, match=r"there is no .*nope; name a snapshot, a state or a run with --init-from"):
        find_initial(tmp_path / "nope")
    with pytest.raises(UserError, match="holds no run with a state for --init-from"):
        find_initial(tmp_path)


def test_a_state_without_a_generator(tmp_path):
    """Such as that of an encoder's training."""
    values = {"config": {}, "step": 1, "random": [], "averages": {}, "evaluating": False, "classifier": {}}
    torch.save(values, tmp_path / "state-000001.pt")
    with pytest.raises(UserError, match="is of a run that trains no generator"):
        load_initial_weights({}, tmp_path / "state-000001.pt", 0)


def test_the_averaged_weights_stay_averaged(faces16):
    """They are not begun anew, and ada moves faster."""
    config = tiny(faces16, init_from="x", aug="ada")
    assert (config.ema_rampup, config.ada_kimg) == (None, 100)
    assert ramped_half_life(config, 0) == ramped_half_life(config, 100) == config.ema_kimg > 0
    assert (tiny(faces16, aug="ada").ema_rampup, tiny(faces16, aug="ada").ada_kimg) == (0.05, 500)


def test_a_run_keeps_what_no_option_sets_when_defaults_change(tmp_path, faces16):
    """A run that began with another initial deviation, as earlier versions had, goes on with that."""
    own = {"cfg": "demo", "cbase": 256, "cmax": 8, "batch": 8, "workers": 0, "metrics": "none"}
    given = {**own, "data": str(faces16), "procs": 1, "kimg": 0.016, "tick": 0.008}

    def as_before(options, resuming):
        return configure_gan({**options, "depthwise_scale": 0.2, "map_lr": 0.5}, resuming)

    begun = cli.prepare("train.py", as_before, lambda config: GANTrainer, given, False, str(tmp_path), None, False)
    train(GANTrainer, begun.config, begun.run)
    longer = {"kimg": 0.024}
    again = cli.prepare(
        "train.py", configure_gan, lambda config: GANTrainer, longer, False, str(tmp_path), str(begun.run), False
    )
    assert again.config.generator == begun.config.generator
    assert again.config.generator.depthwise_scale == 0.2 != GeneratorConfig().depthwise_scale
    again.record()
    once_more = cli.prepare(  # its record is still one that could have been typed
        "train.py", configure_gan, lambda config: GANTrainer, longer, False, str(tmp_path), str(begun.run), False
    )
    assert once_more.config == again.config


@pytest.mark.parametrize(
    "generator", [5, "x", [], {}, {"modulation": 1}, {"modulation": "other"}, {"modulation": "adaconv", "cbase": "x"}]
)
def test_a_state_whose_generator_is_none_is_damaged(tmp_path, faces16, monkeypatch, generator):
    monkeypatch.setattr(finetune, "load_state", lambda path, option: {"config": {"generator": generator}})
    with pytest.raises(UserError, match=r"x\.pt is damaged \(.*\); name another with --init-from"):
        (tmp_path / "x.pt").write_bytes(b"")
        finetune.initial_fields(tmp_path / "x.pt", "modconv")


@pytest.mark.parametrize(
    "facts, file",
    [
        ({}, None),
        ({"source": None, "init_from": None}, None),
        ({"init_from": "runs/00000-a/state/state-000001.pt"}, None),
        ({"init_from": "generator.safetensors"}, None),
        ({"init_from": "nets/ffhq.pkl"}, "ffhq.pkl"),
        ({"init_from": "550000.pt"}, "550000.pt"),
        ({"init_from": "state-000001.pt", "source": {"file": "ffhq.pkl", "sha256": "0a"}}, "ffhq.pkl"),
        ({"init_from": 5}, None),
    ],
)
def test_where_weights_are_from(facts, file):
    source = finetune.known_source(facts)
    assert (source and source.file) == file
    assert source is None or "source" in facts or source.license


@pytest.mark.parametrize("source", [5, {}, {"file": 5}, {"file": "x", "more": 1}, "x", [1]])
def test_a_state_whose_source_is_none_is_damaged(tmp_path, monkeypatch, source):
    config = {"generator": {"modulation": "adaconv"}, "source": source}
    monkeypatch.setattr(finetune, "load_state", lambda path, option: {"config": config})
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"x\.pt is damaged \(.*\); name another with --init-from"):
        finetune.initial_fields(tmp_path / "x.pt", None)


def test_a_state_of_an_earlier_version_lacks_new_fields(tmp_path, faces16, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    train(GANTrainer, tiny(faces16, kimg=0.008, style_channels=4), run)
    state = load_state(find_state(run))
    del state["config"]["generator"]["kernels_up_to"], state["config"]["generator"]["noise"]
    monkeypatch.setattr(finetune, "load_state", lambda path, option: state)
    fields = finetune.initial_fields(find_state(run), None)
    assert fields["style_channels"] == 4 and not {"kernels_up_to", "noise"} & fields.keys()
