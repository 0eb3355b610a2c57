"""Documents of many lengths -> batches of one shape, without cutting a block.

R rows, T length of a row. A row is the fullest set of waiting documents that holds the one that waited longest (an
exact subset sum over a small buffer, where best fit decreasing would leave a gap at the end of every row). Documents
in a row do not see each other: `document` gives the attention mask, `position` restarts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int8, Int32, Int64
from torch import Tensor

from ..tokenizers.vocabulary import Vocabulary

NO_TARGET = -100  # the label that torch and transformers ignore


@dataclass(frozen=True)
class WrittenDocument:
    """A document as ids.

    Attributes:
        ids: (n,) int64.
        free: (n,) bool; False where the grammar admits one id only, so that it carries no information.
        source: number of the document in its data set, or mixture of such (of the first one, for a page).
    """

    ids: np.ndarray
    free: np.ndarray
    source: int

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class PackedBatch:
    """What the decoder is trained on. Everything is aligned: `targets[r, t]` is to be predicted at `[r, t]`.

    Attributes:
        ids: tokens; the vocabulary's `pad` where no document lies.
        targets: the next token of the same document; -100 at the last one and on pads.
        weights: loss weight of the target; 0 where there is none, and for forced ones if the softmax is partitioned.
        modality: of the target, an index into `Vocabulary.modalities`; -1 where there is none.
        partition: range that the target belongs to: 0 what is not a code (text and specials), k the k-th of the
            other modalities in `Vocabulary.modalities`; -1 where there is none.
        document: number of the document in this batch, 0.. through the rows; -1 on pads.
        position: place in the document, from 0; 0 on pads.
        sources: number of each document of the batch, by `document`: in the data set, or `Mixture.locate` tells where.
        state: what the loader needs to go on after this batch (JSON-able); empty where there is no loader.
    """

    ids: Int64[Tensor, "R T"]
    targets: Int64[Tensor, "R T"]
    weights: Float32[Tensor, "R T"]
    modality: Int8[Tensor, "R T"]
    partition: Int8[Tensor, "R T"]
    document: Int32[Tensor, "R T"]
    position: Int64[Tensor, "R T"]
    sources: Int64[Tensor, " D"]
    state: dict[str, Any] = field(default_factory=dict)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedBatch":
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    @property
    def num_tokens(self) -> int:
        """Places that hold a token."""
        return int((self.document >= 0).sum())

    @property
    def num_pairs(self) -> int:
        """(query, key) pairs of causal attention within the documents: what attention costs."""
        return int((self.position + 1)[self.document >= 0].sum())

    @property
    def fill(self) -> float:
        """Share of the places that hold a token."""
        return self.num_tokens / self.ids.numel()

    @property
    def total_weight(self) -> Float32[Tensor, ""]:
        """Sum of the weights of the targets: what the loss of a step is divided by."""
        return self.weights.sum()

    def parts(self, number: int) -> list["PackedBatch"]:
        """The batch in so many parts of equally many rows, which have to be a divisor of its rows."""
        rows = self.ids.shape[0]
        assert rows % number == 0, "the number of parts is checked with the configuration"
        if number == 1:
            return [self]
        slices = [slice(start, start + rows // number) for start in range(0, rows, rows // number)]
        return [self._each(lambda tensor, part=part: tensor[part] if tensor.ndim == 2 else tensor) for part in slices]

    def _each(self, apply: Callable[[Tensor], Tensor]) -> "PackedBatch":
        return replace(self, **{k: apply(v) for k, v in vars(self).items() if isinstance(v, Tensor)})


def fullest(lengths: Sequence[int], room: int) -> list[int]:
    """Which of the waiting documents make the fullest row.

    Arguments:
        lengths: of the waiting documents, the oldest first; the first one is always taken, so that none waits for ever.
        room: places in the row; at least `lengths[0]`.

    Returns:
        Indices into `lengths`, rising; of equally full sets the one whose members waited longest.
    """
    assert lengths[0] <= room, "a document longer than the row has to be split or dropped before it waits"
    left = room - lengths[0]
    within = (1 << (left + 1)) - 1
    reachable = [1]  # bit s of an entry: some of the documents after this one add up to s
    for length in reversed(lengths[1:]):
        reachable.append(reachable[-1] | (reachable[-1] << length) & within)
    total = reachable.pop().bit_length() - 1
    chosen = [0]
    for index, length in enumerate(lengths[1:], start=1):
        after = reachable.pop()
        if length <= total and (after >> (total - length)) & 1:
            chosen.append(index)
            total -= length
            if not total:
                break
    return chosen


class Collator:
    """Rows of written documents -> `PackedBatch` of a fixed shape.

    Arguments:
        vocabulary: numbers the modalities; its special `pad` fills what is empty.
        rows: R of the batch.
        length: T of the batch.
        loss_weights: modality name -> weight of its targets, 1 where not named. Special tokens and the size of a
            picture count as text.
        partitioned: the loss is normalised over the range that the grammar asks for, so a forced token has nothing to
            teach and its weight is 0.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        rows: int,
        length: int,
        loss_weights: Mapping[str, float] | None = None,
        partitioned: bool = False,
    ) -> None:
        if rows < 1 or length < 2:
            raise ValueError(f"rows={rows}, length={length}: a batch needs a row, and two tokens in it")
        names = list(vocabulary.modalities)
        unknown = sorted(set(loss_weights or {}) - set(names))
        if unknown:
            raise ValueError(f"loss weight for {unknown[0]!r}, which the vocabulary does not hold: it has {names}")
        if any(not weight >= 0 for weight in (loss_weights or {}).values()):
            raise ValueError(f"loss weights {dict(loss_weights or {})}: none may be negative")
        self.rows, self.length, self.partitioned = rows, length, partitioned
        self.pad = vocabulary.id("pad")
        self._modality = vocabulary.modality_of(np.arange(vocabulary.size)).astype(np.int8)
        codes = [index for index, name in enumerate(names) if name != "text"]
        rank = np.zeros(len(names), dtype=np.int8)  # of a modality among those that are written as codes, from 1
        rank[codes] = np.arange(1, len(codes) + 1)
        self._partition = rank[self._modality]
        weights = np.array([(loss_weights or {}).get(name, 1.0) for name in names], dtype=np.float32)
        if not weights.any():
            raise ValueError(f"loss.weights={dict(loss_weights or {})}: one has to be positive")
        self._weight = weights[self._modality]

    def collate(self, packed: Sequence[Sequence[WrittenDocument]]) -> PackedBatch:
        """At most R rows of documents that fit them; rows that are missing are pads."""
        shape = (self.rows, self.length)
        ids = np.full(shape, self.pad, dtype=np.int64)
        free = np.zeros(shape, dtype=bool)
        document = np.full(shape, -1, dtype=np.int32)
        position = np.zeros(shape, dtype=np.int64)
        sources: list[int] = []
        for row, documents in enumerate(packed):
            start = 0
            for written in documents:
                end = start + len(written)
                assert end <= self.length, "the documents chosen for a row have to fit it"
                ids[row, start:end], free[row, start:end] = written.ids, written.free
                document[row, start:end] = len(sources)
                position[row, start:end] = np.arange(end - start)
                sources.append(written.source)
                start = end
        follows = np.zeros(shape, dtype=bool)
        follows[:, :-1] = (document[:, 1:] == document[:, :-1]) & (document[:, 1:] >= 0)
        targets = np.full(shape, NO_TARGET, dtype=np.int64)
        targets[follows] = ids[:, 1:][follows[:, :-1]]
        weights, modality, partition = (
            np.zeros(shape, np.float32),
            np.full(shape, -1, np.int8),
            np.full(shape, -1, np.int8),
        )
        wanted = targets[follows]
        modality[follows], partition[follows] = self._modality[wanted], self._partition[wanted]
        weights[follows] = self._weight[wanted] * (free[:, 1:][follows[:, :-1]] if self.partitioned else 1)
        return PackedBatch(
            ids=torch.from_numpy(ids),
            targets=torch.from_numpy(targets),
            weights=torch.from_numpy(weights),
            modality=torch.from_numpy(modality),
            partition=torch.from_numpy(partition),
            document=torch.from_numpy(document),
            position=torch.from_numpy(position),
            sources=torch.tensor(sources, dtype=torch.int64),
        )
