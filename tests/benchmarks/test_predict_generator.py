"""benchmarks/predict_generator.py on operations whose time is known."""

import json

import pytest
import torch
from kernel_cost import A100, H100
from predict_generator import PRODUCTS, Clock, read_ratios

from torch_utils.errors import UserError
from torch_utils.ops import native


@pytest.fixture
def meta(monkeypatch) -> None:
    """The kernels' shapes on the meta device."""
    if not native.available("cpu"):
        pytest.skip("no kernels here: see python -m torch_utils.ops")
    monkeypatch.setitem(native._loaded, "meta", True)


@pytest.mark.parametrize(("ratio", "times"), [(0.5, 1.0), (3.0, 3.0)])
def test_a_kernel_takes_the_time_of_a_copy_or_of_its_instructions(ratio, times, meta):
    x, bias = torch.empty(2, 4, 8, 8, device="meta"), torch.empty(4, device="meta")
    with Clock({("bias_act, relu", "fp32", H100.name): ratio}) as clock:
        torch.ops.adaconv.bias_act(x, bias, 1, 1.0, -1.0)
    moved = 4 * (2 * x.numel() + 4)
    assert clock.seconds["bias_act"][H100.name] == pytest.approx(times * moved / H100.bandwidth)
    assert clock.seconds["bias_act"][A100.name] == pytest.approx(moved / A100.bandwidth)


def test_sixteen_channels_of_a_group_are_twice_the_work_of_eight(meta):
    seconds = []
    for group in (8, 16):
        x, kernel = torch.empty(1, 16, 8, 8, device="meta"), torch.empty(1, 16, group, 1, 1, device="meta")
        with Clock({("adaconv, C/G 8", "fp32", H100.name): 100.0}) as clock:
            torch.ops.adaconv.adaconv(x, kernel, None, False)
        seconds.append(clock.seconds["adaconv"][H100.name] / (2 * x.numel() + kernel.numel()))
    assert seconds[1] == pytest.approx(2 * seconds[0])


def test_a_matrix_product_takes_its_multiply_adds_and_a_view_nothing():
    a = torch.empty(4096, 4096, device="meta", dtype=torch.bfloat16)
    with Clock({}) as clock:
        torch.mm(a.t(), a)
    assert clock.seconds["linear layers"][H100.name] == pytest.approx(2 * 4096**3 / PRODUCTS[H100.name, 2])
    assert list(clock.seconds) == ["linear layers"]


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"rows": [{"op": "adaconv"}]}))
    with pytest.raises(UserError, match="not a record of kernel_cost"):
        read_ratios(path)
