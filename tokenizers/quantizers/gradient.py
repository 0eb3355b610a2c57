"""A codebook trained by gradients, as the published VQGANs have it; on the unit sphere if wanted, as LlamaGen's.

VQ-VAE (https://arxiv.org/abs/1711.00937, equation 3): the codebook's term weighs 1, the encoder's `commitment`.

Dimensions: B batch, D dimension of a code, h w grid of codes, K codes, N vectors.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .nearest import k_means, nearest
from .quantizer import CodebookConfig, Quantized, Quantizer, straight_through


@dataclass(frozen=True)
class GradientConfig(CodebookConfig):
    """
    commitment: weight of the encoder's term against the codebook's 1
    cosine: codes and vectors have length 1
    """

    kind = "gradient"

    commitment: float
    cosine: bool

    def build(self) -> "GradientQuantizer":
        return GradientQuantizer(self)


class GradientQuantizer(Quantizer):
    """The nearest entry of the codebook."""

    per_code = ("embedding.weight",)

    config: GradientConfig

    def __init__(self, config: GradientConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_dim)
        nn.init.uniform_(self.embedding.weight, -1 / config.codebook_size, 1 / config.codebook_size)

    @property
    def codebook(self) -> Float[Tensor, "k d"]:
        weight = self.embedding.weight
        return F.normalize(weight, dim=-1) if self.config.cosine else weight

    def forward(self, vectors: Float[Tensor, "b d h w"]) -> Quantized:
        vectors = self.compared(vectors)
        ids = nearest(vectors.movedim(1, -1), self.codebook)
        codes = self.lookup(ids)
        loss = F.mse_loss(codes, vectors.detach()) + self.config.commitment * F.mse_loss(vectors, codes.detach())
        return Quantized(straight_through(vectors, codes), ids, loss, self.counted(ids))

    def compared(self, vectors: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        return F.normalize(vectors, dim=1) if self.config.cosine else vectors

    def lookup(self, ids: Int[Tensor, " b *grid"]) -> Float[Tensor, " b d *grid"]:
        """The vectors of codes, contiguous: torch's group norm in channels_last drops digits on the CPU."""
        return self.codebook[ids].movedim(-1, 1).contiguous()

    @torch.no_grad()
    def put(self, codes: Int[Tensor, " n"], vectors: Float[Tensor, "n d"]) -> None:
        self.embedding.weight[codes] = vectors

    @torch.no_grad()
    def start_from(self, vectors: Float[Tensor, "n d"]) -> None:
        """k-means of the vectors."""
        self.embedding.weight.copy_(k_means(vectors, self.config.codebook_size, on_sphere=self.config.cosine)[0])
