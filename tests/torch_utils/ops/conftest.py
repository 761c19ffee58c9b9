"""Which implementation the tests of an op test."""

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
