"""Network pickles that mean harm: each gets one line, nothing in it is executed, and no memory is taken for claims."""

import io
import os
import pickle
import subprocess

import numpy as np
import pytest
import torch

from models.inert_modules import CALLS, read_number
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
from torch_utils.inert_pickle import read_pickle


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
    data = changed(lambda s: layer_state(s, "synthesis", "b4")["_parameters"].update(const=_tensor((16, 4, 4), inner)))
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
    data = changed(lambda s: layer_state(s, "synthesis", "b4")["_parameters"].update(const=tensor[1]))
    refusal(load, data)


def test_a_tensor_that_is_as_it_should_be_is_taken(load):
    """So that the test before fails where it is not the claim that is refused."""
    numbers = torch.randn(16, 4, 4)
    tensor = _tensor((16, 4, 4), _storage(256, numbers.numpy().tobytes()))
    data = changed(lambda s: layer_state(s, "synthesis", "b4")["_parameters"].update(const=tensor))
    assert torch.equal(load(data, ["G_ema"])[0]["G_ema"].synthesis.const, numbers)


def test_one_tensor_for_many_layers_takes_no_more_than_the_file(load):
    """Shared by name it costs the file a few bytes a layer, and memory a copy each."""
    G, _ = small_networks(map_depth=100)
    network = written.generator(G)
    mapping = layer_state(network.args[0]["state"], "mapping")
    first = layer_state(mapping, "fc1")["_parameters"]
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
    data = changed(lambda s: layer_state(s, "synthesis", "b4")["_parameters"].update(const=_tensor((16, 4, 4), slow)))
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
