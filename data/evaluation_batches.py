"""Each document of a split once, as one kind, in order: what held-out numbers are computed on."""

from collections.abc import Iterator, Mapping

from ..tokenizers.document_grammar import DocumentGrammar
from .kinds import WORDS_TO_PICTURE, Composer
from .packing import Collator, PackedBatch, WrittenDocument
from .tokens import TokenDataset
from .writing import Writer

_WHOLE = 1 << 30  # longer than any document, which therefore stays whole
_MULTIPLE = 8  # lengths are rounded up to it


class EvaluationBatches:
    """Padded batches: one document a row, in its first wording, with all its words. The same every time.

    Arguments:
        kind: one of `kinds.KINDS`; documents that cannot be that kind are passed over.
        rows: R of every batch; the last one is filled up with rows of pads.
        length: T of every batch; None takes the longest document. Longer ones are left out, see `too_long`.
        limit: at most so many documents, the first ones.
        loss_weights, partitioned: as for `Collator`.
        seed: of the companions of a page.
        rank, world: this rank takes every world-th of the documents.

    Attributes:
        indices: numbers in the data set of the documents that are given, in order.
        too_long: how many do not fit `length`.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        grammar: DocumentGrammar,
        kind: str,
        rows: int,
        length: int | None = None,
        *,
        limit: int | None = None,
        loss_weights: Mapping[str, float] | None = None,
        partitioned: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank={rank} is not one of world={world} ranks")
        self._composer = Composer(dataset, {WORDS_TO_PICTURE: 1.0}, caption_dropout=0.0, seed=seed)
        self._writer = Writer(grammar, _WHOLE)
        self.kind, self.indices, self.too_long = kind, list[int](), 0
        longest = 2
        for index in dataset.intact():
            if limit is not None and len(self.indices) == limit:
                break
            document = self._written(index)
            if document is None:
                continue
            if length is not None and len(document) > length:
                self.too_long += 1
                continue
            longest = max(longest, len(document))
            self.indices.append(index)
        self.indices = self.indices[rank::world]
        self.length = length or -(-longest // _MULTIPLE) * _MULTIPLE
        self._collator = Collator(grammar.vocabulary, rows, self.length, loss_weights, partitioned)

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.indices) // self._collator.rows)

    def __iter__(self) -> Iterator[PackedBatch]:
        rows = self._collator.rows
        for start in range(0, len(self.indices), rows):
            documents = [self._written(index) for index in self.indices[start : start + rows]]
            yield self._collator.collate([[document] for document in documents if document is not None])

    def _written(self, index: int) -> WrittenDocument | None:
        composed = self._composer.compose_as(self.kind, index)
        return None if composed is None else self._writer.write(composed.segments, index).pieces[0]
