"""The image tokenizer that is judged, whoever trained it: pictures of 8 bits to codes, and back.

| folder                        | how pictures are made ready                                           |
| ----------------------------- | --------------------------------------------------------------------- |
| a run of `omnigram tokenizer` | as it was trained                                                     |
| an export, or an import       | as its card says: sizes, or the preprocessing of the published model   |
| an image tokenizer alone      | squares of evaluate.resolution                                        |

Dimensions: B batch, H W pixels, h w grid of codes.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from ...data.fitting import Fitting
from ...model.codec import CARD, IMAGE_MODEL, Codec
from ...tokenizers.image import ImageTokenizer, to_pixels, to_uint8
from ...tokenizers.pixel_tokenizer import CONFIG, PixelTokenizer, load_image_tokenizer
from ...tokenizers.preprocessing import Preprocessing


@dataclass(frozen=True)
class Subject:
    """A tokenizer, how pictures get their size, and what its pixels are (None: -1 .. 1)."""

    folder: Path
    tokenizer: PixelTokenizer
    fitting: Fitting
    values: Preprocessing | None = None

    @property
    def levels(self) -> int:
        """Codes of one place."""
        return self.tokenizer.quantizer.config.levels if isinstance(self.tokenizer, ImageTokenizer) else 1

    @property
    def side(self) -> int:
        """Of a square of about the area of what the tokenizer is given, in pixels."""
        ready = self.fitting.preprocessing
        if ready is None:
            height, width = self.fitting.buckets[0]
            return math.isqrt(height * width)
        if ready.crop is not None:
            return min(ready.crop)
        return ready.side or math.isqrt(ready.min_pixels or ready.max_pixels or 256**2)

    def encode(self, pictures: UInt8[Tensor, "b height width 3"]) -> Int[Tensor, "b h w"]:
        device = next(self.tokenizer.parameters()).device
        if self.values is None:
            pixels = to_pixels(pictures)
        else:
            pixels = torch.stack([self.values(Image.fromarray(picture.numpy())) for picture in pictures])
        return self.tokenizer.encode(pixels.to(device))

    def decode(self, codes: Int[Tensor, "b h w"]) -> UInt8[Tensor, "b height width 3"]:
        """ValueError if what comes out is not finite: the weights are damaged."""
        pixels = self.tokenizer.decode(codes).float().cpu()
        if not pixels.isfinite().all():
            raise ValueError(
                f"the image tokenizer in {self.folder} decodes to NaN or infinity: its weights are damaged"
            )
        if self.values is None:
            return to_uint8(pixels)
        return torch.stack([torch.from_numpy(np.array(self.values.invert(picture))) for picture in pixels])

    def record(self) -> dict[str, Any]:
        """What a judgement says of it."""
        return {
            "folder": str(self.folder),
            "kind": self.tokenizer.kind,
            "identity": self.tokenizer.identity,
            "codebook_size": self.tokenizer.codebook_size,
            "parameters": sum(parameter.numel() for parameter in self.tokenizer.parameters()),
            **self.fitting.record,
        }


def is_tokenizer_folder(folder: Path) -> bool:
    """Whether a folder holds an image tokenizer alone: its files, and no card of an export."""
    return (folder / CONFIG).is_file() and not (folder / CARD).exists() and not (folder / IMAGE_MODEL).exists()


def of_export(folder: Path, resolution: int | None = None, device: torch.device | str = "cpu") -> Subject:
    """The image tokenizer of an export. FileNotFoundError or ValueError if it is none, or cannot decode."""
    codec = Codec.load(folder, device)
    try:
        codec.check_draws()
    except ValueError as fault:
        raise ValueError(f"{folder}: {fault}") from None
    tokenizer, ready = codec.image_tokenizer, codec.card.preprocessing
    if resolution is not None:
        fitting = _squares(tokenizer.patch, resolution)
    elif ready is not None:
        fitting = Fitting(tokenizer.patch, preprocessing=ready)
    else:
        fitting = Fitting(tokenizer.patch, sizes=tuple(tokenizer.size(*size) for size in codec.card.sizes))
    return Subject(folder, tokenizer, fitting, _values(ready))


def of_folder(
    folder: Path, resolution: int | None, max_ratio: float = 1.0, device: torch.device | str = "cpu"
) -> Subject:
    """The image tokenizer in a folder of its own. ValueError if it is none, cannot decode, or nobody says a size."""
    tokenizer = load_image_tokenizer(folder).to(device)
    if not tokenizer.can_decode:
        raise ValueError(f"{folder}: this image tokenizer has no decoder, so there are no pictures to compare")
    if resolution is None:
        raise ValueError(f"{folder} does not say how large its pictures are: set evaluate.resolution=, in pixels")
    return Subject(folder, tokenizer, _squares(tokenizer.patch, resolution, max_ratio))


def _squares(patch: int, resolution: int, max_ratio: float = 1.0) -> Fitting:
    """Pictures of about the area of a square with such a side. ValueError if that is not whole codes."""
    if resolution % patch:
        below = max(1, resolution // patch) * patch
        raise ValueError(
            f"evaluate.resolution={resolution} is not cut into codes of {patch} pixels: set {below} or {below + patch}"
        )
    return Fitting(patch, resolution, max_ratio)


def _values(ready: Preprocessing | None) -> Preprocessing | None:
    """The part of a preprocessing that makes numbers of a picture that has its size."""
    if ready is None:
        return None
    size: dict[str, Any] = dict.fromkeys(("side", "multiple", "min_pixels", "max_pixels", "crop"))
    return dataclasses.replace(ready, transparency="ignore", resize="keep", **size)


def stacked(pictures: Sequence[UInt8[np.ndarray, "height width 3"]]) -> UInt8[Tensor, "b height width 3"]:
    """Pictures of one size as a batch."""
    return torch.from_numpy(np.stack(pictures))
