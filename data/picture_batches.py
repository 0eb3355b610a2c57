"""Endless batches of pictures for the image tokenizer, each with the few integers from which the next one follows.

    1 positions   the endless stream of pictures, shuffled by (seed, epoch)          order.py
    2 pictures    decoded and fitted to their bucket, kept while their shards are     pictures.py
    3 batches     of one size: the first bucket that fills up

Dimensions: B batch, H W pixels of a bucket.
"""

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import IterableDataset

from .order import EpochOrder
from .pictures import buckets_of, decode, fit
from .record import DOCUMENTS, read_record
from .shards import ShardError, read_shard

State = dict[str, Any]


class PictureBatch(NamedTuple):
    """Pictures of one size and the state after them."""

    pictures: UInt8[Tensor, "b height width 3"]
    state: State


class Pictures:
    """The fitted pictures of a split, by number; whole shards are held, the least recently used one leaves first.

    Raises FileNotFoundError or ValueError if the folder is no finished data set or lacks the split.
    """

    def __init__(
        self, folder: Path | str, split: str, resolution: int, patch: int, max_ratio: float = 1.0, hold: int = 8
    ) -> None:
        self.folder, self.split = Path(folder), split
        self.record = read_record(folder, DOCUMENTS)
        if split not in self.record["splits"]:
            raise ValueError(f"{folder} has no split {split!r}: it has {', '.join(self.record['splits'])}")
        self._shards = self.record["splits"][split]["shards"]
        self.shard_sizes: tuple[int, ...] = tuple(int(shard["pictures"]) for shard in self._shards)
        self.buckets = buckets_of(resolution, patch, max_ratio)
        self._starts = np.concatenate([[0], np.cumsum(self.shard_sizes)]).tolist()
        self._held: OrderedDict[int, list[np.ndarray]] = OrderedDict()
        self._hold = hold

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._shard(shard)[index - self._starts[shard]]

    def _shard(self, shard: int) -> list[np.ndarray]:
        if shard not in self._held:
            path = self.folder / self._shards[shard]["file"]
            found = [
                self._fit(path, document.key, segment.data)
                for document in read_shard(path)
                for segment in document.segments
                if segment.modality == "image"
            ]
            if len(found) != self.shard_sizes[shard]:
                raise ShardError(f"{path} holds {len(found)} pictures, dataset.json says {self.shard_sizes[shard]}")
            self._held[shard] = found
            while len(self._held) > self._hold:
                self._held.popitem(last=False)
        self._held.move_to_end(shard)
        return self._held[shard]

    def _fit(self, path: Path, key: str, data: bytes) -> np.ndarray:
        try:
            return fit(decode(data), self.buckets)
        except ValueError as fault:
            raise ShardError(f"{path}, sample {key}: {fault}") from None

    def batches(self, batch_size: int) -> Iterator[UInt8[Tensor, "b height width 3"]]:
        """Each picture once, in order but grouped by size."""
        waiting: defaultdict[tuple[int, ...], list[np.ndarray]] = defaultdict(list)
        for index in range(len(self)):
            picture = self[index]
            group = waiting[picture.shape]
            group.append(picture)
            if len(group) == batch_size:
                yield _stack(group)
                group.clear()
        for group in waiting.values():
            if group:
                yield _stack(group)


class PictureStream(IterableDataset[PictureBatch]):
    """Endless training batches. `state` None starts at the beginning; a state of another stream is a ValueError."""

    def __init__(
        self,
        pictures: Pictures,
        batch_size: int,
        seed: int,
        state: Callable[[], Mapping[str, Any] | None] = lambda: None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be 1 or more")
        self.pictures, self.batch_size, self.rank, self.world = pictures, batch_size, rank, world
        self._state = state
        self._order = EpochOrder(pictures.shard_sizes, seed)

    def __iter__(self) -> Iterator[PictureBatch]:
        state = self._state() or {"next": self.rank, "waiting": []}
        seen, position = deque(state["waiting"]), int(state["next"])
        waiting: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        while True:
            if seen:
                number = seen.popleft()
            else:
                number, position = position, position + self.world
            group = waiting[self._picture(number).shape]
            group.append(number)
            if len(group) == self.batch_size:
                pictures = _stack([self._picture(number) for number in group])
                group.clear()
                left = [number for others in waiting.values() for number in others]
                yield PictureBatch(pictures, {"next": position, "waiting": [*left, *seen]})

    def _picture(self, position: int) -> np.ndarray:
        return self.pictures[self._order.locate(position)[1]]


def dealt(states: Sequence[State], world: int) -> list[State]:
    """States of `world` ranks that go on where those of these states ended: what is in no batch yet comes once."""
    if len(states) == world:
        return list(states)
    end = max(int(state["next"]) for state in states)
    left = [number for state in states for number in state["waiting"]]
    for state in states:
        left += range(int(state["next"]), end, len(states))  # another rank was ahead of it
    left.sort()
    return [{"next": end + rank, "waiting": left[rank::world]} for rank in range(world)]


def _stack(pictures: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pictures))
