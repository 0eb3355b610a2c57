"""One document being written: its ids, where its grammar stands, and what is guessed of it ahead of its turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...tokenizers.automaton import Allowed, BlockState
from ...tokenizers.document_grammar import DocumentAutomaton, DocumentState
from ...tokenizers.vocabulary import TEXT
from .prompts import Piece, Prompt, Sample, Writer


class Choice(NamedTuple):
    """A place where the grammar leaves a choice: what is allowed behind the first `length` ids, guesses included.

    number: of the choice in its document; its noise depends on that and on the row's seed
    """

    allowed: Allowed
    length: int
    number: int


@dataclass(frozen=True, eq=False)
class Beginning:
    """What rows of one prompt share: ids of the prompt, what may follow them, and where its whole blocks lie.

    negative: the ids that stand before a block in the branch without the prompt
    given: ids of the longest branch; max_tokens: how many may follow, where the prompt says so, else 0
    """

    ids: tuple[int, ...]
    automaton: DocumentAutomaton
    state: DocumentState
    spans: tuple[tuple[int, int], ...]
    negative: tuple[int, ...]
    given: int
    max_tokens: int


@dataclass(eq=False)
class OpenBlock:
    """A block that is being written: number in its document, first id, and all ids before it."""

    number: int
    modality: str
    start: int
    before: tuple[int, ...]
    without: tuple[int, ...]  # what guidance puts in place of `before`
    pictures: tuple[int, ...]  # likewise: the blocks of `before` alone


class Row:
    """Whenever a row is not done, `choices` are what is asked for next: the first behind all ids written."""

    def __init__(self, number: int, prompt: Prompt, beginning: Beginning, writer: Writer) -> None:
        """number: of the prompt in the call."""
        self.number, self.seed, self.given = number, prompt.seed, len(beginning.ids)
        self.ids = list(beginning.ids)
        self.ahead: list[int] = []  # guessed ids, with those that are forced between them
        self.choices: list[Choice] = []
        self.spans = list(beginning.spans)  # of the whole blocks so far
        self.block: OpenBlock | None = None
        self.cut: int | None = None  # characters of the last text that stand before a stop word
        self._stop, self._writer, self._automaton, self._negative = (
            prompt.stop,
            writer,
            beginning.automaton,
            beginning.negative,
        )
        self._guessed: list[int] = []
        self._next = 0  # number of the next choice
        self.state = beginning.state
        if self.state.block is not None:
            self._begin_block(len(self.ids) - self.state.block.at)
        self._go_on()
        follow = len(self.ids) - self.given + self._rest_of_block
        self.tokens = beginning.given + max(beginning.max_tokens, follow)  # that room is made for at once

    @property
    def done(self) -> bool:
        return self._automaton.done(self.state)

    @property
    def layout(self) -> tuple[NDArray[np.int64], NDArray[np.int64], int] | None:
        """Of an open block whose size is known: template, slots of its codes, and how many codes are written."""
        state = self.state.block
        if state is None or self.state.modality is None or not state.is_sized:
            return None
        layout = self._writer.grammar.blocks[self.state.modality].layout(*state.sizes)
        return layout.template, layout.slots, int(np.searchsorted(layout.slots, state.at))

    @property
    def block_state(self) -> BlockState:
        """Of the open block."""
        assert self.state.block is not None
        return self.state.block

    @property
    def room(self) -> int:
        """How many codes can be guessed: those that a sized block lacks, but for the last; none elsewhere."""
        layout = self.layout
        return 0 if layout is None else len(layout[1]) - layout[2] - 1

    @property
    def _rest_of_block(self) -> int:
        """Ids that an open block lacks, once its size is known."""
        layout = self.layout
        return 0 if layout is None else len(layout[0]) - self.block_state.at

    @property
    def codes(self) -> list[int]:
        """Ids of the codes that the open block holds, in reading order; none while its size is open."""
        if (layout := self.layout) is None or self.block is None:
            return []
        return [self.ids[self.block.start + slot] for slot in layout[1][: layout[2]].tolist()]

    def place(self, choice: Choice) -> float:
        """Of a choice within its block: 0 the first code and 1 the last; 0 while the size is open."""
        if (layout := self.layout) is None:
            return 0.0
        _, slots, written = layout
        return (written + choice.number - self._next) / max(1, len(slots) - 1)

    def held_at(self, choice: Choice) -> list[int]:
        """All ids before a choice, guesses included."""
        return self.ids + self.ahead[: choice.length - len(self.ids)]

    def guess(self, codes: Sequence[int]) -> None:
        """Ids of codes guessed from the next choice on, at most `room`: each is a choice to be confirmed."""
        self._guessed, self.ahead = list(codes), []
        del self.choices[1:]
        if not codes:
            return
        assert self.layout is not None
        template, slots, written = self.layout
        at = self.block_state.at
        ahead = template[at : slots[written + len(codes)]].copy()
        ahead[slots[written : written + len(codes)] - at] = codes
        self.ahead = ahead.tolist()
        first = self.choices[0]
        self.choices += [
            Choice(first.allowed, first.length + int(slots[written + i]) - at, first.number + i)
            for i in range(1, len(codes) + 1)
        ]

    def take(self, ids: Sequence[int]) -> tuple[int, int]:
        """The ids chosen at `choices`. One is kept for each guess that was right, and the one behind them.

        -> how many are kept, and how many of the ids that were fed still hold.
        """
        wrong = (i for i, guess in enumerate(self._guessed) if guess != ids[i])
        kept = next(wrong, len(self._guessed)) + 1
        hold = self.choices[kept - 1].length
        for id_ in ids[:kept]:
            self._append(id_)
            self._next += 1
            self._go_on()
        return kept, hold

    def text(self, stop: int | None = None) -> str:
        """What is written between the last whole block, or begin of the document, and an open one; up to id `stop`."""
        start = self.spans[-1][1] if self.spans else 1
        if self.block is not None:
            stop = min(self.block.start, len(self.ids) if stop is None else stop)
        ids = [id_ for id_ in self.ids[start:stop] if self._writer.grammar.vocabulary.holds(TEXT, id_)]
        codes = self._writer.grammar.vocabulary.decode(TEXT, np.array(ids, dtype=np.int64))
        return self._writer.text_tokenizer.decode(codes.tolist())

    def sample(self) -> Sample:
        """The finished document."""
        ids = np.array(self.ids, dtype=np.int64)
        segments: tuple[Piece, ...] = self._writer.read(ids)
        if self.cut is not None:
            last = segments[-1]
            assert isinstance(last, str)
            segments = (*segments[:-1], last[: self.cut]) if self.cut else segments[:-1]
        return Sample(segments, ids, self.given)

    def _go_on(self) -> None:
        """Appends what is forced; then the next choice is known, or the document done."""
        self.ahead, self._guessed = [], []
        while not self.done:
            allowed = self._automaton.allowed(self.state)
            if allowed.forced is None:
                self.choices = [Choice(allowed, len(self.ids), self._next)]
                return
            self._append(allowed.forced)
        self.choices = []

    def _append(self, id_: int) -> None:
        was_in_block = self.state.block is not None
        self.state = self._automaton.step(self.state, id_)
        self.ids.append(id_)
        if self.block is not None and self.state.block is None:
            self.spans.append((self.block.start, len(self.ids)))
            self.block = None
        elif self.state.block is not None and not was_in_block:
            self._begin_block(len(self.ids) - 1)
        elif self._stop and self.block is None and not self.done:
            self._end_at_stop()

    def _begin_block(self, start: int) -> None:
        assert self.state.modality is not None
        bos, before = self.ids[0], tuple(self.ids[:start])
        pictures = (bos, *(id_ for begin, end in self.spans for id_ in self.ids[begin:end]))
        self.block = OpenBlock(len(self.spans), self.state.modality, start, before, self._negative, pictures)

    def _end_at_stop(self) -> None:
        """Ends the document if its last text holds a stop word, where it may end."""
        start = self.spans[-1][1] if self.spans else 1
        text, given = self.text(), len(self.text(self.given)) if start < self.given else 0
        found = [place for word in self._stop if (place := text.find(word, given)) >= 0]
        eos = self._writer.grammar.eos
        if found and eos in self._automaton.allowed(self.state).ids:
            self.cut = min(found)
            self._append(eos)
