"""Which implementation the tests of an op test, and how thoroughly."""

import os

import pytest

from torch_utils.ops import native


@pytest.fixture(params=["kernels", "reference"])
def implementation(request, monkeypatch) -> str:
    """Every test that uses this runs with the C++ kernels, where they are, and with the references."""
    if request.param == "reference":
        monkeypatch.setattr(native, "_loaded", {"cpu": False, "cuda": False})
    elif not native.available("cpu"):
        pytest.skip("no kernels here: see python -m torch_utils.ops")
    return request.param


@pytest.fixture(scope="session")
def fast_mode() -> bool:
    """Of gradcheck: derivatives along a random direction, and not by every value.

    For the emulated kernels in `make test`, where every call of an op takes milliseconds. Derivatives by every value
    are compared with those of a loop there, and numerically with the CPU's kernels; `make emulate` does both.
    """
    return bool(os.environ.get("EMULATED_FAST_GRADCHECK"))
