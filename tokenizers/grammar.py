"""How a block of codes is written as tokens, as data: one object writes training data, reads and constrains output.

Emu3 (https://arxiv.org/abs/2409.18869) `boi "H*W" img [W codes, eol] x H eof eoi` is the default of `RasterGrammar`;
Chameleon, Lumina-mGPT and Emu3.5 are other values of it, listed below.

Dimensions: H rows and W columns of codes, T tokens of the written block.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .automaton import BODY, BlockAutomaton, GrammarError
from .vocabulary import Vocabulary

__all__ = ["CHAMELEON", "EMU3", "EMU3_5", "LUMINA", "BoundGrammar", "GrammarError", "Layout", "RasterGrammar"]


@dataclass(frozen=True)
class RasterGrammar:
    """An H x W block written row by row. Marks are names of special tokens; None leaves a mark out."""

    begin: str = "boi"
    size: Literal["digits", "tokens"] | None = "digits"  # decimal digits, one token for each number, or not written
    separator: str | None = "*"  # between the digits of H and of W; it is a digit symbol, not a special
    size_unit: int = 1  # codes that the number 1 stands for
    content: str | None = "img"  # after the size, before the first code
    row_end: str | None = "eol"
    last_row_end: bool = True  # the last row ends in row_end like the others
    frame_end: str | None = "eof"
    end: str = "eoi"
    fixed_size: tuple[int, int] | None = None  # (H, W) of every block

    def __post_init__(self) -> None:
        if self.fixed_size is not None:
            height, width = (int(side) for side in self.fixed_size)
            object.__setattr__(self, "fixed_size", (height, width))
        if self.size not in ("digits", "tokens", None):
            raise ValueError(f"grammar: size must be 'digits', 'tokens' or None, got {self.size!r}")
        if self.size is None and self.fixed_size is None:
            raise ValueError("grammar: a size that is not written must be fixed; set fixed_size or size")
        if (self.size == "digits") != (self.separator is not None):
            raise ValueError(
                f"grammar: size={self.size!r} goes with{'' if self.size == 'digits' else 'out'} a separator"
            )
        if self.size == "digits" and self.content is None:
            raise ValueError("grammar: digits need a content mark that ends them; set content")
        if self.size_unit < 1:
            raise ValueError(f"grammar: size_unit must be 1 or more, got {self.size_unit}")

    def bind(
        self, vocabulary: Vocabulary, modality: str, digit_ids: Mapping[str, int] | None = None, max_side: int = 256
    ) -> "BoundGrammar":
        """The grammar with ids for names.

        digit_ids: id of each symbol of the size: "0" .. "9" and the separator, or, for size "tokens", of each number.
        max_side: the largest H or W that may be written or read, in codes.
        """
        return BoundGrammar(self, vocabulary, modality, digit_ids or {}, max_side)


EMU3 = RasterGrammar()
EMU3_5 = RasterGrammar(last_row_end=False, frame_end=None)
CHAMELEON = RasterGrammar(size=None, separator=None, content=None, row_end=None, frame_end=None, fixed_size=(32, 32))
LUMINA = RasterGrammar(size="tokens", separator=None, size_unit=2, content=None, frame_end=None)


class Layout(NamedTuple):
    """The token positions of a block of one size."""

    template: NDArray[np.int64]  # [T] the ids, -1 where a code goes
    slots: NDArray[np.int64]  # [H * W] where the codes go, in raster order
    free: NDArray[np.bool_]  # [T] False where the grammar leaves no choice


class BoundGrammar:
    """A `RasterGrammar` bound to the ids of a vocabulary: `write`, `read`, `free`, `automaton`."""

    def __init__(
        self, grammar: RasterGrammar, vocabulary: Vocabulary, modality: str, digit_ids: Mapping[str, int], max_side: int
    ):
        self.grammar, self.vocabulary, self.modality, self.max_side = grammar, vocabulary, modality, max_side
        self.begin, self.end = vocabulary.id(grammar.begin), vocabulary.id(grammar.end)
        self.content = self._id(grammar.content)
        self._row_end, self._frame_end = self._id(grammar.row_end), self._id(grammar.frame_end)
        vocabulary.range(modality)
        if grammar.size is None:
            digit_ids = {}
        elif grammar.size == "digits":
            symbols = [*"0123456789", grammar.separator or ""]
            if lacking := [symbol for symbol in symbols if symbol not in digit_ids]:
                raise ValueError(f"digit_ids lacks {lacking}: the grammar writes sizes with digits")
            digit_ids = {symbol: digit_ids[symbol] for symbol in symbols}
        self.digit_ids = {symbol: int(id_) for symbol, id_ in digit_ids.items()}
        if len(set(self.digit_ids.values())) != len(self.digit_ids):
            raise ValueError(f"digit_ids must be different ids, got {self.digit_ids}")
        self.separator = self.digit_ids.get(grammar.separator or "", -1)
        self.number_of = {id_: int(symbol) for symbol, id_ in self.digit_ids.items() if symbol != grammar.separator}
        marks = {self.begin, self.content, self._row_end, self._frame_end, self.end}
        if taken := marks & set(self.digit_ids.values()):
            raise ValueError(f"digit_ids holds {sorted(taken)}, which are marks of the grammar")
        vocabulary.modality_of(list(self.digit_ids.values()))  # inside the vocabulary
        self.sides = self._sides()
        self._writable = frozenset(self.sides)
        if not self.sides:
            raise ValueError(f"no side of {modality} can be written with max_side={max_side} and these digit_ids")
        self._layouts: dict[tuple[int, int], Layout] = {}
        if grammar.fixed_size is not None:
            self.check_size(*grammar.fixed_size)
        self._parser = BlockAutomaton(self)

    def write(self, codes: ArrayLike) -> NDArray[np.int64]:
        """Codes [H, W] -> ids [T]. ValueError for a size or a code the grammar cannot write."""
        codes = np.asarray(codes)
        if codes.ndim != 2:
            raise ValueError(f"a block of {self.modality} has the shape (H, W), got {codes.shape}")
        self.check_size(*codes.shape)
        layout = self.layout(*codes.shape)
        ids = layout.template.copy()
        ids[layout.slots] = self.vocabulary.encode(self.modality, codes.ravel())
        return ids

    def read(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Ids [T] of one whole block -> codes [H, W]. GrammarError at the first id that `write` would not have put."""
        ids = np.asarray(ids)
        codes, layout = self.match(ids)
        if len(ids) > len(layout.template):
            raise GrammarError(len(layout.template), f"{ids[len(layout.template)]} after the end of the block")
        return codes

    def read_size(self, ids: NDArray[np.integer]) -> tuple[int, int]:
        """(H, W) of the block that `ids` start with. GrammarError within the header; the rest is not looked at."""
        state = self._parser.start
        while state.stage != BODY:
            if state.at == len(ids):
                raise GrammarError(state.at, f"a block of {self.modality} ends within its size")
            state = self._parser.step(state, int(ids[state.at]))
        return state.height, state.width

    def match(self, ids: NDArray[np.integer]) -> tuple[NDArray[np.int64], Layout]:
        """Read the block that `ids` start with; more may follow. -> (codes [H, W], its layout)."""
        height, width = self.read_size(ids)
        layout = self.layout(height, width)
        ids = ids[: len(layout.template)]
        template = layout.template[: len(ids)]
        right = np.where(template < 0, self.vocabulary.contains(self.modality, ids), ids == template)
        if not right.all():
            at = int(np.argmin(right))
            expected = self._parser.allowed(self._parser.start._replace(stage=BODY, height=height, width=width, at=at))
            reason = f"{ids[at]} in a {height} x {width} block of {self.modality}, expected "
            raise GrammarError(at, reason + expected.describe(self.vocabulary))
        if len(ids) < len(layout.template):
            reason = (
                f"a {height} x {width} block of {self.modality} ends after {len(ids)} of {len(layout.template)} ids"
            )
            raise GrammarError(len(ids), reason)
        return self.vocabulary.decode(self.modality, ids[layout.slots]).reshape(height, width), layout

    def free(self, ids: ArrayLike) -> NDArray[np.bool_]:
        """[T] which ids of a written block carry information: those where `automaton()` leaves a choice.

        Codes do, and the symbols of the size with the mark that ends them; begin, row, frame and end marks do not.
        """
        ids = np.asarray(ids)
        self.read(ids)
        return self.layout(*self.read_size(ids)).free.copy()

    def automaton(self, size: tuple[int, int] | None = None, max_codes: int | None = None) -> BlockAutomaton:
        """What may come next in a block: of that size, or of any size with at most that many codes."""
        return BlockAutomaton(self, size, max_codes)

    def length(self, height: int, width: int) -> int:
        """Number of tokens of a block."""
        return len(self.layout(height, width).template)

    def layout(self, height: int, width: int) -> Layout:
        if (height, width) not in self._layouts:
            self._layouts[height, width] = self._lay_out(height, width)
        return self._layouts[height, width]

    def check_size(self, height: int, width: int) -> None:
        """ValueError if the grammar cannot write a block of that size."""
        spec, size = self.grammar, f"a {height} x {width} block of {self.modality}"
        if spec.fixed_size is not None and (height, width) != spec.fixed_size:
            raise ValueError(f"{size}: the grammar fixes {spec.fixed_size[0]} x {spec.fixed_size[1]}")
        if not (1 <= height <= self.max_side and 1 <= width <= self.max_side):
            raise ValueError(f"{size}: sides are 1 .. {self.max_side}; set max_side")
        if height % spec.size_unit or width % spec.size_unit:
            raise ValueError(f"{size}: sides are multiples of {spec.size_unit}")
        if not {height, width} <= self._writable:
            raise ValueError(f"{size}: digit_ids has no token for that size")

    def _sides(self) -> tuple[int, ...]:
        """Lengths of H and W, in codes, that can be written; rising."""
        unit = self.grammar.size_unit
        if self.grammar.size == "tokens":
            return tuple(n * unit for n in sorted(self.number_of.values()) if 0 < n * unit <= self.max_side)
        return tuple(range(unit, self.max_side + 1, unit))

    def _id(self, special: str | None) -> int:
        return -1 if special is None else self.vocabulary.id(special)

    def _lay_out(self, height: int, width: int) -> Layout:
        spec, header = self.grammar, [self.begin]
        numbers = [str(side // spec.size_unit) for side in (height, width)]
        if spec.size == "digits":
            header += [self.digit_ids[symbol] for symbol in f"{spec.separator}".join(numbers)]
        elif spec.size == "tokens":
            header += [self.digit_ids[number] for number in numbers]
        header += [self.content] if spec.content else []
        rows = np.full((height, width + (spec.row_end is not None)), self._row_end, dtype=np.int64)
        rows[:, :width] = -1
        body = rows.ravel() if spec.row_end is None or spec.last_row_end else rows.ravel()[:-1]
        tail = ([self._frame_end] if spec.frame_end else []) + [self.end]
        template = np.concatenate([header, body, tail]).astype(np.int64)
        free, state = template < 0, self._parser.start
        while state.stage != BODY:
            free[state.at] = self._parser.allowed(state).forced is None
            state = self._parser.step(state, header[state.at])
        for array in (template, free):
            array.setflags(write=False)
        return Layout(template, np.flatnonzero(template < 0), free)
