"""How often each code of an image tokenizer occurs in a data set: of pictures, which are encoded, or of its own tokens.

All splits count: what one of them needs is needed.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.fitting import Fitting
from ..data.pictures import decode
from ..data.record import DATASET, DOCUMENTS, TOKENS, read_record
from ..data.shards import ShardError, read_shard
from ..data.tokens import TokenDataset
from ..tokenizers.image import to_pixels
from ..tokenizers.pixel_tokenizer import PixelTokenizer

IMAGE = "image"


def count_codes(tokenizer: PixelTokenizer, data: Path, fitting: Fitting, batch_size: int = 64) -> Int[Tensor, " k"]:
    """Occurrences of each code. ValueError for tokens of another image tokenizer, or a data set without pictures."""
    if _format(data) == TOKENS:
        grids = _codes_of_tokens(tokenizer, data)
    else:
        device = next(tokenizer.parameters()).device
        grids = (tokenizer.encode(pixels.to(device)).cpu() for pixels in pixels_of(data, fitting, batch_size))
    counts = torch.zeros(tokenizer.codebook_size, dtype=torch.int64)
    for ids in grids:
        counts += torch.bincount(ids.flatten(), minlength=len(counts))
    if not int(counts.sum()):
        raise ValueError(f"{data} holds no picture: name another data set")
    return counts


def pixels_of(data: Path, fitting: Fitting, batch_size: int = 64) -> Iterator[Float[Tensor, "b 3 height width"]]:
    """The pictures of all splits as inputs of an image tokenizer, grouped by size."""
    record = read_record(data, DOCUMENTS)
    waiting: defaultdict[tuple[int, ...], list[np.ndarray]] = defaultdict(list)
    for ready in _pictures(data, record, fitting):
        group = waiting[ready.shape]
        group.append(ready)
        if len(group) == batch_size:
            yield _pixels(group)
            group.clear()
    for group in waiting.values():
        if group:
            yield _pixels(group)


def _pictures(data: Path, record: dict[str, Any], fitting: Fitting) -> Iterator[np.ndarray]:
    fitting.buckets  # noqa: B018 - a size that cannot be is said before shards are read
    for shard in (shard for split in record["splits"].values() for shard in split["shards"]):
        for document in read_shard(data / shard["file"]):
            for segment in document.segments:
                if segment.modality == IMAGE:
                    try:
                        yield fitting.ready(decode(segment.data))
                    except ValueError as fault:
                        raise ShardError(f"{data / shard['file']}, sample {document.key}: {fault}") from None


def _pixels(group: list[np.ndarray]) -> Float[Tensor, "b 3 height width"]:
    stacked = torch.from_numpy(np.stack(group))
    return to_pixels(stacked) if stacked.dtype == torch.uint8 else stacked


def _codes_of_tokens(tokenizer: PixelTokenizer, data: Path) -> Iterator[Int[Tensor, " n"]]:
    record = read_record(data, TOKENS)
    if (made_by := record["made_from"]["image_tokenizer"]) != tokenizer.identity:
        raise ValueError(
            f"{data} holds tokens of the image tokenizer {made_by[:12]}, this one is {tokenizer.identity[:12]}: "
            "name the data set of pictures, or tokens of this one"
        )
    for split in record["splits"]:
        dataset = TokenDataset(data, split)
        for number in dataset.intact():
            for segment in dataset[number].segments:
                if segment.modality == IMAGE:
                    yield torch.from_numpy(segment.codes.astype(np.int64))


def _format(data: Path) -> str | None:
    """What kind of data set stands in a folder; what is wrong with it is said by who reads it."""
    try:
        return json.loads((data / DATASET).read_text(encoding="utf-8")).get("format")
    except (OSError, ValueError, AttributeError):
        return None
