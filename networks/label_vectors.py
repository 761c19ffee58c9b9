"""Label vectors: labels that are numbers, such as an age and an angle, in place of a class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

EXAMPLES = 64  # label vectors of the data that a model keeps


class LabelVectors(nn.Module):
    """What a model knows of the labels it was trained with, and their standardization.

    Its buffers: the `mean` and the standard deviation `std` of each number over the data, [c_dim], the `low`est and
    `high`est value, [c_dim], and `examples` [EXAMPLES, c_dim], labels of images: numbers that do occur together.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    examples: Tensor

    def __init__(self, c_dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(c_dim))
        self.register_buffer("std", torch.ones(c_dim))
        self.register_buffer("low", torch.zeros(c_dim))
        self.register_buffer("high", torch.zeros(c_dim))
        self.register_buffer("examples", torch.zeros(EXAMPLES, c_dim))

    def fit(self, labels: Tensor) -> None:
        """Takes all of it from the labels [M, c_dim] of a data set. A number that is always the same has std 1."""
        std, mean = torch.std_mean(labels.double(), dim=0, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 0, std, 1.0))
        self.low.copy_(labels.amin(dim=0))
        self.high.copy_(labels.amax(dim=0))
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        self.examples.copy_(labels[order[torch.arange(EXAMPLES) % len(labels)]])

    def forward(self, c: Tensor) -> Tensor:
        """(c − mean) / std, [N, c_dim]."""
        return (c - self.mean) / self.std

    def ranges(self) -> list[tuple[float, float]]:
        """The lowest and the highest value of each number."""
        return list(zip(self.low.tolist(), self.high.tolist(), strict=True))

    def in_turn(self, numbers: Sequence[int]) -> Tensor:
        """The examples of these numbers, modulo EXAMPLES, [N, c_dim]."""
        chosen = torch.tensor([number % EXAMPLES for number in numbers], dtype=torch.int64)
        return self.examples[chosen.to(self.examples.device)]
