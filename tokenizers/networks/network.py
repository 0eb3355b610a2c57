"""What every network of an image tokenizer is: an encoder from pixels to vectors, and a decoder back.

Dimensions: B batch, D dimension of a code, H W pixels, h w grid of codes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from ..kinds import Kind


class PixelDecoder(nn.Module, ABC):
    """Code vectors [B, D, h, w] -> pixels [B, 3, H, W], not clamped."""

    @property
    @abstractmethod
    def last_layer(self) -> Tensor:
        """The weight that turns features into pixels, where a discriminator's gradient is compared with the others."""


@dataclass(frozen=True)
class NetworkConfig(Kind, ABC):
    """The shape of one kind of network, of which it makes both parts."""

    @property
    @abstractmethod
    def patch(self) -> int:
        """Sides of pictures are multiples of this many pixels."""

    @abstractmethod
    def encoder(self, dim: int) -> nn.Module:
        """Pixels [B, 3, H, W] in -1 .. 1 -> vectors [B, dim, h, w]. ValueError for a dim that it cannot make."""

    @abstractmethod
    def decoder(self, dim: int) -> PixelDecoder: ...

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of vectors of a picture. ValueError for a picture that it does not take."""
        return height // self.patch, width // self.patch

    def size(self, rows: int, columns: int) -> tuple[int, int]:
        """Height and width in pixels of what is decoded of a grid; ValueError for a grid that it does not take."""
        return rows * self.patch, columns * self.patch

    def start_from(
        self, encoder: nn.Module, decoder: nn.Module, pixels: Float[Tensor, "b 3 height width"], whitened: bool
    ) -> None:
        """Set weights to something that suits these pixels.

        whitened: each component of the vectors shall have a variance of 1; else that of all together.
        """
