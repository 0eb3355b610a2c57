"""Token shards at an address: a bad network loses none, and what is damaged where it lies costs only itself."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from made_damage import KEYS, QUICK, checked_folder, member, state
from made_server import Faulty, served, told

from omnigram.data.address_errors import AddressError
from omnigram.data.shard_cache import ShardCache
from omnigram.data.tokens import TokenDataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checked_folder(tmp_path / "made")


@pytest.fixture
def server(folder: Path) -> Iterator[Faulty]:
    with served(folder.parent) as faulty:
        yield faulty


def test_tokens_at_an_address(server: Faulty, folder: Path, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache")
    local = TokenDataset(folder, "train")
    for _ in range(2):
        dataset = TokenDataset(f"{server.base}/made", "train", cache=cache, network=QUICK)
        assert dataset.identity == local.identity
        assert dataset.vocabulary.identity == local.vocabulary.identity
        assert state(dataset) == KEYS
        for index in range(len(local)):
            for one, other in zip(local[index].segments, dataset[index].segments, strict=True):
                assert one.codes.tolist() == other.codes.tolist()
    assert len([request for request in server.requests if request.endswith(".tar")]) == 2
    assert state(TokenDataset(f"{server.base}/made", "train", cache=cache, network=QUICK).of_split("train")) == KEYS
    assert state(TokenDataset(f"{server.base}/made/", "train", network=QUICK)) == KEYS  # without a cache


def test_tokens_through_a_bad_network_are_all_there(server: Faulty, tmp_path: Path) -> None:
    for cache in (ShardCache(tmp_path / "cache"), None):
        server.faults = [500, "shut", ("drop", 20), ("stall", 30), ("cut", 10**6), 503, ("drop", 1000), ("drop", 3000)]
        with told(r"attempt \d of 3 in"):
            assert state(TokenDataset(f"{server.base}/made", "train", cache=cache, network=QUICK)) == KEYS
        assert not server.faults


def test_tokens_corrupted_on_the_way_are_fetched_anew(server: Faulty, tmp_path: Path) -> None:
    dataset = TokenDataset(f"{server.base}/made", "train", cache=ShardCache(tmp_path / "cache"), network=QUICK)
    server.faults = [("flip", 1600)]
    with told(r"train-000000\.tar has another sha256 than its data set says: fetched anew"):
        assert state(dataset) == KEYS
    dataset = TokenDataset(f"{server.base}/made", "train", network=QUICK)
    server.faults = [("flip", 1600)]
    with told("documents are damaged: .*", "fetched anew"):
        assert state(dataset) == KEYS


def test_tokens_damaged_where_they_lie_cost_only_what_is_damaged(server: Faulty, folder: Path, tmp_path: Path) -> None:
    path = folder / "train-000000.tar"
    path.write_bytes(path.read_bytes()[: member(path, "doc0004.json").offset + 100])
    for cache in (ShardCache(tmp_path / "cache"), None):
        dataset = TokenDataset(f"{server.base}/made", "train", cache=cache, network=QUICK)
        again = "another sha256 .*: fetched anew" if cache else "fetched anew"
        with told(again, "2 of 6 documents are damaged: shard is cut short"):
            assert state(dataset) == [*KEYS[:4], *["shard is cut short"] * 2, *KEYS[6:]]


def test_an_address_that_is_lost_stops_and_can_be_asked_again(server: Faulty) -> None:
    dataset = TokenDataset(f"{server.base}/made", "train", network=QUICK)
    server.faults = [500] * 3
    with told("attempt"), pytest.raises(AddressError, match="given up after 3 attempts"):
        dataset[0]
    assert state(dataset) == KEYS
    with pytest.raises(AddressError, match=r"none/dataset\.json cannot be read: 404"):
        TokenDataset(f"{server.base}/none", "train", network=QUICK)


def test_tokens_in_a_bucket(folder: Path, tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    try:
        system.put(f"{folder}/", "/bucket/made/", recursive=True)
        for cache in (ShardCache(tmp_path / "cache"), None):
            assert state(TokenDataset("memory://bucket/made", "train", cache=cache)) == KEYS
        assert len(list((tmp_path / "cache").glob("*.tar"))) == 2
    finally:
        system.rm("/bucket", recursive=True)
