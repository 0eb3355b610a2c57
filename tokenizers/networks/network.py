"""What every network of an image tokenizer is: an encoder from pixels to vectors, and a decoder back.

Dimensions: B batch, D dimension of a code, H W pixels, h w grid of codes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..kinds import Kind

TOGETHER = 2**20  # most pixels of a picture's area that are encoded at once before training: 256 pictures of 64 x 64


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


@torch.no_grad()
def encoded(encoder: nn.Module, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b d h w"]:
    """The vectors of many pictures, a few at a time, without gradients."""
    height, width = pixels.shape[-2:]
    return torch.cat([encoder(part) for part in pixels.split(max(1, TOGETHER // (height * width)))])


@torch.no_grad()
def standardise(
    encoder: nn.Module, head: nn.Conv2d | nn.Conv3d, pixels: Float[Tensor, "b 3 height width"], whitened: bool
) -> None:
    """Let the vectors of these pictures have zero mean and unit variance over all components, or in each one.

    For networks that begin at random weights; `head` is the convolution that makes the vectors.
    """
    assert head.bias is not None
    vectors = encoded(encoder, pixels).movedim(1, -1).flatten(0, 2)
    deviation = vectors.std(0) if whitened else vectors.var(0).mean().sqrt().expand(len(head.bias))
    deviation = deviation.clamp_min(1e-6)
    head.weight.div_(deviation.view(-1, *[1] * (head.weight.ndim - 1)))
    head.bias.copy_((head.bias - vectors.mean(0)) / deviation)
