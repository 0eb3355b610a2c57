"""The cache of shards: whole or fetched anew, bounded, shared by processes, and no loss when the disk is full."""

import errno
import hashlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_server import Faulty, served, told

from omnigram.data import artefact
from omnigram.data.address_errors import AddressError
from omnigram.data.remote import Network
from omnigram.data.shard_cache import ChecksumError, ShardCache, default_folder

SIZE = 200_000
QUICK = Network(attempts=3, timeout=1.0, pause=0.01)


def content(number: int) -> bytes:
    return bytes([number]) * SIZE


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Faulty]:
    (tmp_path / "web").mkdir()
    for number in range(6):
        (tmp_path / "web" / f"{number}.tar").write_bytes(content(number))
    with served(tmp_path / "web") as faulty:
        yield faulty


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 3 * SIZE)


def read(cache: ShardCache, server: Faulty, number: int, known: bool = True) -> bytes:
    with cache.open(f"{server.base}/{number}.tar", sha(content(number)) if known else None, QUICK) as file:
        return file.read()


def stored(cache: ShardCache) -> int:
    return sum(path.stat().st_size for path in cache.folder.glob("*.tar"))


def test_what_was_fetched_is_not_fetched_again(cache: ShardCache, server: Faulty) -> None:
    for _ in range(3):
        assert read(cache, server, 1) == content(1)
    assert server.requests == ["/1.tar"]
    assert [path.stem for path in cache.folder.glob("*.tar")] == [sha(content(1))]


def test_a_damaged_copy_is_fetched_anew(cache: ShardCache, server: Faulty) -> None:
    read(cache, server, 1)
    (copy,) = cache.folder.glob("*.tar")
    for damaged in (content(1)[:-1], content(1)[:-1] + b"\2", b""):
        copy.write_bytes(damaged)
        with told(r"\.tar, the copy of http://.*/1\.tar, is damaged or old: fetched anew"):
            assert read(cache, server, 1) == content(1)
    assert copy.read_bytes() == content(1)
    assert len(server.requests) == 4


def test_what_came_damaged_is_fetched_again(cache: ShardCache, server: Faulty) -> None:
    server.faults = [("flip", 77)]
    with told(r"1\.tar has another sha256 than its data set says: fetched anew"):
        assert read(cache, server, 1) == content(1)
    server.faults = [("cut", 1000)]
    with told("another sha256"):
        assert read(cache, server, 2) == content(2)


def test_what_lies_there_damaged_is_an_error_and_not_kept(cache: ShardCache, server: Faulty) -> None:
    (server.folder / "1.tar").write_bytes(b"something else")
    with told("another sha256"), pytest.raises(ChecksumError, match=r"1\.tar .*also when fetched again") as caught:
        read(cache, server, 1)
    assert "\n" not in str(caught.value)
    assert not [path for path in cache.folder.iterdir() if path.is_file()]


def test_lost_connections_leave_nothing_half(cache: ShardCache, server: Faulty) -> None:
    server.faults = [("drop", 5000), 500, ("stall", 10)]
    with told("attempt . of 3"):
        assert read(cache, server, 1) == content(1)
    server.faults = [500] * 3
    with told("attempt"), pytest.raises(AddressError, match="given up after 3 attempts"):
        read(cache, server, 2)
    assert len([path for path in cache.folder.iterdir() if path.is_file()]) == 1


def test_without_a_known_checksum_the_server_is_asked(cache: ShardCache, server: Faulty) -> None:
    assert read(cache, server, 1, known=False) == content(1)
    assert read(cache, server, 1, known=False) == content(1)
    assert len(server.requests) == 2
    (server.folder / "1.tar").write_bytes(content(1) + b"more")
    with told("is damaged or old"):
        assert read(cache, server, 1, known=False) == content(1) + b"more"
    server.faults = [404]  # the copy serves while the server does not
    assert read(cache, server, 1, known=False) == content(1) + b"more"
    (copy,) = cache.folder.glob("*.tar")
    copy.write_bytes(content(1) + b"mire")
    with told("is damaged or old"):
        assert read(cache, server, 1, known=False) == content(1) + b"more"


def test_those_used_longest_ago_make_room(cache: ShardCache, server: Faulty) -> None:
    for age, number in enumerate((0, 1, 2)):
        read(cache, server, number)
        os.utime(cache.folder / f"{sha(content(number))}.tar", (1000 + age, 1000 + age))
    read(cache, server, 0)  # used now
    read(cache, server, 3)
    kept = {path.stem for path in cache.folder.glob("*.tar")}
    assert kept == {sha(content(number)) for number in (0, 2, 3)}
    assert stored(cache) <= cache.max_bytes
    for number in range(6):
        assert read(cache, server, number, known=False) == content(number)
        assert stored(cache) <= cache.max_bytes
    notes = {path.stem for path in cache.folder.glob("*.json")}
    assert notes <= {path.stem for path in cache.folder.glob("*.tar")}


def test_a_file_in_use_stays(cache: ShardCache, server: Faulty) -> None:
    opened = [cache.open(f"{server.base}/{number}.tar", sha(content(number)), QUICK) for number in (0, 1, 2)]
    with told(r"no room in the cache .* \(all of it is in use\): shards are read from their address each time"):
        assert read(cache, server, 3) == content(3)
    assert [file.read() for file in opened] == [content(0), content(1), content(2)]
    assert len(list(cache.folder.glob("*.tar"))) == 3
    for file in opened:
        file.close()
    fresh = ShardCache(cache.folder, cache.max_bytes)  # another process would find it so
    assert read(fresh, server, 3) == content(3)
    assert (cache.folder / f"{sha(content(3))}.tar").exists()


def test_a_shard_larger_than_the_cache_is_read_from_where_it_is(tmp_path: Path, server: Faulty) -> None:
    for server.lengths in (True, False):
        cache = ShardCache(tmp_path / "small", SIZE - 1)
        with told("no room in the cache"):
            assert read(cache, server, 1) == content(1)
        assert not list(cache.folder.glob("*.tar"))
        assert not list(cache.folder.glob(".*.partial"))


@pytest.mark.parametrize("lengths", [True, False])
def test_a_shard_larger_than_the_cache_keeps_no_other_out(tmp_path: Path, server: Faulty, lengths: bool) -> None:
    cache = ShardCache(tmp_path / "cache", 3 * SIZE)
    big = content(1) * 4
    server.lengths = lengths
    (server.folder / "1.tar").write_bytes(big)
    with told(r"no room in the cache .* \(.*large.*\): shards as large as that are read from their address") as said:
        for _ in range(2):
            assert read(cache, server, 0) == content(0)
            with cache.open(f"{server.base}/1.tar", sha(big), QUICK) as file:
                assert file.read() == big
            assert read(cache, server, 2) == content(2)
    assert len(said) == 1
    assert {path.stem for path in cache.folder.glob("*.tar")} == {sha(content(0)), sha(content(2))}
    assert sorted(server.requests) == ["/0.tar", *["/1.tar"] * 3, "/2.tar"]  # it is not tried a second time


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_is_said_once_and_loses_nothing(
    cache: ShardCache, server: Faulty, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    assert read(cache, server, 0) == content(0)

    def full(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(artefact.os, "fsync", full)
        with told(r"no room in the cache .*\(.+\): shards are read from their address each time; free some") as said:
            assert [read(cache, server, n) for n in (1, 2, 1, 0)] == [content(n) for n in (1, 2, 1, 0)]
    assert len(said) == 1
    assert [path.stem for path in cache.folder.glob("*.tar")] == [sha(content(0))]
    assert not list(cache.folder.glob(".*.partial"))


FULL = """
import resource, sys, warnings
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from omnigram.data.shard_cache import ShardCache
with ShardCache(sys.argv[1]).open(sys.argv[2], sys.argv[3]) as file:
    print(len(file.read()))
"""


def test_a_disk_that_takes_no_more_for_real(tmp_path: Path, server: Faulty) -> None:
    """The kernel refuses the write, not a stand-in."""
    command = [sys.executable, "-c", FULL, str(tmp_path / "cache"), f"{server.base}/1.tar", sha(content(1))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{SIZE}\n"
    assert "no room in the cache" in done.stderr
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_file()]


def _fetch(folder: Path, base: str, results: "multiprocessing.Queue[bool]") -> None:
    cache = ShardCache(folder, 10 * SIZE)
    for number in (0, 1, 2):
        with cache.open(f"{base}/{number}.tar", sha(content(number)), QUICK) as file:
            results.put(file.read() == content(number))


def test_processes_fetch_a_shard_once(tmp_path: Path, server: Faulty) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (tmp_path / "cache", server.base, results)
    processes = [context.Process(target=_fetch, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    assert all(results.get(timeout=120) for _ in range(9))
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(server.requests) == ["/0.tar", "/1.tar", "/2.tar"]


def test_what_a_killed_process_left_goes(cache: ShardCache, server: Faulty) -> None:
    cache.folder.mkdir()
    old, young = (cache.folder / f".{name}.tar.1.partial" for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(content(9))
    os.utime(old, (1000, 1000))
    read(cache, server, 1)
    assert (old.exists(), young.exists()) == (False, True)
    read(cache, server, 2)
    read(cache, server, 3)
    assert stored(cache) + SIZE <= cache.max_bytes  # what is being written counts


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "omnigram" / "shards"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert ShardCache().folder == Path("/home/me/.cache/omnigram/shards")
    assert ShardCache("~/x").folder == Path("/home/me/x")
    with pytest.raises(ValueError, match="max_bytes=0"):
        ShardCache(tmp_path, 0)
