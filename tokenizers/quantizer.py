"""Vectors to codes and back: the quantizers behind one result type.

VQ-VAE (https://arxiv.org/abs/1711.00937) with a codebook that follows its vectors by exponential moving averages and
revives codes that nobody uses (Jukebox, https://arxiv.org/abs/2005.00341, section 3.1).

Dimensions: B batch, D codebook dimension, h w grid of codes, K codebook size.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize


class Quantized(NamedTuple):
    """What every quantizer returns."""

    codes: Float[Tensor, "b d h w"]  # the quantized vectors; gradients pass straight through to the encoder
    ids: Int[Tensor, "b h w"]  # which entry of the codebook, 0 .. K - 1
    loss: Float[Tensor, ""]  # commitment loss, already weighted
    stats: dict[str, Tensor]  # scalars worth a curve: `perplexity` and `usage` of this batch


@dataclass(frozen=True)
class QuantizerConfig:
    """Settings of a vector quantizer.

    codebook_size: number of codes, 2 or more
    codebook_dim: dimension of a code
    decay: of the moving averages that the codebook is made of, 0 .. 1
    commitment: weight of the loss that pulls the encoder to its code
    cosine: codes and vectors live on the unit sphere (ViT-VQGAN, https://arxiv.org/abs/2110.04627, section 3.1)
    dead_code_threshold: a code whose average count a batch falls below this is replaced by a vector of the batch
    """

    codebook_size: int
    codebook_dim: int
    decay: float
    commitment: float
    cosine: bool
    dead_code_threshold: float

    def __post_init__(self) -> None:
        if self.codebook_size < 2:
            raise ValueError(f"codebook_size {self.codebook_size} must be 2 or more")
        if self.codebook_dim < 1:
            raise ValueError(f"codebook_dim {self.codebook_dim} must be 1 or more")
        if not 0 < self.decay < 1:
            raise ValueError(f"decay {self.decay} must lie between 0 and 1")


class Quantizer(nn.Module):
    """The nearest entry of a learned codebook, by vector-quantize-pytorch."""

    def __init__(self, config: QuantizerConfig):
        super().__init__()
        self.config = config
        self.vq = VectorQuantize(
            dim=config.codebook_dim,
            codebook_size=config.codebook_size,
            decay=config.decay,
            commitment_weight=config.commitment,
            use_cosine_sim=config.cosine,
            kmeans_init=True,
            threshold_ema_dead_code=config.dead_code_threshold,  # pyright: ignore[reportArgumentType] - any number does
            accept_image_fmap=True,
            sync_codebook=False,  # one process trains it; others that wait for it would be waited for
            rotation_trick=False,  # straight through: its default costs half a dB here, see docs/LOG.md
        )

    def forward(self, vectors: Float[Tensor, "b d h w"]) -> Quantized:
        """Quantize; in training mode the codebook follows the vectors."""
        codes, ids, loss = self.vq(vectors)
        share = torch.bincount(ids.flatten(), minlength=self.config.codebook_size) / ids.numel()
        stats = {"perplexity": perplexity(share), "usage": (share > 0).float().mean()}
        return Quantized(codes, ids, loss.sum(), stats)

    def lookup(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """The vectors of codes."""
        return self.codebook[ids].movedim(-1, 1)

    @property
    def codebook(self) -> Float[Tensor, "k d"]:
        return self.vq.codebook


def perplexity(share: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    """exp of the entropy of code frequencies that sum to 1: the number of codes in even use that would be as varied."""
    return torch.special.entr(share).sum().exp()
