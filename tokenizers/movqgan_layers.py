"""The blocks of Emu3's MoVQGAN: norms that see the quantised map, and convolutions over time.

Papers: https://arxiv.org/abs/2209.09002 (MoVQ), https://arxiv.org/abs/2409.18869 (Emu3).

Dimensions: B batch, C channels, T frames, H W of a map, D codebook dimension.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .vqgan_layers import Level, Norm, ResidualBlock, swish


class SpatialNorm(nn.Module):
    """A group norm, then scaled and shifted at each place by the quantised map (MoVQ, equation 6)."""

    def __init__(self, channels: int, codebook_dim: int):
        super().__init__()
        self.norm_layer = Norm(channels)
        self.conv_y = nn.Conv2d(codebook_dim, channels, 1)
        self.conv_b = nn.Conv2d(codebook_dim, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"], codes: Float[Tensor, "b d h2 w2"]) -> Float[Tensor, "b c h w"]:
        # enlarged behind the 1 x 1 convolutions, which is the same and cheaper
        scale, shift = (
            F.interpolate(part(codes), size=x.shape[-2:], mode="nearest") for part in (self.conv_y, self.conv_b)
        )
        return self.norm_layer(x) * scale + shift


def norm(channels: int, codebook_dim: int | None) -> Norm | SpatialNorm:
    """The encoder's norm, or with a codebook dimension the decoder's."""
    return Norm(channels) if codebook_dim is None else SpatialNorm(channels, codebook_dim)


class PlaceAttention(nn.Module):
    """Attention between all places of a map, one head; the norm before it and the sum after it stand outside."""

    def __init__(self, channels: int):
        super().__init__()
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        places = x.flatten(2).mT
        q, k, v = (project(places)[:, None] for project in (self.q_proj, self.k_proj, self.v_proj))
        attended = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return self.out_proj(attended).mT.unflatten(2, x.shape[2:])


class MoVQLevel(Level):
    """A level whose attention has its norms beside it, in `attn_norms`."""

    def __init__(
        self,
        widths: tuple[int, int],
        num_blocks: int,
        attention: bool,
        codebook_dim: int | None = None,
        downsample: nn.Module | None = None,
        upsample: nn.Module | None = None,
    ):
        def block(channels_in: int, channels: int) -> ResidualBlock:
            return ResidualBlock(channels_in, channels, norm=lambda width: norm(width, codebook_dim))

        super().__init__(widths, num_blocks, block, PlaceAttention if attention else None, downsample, upsample)
        self.attn_norms = nn.ModuleList(norm(widths[1], codebook_dim) for _ in self.attn)

    def attend(self, index: int, x: Float[Tensor, "b c h w"], codes: Tensor | None) -> Float[Tensor, "b c h w"]:
        return x + self.attn[index](self.attn_norms[index](x, codes))


class MoVQMiddle(nn.Module):
    """Residual block, attention, residual block at the grid of codes."""

    def __init__(self, channels: int, codebook_dim: int | None = None):
        super().__init__()
        self.block_1, self.block_2 = (
            ResidualBlock(channels, channels, norm=lambda width: norm(width, codebook_dim)) for _ in range(2)
        )
        self.attn_norm = norm(channels, codebook_dim)
        self.attn_1 = PlaceAttention(channels)

    def forward(self, x: Float[Tensor, "b c h w"], codes: Tensor | None = None) -> Float[Tensor, "b c h w"]:
        x = self.block_1(x, codes)
        x = x + self.attn_1(self.attn_norm(x, codes))
        return self.block_2(x, codes)


class CausalConv(nn.Module):
    """A convolution over clips whose frames see none that come later: two empty frames are put before the first."""

    def __init__(self, channels_in: int, channels: int, kernel: tuple[int, int, int] = (3, 3, 3), stride: int = 1):
        super().__init__()
        _, height, width = kernel
        self.conv = nn.Conv3d(
            channels_in, channels, kernel, stride=(stride, 1, 1), padding=(0, height // 2, width // 2)
        )

    def forward(self, clip: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c2 t2 h w"]:
        return self.conv(F.pad(clip, (0, 0, 0, 0, 2, 0)))


class HalveFrames(nn.Module):
    """Two frames become one."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = CausalConv(channels, channels, (4, 3, 3), stride=2)

    def forward(self, clip: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t2 h w"]:
        return self.conv(clip)


class DoubleFrames(nn.Module):
    """Each frame twice, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = CausalConv(channels, channels)

    def forward(self, clip: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t2 h w"]:
        return self.conv(clip.repeat_interleave(2, dim=2))


class TemporalBlock(nn.Module):
    """x + convolution(swish(norm(convolution(swish(norm(x)))))) over clips, with batch norms."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = nn.BatchNorm3d(channels)
        self.conv1 = CausalConv(channels, channels)
        self.norm2 = nn.BatchNorm3d(channels)
        self.conv2 = CausalConv(channels, channels)

    def forward(self, clip: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        h = self.conv1(swish(self.norm1(clip)))
        return clip + self.conv2(swish(self.norm2(h)))
