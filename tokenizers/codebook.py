"""The codebook of the published VQGANs: the nearest of K vectors, trained by gradients.

VQ-VAE (https://arxiv.org/abs/1711.00937); on the unit sphere as in ViT-VQGAN (https://arxiv.org/abs/2110.04627).

Dimensions: B batch, D codebook dimension, h w grid of codes, K codebook size, N vectors.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .quantizer import Quantized, perplexity

COMMITMENT = 0.25  # weight of the encoder's term against the codebook's 1, in taming, Chameleon and LlamaGen alike
DISTANCES = 2**25  # most distances in memory at once, 128 MiB of float32


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

    def forward(self, vectors: Float[Tensor, "b d h w"]) -> Quantized:
        """Quantize; gradients pass straight through to the vectors, and reach both through the loss."""
        if self.normalise:
            vectors = F.normalize(vectors, dim=1)
        ids = self.nearest(vectors.movedim(1, -1))
        codes = self.lookup(ids)
        loss = F.mse_loss(codes, vectors.detach()) + COMMITMENT * F.mse_loss(vectors, codes.detach())
        share = torch.bincount(ids.flatten(), minlength=len(self.embedding.weight)) / ids.numel()
        stats = {"perplexity": perplexity(share), "usage": (share > 0).float().mean()}
        return Quantized(vectors + (codes - vectors).detach(), ids, loss, stats)

    @torch.no_grad()
    def nearest(self, vectors: Float[Tensor, "*grid d"]) -> Int[Tensor, "*grid"]:
        """The code at the least squared distance; of several, the first.

        The square is multiplied out in the order of the published models, whose ids would differ in near-ties else.
        """
        codebook = self.vectors
        lengths = codebook.square().sum(1)
        flat = vectors.flatten(0, -2)
        ids = [
            (part.square().sum(1, keepdim=True) + lengths - 2 * (part @ codebook.T)).argmin(1)
            for part in flat.split(max(1, DISTANCES // len(codebook)))
        ]
        return torch.cat(ids).view(vectors.shape[:-1])

    def lookup(self, ids: Int[Tensor, " b *grid"]) -> Float[Tensor, " b d *grid"]:
        """The vectors of codes, contiguous: torch's group norm in channels_last drops digits on the CPU."""
        return self.vectors[ids].movedim(-1, 1).contiguous()
