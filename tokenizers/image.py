"""The image tokenizer: pictures to a grid of codes and back (VQ-VAE, or MoVQ by its config).

Papers: https://arxiv.org/abs/1711.00937 (VQ-VAE), https://arxiv.org/abs/2209.09002 (MoVQ).

Dimensions: B batch, H W pixels, h w grid of codes (H / patch, W / patch), D codebook dimension.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .convolutional import Decoder, Encoder, NetworkConfig, principal_components
from .quantizer import Quantized, Quantizer, QuantizerConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class ImageTokenizer(nn.Module):
    """Encoder, quantizer and decoder. Pixels are float, red green blue, -1 (black) .. 1 (white)."""

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
        height, width = pixels.shape[-2:]
        if height % self.patch or width % self.patch or not height * width:
            raise ValueError(f"a picture of {height} x {width} pixels: sides must be multiples of {self.patch}")
        return self.quantizer(self.encoder(pixels))

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "b 3 height width"]) -> Int[Tensor, "b h w"]:
        """Pixels -> ids of codes, 0 .. codebook_size - 1. The codebook does not move, whatever the mode."""
        training = self.training
        self.eval()
        try:
            return self.quantize(pixels).ids
        finally:
            self.train(training)

    @torch.no_grad()
    def decode(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 height width"]:
        """Ids of codes -> pixels, clamped to -1 .. 1. Raises ValueError for an id outside the codebook."""
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.codebook_size:
            raise ValueError(
                f"codes {int(ids.min())} .. {int(ids.max())} are not all in the codebook of {self.codebook_size}"
            )
        return self.decoder(self.quantizer.lookup(ids)).clamp(-1, 1)

    @property
    def identity(self) -> str:
        """SHA-256 in hex over the configuration and every weight: tokens belong to one identity."""
        digest = hashlib.sha256(json.dumps(self._settings(), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _settings(self) -> dict[str, object]:
        return {
            "network": dataclasses.asdict(self.network),
            "quantizer": dataclasses.asdict(self.quantizer.config),
        }

    def save_pretrained(self, folder: Path | str) -> None:
        """Write config.json and model.safetensors into `folder`, which is made."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(self._settings(), indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "ImageTokenizer":
        """Read what `save_pretrained` wrote, in eval mode. ValueError names the file that is missing or damaged."""
        folder = Path(folder)
        try:
            settings = json.loads((folder / CONFIG).read_text())
            tokenizer = cls(NetworkConfig(**settings["network"]), QuantizerConfig(**settings["quantizer"]))
        except FileNotFoundError:
            raise ValueError(f"{folder} holds no image tokenizer: {CONFIG} is missing") from None
        except (TypeError, KeyError, json.JSONDecodeError) as fault:
            raise ValueError(f"{folder / CONFIG} is not the configuration of an image tokenizer: {fault}") from None
        try:
            tokenizer.load_state_dict(load_file(folder / WEIGHTS))
        except FileNotFoundError:
            raise ValueError(f"{folder} holds no image tokenizer: {WEIGHTS} is missing") from None
        except (SafetensorError, RuntimeError) as fault:
            reason = [line.strip() for line in str(fault).splitlines()][:2][-1]  # behind torch's heading
            raise ValueError(f"{folder / WEIGHTS} does not hold the weights of {CONFIG}: {reason}") from None
        return tokenizer.eval()


def to_pixels(pictures: Int[Tensor, "b height width 3"]) -> Float[Tensor, "b 3 height width"]:
    """uint8 pictures 0 .. 255 -> float pixels -1 .. 1, channels_last in memory."""
    return (pictures.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def to_uint8(pixels: Float[Tensor, "b 3 height width"]) -> Int[Tensor, "b height width 3"]:
    """Float pixels -1 .. 1 -> uint8 pictures 0 .. 255, rounded; the inverse of `to_pixels`."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
