"""The vocabulary: the only place that knows which token id stands for which code of which modality.

Named ranges of ids, one a modality, and named special ids. The text range is the ground that other ranges and specials
may be carved out of, so that published layouts are values: Emu3 appends codes, Chameleon has them in the BPE table.

Dimensions: any shape of codes or ids goes in, the same shape comes out.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

TEXT = "text"
DEFAULT_SPECIALS = ("pad", "bos", "eos", "boi", "img", "eol", "eof", "eoi")


@dataclass(frozen=True)
class Range:
    """`size` codes of one modality at the ids `start .. start + size - 1`.

    Code `c` has the id `start + c`, or `start + table[c]` where a table is given (a permutation of 0 .. size - 1).
    """

    name: str
    start: int
    size: int
    table: tuple[int, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", int(self.start))
        object.__setattr__(self, "size", int(self.size))
        if self.start < 0 or self.size < 1:
            raise ValueError(f"range {self.name!r}: start {self.start} and size {self.size} must be >= 0 and >= 1")
        if self.table is not None:
            object.__setattr__(self, "table", tuple(int(offset) for offset in self.table))
            if sorted(self.table) != list(range(self.size)):
                raise ValueError(f"range {self.name!r}: its table must be a permutation of 0 .. {self.size - 1}")

    @property
    def stop(self) -> int:
        return self.start + self.size


@dataclass(frozen=True)
class Vocabulary:
    """Ranges (text first) and special ids, with the arithmetic between codes and ids.

    Ranges other than text are disjoint, and no special lies in them; both may lie inside the text range, which then
    loses those ids: they are neither written nor read as text.
    """

    ranges: tuple[Range, ...]
    specials: dict[str, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranges", tuple(self.ranges))
        object.__setattr__(self, "specials", {name: int(id_) for name, id_ in self.specials.items()})
        names = [range_.name for range_ in self.ranges]
        if names[:1] != [TEXT] or len(set(names)) != len(names):
            raise ValueError(f"the ranges of a vocabulary are the text range, then one a modality; got {names}")
        if len(set(self.specials.values())) != len(self.specials) or min(self.specials.values(), default=0) < 0:
            raise ValueError(f"special ids must be different and not negative; got {self.specials}")
        carved = sorted(self.ranges[1:], key=lambda range_: range_.start)
        for left, right in pairwise(carved):
            if right.start < left.stop:
                raise ValueError(f"ranges {left.name!r} and {right.name!r} overlap at id {right.start}")
        for name, id_ in self.specials.items():
            for range_ in carved:
                if range_.start <= id_ < range_.stop:
                    raise ValueError(f"special {name!r} has the id {id_}, which belongs to range {range_.name!r}")

    @classmethod
    def appended(
        cls, text_size: int, specials: Sequence[str] = DEFAULT_SPECIALS, codebooks: Mapping[str, int] | None = None
    ) -> "Vocabulary":
        """Text ids 0 .. text_size - 1, then the specials in their order, then one range for each codebook."""
        ranges = [Range(TEXT, 0, text_size)]
        start = text_size + len(specials)
        for name, size in (codebooks or {}).items():
            ranges.append(Range(name, start, size))
            start += size
        return cls(tuple(ranges), {name: text_size + i for i, name in enumerate(specials)})

    def grown(self, name: str, size: int, specials: Sequence[str] = ()) -> "Vocabulary":
        """With one modality more: new specials, then its codes, behind all ids there are; those keep their meaning.

        ValueError for a name that is taken, or no codes.
        """
        for taken in (name, *specials):
            if taken in self.specials or taken in self.modalities:
                raise ValueError(f"the vocabulary has {taken!r} already: choose another name")
        ids = {special: self.size + number for number, special in enumerate(specials)}
        return Vocabulary((*self.ranges, Range(name, self.size + len(ids), size)), {**self.specials, **ids})

    @cached_property
    def size(self) -> int:
        """Number of ids: rows of the embedding and of the head."""
        return max(max(range_.stop for range_ in self.ranges), max(self.specials.values(), default=-1) + 1)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the ranges; text is number 0."""
        return tuple(range_.name for range_ in self.ranges)

    def id(self, special: str) -> int:
        """Id of a special by name, e.g. `vocabulary.id("boi")`."""
        try:
            return self.specials[special]
        except KeyError:
            known = ", ".join(self.specials)
            raise ValueError(f"the vocabulary has no special token {special!r}; it has {known}") from None

    def range(self, modality: str) -> Range:
        for range_ in self.ranges:
            if range_.name == modality:
                return range_
        raise ValueError(f"the vocabulary has no modality {modality!r}; it has {', '.join(self.modalities)}")

    def encode(self, modality: str, codes: ArrayLike) -> NDArray[np.int64]:
        """Codes 0 .. size - 1 of a modality -> ids. ValueError names the first code outside."""
        range_, codes = self.range(modality), _integers(codes, f"{modality} codes")
        if codes.size and (codes.min() < 0 or codes.max() >= range_.size):
            code = codes[(codes < 0) | (codes >= range_.size)][0]
            raise ValueError(f"{modality} code {code} is outside 0 .. {range_.size - 1}")
        ids = (codes if range_.table is None else self._tables[modality][0][codes]) + range_.start
        if modality == TEXT and (foreign := self._owner[ids] != 0).any():
            raise ValueError(f"text code {ids[foreign][0]} is not text: a special or another modality has that id")
        return ids

    def decode(self, modality: str, ids: ArrayLike) -> NDArray[np.int64]:
        """Ids -> codes of a modality, the inverse of `encode`. ValueError names the first id that is not of it."""
        range_, ids = self.range(modality), _integers(ids, "ids")
        foreign = ~self.contains(modality, ids)
        if foreign.any():
            raise ValueError(
                f"id {ids[foreign][0]} is not one of the {modality} ids {range_.start} .. {range_.stop - 1}"
            )
        codes = ids - range_.start
        return codes if range_.table is None else self._tables[modality][1][codes]

    def contains(self, modality: str, ids: ArrayLike) -> NDArray[np.bool_]:
        """Which ids belong to the range of a modality (text: without what is carved out of it)."""
        range_, ids = self.range(modality), np.asarray(ids)
        inside = (ids >= range_.start) & (ids < range_.stop)
        if modality == TEXT and self._is_carved:
            inside &= self._owner[np.where(inside, ids, 0)] == 0
        return inside

    def holds(self, modality: str, id_: int) -> bool:
        """`contains` of a single id, without the cost of an array."""
        range_ = self.range(modality)
        return range_.start <= id_ < range_.stop and (modality != TEXT or bool(self._owner[id_] == 0))

    def ids(self, modality: str) -> NDArray[np.int64]:
        """All ids of a modality, rising."""
        return np.flatnonzero(self._owner == self.modalities.index(self.range(modality).name))

    def modality_of(self, ids: ArrayLike) -> NDArray[np.int8]:
        """Index in `modalities` of the range each id lies in. Specials and unnamed ids count as text: index 0."""
        ids = _integers(ids, "ids")
        if ids.size and (ids.min() < 0 or ids.max() >= self.size):
            raise ValueError(f"id {ids[(ids < 0) | (ids >= self.size)][0]} is outside the vocabulary of {self.size}")
        return self._modality[ids]

    @cached_property
    def identity(self) -> str:
        """sha256 of the contents, in hex; the first 12 digits name things."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def __hash__(self) -> int:
        return hash(self.identity)

    def to_json(self) -> str:
        """One canonical line: equal vocabularies have equal text."""
        ranges = [
            {"name": r.name, "start": r.start, "size": r.size} | ({} if r.table is None else {"table": list(r.table)})
            for r in self.ranges
        ]
        return json.dumps({"ranges": ranges, "specials": self.specials}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        """Inverse of `to_json`. ValueError if the text is not a vocabulary."""
        try:
            fields = json.loads(text)
            ranges = tuple(Range(r["name"], r["start"], r["size"], r.get("table")) for r in fields["ranges"])
            specials = dict(fields["specials"])
        except (KeyError, TypeError, json.JSONDecodeError) as fault:
            raise ValueError(f"not the JSON of a vocabulary ({type(fault).__name__}: {fault})") from None
        return cls(ranges, specials)

    @cached_property
    def _owner(self) -> NDArray[np.int8]:
        """For each id the index of its range, -1 for specials and for ids of no range."""
        owner = np.full(self.size, -1, dtype=np.int8)
        for index, range_ in enumerate(self.ranges):
            owner[range_.start : range_.stop] = index
        owner[list(self.specials.values())] = -1
        return owner

    @cached_property
    def _modality(self) -> NDArray[np.int8]:
        return np.maximum(self._owner, 0)

    @cached_property
    def _is_carved(self) -> bool:
        return int((self._owner == 0).sum()) != self.ranges[0].size

    @cached_property
    def _tables(self) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """(code -> offset, offset -> code) of the ranges that have a table."""
        tables = {r.name: np.array(r.table, dtype=np.int64) for r in self.ranges if r.table is not None}
        return {name: (table, np.argsort(table)) for name, table in tables.items()}


def _integers(values: ArrayLike, what: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{what} must be integers, got {array.dtype}")
    return array.astype(np.int64)
