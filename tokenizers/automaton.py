"""Which ids may come next inside a block: the automaton that parses headers, constrains sampling and marks forced ids.

States are small immutable tuples, so a batch keeps one for each row and a copy costs nothing. `allowed` is O(1).
"""

from collections.abc import Iterable
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from .grammar import BoundGrammar, Growth

WRITTEN = {1: (0,), 2: (0, 1), 3: (1, 2, 0)}  # the axes of a shape in the order in which sizes name them: H, W, then T
BEGIN, BODY = 0, 9  # stages of a block: nothing written, all but the size; between them, writing its first number, …


class GrammarError(ValueError):
    """A sequence of ids that no `write` makes: `position` of the first wrong id, and the `reason`."""

    def __init__(self, position: int, reason: str):
        super().__init__(position, reason)
        self.position, self.reason = int(position), reason

    def __str__(self) -> str:
        return f"token {self.position}: {self.reason}"


class Allowed(NamedTuple):
    """What may come next: listed ids, whole ranges of the vocabulary, or both. Hashable: a key for cached masks."""

    ids: tuple[int, ...] = ()
    modality: str | None = None
    begun: tuple[str, ...] = ()  # further modalities: those whose blocks begin with a bare code

    @property
    def forced(self) -> int | None:
        """The only id possible; None where there is a choice (or nothing may follow)."""
        return self.ids[0] if len(self.ids) == 1 and self.modality is None and not self.begun else None

    @property
    def modalities(self) -> tuple[str, ...]:
        """All modalities whose codes are allowed."""
        return (*((self.modality,) if self.modality else ()), *self.begun)

    def all_ids(self, vocabulary: Vocabulary) -> NDArray[np.int64]:
        """Every id allowed, rising: the rows of the head that a sampler has to compute."""
        ranges = [vocabulary.ids(modality) for modality in self.modalities]
        return np.sort(np.concatenate([np.array(self.ids, dtype=np.int64), *ranges]))

    def permits(self, id_: int, vocabulary: Vocabulary) -> bool:
        return id_ in self.ids or any(vocabulary.holds(modality, id_) for modality in self.modalities)

    def describe(self, vocabulary: Vocabulary) -> str:
        names = {id_: name for name, id_ in vocabulary.specials.items()}
        parts = [f"{names[id_]} ({id_})" if id_ in names else str(id_) for id_ in self.ids]
        parts += [f"{'an' if modality[0] in 'aeiou' else 'a'} {modality} id" for modality in self.modalities]
        return " or ".join(parts) or "nothing"


class BlockState(NamedTuple):
    """Where a block stands. `sizes` are its shape, or what is known of it: 0 where it is still open.

    While numbers are being written, `sizes` are those written so far, in the order in which they are written.
    """

    stage: int
    sizes: tuple[int, ...]
    at: int  # ids written

    @property
    def is_sized(self) -> bool:
        """Whether all that follows is decided but for the codes."""
        return self.stage == BODY and 0 not in self.sizes


class BlockAutomaton:
    """`start`, `allowed(state)`, `step(state, id)`, `done(state)` of one block of a bound grammar.

    With `size` the block has that size and its header is forced; without, any size that `max_side` of the grammar,
    `max_codes` and the numbers the grammar can write permit.
    """

    def __init__(self, grammar: "BoundGrammar", size: tuple[int, ...] | None = None, max_codes: int | None = None):
        self._grammar, spec = grammar, grammar.grammar
        fixed = tuple(side or 0 for side in spec.fixed_size or ())
        if size is not None:
            grammar.check_size(*size)
        sizes = tuple(int(side) for side in size or fixed)
        least = tuple(side or grammar.sides[0] for side in sizes or (0,) * spec.rank)
        self._max_codes = grammar.max_side**spec.rank if max_codes is None else max_codes
        if prod(least) > self._max_codes:
            raise ValueError(
                f"max_codes={max_codes} is less than the {prod(least)} codes of the smallest block possible"
            )
        self.start = BlockState(BODY, sizes, 0) if sizes else BlockState(BEGIN, (), 0)
        self._max_units = 0 if 0 not in sizes else min(grammar.max_side, self._max_codes // prod(least[1:]))
        self._begin, self._code, self._nothing = Allowed((grammar.begin,)), Allowed((), grammar.modality), Allowed()
        self._numbers: dict[tuple[int, tuple[int, ...]], Allowed] = {}
        self._steps: dict[tuple[BlockState, int], BlockState] = {}  # within headers, which repeat

    @cached_property
    def max_tokens(self) -> int:
        """No block that the automaton permits is longer; exact where the size is given."""
        if self.start.is_sized:
            return self._grammar.length(*self.start.sizes)
        if self._max_units:
            return self._grammar.length(self._max_units, *self.start.sizes[1:])
        return self._grammar.most_tokens(self._max_codes)

    def rest(self, state: BlockState) -> int:
        """Number of ids that complete the block, or a bound of it while its size is open."""
        return (self._grammar.length(*state.sizes) if state.is_sized else self.max_tokens) - state.at

    def done(self, state: BlockState) -> bool:
        return state.is_sized and state.at == self._grammar.length(*state.sizes)

    def allowed(self, state: BlockState) -> Allowed:
        if state.is_sized:
            template = self._grammar.layout(*state.sizes).template
            return self._nothing if state.at == len(template) else self._one(int(template[state.at]))
        if state.stage == BODY:
            return self._within_growth(state)
        if state.stage == BEGIN:
            return self._begin
        key = state[:2]
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
        stage, sizes, at = state
        if state.is_sized:
            return BlockState(BODY, sizes, at + 1)
        if stage == BODY:
            units, beyond = self._unit(at)
            ended = beyond == 0 and id_ == self._growth.end
            return BlockState(BODY, (units, *sizes[1:]) if ended else sizes, at + 1)
        if stage == BEGIN:
            return self._after_number(BlockState(BEGIN, (), at + 1), 0)
        symbol, spec = self._grammar.number_of.get(id_), self._grammar.grammar
        if symbol is None:  # the separator or the content mark: the number is complete
            return self._after_number(BlockState(stage, sizes, at + 1), stage)
        *before, value = sizes
        if spec.size == "tokens":
            return self._after_number(BlockState(stage, (*before, symbol * spec.size_unit), at + 1), stage)
        return BlockState(stage, (*before, 10 * value + symbol * spec.size_unit), at + 1)

    def _after_number(self, state: BlockState, complete: int) -> BlockState:
        """The next number begins, or with `rank` of them complete all the rest of the block."""
        axes = WRITTEN[self._grammar.grammar.rank]
        if complete < len(axes):
            return BlockState(complete + 1, (*state.sizes, 0), state.at)
        return BlockState(BODY, tuple(state.sizes[axes.index(axis)] for axis in range(len(axes))), state.at)

    def _number(self, state: BlockState) -> Allowed:
        """What may follow while a number of the size is written."""
        grammar, spec = self._grammar, self._grammar.grammar
        *before, value = state.sizes
        others = prod(before) * grammar.sides[0] ** (spec.rank - state.stage)
        limit = min(grammar.sides[-1], self._max_codes // others)
        if spec.size == "tokens":
            numbers = [side // spec.size_unit for side in grammar.sides if side <= limit]
            return Allowed(tuple(grammar.digit_ids[str(number)] for number in numbers))
        ids = [
            grammar.digit_ids[str(digit)]
            for digit in range(10)
            if 0 < 10 * value + digit * spec.size_unit <= limit  # no leading zero
        ]
        if value:
            more = state.stage < spec.rank or spec.rate is not None
            ids.append(grammar.separator if more else grammar.content)
        return Allowed(tuple(ids))

    @property
    def _growth(self) -> "Growth":
        assert self._grammar.growth is not None
        return self._grammar.growth

    def _unit(self, at: int) -> tuple[int, int]:
        """(units that the block has at least, tokens until it may go on or end)."""
        further = max(0, -((self._growth.at - at) // self._growth.length))
        return 1 + further, self._growth.at + further * self._growth.length - at

    def _within_growth(self, state: BlockState) -> Allowed:
        """What may follow where more units may come: at the end of each the choice of one more, or none."""
        growth = self._growth
        units, beyond = self._unit(state.at)
        if beyond:  # within a unit, which are all alike
            return self._one(int(growth.template[growth.at + (growth.length if units > 1 else 0) - beyond]))
        if units == self._max_units:
            return Allowed((growth.end,))
        return Allowed((growth.end,), self._grammar.modality) if growth.on < 0 else Allowed((growth.on, growth.end))

    def _one(self, id_: int) -> Allowed:
        return self._code if id_ < 0 else Allowed((id_,))
