"""What a captioned picture teaches: words to picture, picture to words, a page of several, or its text alone.

Which of them, with which wording and which companions, is drawn by (seed, epoch, number of the document) and nothing
else, so any document of any epoch can be composed again. Documents that are not one text and one picture are used as
they are.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from ..tokenizers.vocabulary import TEXT
from .document import TokenDocument, TokenSegment
from .order import uniforms
from .writing import Segments

WORDS_TO_PICTURE, PICTURE_TO_WORDS, PAGE = "words_to_picture", "picture_to_words", "page"
INTERLEAVED = "interleaved"  # neither a captioned picture nor text alone; never drawn
DRAWN = (WORDS_TO_PICTURE, PICTURE_TO_WORDS, PAGE, TEXT)
KINDS = (*DRAWN, INTERLEAVED)
PAGE_PICTURES = (2, 4)  # fewest and most pictures of a page

_KIND, _DROPOUT, _COUNT, _COMPANIONS = 0, 1, 2, 3  # what the draws of a document are for
_WORDINGS = _COMPANIONS + PAGE_PICTURES[1]
_COMPOSE = 0x6B696E64  # keeps these draws apart from those of the order


class Library(Protocol):
    """What is composed from: `TokenDataset`, or anything like it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> TokenDocument: ...

    def relatives(self, index: int, /) -> Sequence[int]:
        """Other captioned pictures of the same family in the same shard."""
        ...


class Composed(NamedTuple):
    """A document to train on, and what it is."""

    kind: str
    segments: Segments


def captioned_picture(document: TokenDocument) -> tuple[TokenSegment, TokenSegment] | None:
    """(caption, picture) of a document that is one of each, in either order."""
    if len(document.segments) != 2:
        return None
    first, second = document.segments
    if (first.modality == TEXT) == (second.modality == TEXT):
        return None
    return (first, second) if first.modality == TEXT else (second, first)


class Composer:
    """Composes training documents.

    Arguments:
        library: the token documents.
        weights: kind -> how often it is drawn, relative to the others; those not named are not drawn.
        caption_dropout: share of the words-to-picture documents that lose their words: `bos boi ..`, which guidance
            needs as its unconditional branch.
        seed: another seed is another draw.
    """

    def __init__(
        self, library: Library, weights: Mapping[str, float], caption_dropout: float = 0.1, seed: int = 0
    ) -> None:
        unknown = sorted(set(weights) - set(DRAWN))
        if unknown:
            raise ValueError(f"kind {unknown[0]!r} is not one of {', '.join(DRAWN)}")
        if not all(0 <= weight < float("inf") for weight in weights.values()) or not sum(weights.values()) > 0:
            raise ValueError(f"weights of kinds {dict(weights)}: none may be negative and one has to be positive")
        if not 0 <= caption_dropout <= 1:
            raise ValueError(f"caption_dropout={caption_dropout} is a share, from 0 to 1")
        self.library, self.caption_dropout, self.seed = library, caption_dropout, seed
        self._kinds = [kind for kind in DRAWN if weights.get(kind, 0) > 0]
        shares = np.array([weights[kind] for kind in self._kinds], dtype=np.float64)
        self._until = (np.cumsum(shares) / np.cumsum(shares)[-1]).tolist()

    def compose(self, epoch: int, index: int) -> Composed:
        """The document that document `index` gives in an epoch."""
        document = self.library[index]
        captioned = captioned_picture(document)
        texts = max(PAGE_PICTURES[1], len(document.segments))
        draws = uniforms(_WORDINGS + texts, self.seed, _COMPOSE, epoch, index)
        if captioned is None:
            return _as_it_is(document, draws[_WORDINGS:])
        kind = next(kind for kind, until in zip(self._kinds, self._until, strict=True) if draws[_KIND] < until)
        if kind == WORDS_TO_PICTURE and draws[_DROPOUT] < self.caption_dropout:
            return Composed(kind, [_block(captioned[1])])
        return self._captioned(kind, index, captioned, draws)

    def compose_as(self, kind: str, index: int) -> Composed | None:
        """The document as one kind, in its first wording and with all its words; None where it cannot be that kind.

        The companions of a page are those that epoch -1 would draw.
        """
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
        document = self.library[index]
        captioned = captioned_picture(document)
        if captioned is None:
            composed = _as_it_is(document, [0.0] * len(document.segments))
            return composed if composed.kind == kind else None
        draws = uniforms(_WORDINGS, self.seed, _COMPOSE, -1, index) + [0.0] * PAGE_PICTURES[1]
        if kind == INTERLEAVED or (kind == PAGE and not self.library.relatives(index)):
            return None
        return self._captioned(kind, index, captioned, draws)

    def _captioned(
        self, kind: str, index: int, captioned: tuple[TokenSegment, TokenSegment], draws: Sequence[float]
    ) -> Composed:
        caption, picture = captioned
        wordings = draws[_WORDINGS:]
        if kind == TEXT:
            return Composed(kind, [_wording(caption, wordings[0])])
        if kind == PICTURE_TO_WORDS:
            return Composed(kind, [_block(picture), _wording(caption, wordings[0])])
        segments = [_wording(caption, wordings[0]), _block(picture)]
        companions = self._companions(index, draws) if kind == PAGE else []
        for companion, wording in zip(companions, wordings[1:], strict=False):
            pair = captioned_picture(self.library[companion])
            assert pair is not None, "relatives are captioned pictures"
            segments += [_wording(pair[0], wording), _block(pair[1])]
        return Composed(PAGE if companions else WORDS_TO_PICTURE, segments)  # who has no relatives stands alone

    def _companions(self, index: int, draws: Sequence[float]) -> list[int]:
        relatives = list(self.library.relatives(index))
        fewest, most = PAGE_PICTURES
        count = fewest - 1 + int(draws[_COUNT] * (most - fewest + 1))
        return [relatives.pop(int(draw * len(relatives))) for draw in draws[_COMPANIONS:][: min(count, len(relatives))]]


def _wording(segment: TokenSegment, draw: float) -> tuple[str, np.ndarray]:
    wordings = (segment.codes, *segment.alternatives)
    return segment.modality, wordings[int(draw * len(wordings))]


def _block(segment: TokenSegment) -> tuple[str, np.ndarray]:
    return segment.modality, segment.codes


def _as_it_is(document: TokenDocument, draws: Sequence[float]) -> Composed:
    pairs = zip(document.segments, draws, strict=False)
    segments = [_wording(segment, draw) if segment.modality == TEXT else _block(segment) for segment, draw in pairs]
    return Composed(TEXT if all(modality == TEXT for modality, _ in segments) else INTERLEAVED, segments)
