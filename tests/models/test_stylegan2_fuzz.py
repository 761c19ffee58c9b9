"""Pickles with random damage: each is read or gets its line, and nothing in it is executed."""

import os
import pickle
import pickletools
import random
import sys

import pytest

from models.stylegan2 import load_networks
from networks.generator import Generator
from tests.damage import damaged
from tests.models.stylegan2_pickles import network_pickle, small_networks
from torch_utils.errors import UserError

PROTOCOLS = (2, 3, 4, 5)
OPERATIONS = [operation.code.encode("latin1")[0] for operation in pickletools.opcodes]


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def small_pickles() -> list[bytes]:
    found = []
    for protocol in PROTOCOLS:
        G, D = small_networks(c_dim=protocol % 2 * 3, cbase=32, cmax=4, map_depth=1)
        D = D if protocol in (3, 4) else None
        found.append(network_pickle(G, D, protocol, old_numpy=protocol < 4))
    return found


def check(data: bytes, path, canary) -> bool:
    """Whether it could be read."""
    path.write_bytes(data)
    try:
        networks, _ = load_networks(path, ["G_ema"] + ["D"] * (b"mbstd" in data))
        assert isinstance(networks["G_ema"], Generator)
    except UserError as error:
        message = error.message
        assert "\n" not in message and message.isprintable() and len(message) < 600
        return False
    finally:
        assert not canary.exists()
    return True


def test_two_thousand_damaged_pickles(tmp_path):
    canary, rng, pickles = tmp_path / "canary", random.Random(0), small_pickles()
    harm = [pickle.dumps(Harm(canary), protocol).rstrip(b".") for protocol in (0, *PROTOCOLS)]
    harm += [part.split(b"\x80", 1)[-1][1:] for part in harm[1:]]  # without the header
    modules = set(sys.modules)
    files = (damaged(rng.choice(pickles), rng, OPERATIONS, harm) for _ in range(2000))
    read = sum(check(data, tmp_path / "x.pkl", canary) for data in files)
    assert 0 < read < 1900  # most damage is noticed, and what hits a weight makes another network
    imported = {name.split(".")[0] for name in set(sys.modules) - modules}
    assert imported <= {"encodings"}  # of text


def test_damaged_pickles_of_the_program_that_writes_them(published_pickles, tmp_path):
    canary, rng = tmp_path / "canary", random.Random(1)
    pickles = [path.read_bytes() for path in sorted(published_pickles.glob("*.pkl"))]
    harm = [pickle.dumps(Harm(canary), 2)[2:-1], pickle.dumps(Harm(canary), 4)[11:-1]]
    for _ in range(100):
        check(damaged(rng.choice(pickles), rng, OPERATIONS, harm), tmp_path / "x.pkl", canary)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_cut_of_a_pickle_is_told(tmp_path, protocol):
    data = small_pickles()[protocol - 2]
    rng = random.Random(protocol)
    for length in [0, 1, 2, 3, 10, len(data) - 1, *(rng.randrange(len(data)) for _ in range(30))]:
        assert not check(data[:length], tmp_path / "x.pkl", tmp_path / "canary")
