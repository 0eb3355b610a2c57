"""Best of k: of several samples for the same words, the one that the model itself would caption so most likely.

DALL-E (https://arxiv.org/abs/2102.12092) ranks its samples by a second network, CLIP. A decoder that was trained in
both directions needs none: the same weights read the picture, and say how likely the words are then.

Dimensions: H rows and W columns of codes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .prompts import Block
from .sampler import Sampler
from .scoring import score


def best_of(
    sampler: Sampler, words: Sequence[str], codes: Sequence[ArrayLike], k: int, modality: str = "image"
) -> list[int]:
    """Of each k pictures [H, W] in turn, drawn for `words[0]`, `words[1]`, …, the number of the best one in `codes`."""
    if len(codes) != k * len(words):
        raise ValueError(f"{len(codes)} pictures for {len(words)} prompts: best of {k} takes {k} for each")
    pairs = [(words[number // k], picture) for number, picture in enumerate(codes)]
    nats = np.array(words_given_picture(sampler, pairs, modality)).reshape(len(words), k)
    return (nats.argmin(axis=1) + k * np.arange(len(words))).tolist()


def words_given_picture(
    sampler: Sampler, pairs: Sequence[tuple[str, ArrayLike]], modality: str = "image", batch_size: int = 32
) -> list[float]:
    """-ln p(words | picture), their end included, of pairs of words and codes [H, W]: the fewer, the likelier.

    The document is that of a picture to be captioned, `bos picture words eos`, as training wrote them. Each choice is
    among text and the end alone, as when a caption is written.
    """
    pictures = [Block(codes, modality) for _, codes in pairs]
    documents = [[picture, words] for picture, (words, _) in zip(pictures, pairs, strict=True)]
    given = [len(sampler.writer.write([picture])) for picture in pictures]
    scores = score(sampler, documents, batch_size, max_blocks=1)
    return [float(one.nats[start:].sum()) for one, start in zip(scores, given, strict=True)]
