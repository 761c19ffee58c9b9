"""What several tests share: drawn faces, small stylizers, and the folder of real images where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from media.convert import write_dataset
from media.faces import faces
from networks.stylizer import Stylizer, StylizerConfig

REAL = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def number_of_threads():
    """Fails a test that leaves PyTorch with another number of threads: all tests after it would be slower."""
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


@pytest.fixture(scope="session")
def faces16(tmp_path_factory) -> Path:
    """500 drawn faces of 16 × 16 with labels."""
    path = tmp_path_factory.mktemp("data") / "faces16.zip"
    write_dataset(path, faces(500, 16, seed=0))
    return path


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of real images, or a skip."""
    if not REAL.is_dir():
        pytest.skip("no folder of real images beside the repository")
    return REAL


def tiny_stylizer(modulation: str = "adaconv", seed: int = 0) -> Stylizer:
    """A model of random weights, whose images use most of the range and are rarely beyond it."""
    torch.manual_seed(seed)
    config = StylizerConfig(1 / 8, modulation, 64, depthwise_scale=1.0)  # structure that is not that of all others
    model = Stylizer(config).eval().requires_grad_(False)
    for parameter in model.encoder.parameters():
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    kernels = model.kernels(torch.rand(1, 3, 64, 64) * 2 - 1)
    coarse = torch.rand(1, 3, 4, 4) * 2 - 1
    y = model(torch.nn.functional.interpolate(coarse, size=64, mode="bicubic"), kernels)
    last = model.decoder.stages[3].convs[-1]
    last.weight *= 0.4 / y.std()
    last.bias -= 0.4 * y.mean() / y.std()
    return model


@pytest.fixture(scope="session")
def stylizer() -> Stylizer:
    return tiny_stylizer()


@pytest.fixture(scope="session")
def stylizer_adain() -> Stylizer:
    return tiny_stylizer("adain")


@pytest.fixture(scope="session")
def other_stylizer() -> Stylizer:
    return tiny_stylizer(seed=1)
