"""What pictures and words cost a model in bits: the code length that its predictions would give them.

Each softmax runs over what the grammar allows at that place, so a code is one of the codes, and a word one of the words
or the end. What the grammar forces is free.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..model.generation import Sampler, score_ids
from ..tokenizers.vocabulary import TEXT
from .captioned_pictures import IMAGE, CaptionedPicture, derangement


def bits_of_codes(
    sampler: Sampler,
    pictures: Sequence[CaptionedPicture],
    captions: Sequence[NDArray[np.int64]] | None = None,
    batch_size: int = 64,
) -> list[NDArray[np.float64]]:
    """Bits [H * W] of each code of each picture after its own words, or after `captions` (text codes [T] of each).

    Words, size and marks are given, and cost nothing.
    """
    captions = [picture.words for picture in pictures] if captions is None else captions
    documents = [
        sampler.grammar.write([(TEXT, words), (IMAGE, picture.codes)])
        for words, picture in zip(captions, pictures, strict=True)
    ]
    image = sampler.vocabulary.modalities.index(IMAGE)
    scores = score_ids(sampler, documents, batch_size)
    return [score.nats[score.modality == image] / math.log(2) for score in scores]


def bits_of_pictures(
    sampler: Sampler,
    pictures: Sequence[CaptionedPicture],
    captions: Sequence[NDArray[np.int64]] | None = None,
    batch_size: int = 64,
) -> NDArray[np.float64]:
    """`bits_of_codes`, all codes of a picture together."""
    return np.array([bits.sum() for bits in bits_of_codes(sampler, pictures, captions, batch_size)])


def shuffled_captions(pictures: Sequence[CaptionedPicture], seed: int) -> list[NDArray[np.int64]]:
    """For each picture the words of another one, of the same style but for the last of each style."""
    others = derangement([picture.style for picture in pictures], seed)
    return [pictures[other].words for other in others]


def bits_per_character(sampler: Sampler, pictures: Sequence[CaptionedPicture], batch_size: int = 64) -> float:
    """Bits of the captions as texts of their own, their ends included, over their number of characters."""
    documents = [sampler.grammar.write([(TEXT, picture.words)]) for picture in pictures]
    scores = score_ids(sampler, documents, batch_size, max_blocks=0)
    characters = sum(len(picture.wordings[0]) for picture in pictures)
    return sum(score.total for score in scores) / math.log(2) / characters
