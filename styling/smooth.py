"""Calm from frame to frame: what changes in a video because of noise alone should not change in its stylized images.

Frames come in order, in batches [N, …] of any size: the result does not depend on how they are divided. State stays
on the device of the frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Statistics = list[tuple[Tensor, Tensor]]  # (mean, variance) of each stage, [N, C, 1, 1] or another shape [N, …]


class CutDetector:
    """Finds the frames that begin a scene: those that differ much from the one before when both are reduced."""

    def __init__(self, threshold: float = 0.25, side: int = 16):
        """`threshold`: the mean absolute difference at `side` × `side` pixels, in the units of the frames, −1..1."""
        self.threshold, self.side = threshold, side
        self._last: Tensor | None = None

    def __call__(self, frames: Tensor) -> list[bool]:
        """float [N, 3, H, W] in −1..1 → whether each begins a scene; the very first does."""
        small = F.adaptive_avg_pool2d(frames, self.side).float()
        before = small[:1] if self._last is None else self._last
        difference = (small - torch.cat([before, small[:-1]])).abs().mean((1, 2, 3))
        cuts = (difference > self.threshold).tolist()
        if self._last is None and cuts:
            cuts[0] = True
        self._last = small[-1:]
        return cuts


class StatisticsSmoother:
    """An exponential moving average of statistics over frames: s ← a·s + (1 − a)·x, from the start at every cut.

    Of noise that is independent from frame to frame, (1 − a) / (1 + a) of the variance is left. So soon after a cut
    that the average still leans on its first frame, it is the plain mean of the frames since.
    """

    def __init__(self, a: float = 0.8):
        if not 0 <= a < 1:
            raise ValueError(f"a = {a} is not in 0..1")
        self.a = a
        self._state: Statistics = []
        self._seen = 0

    def __call__(self, statistics: Statistics, cuts: Sequence[bool]) -> Statistics:
        """The statistics of N frames in order → the smoothed ones; `cuts[i]`: frame i begins a scene."""
        frames: list[Statistics] = []
        for i, cut in enumerate(cuts):
            now = [(mean[i], variance[i]) for mean, variance in statistics]
            self._seen = 1 if cut or not self._state else self._seen + 1
            if self._seen == 1:
                self._state = now
            else:
                new = max(1 - self.a, 1 / self._seen)
                self._state = [
                    (torch.lerp(old_mean, mean, new), torch.lerp(old_variance, variance, new))
                    for (old_mean, old_variance), (mean, variance) in zip(self._state, now, strict=True)
                ]
            frames.append(self._state)
        return [
            (torch.stack([mean for mean, _ in stage]), torch.stack([variance for _, variance in stage]))
            for stage in zip(*frames, strict=True)
        ]


class MotionFilter:
    """Takes noise out of the still parts of frames: a recursive average per pixel that lets go where something moves.

    y ← y + g·(x − y). In still parts g is that of a Kalman filter for a constant in noise, which is the plain mean of
    the frames so far, and never below `gain`; where the difference x − y around a pixel is more than noise, g is 1,
    so that edges stay as sharp as they are. Still noise of deviation σ then changes from frame to frame by
    g / √(2 − g) of what it did: a fifth for the default.
    """

    # Of χ² per degree of freedom, around a pixel: below the first, noise alone; above the second, motion.
    STILL, MOVING = 2.5, 5.0
    WINDOW = 5  # pixels
    FLOOR = 1 / 255  # half a step of 8 bits, in −1..1: videos are rounded and compressed to no noise at all
    CEILING = 0.08  # ten steps: more is motion everywhere, not noise

    def __init__(self, gain: float = 0.25, noise: float | None = None):
        """`noise`: its standard deviation in frames of −1..1; None estimates it."""
        if not 0 < gain <= 1:
            raise ValueError(f"gain = {gain} is not in 0..1")
        self.gain, self.noise = gain, noise
        self._estimate: float | None = None
        self._state: Tensor | None = None  # y
        self._input: Tensor | None = None  # the last x
        self._variance: Tensor | None = None  # of y, [1, H, W], in units of that of x

    def __call__(self, frames: Tensor, cuts: Sequence[bool]) -> Tensor:
        """float [N, 3, H, W] in −1..1, in order → the filtered ones; `cuts[i]`: frame i begins a scene."""
        return torch.stack([self._next(x, cut) for x, cut in zip(frames, cuts, strict=True)])

    def _next(self, x: Tensor, cut: bool) -> Tensor:
        if cut or self._state is None or self._state.shape != x.shape:
            self._state, self._variance = x, torch.ones_like(x[:1])
        else:
            sigma = self._sigma(x)
            difference = x - self._state
            expected = sigma**2 * (1 + self._variance)
            moving = self._surprise(difference, expected).sub(self.STILL).div(self.MOVING - self.STILL).clamp(0, 1)
            still = (self._variance / (1 + self._variance)).clamp_min(self.gain)
            g = torch.lerp(still, torch.ones_like(still), moving)
            self._variance = (1 - g) ** 2 * self._variance + g**2
            self._state = self._state + g * difference
        self._input = x
        return self._state

    def _surprise(self, difference: Tensor, expected: Tensor) -> Tensor:
        """How much larger differences [3, H, W] are around each pixel than expected, [1, H, W]: 1 in noise alone.

        Both the mean of squares, which finds edges, and the square of the mean, which finds the faint
        but common change of a shadow or of fading light.
        """
        scaled = difference / expected.sqrt()
        squares = _box(scaled.square().mean(0, keepdim=True), self.WINDOW)
        common = _box(scaled, self.WINDOW).square().mean(0, keepdim=True) * self.WINDOW**2
        return torch.maximum(squares, common / 2)  # 3 degrees of freedom scatter far more than 75

    def _sigma(self, x: Tensor) -> float:
        """The noise's standard deviation: the smaller one of two medians, each of which can only be too large.

        The change in time counts motion as noise, the second difference in space counts texture.
        """
        if self.noise is not None:
            return self.noise
        in_time = (x - self._input).flatten()[::7].abs().median() / (0.6745 * 2**0.5)
        mask = x.new_tensor([[1, -2, 1], [-2, 4, -2], [1, -2, 1]]).view(1, 1, 3, 3)  # Immerkær 1996; its norm is 6
        in_space = F.conv2d(x.unsqueeze(1), mask, stride=3).flatten().abs().median() / (0.6745 * 6)
        sigma = min(max(torch.minimum(in_time, in_space).item(), self.FLOOR), self.CEILING)
        self._estimate = sigma if self._estimate is None else 0.9 * self._estimate + 0.1 * sigma
        return self._estimate


def _box(x: Tensor, side: int) -> Tensor:
    """The mean of [C, H, W] over side × side pixels around each; over what is there at the border."""
    return F.avg_pool2d(x.unsqueeze(0), side, stride=1, padding=side // 2, count_include_pad=False)[0]
