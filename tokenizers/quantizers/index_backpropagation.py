"""Index backpropagation: the choice of a code passes gradients to all codes, through their probabilities.

IBQ (https://arxiv.org/abs/2412.02692), with the loss of its code (https://github.com/TencentARC/SEED-Voken,
IndexPropagationQuantize). Where that takes products of vector and code, squared distances are taken here: they are the
same but for a code's own length, and a codebook can begin at k-means.

Dimensions: B batch, D dimension of a code, h w grid of codes, K codes, N vectors.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .entropy import entropies
from .nearest import k_means, nearest
from .quantizer import (
    CodebookConfig,
    Quantized,
    Quantizer,
    check_temperature,
    places,
    straight_through,
)


@dataclass(frozen=True)
class IndexBackpropagationConfig(CodebookConfig):
    """
    commitment: weight of the pull of the chosen code to its vector; what pulls the vector to it weighs 1, twice
    entropy: weight of the vectors' entropy less the codes'
    temperature: of the probabilities, which are those of squared distances over it
    """

    kind = "ibq"

    commitment: float
    entropy: float
    temperature: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)

    def build(self) -> "IndexBackpropagationQuantizer":
        return IndexBackpropagationQuantizer(self)


class IndexBackpropagationQuantizer(Quantizer):
    """The nearest code; while training, the one-hot choice has the gradients of the probabilities."""

    per_code = ("codebook",)

    config: IndexBackpropagationConfig

    def __init__(self, config: IndexBackpropagationConfig) -> None:
        super().__init__(config)
        self.codebook = nn.Parameter(torch.randn(config.codebook_size, config.codebook_dim))

    def forward(self, vectors: Float[Tensor, "b d h w"]) -> Quantized:
        ids = nearest(vectors.movedim(1, -1), self.codebook)
        stats = self.counted(ids)
        if not self.training:
            return Quantized(self.lookup(ids), ids, vectors.new_zeros(()), stats)
        flat = places(vectors)
        products = 2 * flat @ self.codebook.T - self.codebook.square().sum(1)
        probabilities = torch.softmax(products / self.config.temperature, dim=1)
        choice = straight_through(probabilities, F.one_hot(ids.flatten(), len(self.codebook)).to(flat.dtype))
        chosen, hard = choice @ self.codebook, self.codebook[ids.flatten()]
        to_code = F.mse_loss(chosen, flat) + F.mse_loss(hard.detach(), flat)
        to_vector = F.mse_loss(hard, flat.detach())
        of_vectors, of_codes = entropies(self, probabilities)
        loss = to_code + self.config.commitment * to_vector + self.config.entropy * (of_vectors - of_codes)
        stats |= {"entropy_of_vectors": of_vectors, "entropy_of_codes": of_codes}
        codes = chosen.unflatten(0, ids.shape).movedim(-1, 1)
        return Quantized(codes, ids, loss, stats)

    def lookup(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        return self.codebook[ids].movedim(-1, 1)

    @torch.no_grad()
    def put(self, codes: Int[Tensor, " n"], vectors: Float[Tensor, "n d"]) -> None:
        self.codebook[codes] = vectors

    @torch.no_grad()
    def start_from(self, vectors: Float[Tensor, "n d"]) -> None:
        """k-means of the vectors."""
        self.codebook.copy_(k_means(vectors, self.config.codebook_size)[0])
