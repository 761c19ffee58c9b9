"""Checkpoints of rosinality's stylegan2-pytorch: the networks are those of their equations, and no file does harm."""

from __future__ import annotations

import os
import re
import struct
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from adaconv import Generator as Library
from models.foreign import has_foreign_name, is_foreign, load_foreign
from models.snapshot import load_generator
from models.stylegan2_pytorch import is_checkpoint, load_checkpoint
from tests.models.stylegan2_pytorch import BLUR, checkpoint, discriminate, generate, map_latent, optimizer
from tests.scripts import TINY, done, mistake, script
from torch_utils.errors import UserError
from training.runs import load_state


def saved(path: Path, content: object, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before PyTorch 1.6"])
@pytest.mark.parametrize(
    "sizes",
    [{}, {"resolution": 16, "most": 7, "last": 7, "depth": 1}, {"resolution": 64, "most": 16, "last": 4}],
    ids=["32", "16, all layers alike", "64"],
)
def test_the_networks_are_those_of_the_equations(tmp_path, sizes, legacy):
    mean = torch.randn(8)
    content = checkpoint(**sizes, latent_avg=mean)
    if legacy:
        content["g_optim"] = optimizer(content["g"], first=140_000_000_000_000)
    path = saved(tmp_path / "550000.pt", content, legacy)
    networks, info = load_foreign(path)
    assert info["source"]["kind"] == "stylegan2-pytorch" and info["source"]["file"] == "550000.pt"
    z = torch.randn(3, 8)
    for name, key in (("G_ema", "g_ema"), ("G", "g")):
        expected = torch.stack([generate(content[key], one, mean, 0.7) for one in z])
        found = networks[name](z, None, psi=0.7, noise="const")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    side = sizes.get("resolution", 32)
    images = torch.randn(4, 3, side, 1) + torch.randn(4, 3, side, side)
    expected = discriminate(content["d"], images)
    torch.testing.assert_close(networks["D"](images, None).flatten(), expected, rtol=1e-4, atol=1e-4)
    assert not any(p.requires_grad for network in networks.values() for p in network.parameters())


def test_large_activations_are_not_clamped(tmp_path):
    content = checkpoint(latent_avg=torch.zeros(8))
    content["g_ema"]["conv1.activate.bias"] += 1000
    content["d"]["convs.0.1.bias"] += 1000
    networks, _ = load_foreign(saved(tmp_path / "550000.pt", content))
    z, images = torch.randn(8), torch.randn(4, 3, 32, 32)
    expected = generate(content["g_ema"], z, torch.zeros(8), 1.0)[None]
    found = networks["G_ema"](z[None], None, noise="const")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    expected = discriminate(content["d"], images)
    torch.testing.assert_close(networks["D"](images, None).flatten(), expected, rtol=1e-3, atol=1e-3)


def test_a_mean_of_w_that_is_missing_is_computed(tmp_path):
    content = checkpoint()
    G, _ = load_generator(saved(tmp_path / "x.pt", content))
    ws = torch.stack([map_latent(content["g_ema"], z) for z in torch.randn(2000, 8)])
    assert G.w_avg == pytest.approx(ws.mean(dim=0), abs=5 * float(ws.std(dim=0).max()) / 2000**0.5)
    again, _ = load_generator(tmp_path / "x.pt")
    assert torch.equal(G.w_avg, again.w_avg)


def test_a_checkpoint_of_the_averaged_generator_alone(tmp_path):
    """As the converter writes them, and everybody hands them on."""
    content = {"g_ema": OrderedDict(checkpoint()["g_ema"]), "latent_avg": torch.randn(1, 8)}
    path = saved(tmp_path / "ffhq.pt", content)
    networks, _ = load_checkpoint(path)
    assert set(networks) == {"G_ema"}
    assert torch.equal(networks["G_ema"].w_avg, content["latent_avg"][0])
    assert Library.from_pretrained(path).w_avg.shape == (8,)
    with pytest.raises(UserError, match="d is missing"):
        load_checkpoint(path, ["D"])


def test_what_other_programs_leave_out_or_write_in_double_precision(tmp_path):
    content = checkpoint(latent_avg=torch.randn(8).double())
    noises = [name for name in content["g_ema"] if name.startswith("noises.")]
    G = load_checkpoint(saved(tmp_path / "x.pt", content))[0]["G_ema"]
    content["g_ema"] = {name: t.double() for name, t in content["g_ema"].items() if name not in noises}
    path = saved(tmp_path / "x.pt", content)
    found, again = (load_checkpoint(path)[0]["G_ema"] for _ in range(2))
    weights, others = G.state_dict(), found.state_dict()
    other = [name for name in weights if not torch.equal(weights[name], others[name])]
    assert len(other) == len(noises) and all(name.endswith("noise_const") for name in other)
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in others.items())


def test_which_files_are_checkpoints(tmp_path):
    state = {"G": {}, "G_ema": {}, "D": {}, "config": {}}
    assert not is_checkpoint(saved(tmp_path / "state.pt", state))
    assert not is_checkpoint(saved(tmp_path / "snapshot.safetensors", checkpoint()))
    assert not is_checkpoint(tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    assert not is_foreign(tmp_path / "text.pt")
    assert is_foreign(saved(tmp_path / "x.pth", checkpoint()))


def changed(network: str, name: str, tensor: torch.Tensor | None) -> dict:
    content = checkpoint()
    if tensor is None:
        del content[network][name]
    else:
        content[network][name] = tensor
    return content


@pytest.mark.parametrize(
    "content, words",
    [
        (changed("g_ema", "style.1.weight", None), "'style.1.weight' is missing"),
        (
            changed("g_ema", "noises.noise_1", torch.randn(1, 1, 9, 9)),
            "noise_const' is missing, unexpected or of another",
        ),
        (changed("g_ema", "conv1.noise.weight", None), "noise_strength' is missing, unexpected or of another shape"),
        (changed("g_ema", "convs.3.conv.weight", torch.randn(1, 5, 6, 3, 3)), "of another shape"),
        (changed("g_ema", "convs.0.conv.blur.kernel", torch.ones(4, 4)), r"a filter .* other than \[1, 3, 3, 1\]"),
        (changed("g_ema", "convs.0.conv.blur.kernel", BLUR), r"a filter .* other than \[1, 3, 3, 1\]"),
        (changed("d", "convs.1.skip.0.kernel", 4 * BLUR), r"a filter .* other than \[1, 3, 3, 1\]"),
        (changed("g_ema", "more.weight", torch.ones(3)), "'more.weight' is unexpected"),
        (changed("g_ema", "conv1.activate.bias", torch.full([12], torch.nan)), "not finite"),
        (changed("g_ema", "to_rgbs.9999.bias", torch.ones(3)), "'convs.7.conv.weight' is missing"),
        (changed("g_ema", "input.input", torch.ones(1, 12, 4, 4).long()), "of the type int64"),
        (changed("d", "final_conv.0.weight", torch.randn(12, 12, 3, 3)), "of another shape"),
        (changed("d", "convs.7.conv1.1.bias", torch.randn(6)), "a block of the resolution 1"),
        ({**checkpoint(), "g_ema": torch.ones(3)}, "g_ema is missing, or holds more than tensors"),
        ({**checkpoint(), "g_ema": {"input.input": torch.ones(1, 12, 4, 4)}}, "a network of 0 blocks beyond the first"),
        ({**checkpoint(), "latent_avg": "mean"}, "latent_avg is no tensor"),
        ({**checkpoint(), "latent_avg": torch.ones(7)}, "'w_avg' is missing, unexpected or of another shape"),
    ],
)
def test_what_is_not_as_it_should_be_is_one_line(tmp_path, content, words):
    with pytest.raises(UserError, match=words) as caught:
        load_checkpoint(saved(tmp_path / "x.pt", content))
    assert "\n" not in caught.value.message and "name a checkpoint of stylegan2-pytorch" in caught.value.message


class Harm:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_is_executed(tmp_path, legacy):
    """In the options of the training either, which are the one object of a class that is read."""
    content = checkpoint()
    content["args"].harm = Harm(tmp_path / "harm")
    path = saved(tmp_path / "x.pt", content, legacy)
    assert not is_checkpoint(path)
    with pytest.raises(UserError, match=r"it asks for '(os|posix) mkdir'") as caught:
        load_checkpoint(path)
    assert "\n" not in caught.value.message
    with pytest.raises(UserError, match=r"it asks for '(os|posix) mkdir'"):
        load_generator(path)
    assert not (tmp_path / "harm").exists()
    function, arguments = Harm(tmp_path / "harm").__reduce__()
    function(*arguments)
    assert (tmp_path / "harm").exists()  # whoever executes it finds it done


def test_a_member_that_ends_beyond_the_file_is_refused(tmp_path):
    """Its header is written once more in the archive's comment, behind which there are not as many bytes."""
    data = saved(tmp_path / "x.pt", checkpoint()).read_bytes()
    end = data.rindex(b"PK\x05\x06")
    directory = struct.unpack("<I", data[end + 16 : end + 20])[0]
    entry = data.index(b"data.pkl", directory) - 46 - len("x/")
    header = struct.unpack("<I", data[entry + 42 : entry + 46])[0]
    local = data[header : header + 30] + b"x/data.pkl"
    moved = bytearray(data)
    moved[entry + 42 : entry + 46] = struct.pack("<I", len(data))
    moved[end + 20 : end + 22] = struct.pack("<H", len(local))
    (tmp_path / "moved.pt").write_bytes(bytes(moved) + local)
    assert not is_checkpoint(tmp_path / "moved.pt")
    for load in (load_checkpoint, load_generator, load_state):
        with pytest.raises(UserError, match="cannot be read") as caught:
            load(tmp_path / "moved.pt")
        assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "name, expected",
    [("a/ffhq.pkl", True), ("b/550000.pt", True), ("runs/1/state/state-000200.pt", False), ("x.safetensors", False)],
)
def test_what_a_run_began_with_is_known_by_its_name(name, expected):
    """The file is not there any more where a model card is written."""
    assert has_foreign_name(name) == expected


@pytest.mark.slow
def test_as_typed(tmp_path, faces16):
    """Images, and a training that goes on from it, also with its discriminator and as AdaConv."""
    path = saved(tmp_path / "550000.pt", checkpoint(resolution=16, most=16, last=8))
    done(script("generate.py", "--network", path, "--seeds", "0-3", "--outdir", tmp_path / "out"))
    assert len(list((tmp_path / "out").glob("*.png"))) == 4
    options = [*TINY[:2], *TINY[6:]]  # without channels, which come from the checkpoint
    start = ["train.py", "--data", faces16, "--outdir", tmp_path / "runs", "--kimg", 0.016, "--init-from", path]
    for modulation in ("modconv", "adaconv"):
        said = done(script(*start, *options, "--modulation", modulation)).stderr
        assert re.search(r"kimg 0\.016/0\.016", said)
    message = mistake("train.py", "--resume", path)
    assert "holds networks of another program, not a training state; begin a new run" in message
