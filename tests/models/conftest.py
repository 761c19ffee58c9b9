"""The folder of network pickles that the peers' own code wrote, where there is one."""

from pathlib import Path

import pytest

PICKLES = Path(__file__).resolve().parents[3] / "shared" / "data" / "stylegan2-pickles"


@pytest.fixture(scope="session")
def published_pickles() -> Path:
    if not PICKLES.is_dir():
        pytest.skip("no folder of network pickles beside the repository")
    return PICKLES
