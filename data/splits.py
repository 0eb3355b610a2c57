"""Which split a document belongs to: by concept, from a hash, so that it never depends on order or on other documents.

A concept (a named thing, in every style) lies wholly in one of train, val, test; documents without a concept are split
by their key. Beside these, some train concepts give up one of their styles to `heldout_style`: both the concept and the
style are known from train, the pair of them is not.
"""

import hashlib
from collections.abc import Mapping, Sequence

from .document import Document

TRAIN, VAL, TEST, HELDOUT_STYLE = "train", "val", "test", "heldout_style"
SPLITS = (TRAIN, VAL, TEST, HELDOUT_STYLE)


class Splits:
    """Shares of concepts: `val` and `test` of all, `heldout_style` of the train concepts drawn in several styles."""

    def __init__(self, val: float = 0.05, test: float = 0.05, heldout_style: float = 0.05, seed: int = 0):
        shares = {"val": val, "test": test, "heldout_style": heldout_style}
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise ValueError(f"data.splits.{name}={share} must be at least 0 and less than 1")
        if val + test >= 1:
            raise ValueError(f"data.splits.val={val} and data.splits.test={test} leave nothing to train on")
        self.val, self.test, self.heldout_style, self.seed = val, test, heldout_style, seed

    def split_of(self, document: Document, styles: Mapping[str, Sequence[str]] | None = None) -> str:
        """The split of a document. `styles` gives the styles a concept is drawn in; without it none is held out."""
        unit, concept = _unit(document), document.fields.get("concept")
        split = self._base(unit)
        if concept is None:
            return split
        drawn = sorted((styles or {}).get(concept, ()))
        if split != TRAIN or len(drawn) < 2 or self._draw("held out", unit) >= self.heldout_style:
            return split
        held_out = drawn[int(self._draw("style", unit) * len(drawn))]
        return HELDOUT_STYLE if document.fields.get("style") == held_out else TRAIN

    def _base(self, unit: str) -> str:
        draw = self._draw("split", unit)
        if draw < self.test:
            return TEST
        return VAL if draw < self.test + self.val else TRAIN

    def _draw(self, purpose: str, unit: str) -> float:
        return _draw(self.seed, purpose, unit)


def in_share(document: Document, share: float) -> bool:
    """Whether a document belongs to this share of all concepts: the same ones always, all of them for 1."""
    return _draw(0, "share", _unit(document)) < share


def _unit(document: Document) -> str:
    """What is never parted: all documents of a concept, or a document without one."""
    concept = document.fields.get("concept")
    return f"key:{document.key}" if concept is None else f"concept:{concept.casefold()}"


def _draw(seed: int, purpose: str, unit: str) -> float:
    """Uniform in [0, 1), a pure function of seed, purpose and unit."""
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{unit}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
