"""Runs the decoder over many token sequences at once, each at its own length, feeding each only what is new.

A lane is one such sequence. What is fed to it waits in `pending` until the next forward, be it a prompt, a single id,
or an id with the marks that the grammar forces after it: all of them are one step.

Dimensions: N lanes, T tokens of the longest `pending`, D width of the model.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...tokenizers.automaton import Allowed
from ...tokenizers.vocabulary import Vocabulary
from .cache import LaneCache

_MASKED = ("sdpa", "eager")  # attention implementations that take any mask


class Lane:
    """One sequence: `length` ids are in the cache at place `slot`, `pending` are not yet."""

    __slots__ = ("length", "pending", "slot")

    def __init__(self, slot: int, pending: Iterable[int]):
        self.slot, self.length, self.pending = slot, 0, list(pending)


class Lanes:
    """The lanes in use and their cache. The lane in slot i is row i of every forward."""

    def __init__(self, model: PreTrainedModel, lanes: int, length: int):
        self.model = model
        self._lanes: list[Lane] = []
        self._cache = LaneCache(model.config, lanes, length, model.dtype, model.device)

    def __len__(self) -> int:
        return len(self._lanes)

    def open(self, pending: Iterable[int]) -> Lane:
        lane = Lane(len(self._lanes), pending)
        self._lanes.append(lane)
        return lane

    def close(self, lane: Lane) -> None:
        """Ends a lane; the last one moves into its slot."""
        last = self._lanes.pop()
        if last is not lane:
            self._cache.move(last.slot, lane.slot)
            last.slot = lane.slot
            self._lanes[lane.slot] = last

    def forward(self) -> Float[Tensor, "n d"]:
        """Feeds what is pending, at least one id a lane. -> the hidden state of each lane's last id."""
        lengths = torch.tensor([lane.length for lane in self._lanes])
        news = torch.tensor([len(lane.pending) for lane in self._lanes])
        width, span = int(news.max()), int((lengths + news).max())
        ids = torch.zeros(len(self._lanes), width, dtype=torch.long)
        for row, lane in zip(ids.numpy(), self._lanes, strict=True):
            row[: len(lane.pending)] = lane.pending
            lane.length += len(lane.pending)
            lane.pending.clear()
        device = self.model.device
        positions = (lengths[:, None] + torch.arange(width)).to(device)
        self._cache.reserve(len(self._lanes), int(lengths.max()) + width)
        mask = additive(self.model, self._cache.place(positions, span))
        hidden = self.model.base_model(
            input_ids=ids.to(device),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return hidden[torch.arange(len(hidden), device=device), (news - 1).to(device)]


class Head:
    """The rows of the head that may be needed, and no other. Made anew for each call, as weights may change between."""

    def __init__(self, model: PreTrainedModel, vocabulary: Vocabulary):
        head = model.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        self._weight = head.weight
        self._vocabulary = vocabulary
        self._rows: dict[Allowed, tuple[np.ndarray, Tensor]] = {}

    def ids(self, allowed: Allowed) -> np.ndarray:
        """Ids allowed, rising: the columns of `logits`."""
        return self._of(allowed)[0]

    def logits(self, hidden: Float[Tensor, "n d"], allowed: Allowed) -> Float[Tensor, "n k"]:
        """float32 logits (or wider) of the ids allowed."""
        logits = hidden @ self._of(allowed)[1].T
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _of(self, allowed: Allowed) -> tuple[np.ndarray, Tensor]:
        if allowed not in self._rows:
            ids = allowed.all_ids(self._vocabulary)
            contiguous = ids[-1] - ids[0] + 1 == len(ids)
            rows = (
                self._weight[ids[0] : ids[-1] + 1]
                if contiguous
                else self._weight[torch.from_numpy(ids).to(self._weight.device)]
            )
            self._rows[allowed] = ids, rows
        return self._rows[allowed]


def additive(model: PreTrainedModel, mask: Tensor) -> Tensor:
    """A boolean mask as the model's attention takes it: eager adds it to the scores."""
    if model.config._attn_implementation == "sdpa":
        return mask
    lowest = torch.finfo(model.dtype).min
    return torch.zeros_like(mask, dtype=model.dtype).masked_fill_(~mask, lowest)


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout and gradients, and with an attention that takes masks; afterwards the model is as it was."""
    training, implementation = model.training, model.config._attn_implementation or "eager"
    model.eval()
    if implementation not in _MASKED:
        model.set_attn_implementation("sdpa")
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)
        if implementation not in _MASKED:
            model.set_attn_implementation(implementation)
