"""How a block of codes is written as tokens, as data: one object writes training data, reads and constrains output.

Emu3 (https://arxiv.org/abs/2409.18869) `boi "H*W" img [W codes, eol] x H eof eoi` is the default of `BlockGrammar`;
the other published formats are other values of it, listed in `published.py`.

Dimensions: T frames, H rows and W columns of codes (a series of codes is one row of one frame); N tokens of the block.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .automaton import BODY, WRITTEN, BlockAutomaton, BlockState, GrammarError
from .vocabulary import Vocabulary

__all__ = ["BlockGrammar", "BoundGrammar", "GrammarError", "Layout"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class BlockGrammar:
    """A block written frame by frame and row by row. Marks are names of special tokens; None leaves a mark out.

    rank: 1 for a series of codes (W,), 2 for a picture (H, W), 3 for a video (T, H, W)
    begin: None where a block begins with its first code, which then must belong to one modality alone
    size: decimal digits, one token for each number, or not written
    separator: between the digits of H, of W, of T and of the rate; it is a digit symbol, not a special
    size_unit: codes that the number 1 stands for
    rate: frames a second, written as one more number of digits, the same for every block; None: not written
    content: after the size, before the first code
    row_end, last_row_end: after each row; whether the last of a frame has it as well
    frame_end, last_frame_end: after each frame; another mark after the last one, None: the same
    fixed_size: shape of every block, (H, W) of a picture. Its first number may be None where nothing writes the size:
        how many there are is then seen at the end
    """

    rank: int = 2
    begin: str | None = "boi"
    size: Literal["digits", "tokens"] | None = "digits"
    separator: str | None = "*"
    size_unit: int = 1
    rate: int | None = None
    content: str | None = "img"
    row_end: str | None = "eol"
    last_row_end: bool = True
    frame_end: str | None = "eof"
    last_frame_end: str | None = None
    end: str | None = "eoi"
    fixed_size: tuple[int | None, ...] | None = None

    def __post_init__(self) -> None:
        if self.fixed_size is not None:
            sides = tuple(None if side is None else int(side) for side in self.fixed_size)
            object.__setattr__(self, "fixed_size", sides)
        if fault := self._fault():
            raise ValueError(f"grammar: {fault}")

    def _fault(self) -> str | None:
        fixed = self.fixed_size
        if self.rank not in WRITTEN:
            return f"rank must be 1, 2 or 3, got {self.rank!r}"
        if self.size not in ("digits", "tokens", None):
            return f"size must be 'digits', 'tokens' or None, got {self.size!r}"
        if fixed is not None and len(fixed) != self.rank:
            return f"fixed_size {fixed} must have {self.rank} numbers, as rank says"
        if fixed is not None and None in (fixed if self.size else fixed[1:]):
            return f"fixed_size {fixed}: only the first number of a size that is not written may be None"
        if self.size is None and fixed is None:
            return "a size that is not written must be fixed; set fixed_size or size"
        if (self.size == "digits") != (self.separator is not None):
            return f"size={self.size!r} goes with{'' if self.size == 'digits' else 'out'} a separator"
        if self.size == "digits" and self.content is None:
            return "digits need a content mark that ends them; set content"
        if self.size is not None and self.begin is None:
            return "a size needs a begin mark before it; set begin"
        if self.begin is None and self.content is not None:
            return f"content={self.content!r} needs a begin mark before it; set begin"
        if self.rate is not None and (self.size != "digits" or self.rate < 1):
            return f"rate={self.rate} must be 1 or more, and needs size='digits'"
        if self.size_unit < 1:
            return f"size_unit must be 1 or more, got {self.size_unit}"
        return None

    def bind(
        self, vocabulary: Vocabulary, modality: str, digit_ids: Mapping[str, int] | None = None, max_side: int = 256
    ) -> "BoundGrammar":
        """The grammar with ids for names.

        digit_ids: for size "digits" the id of each symbol: "0" .. "9" and the separator. The numbers of size "tokens"
            are specials of the vocabulary, named "1", "2", ….
        max_side: the largest T, H or W that may be written or read, in codes.
        """
        return BoundGrammar(self, vocabulary, modality, digit_ids or {}, max_side)


class Layout(NamedTuple):
    """The token positions of a block of one shape."""

    template: NDArray[np.int64]  # [N] the ids, -1 where a code goes
    slots: NDArray[np.int64]  # [T * H * W] where the codes go, frame by frame in raster order
    free: NDArray[np.bool_]  # [N] False where the grammar leaves no choice


class Growth(NamedTuple):
    """How a block whose first number is not written goes on, or ends: with each further unit, `length` tokens later."""

    at: int  # position of the first choice, behind one unit
    length: int  # tokens of a unit
    on: int  # id that goes on, -1 for any code
    end: int  # id that ends
    template: NDArray[np.int64]  # of two units


class BoundGrammar:
    """A `BlockGrammar` bound to the ids of a vocabulary: `write`, `read`, `automaton`."""

    def __init__(
        self, grammar: BlockGrammar, vocabulary: Vocabulary, modality: str, digit_ids: Mapping[str, int], max_side: int
    ):
        self.grammar, self.vocabulary, self.modality, self.max_side = grammar, vocabulary, modality, max_side
        self.begin = self._id(grammar.begin)
        self._marks = {
            name: self._id(getattr(grammar, name))
            for name in ("content", "row_end", "frame_end", "last_frame_end", "end")
        }
        vocabulary.range(modality)
        self.digit_ids, self.content = self._symbols(digit_ids), self._marks["content"]
        self.separator = self.digit_ids.get(grammar.separator or "", -1)
        self.number_of = {id_: int(symbol) for symbol, id_ in self.digit_ids.items() if symbol != grammar.separator}
        self.sides = self._sides()
        if not self.sides:
            raise ValueError(f"no side of {modality} can be written with max_side={max_side} and this vocabulary")
        self._writable = frozenset(self.sides)
        self._layouts: dict[Shape, Layout] = {}
        if grammar.fixed_size is not None:
            self.check_size(*(side or 1 for side in grammar.fixed_size))
        self.growth = self._growth() if grammar.fixed_size is not None and None in grammar.fixed_size else None
        self._parser = BlockAutomaton(self)

    def write(self, codes: ArrayLike) -> NDArray[np.int64]:
        """Codes of the grammar's rank, [H, W] for a picture -> ids [N].

        ValueError for a size or a code the grammar cannot write.
        """
        codes = np.asarray(codes)
        if codes.ndim != self.grammar.rank:
            expected = ("(W,)", "(H, W)", "(T, H, W)")[self.grammar.rank - 1]
            raise ValueError(f"a block of {self.modality} has the shape {expected}, got {codes.shape}")
        self.check_size(*codes.shape)
        layout = self.layout(*codes.shape)
        ids = layout.template.copy()
        ids[layout.slots] = self.vocabulary.encode(self.modality, codes.ravel())
        return ids

    def read(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Ids [N] of one whole block -> codes. GrammarError at the first id that `write` would not have put."""
        ids = np.asarray(ids)
        codes, layout = self.match(ids)
        if len(ids) > len(layout.template):
            raise GrammarError(len(layout.template), f"{ids[len(layout.template)]} after the end of the block")
        return codes

    def read_size(self, ids: NDArray[np.integer]) -> Shape:
        """Shape of the block that `ids` start with. GrammarError within the header; codes are not looked at."""
        state = self._parser.start
        while state.stage != BODY:
            if state.at == len(ids):
                raise GrammarError(state.at, f"a block of {self.modality} ends within its size")
            state = self._parser.step(state, int(ids[state.at]))
        if self.growth is None:
            return state.sizes
        choices = ids[self.growth.at :: self.growth.length][: self.max_side]
        ends = choices != self.growth.on if self.growth.on >= 0 else choices == self.growth.end
        units = int(np.argmax(ends)) + 1 if ends.any() else min(len(choices) + 1, self.max_side)
        return (units, *state.sizes[1:])

    def match(self, ids: NDArray[np.integer]) -> tuple[NDArray[np.int64], Layout]:
        """Read the block that `ids` start with; more may follow. -> (codes, its layout)."""
        shape = self.read_size(ids)
        layout = self.layout(*shape)
        ids = ids[: len(layout.template)]
        template = layout.template[: len(ids)]
        right = np.where(template < 0, self.vocabulary.contains(self.modality, ids), ids == template)
        if not right.all():
            at = int(np.argmin(right))
            sizes = shape if self.growth is None else (0, *shape[1:])
            expected = self._parser.allowed(BlockState(BODY, sizes, at)).describe(self.vocabulary)
            raise GrammarError(at, f"{ids[at]} in {self._called(shape)}, expected {expected}")
        if len(ids) < len(layout.template):
            rest = f" of {len(layout.template)}" if self.growth is None else ""
            raise GrammarError(len(ids), f"{self._called(shape)} ends after {len(ids)}{rest} ids")
        return self.vocabulary.decode(self.modality, ids[layout.slots]).reshape(shape), layout

    def automaton(self, size: Shape | None = None, max_codes: int | None = None) -> BlockAutomaton:
        """What may come next in a block: of that size, or of any size with at most that many codes."""
        return BlockAutomaton(self, size, max_codes)

    def length(self, *shape: int) -> int:
        """Number of tokens of a block."""
        return len(self.layout(*shape).template)

    def layout(self, *shape: int) -> Layout:
        if shape not in self._layouts:
            self._layouts[shape] = self._lay_out(shape)
        return self._layouts[shape]

    def check_size(self, *shape: int) -> None:
        """ValueError if the grammar cannot write a block of that shape."""
        spec, called = self.grammar, self._called(shape)
        fixed = spec.fixed_size or (None,) * spec.rank
        if len(shape) != spec.rank:
            raise ValueError(f"{called}: the grammar writes {spec.rank} sides")
        if any(side not in (given, None) for side, given in zip(fixed, shape, strict=True)):
            raise ValueError(f"{called}: the grammar fixes {' x '.join(str(side or 'any') for side in fixed)}")
        if not all(1 <= side <= self.max_side for side in shape):
            raise ValueError(f"{called}: sides are 1 .. {self.max_side}; set max_side")
        if any(side % spec.size_unit for side in shape):
            raise ValueError(f"{called}: sides are multiples of {spec.size_unit}")
        if spec.size and not self._writable.issuperset(shape):
            raise ValueError(f"{called}: the vocabulary has no token for that size")

    def most_tokens(self, most_codes: int) -> int:
        """No block of at most so many codes has more tokens, whatever its size."""
        rank, least = self.grammar.rank, self.sides[0]
        longest = max(side for side in self.sides if side * least ** (rank - 1) <= most_codes)
        frames, rows = (longest if rank > axis else 1 for axis in (2, 1))
        marks = min(frames * rows, most_codes // least) * len(self._mark("row_end"))
        marks += frames * len(self._mark("frame_end")) + len(self._mark("last_frame_end")) + len(self._mark("end"))
        return len(self.header((longest,) * rank)) + min(longest**rank, most_codes) + marks

    def _called(self, shape: Shape) -> str:
        return f"a {' x '.join(map(str, shape))} block of {self.modality}"

    def _symbols(self, digit_ids: Mapping[str, int]) -> dict[str, int]:
        """The ids of the size's symbols, checked."""
        spec = self.grammar
        if spec.size != "digits":
            numbers = {name: id_ for name, id_ in self.vocabulary.specials.items() if name.isdecimal()}
            return numbers if spec.size else {}
        symbols = [*"0123456789", spec.separator or ""]
        if lacking := [symbol for symbol in symbols if symbol not in digit_ids]:
            raise ValueError(f"digit_ids lacks {lacking}: the grammar writes sizes with digits")
        ids = {symbol: int(digit_ids[symbol]) for symbol in symbols}
        if len(set(ids.values())) != len(ids):
            raise ValueError(f"digit_ids must be different ids, got {ids}")
        if taken := {self.begin, *self._marks.values()} & set(ids.values()):
            raise ValueError(f"digit_ids holds {sorted(taken)}, which are marks of the grammar")
        self.vocabulary.modality_of(list(ids.values()))  # inside the vocabulary
        return ids

    def _sides(self) -> Shape:
        """Lengths of a side, in codes, that can be written; rising."""
        unit = self.grammar.size_unit
        if self.grammar.size == "tokens":
            return tuple(n * unit for n in sorted(self.number_of.values()) if 0 < n * unit <= self.max_side)
        return tuple(range(unit, self.max_side + 1, unit))

    def _id(self, special: str | None) -> int:
        return -1 if special is None else self.vocabulary.id(special)

    def _mark(self, name: str) -> list[int]:
        return [] if self._marks[name] < 0 else [self._marks[name]]

    def header(self, shape: Shape) -> list[int]:
        """Ids before the first code."""
        spec = self.grammar
        ids = [] if self.begin < 0 else [self.begin]
        numbers = [str(shape[axis] // spec.size_unit) for axis in WRITTEN[spec.rank]]
        if spec.size == "digits":
            numbers += [] if spec.rate is None else [str(spec.rate)]
            ids += [self.digit_ids[symbol] for symbol in f"{spec.separator}".join(numbers)]
        elif spec.size == "tokens":
            ids += [self.digit_ids[number] for number in numbers]
        return ids + self._mark("content")

    def _template(self, shape: Shape) -> NDArray[np.int64]:
        frames, rows, columns = (1, 1, *shape)[-3:]
        row_end, frame_end = self._mark("row_end"), self._mark("frame_end")
        frame = ([-1] * columns + row_end) * rows
        if row_end and not self.grammar.last_row_end:
            frame = frame[:-1]
        body = (frame + frame_end) * frames
        if self.grammar.last_frame_end is not None:
            body = body[: len(body) - len(frame_end)] + self._mark("last_frame_end")
        return np.array(self.header(shape) + body + self._mark("end"), dtype=np.int64)

    def _growth(self) -> Growth:
        """Where one unit more makes a difference. ValueError if nothing tells the end of a block."""
        assert self.grammar.fixed_size is not None
        one, two = (self._template((units, *(side or 1 for side in self.grammar.fixed_size[1:]))) for units in (1, 2))
        differ = one != two[: len(one)]
        if not differ.any():
            raise ValueError(f"grammar of {self.modality}: no mark tells where a block ends; set end or last_frame_end")
        at = int(np.argmax(differ))
        return Growth(at, len(two) - len(one), int(two[at]), int(one[at]), two)

    def _lay_out(self, shape: Shape) -> Layout:
        template = self._template(shape)
        free = template < 0
        if self.growth is not None:
            free[self.growth.at :: self.growth.length] = True  # there it might have ended
            free[self.growth.at + self.growth.length * (self.max_side - 1) :: self.growth.length] = False
            free |= template < 0
        elif self.grammar.fixed_size is None:
            state, header = self._parser.start, self.header(shape)
            while state.stage != BODY:
                free[state.at] = self._parser.allowed(state).forced is None
                state = self._parser.step(state, header[state.at])
        for array in (template, free):
            array.setflags(write=False)
        return Layout(template, np.flatnonzero(template < 0), free)
