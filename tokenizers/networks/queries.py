"""One row of codes for a whole picture of one size: learned queries read its patches, and a decoder draws them all.

TiTok (https://arxiv.org/abs/2406.07550, section 3.2); queries that see only those before them as in SEED
(https://arxiv.org/abs/2307.08041, section 3.1); a tail that is left out now and then while training, so that the first
codes say most, is nested dropout (https://arxiv.org/abs/1402.0915), in picture tokenizers FlexTok's
(https://arxiv.org/abs/2502.13967).

Dimensions: B batch, C channels, D dimension of a code, H = W pixels, h w patches, P = h w, N queries.
"""

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .network import NetworkConfig, PixelDecoder, standardise
from .transformer import Block, check_heads


@dataclass(frozen=True)
class QueriesConfig(NetworkConfig):
    """
    resolution: pixels a side of every picture; others are refused
    patch_size: pixels a side of the patches that are read and drawn
    num_queries: codes of a picture
    hidden_size: channels of both transformers
    num_attention_heads: of each block; heads have a multiple of four components
    encoder_layers, decoder_layers: blocks of each
    causal: a query sees all patches, but of the queries only those before it: no code depends on later ones
    tail_dropout: share of the training steps in which the decoder gets the first codes only, how many is drawn evenly;
        with some, the first codes of a picture are decoded without the others
    """

    kind = "queries"

    resolution: int
    patch_size: int
    num_queries: int
    hidden_size: int
    num_attention_heads: int
    encoder_layers: int
    decoder_layers: int
    causal: bool
    tail_dropout: float

    def __post_init__(self) -> None:
        check_heads(self.hidden_size, self.num_attention_heads)
        if self.resolution % self.patch_size:
            raise ValueError(
                f"tokenizer.network.resolution={self.resolution} must be a multiple of "
                f"tokenizer.network.patch_size={self.patch_size}"
            )

    @property
    def patch(self) -> int:
        """Of a code: the whole picture."""
        return self.resolution

    @property
    def num_patches(self) -> int:
        return (self.resolution // self.patch_size) ** 2

    def grid(self, height: int, width: int) -> tuple[int, int]:
        if (height, width) != (self.resolution, self.resolution):
            raise ValueError(
                f"a picture of {height} x {width} pixels: this image tokenizer takes "
                f"{self.resolution} x {self.resolution} alone"
            )
        return 1, self.num_queries

    def size(self, rows: int, columns: int) -> tuple[int, int]:
        fewest = 1 if self.tail_dropout else self.num_queries
        if rows != 1 or not fewest <= columns <= self.num_queries:
            wanted = f"{fewest} to {self.num_queries}" if self.tail_dropout else f"{self.num_queries}"
            raise ValueError(f"{rows} x {columns} codes are no picture: it has 1 row of {wanted}")
        return self.resolution, self.resolution

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


def causal_mask(num_patches: int, num_queries: int) -> Bool[Tensor, "p+n p+n"]:
    """Who (row) sees whom (column): patches all patches; a query all patches, itself and the queries before it."""
    mask = torch.ones(num_patches + num_queries, num_patches + num_queries, dtype=torch.bool).tril()
    mask[:num_patches, :num_patches] = True
    return mask


class Encoder(nn.Module):
    """Pixels [B, 3, H, W] in -1 .. 1 -> vectors [B, D, 1, N]."""

    mask: Tensor | None

    def __init__(self, config: QueriesConfig, dim: int):
        super().__init__()
        width = config.hidden_size
        self.embed = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        self.positions = _learned(config.num_patches, width)
        self.queries = _learned(config.num_queries, width)
        self.blocks = nn.ModuleList(Block(width, config.num_attention_heads) for _ in range(config.encoder_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Conv2d(width, dim, 1)
        mask = causal_mask(config.num_patches, config.num_queries) if config.causal else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b d 1 n"]:
        patches = rearrange(self.embed(pixels), "b c h w -> b (h w) c") + self.positions
        x = torch.cat((patches, repeat(self.queries, "n c -> b n c", b=len(patches))), dim=1)
        for block in self.blocks:
            x = block(x, mask=self.mask)
        read = self.norm(x[:, patches.shape[1] :])
        return self.head(rearrange(read, "b n c -> b c 1 n"))


class Decoder(PixelDecoder):
    """Code vectors [B, D, 1, N], or the first of them, -> pixels [B, 3, H, W], not clamped."""

    def __init__(self, config: QueriesConfig, dim: int):
        super().__init__()
        width = config.hidden_size
        self.tail_dropout = config.tail_dropout
        self.rows = config.resolution // config.patch_size
        self.embed = nn.Conv2d(dim, width, 1)
        self.order = _learned(config.num_queries, width)
        self.canvas = _learned(config.num_patches, width)
        self.blocks = nn.ModuleList(Block(width, config.num_attention_heads) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Conv2d(width, 3 * config.patch_size**2, 3, padding=1)
        self.to_pixels = nn.PixelShuffle(config.patch_size)

    @property
    def last_layer(self) -> Tensor:
        return self.head.weight

    def forward(self, codes: Float[Tensor, "b d 1 n"]) -> Float[Tensor, "b 3 height width"]:
        if self.training and torch.rand(()) < self.tail_dropout:
            codes = codes[..., : int(torch.randint(1, codes.shape[-1] + 1, ()))]
        told = rearrange(self.embed(codes), "b c 1 n -> b n c")
        told = told + self.order[: told.shape[1]]
        x = torch.cat((repeat(self.canvas, "p c -> b p c", b=len(told)), told), dim=1)
        for block in self.blocks:
            x = block(x)
        drawn = self.norm(x[:, : len(self.canvas)])
        return self.to_pixels(self.head(rearrange(drawn, "b (h w) c -> b c h w", h=self.rows)))


def _learned(places: int, channels: int) -> nn.Parameter:
    """A vector for each place, of about the scale of what is added to it."""
    return nn.Parameter(0.1 * torch.randn(places, channels))
