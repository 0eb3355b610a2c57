"""A transformer between patches of pixels and code vectors, of any height and width.

ViT-VQGAN (https://arxiv.org/abs/2110.04627, section 3.1). Where the paper has learned positions of one size, places are
rotated by row and column; the last layer sees the patches around its own. The networks start at zero beside the linear
maps of `principal_components.py`.

Dimensions: B batch, C channels, D dimension of a code, H W pixels, h w grid of codes, N = h w.
"""

from dataclasses import dataclass

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .network import NetworkConfig, PixelDecoder
from .principal_components import linear_decoder, linear_encoder, principal_components
from .transformer import Block, check_heads, grid_rotation


@dataclass(frozen=True)
class ViTConfig(NetworkConfig):
    """
    patch_size: pixels a side of one code: 4, 8, 16 are f4, f8, f16
    hidden_size: channels of both transformers
    num_attention_heads: of each block; heads have a multiple of four components
    encoder_layers, decoder_layers: blocks of each; the paper's small, base and large are 512 x 8, 768 x 12, 1,280 x 32
    """

    kind = "vit"

    patch_size: int
    hidden_size: int
    num_attention_heads: int
    encoder_layers: int
    decoder_layers: int

    def __post_init__(self) -> None:
        check_heads(self.hidden_size, self.num_attention_heads)

    @property
    def patch(self) -> int:
        return self.patch_size

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


class Transformer(nn.Module):
    """Blocks over the places of a map [B, C, h, w], and a norm."""

    def __init__(self, config: ViTConfig, layers: int):
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.blocks = nn.ModuleList(Block(config.hidden_size, config.num_attention_heads) for _ in range(layers))
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        rows, columns = x.shape[-2:]
        rotation = grid_rotation(rows, columns, self.head_dim, x.device)
        x = rearrange(x, "b c h w -> b (h w) c")
        for block in self.blocks:
            x = block(x, rotation)
        return rearrange(self.norm(x), "b (h w) c -> b c h w", h=rows)


class Encoder(nn.Module):
    """Pixels [B, 3, H, W] in -1 .. 1 -> vectors [B, D, h, w]."""

    def __init__(self, config: ViTConfig, dim: int):
        super().__init__()
        self.embed = nn.Conv2d(3, config.hidden_size, config.patch_size, stride=config.patch_size)
        self.transformer = Transformer(config, config.encoder_layers)
        self.head = _zero(nn.Conv2d(config.hidden_size, dim, 1))
        self.linear = linear_encoder(config.patch_size, dim)

    def forward(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b d h w"]:
        return self.linear(pixels) + self.head(self.transformer(self.embed(pixels)))


class Decoder(PixelDecoder):
    """Code vectors [B, D, h, w] -> pixels [B, 3, H, W], not clamped."""

    def __init__(self, config: ViTConfig, dim: int):
        super().__init__()
        self.embed = nn.Conv2d(dim, config.hidden_size, 1)
        self.transformer = Transformer(config, config.decoder_layers)
        self.head = _zero(nn.Conv2d(config.hidden_size, 3 * config.patch_size**2, 3, padding=1))
        self.to_pixels = nn.PixelShuffle(config.patch_size)
        self.linear = linear_decoder(config.patch_size, dim)

    @property
    def last_layer(self) -> Tensor:
        return self.head.weight

    def forward(self, codes: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 height width"]:
        return self.linear(codes) + self.to_pixels(self.head(self.transformer(self.embed(codes))))


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    assert layer.bias is not None
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
