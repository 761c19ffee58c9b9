"""The machine that reads pickles, beside Python's own, and what it refuses."""

import io
import pickle
import pickletools
from collections import OrderedDict

import pytest

from torch_utils.inert_pickle import MAX_NAME, MAX_OPERATIONS, Call, Refused, read_pickle

VALUES = [
    None,
    True,
    [0, 255, 65535, -1, 1 << 40, -(1 << 100), 0.5, 1e300],
    ["", "a", "é" * 300, "x" * 70000, b"", b"\x00\xff", b"y" * 70000],
    [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [[]], {}],
    {"a": {"b": [1, 2, {"c": (None, False)}]}, 3: "three", "many": {str(i): i for i in range(3000)}},
]


def read(data, known=()):
    return read_pickle(io.BytesIO(data), known)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", VALUES)
def test_plain_values_are_those_that_pickle_reads(value, protocol):
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_shared_values_stay_shared_and_loops_loops(protocol):
    inner = [1]
    loop = {"inner": inner, "again": inner}
    loop["self"] = loop
    found = read(pickle.dumps(loop, protocol))
    assert found["inner"] is found["again"] and found["self"] is found


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_sets_are_lists_and_every_kind_of_dict_is_a_dict(protocol):
    found = read(pickle.dumps([{"a"}, set(), OrderedDict(x=1, y=2)], protocol))
    assert found == [["a"], [], {"x": 1, "y": 2}]


def test_calls_are_kept_as_data():
    program = b"\x80\x02cmath\nfactorial\nK\x05\x85R}X\x01\x00\x00\x00aK\x01sb."
    found = read(program, {"math factorial"})
    assert type(found) is Call
    assert (found.name, found.args, found.state) == ("math factorial", (5,), {"a": 1})
    with pytest.raises(Refused, match="math factorial"):
        read(program, {"math sqrt"})


def test_the_file_stands_behind_the_pickle():
    file = io.BytesIO(pickle.dumps(1) + pickle.dumps("two") + b"rest")
    assert [read_pickle(file, ()), read_pickle(file, ()), file.read()] == [1, "two", b"rest"]


@pytest.mark.parametrize("protocol", [0, 1])
def test_older_protocols_are_refused(protocol):
    with pytest.raises(ValueError, match="protocol 2 to 5"):
        read(pickle.dumps({"a": 1}, protocol))


BAD = {
    "empty": b"",
    "no end": b"\x80\x02}",
    "nothing left": b"\x80\x02.",
    "pop of nothing": b"\x80\x02s.",
    "no mark": b"\x80\x02}u.",
    "no memo": b"\x80\x02h\x05.",
    "an unhashable key": b"\x80\x02}]K\x01s.",
    "a tuple as a key": b"\x80\x02})K\x01s.",
    "a float as a key": b"\x80\x02}G?\xf0\x00\x00\x00\x00\x00\x00K\x01s.",
    "a large number as a key": b"\x80\x02}\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x10K\x01s.",
    "a key without a value": b"\x80\x02}(K\x01u.",
    "items for a list": b"\x80\x02]K\x01K\x01s.",
    "an element for a dict": b"\x80\x02}K\x01a.",
    "a call of a number": b"\x80\x02K\x01)R.",
    "arguments that are a list": b"\x80\x02ccollections\nOrderedDict\n]R.",
    "OrderedDict with arguments": b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
    "another encoding": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",
    "attributes for a function": b"\x80\x02ccollections\nOrderedDict\n}b.",
    "attributes for a dict": b"\x80\x02}}b.",
    "names that are numbers": b"\x80\x04K\x01K\x02\x93.",
    "the text of a name": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "a persistent name in text": b"\x80\x02Pos\n.",
    "an old instance": b"\x80\x02(ios\nsystem\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "bytes longer than the file": b"\x80\x04\x8e" + (10**12).to_bytes(8, "little") + b"abc.",
    "bytes longer than any": b"\x80\x04\x8e" + b"\xff" * 8 + b"abc.",
    "text longer than the file": b"\x80\x04\x8d" + (10**12).to_bytes(8, "little") + b"abc.",
    "a frame longer than the file": b"\x80\x04\x95" + (10**12).to_bytes(8, "little") + b"h\x01.",
    "too many operations": b"\x80\x02" + b"}" * (MAX_OPERATIONS + 1) + b".",
    "a buffer outside": b"\x80\x05\x97.",
    "text that is no text": b"\x80\x04\x8c\x02\xff\xfe.",
    "a set of two lists": b"\x80\x02cbuiltins\nset\n]]\x86R.",
    "a set of text": b"\x80\x02cbuiltins\nset\nX\x01\x00\x00\x00a\x85R.",
    # What a memo names is copied by each of these operations, which take five or six bytes of the file.
    "a list that is doubled": b"\x80\x02cbuiltins\nset\nq\x01]K\x01aq\x02" + b"h\x01h\x02h\x02\x86Rq\x02" * 20 + b".",
    "a set that is made often": b"\x80\x02cbuiltins\nset\nq\x01]("
    + b"N" * 999
    + b"e\x85q\x02"
    + b"h\x01h\x02R" * 99
    + b".",
    "bytes that are made often": b"\x80\x02c_codecs\nencode\nq\x01X\xe7\x03\x00\x00"
    + b"a" * 999
    + b"X\x06\x00\x00\x00latin1\x86q\x02"
    + b"h\x01h\x02R" * 99
    + b".",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_what_does_not_fit_is_a_value_error(data):
    with pytest.raises(ValueError):
        read(data)


def test_a_long_name_that_could_be_made_often_is_refused():
    """Where names are known by how they begin, as those of TorchScript are, they could have any length."""

    class Everything:
        def __contains__(self, name):
            return True

    module = b"m" * (MAX_NAME - 5)
    stacked = b"\x80\x04X" + len(module).to_bytes(4, "little") + module + b"X\x04\x00\x00\x00name\x93."
    for program in (stacked, b"\x80\x02c" + module + b"\nname\n."):
        assert read(program, Everything()).name == f"{module.decode()} name"
        longer = program.replace(b"name", b"name2").replace(b"X\x04", b"X\x05")
        with pytest.raises(ValueError, match="a name of more than 256 characters"):
            read(longer, Everything())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_pickle_writes_of_sets_and_bytes_copies_nothing_twice(protocol):
    value = [{*range(i, i + 50)} for i in range(50)] + [bytes([i]) * 300 for i in range(256)]
    value += value  # shared, and so written once
    found = read(pickle.dumps(value, protocol))
    assert [sorted(item) if type(item) is list else item for item in found] == [
        sorted(item) if type(item) is set else item for item in value
    ]


def test_a_memo_of_any_number_takes_no_memory():
    assert read(b"\x80\x02K\x01r\xff\xff\xff\x7fj\xff\xff\xff\x7f.") == 1


@pytest.mark.parametrize("wrap", [b"\x85", b"\x86"], ids=["in each other", "and doubled"])
def test_depth_does_no_harm(wrap):
    """A tuple in a tuple, 200,000 deep, or of 2^60 parts: both kill Python's own reader once they are hashed."""
    program = b"\x80\x02)" + (wrap * 200_000 if wrap == b"\x85" else b"q\x00h\x00\x86" * 60) + b"."
    assert type(read(program)) is tuple
    calls = b"\x80\x02cmath\nsqrt\nq\x01)R" + b"q\x02h\x01h\x02\x85R" * 150_000 + b"."
    assert type(read(calls, {"math sqrt"})) is Call
    with pytest.raises(ValueError, match="key of the type tuple"):
        read(program.replace(b"\x80\x02", b"\x80\x02}")[:-1] + b"K\x01s.")


def test_addresses_are_keys():
    """By which PyTorch before 1.6 numbered the parameters of an optimizer."""
    value = {140_000_000_000_000 + 64 * i: i for i in range(5)}
    assert read_pickle(io.BytesIO(pickle.dumps(value, 2)), ()) == value


LENGTHS = {op.name: op for op in pickletools.opcodes if op.arg is not None and op.arg.n < 0 and op.arg.n != -1}


class Watched(io.BytesIO):
    """A file that says how much was asked for at once, which a file on a disk makes room for at once."""

    most = 0

    def read(self, size: int = -1) -> bytes:
        self.most = max(self.most, size if size >= 0 else 1 << 62)
        return super().read(size)


@pytest.mark.parametrize("name", LENGTHS)
def test_what_claims_a_length_takes_no_more_memory_than_there_is(name, tmp_path):
    """Every operation that has one, at the largest number that it can state, in a file on a disk too."""
    size = {-2: 1, -3: 4, -4: 4, -5: 8}[LENGTHS[name].arg.n]
    for claimed in (256**size // 2 - 1, 256**size - 1, 1 << min(45, 8 * size - 1)):
        data = b"\x80\x04" + LENGTHS[name].code.encode("latin1") + claimed.to_bytes(size, "little") + b"abc"
        file = Watched(data)
        with pytest.raises(ValueError):
            read_pickle(file, ())
        assert file.most <= 1 << 20
        (tmp_path / "a.pkl").write_bytes(data)
        with (tmp_path / "a.pkl").open("rb") as on_disk, pytest.raises(ValueError):
            read_pickle(on_disk, ())


def test_values_of_several_pieces_are_whole(tmp_path):
    value = [bytes(range(256)) * 9000, "é" * (3 << 20), 1 << 70]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, 4) + b"rest")
    with (tmp_path / "a.pkl").open("rb") as file:
        assert read_pickle(file, ()) == value and file.read() == b"rest"
