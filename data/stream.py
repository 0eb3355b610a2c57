"""The packed batches of one stream of documents, each with the few integers from which the next one follows.

    1 positions   rank, rank + world, ... of the endless stream of documents           mixture.py
    2 documents   the one at a position, of a source and epoch, shards loaded ahead    order.py, tokens.py
    3 segments    as words to picture, picture to words, page, ...                     kinds.py
    4 ids         written by the grammar, in pieces where longer than a row            writing.py
    5 rows        the fullest set of waiting documents                                 packing.py
    6 batch       tensors of one shape, and the state after it

Stages 1 to 4 are pure functions of the position, so the state is the next position and what waits to be packed.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..tokenizers.document_grammar import DocumentGrammar
from .artefact import identity
from .kinds import Composer
from .mixture import Mixture, MixtureOrder, Source
from .order import EpochOrder
from .packing import Collator, PackedBatch, WrittenDocument, fullest
from .shards import DamagedSample
from .stream_state import Seen, State, check_state, grouped
from .tokens import TokenDataset
from .writing import Writer

DAMAGE_WINDOW = 1000  # documents at least, of which a share may be damaged


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
        lookahead: documents among which a row is packed; more where they would not fill two.
        group_shards: shards of a source that are held and shuffled together.
        prefetch: batches that are made ahead in a thread; 0 makes them when asked.
        workers: processes that make batches, each a stream of its own; 0 makes them in this one.
        max_damaged: share of a source's documents that may be damaged, counted anew for each epoch (of this stream).
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
    workers: int = 0
    max_damaged: float = 0.01

    def __post_init__(self) -> None:
        if self.lookahead < 1 or self.prefetch < 0 or self.workers < 0:
            raise ValueError(
                f"lookahead={self.lookahead} must be at least 1, prefetch={self.prefetch} and workers={self.workers} "
                "at least 0"
            )
        if not 0 <= self.max_damaged <= 1:
            raise ValueError(f"max_damaged={self.max_damaged} is a share, from 0 to 1")


class _Reader:
    """One source of the mixture in one stream: its order, its composer, and how much of it is damaged."""

    def __init__(self, mixture: Mixture, number: int, config: LoaderConfig, world: int) -> None:
        self.source: Source = mixture.sources[number]
        self.first = mixture.starts[number]  # number of its first document in the mixture
        seed = config.seed
        if len(mixture.sources) > 1:  # or sources of one size would be read in the same order
            seed = int(identity(seed, self.source.name)[:15], 16)
        dataset = self.source.dataset
        self._order = EpochOrder(dataset.shard_sizes, seed, config.group_shards)
        self._composer = Composer(dataset, config.kinds, config.caption_dropout, seed)
        dataset.reserve(2 * config.group_shards + 1)  # this group, the next one, and who waits from the last one
        self._loads_until = -1  # position up to which shards are loaded or asked for
        self.window = max(DAMAGE_WINDOW, -(-len(dataset) // world))

    def read(self, position: int, writer: Writer) -> tuple[tuple[WrittenDocument, ...], int]:
        """The document at a position of this source, in pieces, and its segments that were dropped."""
        if position >= self._loads_until:
            self._load_ahead(position)
        epoch, index = self._order.locate(position)
        return writer.write(self._composer.compose(epoch, index).segments, self.first + index)

    def _load_ahead(self, position: int) -> None:
        """While this group of shards is read, a thread loads the next one."""
        order = self._order
        self._loads_until = order.next_group(position)
        self.source.dataset.load_ahead([*order.shards_at(position), *order.shards_at(self._loads_until)])


class PackedStream:
    """All stages in one thread: `next_batch()`, with `PackedBatch.state` to go on from.

    Raises:
        ValueError: the state was left by another stream (other data, seed, length, number of ranks).
    """

    def __init__(
        self,
        dataset: TokenDataset | Mixture,
        grammar: DocumentGrammar,
        config: LoaderConfig,
        rank: int = 0,
        world: int = 1,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank={rank} is not one of world={world} ranks")
        self.mixture, self.config, self.rank, self.world = Mixture.of(dataset), config, rank, world
        self._mix = MixtureOrder([source.weight for source in self.mixture.sources], config.seed)
        self._readers = [_Reader(self.mixture, number, config, world) for number in range(len(self.mixture.sources))]
        self._writer = Writer(grammar, config.length)
        self._collator = Collator(
            grammar.vocabulary, config.rows, config.length, config.loss_weights, config.partitioned
        )
        self._stream = stream_name(self.mixture, config)
        state = dict(state or {"next": rank, "queued": [], "waiting": [], "seen": {}})
        check_state(state, self._stream, rank, world)
        self._next, self._queued = int(state["next"]), deque(state["queued"])
        self._windows: dict[str, list[int]] = {name: list(counts) for name, counts in state.get("windows", {}).items()}
        self.seen = Seen.of(state)
        self._waiting: list[tuple[int, int, WrittenDocument]] = []  # position, piece, document
        self._tokens_waiting = self._fruitless = 0
        for position, pieces in grouped(state["waiting"]):
            self._admit(position, pieces)

    @property
    def state(self) -> State:
        """JSON-able; a stream built from it goes on exactly here."""
        return {
            "stream": self._stream,
            "rank": self.rank,
            "world": self.world,
            "next": self._next,  # position
            "queued": list(self._queued),  # that comes before it: a position, or [position, piece, ...]
            "waiting": [[position, piece] for position, piece, _ in self._waiting],
            "windows": {name: list(counts) for name, counts in self._windows.items()},
            "seen": asdict(self.seen),
        }

    def next_batch(self) -> PackedBatch:
        """The next R rows, and the state after them."""
        rows = [self._next_row() for _ in range(self.config.rows)]
        batch = self._collator.collate(rows)
        self.seen.tokens += batch.num_tokens
        self.seen.pairs += batch.num_pairs
        self.seen.places += batch.ids.numel()
        return replace(batch, state=self.state)

    def close(self) -> None:
        """Nothing is left open."""

    def _next_row(self) -> list[WrittenDocument]:
        self._refill()
        chosen = fullest([len(document.ids) for _, _, document in self._waiting], self.config.length)
        row = [self._waiting[index][2] for index in chosen]
        for index in reversed(chosen):
            del self._waiting[index]
        self._tokens_waiting -= sum(map(len, row))
        return row

    def _refill(self) -> None:
        while len(self._waiting) < self.config.lookahead or self._tokens_waiting < 2 * self.config.length:
            if not self._queued:
                self._admit(self._next)
                self._next += self.world
            elif isinstance(entry := self._queued.popleft(), int):
                self._admit(entry)
            else:
                self._admit(entry[0], entry[1:])

    def _admit(self, position: int, counted: Sequence[int] | None = None) -> None:
        """Let the document at a position wait, or those of its pieces that are left of one that was counted before."""
        number, within = self._mix.locate(position)
        reader = self._readers[number]
        name = reader.source.name
        try:
            pieces, dropped = reader.read(within, self._writer)
        except DamagedSample as error:
            self._leave_out(reader, error)
            return
        if counted is None:
            self._window(reader)
            self.seen.documents += 1
            self.seen.sources[name] = self.seen.sources.get(name, 0) + 1
            self.seen.split += len(pieces) > 1
            self.seen.dropped += dropped
        for piece in range(len(pieces)) if counted is None else counted:
            self._waiting.append((position, piece, pieces[piece]))
            self._tokens_waiting += len(pieces[piece])
        self._fruitless = 0 if pieces else self._fruitless + 1
        if self._fruitless > len(self.mixture):
            folders = " or ".join(str(source.dataset.folder) for source in self.mixture.sources)
            raise ValueError(f"length={self.config.length}: no document of {folders} fits; raise it")

    def _window(self, reader: _Reader) -> list[int]:
        """[documents, damaged] of a source in its running window, with this document."""
        window = self._windows.setdefault(reader.source.name, [0, 0])
        if window[0] == reader.window:
            window[:] = [0, 0]
        window[0] += 1
        return window

    def _leave_out(self, reader: _Reader, error: DamagedSample) -> None:
        self.seen.damaged[error.reason] = self.seen.damaged.get(error.reason, 0) + 1
        window = self._window(reader)
        window[1] += 1
        share = self.config.max_damaged
        if window[1] > share * reader.window or window[1] == reader.window:
            raise ValueError(
                f"{window[1]} of the last {window[0]} documents of {reader.source.name} are damaged, and "
                f"loader.max_damaged={share} allows {int(share * reader.window)} of {reader.window}; the last one is "
                f"{error}: make the data set again"
            ) from None


def stream_name(mixture: Mixture, config: LoaderConfig) -> str:
    """What a state belongs to: all that decides which documents there are and how they are written, in a hash."""
    parts = (mixture.identity, mixture.split, config.seed, config.group_shards, config.length)
    return identity("loader", *parts, dict(config.kinds), config.caption_dropout)[:12]
