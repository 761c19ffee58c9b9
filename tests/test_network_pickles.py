"""A network pickle wherever a model is named: every command, the library, and training from it."""

from __future__ import annotations

import json
import pickle
import re
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import adaconv
import export
import generate
import projector
from media.faces import HAIR_COLORS
from metrics.__main__ import main as metrics
from models.card import model_card
from models.snapshot import load_generator, save_snapshot
from networks.discriminator import Discriminator
from networks.generator import Generator
from tests.models.stylegan2_pickles import (
    Called,
    Named,
    discriminator,
    dumps,
    generator,
    network_pickle,
    small_networks,
)
from tests.scripts import remedy
from torch_utils import cli
from torch_utils.errors import UserError
from training.config import TrainConfig
from training.gan import GANTrainer
from training.loop import train
from training.options import configure_gan
from training.resume import check_resumable, config_of, kept_fields
from training.runs import find_state, load_state


@pytest.fixture(scope="module")
def networks() -> tuple[Generator, Discriminator]:
    G, D = small_networks()
    with torch.no_grad():  # images that use the range, and are not cut to it
        scale = 0.3 / G(torch.randn(16, 8), noise="const").std()
        for block in G.synthesis.blocks:
            block.torgb.weight *= scale
            block.torgb.bias *= scale
    return G, D


@pytest.fixture(scope="module")
def network(networks, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pickles") / "network-snapshot-000400.pkl"
    path.write_bytes(network_pickle(*networks))
    return path


def command(main, *arguments) -> None:
    """Runs a command as a script does, which has to exit with 0."""
    with mock.patch.object(sys, "argv", ["script", *map(str, arguments)]), pytest.raises(SystemExit) as stopped:
        cli.run(main)
    assert not stopped.value.code


def mistake(capsys, main, *arguments) -> str:
    """The one line that a mistake gets, with exit code 2."""
    with mock.patch.object(sys, "argv", ["script", *map(str, arguments)]), pytest.raises(SystemExit) as stopped:
        cli.run(main)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("network:", "note:"))]
    assert stopped.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


# --- commands -------------------------------------------------------------------------------------------------------


def test_images_are_those_of_the_network(networks, network, tmp_path, capsys):
    command(generate.main, "--network", network, "--seeds", "0-2", "--trunc", 0.7, "--outdir", tmp_path)
    assert "network-snapshot-000400.pkl (400 kimg)" in capsys.readouterr().err
    G = adaconv.Generator.from_pretrained(network)
    expected = adaconv.to_uint8(networks[0](G.latents([0, 1, 2]), psi=0.7, noise="const"))
    for seed in range(3):
        assert (pixels(tmp_path / f"seed{seed:04d}.png") == expected[seed].permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize(
    "arguments",
    [
        ["mix", "--rows", "0", "--cols", "1,2", "--outdir", "{out}"],
        ["video", "--seeds", "0,1", "--seconds", "0.2", "--out", "{out}/walk.gif"],
        ["kernels", "--seed", "0", "--outdir", "{out}"],
        ["directions", "--seeds", "0", "--outdir", "{out}"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_of_generate(network, tmp_path, arguments):
    """The same files as of the snapshot that the pickle becomes."""
    G, info = load_generator(network)
    save_snapshot(tmp_path / "ours.safetensors", G, info)
    for path, out in ((network, tmp_path / "a"), (tmp_path / "ours.safetensors", tmp_path / "b")):
        command(generate.main, *(text.format(out=out) for text in arguments), "--network", path)
    images = sorted(path.name for path in (tmp_path / "a").glob("*.[pg][ni][gf]"))
    assert images
    for name in images:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_projector(network, tmp_path):
    command(generate.main, "--network", network, "--seeds", 5, "--outdir", tmp_path)
    out = tmp_path / "codes"
    target = tmp_path / "seed0005.png"
    command(projector.main, "--network", network, "--target", target, "--steps", 20, "--candidates", 8, "--outdir", out)
    (codes,) = out.glob("*.npz")
    command(generate.main, "--network", network, "--w", codes, "--outdir", tmp_path / "again")
    assert list((tmp_path / "again").glob("*.png"))


def test_metrics(network, faces16, tmp_path, capsys):
    arguments = ["--metrics", "swd50", "--data", faces16, "--gpus", 0, "--workers", 0, "--json"]
    command(metrics, "--network", network, *arguments)
    found = json.loads(capsys.readouterr().out)
    assert found["swd50"] > 0 and found["settings"]["kimg"] == 400


@pytest.mark.parametrize("modulation", [None, "adaconv"])
def test_export_makes_it_a_snapshot(networks, network, tmp_path, capsys, modulation):
    options = ["--modulation", modulation] if modulation else []
    command(export.main, "--network", network, "--format", "safetensors", *options, "--outdir", tmp_path)
    assert "keep the licence of whoever published network-snapshot-000400.pkl" in capsys.readouterr().err
    G, info = load_generator(tmp_path / "generator.safetensors")
    assert G.config.modulation == (modulation or "modconv")
    assert info["kimg"] == 400 and info["source"]["file"] == network.name
    z = torch.randn(4, 8)
    assert (G(z, noise="const") - networks[0](z, noise="const")).abs().max() <= 1e-5


def test_export_of_what_cannot_be_converted(network, tmp_path, capsys):
    arguments = ["--format", "safetensors", "--modulation", "adaconv", "--outdir", tmp_path]
    command(export.main, "--network", network, *arguments)
    capsys.readouterr()  # what was exported, and how far it is from the original
    line = mistake(capsys, export.main, "--network", tmp_path / "generator.safetensors", *arguments)
    assert "is an AdaConv generator already; leave out --modulation" in line
    assert "--model" in mistake(capsys, export.main, "--model", network, *arguments)


def test_a_pickle_that_means_harm_gets_one_line_everywhere(tmp_path, faces16, capsys):
    path, canary, image = tmp_path / "x.pkl", tmp_path / "canary", tmp_path / "image.png"
    Image.new("RGB", (16, 16)).save(image)
    path.write_bytes(dumps({"G_ema": Called(Named("os", "system"), (f"touch {canary}",))}))
    for main, arguments in (
        (generate.main, ["--seeds", 0, "--outdir", tmp_path]),
        (projector.main, ["--target", image, "--outdir", tmp_path]),
        (export.main, ["--format", "safetensors", "--outdir", tmp_path]),
        (metrics, ["--metrics", "swd50", "--data", faces16, "--gpus", 0, "--workers", 0]),
    ):
        assert "os system" in mistake(capsys, main, "--network", path, *arguments)
    for use in (adaconv.Generator.from_pretrained, lambda p: configure_gan({"data": faces16, "init_from": p})):
        with pytest.raises(UserError, match="os system"):
            use(path)
    assert not canary.exists()


def test_a_pickle_of_any_protocol_that_is_cut_off_is_called_so(network, tmp_path, capsys):
    """In text, where a name ends with its line: pickles of protocol 2 have most names so."""
    path, whole = tmp_path / "ffhq.pkl", pickle.dumps([OrderedDict(a=1), 1.5, "b" * 300], protocol=2)
    for size in range(2, len(whole)):
        path.write_bytes(whole[:size])
        line = mistake(capsys, generate.main, "--network", path, "--seeds", 0, "--outdir", tmp_path)
        assert "it is cut off; download it again" in line, (size, line)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"<!DOCTYPE html><html>Not found</html>", "it is text, not a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git lfs pull"),
        (b"", "it is empty"),
        (b"PK\3\4 and so on", "it is a ZIP, not a pickle"),
        (None, "it is cut off; download it again"),
    ],
)
def test_a_download_that_went_wrong_is_called_so(network, tmp_path, capsys, content, said):
    path, whole = tmp_path / "ffhq.pkl", network.read_bytes()
    for size in [1, 100, len(whole) // 2, len(whole) - 1] if content is None else [None]:
        path.write_bytes(whole[:size] if content is None else content)
        line = mistake(capsys, generate.main, "--network", path, "--seeds", 0, "--outdir", tmp_path)
        assert said in line, (size, line)


# --- the library ----------------------------------------------------------------------------------------------------


def test_the_library(networks, network, tmp_path):
    G = adaconv.Generator.from_pretrained(network)
    assert type(G) is adaconv.Generator and G.info["source"]["file"] == network.name
    G.save_pretrained(tmp_path)
    again = adaconv.Generator.from_pretrained(tmp_path)
    z = torch.randn(2, 8)
    assert torch.equal(again(z), networks[0](z, noise="const"))
    card = (tmp_path / "README.md").read_text()
    assert re.search('license: "?other', card) and G.info["source"]["sha256"] in card
    with pytest.raises(UserError, match=r"there is no .*nope.pkl; "):
        adaconv.Generator.from_pretrained("nope.pkl")


# --- training -------------------------------------------------------------------------------------------------------

TRAINING = {"cfg": "demo", "batch": 8, "workers": 0, "procs": 1, "gpus": 0, "metrics": "none", "kimg": 0.016}


def trainer(network, data, **options) -> GANTrainer:
    return GANTrainer(
        configure_gan({**TRAINING, "data": str(data), "init_from": network, **options}), torch.device("cpu")
    )


@pytest.mark.parametrize("modulation", ["adaconv", "modconv"])
def test_training_starts_with_the_images_of_the_pickle(networks, network, faces16, capsys, modulation):
    G, D = networks
    started = trainer(network, faces16, modulation=modulation)
    assert started.config.generator.modulation == modulation
    assert (started.config.generator.cbase, started.config.generator.z_dim) == (G.config.cbase, G.config.z_dim)
    line = capsys.readouterr().err
    assert f"starting from {network}" in line and ("became AdaConv layers" in line) == (modulation == "adaconv")
    z = torch.randn(4, 8)
    image = G(z, noise="const")
    for module in (started.G_ema, started.G):
        assert (module(z, noise="const") - image).abs().max() <= 1e-5
    assert torch.equal(started.D(image, None), D(image))
    assert all(p.requires_grad for p in [*started.G.parameters(), *started.D.parameters()])


def test_a_modconv_run_goes_on_as_an_adaconv_run(networks, faces16, tmp_path):
    save_snapshot(tmp_path / "x.safetensors", networks[0], {"kimg": 1})
    sizes = {"cbase": 64, "cmax": 16, "map_depth": 2, "z_dim": 8, "w_dim": 8, "noise": True}
    started = trainer(tmp_path / "x.safetensors", faces16, modulation="adaconv", **sizes)
    z = torch.randn(4, 8)
    for module in (started.G, started.G_ema):
        assert (module(z, noise="const") - networks[0](z, noise="const")).abs().max() <= 1e-5
    own, averaged = started.G.state_dict(), started.G_ema.state_dict()
    assert all(torch.equal(own[name], averaged[name]) for name in own)


def test_a_run_from_a_pickle_moves_all_and_goes_on_without_it(networks, faces16, tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(network_pickle(*networks))
    options = {**TRAINING, "data": str(faces16), "init_from": str(path)}
    config = configure_gan(options)
    train(GANTrainer, config, tmp_path)
    before = trainer(path, faces16).G.state_dict()
    state = load_state(find_state(tmp_path))
    trained = [name for name in before if name.startswith("synthesis") and "noise_const" not in name]
    assert all(not torch.equal(state["G"][name], before[name]) for name in trained)
    path.unlink()
    assert resumed(config, config.recorded_options(options), tmp_path) == config


def resumed(config: TrainConfig, options: dict, run: Path) -> TrainConfig:
    """The configuration with which train.py goes on from a run's state, which was trained with this one."""
    old = config_of(load_state(find_state(run)), run, "train.py")
    assert old == config
    again = configure_gan({**kept_fields(old, options), **options}, resuming=True)
    check_resumable(old, run, again)
    return again


@pytest.mark.parametrize("way", ["a pickle", "an exported file", "a run", "a run of an earlier version"])
def test_where_weights_are_from_stays_known(network, faces16, tmp_path, way):
    """In all that is trained with them, also by a run that was resumed: and so the licence on its card."""
    source, first, second = load_generator(network)[1]["source"], tmp_path / "00000-a", tmp_path / "00001-b"
    start = network
    if way == "an exported file":
        command(export.main, "--network", network, "--format", "safetensors", "--outdir", tmp_path)
        start = tmp_path / "generator.safetensors"
    elif way != "a pickle":
        first.mkdir()
        train(GANTrainer, configure_gan({**TRAINING, "data": str(faces16), "init_from": str(network)}), first)
        start = find_state(first)
        if way == "a run of an earlier version":
            state = load_state(start)
            del state["config"]["source"]
            torch.save(state, start)
            source = {"file": source["file"], "license": source["license"]}
    second.mkdir()
    options = {**TRAINING, "data": str(faces16), "init_from": str(start)}
    config = configure_gan(options)
    train(GANTrainer, config, second)
    again = resumed(config, {**config.recorded_options(options), "kimg": 0.024}, second)
    train(GANTrainer, again, second, find_state(second))
    snapshots = sorted(second.glob("snapshot-*.safetensors"))
    assert len(snapshots) == 2
    for snapshot in snapshots:
        G, info = load_generator(snapshot)
        assert info["source"] == source and info["init_from"] == start.name
        card = model_card(G, info, snapshot.name)
        assert '\nlicense: "other"\n' in card and "come from a file of somebody else" in card
        assert source["file"] in card and source.get("sha256", "") in card


def test_a_run_of_an_earlier_version_goes_on_without_a_source(network, faces16, tmp_path):
    options = {**TRAINING, "data": str(faces16), "init_from": str(network)}
    config = configure_gan(options)
    train(GANTrainer, config, tmp_path)
    state = load_state(find_state(tmp_path))
    del state["config"]["source"]
    torch.save(state, find_state(tmp_path))
    config = replace(config, source=None)
    assert resumed(config, config.recorded_options(options), tmp_path) == config


@pytest.mark.parametrize("c_dim", [0, len(HAIR_COLORS)])
def test_training_starts_from_networks_that_were_converted_from_tensorflow(faces16, tmp_path, capsys, c_dim):
    """All weights of D are taken; of one with classes, the layers behind their embedding are new."""
    G, D = small_networks(c_dim)
    D = Discriminator(replace(D.config, map_depth=0 if c_dim else D.config.map_depth))
    network = tmp_path / "x.pkl"
    network.write_bytes(dumps({"G_ema": generator(G), "D": discriminator(D, group=None)}))
    started = trainer(network, faces16, cond=bool(c_dim), modulation="modconv")
    own, wanted = started.D.state_dict(), D.state_dict()
    assert c_dim in (0, started.config.generator.c_dim) and started.config.discriminator.mbstd_group > 0
    taken = [name for name in own if name in wanted and own[name].shape == wanted[name].shape]
    assert all(torch.equal(own[name], wanted[name]) for name in taken)
    assert set(own) - set(taken) == {name for name in own if name.startswith("mapping.layers")}
    assert f"{len(taken)} of D's {len(own)} tensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ({"architecture": "orig"}, "orig architecture"),
        ({"architecture": "skip"}, "skip architecture"),
        ({"group": "all"}, "mbstd_group_size is no whole number"),
        ({"img_resolution": 20}, "20 × 20"),
        ({"c_dim": None}, "c_dim is no whole number"),
        ({"_init_kwargs": None}, "damaged, or of another layout"),
    ],
    ids=str,
)
def test_a_discriminator_that_cannot_be_read(networks, faces16, tmp_path, written, named):
    """The line says what can be done, and that works."""
    G, D = networks
    network = tmp_path / "the network.pkl"
    network.write_bytes(dumps({"D": discriminator(D, **written), "G_ema": generator(G)}))
    with pytest.raises(
        UserError, match=rf"its discriminator cannot be read \(.*{named}.*the generator alone: "
    ) as error:
        trainer(network, faces16)
    _, *arguments = remedy(error.value.message)
    command(export.main, *arguments, "--outdir", tmp_path)
    sizes = {"cbase": 64, "cmax": 16, "map_depth": 2, "z_dim": 8, "w_dim": 8, "noise": True}
    started, z = trainer(tmp_path / "generator.safetensors", faces16, **sizes), torch.randn(2, 8)
    assert (started.G(z, noise="const") - G(z, noise="const")).abs().max() <= 1e-5
