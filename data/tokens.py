"""The data set of token documents: random access by number through the shards that are held in memory.

It lies in a folder, or at an address, from where its shards come through a cache on the local disk.
"""

import contextlib
import queue
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..tokenizers.document_grammar import DocumentGrammar
from ..tokenizers.grammar import BlockGrammar
from ..tokenizers.modality import document_grammar
from ..tokenizers.vocabulary import Vocabulary
from .addresses import is_local, join, local_path, name_of, open_address, read_address
from .document import TokenDocument
from .record import DATASET, MAX_RECORD, TOKENS, VOCABULARY, read_record
from .remote import Network
from .shard_cache import ChecksumError, ShardCache
from .shards import DamagedSample, ShardError
from .token_shard import Damage, TokenShard, read_shard_as_found

Wanted = queue.SimpleQueue[tuple[Future[TokenShard], int] | None]  # shards to be read; None ends the thread
MAX_DOCUMENTS = 10**8  # of a shard, so that a damaged dataset.json does not ask for all memory


class TokenDataset:
    """Token documents of one split, numbered through its shards.

    A document that cannot be read is a `DamagedSample` when it is asked for, and no other one is the worse for it: the
    others keep their numbers.

    Arguments:
        folder: what `make tokens` left: a folder, or the address of one (https://…, s3://…).
        split: one of `splits`.
        hold: shards in memory at most; a loader raises it to what it needs (`reserve`).
        cache: keeps shards of an address on this machine; None reads them from there each time.
        network: how patient to be with an address.

    Raises:
        FileNotFoundError, ValueError, OSError: no finished token data set, or none of that split.
    """

    def __init__(
        self,
        folder: Path | str,
        split: str,
        hold: int = 8,
        *,
        cache: ShardCache | None = None,
        network: Network | None = None,
    ) -> None:
        self.folder: Path | str = local_path(folder) if is_local(folder) else str(folder)
        self.split, self._hold, self._cache, self._network = split, hold, cache, network
        self.record = read_record(self.folder, TOKENS, network)
        self._shards = _listed(self.record, split, name_of(self.folder))
        self.shard_sizes: tuple[int, ...] = tuple(shard["documents"] for shard in self._shards)
        self._starts = np.concatenate([[0], np.cumsum(self.shard_sizes)]).tolist()
        self._held: OrderedDict[int, Future[TokenShard]] = OrderedDict()
        self._lock = threading.Lock()
        self._wanted: Wanted | None = None  # of the thread that reads

    def of_split(self, split: str) -> "TokenDataset":
        """Another split of the same data set."""
        return TokenDataset(self.folder, split, cache=self._cache, network=self._network)

    def like(self, folder: Path | str) -> "TokenDataset":
        """The same split of another data set, read in the same way."""
        return TokenDataset(folder, self.split, cache=self._cache, network=self._network)

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which reads the shards itself."""
        return {**vars(self), "_held": OrderedDict(), "_lock": None, "_wanted": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    @property
    def identity(self) -> str:
        """Hash of the contents, in hex."""
        return self.record["identity"]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The numbering these tokens are meant for; ValueError if the file is another one's."""
        path, here = join(self.folder, VOCABULARY), name_of(self.folder)
        again = f"remove {here}, then make the tokens again"
        try:
            vocabulary = Vocabulary.from_json(read_address(path, MAX_RECORD, self._network).decode("utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{name_of(path)} is missing: {again}") from None
        except ValueError as error:
            raise ValueError(f"{name_of(path)}: {error}: {again}") from None
        if vocabulary.identity != self.record["vocabulary"]:
            raise ValueError(f"{name_of(path)} is not the vocabulary that {DATASET} beside it names: {again}")
        return vocabulary

    def grammar(self) -> DocumentGrammar:
        """How these documents are written."""
        grammars = {name: BlockGrammar(**fields) for name, fields in self.record.get("grammars", {}).items()}
        max_side = self.record.get("max_side", 256)
        return document_grammar(self.vocabulary, self.record["digit_ids"], grammars, max_side)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> TokenDocument:
        """The document of a number. DamagedSample for one that cannot be read; OSError when its address is lost."""
        shard, number = self._place(index)
        document = self._shard(shard).documents[number]
        if isinstance(document, Damage):
            raise DamagedSample(document.reason, name_of(self._address(shard)), document.key)
        return document

    def is_intact(self, index: int) -> bool:
        """Whether the document of a number can be read."""
        shard, number = self._place(index)
        return not isinstance(self._shard(shard).documents[number], Damage)

    def intact(self) -> Iterator[int]:
        """Numbers of the documents that can be read, rising."""
        for shard, start in enumerate(self._starts[:-1]):
            for number, document in enumerate(self._shard(shard).documents):
                if not isinstance(document, Damage):
                    yield start + number

    def relatives(self, index: int) -> Sequence[int]:
        """Numbers of the other captioned pictures of the same family in the same shard, rising; no damaged ones."""
        shard, number = self._place(index)
        held = self._shard(shard)
        document = held.documents[number]
        family = None if isinstance(document, Damage) else document.fields.get("family")
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

    def _shard(self, shard: int) -> TokenShard:
        return self._ask(shard).result()

    def _address(self, shard: int) -> Path | str:
        return join(self.folder, self._shards[shard]["file"])

    def _ask(self, shard: int) -> "Future[TokenShard]":
        with self._lock:
            held = self._held.get(shard)
            if held is not None and not (held.done() and held.exception()):  # one that failed is tried anew
                self._held.move_to_end(shard)
                return held
            if self._wanted is None:
                self._wanted = queue.SimpleQueue()
                weakref.finalize(self, self._wanted.put, None)
                # not of an executor, for whose threads the end of a process waits: a network may be slow
                given = (weakref.ref(self), self._wanted)
                threading.Thread(target=_serve, args=given, name="omnigram-shards", daemon=True).start()
            self._held[shard] = Future()
            self._wanted.put((self._held[shard], shard))
            self._held.move_to_end(shard)
            while len(self._held) > self._hold:
                self._held.popitem(last=False)
            return self._held[shard]

    def _read(self, shard: int) -> TokenShard:
        address, sha256 = self._address(shard), self._shards[shard].get("sha256")
        name, expected = name_of(address), self.shard_sizes[shard]
        if isinstance(address, Path):
            try:
                stream = open(address, "rb")  # noqa: SIM115 - closed below
            except FileNotFoundError:
                raise ShardError(f"{address} is missing: remove {self.folder}, then make the tokens again") from None
            with stream:
                return read_shard_as_found(stream, name, expected, sha256)
        if self._cache is not None:
            with contextlib.suppress(ChecksumError), self._cache.open(address, sha256, self._network) as stream:
                return read_shard_as_found(stream, name, expected, sha256)
        else:
            with open_address(address, self._network) as stream:
                found = read_shard_as_found(stream, name, expected, sha256)
            if not found.damaged:
                return found
            warnings.warn(f"{name}: fetched anew", stacklevel=2)
        with open_address(address, self._network) as stream:  # what can be read of it may still be good
            return read_shard_as_found(stream, name, expected, sha256)


def _serve(of: weakref.ref[TokenDataset], wanted: Wanted) -> None:
    """Read what a data set is asked for, one after the other, as long as it is there."""
    while (asked := wanted.get()) is not None:
        dataset, (held, shard) = of(), asked
        try:
            if dataset is not None:
                held.set_result(dataset._read(shard))
        except BaseException as error:
            held.set_exception(error)
        del asked, held, dataset  # or the last shard, and with it the data set, would stay


def _listed(record: dict[str, Any], split: str, name: str) -> list[dict[str, Any]]:
    """The shards of a split as dataset.json lists them. ValueError for another split, or an impossible list."""
    if split not in record["splits"]:
        raise ValueError(f"{name} has no split {split!r}: it has {', '.join(record['splits'])}")
    shards = record["splits"][split]["shards"]
    for shard in shards:
        file, count = shard["file"], shard["documents"]
        if not isinstance(file, str) or file in (".", "..") or set(file) & set("/\\\0"):
            raise ValueError(f"{name}: {DATASET} names the shard {file!r}, which is no file of that folder")
        if type(count) is not int or not 0 <= count < MAX_DOCUMENTS:
            raise ValueError(f"{name}: {DATASET} says that {file} holds {count!r} documents")
    return shards
