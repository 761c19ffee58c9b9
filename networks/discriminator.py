"""StyleGAN2's residual discriminator, with minibatch standard deviation and projection for class labels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, cast

import torch
from torch import Tensor, nn

from networks.generator import MappingNetwork, NetworkConfig
from networks.layers import Conv2d, Linear, in_fast_order
from torch_utils.schema import Within


@dataclass
class DiscriminatorConfig(NetworkConfig):
    """Everything that is needed to build a Discriminator."""

    mbstd_group: Annotated[int, Within(0, 2**16)] = 4  # samples that share a standard deviation; 0 leaves it out

    def __post_init__(self):
        super().__post_init__()
        if self.mbstd_group < 0:
            raise ValueError(f"mbstd_group: expected 0 or more, got {self.mbstd_group}")


class DiscriminatorBlock(nn.Module):
    """[N, I, H, W] → [N, O, H/2, W/2]: two convolutions beside a 1 × 1 skip, both of half the variance."""

    def __init__(self, config: DiscriminatorConfig, i: int, o: int):
        super().__init__()
        self.conv0 = Conv2d(i, i, 3, act="lrelu", clamp=config.clamp)
        # The clamp goes along with the gain of √½ of the two branches, as in StyleGAN2-ADA.
        clamp = None if config.clamp is None else config.clamp * 0.5**0.5
        self.conv1 = Conv2d(i, o, 3, act="lrelu", down=True, clamp=clamp)
        self.skip = Conv2d(i, o, 1, bias=False, down=True)
        self.compute_dtype: torch.dtype | None = None  # precision of the layers; None for that of the weights

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.compute_dtype or self.skip.weight.dtype)
        # √½ of the activation's own gain √2 is 1
        return self.conv1(self.conv0(x), gain=1.0) + self.skip(x, gain=0.5**0.5)


def group_size(n: int, group: int) -> int:
    """Of n samples, how many share a standard deviation: `group`, or the largest smaller number that divides n."""
    return next((size for size in range(min(group, n), 0, -1) if n % size == 0), 0)


def minibatch_std(x: Tensor, group: int) -> Tensor:
    """Appends to x [N, C, H, W] a channel with the standard deviation over groups of samples, averaged over C, H and W.

    The samples of a group are N / group apart (Karras et al. 2018, section 3; groups as in StyleGAN2), and as many
    as `group_size` says.
    """
    n, _, h, w = x.shape
    group = group_size(n, group)
    y = x.reshape(group, n // group, -1)
    y = (y.var(dim=0, correction=0) + 1e-8).sqrt().mean(dim=1)  # [N / group]
    return torch.cat([x, y.repeat(group).view(n, 1, 1, 1).expand(n, 1, h, w)], dim=1)


class Discriminator(nn.Module):
    """Image [N, img_channels, H, W], c [N, c_dim] → logits [N, 1], positive for images that look real."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.config = config
        widths = config.block_channels[::-1]  # from the image on
        channels, (height, width) = widths[-1], config.block_sizes[0]
        self.fromrgb = Conv2d(config.img_channels, widths[0], 1, act="lrelu", clamp=config.clamp)
        self.blocks = nn.Sequential(*(DiscriminatorBlock(config, i, o) for i, o in pairwise(widths)))
        self.conv = Conv2d(channels + (config.mbstd_group > 0), channels, 3, act="lrelu", clamp=config.clamp)
        self.fc = Linear(channels * height * width, channels, act="lrelu")
        self.out = Linear(channels, channels if config.c_dim else 1)
        self.mapping = None
        if config.c_dim:
            vectors = config.vector_labels
            self.mapping = MappingNetwork(0, config.c_dim, channels, config.map_depth, vector_labels=vectors)

    def forward(self, img: Tensor, c: Tensor | None = None) -> Tensor:
        first = cast(DiscriminatorBlock, self.blocks[0]).compute_dtype if len(self.blocks) else None
        x = self.blocks(self.fromrgb(in_fast_order(img.to(first or img.dtype)))).to(img.dtype)
        x = self.conv(minibatch_std(x, self.config.mbstd_group) if self.config.mbstd_group else x)
        x = self.out(self.fc(x.flatten(1)))
        if self.mapping is None:
            return x
        # projection (Miyato and Koyama 2018): how well the features match the embedding of the label
        return (x * self.mapping(None, c)).sum(dim=1, keepdim=True) / x.shape[1] ** 0.5
