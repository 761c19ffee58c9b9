"""Channels-last memory: every op returns the order that it is given, and the same values."""

import itertools

import pytest
import torch

from tests.torch_utils.ops.test_kernels import TOLERANCE, assert_close
from torch_utils.ops import adaconv, bias_act, native, setup_filter, upfirdn2d
from torch_utils.ops.adaconv import adaconv_reference


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    if not native.available(request.param):
        pytest.skip("the references keep no order of memory")
    return request.param


def test_channels_last(device):
    torch.manual_seed(0)
    f = setup_filter([1, 3, 3, 1]).to(device)
    for shape in [(2, 32, 8, 16), (1, 19, 5, 7), (3, 1, 4, 4), (2, 16, 33, 1)]:
        x = torch.randn(shape, device=device)
        other = x.contiguous(memory_format=torch.channels_last)
        for op in (
            lambda x: upfirdn2d(x, f, up=2, padding=2),
            lambda x: bias_act(x, x[0, :, 0, 0].clone(), "lrelu"),
            lambda x: adaconv(x, torch.ones(*x.shape[:2], 1, 3, 3, device=device)),
        ):
            y = op(other)
            assert y.is_contiguous(memory_format=torch.channels_last), shape
            assert_close(y, op(x).double(), torch.float32, shape)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_adaconv_in_channels_last_memory(dtype, mode, device):
    """Every number of channels in a group, in vectors and not; a gradient that comes in planes as well."""
    torch.manual_seed(0)
    last = {"memory_format": torch.channels_last}
    sizes = itertools.cycle([(9, 14), (2, 2), (5, 8), (33, 3), (4, 31)])
    for channels, group, size in [
        *itertools.product([32], [1, 2, 4, 8, 16, 32], [1, 3]),
        *[(48, 1, 3), (48, 16, 3), (24, 8, 3), (20, 1, 3), (16, 2, 5)],
    ]:
        height, width = next(sizes)
        if mode == "reflect" and size == 5:
            height, width = 7, 6
        x, dy = (torch.randn(2, channels, height, width, device=device, dtype=dtype) for _ in range(2))
        kernel = torch.randn(2, channels, group, size, size, device=device, dtype=dtype)
        bias = torch.randn(2, channels, device=device, dtype=dtype)
        exact = [t.double().cpu().requires_grad_() for t in (x, kernel, bias)]
        want = adaconv_reference(*exact, mode)
        wanted = [want.detach(), *torch.autograd.grad(want, exact, dy.double().cpu())]
        for dy_order in (torch.contiguous_format, torch.channels_last):
            given = [t.clone().requires_grad_() for t in (x.contiguous(**last), kernel, bias)]
            y = adaconv(*given, mode)
            found = [y.detach(), *torch.autograd.grad(y, given, dy.contiguous(memory_format=dy_order))]
            assert y.is_contiguous(**last)
            for what, value, expected in zip(("y", "dx", "dkernel", "dbias"), found, wanted, strict=True):
                assert_close(value, expected, dtype, (what, channels, group, size, height, width))
