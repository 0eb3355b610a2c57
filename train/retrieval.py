"""Does a sample show what was asked? Whether the training picture nearest to it is of the asked concept.

Samples and gallery both come out of the image tokenizer, or its blur would decide.
Dimensions: N pictures, H rows and W columns of codes, F features of a picture.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from ..model.generation import Prompt, Sample, Sampler, Sampling
from ..tokenizers.image import to_uint8
from ..tokenizers.pixel_tokenizer import PixelTokenizer
from .captioned_pictures import IMAGE, CaptionedPicture

SIDE = 16  # of the area-averaged pixels that are compared
TOP = 5

Codes = NDArray[np.int64]
Describe = Callable[[UInt8[Tensor, "n height width 3"]], Float[Tensor, "n f"]]


class Retrieval(NamedTuple):
    """Shares, 0 .. 1: the nearest is right, one of the nearest five is; and what chance gives for the nearest."""

    top1: float
    top5: float
    chance: float


class Gallery(NamedTuple):
    """Features [N, F] of the pictures to find, and what each shows."""

    features: Float[Tensor, "n f"]
    concepts: Sequence[str]

    def retrieve(self, queries: Float[Tensor, "m f"], asked: Sequence[str]) -> Retrieval:
        """How often the nearest pictures (Euclidean) are of the concept asked for."""
        # not by matrix products, which lose the difference of near pictures
        distances = torch.cdist(queries, self.features, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.topk(min(TOP, len(self.concepts)), largest=False).indices.tolist()
        found = [
            [self.concepts[index] == concept for index in row] for row, concept in zip(nearest, asked, strict=True)
        ]
        counts = Counter(self.concepts)
        return Retrieval(
            top1=_mean([row[0] for row in found]),
            top5=_mean([any(row) for row in found]),
            chance=_mean([counts[concept] / len(self.concepts) for concept in asked]),
        )


def pixels_16(pictures: UInt8[Tensor, "n height width 3"]) -> Float[Tensor, "n 768"]:
    """Each picture averaged over areas to 16 x 16 pixels, whatever its size, 0 .. 1."""
    return F.adaptive_avg_pool2d(pictures.permute(0, 3, 1, 2).float() / 255, SIDE).flatten(1)


def decoded(
    tokenizer: PixelTokenizer, codes: Sequence[Codes], batch_size: int = 64
) -> Iterator[tuple[list[int], UInt8[Tensor, "n height width 3"]]]:
    """The pictures of grids of codes [H, W], in batches of one size: (numbers in `codes`, pictures)."""
    by_size: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, grid in enumerate(codes):
        by_size[grid.shape].append(number)
    device = next(tokenizer.parameters()).device
    for numbers in by_size.values():
        for start in range(0, len(numbers), batch_size):
            part = numbers[start : start + batch_size]
            ids = torch.from_numpy(np.stack([codes[number] for number in part])).to(device)
            yield part, to_uint8(tokenizer.decode(ids))


def describe_codes(
    tokenizer: PixelTokenizer, codes: Sequence[Codes], describe: Mapping[str, Describe], batch_size: int = 64
) -> dict[str, Float[Tensor, "n f"]]:
    """Features of the reconstructions of codes, by each way to describe pictures; each is decoded once."""
    rows: dict[str, list[Tensor]] = {name: [torch.empty(0)] * len(codes) for name in describe}
    for numbers, pictures in decoded(tokenizer, codes, batch_size):
        for name, features in rows.items():
            for number, feature in zip(numbers, describe[name](pictures).cpu(), strict=True):
                features[number] = feature
    return {name: torch.stack(features) for name, features in rows.items()}


def draw_each(
    sampler: Sampler,
    pictures: Sequence[CaptionedPicture],
    seed: int = 0,
    sampling: Mapping[str, Sampling] | None = None,
    batch_size: int = 64,
) -> list[Codes]:
    """A sample for the caption of each picture, codes [H, W] of its size. Sample i has the seed `seed + i`."""
    prompts = []
    for number, picture in enumerate(pictures):
        limits = {
            "sizes": {IMAGE: picture.size},
            "modalities": (IMAGE,),
            "text": False,
            "min_blocks": 1,
            "max_blocks": 1,
        }
        prompts.append(Prompt((picture.wordings[0],), limits, seed + number))
    samples: list[Sample] = sampler.sample(prompts, sampling, batch_size)
    return [sample.blocks(IMAGE)[-1] for sample in samples]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
