"""StyleGAN2's networks from pickles: the peers' own results, the layouts, and what is refused."""

import io
import os
import pickle
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch

from models.inert_modules import CALLS, STORAGE, read_number, read_tensor
from models.inert_pickle import read_pickle
from models.stylegan2 import load_networks, load_stylegan2
from networks.generator import Generator
from tests.models import stylegan2_pickles as written
from tests.models.stylegan2_pickles import Called, Named, dumps, network_pickle, small_networks
from torch_utils.errors import UserError


def largest(a, b):
    return float((a - torch.as_tensor(b)).abs().max())


@pytest.fixture
def load(tmp_path):
    """Writes bytes to a file and loads networks of it."""

    def load(data, names=("G_ema", "D"), name="x.pkl"):
        (tmp_path / name).write_bytes(data)
        return load_networks(tmp_path / name, names)

    return load


def refusal(load, data, names=("G_ema",)):
    """The one line that a pickle gets."""
    with pytest.raises(UserError) as caught:
        load(data, names)
    message = caught.value.message
    assert "\n" not in message and message.isprintable() and len(message) < 600
    return message


# --- the peers' own results -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sg2ada-uncond-protocol3", "sg2ada-cond-protocol4"])
def test_results_are_those_of_the_program_that_wrote_the_pickle(published_pickles, name):
    expected = np.load(published_pickles / f"{name.rpartition('-')[0]}.npz")
    start = time.perf_counter()
    networks, info = load_networks(published_pickles / f"{name}.pkl")
    assert time.perf_counter() - start < 2
    assert info["source"]["kind"] == "stylegan2-ada-pytorch" and info["source"]["file"] == f"{name}.pkl"
    G, z, c = networks["G_ema"], torch.from_numpy(expected["z"]), torch.from_numpy(expected["c"])
    for psi, images, ws in zip(expected["psi"], expected["images"], expected["ws"], strict=True):
        assert largest(G.ws(z, c, float(psi)), ws) <= 1e-6
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
    assert type(load_stylegan2(tmp_path / "x.pkl", cls=Mine)[0]) is Mine


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


def changed(change):
    """A pickle of a generator whose layers' attributes `change` has changed."""
    G, _ = small_networks()
    network = written.generator(G)
    (meta,) = network.args
    change(meta["state"])
    return dumps({"G_ema": network})


def _layer(state, *names):
    for name in names:
        state = state["_modules"][name].args[0]["state"]
    return state


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: _layer(s, "mapping", "fc0").update(weight_gain=np.float64(1.0)), "learning rate multiplier"),
        (lambda s: _layer(s, "mapping", "fc1").update(activation="relu"), "activation"),
        (lambda s: _layer(s, "synthesis", "b8", "conv0").update(activation="linear"), "activation"),
        (lambda s: _layer(s, "synthesis", "b8").update(architecture="resnet"), "resnet"),
        (lambda s: _layer(s, "synthesis", "b8")["_buffers"].update(resample_filter=torch.ones(4, 4)), "1, 3, 3, 1"),
        (lambda s: _layer(s, "synthesis", "b8", "conv0")["_parameters"].pop("bias"), "b8|blocks.1.conv0.bias"),
        (lambda s: _layer(s, "synthesis")["_modules"].update(b12=written.module("Block", architecture="skip",
                                                             parameters={"const": torch.zeros(1)})), "resolution 12"),
        (lambda s: _layer(s, "synthesis")["_parameters"].update(extra=torch.zeros(1)), "extra"),
        (lambda s: s.update(img_resolution=20), "20 × 20"),
        (lambda s: s.update(img_channels=4), "4 channels"),
        (lambda s: s.update(w_dim=16), "shape|numbers"),
        (lambda s: s.update(z_dim=10**9), "z_dim"),
        (lambda s: s.update(w_dim=0), "w_dim"),
        (lambda s: s["_init_kwargs"]["synthesis_kwargs"].update(channel_base=1 << 20), "shape|numbers"),
        (lambda s: s["_init_kwargs"]["synthesis_kwargs"].update(channel_max=0), "channel_max"),
        (lambda s: _layer(s, "mapping").update(num_layers=10**9), "num_layers"),
        (lambda s: _layer(s, "synthesis", "b4", "conv1").update(conv_clamp=float("nan")), "conv_clamp"),
    ],
)  # fmt: skip
def test_constructions_that_are_not_ours_are_told(load, change, named):
    message = refusal(load, changed(change))
    assert any(word in message for word in named.split("|")), message


# --- files that mean harm -------------------------------------------------------------------------------------------


class Canary:
    """Whose pickle runs a function on an argument."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def hostile(path):
    """What runs when a pickle is loaded by Python, by name."""
    write = f"open({str(path)!r}, 'w').close()"
    return {
        "os.system": Canary(os.system, f"touch {path}"),
        "eval": Canary(eval, write),
        "exec": Canary(exec, write),
        "open": Canary(open, str(path), "w"),
        "subprocess": Canary(subprocess.call, ["touch", str(path)]),
        "a class of this project": Canary(Generator, None),
        "getattr": Canary(getattr, "a", "upper"),
        "torch.load": Canary(torch.load, str(path)),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_nothing_is_executed(load, tmp_path, protocol):
    canary = tmp_path / "canary"
    G, _ = small_networks()
    for name, call in hostile(canary).items():
        function = call.call[0]
        for found in ({"G_ema": call}, call, {"a": [call], "G_ema": written.generator(G)},
                      {"G_ema": written.generator(G, extra=call)}):  # fmt: skip
            message = refusal(load, dumps(found, protocol))
            assert function.__qualname__ in message and "nothing in the file was executed" in message, name
            assert not canary.exists()


def test_the_source_in_a_pickle_is_not_run(load, tmp_path):
    canary = tmp_path / "canary"
    G, _ = small_networks()
    source = f"open({str(canary)!r}, 'w').close()\nclass Generator: pass\n"
    networks, _ = load(network_pickle(G, source=source), ["G_ema"])
    assert networks["G_ema"].config == G.config and not canary.exists()


def test_attributes_of_functions_cannot_be_set(load):
    persistent = written.PERSISTENT
    data = dumps({"G_ema": Called(persistent, (), None)})
    data = data.replace(b"\x93", b"\x93}\x8c\x08__code__Nsb", 1)  # BUILD on the function itself
    assert "damaged" in refusal(load, data)


def test_what_stands_in_a_storage_is_not_executed_either(load, tmp_path):
    canary = tmp_path / "canary"
    inner = pickle.dumps(Canary(os.system, f"touch {canary}"))
    data = changed(lambda s: _layer(s, "synthesis", "b4")["_parameters"].update(const=_tensor((16, 4, 4), inner)))
    assert "system" in refusal(load, data)
    assert not canary.exists()


def _tensor(size, storage, stride=None, offset=0):
    """A tensor with a storage of these bytes."""
    stored = Called(Named("torch.storage", "_load_from_bytes"), (storage,))
    stride = stride or tuple(int(np.prod(size[i + 1 :], dtype=object)) for i in range(len(size)))
    return Called(Named("torch._utils", "_rebuild_tensor_v2"), (stored, offset, size, stride, False, {}))


def _storage(count, data, key="0", magic=0x1950A86A20F9469CFC6C):
    """A storage of 32-bit floats that claims `count` of them."""

    class Persistent(written.Writer):
        def persistent_id(self, obj):
            return obj[1] if isinstance(obj, tuple) and obj[:1] == ("by id",) else None

    file = io.BytesIO()
    content = ("by id", ("storage", Named("torch", "FloatStorage"), key, "cpu", count, None))
    for part in (magic, 1001, {"little_endian": True}, content, [key]):
        Persistent(file, 2).dump(part)
    return file.getvalue() + count.to_bytes(8, "little", signed=True) + data


HUGE = 10**12


@pytest.mark.parametrize(
    "tensor",
    {
        "a tensor of 10^12 numbers": _tensor((HUGE,), _storage(256, bytes(1024))),
        "a shape that is right, in a storage of one number": _tensor((16, 4, 4), _storage(1, bytes(4))),
        "and repeated": _tensor((16, 4, 4), _storage(1, bytes(4)), stride=(0, 0, 0)),
        "behind the end": _tensor((16, 4, 4), _storage(256, bytes(1024)), offset=1),
        "strides beyond it": _tensor((16, 4, 4), _storage(256, bytes(1024)), stride=(64, 4, 1)),
        "strides backwards": _tensor((16, 4, 4), _storage(256, bytes(1024)), stride=(-16, 4, 1)),
        "a storage that claims 10^12": _tensor((16, 4, 4), _storage(HUGE, bytes(1024))),
        "a storage of less than nothing": _tensor((16, 4, 4), _storage(-1, bytes(1024))),
        "a storage with another magic": _tensor((16, 4, 4), _storage(256, bytes(1024), magic=1)),
        "an archive in a storage": _tensor((16, 4, 4), b"PK\x03\x04" + bytes(2000)),
        "a storage that is text": _tensor((16, 4, 4), "text"),
        "sizes that are no numbers": _tensor((16, 4, 4), _storage(256, bytes(1024)), stride=("a", None, 1)),
        "no tensor at all": {"a": 1},
    }.items(),
    ids=lambda item: item[0],
)
def test_tensors_that_claim_too_much(load, tensor):
    data = changed(lambda s: _layer(s, "synthesis", "b4")["_parameters"].update(const=tensor[1]))
    refusal(load, data)


def test_a_tensor_that_is_as_it_should_be_is_taken(load):
    """So that the test before fails where it is not the claim that is refused."""
    numbers = torch.randn(16, 4, 4)
    tensor = _tensor((16, 4, 4), _storage(256, numbers.numpy().tobytes()))
    data = changed(lambda s: _layer(s, "synthesis", "b4")["_parameters"].update(const=tensor))
    assert torch.equal(load(data, ["G_ema"])[0]["G_ema"].synthesis.const, numbers)


def test_one_tensor_for_many_layers_takes_no_more_than_the_file(load):
    """Shared by name it costs the file a few bytes a layer, and memory a copy each."""
    G, _ = small_networks(map_depth=100)
    network = written.generator(G)
    mapping = _layer(network.args[0]["state"], "mapping")
    first = _layer(mapping, "fc1")["_parameters"]
    wide = torch.nn.Parameter(torch.randn(400, 400), False)
    for layer in mapping["_modules"].values():
        layer.args[0]["state"]["_parameters"] = {**first, "weight": wide}
    network.args[0]["state"]["w_dim"] = network.args[0]["state"]["z_dim"] = 400
    assert "more numbers than the file can hold" in refusal(load, dumps({"G_ema": network}))


def test_modules_in_themselves_and_in_each_other(load):
    assert "in each other" in refusal(load, dumps_with_loop(written.module("Generator")))
    many = written.module("Leaf")
    for _ in range(7):
        many = written.module("Node", modules={f"m{i}": many for i in range(30)})  # 30^7 by their names
    assert "more than 1000 modules" in refusal(load, dumps({"G_ema": many}))
    deep = written.module("Leaf")
    for _ in range(60):
        deep = written.module("Node", modules={"m": deep})
    assert "in each other" in refusal(load, dumps({"G_ema": deep}))


def test_what_is_shared_by_all_modules_is_small(load):
    """Else a file of a megabyte could keep a reader busy for hours, as each module looks through it."""
    for kind in ("_modules", "_parameters", "_buffers"):
        shared = {str(i): None for i in range(50_000)}
        leaf = written.module("Leaf")
        leaf.args[0]["state"][kind] = shared
        network = written.module("Generator", modules={f"m{i}": leaf for i in range(90)})
        message = refusal(load, changed(lambda s, n=network: s["_modules"].update(more=n)))
        assert f"more than 100 entries in {kind}" in message
    slow = b"\x80\x02" + b"(" * 100_000 + b"."
    data = changed(lambda s: _layer(s, "synthesis", "b4")["_parameters"].update(const=_tensor((16, 4, 4), slow)))
    assert "more than 1,000 operations" in refusal(load, data)


def test_numbers_that_are_no_numbers(load):
    """A tuple in a tuple, 200,000 deep, must not be hashed: that ends the process."""
    number = dumps(np.float64(0.1), 3)
    assert number.count(b"X\x02\x00\x00\x00f8") == 1
    deep = number.replace(b"X\x02\x00\x00\x00f8", b")" + b"\x85" * 200_000)
    with pytest.raises(ValueError, match="tuple where str should be"):
        read_number(read_pickle(io.BytesIO(deep), CALLS))
    order = number.replace(b"X\x01\x00\x00\x00<", b")" + b"\x85" * 200_000)
    with pytest.raises(ValueError, match="tuple where str should be"):
        read_number(read_pickle(io.BytesIO(order), CALLS))


def dumps_with_loop(module):
    """A pickle in which a module is among its own submodules: its dict gets it after it is made, from the memo."""
    file = io.BytesIO()
    writer = written.Writer(file, 2)
    writer.dump({"G_ema": module})
    index = {id(value): number for number, value in writer.memo.values()}
    modules, itself = (b"j" + index[id(value)].to_bytes(4, "little") for value in (_layer_modules(module), module))
    text = lambda name: b"X" + len(name).to_bytes(4, "little") + name.encode()  # noqa: E731
    return file.getvalue()[:-1] + text("again") + modules + text("synthesis") + itself + b"ss."


def _layer_modules(module):
    return module.args[0]["state"]["_modules"]


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
        load_stylegan2(path)
    assert "\n" not in str(caught.value)


def test_loading_does_not_import_the_compiler():
    """It takes PyTorch seconds, at every load of a model."""
    program = (
        "import sys; from models.snapshot import find_snapshot, load_generator; "
        "load_generator(find_snapshot('pretrained/faces32.safetensors')); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
