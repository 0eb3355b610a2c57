"""The data set of token documents: random access by number through the shards that are held in memory."""

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..tokenizers.document_grammar import DocumentGrammar
from ..tokenizers.grammar import BlockGrammar
from ..tokenizers.modality import document_grammar
from ..tokenizers.vocabulary import Vocabulary
from .document import TokenDocument
from .kinds import captioned_picture
from .record import DATASET, TOKENS, VOCABULARY, read_record
from .shards import ShardError, read_token_shard


class _Shard:
    """The documents of a shard in memory, and who belongs to which family."""

    def __init__(self, path: Path, expected: int) -> None:
        self.documents = read_token_shard(path)
        if len(self.documents) != expected:
            raise ShardError(f"{path} holds {len(self.documents)} documents, {DATASET} says {expected}: make it again")

    @cached_property
    def families(self) -> dict[str, list[int]]:
        """Family -> its captioned pictures, as numbers within the shard."""
        members: defaultdict[str, list[int]] = defaultdict(list)
        for number, document in enumerate(self.documents):
            family = document.fields.get("family")
            if family is not None and captioned_picture(document) is not None:
                members[family].append(number)
        return dict(members)


class TokenDataset:
    """Token documents of one split, numbered through its shards.

    Arguments:
        folder: what `make tokens` left.
        split: one of `splits`.
        hold: shards in memory at most; a loader raises it to what it needs (`reserve`).

    Raises:
        FileNotFoundError, ValueError: no finished token data set, or none of that split.
    """

    def __init__(self, folder: Path | str, split: str, hold: int = 8) -> None:
        self.folder, self.split, self._hold = Path(folder), split, hold
        self.record = read_record(folder, TOKENS)
        if split not in self.record["splits"]:
            raise ValueError(f"{folder} has no split {split!r}: it has {', '.join(self.record['splits'])}")
        self._shards = self.record["splits"][split]["shards"]
        self.shard_sizes: tuple[int, ...] = tuple(int(shard["documents"]) for shard in self._shards)
        self._starts = np.concatenate([[0], np.cumsum(self.shard_sizes)]).tolist()
        self._held: OrderedDict[int, Future[_Shard]] = OrderedDict()
        self._lock = threading.Lock()
        self._reader: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which reads the shards itself."""
        return {**vars(self), "_held": OrderedDict(), "_lock": None, "_reader": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    @property
    def identity(self) -> str:
        """Hash of the contents, in hex."""
        return self.record["identity"]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The numbering these tokens are meant for; ValueError if the file is another one's."""
        path = self.folder / VOCABULARY
        again = f"remove {self.folder}, then make the tokens again"
        try:
            vocabulary = Vocabulary.from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{path} is missing: {again}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}: {again}") from None
        if vocabulary.identity != self.record["vocabulary"]:
            raise ValueError(f"{path} is not the vocabulary of {self.folder / DATASET}: {again}")
        return vocabulary

    def grammar(self) -> DocumentGrammar:
        """How these documents are written."""
        grammars = {name: BlockGrammar(**fields) for name, fields in self.record.get("grammars", {}).items()}
        max_side = self.record.get("max_side", 256)
        return document_grammar(self.vocabulary, self.record["digit_ids"], grammars, max_side)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> TokenDocument:
        shard, number = self._place(index)
        return self._shard(shard).documents[number]

    def relatives(self, index: int) -> Sequence[int]:
        """Numbers of the other captioned pictures of the same family in the same shard, rising."""
        shard, number = self._place(index)
        held = self._shard(shard)
        family = held.documents[number].fields.get("family")
        members = held.families.get(family, []) if family is not None else []
        return [self._starts[shard] + member for member in members if member != number]

    def reserve(self, hold: int) -> None:
        """Hold at least so many shards."""
        self._hold = max(self._hold, hold)

    def load_ahead(self, shards: Iterable[int]) -> None:
        """Have a thread read these shards, so that documents of them are at hand when they are asked for."""
        for shard in shards:
            self._ask(shard)

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, index - self._starts[shard]

    def _shard(self, shard: int) -> _Shard:
        return self._ask(shard).result()

    def _ask(self, shard: int) -> "Future[_Shard]":
        with self._lock:
            if shard in self._held:
                self._held.move_to_end(shard)
                return self._held[shard]
            if self._reader is None:
                self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="omnigram-shards")
            path, expected = self.folder / self._shards[shard]["file"], self.shard_sizes[shard]
            self._held[shard] = self._reader.submit(_Shard, path, expected)
            while len(self._held) > self._hold:
                self._held.popitem(last=False)
            return self._held[shard]
