"""What the tests of both networks share."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor


@pytest.fixture
def gradient_equals_finite_differences() -> Callable[[Callable[[], Tensor], Sequence[Tensor]], None]:
    def check(function: Callable[[], Tensor], parameters: Sequence[Tensor], step: float = 1e-6) -> None:
        """The slope of a function of the parameters along a random direction, by gradients and by differences."""
        directions = [torch.randn_like(p) for p in parameters]
        gradients = torch.autograd.grad(function(), parameters, allow_unused=True)
        slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None)
        values = []
        for sign in (1, -2):  # there, and from there to the other side
            with torch.no_grad():
                for p, d in zip(parameters, directions, strict=True):
                    p += sign * step * d
            values.append(float(function().detach()))
        assert float(slope) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)

    return check
