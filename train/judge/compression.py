"""The honest baseline: the same pictures by JPEG, WebP and AVIF, in as many bytes as their codes take.

Codes of one small picture take fewer bytes than the header of any file: 64 codes of 10 bits are 80. So pictures are
laid side by side in mosaics, which share a header and let the codec predict over the seams, and the bytes of all
mosaics are counted together, as the codes of all pictures are. One quality is used for all; where the lowest is still
too large, or where fewer pixels at a higher quality look better, the mosaics are first made smaller.

Dimensions: B batch, H W pixels.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image, features
from torch import Tensor

from ..tokenizer_metrics import psnr

MOSAIC = 8  # pictures along a side of a mosaic, at most
MOSAIC_PIXELS = 1024  # and so many pixels
SCALES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125)
# name: Pillow's format and settings, the lowest and the highest quality; slower AVIF would save 4 % of the bytes
CODECS: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "avif": ("AVIF", {"speed": 6, "subsampling": "4:2:0"}, (0, 100)),
    "webp": ("WEBP", {"method": 6}, (0, 100)),
    "jpeg": ("JPEG", {"optimize": True, "progressive": True, "subsampling": "4:2:0"}, (1, 95)),
}

Batch = UInt8[Tensor, "b height width 3"]


@dataclass(frozen=True)
class Compressed:
    """Pictures in batches as they came, after decompression, and what they took."""

    batches: list[Batch]
    num_bytes: int
    quality: int
    scale: float


def compress(batches: Sequence[Batch], codec: str, budget: int) -> Compressed | None:
    """The best that a codec makes of pictures in at most `budget` bytes; None if its smallest files are larger.

    The scale is chosen by the PSNR of a mosaic of pictures spread over all, then the highest quality at which all
    mosaics fit. ValueError for a codec that is unknown, or that this Pillow cannot write.
    """
    check_codec(codec)
    groups: dict[torch.Size, list[Batch]] = {}
    for batch in batches:
        groups.setdefault(batch.shape[1:], []).append(batch)
    joined = [torch.cat(group) for group in groups.values()]
    mosaics = [part for group in joined for part in group.split(_columns(group) ** 2)]
    for scale in _scales(max(joined, key=len), codec, budget / sum(batch.numel() for batch in batches)):
        found = _fit(mosaics, codec, scale, budget)
        if found is not None:
            pictures = {size: iter(_joined(found.batches, size)) for size in groups}
            parts = [torch.stack([next(pictures[batch.shape[1:]]) for _ in batch]) for batch in batches]
            return Compressed(parts, found.num_bytes, found.quality, found.scale)
    return None


def _joined(batches: Sequence[Batch], size: torch.Size) -> Batch:
    return torch.cat([batch for batch in batches if batch.shape[1:] == size])


def _scales(pictures: Batch, codec: str, bytes_a_value: float) -> list[float]:
    """All scales: the best for a mosaic of some pictures first, those at which they do not fit last."""
    chosen = torch.linspace(0, len(pictures) - 1, min(len(pictures), _columns(pictures) ** 2)).long().unique()
    trial = pictures[chosen]
    fits: list[tuple[float, float]] = []
    for scale in SCALES:
        found = _fit([trial], codec, scale, int(bytes_a_value * trial.numel()))
        if found is not None:
            fits.append((float(psnr(trial, found.batches[0]).mean()), scale))
            if len(fits) > 1 and fits[-1] < fits[-2]:
                break  # with fewer pixels still, it only gets worse
    best = [scale for _, scale in sorted(fits, reverse=True)]
    return best + [scale for scale in SCALES if scale not in best]


def _fit(mosaics: Sequence[Batch], codec: str, scale: float, budget: int) -> Compressed | None:
    """The highest quality whose files take at most `budget` bytes together, by bisection; None if none does."""
    laid = [_scaled(lay_out(mosaic), scale) for mosaic in mosaics]
    low, high = CODECS[codec][2]
    best: tuple[int, list[bytes]] | None = None
    while low <= high:
        quality = (low + high) // 2
        files: list[bytes] = []
        for picture in laid:
            files.append(_write(picture, codec, quality))
            if sum(map(len, files)) > budget:
                break
        else:
            best, low = (quality, files), quality + 1
            continue
        high = quality - 1
    if best is None:
        return None
    quality, files = best
    batches = [_read(file, mosaic) for file, mosaic in zip(files, mosaics, strict=True)]
    return Compressed(batches, sum(map(len, files)), quality, scale)


def lay_out(pictures: Batch) -> Image.Image:
    """Up to 64 pictures row by row as one, on white."""
    number, height, width, _ = pictures.shape
    columns = min(number, _columns(pictures))
    rows = -(-number // columns)
    canvas = torch.full((rows * columns, height, width, 3), 255, dtype=torch.uint8)
    canvas[:number] = pictures
    canvas = rearrange(canvas, "(r c) h w three -> (r h) (c w) three", r=rows)
    return Image.fromarray(canvas.numpy())


def cut(mosaic: Image.Image, like: Batch) -> Batch:
    """The pictures of a mosaic that was laid out of as many, of the same size."""
    number, height, width, _ = like.shape
    values = torch.from_numpy(np.array(mosaic))
    tiles = rearrange(values, "(r h) (c w) three -> (r c) h w three", h=height, w=width)
    return tiles[:number].contiguous()


def _columns(pictures: Batch) -> int:
    return max(1, min(MOSAIC, MOSAIC_PIXELS // max(pictures.shape[1:3])))


def _scaled(picture: Image.Image, scale: float) -> Image.Image:
    if scale == 1:
        return picture
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _write(picture: Image.Image, codec: str, quality: int) -> bytes:
    name, settings, _ = CODECS[codec]
    file = io.BytesIO()
    picture.save(file, format=name, quality=quality, **settings)
    return file.getvalue()


def _read(file: bytes, like: Batch) -> Batch:
    with Image.open(io.BytesIO(file)) as opened:
        picture = opened.convert("RGB")
    columns = min(len(like), _columns(like))
    size = columns * like.shape[2], -(-len(like) // columns) * like.shape[1]
    return cut(picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS), like)


def check_codec(codec: str) -> None:
    """ValueError for a codec that is unknown, or that this Pillow cannot write."""
    if codec not in CODECS:
        raise ValueError(f"evaluate.baselines holds {codec!r}: there is {', '.join(CODECS)}")
    if codec != "jpeg" and not features.check(codec):
        raise ValueError(f"this Pillow writes no {codec}: leave it out of evaluate.baselines=, or install pillow>=11.3")
