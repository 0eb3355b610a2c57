"""The encoder and decoder of the published VQGANs, around a quantizer of any kind.

VQGAN (https://arxiv.org/abs/2012.09841), Chameleon (https://arxiv.org/abs/2405.09818), LlamaGen
(https://arxiv.org/abs/2406.06525). The layers are those of `tokenizers/vqgan.py`, which reads the published weights.

Dimensions: B batch, D dimension of a code, H W pixels, h w grid of codes, Z latent channels.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from .. import vqgan
from .levels import LevelsConfig
from .network import PixelDecoder, standardise


@dataclass(frozen=True)
class VQGANNetworkConfig(LevelsConfig):
    """
    latent_channels: between the networks and the 1 x 1 convolutions around the quantizer

    Between both networks' halves, at the grid of codes, there is always some attention.
    """

    kind = "vqgan"

    latent_channels: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.shape(1)  # checks the rest

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
