"""Runs the decoder over many token sequences at once, each at its own length, feeding each only what is new.

A lane is one such sequence. What begins alike is computed once: of new lanes with the same ids one is fed and copied,
and a long beginning that all new lanes share is fed before they part. Ids can be taken back, by making a lane shorter.

Dimensions: N lanes, T tokens that are fed to the longest, M tokens fed to all, D width of the model.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch._dynamo import config as dynamo
from torch.compiler import set_stance
from torch.fx.experimental import _config as shapes
from transformers import PreTrainedModel

from ...tokenizers.automaton import Allowed
from ...tokenizers.vocabulary import Vocabulary
from .cache import LaneCache, Store

_MASKED = ("sdpa", "eager")  # attention implementations that take any mask
_SPARE = 16  # places behind a lane's last for padding and guesses
_SHARED = 16  # ids that different lanes must share for a forward of their own


class Lane:
    """One sequence: the keys of its first `length` ids are in the cache at place `slot`.

    After a forward the hidden state of the j-th id that was fed is row `base + j` of what it gave.
    """

    __slots__ = ("base", "length", "slot")

    def __init__(self, slot: int) -> None:
        self.slot, self.length, self.base = slot, 0, 0


Feed = tuple[Lane, Sequence[int]]  # a lane and the ids that follow in it, one at least
Step = Callable[..., Float[Tensor, "n t d"]]  # `run`, or what a `CompiledRun` does in its place


class Lanes:
    """The lanes in use and their cache. A lane that is open can be fed or not."""

    def __init__(self, model: PreTrainedModel, lanes: int, length: int, step: Step | None = None) -> None:
        """step: a compiled `run`, for short pieces of all lanes; None runs everything as it is."""
        self.model = model
        self._step = step or run
        self._lanes: list[Lane] = []
        self._least = 1 if step is None else 2  # torch.compile would make another program for a single lane
        self._store = Store(model.config, max(lanes, self._least), length + _SPARE, model.dtype, model.device)

    def __len__(self) -> int:
        return len(self._lanes)

    def open(self) -> Lane:
        lane = Lane(len(self._lanes))
        self._lanes.append(lane)
        return lane

    def close(self, lane: Lane) -> None:
        """Ends a lane; the last one moves into its slot."""
        last = self._lanes.pop()
        if last is not lane:
            if last.length:  # a new lane has no keys, and perhaps no room in the store until it is fed
                self._store.copy(last.slot, [lane.slot], last.length)
            last.slot = lane.slot
            self._lanes[lane.slot] = last

    def forward(self, feeds: Sequence[Feed]) -> Float[Tensor, "m d"]:
        """Feeds the ids. -> hidden states; each lane's `base` says where its own begin."""
        parts: list[Tensor] = []
        begun = [(lane, ids) for lane, ids in feeds if not lane.length]
        going = [(lane, ids) for lane, ids in feeds if lane.length]
        if begun:
            self._begin(begun, parts)
        if going:
            short = 1 + min(len(ids) for _, ids in going)
            self._go_on([feed for feed in going if len(feed[1]) <= short], parts)
            if longer := [feed for feed in going if len(feed[1]) > short]:
                self._feed(longer, parts)
        return torch.cat(parts)

    def _begin(self, feeds: Sequence[Feed], parts: list[Tensor]) -> None:
        """Feeds new lanes, each beginning once."""
        alike: dict[tuple[int, ...], list[Lane]] = defaultdict(list)
        for lane, ids in feeds:
            alike[tuple(ids)].append(lane)
        firsts = [(lanes[0], ids) for ids, lanes in alike.items()]
        shared = _common_beginning(list(alike)) if len(alike) > 1 else 0
        if shared >= _SHARED:
            lead = firsts[0][0]
            self._feed([(lead, firsts[0][1][:shared])], [])
            self._store.copy(lead.slot, [lane.slot for lane, _ in firsts[1:]], shared)
            for lane, _ in firsts:
                lane.length = shared
            firsts = [(lane, ids[shared:]) for lane, ids in firsts]
        self._feed(firsts, parts)
        for lead, *others in alike.values():
            if others:
                self._store.copy(lead.slot, [lane.slot for lane in others], lead.length)
            for lane in others:
                lane.length, lane.base = lead.length, lead.base
        if shared >= _SHARED:
            for lane, _ in feeds:
                lane.base -= shared  # the shared ids have no rows, and nobody asks for them

    def _go_on(self, feeds: Sequence[Feed], parts: list[Tensor]) -> None:
        """Feeds lanes by the step for all of them, where it is not too few that take part: no key is moved for it.

        The others get padding behind their ends, which is written over later.
        """
        if 2 * len(feeds) < len(self._lanes):
            self._feed(feeds, parts)
            return
        given = dict(feeds)
        spare = [Lane(slot) for slot in range(len(self._lanes), self._least)]
        self._feed([(lane, given.get(lane, ())) for lane in (*self._lanes, *spare)], parts, whole=True)

    def _feed(self, feeds: Sequence[Feed], parts: list[Tensor], whole: bool = False) -> None:
        """One forward. whole: the feeds are those of all lanes in the order of their slots, and perhaps a spare one."""
        width = max(len(ids) for _, ids in feeds)
        lengths = np.array([lane.length for lane, _ in feeds])
        padded = np.zeros((len(feeds), width), dtype=np.int64)
        base = sum(map(len, parts))
        for number, (lane, ids) in enumerate(feeds):
            padded[number, : len(ids)] = ids
            lane.length += len(ids)
            lane.base = base + number * width if ids else lane.base
        self._store.reserve(max(len(self._lanes), self._least), int(lengths.max()) + width)
        device = self.model.device
        slots = None if whole else torch.tensor([lane.slot for lane, _ in feeds]).to(device)
        positions = torch.from_numpy(lengths[:, None] + np.arange(width)).to(device)
        span = max(lane.length for lane, _ in feeds)
        step = self._step if whole else run
        hidden = step(self.model, self._store.layers, torch.from_numpy(padded).to(device), positions, span, slots)
        parts.append(hidden.flatten(0, 1))


@contextmanager
def _compiling() -> Iterator[None]:
    """How programs are made: numbers of the model, such as the epsilon of a norm, are constants of the program."""
    with (
        # two sizes that are equal once, such as lanes and ids, are not taken to be always equal
        shapes.patch(use_duck_shape=False),  # pyright: ignore[reportAttributeAccessIssue] (made at import)
        dynamo.patch(specialize_float=True),  # pyright: ignore[reportAttributeAccessIssue] (likewise)
    ):
        yield


class CompiledRun:
    """`run` of one model through torch.compile: a program for one id a lane, one for several, whatever their numbers.

    Before a program runs, torch.compile looks whether all that it was made of is as it was, module by module: a fifth
    of a step of a small model. So that is done once a call for each of the programs.
    """

    def __init__(self) -> None:
        # programs belong to a code object: with one of its own a model never meets those of another
        own = FunctionType(run.__code__.replace(), run.__globals__, run.__name__)
        self._step = torch.compile(own, dynamic=True)

    def of_a_call(self) -> Step:
        """For one call of the sampler, during which the model stays what it is."""
        met: set[bool] = set()

        def step(
            model: PreTrainedModel, store: list[Tensor], ids: Int[Tensor, "n t"], *others: Any
        ) -> Float[Tensor, "n t d"]:
            if (several := ids.shape[1] > 1) in met:
                with set_stance(skip_guard_eval_unsafe=True):
                    return self._step(model, store, ids, *others)
            met.add(several)
            with _compiling():
                return self._step(model, store, ids, *others)

        return step


def run(
    model: PreTrainedModel,
    store: list[Tensor],
    ids: Int[Tensor, "n t"],
    positions: Int[Tensor, "n t"],
    span: int,
    slots: Int[Tensor, " n"] | None,
) -> Float[Tensor, "n t d"]:
    """Hidden states of ids at their positions; see `LaneCache`."""
    mask = (torch.arange(span, device=positions.device) <= positions[:, :, None])[:, None]
    return model.base_model(
        input_ids=ids,
        attention_mask=additive(model, mask),
        position_ids=positions,
        past_key_values=LaneCache(store, slots, positions, span),
        use_cache=True,
    ).last_hidden_state


def _common_beginning(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many ids all of them begin with, at most all but the last of the shortest."""
    first, last = min(sequences), max(sequences)  # the two that differ first
    most = min(map(len, sequences)) - 1
    return next((place for place in range(most) if first[place] != last[place]), most)


class Head:
    """The rows of the head that may be needed, and no other. Made anew for each call, as weights may change between."""

    def __init__(self, model: PreTrainedModel, vocabulary: Vocabulary):
        """ValueError for a head that is more than one matrix, as an adapter or a quantized one is."""
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or head.bias is not None:
            raise ValueError(
                f"the head of the model is {type(head).__name__}, and only the rows of a plain Linear can be taken: "
                "merge adapters into it, or sample with generate"
            )
        self._weight = head.weight
        self._vocabulary = vocabulary
        self._rows: dict[Allowed, tuple[np.ndarray, Tensor]] = {}

    def ids(self, allowed: Allowed) -> np.ndarray:
        """Ids allowed, rising: the columns of `logits`."""
        return self._of(allowed)[0]

    def logits(self, hidden: Float[Tensor, "n d"], allowed: Allowed) -> Float[Tensor, "n k"]:
        """float32 logits (or wider) of the ids allowed, computed in the model's own precision as its head does.

        In bfloat16 many logits are equal: noise decides between them, and at temperature 0 the lowest id.
        """
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
    implementation = model.config._attn_implementation or "eager"
    training = [module for module in model.modules() if module.training] if model.training else []
    if training:
        model.eval()
    if implementation not in _MASKED:
        model.set_attn_implementation("sdpa")
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:  # and no other: parts may have been in evaluation before
            module.training = True
        if implementation not in _MASKED:
            model.set_attn_implementation(implementation)
