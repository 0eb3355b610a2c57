"""The image tokenizer: pictures to a grid of codes and back (VQ-VAE, or MoVQ by its config).

Papers: https://arxiv.org/abs/1711.00937 (VQ-VAE), https://arxiv.org/abs/2209.09002 (MoVQ).

Dimensions: B batch, H W pixels, h w grid of codes (H / patch, W / patch), D codebook dimension.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .convolutional import Decoder, Encoder, NetworkConfig, principal_components
from .pixel_tokenizer import PixelTokenizer
from .quantizer import Quantized, Quantizer, QuantizerConfig


class ImageTokenizer(PixelTokenizer):
    """Encoder, quantizer and decoder. Pixels are float, red green blue, -1 (black) .. 1 (white)."""

    kind = "vqvae"

    def __init__(self, network: NetworkConfig, quantizer: QuantizerConfig):
        super().__init__()
        self.network = network
        self.encoder = Encoder(network, quantizer.codebook_dim)
        self.quantizer = Quantizer(quantizer)
        self.decoder = Decoder(network, quantizer.codebook_dim)

    def start_from(self, pixels: Float[Tensor, "b 3 height width"]) -> None:
        """Begin at principal components of patches and a codebook of their k-means, in place of noise.

        Of the steps that a short training has, this saves the ones that would only find that out.
        ValueError for fewer patches than codes, or than components.
        """
        patches = pixels[:, 0].numel() // self.patch**2
        if patches < self.codebook_size:
            raise ValueError(
                f"{patches} patches of {len(pixels)} pictures are too few for {self.codebook_size} codes: lower "
                "tokenizer.quantizer.codebook_size, raise tokenizer.trainer.init_pictures, or give more pictures"
            )
        principal_components(self.encoder, self.decoder, pixels)
        self.train()
        with torch.no_grad():
            self.quantize(pixels)  # an empty codebook starts with k-means of the first vectors it sees

    @property
    def patch(self) -> int:
        """Pixels a side of one code."""
        return self.network.patch

    @property
    def codebook_size(self) -> int:
        return self.quantizer.config.codebook_size

    def quantize(self, pixels: Float[Tensor, "b 3 height width"]) -> Quantized:
        """Pixels -> the quantized vectors with their ids, the commitment loss and statistics; trains in train mode.

        Raises ValueError if a side is no multiple of `patch`.
        """
        self.check_pixels(pixels)
        return self.quantizer(self.encoder(pixels))

    def _ids(self, pixels: Float[Tensor, "b 3 height width"]) -> Int[Tensor, "b h w"]:
        return self.quantize(pixels).ids

    def _pixels(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 height width"]:
        return self.decoder(self.quantizer.lookup(ids))

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "network": dataclasses.asdict(self.network),
            "quantizer": dataclasses.asdict(self.quantizer.config),
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        return cls(NetworkConfig(**settings["network"]), QuantizerConfig(**settings["quantizer"]))


def to_pixels(pictures: Int[Tensor, "b height width 3"]) -> Float[Tensor, "b 3 height width"]:
    """uint8 pictures 0 .. 255 -> float pixels -1 .. 1, channels_last in memory."""
    return (pictures.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def to_uint8(pixels: Float[Tensor, "b 3 height width"]) -> Int[Tensor, "b height width 3"]:
    """Float pixels -1 .. 1 -> uint8 pictures 0 .. 255, rounded; the inverse of `to_pixels`."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
