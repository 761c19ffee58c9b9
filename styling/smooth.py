"""Videos without flicker: what changes from frame to frame because of noise should not change once stylized.

All classes here read frames in order, in batches [N, …] of any size, and give the same results for every division into
batches. Their state stays on the device of the frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class CutDetector:
    """Finds the frames that begin a scene: those whose thumbnail differs much from that of the frame before."""

    def __init__(self, threshold: float = 0.25, side: int = 16):
        """`threshold`: mean absolute difference of two thumbnails of `side` × `side` pixels with values in −1..1."""
        self.threshold, self.side = threshold, side
        self._last: Tensor | None = None

    def __call__(self, frames: Tensor) -> list[bool]:
        """For each of the frames [N, 3, H, W] in −1..1, whether it begins a scene. The very first one does."""
        small = F.adaptive_avg_pool2d(frames, self.side).float()
        before = small[:1] if self._last is None else self._last
        difference = (small - torch.cat([before, small[:-1]])).abs().mean((1, 2, 3))
        cuts = (difference > self.threshold).tolist()
        if self._last is None and cuts:
            cuts[0] = True
        self._last = small[-1:]
        return cuts


class MovingAverage:
    """An exponential moving average of tensors over frames: s ← a·s + (1 − a)·x, which starts anew at every cut.

    Of noise that is independent from frame to frame it leaves (1 − a) / (1 + a) of the variance. In the first frames
    after a cut it is the plain mean of these, so that the first frame has no larger weight than the others.
    """

    def __init__(self, a: float = 0.8):
        if not 0 <= a < 1:
            raise ValueError(f"a: expected 0 or more and less than 1, got {a}")
        self.a = a
        self._state: list[Tensor] = []
        self._seen = 0

    def __call__(self, tensors: Sequence[Tensor], cuts: Sequence[bool]) -> list[Tensor]:
        """Tensors [N, …] of N frames → their averages after each frame. `cuts[i]`: whether frame i begins a scene."""
        averages: list[list[Tensor]] = []
        for i, cut in enumerate(cuts):
            now = [tensor[i] for tensor in tensors]
            self._seen = 1 if cut or not self._state else self._seen + 1
            if self._seen == 1:
                self._state = now
            else:
                weight = max(1 - self.a, 1 / self._seen)
                self._state = [torch.lerp(old, new, weight) for old, new in zip(self._state, now, strict=True)]
            averages.append(self._state)
        return [torch.stack(frames) for frames in zip(*averages, strict=True)]


class MotionFilter:
    """Removes noise from the still parts of frames: a recursive average per pixel that gives up where something moves.

    y ← y + g·(x − y). In still parts g is that of a Kalman filter for a constant in noise, which gives the plain mean
    of the frames so far, but at least `gain`. Where the differences x − y around a pixel are larger than noise, g is 1,
    so that edges stay sharp. The frame-to-frame change of still noise is multiplied by g / √(2 − g): a fifth for the
    default gain.
    """

    # Thresholds of χ² per degree of freedom around a pixel: below STILL it is noise alone, above MOVING it is motion.
    STILL, MOVING = 2.5, 5.0
    WINDOW = 5  # side in pixels of the neighbourhood that decides
    FLOOR = 1 / 255  # least noise that is assumed, half a step of 8 bits in −1..1: compression can remove all of it
    CEILING = 0.08  # most noise that is assumed, ten steps: larger changes are motion everywhere

    def __init__(self, gain: float = 0.25, noise: float | None = None):
        """`noise`: the standard deviation of the noise in frames of −1..1; None to estimate it."""
        if not 0 < gain <= 1:
            raise ValueError(f"gain: expected more than 0, up to 1, got {gain}")
        self.gain, self.noise = gain, noise
        self._estimate: float | None = None
        # After the first frame: the last x, y, and the variance [1, H, W] of y as a multiple of the noise's.
        self._state: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, frames: Tensor, cuts: Sequence[bool]) -> Tensor:
        """The filtered frames [N, 3, H, W] in −1..1. `cuts[i]`: whether frame i begins a scene."""
        return torch.stack([self._next(x, cut) for x, cut in zip(frames, cuts, strict=True)])

    def _next(self, x: Tensor, cut: bool) -> Tensor:
        if cut or self._state is None or self._state[0].shape != x.shape:
            self._state = x, x, torch.ones_like(x[:1])
            return x
        last, y, variance = self._state
        difference = x - y
        expected = self._sigma(x, last) ** 2 * (1 + variance)
        moving = self._surprise(difference, expected).sub(self.STILL).div(self.MOVING - self.STILL).clamp(0, 1)
        still = (variance / (1 + variance)).clamp_min(self.gain)
        g = torch.lerp(still, torch.ones_like(still), moving)
        y = y + g * difference
        self._state = x, y, (1 - g) ** 2 * variance + g**2
        return y

    def _surprise(self, difference: Tensor, expected: Tensor) -> Tensor:
        """The squared differences [3, H, W] around each pixel relative to the expected, [1, H, W]: 1 for noise alone.

        The larger of the mean of squares, which finds edges, and the square of the mean, which finds the faint but
        uniform change of a shadow or of fading light.
        """
        scaled = difference / expected.sqrt()
        squares = _box(scaled.square().mean(0, keepdim=True), self.WINDOW)
        common = _box(scaled, self.WINDOW).square().mean(0, keepdim=True) * self.WINDOW**2
        return torch.maximum(squares, common / 2)  # halved, because 3 degrees of freedom scatter far more than 75

    def _sigma(self, x: Tensor, last: Tensor) -> float:
        """The standard deviation of the noise: the smaller one of two estimates that can only be too large.

        The change since the last frame includes motion, the second difference in space includes texture.
        """
        if self.noise is not None:
            return self.noise
        in_time = (x - last).flatten()[::7].abs().median() / (0.6745 * 2**0.5)
        mask = x.new_tensor([[1, -2, 1], [-2, 4, -2], [1, -2, 1]]).view(1, 1, 3, 3)  # Immerkær 1996; its norm is 6
        in_space = F.conv2d(x.unsqueeze(1), mask, stride=3).flatten().abs().median() / (0.6745 * 6)
        sigma = min(max(torch.minimum(in_time, in_space).item(), self.FLOOR), self.CEILING)
        self._estimate = sigma if self._estimate is None else 0.9 * self._estimate + 0.1 * sigma
        return self._estimate


def _box(x: Tensor, side: int) -> Tensor:
    """The mean of [C, H, W] over side × side pixels around each, at the border over those inside the image."""
    return F.avg_pool2d(x.unsqueeze(0), side, stride=1, padding=side // 2, count_include_pad=False)[0]
