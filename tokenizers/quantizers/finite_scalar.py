"""Finite scalar quantization: every component is rounded to one of a few levels, and there is no codebook to learn.

https://arxiv.org/abs/2309.15505, by vector-quantize-pytorch.

Dimensions: B batch, D dimension of a code, h w grid of codes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor
from vector_quantize_pytorch import FSQ

from .quantizer import Quantized, Quantizer, QuantizerConfig


@dataclass(frozen=True)
class FiniteScalarConfig(QuantizerConfig):
    """
    scalar_levels: values that each component may take, 3 or more each; their product is the number of codes. The
        paper's for about 1,024 codes are 8, 5, 5, 5
    """

    kind = "fsq"

    scalar_levels: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "scalar_levels", tuple(int(n) for n in self.scalar_levels))
        if not self.scalar_levels or min(self.scalar_levels) < 3:
            shown = ",".join(map(str, self.scalar_levels))
            raise ValueError(
                f"tokenizer.quantizer.scalar_levels=[{shown}] must be numbers of 3 or more, as in [8,5,5,5]"
            )

    @property
    def num_codes(self) -> int:
        return math.prod(self.scalar_levels)

    @property
    def dim(self) -> int:
        return len(self.scalar_levels)

    def build(self) -> "FiniteScalarQuantizer":
        return FiniteScalarQuantizer(self)


class FiniteScalarQuantizer(Quantizer):
    """Round every component between its levels; gradients pass straight through the rounding."""

    fixed = "they are all combinations of levels"

    config: FiniteScalarConfig
    whitened = True  # each component has about the same range

    def __init__(self, config: FiniteScalarConfig) -> None:
        super().__init__(config)
        self.fsq = FSQ(list(config.scalar_levels))

    @property
    def codebook(self) -> Float[Tensor, "k d"]:
        return self.fsq.implicit_codebook  # pyright: ignore[reportReturnType] - a buffer

    def forward(self, vectors: Float[Tensor, "b d h w"]) -> Quantized:
        codes, ids = self.fsq(vectors)
        ids = ids.long().clamp(0, self.config.num_codes - 1)  # those of NaN lie anywhere, and such a step is left out
        return Quantized(codes, ids, vectors.new_zeros(()), self.counted(ids))

    def lookup(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        return self.codebook[ids].movedim(-1, 1)
