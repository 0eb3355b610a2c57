"""The document grammar as a `prefix_allowed_tokens_fn`, with which `generate` of transformers writes nothing else.

Dimensions: T tokens of a row, pads and prompt included; N ids allowed.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from ...tokenizers.automaton import Allowed, GrammarError
from ...tokenizers.document_grammar import DocumentAutomaton, DocumentState


class PrefixConstraint:
    """Given the ids of a row so far, the ids that may come next; after eos that is `pad`.

    The answer depends on the ids alone, not on earlier calls: rows may be reordered, dropped and gone back in, as beams
    and assisted generation do. The states of the last two lengths are kept, so that a step costs one step.
    """

    def __init__(self, automaton: DocumentAutomaton, pad: int, prompts: Mapping[tuple[int, ...], Sequence[int]]):
        """prompts: the rows that `generate` gets, all of one length, with pads -> without them.

        ValueError, naming the row, for one that begins no document.
        """
        self._automaton, self._pad = automaton, pad
        self._begun: dict[tuple[int, ...], DocumentState] = {}
        for number, (row, prompt) in enumerate(prompts.items()):
            try:
                self._begun[row] = automaton.after(prompt)
            except ValueError as fault:
                raise ValueError(f"prompt {number}: {fault}") from None
        [self._given] = {len(row) for row in prompts}
        self._length = self._given
        self._before: dict[tuple[int, ...], DocumentState | None] = {}
        self._now: dict[tuple[int, ...], DocumentState | None] = {**self._begun}
        self._ids: dict[Allowed, Tensor] = {}

    def __call__(self, batch_id: int, ids: Int[Tensor, " t"]) -> Int[Tensor, " n"]:
        """`batch_id`, which transformers gives too, says nothing that the ids do not."""
        state = self._state(tuple(ids.tolist()))
        allowed = Allowed((self._pad,)) if state is None else self._automaton.allowed(state)
        if allowed not in self._ids:
            self._ids[allowed] = torch.from_numpy(allowed.all_ids(self._automaton.vocabulary))
        return self._ids[allowed]

    def _state(self, row: tuple[int, ...]) -> DocumentState | None:
        """The state behind a row; None where nothing can follow."""
        if len(row) != self._length:
            self._before, self._now, self._length = self._now, {}, len(row)
        if row not in self._now:
            if row[:-1] in self._before:
                self._now[row] = self._step(self._before[row[:-1]], row[-1])
            elif row[: self._given] not in self._begun:
                raise ValueError("generate was given other input_ids than the constraint: make one for these inputs")
            else:
                state: DocumentState | None = self._begun[row[: self._given]]
                for id_ in row[self._given :]:
                    state = self._step(state, id_)
                self._now[row] = state
        return self._now[row]

    def _step(self, state: DocumentState | None, id_: int) -> DocumentState | None:
        """None behind the end. Also where `id_` was not allowed: beams of probability zero go on with any id."""
        if state is None:
            return None
        try:
            state = self._automaton.step(state, id_)
        except GrammarError:
            return None
        return None if self._automaton.done(state) else state
