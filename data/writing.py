"""Segments -> written documents: ids by the grammar, in pieces where a document is longer than a row.

A document is split at segment boundaries, and each piece is a document of its own (bos .. eos). A text that alone is
longer than a row is cut, for a text is no block; a block that alone is longer is dropped and counted.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..tokenizers.document_grammar import DocumentGrammar
from ..tokenizers.vocabulary import TEXT
from .packing import WrittenDocument

Segments = Sequence[tuple[str, np.ndarray]]  # (modality, codes): text (n,), a block (h, w)


class Written(NamedTuple):
    """What became of one document."""

    pieces: tuple[WrittenDocument, ...]
    dropped: int  # segments that no row can hold


class Writer:
    """Documents of at most `length` ids, bos and eos included."""

    def __init__(self, grammar: DocumentGrammar, length: int) -> None:
        if length < 3:
            raise ValueError(f"length={length}: a document is at least bos, one token and eos")
        self.grammar, self.length = grammar, length

    def write(self, segments: Segments, source: int) -> Written:
        """All pieces of a document; `source` is its number in the data set."""
        sizes = [self._size(modality, codes) for modality, codes in segments]
        if sum(sizes) + 2 <= self.length:
            return Written((self._piece(segments, source),), 0)
        pieces: list[WrittenDocument] = []
        group: list[tuple[str, np.ndarray]] = []
        room, dropped = self.length - 2, 0
        for modality, codes, size in self._parts(segments, sizes):
            if group and size > room:
                pieces.append(self._piece(group, source))
                group, room = [], self.length - 2
            if size > room:
                dropped += 1
            else:
                group.append((modality, codes))
                room -= size
        if group:
            pieces.append(self._piece(group, source))
        return Written(tuple(pieces), dropped)

    def _parts(self, segments: Segments, sizes: Sequence[int]) -> Iterator[tuple[str, np.ndarray, int]]:
        most = self.length - 2
        for (modality, codes), size in zip(segments, sizes, strict=True):
            if modality == TEXT and size > most:
                for start in range(0, size, most):
                    part = codes[start : start + most]
                    yield modality, part, len(part)
            else:
                yield modality, codes, size

    def _size(self, modality: str, codes: np.ndarray) -> int:
        return len(codes) if modality == TEXT else self.grammar.blocks[modality].length(*codes.shape)

    def _piece(self, segments: Segments, source: int) -> WrittenDocument:
        ids = self.grammar.write(segments)
        free = np.ones(len(ids), dtype=bool)
        free[0] = False  # bos
        at = 1
        for modality, codes in segments:
            if modality == TEXT:
                at += len(codes)
            else:  # the begin mark is free: something else might have come
                layout = self.grammar.blocks[modality].layout(*codes.shape)
                free[at + 1 : at + len(layout.free)] = layout.free[1:]
                at += len(layout.free)
        return WrittenDocument(ids, free, source)
