"""The encoder and decoder of Emu3's MoVQGAN, around a quantizer of any kind, for pictures.

Papers: https://arxiv.org/abs/2209.09002 (MoVQ), https://arxiv.org/abs/2409.18869 (Emu3, section 2.2). The layers are
those of `tokenizers/movqgan.py`, which reads the published weights: the same tensors in the same shapes.

Emu3 takes a picture for a clip of T equal frames, which layers over time make one code of, and draws the first of the
frames that they make of it again. So does this network, but that the frames, which are equal, are encoded once and then
repeated: the same numbers up to their last digits, in a T-th of the time. Time is causal, so that the first frame does
not see the others: the layers over time that follow the codes learn what they do to a first frame, of their kernels
the part that lies on it. The batch norms over time take the statistics of the batch while training, each rank its own.

Dimensions: B batch, T frames of a code, D dimension of a code, H W pixels, h w grid of codes.
"""

from dataclasses import dataclass

from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from .. import movqgan
from ..movqgan_layers import CausalConv
from .levels import LevelsConfig
from .network import PixelDecoder, standardise


@dataclass(frozen=True)
class MoVQGANNetworkConfig(LevelsConfig):
    """
    temporal_downsample_factor: frames of a code, a power of two

    Of blocks over time there are as many as `num_res_blocks`, and the decoder has one more of each a level.
    """

    kind = "movqgan"

    temporal_downsample_factor: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.shape(1)  # checks the rest

    def shape(self, dim: int) -> movqgan.MoVQGANConfig:
        """The same as the published tokenizer says it."""
        return movqgan.MoVQGANConfig(
            embed_dim=dim,
            temporal_downsample_factor=self.temporal_downsample_factor,
            base_channels=self.base_channels,
            channel_multiplier=self.channel_multiplier,
            num_res_blocks=self.num_res_blocks,
            attn_resolutions=self.attention_levels,
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
        standardise(encoder, encoder.quant_conv.conv, pixels, whitened)


class Encoder(nn.Module):
    """Pixels [B, 3, H, W] in -1 .. 1 -> vectors [B, D, h, w]."""

    def __init__(self, config: movqgan.MoVQGANConfig):
        super().__init__()
        self.frames = config.temporal_downsample_factor
        self.network = movqgan.Encoder(config)
        self.quant_conv = CausalConv(config.embed_dim, config.embed_dim, (3, 1, 1))

    def forward(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b d h w"]:
        latents = self.network.in_space(pixels.contiguous())
        clip = repeat(latents, "b d h w -> b d frames h w", frames=self.frames)
        return self.quant_conv(self.network.in_time(clip))[:, :, 0]


class Decoder(PixelDecoder):
    """Code vectors [B, D, h, w] -> pixels [B, 3, H, W], not clamped."""

    def __init__(self, config: movqgan.MoVQGANConfig):
        super().__init__()
        self.post_quant_conv = CausalConv(config.embed_dim, config.embed_dim, (3, 1, 1))
        self.network = movqgan.Decoder(config)

    @property
    def last_layer(self) -> Tensor:
        return self.network.conv_out.weight

    def forward(self, codes: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 height width"]:
        clip = codes.contiguous()[:, :, None]
        latents, codes = (x[:, :, 0] for x in self.network.in_time(self.post_quant_conv(clip), clip))
        return self.network.in_space(latents, codes)
