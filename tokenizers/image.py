"""The image tokenizer that is trained here: a network around a quantizer, any of either kind.

VQ-VAE (https://arxiv.org/abs/1711.00937) and what came of it.

Dimensions: B batch, H W pixels, h w grid of codes (H / patch, W / patch), D codebook dimension.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .kinds import kind_settings
from .networks import network_config
from .networks.network import NetworkConfig, encoded
from .pixel_tokenizer import PixelTokenizer
from .quantizers import quantizer_config
from .quantizers.quantizer import Quantized, Quantizer, QuantizerConfig, places


class ImageTokenizer(PixelTokenizer):
    """Encoder, quantizer and decoder. Pixels are float, red green blue, -1 (black) .. 1 (white)."""

    kind = "vqvae"

    def __init__(self, network: NetworkConfig, quantizer: QuantizerConfig):
        super().__init__()
        self.network = network
        self.encoder = network.encoder(quantizer.dim)
        self.quantizer = quantizer.build()
        self.decoder = network.decoder(quantizer.dim)

    def start_from(self, *batches: Float[Tensor, "_ 3 _ _"]) -> None:
        """Begin at a network and at codes that suit these pixels, in place of noise.

        Of the steps that a short training has, this saves the ones that would only find that out. Each batch has a size
        of its own: the network sees of all pictures the middle that they have in common, the codes see all of them.
        ValueError for fewer patches than codes to be learnt, or than components of a vector.
        """
        height, width = (min(pixels.shape[axis] for pixels in batches) for axis in (2, 3))
        with torch.no_grad():
            middles = torch.cat([_middle(pixels, height, width) for pixels in batches])
            self.network.start_from(self.encoder, self.decoder, middles, self.quantizer.whitened)
            self.quantizer.start_from(torch.cat([places(encoded(self.encoder, pixels)) for pixels in batches]))

    @property
    def patch(self) -> int:
        return self.network.patch

    def grid(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = self.network.grid(height, width)
        return rows, columns * self.quantizer.config.levels

    def size(self, rows: int, columns: int) -> tuple[int, int]:
        levels = self.quantizer.config.levels
        if columns % levels:
            raise ValueError(f"{columns} columns of codes are no whole number of places of {levels} codes each")
        return self.network.size(rows, columns // levels)

    @property
    def codebook_size(self) -> int:
        return self.quantizer.config.num_codes

    @property
    def vector_quantizer(self) -> Quantizer:
        return self.quantizer

    def _take(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer

    def quantize(self, pixels: Float[Tensor, "b 3 height width"]) -> Quantized:
        """Pixels -> the quantized vectors with their ids, the commitment loss and statistics; trains in train mode.

        Codes are chosen in the precision of the weights, also where autocast lowers that of the networks: near-ties
        fall elsewhere in bfloat16. Raises ValueError if a side is no multiple of `patch`.
        """
        self.check_pixels(pixels)
        vectors = self.encoder(pixels)
        with torch.autocast(vectors.device.type, enabled=False):
            return self.quantizer(vectors.to(next(self.encoder.parameters()).dtype))

    def _ids(self, pixels: Float[Tensor, "b 3 height width"]) -> Int[Tensor, "b h w"]:
        return self.quantize(pixels).ids

    def _pixels(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 height width"]:
        return self.decoder(self.quantizer.lookup(ids))

    @property
    def settings(self) -> dict[str, Any]:
        return {"network": kind_settings(self.network), "quantizer": kind_settings(self.quantizer.config)}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        return cls(network_config(settings["network"]), quantizer_config(settings["quantizer"]))


def _middle(pixels: Float[Tensor, "b 3 _ _"], height: int, width: int) -> Float[Tensor, "b 3 {height} {width}"]:
    """The centre of each picture."""
    top, left = (pixels.shape[2] - height) // 2, (pixels.shape[3] - width) // 2
    return pixels[:, :, top : top + height, left : left + width]


def to_pixels(pictures: Int[Tensor, "b height width 3"]) -> Float[Tensor, "b 3 height width"]:
    """uint8 pictures 0 .. 255 -> float pixels -1 .. 1, channels_last in memory."""
    return (pictures.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def to_uint8(pixels: Float[Tensor, "b 3 height width"]) -> Int[Tensor, "b height width 3"]:
    """Float pixels -1 .. 1 -> uint8 pictures 0 .. 255, rounded; the inverse of `to_pixels`."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
