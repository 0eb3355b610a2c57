"""Finishes documents: any prompt of text, pictures and half a picture, always within the grammar.

Each row of a batch has its own automaton, random numbers and length. Ids that the grammar forces are never drawn: they
are fed together with the id before them, so a block of 8 x 8 codes costs 64 forwards, not 90. Guidance runs a second,
unconditional lane while a block is written: `bos` and that block, which is what dropping captions trained.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from ...tokenizers.automaton import Allowed
from ...tokenizers.document_grammar import DocumentAutomaton, DocumentGrammar, DocumentState
from ...tokenizers.published_text import PublishedText
from ...tokenizers.text import TextTokenizer
from ...tokenizers.vocabulary import TEXT
from .choice import Sampling, choose, gumbel
from .lanes import Head, Lane, Lanes, evaluating
from .prompts import Prompt, Sample, Writer


class Sampler:
    """Prompts -> finished documents.

    sampling: settings of each modality; those not named are drawn at temperature 1 without guidance
    """

    def __init__(
        self,
        model: PreTrainedModel,
        grammar: DocumentGrammar,
        text_tokenizer: TextTokenizer | PublishedText,
        sampling: Mapping[str, Sampling] | None = None,
    ):
        if model.config.vocab_size != grammar.vocabulary.size:
            raise ValueError(
                f"the model has {model.config.vocab_size} ids, the vocabulary {grammar.vocabulary.size}: "
                "they do not belong together"
            )
        self.model, self.grammar, self.vocabulary = model, grammar, grammar.vocabulary
        self.writer = Writer(grammar, text_tokenizer)
        self.sampling = self._with({modality: Sampling() for modality in (TEXT, *grammar.blocks)}, sampling)

    @property
    def context(self) -> int:
        """Longest document, in tokens."""
        return self.model.config.max_position_embeddings

    def sample(
        self, prompts: Sequence[Prompt], sampling: Mapping[str, Sampling] | None = None, batch_size: int = 64
    ) -> list[Sample]:
        """Finish each prompt, `batch_size` of them at a time.

        sampling: replaces the sampler's own settings of the modalities it names. ValueError, in one line, for a
        prompt that cannot be written, or that leaves no room in the context for what has to follow.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} must be 1 or more")
        settings = self._with(self.sampling, sampling)
        rows = [self._row(prompt, settings) for prompt in prompts]
        with evaluating(self.model):
            head = Head(self.model, self.vocabulary)
            for start in range(0, len(rows), batch_size):
                self._finish(rows[start : start + batch_size], head, settings)
        written = [np.array(row.ids, dtype=np.int64) for row in rows]
        return [Sample(self.writer.read(ids), ids, row.given) for row, ids in zip(rows, written, strict=True)]

    def _row(self, prompt: Prompt, settings: Mapping[str, Sampling]) -> "_Row":
        ids = self.writer.write(prompt.segments)
        asked, room = prompt.limits.get("max_tokens"), self.context - len(ids)
        limits: dict[str, Any] = {**prompt.limits, "max_tokens": room if asked is None else min(asked, room)}
        short = asked is None or asked > room
        too_long = (
            f"a prompt of {len(ids)} tokens leaves no room in the context of {self.context} for what has to follow"
        )
        if room < 1:
            raise ValueError(f"{too_long}: shorten it")
        automaton = self.grammar.automaton(**limits)
        try:
            state = automaton.after(ids)
        except ValueError as fault:
            raise ValueError(f"{too_long}: {fault}" if short else str(fault)) from None
        guided = {modality for modality, setting in settings.items() if setting.guidance != 1}
        bound = len(ids) + (0 if asked is None else limits["max_tokens"])
        return _Row(automaton, state, ids.tolist(), prompt.seed, guided, bound)

    def _finish(self, rows: Sequence["_Row"], head: Head, settings: Mapping[str, Sampling]) -> None:
        """Runs a batch of rows to their ends."""
        branches = 2 if any(row.guided for row in rows) else 1
        lanes = Lanes(self.model, branches * len(rows), max(row.bound for row in rows))
        for row in rows:
            row.begin(lanes)
        while rows := [row for row in rows if not row.done]:
            hidden = lanes.forward()
            groups: dict[Allowed, list[_Row]] = defaultdict(list)
            for row in rows:
                groups[row.allowed].append(row)
            choices: list[tuple[_Row, int]] = []  # taken when all are made, for taking one may move lanes
            for allowed, members in groups.items():
                setting = settings[allowed.modality or TEXT]
                logits = self._logits(hidden, allowed, members, head, setting.guidance)
                noise = None
                if not setting.is_greedy:
                    noise = gumbel([row.random for row in members], logits.shape[1]).to(logits)
                columns = choose(logits, setting, noise).tolist()
                choices += zip(members, head.ids(allowed)[columns].tolist(), strict=True)
            for row, id_ in choices:
                row.take(id_)

    def _logits(self, hidden: Tensor, allowed: Allowed, rows: Sequence["_Row"], head: Head, guidance: float) -> Tensor:
        """Logits of the ids allowed, [rows, ids]; of codes guided, where the row has an unconditional lane."""
        logits = head.logits(hidden[[row.lane.slot for row in rows]], allowed)
        pairs = [(index, row.shadow.slot) for index, row in enumerate(rows) if row.shadow is not None]
        if pairs and allowed.modality in self.grammar.blocks:
            guided, slots = (list(numbers) for numbers in zip(*pairs, strict=True))
            without = head.logits(hidden[slots], allowed)
            logits[guided] = without + guidance * (logits[guided] - without)
        return logits

    def _with(self, settings: Mapping[str, Sampling], changes: Mapping[str, Sampling] | None) -> dict[str, Sampling]:
        """Settings with those of some modalities replaced. ValueError for what would have no effect."""
        for modality, setting in (changes or {}).items():
            if modality not in settings:
                raise ValueError(f"sampling has settings of {modality!r}; the modalities are {', '.join(settings)}")
            if modality == TEXT and setting.guidance != 1:
                raise ValueError(
                    f"guidance {setting.guidance} of text: only what text describes is guided; set it to 1"
                )
        return {**settings, **(changes or {})}


class _Row:
    """One document being written; `allowed` is what may come next whenever it is not done."""

    lane: Lane  # of the document itself
    _lanes: Lanes

    def __init__(
        self,
        automaton: DocumentAutomaton,
        state: DocumentState,
        ids: list[int],
        seed: int,
        guided: Collection[str],
        bound: int,
    ):
        self.automaton, self.state, self.ids, self.given, self.guided = automaton, state, ids, len(ids), guided
        self.random = np.random.default_rng(seed)
        self.bound = bound  # tokens that room is made for at once
        self.shadow: Lane | None = None  # of the open block, without what came before it

    @property
    def done(self) -> bool:
        return self.automaton.done(self.state)

    def begin(self, lanes: Lanes) -> None:
        """Everything the prompt gives or forces is pending."""
        self._lanes, self.lane = lanes, lanes.open(self.ids)
        if self.state.block is not None:
            self._open_shadow(len(self.ids) - self.state.block.at)
        self._take_forced()

    def take(self, id_: int) -> None:
        """Append an id, and those that are forced after it."""
        self._append(id_)
        self._take_forced()

    def _take_forced(self) -> None:
        while not self.done:
            self.allowed = self.automaton.allowed(self.state)
            if self.allowed.forced is None:
                return
            self._append(self.allowed.forced)
        self._lanes.close(self.lane)

    def _append(self, id_: int) -> None:
        was_in_block = self.state.block is not None
        self.state = self.automaton.step(self.state, id_)
        self.ids.append(id_)
        self.lane.pending.append(id_)
        if self.shadow is not None:
            self.shadow.pending.append(id_)
            if self.state.block is None:
                self._lanes.close(self.shadow)
                self.shadow = None
        elif self.state.block is not None and not was_in_block:
            self._open_shadow(len(self.ids) - 1)

    def _open_shadow(self, start: int) -> None:
        """Unless nothing but bos came before the block: then both branches are the same."""
        if self.state.modality in self.guided and start > 1:
            self.shadow = self._lanes.open([self.ids[0], *self.ids[start:]])
