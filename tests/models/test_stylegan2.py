"""StyleGAN2's networks from pickles: the peers' own results, the layouts, and what is refused."""

import io
import os
import subprocess
import sys
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.inert_modules import CALLS, STORAGE, read_number, read_tensor
from models.stylegan2 import load_networks
from networks.discriminator import Discriminator
from networks.generator import Generator
from tests.models import stylegan2_pickles as written
from tests.models.stylegan2_pickles import (
    Called,
    Named,
    changed,
    dumps,
    layer_state,
    network_pickle,
    refusal,
    small_networks,
)
from torch_utils.errors import UserError
from torch_utils.inert_pickle import read_pickle


def largest(a, b):
    return float((a - torch.as_tensor(b)).abs().max())


# --- the peers' own results -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sg2ada-uncond-protocol3", "sg2ada-cond-protocol4"])
def test_results_are_those_of_the_program_that_wrote_the_pickle(published_pickles, name):
    expected = np.load(published_pickles / f"{name.rpartition('-')[0]}.npz")
    start = time.process_time()
    networks, info = load_networks(published_pickles / f"{name}.pkl")
    assert time.process_time() - start < 2
    assert info["source"]["kind"] == "stylegan2-ada-pytorch" and info["source"]["file"] == f"{name}.pkl"
    G, z, c = networks["G_ema"], torch.from_numpy(expected["z"]), torch.from_numpy(expected["c"])
    for psi, images, ws in zip(expected["psi"], expected["images"], expected["ws"], strict=True):
        # three steps of float32 at the largest value: what was written is rounded as well
        assert largest(G.ws(z, c, float(psi)), ws) <= 3 * np.finfo(np.float32).eps * np.abs(ws).max()
        assert largest(G(z, c, float(psi), noise="const"), images) <= 1e-5
    assert largest(G(z, c, noise="none"), expected["images_noise_none_psi1"]) <= 1e-5
    cutoff = torch.tensor([0.5] * 4 + [1.0] * (G.config.num_ws - 4))
    assert largest(G(z, c, cutoff, noise="const"), expected["images_psi05_cutoff4"]) <= 1e-5
    assert largest(networks["G"](z, c, noise="const"), expected["images_of_G_psi1"]) <= 1e-5
    logits = networks["D"](torch.from_numpy(expected["images"][0]), c)
    assert largest(logits, expected["D_logits_of_images_psi1"]) <= 1e-5


def test_storages_are_those_that_torch_reads(published_pickles):
    data = (published_pickles / "sg2ada-uncond-protocol3.pkl").read_bytes()
    seen = 0
    for tensor in _calls(read_pickle(io.BytesIO(data), CALLS), "torch._utils _rebuild_tensor_v2"):
        storage, offset, size, stride, *_ = tensor.args
        assert storage.name == STORAGE
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = torch.load(io.BytesIO(storage.args[0]), weights_only=True)
        expected = torch.tensor([], dtype=expected.dtype).set_(expected, offset, size, stride)
        assert torch.equal(read_tensor(tensor), expected.float())
        seen += 1
    assert seen > 100


def _calls(value, name):
    pending, found, seen = [value], [], set()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, (list, tuple)):
            pending += value
        elif hasattr(value, "args"):
            found += [value] * (value.name == name)
            pending += value.args
    return found


# --- layouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("old_numpy", [False, True], ids=["numpy 2", "numpy 1"])
@pytest.mark.parametrize("c_dim", [0, 3])
def test_every_protocol_gives_the_networks_back(load, protocol, old_numpy, c_dim):
    G, D = small_networks(c_dim)
    networks, info = load(network_pickle(G, D, protocol, old_numpy))
    for network, expected in ((networks["G_ema"], G), (networks["D"], D)):
        assert network.config == expected.config
        assert not network.training and not any(p.requires_grad for p in network.parameters())
        state, wanted = network.state_dict(), expected.state_dict()
        assert state.keys() == wanted.keys() and all(torch.equal(state[key], wanted[key]) for key in wanted)
    assert info["kimg"] == 0 and len(info["source"]["sha256"]) == 64 and "publisher" in info["source"]["license"]


@pytest.mark.parametrize(
    "changes",
    [
        {"resolution": 64, "cbase": 512, "cmax": 32},
        {"img_channels": 1},
        {"map_depth": 1},
        {"noise": False},
        {"clamp": None},
    ],
    ids=str,
)
def test_other_constructions(load, changes):
    G, D = small_networks(**changes)
    networks, _ = load(network_pickle(G, D))
    z = torch.randn(3, 8)
    image = G(z, noise="const")
    assert networks["G_ema"].config == G.config
    assert torch.equal(networks["G_ema"](z, noise="const"), image)
    assert torch.equal(networks["D"](image), D(image))


@pytest.mark.parametrize("c_dim", [0, 3])
def test_discriminators_that_were_converted_from_tensorflow(load, c_dim):
    """They say nothing of the groups, of which there were 4 images in each, and embed classes by one layer."""
    G, D = small_networks(c_dim)
    D = Discriminator(replace(D.config, map_depth=0 if c_dim else D.config.map_depth))
    found = load(dumps({"G_ema": written.generator(G), "D": written.discriminator(D, group=None)}))[0]["D"]
    assert found.config == D.config and found.config.mbstd_group == 4
    c = None if c_dim == 0 else torch.eye(3)[torch.arange(8) % 3]
    image = torch.randn(8, 3, 16, 16)
    assert torch.equal(found(image, c), D(image, c))
    if c_dim:
        assert torch.equal(found.mapping.embed.weight, D.mapping.embed.weight) and not len(found.mapping.layers)


def test_layout_of_stylegan3(load):
    G, _ = small_networks()
    networks, info = load(network_pickle(G, layout="stylegan3"), ["G_ema"])
    assert networks["G_ema"].config == G.config and info["source"]["kind"] == "stylegan3 --cfg stylegan2"


def test_kimg_is_in_the_name(load):
    G, _ = small_networks()
    assert load(network_pickle(G), ["G_ema"], "network-snapshot-025000.pkl")[1]["kimg"] == 25000


def test_another_class_can_be_built(tmp_path):
    class Mine(Generator):
        pass

    G, _ = small_networks()
    (tmp_path / "x.pkl").write_bytes(network_pickle(G))
    assert type(load_networks(tmp_path / "x.pkl", ["G_ema"], Mine)[0]["G_ema"]) is Mine


@pytest.mark.parametrize("number", [0.25, 3, np.float64(0.1), np.float32(0.1), np.int64(-7), np.int32(5)])
@pytest.mark.parametrize("old_numpy", [False, True])
def test_numbers(number, old_numpy):
    assert read_number(read_pickle(io.BytesIO(dumps(number, 3, old_numpy)), CALLS)) == float(number)


def test_tensors_of_other_precisions_and_views():
    x = torch.randn(6, 8)
    for tensor in (x, x.double(), x.half(), x.t(), x[1:3, ::2], x[0].expand(1, 8)):
        found = read_tensor(read_pickle(io.BytesIO(dumps(tensor)), CALLS))
        assert torch.equal(found, tensor.float()) and found.is_contiguous()


# --- what this project does not have --------------------------------------------------------------------------------


def test_alias_free_networks(load):
    network = written.module("Generator", modules={
        "synthesis": written.module("SynthesisNetwork", modules={"input": written.module("SynthesisInput")}),
    })  # fmt: skip
    assert "alias-free" in refusal(load, dumps({"G_ema": network}))


def test_networks_of_tensorflow(load):
    network = Called(Named("dnnlib.tflib.network", "Network"), (), {"version": 4})
    message = refusal(load, dumps((network, network, network)))
    assert "TensorFlow" in message and "legacy.py" in message


@pytest.mark.parametrize("architecture", ["orig", "skip"])
def test_other_discriminators(load, architecture):
    G, D = small_networks()
    data = dumps({"G_ema": written.generator(G), "D": written.discriminator(D, architecture)})
    assert architecture in refusal(load, data, ["D"])
    assert load(data, ["G_ema"])[0]["G_ema"].config == G.config  # which has nothing to do with it


def test_a_network_that_is_not_there(load):
    G, _ = small_networks()
    assert "there is no D" in refusal(load, network_pickle(G), ["D"])
    assert "no dict of networks" in refusal(load, dumps([1, 2]))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: layer_state(s, "mapping", "fc0").update(weight_gain=np.float64(1.0)), "learning rate multiplier"),
        (lambda s: layer_state(s, "mapping", "fc1").update(activation="relu"), "activation"),
        (lambda s: layer_state(s, "synthesis", "b8", "conv0").update(activation="linear"), "activation"),
        (lambda s: layer_state(s, "synthesis", "b8").update(architecture="resnet"), "resnet"),
        (lambda s: layer_state(s, "synthesis", "b8")["_buffers"].update(resample_filter=torch.ones(4, 4)), "3, 3, 1"),
        (lambda s: layer_state(s, "synthesis", "b8", "conv0")["_parameters"].pop("bias"), "b8|blocks.1.conv0.bias"),
        (lambda s: layer_state(s, "synthesis")["_modules"].update(b12=written.module("Block", architecture="skip",
                                                             parameters={"const": torch.zeros(1)})), "resolution 12"),
        (lambda s: layer_state(s, "synthesis")["_parameters"].update(extra=torch.zeros(1)), "extra"),
        (lambda s: s.update(img_resolution=20), "20 × 20"),
        (lambda s: s.update(img_channels=4), "4 channels"),
        (lambda s: s.update(w_dim=16), "shape|numbers"),
        (lambda s: s.update(z_dim=10**9), "z_dim"),
        (lambda s: s.update(w_dim=0), "w_dim"),
        (lambda s: s["_init_kwargs"]["synthesis_kwargs"].update(channel_base=1 << 20), "shape|numbers"),
        (lambda s: s["_init_kwargs"]["synthesis_kwargs"].update(channel_max=0), "channel_max"),
        (lambda s: layer_state(s, "mapping").update(num_layers=10**9), "num_layers"),
        (lambda s: layer_state(s, "synthesis", "b4", "conv1").update(conv_clamp=float("nan")), "conv_clamp"),
    ],
)  # fmt: skip
def test_constructions_that_are_not_ours_are_told(load, change, named):
    message = refusal(load, changed(change))
    assert any(word in message for word in named.split("|")), message


@pytest.mark.parametrize("make", ["missing", "folder", "empty", "text", "pipe", "zip"])
def test_what_is_no_pickle(tmp_path, make):
    path = tmp_path / "x.pkl"
    match make:
        case "folder":
            path.mkdir()
        case "empty":
            path.touch()
        case "text":
            path.write_text("no pickle\n" * 100)
        case "pipe":
            os.mkfifo(path)
        case "zip":
            torch.save({"G_ema": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="cannot be read") as caught:
        load_networks(path, ["G_ema"])
    assert "\n" not in str(caught.value)


def test_loading_does_not_import_the_compiler():
    """It takes PyTorch seconds, at every load of a model."""
    program = (
        "import sys; from models.snapshot import find_snapshot, load_generator; "
        "load_generator(find_snapshot('pretrained/faces32.safetensors')); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
