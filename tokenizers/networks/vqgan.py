"""The encoder and decoder of the published VQGANs, around a quantizer of any kind.

VQGAN (https://arxiv.org/abs/2012.09841), Chameleon (https://arxiv.org/abs/2405.09818), LlamaGen
(https://arxiv.org/abs/2406.06525). The layers are those of `tokenizers/vqgan.py`, which reads the published weights.

Dimensions: B batch, D dimension of a code, H W pixels, h w grid of codes, Z latent channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from .. import vqgan
from ..vqgan import check_levels
from .network import NetworkConfig, PixelDecoder, standardise


@dataclass(frozen=True)
class VQGANNetworkConfig(NetworkConfig):
    """
    latent_channels: between the networks and the 1 x 1 convolutions around the quantizer
    base_channels, channel_multiplier: width of each level, finest first; each after the first halves the sides, so that
        three levels are f4, four f8, five f16. Widths are multiples of 32
    num_res_blocks: residual blocks a level; the decoder has one more
    attention_levels: levels with attention behind each block, by their index from 0; between both networks' halves, at
        the grid of codes, there is always some
    """

    kind = "vqgan"

    latent_channels: int
    base_channels: int
    channel_multiplier: Sequence[int]
    num_res_blocks: int
    attention_levels: Sequence[int]

    def __post_init__(self) -> None:
        for name in ("channel_multiplier", "attention_levels"):
            object.__setattr__(self, name, tuple(int(n) for n in getattr(self, name)))
        check_levels(self.base_channels, self.channel_multiplier, self.num_res_blocks)
        check_attention_levels(self.attention_levels, len(self.channel_multiplier))
        self.shape(1)  # checks the rest

    @property
    def patch(self) -> int:
        return 2 ** (len(self.channel_multiplier) - 1)

    def shape(self, dim: int) -> vqgan.VQGANConfig:
        """As published tokenizers say it: levels with attention by their sides, here of a picture of one code."""
        return vqgan.VQGANConfig(
            embed_dim=dim,
            latent_channels=self.latent_channels,
            resolution=self.patch,
            base_channels=self.base_channels,
            channel_multiplier=self.channel_multiplier,
            num_res_blocks=self.num_res_blocks,
            attn_resolutions=[self.patch >> level for level in self.attention_levels],
        )

    def encoder(self, dim: int) -> "Encoder":
        return Encoder(self.shape(dim))

    def decoder(self, dim: int) -> "Decoder":
        return Decoder(self.shape(dim))

    def start_from(
        self, encoder: nn.Module, decoder: nn.Module, pixels: Float[Tensor, "b 3 height width"], whitened: bool
    ) -> None:
        """Scale the vectors; the weights stay random."""
        assert isinstance(encoder, Encoder)
        standardise(encoder, encoder.quant_conv, pixels, whitened)


def check_attention_levels(attention_levels: Sequence[int], levels: int) -> None:
    """ValueError for attention at a level that is not there."""
    for level in attention_levels:
        if not 0 <= level < levels:
            raise ValueError(
                f"tokenizer.network.attention_levels={list(attention_levels)} must be indices of "
                f"the {levels} levels of tokenizer.network.channel_multiplier: 0 .. {levels - 1}"
            )


class Encoder(nn.Module):
    """Pixels [B, 3, H, W] in -1 .. 1 -> vectors [B, D, h, w]."""

    def __init__(self, config: vqgan.VQGANConfig):
        super().__init__()
        self.network = vqgan.Encoder(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.embed_dim, 1)

    def forward(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b d h w"]:
        return self.quant_conv(self.network(pixels.contiguous()))


class Decoder(PixelDecoder):
    """Code vectors [B, D, h, w] -> pixels [B, 3, H, W], not clamped."""

    def __init__(self, config: vqgan.VQGANConfig):
        super().__init__()
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.latent_channels, 1)
        self.network = vqgan.Decoder(config)

    @property
    def last_layer(self) -> Tensor:
        return self.network.conv_out.weight

    def forward(self, codes: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 height width"]:
        return self.network(self.post_quant_conv(codes.contiguous()))
