"""The order of documents: a pure function of (seed, position), so that a loader resumes from a few integers.

A position counts documents since the start of training, over all epochs and all ranks. An epoch is a permutation of
groups of shards; a group is what is held in memory at once, and is permuted as a whole.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

_MASK, _STEP = (1 << 64) - 1, 0x9E3779B97F4A7C15
_SHARDS, _GROUP, MIXTURE = 0, 1, 2  # what a permutation is drawn for


def raw_draws(number: int, seed: int, *counter: int) -> np.ndarray:
    """`number` uint64 that depend on the seed and up to three integers alone.

    They are the words of Philox itself and of none of NumPy's distributions, so they are the same in every NumPy.
    """
    first, second, third = (*counter, 0, 0, 0)[:3]
    words = np.array([0, first & _MASK, second & _MASK, third & _MASK], dtype=np.uint64)  # word 0 counts the draws
    key = np.array([seed & _MASK, 0x6F6D6E696772616D], dtype=np.uint64)
    return np.random.Philox(key=key, counter=words).random_raw(number)


def uniforms(number: int, seed: int, *counter: int) -> list[float]:
    """`number` floats in [0, 1) that depend on the seed and the integers alone: SplitMix64, cheap for a few draws.

    https://doi.org/10.1145/2714064.2660195
    """
    state = seed & _MASK
    for word in counter:
        state = _mix((state + _STEP) & _MASK) ^ (word & _MASK)
    state = _mix((state + _STEP) & _MASK)
    return [(_mix((state + index * _STEP) & _MASK) >> 11) * 2.0**-53 for index in range(1, number + 1)]


def _mix(word: int) -> int:
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)


def permutation(number: int, seed: int, *counter: int) -> np.ndarray:
    """A permutation of 0..number-1 (int64), as `raw_draws`."""
    return np.argsort(raw_draws(number, seed, *counter), kind="stable")


class EpochOrder:
    """Which document stands at a position of the endless stream.

    Arguments:
        sizes: documents in each shard; document numbers run through the shards in this order.
        seed: another seed is another order.
        group_shards: shards permuted together, at least 1; all of them give a full shuffle.
        shuffle: False keeps the order of the shards, the same in every epoch.
    """

    def __init__(self, sizes: Sequence[int], seed: int, group_shards: int = 4, shuffle: bool = True) -> None:
        if group_shards < 1:
            raise ValueError(f"group_shards={group_shards}: at least one shard has to be in memory")
        self.sizes = tuple(int(size) for size in sizes)
        self.seed, self.group_shards, self.shuffle = seed, group_shards, shuffle
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        if len(self) == 0:
            raise ValueError("there is no document in these shards: make the data set again, or name another split")
        self._epoch = lru_cache(maxsize=4)(self._plan_epoch)
        self._group = lru_cache(maxsize=4)(self._permute_group)

    def __len__(self) -> int:
        """Documents in an epoch."""
        return int(self._starts[-1])

    def locate(self, position: int) -> tuple[int, int]:
        """(epoch, document number) at a position."""
        epoch, offset = divmod(position, len(self))
        if not self.shuffle:
            return epoch, offset
        _, ends = self._epoch(epoch)
        group = int(np.searchsorted(ends, offset, side="right"))
        start = int(ends[group - 1]) if group else 0
        return epoch, int(self._group(epoch, group)[offset - start])

    def shards_at(self, position: int) -> tuple[int, ...]:
        """Numbers of the shards that are read together with the document at a position."""
        epoch, offset = divmod(position, len(self))
        groups, ends = self._epoch(epoch)
        return groups[int(np.searchsorted(ends, offset, side="right"))]

    def next_group(self, position: int) -> int:
        """The first position whose document lies in the group of shards after this one."""
        epoch, offset = divmod(position, len(self))
        _, ends = self._epoch(epoch)
        return epoch * len(self) + int(ends[np.searchsorted(ends, offset, side="right")])

    def _plan_epoch(self, epoch: int) -> tuple[list[tuple[int, ...]], np.ndarray]:
        """The groups of an epoch, and the offset at which each of them ends."""
        count = len(self.sizes)
        shards = permutation(count, self.seed, _SHARDS, epoch) if self.shuffle else np.arange(count)
        step = self.group_shards
        groups = [tuple(int(shard) for shard in shards[first : first + step]) for first in range(0, count, step)]
        return groups, np.cumsum([sum(self.sizes[shard] for shard in group) for group in groups])

    def _permute_group(self, epoch: int, group: int) -> np.ndarray:
        """Document numbers of a group, in the order in which they are read."""
        shards = self._epoch(epoch)[0][group]
        numbers = np.concatenate([np.arange(self._starts[s], self._starts[s + 1]) for s in shards])
        return numbers[permutation(len(numbers), self.seed, _GROUP, epoch, group)]
