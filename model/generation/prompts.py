"""Documents for people: what a prompt is, and what comes back. Text as strings, everything else as blocks of codes.

Dimensions: H rows and W columns of codes, T tokens of a document.
"""

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...tokenizers.document_grammar import DocumentGrammar
from ...tokenizers.published_text import PublishedText
from ...tokenizers.text import TextTokenizer
from ...tokenizers.vocabulary import TEXT

LIMITS = tuple(inspect.signature(DocumentGrammar.automaton).parameters)[1:]


@dataclass(frozen=True, eq=False)
class Block:
    """Codes [H, W] of a picture (or of another modality), or with `size` only the first of them in reading order.

    Those are whole rows [h, W], or any number of codes [n].
    """

    codes: ArrayLike
    modality: str = "image"
    size: tuple[int, ...] | None = None


Piece = str | Block


@dataclass(frozen=True, eq=False)
class Prompt:
    """The beginning of a document, and what may become of it. A sample depends on its prompt and on nothing else.

    segments: text and blocks; the last block may be half finished
    limits: arguments of `DocumentGrammar.automaton`, e.g. `{"max_blocks": 0, "max_tokens": 48}`
    seed: of the row's random numbers, 0 .. 2^64 - 1
    negative: text that guidance leads away from, in place of none
    stop: the document ends as soon as the text it writes holds one of these; they are cut off its last segment
    """

    segments: tuple[Piece, ...] = ()
    limits: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    negative: str = ""
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed {self.seed} must be from 0 to 2^64 - 1")
        if isinstance(self.stop, str):
            raise ValueError(f"stop {self.stop!r} is one text: give a list of them, as in [{self.stop!r}]")
        if "" in self.stop:
            raise ValueError("a stop word is empty: every text holds it")
        for name in self.limits:
            if name not in LIMITS:
                near = difflib.get_close_matches(name, LIMITS, 1)
                known = f"did you mean {near[0]}?" if near else f"there are {', '.join(LIMITS)}"
                raise ValueError(f"unknown limit {name!r}, {known}")


@dataclass(frozen=True, eq=False)
class Sample:
    """A finished document: its segments, its ids [T], and how many of them the prompt gave."""

    segments: tuple[Piece, ...]
    ids: NDArray[np.int64]
    given: int

    @property
    def text(self) -> str:
        """All text of the document."""
        return "".join(segment for segment in self.segments if isinstance(segment, str))

    def blocks(self, modality: str = "image") -> list[NDArray[np.int64]]:
        """Codes [H, W] of each block of a modality."""
        blocks = [segment for segment in self.segments if isinstance(segment, Block)]
        return [np.asarray(block.codes) for block in blocks if block.modality == modality]


class Writer:
    """Turns segments into ids and back."""

    def __init__(self, grammar: DocumentGrammar, text_tokenizer: TextTokenizer | PublishedText):
        self.grammar, self.text_tokenizer = grammar, text_tokenizer

    def write(self, segments: Iterable[Piece], close: bool = False) -> NDArray[np.int64]:
        """Segments -> ids [T]; with `close` ending in eos. ValueError for codes or sizes that cannot be written."""
        segments = tuple(segments)
        written: list[tuple[str, ArrayLike]] = []
        for index, segment in enumerate(segments):
            if isinstance(segment, str):
                written.append((TEXT, np.array(self.text_tokenizer.encode(segment), dtype=np.int64)))
            elif segment.size is None:
                written.append((segment.modality, segment.codes))
            elif close or index + 1 < len(segments):
                raise ValueError(f"segment {index}: only the last block of a prompt may be half finished")
            else:
                return np.concatenate([self.grammar.write(written, close=False), self._begun(segment, segment.size)])
        return self.grammar.write(written, close)

    def spans(self, segments: Iterable[Piece]) -> tuple[tuple[int, int], ...]:
        """Where the whole blocks of segments lie in their ids: first id and end of each."""
        at, spans = 1, list[tuple[int, int]]()  # behind bos
        for segment in segments:
            if isinstance(segment, str):
                at += len(self.text_tokenizer.encode(segment))
            elif segment.size is None:
                start, at = at, at + self.grammar.blocks[segment.modality].length(*np.shape(segment.codes))
                spans.append((start, at))
        return tuple(spans)

    def read(self, ids: NDArray[np.int64]) -> tuple[Piece, ...]:
        """Ids [T] of one whole document -> segments. Text that is not UTF-8 comes back with U+FFFD."""
        return tuple(
            self.text_tokenizer.decode(codes.tolist()) if modality == TEXT else Block(codes, modality)
            for modality, codes in self.grammar.read(ids)
        )

    def _begun(self, block: Block, size: tuple[int, ...]) -> NDArray[np.int64]:
        """Ids of a half-finished block, up to where its next code goes."""
        if block.modality not in self.grammar.blocks:
            raise ValueError(f"no block grammar for {block.modality!r}; there is {', '.join(self.grammar.blocks)}")
        grammar, begun = self.grammar.blocks[block.modality], np.asarray(block.codes)
        grammar.check_size(*size)
        sides = " x ".join(map(str, size))
        if begun.ndim > 1 and begun.shape[1:] != size[1:]:
            raise ValueError(
                f"codes {begun.shape} are not the first rows of a block of {sides}: give rows of its width"
            )
        codes = begun.ravel()
        layout = grammar.layout(*size)
        if len(codes) >= len(layout.slots):
            raise ValueError(f"{len(codes)} codes leave nothing to complete in a block of {sides}")
        ids = layout.template[: layout.slots[len(codes)]].copy()
        ids[layout.slots[: len(codes)]] = grammar.vocabulary.encode(block.modality, codes)
        return ids
