"""Best of k: of several samples for the same words, the one that the model itself finds best.

DALL-E (https://arxiv.org/abs/2102.12092) ranks its samples by a second network, CLIP. A decoder that was trained in
both directions needs none, and the same weights can say two things: how likely the picture is given the words, and how
likely the words are given the picture. The second asks more of a sample, but of a model that captions well.

Dimensions: H rows and W columns of codes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .prompts import Block, Piece
from .sampler import Sampler
from .scoring import score

RANKINGS = ("picture", "words")  # what should be likely given the other
RANK_BY = "picture"


def best_of(
    sampler: Sampler,
    words: Sequence[str],
    codes: Sequence[ArrayLike],
    k: int,
    rank_by: str = RANK_BY,
    modality: str = "image",
) -> list[int]:
    """Of each k pictures [H, W] in turn, drawn for `words[0]`, `words[1]`, …, the number of the best one in `codes`."""
    check_ranking(rank_by, k)
    if len(codes) != k * len(words):
        raise ValueError(f"{len(codes)} pictures for {len(words)} prompts: best of {k} takes {k} for each")
    pairs = [(words[number // k], picture) for number, picture in enumerate(codes)]
    measure = picture_given_words if rank_by == "picture" else words_given_picture
    nats = np.array(measure(sampler, pairs, modality)).reshape(len(words), k)
    return (nats.argmin(axis=1) + k * np.arange(len(words))).tolist()


def check_ranking(rank_by: str, k: int) -> None:
    """ValueError for a ranking that there is not, or that has no effect."""
    if rank_by not in RANKINGS:
        raise ValueError(f"rank_by {rank_by!r} must be one of {', '.join(RANKINGS)}")
    if rank_by != RANK_BY and k == 1:
        raise ValueError(f"rank_by {rank_by!r} has no effect on the best of one sample: draw several")


def picture_given_words(
    sampler: Sampler, pairs: Sequence[tuple[str, ArrayLike]], modality: str = "image", batch_size: int = 32
) -> list[float]:
    """-ln p(picture | words) of pairs of words and codes [H, W]: the fewer, the likelier.

    The document is `bos words picture`, without what may have stood before the words when the picture was drawn.
    """
    documents = [([words], [Block(codes, modality)]) for words, codes in pairs]
    return _second_given_first(sampler, documents, batch_size)


def words_given_picture(
    sampler: Sampler, pairs: Sequence[tuple[str, ArrayLike]], modality: str = "image", batch_size: int = 32
) -> list[float]:
    """-ln p(words | picture), their end included, of pairs of words and codes [H, W]: the fewer, the likelier.

    The document is that of a picture to be captioned, `bos picture words eos`, as training wrote them. Each choice is
    among text and the end alone, as when a caption is written.
    """
    documents = [([Block(codes, modality)], [words]) for words, codes in pairs]
    return _second_given_first(sampler, documents, batch_size, end=True)


def _second_given_first(
    sampler: Sampler,
    documents: Sequence[tuple[Sequence[Piece], Sequence[Piece]]],
    batch_size: int,
    end: bool = False,
) -> list[float]:
    """Nats of the second part of documents of two, and of their end where that counts."""
    scores = score(sampler, [[*first, *second] for first, second in documents], batch_size, max_blocks=1)
    begun = [len(sampler.writer.write(first)) for first, _ in documents]
    return [float(one.nats[start : None if end else -1].sum()) for one, start in zip(scores, begun, strict=True)]
