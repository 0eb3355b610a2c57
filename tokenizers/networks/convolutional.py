"""Encoder and decoder between pixels and code vectors, of any height and width, by convolutions and attention.

Pixels are folded into channels first (a stem of `stem` x `stem` pixels), so that nothing runs at full resolution; each
further level halves the grid. At the grid of codes itself, attention lets distant codes agree. The networks start at
zero beside the linear maps of `principal_components.py`. With `spatial_norm` the decoder's norms are scaled and shifted
by the quantised map, as in MoVQ (https://arxiv.org/abs/2209.09002, section 3.2).

Dimensions: B batch, C channels, D codebook dimension, H W pixels, h w grid of codes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .network import NetworkConfig, PixelDecoder
from .principal_components import linear_decoder, linear_encoder, principal_components

HEAD_WIDTH = 32  # channels of an attention head


@dataclass(frozen=True)
class ConvolutionalConfig(NetworkConfig):
    """
    stem: pixels a side that are folded into the channels of the first level
    channels: width of each level, finest first; each level after the first halves the grid
    encoder_blocks, decoder_blocks: residual blocks of each level, in the same order
    spatial_norm: the decoder's norms see the quantised map (MoVQ) instead of plain gains
    encoder_kernel: side of the encoder's convolutions; with 1 a code tells of its own patch alone, so that equal
        patches have equal codes, which are the easier to predict
    encoder_attention, decoder_attention: attention blocks at the grid of codes, the encoder's last, the decoder's first
    """

    kind = "convolutional"

    stem: int
    channels: Sequence[int]
    encoder_blocks: Sequence[int]
    decoder_blocks: Sequence[int]
    spatial_norm: bool
    encoder_kernel: int = 3
    encoder_attention: int = 0
    decoder_attention: int = 0

    def __post_init__(self) -> None:
        for name in ("channels", "encoder_blocks", "decoder_blocks"):
            object.__setattr__(self, name, tuple(int(n) for n in getattr(self, name)))
        if self.stem < 1:
            raise ValueError(f"stem {self.stem} must be 1 or more")
        if self.encoder_kernel % 2 != 1:
            raise ValueError(f"encoder_kernel {self.encoder_kernel} must be odd: 1, 3, …")
        if not self.channels or not len(self.channels) == len(self.encoder_blocks) == len(self.decoder_blocks):
            raise ValueError(
                f"channels {self.channels}, encoder_blocks {self.encoder_blocks} and decoder_blocks "
                f"{self.decoder_blocks} need one number a level each"
            )

    @property
    def patch(self) -> int:
        return self.stem * 2 ** (len(self.channels) - 1)

    def encoder(self, dim: int) -> "Encoder":
        return Encoder(self, dim)

    def decoder(self, dim: int) -> "Decoder":
        return Decoder(self, dim)

    def start_from(
        self, encoder: nn.Module, decoder: nn.Module, pixels: Float[Tensor, "b 3 height width"], whitened: bool
    ) -> None:
        """Begin at principal components of patches."""
        assert isinstance(encoder, Encoder)
        assert isinstance(decoder, Decoder)
        principal_components(encoder.linear, decoder.linear, pixels, whitened)


class RMSNorm(nn.Module):
    """Divide by the root mean square over channels at each place; a gain and a shift a channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor, codes: Tensor | None = None) -> Tensor:
        return _normalised(x) * self.weight + self.bias


class SpatialNorm(nn.Module):
    """The same norm, its gain and shift read off the quantised map at each place (MoVQ, equation 6)."""

    def __init__(self, channels: int, codebook_dim: int):
        super().__init__()
        self.modulation = nn.Conv2d(codebook_dim, 2 * channels, 1)
        _zero(self.modulation)
        with torch.no_grad():
            _bias(self.modulation)[:channels] = 1

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        gain, shift = self.modulation(codes).chunk(2, dim=1)
        if gain.shape[-2:] != x.shape[-2:]:
            gain, shift = (F.interpolate(part, size=x.shape[-2:], mode="nearest") for part in (gain, shift))
        return _normalised(x) * gain + shift


def _normalised(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)


class ResidualBlock(nn.Module):
    """x + convolution(norm(convolution(norm(x)))), the last convolution starting at zero."""

    def __init__(self, channels: int, spatial_dim: int | None = None, kernel: int = 3):
        super().__init__()
        self.norm_1 = _norm(channels, spatial_dim)
        self.conv_1 = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        self.norm_2 = _norm(channels, spatial_dim)
        self.conv_2 = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        nn.init.zeros_(self.conv_2.weight)

    def forward(self, x: Tensor, codes: Tensor | None = None) -> Tensor:
        h = self.conv_1(F.silu(self.norm_1(x, codes)))
        return x + self.conv_2(F.silu(self.norm_2(h, codes)))


class AttentionBlock(nn.Module):
    """A transformer block on a grid: x + positions(x), then + attention(norm(x)), then + feed_forward(norm(x)).

    Places are told apart by a depthwise convolution, whatever the size of the grid (https://arxiv.org/abs/2102.10882).
    Each part starts at zero.
    """

    def __init__(self, channels: int, spatial_dim: int | None = None):
        super().__init__()
        if channels % HEAD_WIDTH:
            raise ValueError(f"attention needs a multiple of {HEAD_WIDTH} channels at the last level, not {channels}")
        self.position = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm_1 = _norm(channels, spatial_dim)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels)
        self.norm_2 = _norm(channels, spatial_dim)
        self.up = nn.Linear(channels, 4 * channels)
        self.down = nn.Linear(4 * channels, channels)
        for layer in (self.position, self.out, self.down):
            _zero(layer)

    def forward(self, x: Tensor, codes: Tensor | None = None) -> Tensor:
        x = x + self.position(x)
        x = x + _on_places(self._attend, self.norm_1(x, codes))
        return x + _on_places(self._feed_forward, self.norm_2(x, codes))

    def _attend(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        heads = self.qkv(x).unflatten(2, (3, -1, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))

    def _feed_forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        return self.down(F.gelu(self.up(x)))


def _on_places(function: Callable[[Tensor], Tensor], x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """The function of the places as a sequence [B, N, C]."""
    return function(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


def _norm(channels: int, spatial_dim: int | None) -> nn.Module:
    return RMSNorm(channels) if spatial_dim is None else SpatialNorm(channels, spatial_dim)


class Encoder(nn.Module):
    """Pixels [B, 3, H, W] in -1 .. 1 -> vectors [B, D, h, w], h = H / patch."""

    def __init__(self, config: ConvolutionalConfig, codebook_dim: int):
        super().__init__()
        widths = config.channels
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(config.stem),
            nn.Conv2d(3 * config.stem**2, widths[0], config.encoder_kernel, padding=config.encoder_kernel // 2),
        ]
        for level, (width, blocks) in enumerate(zip(widths, config.encoder_blocks, strict=True)):
            if level:
                layers += [nn.PixelUnshuffle(2), nn.Conv2d(4 * widths[level - 1], width, 1)]
            layers += [ResidualBlock(width, kernel=config.encoder_kernel) for _ in range(blocks)]
        layers += [AttentionBlock(widths[-1]) for _ in range(config.encoder_attention)]
        head = nn.Conv2d(widths[-1], codebook_dim, 1)
        _zero(head)
        self.layers = nn.Sequential(*layers, RMSNorm(widths[-1]), head)
        self.linear = linear_encoder(config.patch, codebook_dim)

    def forward(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b d h w"]:
        return self.linear(pixels) + self.layers(pixels)


class Decoder(PixelDecoder):
    """Code vectors [B, D, h, w] -> pixels [B, 3, H, W], not clamped."""

    def __init__(self, config: ConvolutionalConfig, codebook_dim: int):
        super().__init__()
        widths = config.channels
        spatial_dim = codebook_dim if config.spatial_norm else None
        self.stem = nn.Conv2d(codebook_dim, widths[-1], 3, padding=1)
        self.attention = nn.ModuleList(AttentionBlock(widths[-1], spatial_dim) for _ in range(config.decoder_attention))
        self.levels = nn.ModuleList()
        self.ups = nn.ModuleList()
        for level in reversed(range(len(widths))):
            width, blocks = widths[level], config.decoder_blocks[level]
            self.levels.append(nn.ModuleList(ResidualBlock(width, spatial_dim) for _ in range(blocks)))
            if level:
                self.ups.append(nn.Sequential(nn.Conv2d(width, 4 * widths[level - 1], 1), nn.PixelShuffle(2)))
        self.norm = _norm(widths[0], spatial_dim)
        last = nn.Conv2d(widths[0], 3 * config.stem**2, 3, padding=1)
        _zero(last)
        self.head = nn.Sequential(nn.SiLU(), last, nn.PixelShuffle(config.stem))
        self.linear = linear_decoder(config.patch, codebook_dim)

    @property
    def last_layer(self) -> Tensor:
        layer = self.head[1]
        assert isinstance(layer, nn.Conv2d)
        return layer.weight

    def forward(self, codes: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 height width"]:
        x = self.stem(codes)
        for block in self.attention:
            x = block(x, codes)
        for index, level in enumerate(self.levels):
            assert isinstance(level, nn.ModuleList)
            for block in level:
                x = block(x, codes)
            if index < len(self.ups):
                x = self.ups[index](x)
        return self.linear(codes) + self.head(self.norm(x, codes))


def _zero(layer: nn.Conv2d | nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(_bias(layer))


def _bias(layer: nn.Conv2d | nn.Linear) -> Tensor:
    assert layer.bias is not None
    return layer.bias
