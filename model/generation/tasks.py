"""What people ask for, each as a prompt and the limits of the grammar: draw, caption, complete, page, joint.

With x a picture and y its words: `draw` samples p(x | y), without words p(x); `caption` p(y | x); `joint` p(x, y), from
either side; p(y) is `caption` of None. A batch is as good as its rows alone, so each takes many at
once. Sample i of a prompt has the seed `seed + i`. The functions `to_…` make the prompts, `seeded` many of one.

Dimensions: H rows and W columns of codes.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...tokenizers.vocabulary import TEXT
from .choice import Sampling
from .events import Watch
from .prompts import Block, Piece, Prompt, Sample
from .ranking import RANK_BY, best_of, check_ranking
from .room import most_codes
from .sampler import Sampler

Codes = NDArray[np.int64]
Settings = Mapping[str, Sampling]
Example = tuple[str, ArrayLike]  # words, and codes [H, W] of the picture that they name

GREEDY = Sampling(temperature=0)
IMAGE = "image"


def draw(
    sampler: Sampler,
    words: str | Sequence[str | None] | None,
    n: int = 1,
    *,
    size: tuple[int, int],
    seed: int = 0,
    sampling: Settings | None = None,
    negative: str = "",
    examples: Sequence[Example] = (),
    best: int = 1,
    rank_by: str = RANK_BY,
    modality: str = IMAGE,
    batch_size: int = 64,
    watch: Watch | None = None,
) -> list[Codes]:
    """n pictures, codes [H, W] of `size`, of some words, or of each of several: `words[0]` first.

    None in place of words draws without any, see `unprompted`.
    examples: captioned pictures that stand before the words, in context
    best: of so many samples the one that is kept; picture i has the seeds from `seed + i * best` on
    rank_by: what makes it the best, one of `ranking.RANKINGS`
    """
    texts = [words] if words is None or isinstance(words, str) else list(words)
    captions = [text for text in texts if text is not None]
    if best < 1:
        raise ValueError(f"best of {best}: of at least 1 sample")
    check_ranking(rank_by, best)
    if best > 1 and len(captions) < len(texts):
        raise ValueError(f"best of {best} is judged by words: say in words what to draw")
    settings = sampling if captions else unprompted(sampler, sampling, modality)
    setting = {**sampler.sampling, **(settings or {})}.get(modality)
    if negative and setting is not None and not setting.is_guided:
        raise ValueError(f"negative words {negative!r} have no effect without guidance: set guidance above 1")
    prompts = []
    for text in texts:
        prompt = to_draw(sampler, text, size=size, negative=negative, examples=examples, modality=modality)
        prompts += seeded(prompt, range(seed, seed + n * best))
    drawn = [sample.blocks(modality)[-1] for sample in sampler.sample(prompts, settings, batch_size, watch)]
    if best == 1:
        return drawn
    kept = best_of(sampler, np.repeat(captions, n).tolist(), drawn, best, rank_by, modality)
    return [drawn[number] for number in kept]


def to_draw(
    sampler: Sampler,
    words: str | None,
    *,
    size: tuple[int, int],
    negative: str = "",
    examples: Sequence[Example] = (),
    modality: str = IMAGE,
) -> Prompt:
    """Examples and words, then a block that is begun, if a mark begins it.

    ValueError for no words, and for a size that cannot be drawn.
    """
    if words is not None and not words.strip():
        raise ValueError("the prompt is empty: say in words what to draw")
    if words is None and (negative or examples):
        what = "negative words lead away from words" if negative else "examples show what words mean"
        raise ValueError(f"{what}: say in words what to draw")
    limits = _rest(sampler, modality, size)
    before: list[Piece] = [piece for text, codes in examples for piece in (text, Block(codes, modality))]
    if words is not None:
        before.append(words)
    if modality in sampler.grammar.bare:
        limits |= {"modalities": (modality,), "min_blocks": 1, "max_blocks": 1}
        return Prompt(tuple(before), limits, negative=negative)
    return Prompt((*before, Block((), modality, size)), limits, negative=negative)


def seeded(prompt: Prompt, seeds: Iterable[int]) -> list[Prompt]:
    """The prompt with each of the seeds; what they share stays one object, which the sampler looks at once."""
    return [dataclasses.replace(prompt, seed=seed) for seed in seeds]


def unprompted(sampler: Sampler, sampling: Settings | None, *modalities: str) -> dict[str, Sampling]:
    """Settings for what is drawn of nothing: at temperature 1 where no settings are given and the sampler's are 0.

    Whoever says nothing asks for a sample of the model. The likeliest beginning of all is one and the same each time,
    and of what was drawn by chance the likeliest rest is mostly a blank picture: so all modalities that are drawn.
    """
    settings = dict(sampling or {})
    for modality in modalities:
        own = sampler.sampling.get(modality)
        if modality not in settings and own is not None and own.is_greedy:
            settings[modality] = dataclasses.replace(own, temperature=1.0)
    return settings


def caption(
    sampler: Sampler,
    codes: Sequence[ArrayLike | None],
    *,
    max_tokens: int = 48,
    seed: int = 0,
    sampling: Sampling | None = None,
    examples: Sequence[Example] = (),
    stop: Sequence[str] = (),
    modality: str = IMAGE,
    batch_size: int = 64,
    watch: Watch | None = None,
) -> list[str]:
    """Words for each of several pictures, codes [H, W], one at least; None for words that no picture stands before.

    examples: captioned pictures that stand before, each picture with its words behind it
    stop: words end before the first of these
    sampling: by default the likeliest next one each time, and where there are no pictures as `unprompted` has it
    """
    if examples and any(picture is None for picture in codes):
        raise ValueError("examples show how pictures are named: give a picture to name, or no examples")
    if sampling is None:
        alone = all(picture is None for picture in codes)
        sampling = {**sampler.sampling, **unprompted(sampler, None, TEXT)}[TEXT] if alone else GREEDY
    before = tuple(piece for text, shown in examples for piece in (Block(shown, modality), text))
    limits = {"max_blocks": 0, "min_text": 1, "max_tokens": max_tokens}
    prompts = [
        Prompt((*before, Block(picture, modality)) if picture is not None else (), limits, seed + i, stop=stop)
        for i, picture in enumerate(codes)
    ]
    return [last_text(sample) for sample in sampler.sample(prompts, {TEXT: sampling}, batch_size, watch)]


def last_text(sample: Sample) -> str:
    """The text that a document ends with."""
    last = sample.segments[-1] if sample.segments else ""
    return last if isinstance(last, str) else ""


def complete(
    sampler: Sampler,
    codes: ArrayLike,
    n: int = 1,
    *,
    size: tuple[int, int],
    words: str | None = None,
    seed: int = 0,
    sampling: Settings | None = None,
    modality: str = IMAGE,
    batch_size: int = 64,
    watch: Watch | None = None,
) -> list[Codes]:
    """n pictures [H, W] of `size` that begin with the codes given, in reading order: whole rows or any number."""
    prompts = seeded(to_complete(sampler, codes, size=size, words=words, modality=modality), range(seed, seed + n))
    return [sample.blocks(modality)[-1] for sample in sampler.sample(prompts, sampling, batch_size, watch)]


def to_complete(
    sampler: Sampler, codes: ArrayLike, *, size: tuple[int, int], words: str | None = None, modality: str = IMAGE
) -> Prompt:
    """Words, if there are some, and a block with its first codes. ValueError for a size that cannot be drawn."""
    before: tuple[Piece, ...] = (words,) if words else ()
    return Prompt((*before, Block(codes, modality, size)), _rest(sampler, modality, size, np.asarray(codes).size))


def page(
    sampler: Sampler,
    segments: Sequence[Piece],
    n: int = 1,
    *,
    blocks: int = 2,
    size: tuple[int, int] | None = None,
    max_codes: int | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
    sampling: Settings | None = None,
    negative: str = "",
    stop: Sequence[str] = (),
    modality: str = IMAGE,
    batch_size: int = 64,
    watch: Watch | None = None,
) -> list[Sample]:
    """n continuations of an interleaved document by exactly `blocks` pictures, with text between them.

    The page ends with its last picture; `blocks=0` continues it by words alone, up to the first word of `stop`.

    size: of each picture; None: each has the size that the model writes, of at most `max_codes` codes. Without these
        the pictures share all room there is, so that words find what smaller ones leave of it. ValueError for no room
    """
    limits: dict[str, Any] = {"min_blocks": blocks, "max_blocks": blocks, "max_tokens": max_tokens}
    if blocks > 0:
        _check_drawn(sampler, modality)
        if size is None and max_codes is None:
            max_codes = most_codes(sampler, segments, negative, blocks, max_tokens, modality)
        sizes = {} if size is None else {modality: size}
        limits |= {"end_with_block": True, "sizes": sizes, "modalities": (modality,), "max_codes": max_codes}
    prompt = Prompt(tuple(segments), limits, negative=negative, stop=stop)
    return sampler.sample(seeded(prompt, range(seed, seed + n)), sampling, batch_size, watch)


def joint(
    sampler: Sampler,
    n: int = 1,
    *,
    size: tuple[int, int],
    words_first: bool = True,
    max_tokens: int = 48,
    seed: int = 0,
    sampling: Settings | None = None,
    modality: str = IMAGE,
    batch_size: int = 64,
    watch: Watch | None = None,
) -> list[tuple[str, Codes]]:
    """n pairs of words and a picture, codes [H, W] of `size`, that nothing was said about.

    words_first: p(y) p(x | y), or else p(x) p(y | x); for the temperature of both see `unprompted`
    max_tokens: of the words, which have one at least
    """
    settings = unprompted(sampler, sampling, TEXT, modality)
    prompt = to_joint(sampler, size=size, words_first=words_first, max_tokens=max_tokens, modality=modality)
    samples = sampler.sample(seeded(prompt, range(seed, seed + n)), settings, batch_size, watch)
    return [(sample.text, sample.blocks(modality)[-1]) for sample in samples]


def to_joint(
    sampler: Sampler,
    *,
    size: tuple[int, int],
    words_first: bool = True,
    max_tokens: int = 48,
    modality: str = IMAGE,
) -> Prompt:
    """Nothing, or a block that is begun.

    ValueError for a size that cannot be drawn, for no words, and for a picture that no mark begins to come first.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens {max_tokens} of the words must be 1 or more")
    rest = _rest(sampler, modality, size)
    if not words_first:
        if modality in sampler.grammar.bare:
            raise ValueError(f"no mark begins {modality} blocks of this model, so words come first: set words_first")
        limits = {**rest, "text": True, "min_text": 1, "max_tokens": rest["max_tokens"] + max_tokens}
        return Prompt((Block((), modality, size),), limits)
    limits = {"min_text": 1, "min_blocks": 1, "max_blocks": 1, "end_with_block": True}
    limits |= {"sizes": {modality: size}, "modalities": (modality,)}
    return Prompt((), {**limits, "max_tokens": max_tokens + sampler.grammar.blocks[modality].length(*size) + 1})


def _rest(sampler: Sampler, modality: str, size: tuple[int, int], codes: int = 0) -> dict[str, Any]:
    """Limits of what follows a block of which some codes are there. ValueError if none of that size can be written."""
    _check_drawn(sampler, modality)
    block = sampler.grammar.blocks[modality]
    block.check_size(*size)
    tokens = block.length(*size) + 2  # bos and eos
    if tokens > sampler.context:
        raise ValueError(
            f"a block of {size[0]} x {size[1]} codes makes a document of {tokens} tokens, and the context of the model "
            f"is {sampler.context}: choose a smaller size"
        )
    slots = block.layout(*size).slots
    written = int(slots[codes]) if codes < len(slots) else len(slots)
    left = block.length(*size) - written + 1  # and eos
    return {"sizes": {modality: size}, "text": False, "max_blocks": 0, "max_tokens": left}


def _check_drawn(sampler: Sampler, modality: str) -> None:
    """ValueError if the model has no blocks of a modality."""
    if modality not in sampler.grammar.blocks:
        raise ValueError(f"cannot draw {modality!r}: the model has {', '.join(sampler.grammar.blocks) or 'only text'}")
