"""Runs the decoder over many token sequences at once, each at its own length, feeding each only what is new.

A lane is one such sequence. What begins alike is computed once: of new lanes with the same ids one is fed and copied,
and a long beginning that all new lanes share is fed before they part. Ids can be taken back, by making a lane shorter.

Dimensions: N lanes, T tokens that are fed to the longest, M tokens fed to all, D width of the model.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from .cache import Store
from .forward import Step, run

_SPARE = 16  # places behind a lane's last for padding and guesses
_MULTIPLE = 8  # of the places that are read: kernels for GPUs, and programs made for them, want whole ones
_SHARED = 16  # ids that different lanes must share for a forward of their own


class Lane:
    """One sequence: the keys of its first `length` ids are in the cache at place `slot`.

    After a forward the hidden state of the j-th id that was fed is row `base + j` of what it gave.
    """

    __slots__ = ("base", "length", "slot")

    def __init__(self, slot: int) -> None:
        self.slot, self.length, self.base = slot, 0, 0


Feed = tuple[Lane, Sequence[int]]  # a lane and the ids that follow in it


class Lanes:
    """The lanes in use and their cache. A lane that is open can be fed or not."""

    def __init__(self, model: PreTrainedModel, lanes: int, length: int, step: Step | None = None) -> None:
        """step: a compiled `run`, for short pieces of all lanes; None runs everything as it is."""
        self.model = model
        self._step = step or run
        self._lanes: list[Lane] = []
        self._min_lanes = 1 if step is None else 2  # torch.compile would make another program for a single lane
        self._store = Store(model.config, max(lanes, self._min_lanes), length + _SPARE, model.dtype, model.device)

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
        """Feeds the ids, at least one to each lane. -> hidden states; each lane's `base` says where its own begin."""
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

        The others get padding behind their ends, which is written over later; so does a spare lane behind the last,
        where there are fewer than the step takes.
        """
        if 2 * len(feeds) < len(self._lanes):
            self._feed(feeds, parts)
            return
        given = dict(feeds)
        spare = [Lane(slot) for slot in range(len(self._lanes), self._min_lanes)]
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
        span = max(lane.length for lane, _ in feeds)
        span += -span % _MULTIPLE  # the mask hides what is too much
        # longer than what is read: torch.compile would make another program for the two being equal
        self._store.reserve(max(len(self._lanes), self._min_lanes), max(span, int(lengths.max()) + width) + 1)
        device = self.model.device
        slots = None if whole else torch.tensor([lane.slot for lane, _ in feeds]).to(device)
        positions = torch.from_numpy(lengths[:, None] + np.arange(width)).to(device)
        step = self._step if whole else run
        hidden = step(self.model, self._store.layers, torch.from_numpy(padded).to(device), positions, span, slots)
        parts.append(hidden.flatten(0, 1))


def _common_beginning(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many ids all of them begin with, at most all but the last of the shortest."""
    first, last = min(sequences), max(sequences)  # the two that differ first
    most = min(map(len, sequences)) - 1
    return next((place for place in range(most) if first[place] != last[place]), most)
