"""DINOv2's vision transformer: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024.

An image in patches of 14 × 14 and a class token, position embeddings, then blocks of attention and a two-layer network,
each with LayerScale (Touvron et al., "Going deeper with Image Transformers", ICCV 2021, section 2.1):

    x ← x + γ₁ attention(norm(x)),    x ← x + γ₂ mlp(norm(x))

torch-fidelity would execute a program from the internet to make it. Here it is made from its weights alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = 64  # channels of an attention head, in all of the sizes
PATCH = 14
OFFSET = 0.1  # in patches, added to the grid to which the position embeddings are resized, as they were published


class Attention(nn.Module):
    """Self-attention of tokens [N, T, D]."""

    def __init__(self, width: int):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, width // HEAD, HEAD).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, width))


class MLP(nn.Module):
    """Two linear layers with GELU between them, on each token."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor for each channel."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Attention and MLP, each on normalized tokens and added to them. The attributes have the published names."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(width, eps=1e-6), Attention(width), LayerScale(width)
        self.norm2, self.mlp, self.ls2 = nn.LayerNorm(width, eps=1e-6), MLP(width), LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    """Images [N, 3, H, W] → a token for each patch, [N, H/14 · W/14, D]."""

    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, stride=PATCH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class DINOv2(nn.Module):
    """Normalized images [N, 3, H, W] → the class token [N, D]; H and W are multiples of 14.

    `positions` are those of the images that it was trained with, in a square.
    """

    def __init__(self, width: int, depth: int, positions: int):
        super().__init__()
        self.grid = round(positions**0.5)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + positions, width))
        self.patch_embed = PatchEmbedding(width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def position_embeddings(self, rows: int, columns: int) -> Tensor:
        """[1, 1 + rows · columns, D]: those of the patches resized (bicubic)."""
        if (rows, columns) == (self.grid, self.grid):
            return self.pos_embed
        token, patches = self.pos_embed.split([1, self.grid**2], dim=1)
        patches = patches.unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        scale = ((rows + OFFSET) / self.grid, (columns + OFFSET) / self.grid)
        patches = F.interpolate(patches, scale_factor=scale, mode="bicubic")
        return torch.cat([token, patches.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[2] // PATCH, x.shape[3] // PATCH
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], dim=1)
        tokens = tokens + self.position_embeddings(rows, columns)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, 0])


def load_dinov2(tensors: Mapping[str, Tensor]) -> DINOv2:
    """The network of those weights, of any width and depth. Raises RuntimeError or KeyError where they do not fit."""
    tensors = {name: tensor for name, tensor in tensors.items() if name != "mask_token"}  # of the training alone
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    _, positions, width = tensors["pos_embed"].shape
    with torch.device("meta"):
        network = DINOv2(width, depth, positions - 1)
    network.load_state_dict(tensors, assign=True)
    return network.float().eval().requires_grad_(False)
