"""The blocks of the VQGAN family, under the parameter names of taming-transformers.

VQGAN (https://arxiv.org/abs/2012.09841), after the U-Net of DDPM (https://arxiv.org/abs/2006.11239).

Dimensions: B batch, C channels, H W of a map, D codebook dimension.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

GROUPS = 32  # of every group norm; widths are multiples of it


def swish(x: Tensor) -> Tensor:
    """x sigmoid(x), rounded as in the published models: F.silu differs in the last bit, which can move a code."""
    return x * torch.sigmoid(x)


class Norm(nn.GroupNorm):
    """Group norm that takes the quantised map, as MoVQ's norm does, and leaves it alone."""

    def __init__(self, channels: int):
        super().__init__(GROUPS, channels, eps=1e-6)

    def forward(self, input: Float[Tensor, "b c h w"], codes: Tensor | None = None) -> Float[Tensor, "b c h w"]:
        return super().forward(input)


class ResidualBlock(nn.Module):
    """x + convolution(swish(norm(convolution(swish(norm(x)))))), x going through a 1 x 1 if the width changes."""

    def __init__(self, channels_in: int, channels: int, dropout: float = 0.0, norm: Callable[[int], nn.Module] = Norm):
        super().__init__()
        self.norm1 = norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.norm2 = norm(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"], codes: Tensor | None = None) -> Float[Tensor, "b c2 h w"]:
        h = self.conv1(swish(self.norm1(x, codes)))
        h = self.conv2(self.dropout(swish(self.norm2(h, codes))))
        return self.nin_shortcut(x) + h


class Attention(nn.Module):
    """x + attention(norm(x)) between all places of a map, one head."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = Norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        h = self.norm(x)
        q, k, v = (project(h).flatten(2) for project in (self.q, self.k, self.v))
        weights = torch.softmax(q.mT @ k * q.shape[1] ** -0.5, dim=2)
        return x + self.proj_out((v @ weights.mT).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """Halve the sides; the missing row and column are added below and to the right only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the sides."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """Residual block, attention, residual block at the grid of codes."""

    def __init__(self, channels: int, dropout: float, attention: bool):
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, dropout)
        self.attn_1 = Attention(channels) if attention else nn.Identity()
        self.block_2 = ResidualBlock(channels, channels, dropout)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention or none, then the way to the next resolution."""

    def __init__(
        self,
        widths: tuple[int, int],
        num_blocks: int,
        block: Callable[[int, int], nn.Module],
        attention: Callable[[int], nn.Module] | None,
        downsample: nn.Module | None = None,
        upsample: nn.Module | None = None,
    ):
        super().__init__()
        before, channels = widths
        self.block = nn.ModuleList(block(channels if index else before, channels) for index in range(num_blocks))
        self.attn = nn.ModuleList(attention(channels) for _ in range(num_blocks) if attention)
        self.downsample = downsample or nn.Identity()
        self.upsample = upsample or nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"], codes: Tensor | None = None) -> Float[Tensor, "b c2 h2 w2"]:
        for index, block in enumerate(self.block):
            x = block(x, codes)
            if len(self.attn):
                x = self.attend(index, x, codes)
        return self.upsample(self.downsample(x))

    def attend(self, index: int, x: Float[Tensor, "b c h w"], codes: Tensor | None) -> Float[Tensor, "b c h w"]:
        return self.attn[index](x)
