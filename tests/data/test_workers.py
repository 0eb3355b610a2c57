"""Processes that make batches: the same as their streams make, other numbers of them, and one that dies."""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from made_tokens import captioned, token_folder

from omnigram.data.loader import Loader
from omnigram.data.order import EpochOrder
from omnigram.data.packing import PackedBatch
from omnigram.data.stream import LoaderConfig, PackedStream
from omnigram.data.stream_state import Seen
from omnigram.data.tokens import TokenDataset

DOCUMENTS = 240
CONFIG = LoaderConfig(rows=2, length=40, lookahead=6, prefetch=2, workers=2, caption_dropout=0.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    """Two shards: fewer than there are streams."""
    shards = [[captioned(n, length=2 + n % 5) for n in range(start, DOCUMENTS, 2)] for start in (0, 1)]
    return TokenDataset(token_folder(tmp_path_factory.mktemp("tokens"), shards), "train")


def take(loader: Loader, number: int) -> list[PackedBatch]:
    batches: Any = iter(loader)
    taken = list(islice(batches, number))
    batches.close()
    return taken


@pytest.fixture(scope="module")
def stopped(dataset: TokenDataset) -> list[list[PackedBatch]]:
    """What 2 ranks of 2 workers gave before they were stopped: 7 batches and 4."""
    loaders = [Loader(dataset, dataset.grammar(), CONFIG, rank, world=2) for rank in range(2)]
    return [take(loader, number) for loader, number in zip(loaders, (7, 4), strict=True)]


def test_each_gives_what_its_stream_gives_in_turn(dataset: TokenDataset, stopped: list[list[PackedBatch]]) -> None:
    for rank, batches in enumerate(stopped):
        streams = [PackedStream(dataset, dataset.grammar(), CONFIG, 2 * rank + worker, 4) for worker in range(2)]
        for number, batch in enumerate(batches):
            expected = streams[number % 2].next_batch()
            for name, value in vars(expected).items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(getattr(batch, name), value), name
            assert batch.state["streams"][-1] == expected.state, "whose turn is next comes first"
            assert len(json.dumps(batch.state)) < 2000


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (3, 0), (1, 2)])
def test_another_number_of_ranks_and_workers_goes_on_with_what_was_not_seen(
    dataset: TokenDataset, stopped: list[list[PackedBatch]], world: int, workers: int
) -> None:
    states = [batches[-1].state for batches in stopped]
    seen = Counter(number for batches in stopped for batch in batches for number in batch.sources.tolist())
    assert max(seen.values()) == 1
    config, left = replace(CONFIG, workers=workers, prefetch=0), list[Any]()
    for rank in range(world):
        loader = Loader(dataset, dataset.grammar(), config, rank, world, state=json.loads(json.dumps(states)))
        batches: Any = iter(loader)
        # until every position of the epoch is behind this rank: what comes then is the next epoch
        while any(before_epoch_ends(state) for state in streams(loader)):
            seen.update(next(batches).sources.tolist())
            assert sum(seen.values()) < 3 * DOCUMENTS
        batches.close()
        left += streams(loader)
    # what was read of the epoch after it: all positions up to the furthest, without those that still wait
    reached = max(state["next"] for state in left)
    waits = {position for state in left for position in waiting(state)}
    waits.update(p for state in left for p in range(state["next"], reached, state["world"]))
    order = EpochOrder(dataset.shard_sizes, CONFIG.seed, CONFIG.group_shards)
    expected = Counter(order.locate(position)[1] for position in range(reached) if position not in waits)
    assert seen == expected, "each document once an epoch, and none of those that wait"
    assert all(expected[number] for number in range(DOCUMENTS)), "the union is the epoch"


def streams(loader: Loader) -> list[Any]:
    return loader.state.get("streams", [loader.state])


def waiting(state: Any) -> list[int]:
    """Positions that a stream has passed and not given yet."""
    queued = [entry if isinstance(entry, int) else entry[0] for entry in state["queued"]]
    return [*queued, *(position for position, _ in state["waiting"])]


def before_epoch_ends(state: Any) -> bool:
    """Whether a stream still has to give a document of the first epoch."""
    return min([state["next"], *waiting(state)]) < DOCUMENTS


def test_counts_are_those_of_all_workers(stopped: list[list[PackedBatch]]) -> None:
    seen = Seen.of([batches[-1].state for batches in stopped])
    assert seen.places == 11 * 2 * 40
    assert seen.tokens == sum(batch.num_tokens for batches in stopped for batch in batches)


@pytest.fixture
def running(dataset: TokenDataset) -> Iterator[tuple[Any, list[int]]]:
    """A loader's batches, one of which was taken, and its processes."""
    batches: Any = iter(Loader(dataset, dataset.grammar(), CONFIG))
    next(batches)
    here = f"/proc/{os.getpid()}/task"
    children = [int(child) for task in os.listdir(here) for child in Path(here, task, "children").read_text().split()]
    workers = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    yield batches, workers
    batches.close()


def test_one_that_is_killed_is_named_and_nothing_hangs(running: tuple[Any, list[int]]) -> None:
    batches, workers = running
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker, signal.SIGINT)
        os.kill(worker, signal.SIGTERM)  # as a scheduler sends it to all: the parent ends them
    next(batches)
    os.kill(workers[1], signal.SIGKILL)
    since = time.monotonic()
    with pytest.raises(ChildProcessError) as told:
        list(batches)  # what it had made before is given first
    assert time.monotonic() - since < 30
    assert f"worker 1 of the loader (process {workers[1]}) was killed by signal 9, for lack" in str(told.value)
    assert "\n" not in str(told.value)
    assert not Path(f"/proc/{workers[0]}").exists(), "the other one is ended with the loader"


def test_what_one_raises_arrives_as_it_is(dataset: TokenDataset, tmp_path: Path) -> None:
    folder = token_folder(tmp_path, [[captioned(n) for n in range(4)]])
    batches = iter(Loader(TokenDataset(folder, "train"), dataset.grammar(), replace(CONFIG, workers=1)))
    (folder / "train-000000.tar").unlink()
    with pytest.raises(ValueError, match=r"train-000000.tar is missing: remove") as told:
        next(batches)
    assert "\n" not in str(told.value)
