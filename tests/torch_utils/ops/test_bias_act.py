"""ops.bias_act against its formula, number by number."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from torch_utils.ops import bias_act
from torch_utils.ops.bias_act import ACTIVATIONS, bias_act_reference

pytestmark = pytest.mark.usefixtures("implementation")

# Name → (the function of one number, its own gain).
FORMULAS = {
    "linear": (lambda v: v, 1.0),
    "relu": (lambda v: max(v, 0.0), math.sqrt(2)),
    "lrelu": (lambda v: v if v > 0 else 0.2 * v, math.sqrt(2)),
    "sigmoid": (lambda v: 1 / (1 + math.exp(-v)), 1.0),
    "tanh": (math.tanh, 1.0),
}


def reference(x, bias, act, gain, clamp):
    function, own_gain = FORMULAS[act]
    y = torch.empty_like(x)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            offset = 0.0 if bias is None else float(bias[c])
            values = [(own_gain if gain is None else gain) * function(v + offset) for v in x[n, c].flatten().tolist()]
            if clamp is not None:
                values = [min(max(v, -clamp), clamp) for v in values]
            y[n, c] = torch.tensor(values, dtype=x.dtype).view(x.shape[2:])
    return y


def test_every_activation_has_a_formula_here():
    assert ACTIVATIONS.keys() == FORMULAS.keys()


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("act", FORMULAS)
def test_equals_the_formula(act, shape):
    torch.manual_seed(0)
    x, bias = 2 * torch.randn(shape, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    for b in (None, bias):
        for gain in (None, 1.0, 0.3, 0.0):
            for clamp in (None, 0.5):
                y = bias_act(x, b, act, gain, clamp)
                torch.testing.assert_close(y, reference(x, b, act, gain, clamp), rtol=1e-12, atol=1e-12)


def test_the_default_is_bias_alone():
    x, bias = torch.tensor([[1.0, -2.0], [3.0, 4.0]]), torch.tensor([10.0, 20.0])
    assert bias_act(x, bias).tolist() == [[11.0, 18.0], [13.0, 24.0]]
    assert torch.equal(bias_act(x), x)


def test_the_argument_is_left_alone():
    x = torch.tensor([[-5.0, 5.0]])
    bias_act(x, torch.ones(2), "lrelu", clamp=1.0)
    assert x.tolist() == [[-5.0, 5.0]]


@pytest.mark.parametrize("act", FORMULAS)
def test_derivatives(act):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    v = x + bias.detach()[:, None]
    x = torch.where(v.abs() < 0.05, x + 0.2, x).requires_grad_()  # not at the kink

    def f(x, bias):
        return bias_act(x, bias, act, gain=1.7)

    assert gradcheck(f, (x, bias))
    assert gradgradcheck(f, (x, bias))


def test_nothing_flows_where_the_clamp_cuts():
    x = torch.tensor([[-30.0, -0.5, 0.5, 3.0]], dtype=torch.float64, requires_grad=True)
    y = bias_act(x, act="lrelu", gain=2.0, clamp=4.0)
    assert y.tolist() == [[-4.0, -0.2, 1.0, 4.0]]
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.tolist() == [[0.0, 0.4, 2.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_no_number_and_infinity(act, device, dtype):
    """Forward and gradient as PyTorch's functions have them, for each pair of what comes in from both sides."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    special = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1.0, -1.0, 3.0, -3.0]
    x, dy = (t.to(dtype).view(1, 1, -1).repeat(1, 2, 1) for t in torch.cartesian_prod(*[torch.tensor(special)] * 2).T)
    for gain, clamp in [(1.0, None), (2.0, 1.5), (-1.0, None), (-0.5, 0.3), (1.0, 0.0), (-2.0, 100.0)]:
        results = []
        for op, where, as_type in ((bias_act, device, dtype), (bias_act_reference, "cpu", torch.float64)):
            t = x.to(where, as_type).requires_grad_()
            bias = torch.zeros(2, dtype=as_type, device=where)
            y = op(t, bias, act, gain, clamp)
            (gradient,) = torch.autograd.grad(y, t, dy.to(y))
            results.append([value.detach().double().cpu() for value in (y, gradient)])
        edge = clamp is not None and results[1][0].abs() == clamp  # there PyTorch lets pass, and an op that sees y cuts
        results = [
            (y, torch.where(edge, 0, gradient)) if clamp is not None else (y, gradient) for y, gradient in results
        ]
        eps = 8 * torch.finfo(dtype).eps
        for value, want in zip(*results, strict=True):
            message = f"gain {gain}, clamp {clamp}"
            torch.testing.assert_close(
                value, want, rtol=eps, atol=eps, equal_nan=True, msg=lambda m, w=message: f"{w}: {m}"
            )


def test_gains_keep_the_second_moment():
    torch.manual_seed(0)
    x = torch.randn(1, 1, 400_000, dtype=torch.float64)
    # E lrelu(x)² = ½(1 + 0.2²), doubled by the gain √2
    for act, expected in [("linear", 1.0), ("relu", 1.0), ("lrelu", 1.04)]:
        assert float(bias_act(x, act=act).square().mean()) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("bias", "act", "message"),
    [
        (None, "gelu", "^act: .*linear, relu, lrelu, sigmoid, tanh, got 'gelu'"),
        (torch.zeros(4), "lrelu", r"^bias: expected \[3\], got \[4\]"),
        (torch.zeros(3, 1), "lrelu", r"^bias: expected \[3\], got \[3, 1\]"),
    ],
)
def test_errors_name_the_argument(bias, act, message):
    with pytest.raises(ValueError, match=message):
        bias_act(torch.zeros(2, 3, 5), bias, act)


def test_a_bias_needs_channels():
    with pytest.raises(ValueError, match=r"^x: expected \[N, C, ...\], got \[3\]"):
        bias_act(torch.zeros(3), torch.zeros(3))
