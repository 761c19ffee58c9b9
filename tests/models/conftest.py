"""The folder of network pickles that the peers' own code wrote, where there is one, and loading what a test wrote."""

from pathlib import Path

import pytest

from models.stylegan2 import load_networks

PICKLES = Path(__file__).resolve().parents[3] / "shared" / "data" / "stylegan2-pickles"


@pytest.fixture(scope="session")
def published_pickles() -> Path:
    if not PICKLES.is_dir():
        pytest.skip("no folder of network pickles beside the repository")
    return PICKLES


@pytest.fixture
def load(tmp_path):
    """Writes bytes to a file and loads networks of it."""

    def load(data, names=("G_ema", "D"), name="x.pkl"):
        (tmp_path / name).write_bytes(data)
        return load_networks(tmp_path / name, names)

    return load
