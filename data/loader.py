"""The resumable loader: endless packed batches, made ahead in a thread or in processes.

Each batch carries the state after itself, so what was made ahead but not trained on is made again after a resume. A
state may be resumed on any number of ranks and workers (docs/loader.md).
"""

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any, Protocol

from ..tokenizers.document_grammar import DocumentGrammar
from .mixture import Mixture
from .packing import PackedBatch
from .stream import LoaderConfig, PackedStream, stream_name
from .stream_state import Seen, State, check_state, reshard, streams_of
from .tokens import TokenDataset
from .workers import Workers


class Loader:
    """The batches of one rank. Iterating again goes on behind the last batch that was taken.

    Arguments:
        dataset: one data set of tokens, or several.
        rank, world: this rank takes every world-th document; its workers share them in the same way.
        state: where to go on: the state of this rank, or those of all ranks of a run with any numbers of ranks and
            workers, as a list. None begins.

    Raises:
        ValueError: the state was left by another run, or those of all ranks are needed.
    """

    def __init__(
        self,
        dataset: TokenDataset | Mixture,
        grammar: DocumentGrammar,
        config: LoaderConfig,
        rank: int = 0,
        world: int = 1,
        state: Any = None,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank={rank} is not one of world={world} ranks")
        self.mixture, self.grammar, self.config = Mixture.of(dataset), grammar, config
        self._count = max(1, config.workers)
        self._first, self._world = rank * self._count, world * self._count  # streams
        states = self._states(state)
        stream = stream_name(self.mixture, config)
        for one in states:
            check_state(one, stream, int(one["rank"]), self._world)
        self.state: State = {"streams": states} if config.workers else states[0]
        self._made = None if config.workers else self._start()  # faults of the settings are told now

    def _states(self, state: Any) -> list[State]:
        """Of this rank's streams, the one whose turn is next first."""
        mine = range(self._first, self._first + self._count)
        found = [dict(one) for one in streams_of(state if state is not None else [])]
        if not found:
            name = stream_name(self.mixture, self.config)
            begin = {"stream": name, "world": self._world, "queued": [], "waiting": [], "seen": {}}
            return [{**begin, "rank": stream, "next": stream} for stream in mine]
        if {int(one["world"]) for one in found} != {self._world}:
            found = reshard(found, self._world)
        states = [one for one in found if int(one["rank"]) in mine]
        if len(states) != self._count:
            there = sorted(int(one["rank"]) for one in found)
            raise ValueError(
                f"the loader's state belongs to another rank (streams {there} of {self._world}, this one has "
                f"{mine.start} to {mine.stop - 1}); give each rank its own, or those of all"
            )
        return states

    def _start(self) -> PackedStream | Workers:
        states = streams_of(self.state)
        numbers = [int(state["rank"]) for state in states]
        parts = (self.mixture, self.grammar, self.config)
        if self.config.workers:
            return Workers(*parts, numbers, self._world, [dict(state) for state in states])
        return PackedStream(*parts, numbers[0], self._world, states[0])

    def __iter__(self) -> Iterator[PackedBatch]:
        made, self._made = self._made or self._start(), None
        for batch in _ahead(made, self.config.prefetch) if self.config.prefetch else _when_asked(made):
            self.state = batch.state
            yield batch

    @property
    def seen(self) -> Seen:
        """Counts up to the last batch taken, of this rank."""
        return Seen.of(self.state)


class _Maker(Protocol):
    """What makes batches: `PackedStream` and `Workers`."""

    def next_batch(self) -> PackedBatch: ...

    def close(self) -> None: ...


def _when_asked(made: _Maker) -> Iterator[PackedBatch]:
    with contextlib.closing(made):
        while True:
            yield made.next_batch()


def _ahead(made: _Maker, number: int) -> Iterator[PackedBatch]:
    """Batches made ahead by a thread that ends with this iterator; its errors are raised here."""
    ready: queue.Queue[PackedBatch | BaseException] = queue.Queue(maxsize=number)
    stopped = threading.Event()

    def put(item: PackedBatch | BaseException) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                break

    def work() -> None:
        try:
            while not stopped.is_set():
                put(made.next_batch())
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="omnigram-loader", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        made.close()
        thread.join(timeout=5)  # one that waits for a network ends with the process
