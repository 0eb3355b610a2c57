"""What the published VQGANs have in common: a network around one codebook that is trained by gradients.

Dimensions: B batch, D codebook dimension, h w grid of codes.
"""

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from jaxtyping import Float, Int
from torch import Tensor

from .pixel_tokenizer import PixelTokenizer
from .quantizers.gradient import GradientConfig, GradientQuantizer
from .quantizers.quantizer import Quantized

COMMITMENT = 0.25  # weight of the encoder's term against the codebook's 1, in taming, Chameleon and LlamaGen alike


def codebook(codebook_size: int, codebook_dim: int, normalise: bool = False) -> GradientQuantizer:
    """The nearest of K vectors of D components; with `normalise`, all are brought to length 1 first."""
    return GradientQuantizer(GradientConfig(codebook_size, codebook_dim, COMMITMENT, normalise))


class CodebookTokenizer(PixelTokenizer):
    """An image tokenizer made of a dataclass `config`, with a codebook named `quantize`, as published ones are."""

    config_class: ClassVar[type]
    config: Any  # of `config_class`, with `patch` and `codebook_size`
    quantize: GradientQuantizer

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
    def vector_quantizer(self) -> GradientQuantizer:
        return self.quantize

    def _take(self, quantizer: GradientQuantizer) -> None:
        self.quantize = quantizer
        self.config = dataclasses.replace(self.config, codebook_size=quantizer.config.codebook_size)

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
