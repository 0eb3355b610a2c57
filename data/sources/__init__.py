"""Sources: where documents come from. Each is iterated in a fixed order, and says what it could not use.

A source lists `samples()`, each a key and a function that makes the document or raises `ValueError`; this base class
checks the pictures, skips and counts what is broken, and stops when that is more than `max_skipped` of all.
"""

import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .. import pictures
from ..document import Document

LISTED = 20  # skipped samples that are named, the rest is counted
REASONS = 100  # that are told apart: broken files can give as many as there are files
OTHER = "other reasons"
EARLY = 1000  # samples after which a source of unknown length is judged for the first time


class Sample(NamedTuple):
    """A sample that can be made: `load` returns its document, or raises ValueError with the reason."""

    key: str
    load: Callable[[], Document]


class Skipped:
    """What a source could not use: the number by reason, and the first few by name."""

    def __init__(self) -> None:
        self.seen = 0
        self.shards = 0  # of which the end is lost
        self.by_reason: Counter[str] = Counter()
        self.first: list[dict[str, str]] = []

    @property
    def count(self) -> int:
        return self.by_reason.total()

    def add(self, key: str, reason: str) -> None:
        known = reason in self.by_reason or len(self.by_reason) < REASONS
        self.by_reason[reason if known else OTHER] += 1
        if len(self.first) < LISTED:
            self.first.append({"key": key, "reason": reason})

    def check(self, max_skipped: float, of: int) -> None:
        """ValueError when more than the share `max_skipped` of `of` samples was skipped."""
        if self.count > max_skipped * of:
            first = self.first[0]
            raise ValueError(
                f"{self.count} of {of} samples cannot be used, more than data.source.max_skipped={max_skipped}; "
                f"the first is {first['key']}: {first['reason']}"
            )

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "by_reason": dict(self.by_reason.most_common()), "first": self.first}


class Source(ABC):
    """An iterable of documents in a fixed order.

    After an iteration `skipped` says what was left out; `notes` are lines that a user should read.
    """

    license: str = "unknown"
    attribution: str = ""
    prompt_template: str = "{caption}"  # how a prompt is worded so that it resembles the captions
    styles: tuple[str, ...] = ()

    def __init__(self, max_skipped: float = 0.01, max_pixels: int = pictures.MAX_PIXELS, min_side: int = 8):
        if not 0 <= max_skipped <= 1:
            raise ValueError(f"data.source.max_skipped={max_skipped} must be a share, 0 to 1")
        if not 1 <= max_pixels <= pictures.MAX_PIXELS:
            raise ValueError(f"data.source.max_pixels={max_pixels} must be 1 to {pictures.MAX_PIXELS}")
        self.max_skipped, self.max_pixels, self.min_side = max_skipped, max_pixels, min_side
        self.skipped = Skipped()
        self.notes: list[str] = []

    @abstractmethod
    def samples(self) -> Iterator[Sample]:
        """All samples in their fixed order."""

    @abstractmethod
    def fingerprint(self) -> Any:
        """A JSON-able value that changes when the documents would change."""

    def length(self) -> int | None:
        """The number of samples, broken ones included, where it is known without reading them."""
        return None

    def styles_of_concepts(self) -> Mapping[str, Sequence[str]]:
        """The styles each concept is drawn in, where they are known without reading the samples."""
        return {}

    def __iter__(self) -> Iterator[Document]:
        return self.documents()

    def documents(self, done: Container[str] = ()) -> Iterator[Document]:
        """The documents; those whose key is in `done` are left out without being made."""
        self.skipped = skipped = Skipped()
        total = self.length()
        for sample in self.samples():
            skipped.seen += 1
            if sample.key not in done:
                try:
                    document = sample.load()
                    self._check_pictures(document)
                except ValueError as error:
                    skipped.add(sample.key, str(error))
                else:
                    yield document
            if total is not None or skipped.seen % EARLY == 0:
                skipped.check(self.max_skipped, skipped.seen if total is None else total)
        skipped.check(self.max_skipped, skipped.seen)

    def lose_rest_of(self, shard: str, reason: str, where: str, of: int) -> None:
        """Count a shard, one of so many, whose samples behind some place cannot be read; nobody knows how many.

        ValueError when more than the share `max_skipped` of the shards is so.
        """
        self.skipped.seen += 1
        self.skipped.shards += 1
        self.skipped.add(shard, reason)
        if self.skipped.shards > self.max_skipped * of:
            raise ValueError(
                f"{shard}: {reason} {where}: what comes behind it is lost. That is {self.skipped.shards} of {of} "
                f"shards, more than data.source.max_skipped={self.max_skipped}: get the shard again, or raise the limit"
            )
        warnings.warn(f"{shard}: {reason} {where}: what comes behind it is lost", stacklevel=2)

    def _check_pictures(self, document: Document) -> None:
        for segment in document.segments:
            if segment.modality == "image":
                pictures.verify(segment.data, self.max_pixels, self.min_side)
