"""The encoder and decoder of DALL-E's dVAE: residual blocks of four convolutions without norms, pooled by maxima.

https://arxiv.org/abs/2102.12092, appendix A.1; https://github.com/openai/DALL-E. There, the encoder makes the logits of
8,192 codes of its last level, and the first layer of the decoder is the codebook; here a 1 x 1 convolution to D
channels stands before the quantizer, which has both, and one behind it. Published weights therefore do not fit.

Dimensions: B batch, D dimension of a code, H W pixels, h w grid of codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from .network import NetworkConfig, PixelDecoder, standardise


@dataclass(frozen=True)
class DVAEConfig(NetworkConfig):
    """
    base_channels, channel_multiplier: width of each level, finest first; each after the first halves the sides, so that
        three levels are f4, four f8, five f16. Widths are multiples of 4
    num_res_blocks: residual blocks of each level
    decoder_channels: at the grid of codes, before the decoder's first block
    """

    kind = "dvae"

    base_channels: int
    channel_multiplier: Sequence[int]
    num_res_blocks: int
    decoder_channels: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_multiplier", tuple(int(n) for n in self.channel_multiplier))
        if not self.channel_multiplier or any(width % 4 or width < 4 for width in self.widths):
            raise ValueError(
                f"tokenizer.network.base_channels={self.base_channels} times tokenizer.network.channel_multiplier="
                f"{list(self.channel_multiplier)} must be multiples of 4"
            )

    @property
    def widths(self) -> list[int]:
        return [self.base_channels * multiplier for multiplier in self.channel_multiplier]

    @property
    def num_blocks(self) -> int:
        """Of all levels."""
        return self.num_res_blocks * len(self.channel_multiplier)

    @property
    def patch(self) -> int:
        return 2 ** (len(self.channel_multiplier) - 1)

    def encoder(self, dim: int) -> "Encoder":
        return Encoder(self, dim)

    def decoder(self, dim: int) -> "Decoder":
        return Decoder(self, dim)

    def start_from(
        self, encoder: nn.Module, decoder: nn.Module, pixels: Float[Tensor, "b 3 height width"], whitened: bool
    ) -> None:
        """Scale the vectors; the weights stay random."""
        assert isinstance(encoder, Encoder)
        standardise(encoder, encoder.head, pixels, whitened)


class Block(nn.Module):
    """A way past four convolutions in a quarter of the channels, whose sum is weighted by the number of blocks."""

    def __init__(self, channels_in: int, channels: int, kernels: Sequence[int], num_blocks: int):
        super().__init__()
        inner = channels // 4
        layers: list[nn.Module] = []
        for (before, after), kernel in zip(pairwise((channels_in, *[inner] * 3, channels)), kernels, strict=True):
            layers += [nn.ReLU(), nn.Conv2d(before, after, kernel, padding=kernel // 2)]
        self.layers = nn.Sequential(*layers)
        self.past = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()
        self.gain = num_blocks**-2

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        return self.past(x) + self.gain * self.layers(x)


class Encoder(nn.Module):
    """Pixels [B, 3, H, W] in -1 .. 1 -> vectors [B, D, h, w]."""

    def __init__(self, config: DVAEConfig, dim: int):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, config.base_channels, 7, padding=3)]
        before = config.base_channels
        for level, width in enumerate(config.widths):
            if level:
                layers.append(nn.MaxPool2d(2))
            for _ in range(config.num_res_blocks):
                layers.append(Block(before, width, (3, 3, 3, 1), config.num_blocks))
                before = width
        self.layers = nn.Sequential(*layers, nn.ReLU())
        self.head = nn.Conv2d(before, dim, 1)

    def forward(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b d h w"]:
        return self.head(self.layers(pixels))


class Decoder(PixelDecoder):
    """Code vectors [B, D, h, w] -> pixels [B, 3, H, W], not clamped."""

    def __init__(self, config: DVAEConfig, dim: int):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(dim, config.decoder_channels, 1)]
        before = config.decoder_channels
        for level, width in reversed(list(enumerate(config.widths))):
            for _ in range(config.num_res_blocks):
                layers.append(Block(before, width, (1, 3, 3, 3), config.num_blocks))
                before = width
            if level:
                layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
        self.layers = nn.Sequential(*layers, nn.ReLU())
        self.head = nn.Conv2d(before, 3, 1)

    @property
    def last_layer(self) -> Tensor:
        return self.head.weight

    def forward(self, codes: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 height width"]:
        return self.head(self.layers(codes))
