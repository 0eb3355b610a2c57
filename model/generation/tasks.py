"""What people ask for, each as a prompt and the limits of the grammar: draw, caption, complete, page.

A batch is as good as its rows alone, so each takes many at once. Sample i of a prompt has the seed `seed + i`.
Dimensions: H rows and W columns of codes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...tokenizers.vocabulary import TEXT
from .choice import Sampling
from .prompts import Block, Piece, Prompt, Sample
from .sampler import Sampler

Codes = NDArray[np.int64]
Settings = Mapping[str, Sampling]

GREEDY = Sampling(temperature=0)


def draw(
    sampler: Sampler,
    words: str | Sequence[str | None] | None,
    n: int = 1,
    *,
    size: tuple[int, int],
    seed: int = 0,
    sampling: Settings | None = None,
    modality: str = "image",
    batch_size: int = 64,
) -> list[Codes]:
    """n pictures, codes [H, W] of `size`, of some words, or of each of several: `words[0]` first.

    None in place of words draws without any.
    """
    texts = [words] if words is None or isinstance(words, str) else list(words)
    limits = {"sizes": {modality: size}, "text": False, "min_blocks": 1, "max_blocks": 1}
    limits["max_tokens"] = _length(sampler, modality, size) + 1  # and eos
    prompts = []
    for text in texts:
        if text is not None and not text.strip():
            raise ValueError("the prompt is empty: say in words what to draw")
        prompts += [Prompt(() if text is None else (text,), limits, seed + i) for i in range(n)]
    return [sample.blocks(modality)[-1] for sample in sampler.sample(prompts, sampling, batch_size)]


def caption(
    sampler: Sampler,
    codes: Sequence[ArrayLike],
    *,
    max_tokens: int = 48,
    seed: int = 0,
    sampling: Sampling = GREEDY,
    modality: str = "image",
    batch_size: int = 64,
) -> list[str]:
    """Words for each of several pictures, codes [H, W], one at least; by default the likeliest next one each time."""
    limits = {"max_blocks": 0, "min_text": 1, "max_tokens": max_tokens}
    prompts = [Prompt((Block(picture, modality),), limits, seed + i) for i, picture in enumerate(codes)]
    return [sample.text for sample in sampler.sample(prompts, {TEXT: sampling}, batch_size)]


def complete(
    sampler: Sampler,
    codes: ArrayLike,
    n: int = 1,
    *,
    size: tuple[int, int],
    words: str | None = None,
    seed: int = 0,
    sampling: Settings | None = None,
    modality: str = "image",
    batch_size: int = 64,
) -> list[Codes]:
    """n pictures [H, W] of `size` that begin with the codes given, in reading order: whole rows or any number."""
    before: tuple[Piece, ...] = (words,) if words else ()
    segments = (*before, Block(codes, modality, size))
    prompts = [Prompt(segments, {"text": False, "max_blocks": 0}, seed + i) for i in range(n)]
    return [sample.blocks(modality)[-1] for sample in sampler.sample(prompts, sampling, batch_size)]


def page(
    sampler: Sampler,
    segments: Sequence[Piece],
    n: int = 1,
    *,
    blocks: int = 2,
    size: tuple[int, int] | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
    sampling: Settings | None = None,
    modality: str = "image",
    batch_size: int = 64,
) -> list[Sample]:
    """n continuations of an interleaved document by exactly `blocks` pictures, with text between them.

    The page ends with its last picture; `blocks=0` continues it by words alone.
    """
    limits = {"min_blocks": blocks, "max_blocks": blocks, "end_with_block": blocks > 0, "max_tokens": max_tokens}
    if size is not None:
        limits["sizes"] = {modality: size}
    prompts = [Prompt(tuple(segments), limits, seed + i) for i in range(n)]
    return sampler.sample(prompts, sampling, batch_size)


def _length(sampler: Sampler, modality: str, size: tuple[int, int]) -> int:
    """Tokens of a block. ValueError if none of that size can be written."""
    if modality not in sampler.grammar.blocks:
        raise ValueError(f"cannot draw {modality!r}: the model has {', '.join(sampler.grammar.blocks) or 'only text'}")
    block = sampler.grammar.blocks[modality]
    block.check_size(*size)
    return block.length(*size)
