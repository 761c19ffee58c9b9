"""What several tests share: a small data set of drawn faces, and the folder of real pictures where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.convert import write_dataset
from training.faces import faces

REAL = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def faces16(tmp_path_factory) -> Path:
    """500 drawn faces of 16 × 16 with labels."""
    path = tmp_path_factory.mktemp("data") / "faces16.zip"
    write_dataset(path, faces(500, 16, seed=0))
    return path


@pytest.fixture
def real_pictures() -> Path:
    """The folder of real pictures, or a skip."""
    if not REAL.is_dir():
        pytest.skip("no folder of real pictures beside the repository")
    return REAL
