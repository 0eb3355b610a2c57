"""Several token data sets as one endless stream of documents, with weights that may change along it.

A position counts documents since the start over all sources, epochs and ranks. Which source stands there, and the
position within that source, are pure functions of (seed, weights, position):

    F_k(t)  documents that source k should have had after t: the integral of its share, exact in whole fractions
    C_k(t)  floor(F_k(t) + 1/2), which never falls and is never further than half a document from F_k(t)
    block   the documents C_k(t + 1024) - C_k(t) of all sources, permuted by (seed, t)

so a source is at most half a document from its share at every block's end, and a share of zero gives nothing.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from ..tokenizers.document_grammar import DocumentGrammar
from ..tokenizers.vocabulary import Vocabulary
from .artefact import identity
from .order import MIXTURE, permutation
from .tokens import TokenDataset

BLOCK = 1024  # positions, give or take half a document for each source
Points = tuple[tuple[int, float], ...]  # (position, weight), rising


@dataclass(frozen=True)
class Source:
    """A data set of a mixture."""

    name: str
    dataset: TokenDataset
    weight: Points = ((0, 1.0),)


class Mixture:
    """Data sets that are read as one. Their documents are numbered through, in the order of the sources.

    Raises:
        ValueError: no source, one name twice, or data sets that one decoder cannot be trained on together.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        if not sources:
            raise ValueError("a mixture needs a source")
        self.sources = tuple(sources)
        self.names = tuple(source.name for source in sources)
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"two sources of the mixture have one name: {', '.join(self.names)}")
        for other in self.sources[1:]:
            check_same(self.sources[0], other)
        self.starts = np.concatenate([[0], np.cumsum([len(source.dataset) for source in sources])]).tolist()

    @classmethod
    def of(cls, dataset: "TokenDataset | Mixture") -> "Mixture":
        """One data set as a mixture of one."""
        if isinstance(dataset, Mixture):
            return dataset
        return cls([Source(str(dataset.record.get("name") or dataset.folder), dataset)])

    @classmethod
    def opened(cls, entries: Mapping[str, Any], own: TokenDataset) -> "Mixture":
        """What `mixture` of a configuration describes; nothing is `own` alone, and `tokens: null` means `own`.

        Raises:
            FileNotFoundError, ValueError: an entry is not as it should be, or its tokens cannot be mixed with `own`.
        """
        if not entries:
            return cls.of(own)
        sources = []
        for name, (tokens, weight) in read_entries(entries).items():
            sources.append(Source(name, own if tokens is None else own.like(tokens), weight))
            check_same(Source("this configuration", own), sources[-1])
        return cls(sources)

    def __len__(self) -> int:
        """Documents of all sources."""
        return self.starts[-1]

    @property
    def identity(self) -> str:
        """Hash of the contents, names and weights; of one source that of its contents."""
        if len(self.sources) == 1:
            return self.sources[0].dataset.identity
        parts = [(s.name, s.dataset.identity, s.dataset.split, s.weight) for s in self.sources]
        return identity("mixture", BLOCK, parts)

    @property
    def split(self) -> str:
        """The split that all sources give."""
        return self.sources[0].dataset.split

    @property
    def vocabulary(self) -> Vocabulary:
        return self.sources[0].dataset.vocabulary

    def grammar(self) -> DocumentGrammar:
        """How the documents of all sources are written."""
        return self.sources[0].dataset.grammar()

    def locate(self, number: int) -> tuple[str, int]:
        """(source, number in its data set) of a number in `PackedBatch.sources`."""
        source = bisect_right(self.starts, number) - 1
        return self.names[source], number - self.starts[source]

    def epochs(self, documents: Mapping[str, int]) -> dict[str, float]:
        """How often each source was read, from the documents read of each."""
        return {source.name: documents.get(source.name, 0) / len(source.dataset) for source in self.sources}


def check_same(one: Source, other: Source) -> None:
    """ValueError, naming both, unless their documents can be mixed."""
    a, b = one.dataset.record, other.dataset.record
    made = [record.get("made_from", {}) for record in (a, b)]
    differences = {
        "vocabularies": a["vocabulary"] != b["vocabulary"],
        "grammars": a.get("grammars", {}) != b.get("grammars", {}) or a.get("max_side") != b.get("max_side"),
        "digit ids": a["digit_ids"] != b["digit_ids"],
        **{
            f"{name}s".replace("_", " "): made[0].get(name) != made[1].get(name)
            for name in ("text_tokenizer", "image_tokenizer")
        },
    }
    for what, differ in differences.items():
        if differ:
            raise ValueError(
                f"mixture: {one.name} ({one.dataset.folder}) and {other.name} ({other.dataset.folder}) have different "
                f"{what}: make the tokens of both with the same tokenizers"
            )


def read_entries(entries: Mapping[str, Any]) -> dict[str, tuple[str | None, Points]]:
    """`{name: {tokens: …, weight: …}}` -> {name: (tokens, weight)}. ValueError for what cannot be mixed."""
    found: dict[str, tuple[str | None, Points]] = {}
    for name, entry in entries.items():
        if not isinstance(entry, Mapping) or set(entry) - {"weight"} != {"tokens"}:
            raise ValueError(f"mixture.{name}={entry} takes tokens, and weight if it is not 1")
        if not isinstance(entry["tokens"], str | None):
            raise ValueError(f"mixture.{name}.tokens={entry['tokens']} is neither a folder or address nor null")
        found[name] = entry["tokens"], points_of(name, entry.get("weight", 1.0))
    if found:
        MixtureOrder([weight for _, weight in found.values()], 0)
    return found


def points_of(name: str, weight: Any) -> Points:
    """The weight of a source as a configuration has it: a number, or [[position, number], …] with rising positions.

    ValueError for anything else.
    """
    pairs = weight if isinstance(weight, list | tuple) else [[0, weight]]
    whole = all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs) and len(pairs) > 0
    if whole:
        numbers = [number for pair in pairs for number in pair]
        whole = all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
        whole = whole and all(math.isfinite(n) and n >= 0 for n in numbers)
    if not whole:
        raise ValueError(f"mixture.{name}.weight={weight} is neither a number from 0 on nor [[documents, number], …]")
    places = [pair[0] for pair in pairs]
    if any(place != int(place) for place in places) or sorted(set(places)) != places:
        raise ValueError(f"mixture.{name}.weight={weight}: the numbers of documents have to be whole and to rise")
    return tuple((int(place), float(number)) for place, number in pairs)


class MixtureOrder:
    """Which source stands at a position, and the position within it.

    Arguments:
        weights: of each source; its share is its weight over the sum. Between two points of any source shares run
            straight from the one to the other; before the first and behind the last point they stay.
        seed: another seed is another order within the blocks.
    """

    def __init__(self, weights: Sequence[Points], seed: int) -> None:
        self.weights, self.seed = tuple(weights), seed
        self._knots = sorted({0, *(place for points in weights for place, _ in points)})
        self._shares = [_shares(weights, knot) for knot in self._knots]  # at each knot, of each source
        self._before = [[Fraction(0)] * len(self.weights)]  # documents up to each knot
        for left, right in zip(range(len(self._knots) - 1), range(1, len(self._knots)), strict=True):
            width = self._knots[right] - self._knots[left]
            means = [(a + b) / 2 for a, b in zip(self._shares[left], self._shares[right], strict=True)]
            self._before.append([sum_ + width * mean for sum_, mean in zip(self._before[left], means, strict=True)])
        self._counts = lru_cache(maxsize=8)(self._count)
        self._block = lru_cache(maxsize=4)(self._permute)

    def locate(self, position: int) -> tuple[int, int]:
        """(source, position within the source)."""
        if len(self.weights) == 1:
            return 0, position
        block = position // BLOCK
        while sum(self._counts(block)) > position:
            block -= 1
        while sum(self._counts(block + 1)) <= position:
            block += 1
        sources, ranks = self._block(block)
        place = position - sum(self._counts(block))
        source = int(sources[place])
        return source, self._counts(block)[source] + int(ranks[place])

    def due(self, after: int) -> list[Fraction]:
        """Documents that each source should have had after so many of all."""
        last = bisect_right(self._knots, after) - 1
        past = after - self._knots[last]
        due = [before + past * share for before, share in zip(self._before[last], self._shares[last], strict=True)]
        if last + 1 < len(self._knots):
            width = self._knots[last + 1] - self._knots[last]
            ramps = zip(self._shares[last], self._shares[last + 1], strict=True)
            due = [d + (b - a) * past * past / (2 * width) for d, (a, b) in zip(due, ramps, strict=True)]
        return due

    def _count(self, block: int) -> tuple[int, ...]:
        """Documents of each source before a block."""
        return tuple(math.floor(due + Fraction(1, 2)) for due in self.due(block * BLOCK))

    def _permute(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Source of each place in a block, and how many of that source are before it in the block."""
        quotas = [after - before for before, after in zip(self._counts(block), self._counts(block + 1), strict=True)]
        numbers = np.concatenate([np.arange(quota) for quota in quotas])
        sources = np.repeat(np.arange(len(quotas)), quotas)[permutation(len(numbers), self.seed, MIXTURE, block)]
        ranks = np.empty(len(sources), np.int64)
        ranks[np.argsort(sources, kind="stable")] = numbers
        return sources, ranks


def _shares(weights: Sequence[Points], place: int) -> list[Fraction]:
    values = [_weight_at(points, place) for points in weights]
    if not sum(values):
        raise ValueError(f"mixture: the weight of every source is 0 at document {place}: let one be positive")
    return [value / sum(values) for value in values]


def _weight_at(points: Points, place: int) -> Fraction:
    after = bisect_right(points, place, key=lambda point: point[0])
    (left, lower), (right, upper) = points[max(0, after - 1)], points[min(after, len(points) - 1)]
    weight, end = Fraction(repr(lower)), Fraction(repr(upper))  # as they are written: 0.1 is a tenth
    return weight if left == right else weight + (end - weight) * Fraction(place - left, right - left)
