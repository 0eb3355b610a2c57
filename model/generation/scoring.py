"""How likely documents are: nats of each token under the grammar, for evaluation and for ranking samples.

The softmax of each token runs over the ids that the grammar allows there; what it forces costs nothing.
Dimensions: T tokens of a document, N documents, D width of the model.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...tokenizers.automaton import Allowed, GrammarError
from .forward import additive, evaluating
from .head import Head
from .prompts import Piece
from .sampler import Sampler


@dataclass(frozen=True, eq=False)
class Score:
    """ids [T] of a whole document; nats [T] that each cost, 0 where the grammar leaves no choice; modality [T] of each.

    `modality` is the index in `vocabulary.modalities`, as `Vocabulary.modality_of` gives it. `chosen` [T] says where
    there was a choice.
    """

    ids: NDArray[np.int64]
    nats: NDArray[np.float64]
    modality: NDArray[np.int8]
    chosen: NDArray[np.bool_]

    @property
    def total(self) -> float:
        return float(self.nats.sum())


def score(sampler: Sampler, documents: Sequence[Sequence[Piece]], batch_size: int = 32, **limits: Any) -> list[Score]:
    """Score whole documents (segments; eos is added), such as `[[Block(codes), "red apple"], ["red apple"]]`.

    limits: arguments of `DocumentGrammar.automaton` that narrow what is allowed, such as `sizes`. ValueError for a
    document that cannot be written, is longer than the context, or breaks the limits.
    """
    return score_ids(
        sampler, [sampler.writer.write(document, close=True) for document in documents], batch_size, **limits
    )


def score_ids(
    sampler: Sampler, documents: Sequence[NDArray[np.int64]], batch_size: int = 32, **limits: Any
) -> list[Score]:
    """`score` of documents that are written already."""
    automaton = sampler.grammar.automaton(**limits)
    choices = []  # of each document: what was allowed at each token
    for number, ids in enumerate(documents):
        if len(ids) > sampler.context:
            raise ValueError(f"document {number} has {len(ids)} tokens, the context {sampler.context}: shorten it")
        state, allowed = automaton.start, []
        for id_ in ids.tolist():
            allowed.append(automaton.allowed(state))
            try:
                state = automaton.step(state, id_)
            except GrammarError as fault:
                raise ValueError(f"document {number}: {fault}") from None
        choices.append(allowed)
    nats = [np.zeros(len(ids)) for ids in documents]
    order = sorted(range(len(documents)), key=lambda number: len(documents[number]))  # little padding
    with evaluating(sampler.model):
        head = Head(sampler.model, sampler.vocabulary)
        for start in range(0, len(order), batch_size):
            _score_batch(sampler, head, order[start : start + batch_size], documents, choices, nats)
    modalities = [sampler.vocabulary.modality_of(ids) for ids in documents]
    chosen = [np.array([allowed.forced is None for allowed in document]) for document in choices]
    return [Score(*parts) for parts in zip(documents, nats, modalities, chosen, strict=True)]


def _score_batch(
    sampler: Sampler,
    head: Head,
    numbers: Sequence[int],
    documents: Sequence[NDArray[np.int64]],
    choices: Sequence[Sequence[Allowed]],
    nats: Sequence[NDArray[np.float64]],
) -> None:
    """Fills `nats` of the documents `numbers`."""
    length = max(len(documents[number]) for number in numbers)
    ids = torch.zeros(len(numbers), length, dtype=torch.long)
    groups: dict[Allowed, list[tuple[int, int]]] = defaultdict(list)  # (row, token) that made each kind of choice
    for row, number in enumerate(numbers):
        ids[row, : len(documents[number])] = torch.from_numpy(documents[number])
        for token, allowed in enumerate(choices[number]):
            if allowed.forced is None:
                groups[allowed].append((row, token))
    device = sampler.model.device
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]
    hidden = sampler.model.base_model(
        input_ids=ids.to(device), attention_mask=additive(sampler.model, causal), use_cache=False
    ).last_hidden_state
    for allowed, places in groups.items():
        columns = head.ids(allowed)
        for start in range(0, len(places), 1024):
            rows, tokens = np.array(places[start : start + 1024]).T
            logits = head.logits(hidden[rows, tokens - 1], allowed)
            target = np.searchsorted(columns, ids.numpy()[rows, tokens])
            cost = -logits.log_softmax(dim=1).gather(1, torch.from_numpy(target)[:, None].to(device))
            for row, token, cost_ in zip(rows, tokens, cost.squeeze(1).tolist(), strict=True):
                nats[numbers[row]][token] = cost_
