"""Which ids may come next inside a block: the automaton that parses headers, constrains sampling and marks forced ids.

States are small immutable tuples, so a batch keeps one for each row and a copy costs nothing. `allowed` is O(1).
"""

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from .grammar import BoundGrammar

BEGIN, HEIGHT, WIDTH, BODY = range(4)  # stages of a block: nothing written, writing the height, the width, the rest


class GrammarError(ValueError):
    """A sequence of ids that no `write` makes: `position` of the first wrong id, and the `reason`."""

    def __init__(self, position: int, reason: str):
        super().__init__(position, reason)
        self.position, self.reason = int(position), reason

    def __str__(self) -> str:
        return f"token {self.position}: {self.reason}"


class Allowed(NamedTuple):
    """What may come next: listed ids, a whole range of the vocabulary, or both. Hashable: a key for cached masks."""

    ids: tuple[int, ...] = ()
    modality: str | None = None

    @property
    def forced(self) -> int | None:
        """The only id possible; None where there is a choice (or nothing may follow)."""
        return self.ids[0] if len(self.ids) == 1 and self.modality is None else None

    def all_ids(self, vocabulary: Vocabulary) -> NDArray[np.int64]:
        """Every id allowed, rising: the rows of the head that a sampler has to compute."""
        listed = np.array(self.ids, dtype=np.int64)
        return np.union1d(listed, vocabulary.ids(self.modality)) if self.modality else np.sort(listed)

    def permits(self, id_: int, vocabulary: Vocabulary) -> bool:
        return id_ in self.ids or (self.modality is not None and vocabulary.holds(self.modality, id_))

    def describe(self, vocabulary: Vocabulary) -> str:
        names = {id_: name for name, id_ in vocabulary.specials.items()}
        parts = [f"{names[id_]} ({id_})" if id_ in names else str(id_) for id_ in self.ids]
        if self.modality:
            parts.append(f"a {self.modality} id")
        return " or ".join(parts) or "nothing"


class BlockState(NamedTuple):
    """Where a block stands. While a size is being written, height and width hold what is known of them so far."""

    stage: int
    height: int
    width: int
    at: int  # ids written


class BlockAutomaton:
    """`start`, `allowed(state)`, `step(state, id)`, `done(state)` of one block of a bound grammar.

    With `size` the block has that size and its header is forced; without, any size that `max_side` of the grammar,
    `max_codes` and the numbers the grammar can write permit.
    """

    def __init__(self, grammar: "BoundGrammar", size: tuple[int, int] | None = None, max_codes: int | None = None):
        size = size or grammar.grammar.fixed_size
        self._grammar = grammar
        self._max_codes = grammar.max_side**2 if max_codes is None else max_codes
        if size is not None:
            grammar.check_size(*size)
        codes = size[0] * size[1] if size else grammar.sides[0] ** 2
        if codes > self._max_codes:
            raise ValueError(f"max_codes={max_codes} is less than the {codes} codes of the smallest block possible")
        self.start = BlockState(BEGIN, 0, 0, 0) if size is None else BlockState(BODY, *size, 0)
        self._begin, self._code, self._nothing = Allowed((grammar.begin,)), Allowed((), grammar.modality), Allowed()
        self._numbers: dict[tuple[int, int, int], Allowed] = {}
        self._steps: dict[tuple[BlockState, int], BlockState] = {}  # within headers, which repeat

    @cached_property
    def max_tokens(self) -> int:
        """No block that the automaton permits is longer; exact where the size is given."""
        if self.start.stage == BODY:
            return self._grammar.length(self.start.height, self.start.width)
        side = max(side for side in self._grammar.sides if side * self._grammar.sides[0] <= self._max_codes)
        marks = self._grammar.length(side, side) - side * side  # in the header and the rows: they grow with the sides
        return min(side * side, self._max_codes) + marks

    def rest(self, state: BlockState) -> int:
        """Number of ids that complete the block, or a bound of it while its size is open."""
        length = self._grammar.length(state.height, state.width) if state.stage == BODY else self.max_tokens
        return length - state.at

    def done(self, state: BlockState) -> bool:
        return state.stage == BODY and state.at == self._grammar.length(state.height, state.width)

    def allowed(self, state: BlockState) -> Allowed:
        if state.stage == BODY:
            template = self._grammar.layout(state.height, state.width).template
            if state.at == len(template):
                return self._nothing
            id_ = int(template[state.at])
            return self._code if id_ < 0 else Allowed((id_,))
        if state.stage == BEGIN:
            return self._begin
        key = state[:3]
        if key not in self._numbers:
            self._numbers[key] = self._number(state)
        return self._numbers[key]

    def step(self, state: BlockState, id_: int) -> BlockState:
        """The state after `id_`. GrammarError, with the position within the block, if it may not follow."""
        if (state, id_) in self._steps:
            return self._steps[state, id_]
        allowed = self.allowed(state)
        if not allowed.permits(id_, self._grammar.vocabulary):
            expected = allowed.describe(self._grammar.vocabulary)
            raise GrammarError(state.at, f"{id_} in a block of {self._grammar.modality}, expected {expected}")
        following = self.follow(state, id_)
        if state.stage != BODY:
            self._steps[state, id_] = following
        return following

    def advance(self, ids: Iterable[int]) -> BlockState:
        """The state after several ids from the start."""
        state = self.start
        for id_ in ids:
            state = self.step(state, int(id_))
        return state

    def follow(self, state: BlockState, id_: int) -> BlockState:
        """`step` with an id that is known to be allowed."""
        stage, height, width, at = state
        if stage == BODY:
            return BlockState(BODY, height, width, at + 1)
        if stage == BEGIN:
            return BlockState(HEIGHT, 0, 0, at + 1)
        symbol, digits = self._grammar.number_of.get(id_), self._grammar.grammar.size == "digits"
        if symbol is None:  # the separator or the content mark: the number is complete
            return BlockState(stage + 1, height, width, at + 1)
        unit = self._grammar.grammar.size_unit
        value = (height if stage == HEIGHT else width) * (10 if digits else 0) + symbol * unit
        height, width = (value, width) if stage == HEIGHT else (height, value)
        return BlockState(stage if digits else stage + 1, height, width, at + 1)

    def _number(self, state: BlockState) -> Allowed:
        """What may follow while the height or the width is written."""
        grammar, spec = self._grammar, self._grammar.grammar
        value, other = (state.height, grammar.sides[0]) if state.stage == HEIGHT else (state.width, state.height)
        limit = min(grammar.sides[-1], self._max_codes // other)
        if spec.size == "tokens":
            numbers = [side // spec.size_unit for side in grammar.sides if side <= limit]
            return Allowed(tuple(grammar.digit_ids[str(number)] for number in numbers))
        ids = [
            grammar.digit_ids[str(digit)]
            for digit in range(10)
            if 0 < 10 * value + digit * spec.size_unit <= limit  # no leading zero
        ]
        if value:
            ids.append(grammar.separator if state.stage == HEIGHT else grammar.content)
        return Allowed(tuple(ids))
