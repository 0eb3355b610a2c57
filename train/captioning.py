"""How well pictures are put into words: exact matches and token F1 of the words, without the style they end in.

F1: as SQuAD counts it, https://arxiv.org/abs/1606.05250, over words in lower case as often as they occur.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ..model.card import Card
from ..model.generation import Sampler, tasks
from .captioned_pictures import CaptionedPicture


class Captioning(NamedTuple):
    """Shares, 0 .. 1, and the captions that were written."""

    exact: float
    f1: float
    captions: list[str]


def measure_captioning(
    sampler: Sampler, pictures: Sequence[CaptionedPicture], card: Card, batch_size: int = 64
) -> Captioning:
    """Have the model caption the pictures, the likeliest word each time; each of several wordings is right."""
    captions = tasks.caption(sampler, [picture.codes for picture in pictures], batch_size=batch_size)
    bare = [strip_style(caption, card.prompt_template, card.styles) for caption in captions]
    right = [
        [strip_style(wording, card.prompt_template, card.styles) for wording in picture.wordings]
        for picture in pictures
    ]
    exact = [caption in wordings for caption, wordings in zip(bare, right, strict=True)]
    f1 = [max(token_f1(caption, wording) for wording in known) for caption, known in zip(bare, right, strict=True)]
    return Captioning(sum(exact) / len(exact), sum(f1) / len(f1), captions)


def strip_style(text: str, template: str, styles: Sequence[str]) -> str:
    """The caption that `template` (`{caption}, {style}`) was filled with; text that was not made so stays as it is."""
    before, _, after = template.partition("{caption}")
    for style in styles:
        start, end = before.format(style=style), after.format(style=style)
        if len(text) >= len(start) + len(end) and text.startswith(start) and text.endswith(end):
            return text[len(start) : len(text) - len(end)].strip()
    return text.strip()


def token_f1(text: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the words of `text`; 1 for two texts without words."""
    ours, theirs = (Counter(words.casefold().split()) for words in (text, reference))
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())
