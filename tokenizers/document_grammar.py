"""How whole documents are written as tokens: `bos`, text and blocks in any order, `eos`; and what may come next in one.

Words to picture: `bos caption boi 8*8 img [W codes eol] x H eof eoi eos`.
Picture to words: `bos boi .. eoi caption eos`. Page: several of both. Text: `bos text eos`.

Dimensions: T tokens of a document. A segment is `(modality, codes)`: text codes [n], or the codes of a block, [H, W]
of a picture.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .automaton import Allowed, BlockAutomaton, BlockState, GrammarError
from .grammar import BoundGrammar
from .vocabulary import TEXT, Vocabulary

Segment = tuple[str, NDArray[np.int64]]


class DocumentGrammar:
    """Writes, reads and constrains documents. `blocks` has one bound grammar for each modality that is not text."""

    def __init__(self, vocabulary: Vocabulary, blocks: Mapping[str, BoundGrammar]):
        self.vocabulary, self.blocks = vocabulary, dict(blocks)
        self.bos, self.eos = vocabulary.id("bos"), vocabulary.id("eos")
        self.block_of = {block.begin: name for name, block in self.blocks.items() if block.begin >= 0}
        self.bare = tuple(name for name, block in self.blocks.items() if block.begin < 0)  # begin with a code
        if TEXT in self.blocks or len(self.block_of) + len(self.bare) != len(self.blocks):
            raise ValueError("each modality but text has a block grammar, each with another begin mark")

    def write(self, segments: Iterable[tuple[str, ArrayLike]], close: bool = True) -> NDArray[np.int64]:
        """Segments -> ids [T]. Without `close` the final eos is left out: a prompt to be continued."""
        pieces = [np.array([self.bos])]
        for modality, codes in segments:
            pieces.append(
                self.vocabulary.encode(TEXT, codes) if modality == TEXT else self._block(modality).write(codes)
            )
        return np.concatenate([*pieces, np.array([self.eos] if close else [], dtype=np.int64)])

    def read(self, ids: ArrayLike) -> list[Segment]:
        """Ids [T] of one whole document -> segments. Neighbouring runs of text come back as one, empty ones not at all.

        GrammarError, with the position in the document, at the first id that `write` would not have put there.
        """
        return list(self._segments(np.asarray(ids)))

    def begun_by(self, id_: int) -> str | None:
        """The modality whose block an id begins; None for text, eos and all else."""
        return self.block_of.get(id_) or next((m for m in self.bare if self.vocabulary.holds(m, id_)), None)

    def automaton(
        self,
        *,
        sizes: Mapping[str, tuple[int, ...]] | None = None,
        modalities: Collection[str] | None = None,
        text: bool = True,
        min_blocks: int = 0,
        max_blocks: int | None = None,
        end_with_block: bool = False,
        max_codes: int | None = None,
        min_text: int = 0,
        max_tokens: int | None = None,
    ) -> "DocumentAutomaton":
        """What may come next. The limits hold for what follows the prompt given to `DocumentAutomaton.after`.

        sizes: shape of the blocks of a modality, (H, W) of pictures; otherwise the size is written freely with at most
            `max_codes` codes.
        modalities: those whose blocks may be begun; None: all. `max_codes` binds these alone.
        text: whether text may be written. min_blocks, max_blocks: how many blocks are begun.
        end_with_block: the document ends with its `max_blocks`-th block.
        min_text: how many text ids are written first, before a block begins or the document ends.
        max_tokens: how many ids may follow, eos included; there is always room left to close block and document.

        One picture of 8 x 8: `sizes={"image": (8, 8)}, modalities=["image"], text=False, min_blocks=1, max_blocks=1`.
        Words: `max_blocks=0`, with `min_text=1` at least some. Words and then their picture: `modalities=["image"],
        min_text=1, min_blocks=1, max_blocks=1, end_with_block=True`. Page: `max_blocks=4`. To finish a block that the
        prompt has begun: `text=False, max_blocks=0`.
        """
        if min_blocks > (np.inf if max_blocks is None else max_blocks) or min_blocks < 0:
            raise ValueError(f"min_blocks={min_blocks} must be between 0 and max_blocks={max_blocks}")
        if min_text < 0 or (max_tokens is not None and min_text >= max_tokens):
            raise ValueError(f"min_text={min_text} must be 0 or more, and below max_tokens={max_tokens}")
        if min_text and not text:
            raise ValueError(f"min_text={min_text} asks for text, and text=False forbids it: leave one of them out")
        if end_with_block and not max_blocks:
            raise ValueError(f"end_with_block needs the number of blocks; max_blocks is {max_blocks}")
        if isinstance(modalities, str):
            raise ValueError(f"modalities {modalities!r} is one name: give a list of them, as in [{modalities!r}]")
        for modality in (*(sizes or ()), *(modalities or ())):
            self._block(modality)
        begun = tuple(modality for modality in self.blocks if modalities is None or modality in modalities)
        return DocumentAutomaton(
            self,
            {
                modality: block.automaton((sizes or {}).get(modality), max_codes if modality in begun else None)
                for modality, block in self.blocks.items()
            },
            Limits(begun, text, min_blocks, max_blocks, end_with_block, min_text, max_tokens),
        )

    def _block(self, modality: str) -> BoundGrammar:
        try:
            return self.blocks[modality]
        except KeyError:
            raise ValueError(
                f"no block grammar for {modality!r}; there is {', '.join(self.blocks) or 'none'}"
            ) from None

    def _segments(self, ids: NDArray[np.integer]) -> Iterator[Segment]:
        """Runs of text up to the next id that is not text, blocks by their grammar."""
        if not len(ids) or ids[0] != self.bos:
            raise GrammarError(0, f"a document begins with bos ({self.bos})")
        breaks = np.flatnonzero(~self.vocabulary.contains(TEXT, ids))
        at = 1
        while at < len(ids):
            following = np.searchsorted(breaks, at)
            stop = int(breaks[following]) if following < len(breaks) else len(ids)
            if stop > at:
                yield TEXT, self.vocabulary.decode(TEXT, ids[at:stop])
                at = stop
            elif (id_ := int(ids[at])) == self.eos:
                if at + 1 < len(ids):
                    raise GrammarError(at + 1, f"{ids[at + 1]} after eos ({self.eos})")
                return
            elif modality := self.begun_by(id_):
                try:
                    codes, layout = self.blocks[modality].match(ids[at:])
                except GrammarError as fault:
                    raise GrammarError(at + fault.position, fault.reason) from None
                yield modality, codes
                at += len(layout.template)
            else:
                raise GrammarError(at, f"{id_} is neither text nor the begin of a block nor eos ({self.eos})")
        raise GrammarError(len(ids), f"the document ends without eos ({self.eos})")


class Limits(NamedTuple):
    """What `DocumentGrammar.automaton` was asked for."""

    modalities: tuple[str, ...]
    text: bool
    min_blocks: int
    max_blocks: int | None
    end_with_block: bool
    min_text: int
    max_tokens: int | None


class DocumentState(NamedTuple):
    """Where a document stands: before bos, in text, in a block, or ended."""

    began: bool = False
    ended: bool = False
    modality: str | None = None  # of the open block
    block: BlockState | None = None  # of the open block
    blocks: int = 0  # begun, since the prompt
    written: int = 0  # ids, since the prompt
    text: int = 0  # of them text, that in blocks apart


class DocumentAutomaton:
    """`start` (or `after(prompt)`), `allowed(state)`, `step(state, id)`, `done(state)` of a document."""

    def __init__(self, grammar: DocumentGrammar, blocks: dict[str, BlockAutomaton], limits: Limits):
        self.grammar, self.vocabulary, self._blocks, self._limits = grammar, grammar.vocabulary, blocks, limits
        self._cheapest = min((blocks[modality].max_tokens for modality in limits.modalities), default=0)
        if limits.min_blocks and not limits.modalities:
            lacking = "modalities allows none" if blocks else "the documents have no block grammar"
            raise ValueError(f"min_blocks={limits.min_blocks}, but {lacking}")

    @cached_property
    def start(self) -> DocumentState:
        """Before bos: the state behind an empty prompt."""
        return self.after([])

    def after(self, prompt: ArrayLike) -> DocumentState:
        """The state behind the ids of a prompt, which may end within a block. The limits bind what follows it.

        GrammarError if no document begins so, ValueError if `max_tokens` cannot hold what has to follow.
        """
        prompt = np.asarray(prompt)
        state = self.grammar.automaton().advance(DocumentState(), prompt)._replace(blocks=0, written=0, text=0)
        if state.ended:
            raise GrammarError(len(prompt) - 1, "the prompt ends in eos, nothing can follow: write it with close=False")
        if state.modality is not None and state.block is not None and not state.block.is_sized:
            begun = prompt[len(prompt) - state.block.at :]  # its size is still open: the limits decide it
            state = state._replace(block=self._blocks[state.modality].advance(begun))
        self._check_budget(state)
        return state

    def done(self, state: DocumentState) -> bool:
        return state.ended

    def allowed(self, state: DocumentState) -> Allowed:
        if state.modality is not None and state.block is not None:
            return self._blocks[state.modality].allowed(state.block)
        if not state.began or state.ended:
            return Allowed((self.grammar.bos,) if not state.began else ())
        limits, missing = self._limits, self._limits.min_blocks - state.blocks
        if state.text < limits.min_text:
            return Allowed((), TEXT)
        left = np.inf if limits.max_tokens is None else limits.max_tokens - state.written
        full = limits.max_blocks is not None and state.blocks >= limits.max_blocks
        spare = left - 1 - max(missing, 0) * self._cheapest
        room = 0 if full else left - 1 - max(missing - 1, 0) * self._cheapest
        fitting = [modality for modality in limits.modalities if self._blocks[modality].max_tokens <= room]
        ids = tuple(self.grammar.blocks[modality].begin for modality in fitting if modality not in self.grammar.bare)
        bare = tuple(modality for modality in fitting if modality in self.grammar.bare)
        text = limits.text and spare >= 1 and not (full and limits.end_with_block)
        if missing <= 0:
            ids = (self.grammar.eos, *ids)
        return Allowed(ids, TEXT if text else None, bare)

    def step(self, state: DocumentState, id_: int) -> DocumentState:
        """The state after `id_`. GrammarError, at the number of ids written since the prompt, if it may not follow."""
        allowed = self.allowed(state)
        if not allowed.permits(id_, self.vocabulary):
            reason = f"{id_} in a document, expected {allowed.describe(self.vocabulary)}"
            raise GrammarError(state.written, reason)
        began, _, modality, block, blocks, written, text = state
        if modality is not None and block is not None:
            block = self._blocks[modality].follow(block, id_)
            if self._blocks[modality].done(block):
                modality = block = None
        elif not began:
            began = True
        elif (begun := self.grammar.begun_by(id_)) is not None:
            modality, block, blocks = begun, self._blocks[begun].advance([id_]), blocks + 1
            if self._blocks[modality].done(block):
                modality = block = None
        elif id_ != self.grammar.eos:
            text += 1
        return DocumentState(began, id_ == self.grammar.eos, modality, block, blocks, written + 1, text)

    def advance(self, state: DocumentState, ids: ArrayLike) -> DocumentState:
        """The state after several ids."""
        for id_ in np.asarray(ids).tolist():
            state = self.step(state, id_)
        return state

    def _check_budget(self, state: DocumentState) -> None:
        """ValueError if `max_tokens` cannot hold bos, the rest of an open block, text and blocks to come, and eos."""
        needed = (not state.began) + self._limits.min_text + self._limits.min_blocks * self._cheapest + 1
        if state.modality is not None and state.block is not None:
            needed += self._blocks[state.modality].rest(state.block)
        if self._limits.max_tokens is not None and needed > self._limits.max_tokens:
            raise ValueError(f"max_tokens={self._limits.max_tokens} cannot hold the {needed} ids that have to follow")
