"""The resumable loader: endless packed batches, each with the few integers from which the next one follows.

    1 positions   rank, rank + world, ... of the endless stream of documents           order.py, loads shards ahead
    2 segments    the document at a position, as words to picture, page, ...           kinds.py
    3 ids         written by the grammar, in pieces where longer than a row            writing.py
    4 rows        the fullest set of waiting documents                                 packing.py
    5 batch       tensors of one shape, and the state after it

Stages 1 to 3 are pure functions of the position, so the state is the next position and what waits to be packed.
"""

import contextlib
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..tokenizers.document_grammar import DocumentGrammar
from .artefact import identity
from .kinds import Composer
from .order import EpochOrder
from .packing import Collator, PackedBatch, WrittenDocument, fullest
from .tokens import TokenDataset
from .writing import Writer

State = dict[str, Any]


@dataclass(frozen=True)
class LoaderConfig:
    """How documents become batches.

    Attributes:
        rows, length: shape of every batch.
        seed: of order and draws.
        kinds: kind -> how often a captioned picture is written so, relative to the others.
        caption_dropout: share of the words-to-picture documents without words.
        loss_weights: modality -> weight of its targets, 1 where not named.
        partitioned: forced tokens weigh nothing, see `Collator`.
        lookahead: documents among which a row is packed.
        group_shards: shards that are held and shuffled together.
        prefetch: batches that are made ahead in a thread; 0 makes them when asked.
    """

    rows: int
    length: int
    seed: int = 0
    kinds: Mapping[str, float] = field(default_factory=lambda: {"words_to_picture": 1.0})
    caption_dropout: float = 0.1
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    partitioned: bool = False
    lookahead: int = 128
    group_shards: int = 4
    prefetch: int = 4

    def __post_init__(self) -> None:
        if self.lookahead < 1 or self.prefetch < 0:
            raise ValueError(f"lookahead={self.lookahead} must be at least 1 and prefetch={self.prefetch} at least 0")


@dataclass
class Seen:
    """Counted since the start of training, by one rank."""

    documents: int = 0  # composed, those that wait included
    split: int = 0  # of these, longer than a row and split
    dropped: int = 0  # segments longer than a row and left out
    tokens: int = 0
    pairs: int = 0  # of a token and one it sees
    places: int = 0  # rows x length of the batches

    @property
    def fill(self) -> float:
        """Share of the places that held a token."""
        return self.tokens / max(1, self.places)

    @classmethod
    def total(cls, states: Sequence[Mapping[str, Any]]) -> "Seen":
        """Counted by all ranks that left these states."""
        return cls(**{name: sum(state["seen"].get(name, 0) for state in states) for name in vars(cls())})


class PackedStream:
    """Stages 1 to 5 in one thread: `next_batch()`, with `PackedBatch.state` to go on from.

    Raises:
        ValueError: the state was left by another stream (other data, seed, length, number of ranks).
    """

    def __init__(
        self,
        dataset: TokenDataset,
        grammar: DocumentGrammar,
        config: LoaderConfig,
        rank: int = 0,
        world: int = 1,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank={rank} is not one of world={world} ranks")
        self.dataset, self.config, self.rank, self.world = dataset, config, rank, world
        self._order = EpochOrder(dataset.shard_sizes, config.seed, config.group_shards)
        self._composer = Composer(dataset, config.kinds, config.caption_dropout, config.seed)
        self._writer = Writer(grammar, config.length)
        self._collator = Collator(
            grammar.vocabulary, config.rows, config.length, config.loss_weights, config.partitioned
        )
        parts = (dataset.identity, dataset.split, config.seed, config.group_shards, config.length)
        self._stream = identity("loader", *parts, dict(config.kinds), config.caption_dropout)[:12]
        dataset.reserve(2 * config.group_shards + 1)  # this group, the next one, and who waits from the last one
        self._loads_until = -1  # position up to which shards are loaded or asked for
        self._waiting: list[tuple[int, int, WrittenDocument]] = []  # position, piece, document
        state = dict(state or {"next": rank, "queued": [], "waiting": [], "seen": {}})
        self._check(state)
        self._next, self._queued = int(state["next"]), list(state["queued"])
        self.seen = Seen(**state["seen"])
        for position, piece in state["waiting"]:
            self._waiting.append((position, piece, self._pieces(position)[0][piece]))

    @property
    def state(self) -> State:
        """JSON-able; a stream built from it goes on exactly here."""
        return {
            "stream": self._stream,
            "rank": self.rank,
            "world": self.world,
            "next": self._next,  # position
            "queued": list(self._queued),  # positions that come before it
            "waiting": [[position, piece] for position, piece, _ in self._waiting],
            "seen": dict(vars(self.seen)),
        }

    def next_batch(self) -> PackedBatch:
        """The next R rows, and the state after them."""
        rows = [self._next_row() for _ in range(self.config.rows)]
        batch = self._collator.collate(rows)
        self.seen.tokens += batch.num_tokens
        self.seen.pairs += batch.num_pairs
        self.seen.places += batch.ids.numel()
        return replace(batch, state=self.state)

    def _next_row(self) -> list[WrittenDocument]:
        self._refill()
        chosen = fullest([len(document.ids) for _, _, document in self._waiting], self.config.length)
        row = [self._waiting[index][2] for index in chosen]
        for index in reversed(chosen):
            del self._waiting[index]
        return row

    def _refill(self) -> None:
        fruitless = 0
        while len(self._waiting) < self.config.lookahead:
            if self._queued:
                position = self._queued.pop(0)
            else:
                position = self._next
                self._next += self.world
            pieces, dropped = self._pieces(position)
            self.seen.documents += 1
            self.seen.split += len(pieces) > 1
            self.seen.dropped += dropped
            self._waiting += [(position, piece, document) for piece, document in enumerate(pieces)]
            fruitless = 0 if pieces else fruitless + 1
            if fruitless > len(self._order):
                raise ValueError(f"length={self.config.length}: no document of {self.dataset.folder} fits; raise it")

    def _pieces(self, position: int) -> tuple[tuple[WrittenDocument, ...], int]:
        if position >= self._loads_until:
            self._load_ahead(position)
        epoch, index = self._order.locate(position)
        return self._writer.write(self._composer.compose(epoch, index).segments, index)

    def _load_ahead(self, position: int) -> None:
        """While this group of shards is read, a thread loads the next one."""
        self._loads_until = self._order.next_group(position)
        self.dataset.load_ahead([*self._order.shards_at(position), *self._order.shards_at(self._loads_until)])

    def _check(self, state: State) -> None:
        here = {"stream": self._stream, "rank": self.rank, "world": self.world}
        for name, value in here.items():
            if state.get(name, value) != value:
                what = {
                    "stream": "the loader's state belongs to other data, seed, kinds or length; start a new run",
                    "rank": "the loader's state belongs to another rank; give each rank its own",
                    "world": "the number of ranks changed: pass the states of all ranks through reshard()",
                }[name]
                raise ValueError(f"{what} ({name} is {value}, the state has {state[name]})")


def reshard(states: Sequence[Mapping[str, Any]], world: int) -> list[State]:
    """States of all old ranks -> states of `world` new ones: what no batch held yet is dealt anew.

    Nothing is trained on twice, but for the pieces of a document that was longer than a row and partly read.
    """
    stop = max(int(state["next"]) for state in states)
    left: set[int] = set()
    for state in states:
        left.update(state["queued"], (position for position, _ in state["waiting"]))
        left.update(range(int(state["next"]), stop, int(state["world"])))
    queued = sorted(left)
    total = dict(vars(Seen.total(states)))
    total["documents"] -= sum(len({position for position, _ in state["waiting"]}) for state in states)
    return [
        {
            "stream": states[0]["stream"],
            "rank": rank,
            "world": world,
            "next": stop + rank,
            "queued": queued[rank::world],
            "waiting": [],
            "seen": total if rank == 0 else {},
        }
        for rank in range(world)
    ]


class Loader:
    """`PackedStream` as an iterable that makes batches ahead in a thread.

    Each batch carries the state after itself, so what was made ahead but not trained on is made again after a resume.
    Iterating again goes on behind the last batch that was taken.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        grammar: DocumentGrammar,
        config: LoaderConfig,
        rank: int = 0,
        world: int = 1,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._build = lambda state: PackedStream(dataset, grammar, config, rank, world, state)
        self.dataset, self.config = dataset, config
        self._stream: PackedStream | None = self._build(state)  # a state that does not belong here is refused now
        self.state: State = self._stream.state

    def __iter__(self) -> Iterator[PackedBatch]:
        stream, self._stream = self._stream or self._build(self.state), None
        for batch in _ahead(stream, self.config.prefetch) if self.config.prefetch else _when_asked(stream):
            self.state = batch.state
            yield batch

    @property
    def seen(self) -> Seen:
        """Counts up to the last batch taken, of this rank."""
        return Seen(**self.state["seen"])


def _when_asked(stream: PackedStream) -> Iterator[PackedBatch]:
    while True:
        yield stream.next_batch()


def _ahead(stream: PackedStream, number: int) -> Iterator[PackedBatch]:
    """Batches of a stream, made ahead by a thread that ends with this iterator; its errors are raised here."""
    made: queue.Queue[PackedBatch | BaseException] = queue.Queue(maxsize=number)
    stopped = threading.Event()

    def put(item: PackedBatch | BaseException) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                made.put(item, timeout=0.1)
                break

    def work() -> None:
        try:
            while not stopped.is_set():
                put(stream.next_batch())
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="omnigram-loader", daemon=True)
    thread.start()
    try:
        while True:
            item = made.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
