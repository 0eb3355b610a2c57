"""Lookup-free quantization: the signs of a vector's components are the bits of its code.

MAGVIT-v2 (https://arxiv.org/abs/2310.05737, section 3.1). Ours, as vector-quantize-pytorch's takes its entropies over
the batch of one rank where several train.

Dimensions: B batch, D bits of a code, h w grid of codes, N vectors, G bits that are counted together.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .entropy import entropies
from .quantizer import Quantized, Quantizer, QuantizerConfig, check_temperature, places, straight_through

TOGETHER = 10  # bits whose joint probabilities are held; codes of more bits are counted in parts, as if independent


@dataclass(frozen=True)
class LookupFreeConfig(QuantizerConfig):
    """
    codebook_size: number of codes, a power of 2
    commitment: weight of the loss that pulls the encoder to its code
    entropy: weight of the vectors' entropy less `diversity` times the codes'
    diversity: how much an even use of codes weighs against sure vectors
    temperature: of the probabilities whose entropies are taken; they are those of squared distances over it
    """

    kind = "lfq"

    codebook_size: int
    commitment: float
    entropy: float
    diversity: float
    temperature: float

    def __post_init__(self) -> None:
        size = self.codebook_size
        if size < 2 or size & (size - 1):
            below = 2 ** max(1, size.bit_length() - 1)
            raise ValueError(
                f"tokenizer.quantizer.codebook_size={size} must be a power of 2 for lfq: {below} or {2 * below}"
            )
        check_temperature(self.temperature)

    @property
    def num_codes(self) -> int:
        return self.codebook_size

    @property
    def dim(self) -> int:
        return self.codebook_size.bit_length() - 1

    def build(self) -> "LookupFreeQuantizer":
        return LookupFreeQuantizer(self)


class LookupFreeQuantizer(Quantizer):
    """Signs; of a code's bits the first component is the most significant."""

    fixed = "they are all combinations of signs"

    config: LookupFreeConfig
    whitened = True
    weights: Int[Tensor, " d"]

    def __init__(self, config: LookupFreeConfig) -> None:
        super().__init__(config)
        self.register_buffer("weights", 2 ** torch.arange(config.dim - 1, -1, -1), persistent=False)

    @property
    def codebook(self) -> Float[Tensor, "k d"]:
        return _signs(torch.arange(self.config.codebook_size, device=self.weights.device), self.weights)

    def forward(self, vectors: Float[Tensor, "b d h w"]) -> Quantized:
        positive = vectors > 0
        codes = torch.where(positive, 1.0, -1.0).to(vectors.dtype)
        ids = (positive.movedim(1, -1) * self.weights).sum(-1)  # no product of matrices, which CUDA lacks for integers
        loss = self.config.commitment * F.mse_loss(vectors, codes)
        stats = self.counted(ids)
        if self.training:
            of_vectors, of_codes = self._entropies(places(vectors).float())
            loss = loss + self.config.entropy * (of_vectors - self.config.diversity * of_codes)
            stats |= {"entropy_of_vectors": of_vectors, "entropy_of_codes": of_codes}
        return Quantized(straight_through(vectors, codes), ids, loss, stats)

    def lookup(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        return _signs(ids, self.weights).movedim(-1, 1)

    def _entropies(self, vectors: Float[Tensor, "n d"]) -> tuple[Tensor, Tensor]:
        """Sums over the parts of a code, whose probabilities are those of its bits, which are independent."""
        parts = vectors.split(TOGETHER, dim=1)
        found = [entropies(self, self._probabilities(part)) for part in parts]
        return torch.stack([each.of_vectors for each in found]).sum(), torch.stack([e.of_codes for e in found]).sum()

    def _probabilities(self, vectors: Float[Tensor, "n g"]) -> Float[Tensor, "n 2**g"]:
        """|z - c|^2 = |z|^2 + |c|^2 - 2 z c, and |c|^2 is the same for all codes."""
        codes = _signs(torch.arange(2 ** vectors.shape[1], device=vectors.device), self.weights[-vectors.shape[1] :])
        return torch.softmax(2 * vectors @ codes.T / self.config.temperature, dim=1)


def _signs(ids: Int[Tensor, "*grid"], weights: Int[Tensor, " d"]) -> Float[Tensor, "*grid d"]:
    """Bits of ids as -1 and 1."""
    return (ids[..., None] & weights).ne(0).float() * 2 - 1
