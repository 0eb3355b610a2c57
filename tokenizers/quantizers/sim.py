"""SimVQ: a frozen random codebook seen through one learned linear map, so that all codes move together.

https://arxiv.org/abs/2411.02038, by vector-quantize-pytorch.

Dimensions: B batch, D dimension of a code, h w grid of codes, N vectors, K codes.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from vector_quantize_pytorch import SimVQ

from .quantizer import CodebookConfig, Quantized, Quantizer


@dataclass(frozen=True)
class SimConfig(CodebookConfig):
    """
    commitment: weight of the encoder's term against the codebook's 1
    """

    kind = "simvq"

    commitment: float

    @property
    def least_vectors(self) -> int:
        return 0  # its codes are drawn

    def build(self) -> "SimQuantizer":
        return SimQuantizer(self)


class SimQuantizer(Quantizer):
    """The nearest of the mapped codes."""

    fixed = "one map moves all of them"

    config: SimConfig

    def __init__(self, config: SimConfig) -> None:
        super().__init__(config)
        self.sim = SimVQ(
            config.codebook_dim,
            config.codebook_size,
            channel_first=True,
            rotation_trick=False,  # straight through, as all quantizers here
            input_to_quantize_commit_loss_weight=config.commitment,
        )

    @property
    def codebook(self) -> Float[Tensor, "k d"]:
        return self.sim.codebook

    def forward(self, vectors: Float[Tensor, "b d h w"]) -> Quantized:
        codes, ids, loss = self.sim(vectors)
        return Quantized(codes, ids, loss, self.counted(ids))

    def lookup(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        return self.codebook[ids].movedim(-1, 1)

    @torch.no_grad()
    def start_from(self, vectors: Float[Tensor, "n d"]) -> None:
        """Map the frozen codes, which are normal, to the mean square of the vectors in every direction."""
        values, directions = torch.linalg.eigh(vectors.T @ vectors / len(vectors))
        root = directions * values.clamp_min(0).sqrt() @ directions.T
        transform = self.sim.code_transform
        assert isinstance(transform, nn.Linear)
        transform.weight.copy_(root * self.config.codebook_dim**0.5)  # frozen codes have a mean square of 1
