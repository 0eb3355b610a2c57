"""A code is drawn by its probability, with noise that lets gradients through and a temperature that falls.

Gumbel softmax (https://arxiv.org/abs/1611.01144), as in DALL-E's dVAE (https://arxiv.org/abs/2102.12092, section 2.1).

Dimensions: B batch, D dimension of a code, h w grid of codes, K codes, N vectors.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .nearest import k_means
from .quantizer import CodebookConfig, Quantized, Quantizer, places


@dataclass(frozen=True)
class GumbelConfig(CodebookConfig):
    """
    kl: weight of the divergence of the probabilities from even ones, in nats
    temperature: of the draws at the start
    final_temperature: at the end; between them it falls by a cosine (DALL-E: from 1 to 1/16)
    hard: draw one code and pass its gradients straight through, in place of a mixture of codes
    """

    kind = "gumbel"

    kl: float
    temperature: float
    final_temperature: float
    hard: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.final_temperature <= self.temperature:
            raise ValueError(
                f"tokenizer.quantizer.final_temperature={self.final_temperature} must be above 0 and at most "
                f"tokenizer.quantizer.temperature={self.temperature}"
            )

    def build(self) -> "GumbelQuantizer":
        return GumbelQuantizer(self)


class GumbelQuantizer(Quantizer):
    """While training a draw, else the likeliest code."""

    per_code = ("codebook", "logits.weight", "logits.bias")

    config: GumbelConfig

    def __init__(self, config: GumbelConfig) -> None:
        super().__init__(config)
        self.logits = nn.Linear(config.codebook_dim, config.codebook_size)
        self.codebook = nn.Parameter(torch.randn(config.codebook_size, config.codebook_dim))
        self._temperature = config.temperature

    def set_progress(self, progress: float) -> None:
        """The temperature of the draws from now on."""
        first, last = self.config.temperature, self.config.final_temperature
        self._temperature = last + (first - last) * (1 + math.cos(math.pi * min(1.0, progress))) / 2

    def forward(self, vectors: Float[Tensor, "b d h w"]) -> Quantized:
        logits = self.logits(places(vectors))
        grid = (vectors.shape[0], *vectors.shape[2:])
        ids = logits.argmax(1).view(grid)
        if not self.training:
            return Quantized(self.lookup(ids), ids, vectors.new_zeros(()), self.counted(ids))
        drawn = F.gumbel_softmax(logits, self._temperature, hard=self.config.hard, dim=1)
        codes = (drawn @ self.codebook).unflatten(0, grid).movedim(-1, 1)
        log_share = F.log_softmax(logits, dim=1)
        divergence = (log_share.exp() * log_share).sum(1).mean() + math.log(self.config.codebook_size)
        stats = self.counted(ids) | {"kl": divergence, "temperature": divergence.new_tensor(self._temperature)}
        return Quantized(codes, ids, self.config.kl * divergence, stats)

    def lookup(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        return self.codebook[ids].movedim(-1, 1)

    def put(self, codes: Int[Tensor, " n"], vectors: Float[Tensor, "n d"]) -> None:
        raise ValueError("codes of gumbel cannot be put on vectors: which code a vector gets is learnt, not measured")

    @torch.no_grad()
    def start_from(self, vectors: Float[Tensor, "n d"]) -> None:
        """Codes by k-means, logits by the squared distances to them over the mean squared distance of neighbours."""
        centres, _ = k_means(vectors, self.config.codebook_size)
        distances = torch.cdist(vectors, centres).square().min(1).values
        sharpness = 1 / distances.mean().clamp_min(1e-6)
        self.codebook.copy_(centres)
        self.logits.weight.copy_(2 * sharpness * centres)
        self.logits.bias.copy_(-sharpness * centres.square().sum(1))
