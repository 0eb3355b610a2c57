"""The codebook of the published VQGANs: the nearest of K vectors, trained by gradients; and what has one.

VQ-VAE (https://arxiv.org/abs/1711.00937); on the unit sphere as in ViT-VQGAN (https://arxiv.org/abs/2110.04627).

Dimensions: B batch, D codebook dimension, h w grid of codes, K codebook size, N vectors.
"""

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .pixel_tokenizer import PixelTokenizer
from .quantizers.nearest import nearest
from .quantizers.quantizer import Quantized, perplexity

COMMITMENT = 0.25  # weight of the encoder's term against the codebook's 1, in taming, Chameleon and LlamaGen alike


class Codebook(nn.Module):
    """K vectors in `embedding.weight`. With `normalise`, they and what is quantized are brought to length 1 first."""

    def __init__(self, codebook_size: int, codebook_dim: int, normalise: bool = False):
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, codebook_dim)
        self.normalise = normalise
        nn.init.uniform_(self.embedding.weight, -1 / codebook_size, 1 / codebook_size)

    @property
    def vectors(self) -> Float[Tensor, "k d"]:
        weight = self.embedding.weight
        return F.normalize(weight, dim=-1) if self.normalise else weight

    def compared(self, vectors: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """The vectors as they are compared with codes."""
        return F.normalize(vectors, dim=1) if self.normalise else vectors

    def with_codes(self, codes: Int[Tensor, " n"]) -> "Codebook":
        """The same with these of its codes alone, in this order: code i is what `codes[i]` was."""
        weight = self.embedding.weight
        made = Codebook(len(codes), weight.shape[1], self.normalise).to(weight)
        made.load_state_dict({"embedding.weight": weight.detach()[codes]})
        return made

    @torch.no_grad()
    def put(self, codes: Int[Tensor, " n"], vectors: Float[Tensor, "n d"]) -> None:
        """Move codes onto vectors."""
        self.embedding.weight[codes] = vectors

    def forward(self, vectors: Float[Tensor, "b d h w"]) -> Quantized:
        """Quantize; gradients pass straight through to the vectors, and reach both through the loss."""
        vectors = self.compared(vectors)
        ids = nearest(vectors.movedim(1, -1), self.vectors)
        codes = self.lookup(ids)
        loss = F.mse_loss(codes, vectors.detach()) + COMMITMENT * F.mse_loss(vectors, codes.detach())
        share = torch.bincount(ids.flatten(), minlength=len(self.embedding.weight)) / ids.numel()
        stats = {"perplexity": perplexity(share), "usage": (share > 0).float().mean()}
        return Quantized(vectors + (codes - vectors).detach(), ids, loss, stats)

    def lookup(self, ids: Int[Tensor, " b *grid"]) -> Float[Tensor, " b d *grid"]:
        """The vectors of codes, contiguous: torch's group norm in channels_last drops digits on the CPU."""
        return self.vectors[ids].movedim(-1, 1).contiguous()


class CodebookTokenizer(PixelTokenizer):
    """An image tokenizer made of a dataclass `config`, with a codebook named `quantize`, as published ones are."""

    config_class: ClassVar[type]
    config: Any  # of `config_class`, with `patch` and `codebook_size`
    quantize: Codebook

    @property
    def patch(self) -> int:
        return self.config.patch

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    @property
    def settings(self) -> dict[str, Any]:
        return dataclasses.asdict(self.config)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        return cls(cls.config_class(**settings))

    @property
    def vector_quantizer(self) -> Codebook:
        return self.quantize

    def _take(self, quantizer: Codebook) -> None:
        self.quantize = quantizer
        self.config = dataclasses.replace(self.config, codebook_size=len(quantizer.vectors))

    @abstractmethod
    def forward(self, pixels: Float[Tensor, "b 3 height width"]) -> Quantized:
        """Pixels -> the quantized vectors, which gradients pass, with their ids, loss and statistics.

        Raises ValueError if a side is no multiple of `patch`.
        """

    @abstractmethod
    def draw(self, codes: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 height width"]:
        """Vectors of codes -> pixels, not clamped; the way of gradients. ValueError without a decoder."""

    def _ids(self, pixels: Float[Tensor, "b 3 height width"]) -> Int[Tensor, "b h w"]:
        return self(pixels).ids

    def _pixels(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 height width"]:
        return self.draw(self.quantize.lookup(ids))
