"""A transformer block over a sequence, and rotations that tell its places on a grid apart.

ViT (https://arxiv.org/abs/2010.11929), with norms before each part; rotary positions of two axes
(https://arxiv.org/abs/2403.13298, section 3.2), which know no largest grid.

Dimensions: B batch, N places of a sequence, C channels, H heads, E dimension of a head.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

BASE = 100.0  # of the wavelengths of rotations: 2 pi to 2 pi * 100 places


class Rotation(NamedTuple):
    """By an angle for each place and pair of components."""

    cos: Float[Tensor, "n e/2"]
    sin: Float[Tensor, "n e/2"]

    def __call__(self, x: Float[Tensor, "b h n e"]) -> Float[Tensor, "b h n e"]:
        """Turn each pair: component i of the first half with component i of the second."""
        first, second = x.chunk(2, dim=-1)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def grid_rotation(rows: int, columns: int, head_dim: int, device: torch.device) -> Rotation:
    """Of the places of a grid, row by row: half of the pairs turn with the row, the other half with the column."""
    frequencies = BASE ** -(torch.arange(head_dim // 4, device=device) / (head_dim // 4))
    row, column = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    angles = torch.cat([axis.flatten()[:, None] * frequencies for axis in (row, column)], dim=1)
    return Rotation(angles.cos(), angles.sin())


def check_heads(hidden_size: int, num_attention_heads: int) -> None:
    """ValueError for channels that cannot be dealt to heads of four components or a multiple, as rotations need."""
    if hidden_size % (4 * num_attention_heads):
        raise ValueError(
            f"tokenizer.network.hidden_size={hidden_size} must be a multiple of four times "
            f"tokenizer.network.num_attention_heads={num_attention_heads}"
        )


class Block(nn.Module):
    """x + attention(norm(x)), then + feed_forward(norm(x))."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.norm_2 = nn.LayerNorm(channels)
        self.up = nn.Linear(channels, 4 * channels)
        self.down = nn.Linear(4 * channels, channels)

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        rotation: Rotation | None = None,
        mask: Bool[Tensor, "n n"] | None = None,
    ) -> Float[Tensor, "b n c"]:
        """mask: which places (columns) each place (row) sees; None is all."""
        x = x + self._attend(self.norm_1(x), rotation, mask)
        return x + self.down(F.gelu(self.up(self.norm_2(x))))

    def _attend(self, x: Tensor, rotation: Rotation | None, mask: Tensor | None) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (part h e) -> part b h n e", part=3, h=self.heads)
        if rotation is not None:
            q, k = rotation(q), rotation(k)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v, mask), "b h n e -> b n (h e)"))
