"""Streams from elsewhere: a server that drops, stalls, cuts and refuses, and not one byte lost."""

import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from made_server import Faulty, served, told

from omnigram.data import connections, remote
from omnigram.data.address_errors import AddressError, shown
from omnigram.data.addresses import is_local, join, local_path, open_address, read_address
from omnigram.data.remote import Network, RemoteStream

CONTENT = bytes(range(256)) * 12_000  # 3 MB, more than one buffer
QUICK = Network(attempts=4, timeout=0.4, pause=0.01)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Faulty]:
    (tmp_path / "a.bin").write_bytes(CONTENT)
    with served(tmp_path) as faulty:
        yield faulty


def everything(address: str, network: Network = QUICK) -> bytes:
    with open_address(address, network) as stream:
        return stream.read()


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ([500], "500 Internal Server Error; at byte 0, attempt 2 of 4"),
        (["shut"], "; at byte 0, attempt 2 of 4"),
        ([(429, {"Retry-After": "0.02"})], r"429 .*in 0\.02 s"),
        ([503, 502, 500], "attempt 4 of 4"),
        ([("drop", 2_000_000)], "the connection ended after 2000000 of 3072000 bytes; at byte 2000000"),
        ([("drop", 2_000_000), ("drop", 10), 503], "503|ended after"),
        ([("stall", 1_500_000)], "no answer in time; at byte 1500000"),
        ([("drop", 0), ("drop", 0), ("drop", 0)], "attempt 4 of 4"),
    ],
)
def test_what_passes_costs_no_byte(
    server: Faulty, faults: list[object], expected: str, ranges: bool, lengths: bool
) -> None:
    if not lengths and any(isinstance(fault, tuple) and fault[0] == "drop" for fault in faults):
        pytest.skip("nobody can know: without a length the end of a connection is the end of the file")
    server.ranges, server.lengths = ranges, lengths
    server.faults = list(faults)
    with told(expected, r"attempt \d of 4 in"):
        assert everything(f"{server.base}/a.bin") == CONTENT
    assert not server.faults
    if ranges and lengths:  # what was there is not sent again
        assert server.sent == len(CONTENT)


def test_a_scheme_may_be_in_capitals(server: Faulty) -> None:
    assert everything(server.base.replace("http", "HTTP") + "/a.bin") == CONTENT


def test_progress_begins_the_count_of_attempts_anew(server: Faulty) -> None:
    server.faults = [("drop", 100_000)] * 12
    with told("attempt 2 of 2"):
        assert everything(f"{server.base}/a.bin", Network(attempts=2, timeout=1, pause=0.001)) == CONTENT
    assert [request.partition(" ")[2] for request in server.requests[:3]] == ["", "bytes=100000-", "bytes=200000-"]


@pytest.mark.parametrize("status", [404, 403, 401, 410, 501])
def test_what_does_not_pass_is_told_at_once(server: Faulty, status: int) -> None:
    server.faults = [status]
    with pytest.raises(AddressError, match=rf"^http://.*/a\.bin cannot be read: {status} [A-Z][\w ]+$"):
        everything(f"{server.base}/a.bin?signature=secret")
    assert len(server.requests) == 1


def test_who_stays_away_is_given_up(server: Faulty) -> None:
    server.faults = [500] * 9
    with (
        told("attempt 4 of 4", "500 "),
        pytest.raises(AddressError, match=r"500 .*; given up after 4 attempts: run the same command again") as caught,
    ):
        everything(f"{server.base}/a.bin")
    assert len(server.requests) == 4
    assert "\n" not in str(caught.value)
    with pytest.raises(AddressError, match=r"no-such-host\.invalid/a cannot be read"):
        everything("https://no-such-host.invalid/a")


def test_a_file_that_changes_while_it_is_read_is_no_mixture(server: Faulty) -> None:
    for ranges in (True, False):
        server.ranges = ranges
        server.faults = [("drop", 1_500_000)]
        stream = open_address(f"{server.base}/a.bin", QUICK)
        with stream, told("ended after"):
            stream.read(1_000_000)
            (server.folder / "a.bin").write_bytes(CONTENT[::-1])
            with pytest.raises(AddressError, match=r"a\.bin changed while it was read"):
                stream.read()


def test_pauses_double_up_to_a_minute_and_differ() -> None:
    network = Network(pause=1.0)
    pauses = [[network.pause_after(failures) for _ in range(50)] for failures in range(1, 12)]
    for failures, drawn in enumerate(pauses):
        longest = min(2.0**failures, 60.0)
        assert longest / 2 <= min(drawn) < max(drawn) <= longest
    for attempts, timeout, seconds in ((0, 1.0, 1.0), (1, 0.0, 1.0), (1, 1.0, -1.0)):
        with pytest.raises(ValueError, match="must be 1 or more"):
            Network(attempts, timeout, seconds)


def test_a_server_may_name_a_date_and_not_the_year_after_next(monkeypatch: pytest.MonkeyPatch, server: Faulty) -> None:
    slept: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", slept.append)
    soon = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 90))
    late = "Fri, 31 Dec 2099 23:59:59 GMT"
    server.faults = [(429, {"Retry-After": value}) for value in (soon, late, "soon")]
    with told("429"):
        assert everything(f"{server.base}/a.bin") == CONTENT
    assert 80 < slept[0] <= 90
    assert slept[1] == remote.LONGEST_WAIT
    assert slept[2] <= 0.04


def test_a_bucket(tmp_path: Path) -> None:
    """fsspec's memory:// stands for the cloud."""
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/a.bin", CONTENT)
    try:
        assert everything("memory://bucket/a.bin") == CONTENT
        with pytest.raises(AddressError, match=r"^memory://bucket/b\.bin cannot be read: "):
            everything("memory://bucket/b.bin")
        with pytest.raises(AddressError, match="Is a directory"):
            everything("memory://bucket")
    finally:
        system.rm("/bucket", recursive=True)


def test_a_bucket_that_breaks_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/a.bin", CONTENT)
    original, faults = type(system)._open, [1_100_000, 400_000]

    class Breaks:
        def __init__(self, file: object) -> None:
            self.file, self.left = file, faults.pop() if faults else len(CONTENT)

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

        def read(self, most: int) -> bytes:
            if not self.left:
                raise RuntimeError("session\n is closed")  # the libraries behind fsspec have errors of their own
            data = self.file.read(min(most, self.left))  # type: ignore[attr-defined]
            self.left -= len(data)
            return data

    monkeypatch.setattr(type(system), "_open", lambda self, path, mode="rb", **more: Breaks(original(self, path, mode)))
    with told(r"^memory://bucket/a\.bin: session is closed; at byte (400000|1500000), attempt 2 of 4"):
        assert everything("memory://bucket/a.bin") == CONTENT
    assert not faults


@pytest.mark.parametrize(("address", "package"), [("s3://b/a.tar", "s3fs"), ("gs://b/a.tar", "gcsfs")])
def test_a_cloud_that_is_not_installed(address: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AddressError, match=rf"{address} .*{package} is not installed: pip install 'omnigram\[cloud\]'"):
        everything(address)


def test_a_command(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(CONTENT)
    assert everything(f"pipe:cat {tmp_path}/a.bin") == CONTENT
    marks = tmp_path / "runs"
    with pytest.raises(AddressError, match="its command ended with exit code 7"):
        everything(f"pipe:echo >> {marks}; head -c 1000 {tmp_path}/a.bin; exit 7")
    assert marks.read_text() == "\n"  # it was not run again
    with open_address("pipe:yes") as stream:  # one that never ends is ended
        assert stream.read(4) == b"y\ny\n"


def test_addresses(tmp_path: Path) -> None:
    assert all(map(is_local, ("a/b.tar", "/a:b.tar", "file:///a", "file:a", tmp_path)))
    assert not any(map(is_local, ("https://h/a", "s3://b/a", "pipe:cat a", "hf://datasets/a/b")))
    assert [str(local_path(f)) for f in ("file:///a%20b", "file:a%20b", "a%20b")] == ["/a b", "a%20b", "a%20b"]
    assert join("https://h/a/?sig=x/y", "b.tar") == "https://h/a/b.tar?sig=x/y"
    assert join("s3://b/a#1?/", "b.tar") == "s3://b/a#1?/b.tar"
    assert join("file:///a", "b.tar") == Path("/a/b.tar")
    (tmp_path / "a").write_bytes(b"12345")
    assert read_address(tmp_path / "a", 5) == b"12345"
    with pytest.raises(ValueError, match=r"a is larger than 4 bytes"):
        read_address(tmp_path / "a", 4)


def test_messages_keep_secrets() -> None:
    assert shown("https://me:password@host:8/a/b.tar?X-Signature=1#f") == "https://host:8/a/b.tar"
    assert shown("s3://bucket/a?b") == "s3://bucket/a?b"
    assert shown("hf://datasets/a/b@v1:2/c") == "hf://datasets/a/b@v1:2/c"
    assert shown("http://[::1]:80/a@b/c?d") == "http://[::1]:80/a@b/c"
    assert shown("ftp://me:password@host/a") == "ftp://host/a"
    assert shown("zip://a.bin::https://me:password@host/b?X-Signature=1") == "zip://a.bin::https://host/b"
    for raw in ("pass/word", "pass?word", "pass#wo@rd"):  # which are written wrongly, and refused
        assert shown(f"https://me:{raw}@host/a") == "https://host/a"
    assert shown("pipe:zcat") == "pipe:zcat"
    assert shown("pipe:TOKEN=secret curl https://host/a") == "pipe: …"
    web = "https://me:password@host/cc-00.tar.gz?X-Signature=1"
    told = shown(f"pipe:curl -u me:word -H 'Authorization: Bearer ab/cd==' '{web}' | gunzip")
    assert told == "pipe:curl … cc-00.tar.gz"


def test_an_address_with_a_password_is_let_in_and_tells_it_to_its_host_alone(server: Faulty) -> None:
    host = server.base.removeprefix("http://")
    with served(server.folder) as other:
        server.user = "mé:p@ss/w:rd"
        moved = {"Location": f"{other.base}/a.bin"}
        server.faults = [503, ("drop", 2_000_000)]
        with told("503", "ended after") as said:
            assert everything(f"http://m%C3%A9:p%40ss%2Fw:rd@{host}/a.bin?sig=secret") == CONTENT
        server.faults = [(302, moved)]
        assert everything(f"http://m%C3%A9:p%40ss%2Fw:rd@{host}/a.bin") == CONTENT
    assert not [line for line in said if "rd" in line or "secret" in line]
    assert other.credentials == [None]
    for wrong in (f"me:secret@{host}", f"me@{host}", host):
        with pytest.raises(AddressError, match=rf"^http://{host}/a\.bin cannot be read: 401 Unauthorized$"):
            everything(f"http://{wrong}/a.bin?sig=secret")


@pytest.mark.parametrize(
    "wrong", ["me:secret/x@{host}/a", "me:secret@{host}x/a", "{host}/a b?sig=secret", "[x/a?secret"]
)
def test_a_web_address_that_is_written_wrongly_is_told_without_its_secret(server: Faulty, wrong: str) -> None:
    wrong = wrong.format(host=server.base.removeprefix("http://"))
    with pytest.raises(
        AddressError, match=r"^http://\S+( b)? cannot be read: it is written wrongly; a space is"
    ) as caught:
        everything(f"http://{wrong}")
    assert "secret" not in str(caught.value)
    assert not server.requests


def test_a_command_that_fails_keeps_its_secrets() -> None:
    with pytest.raises(AddressError, match=r"^pipe:exit … a\.tar cannot be read: its command ended with exit code 7$"):
        everything("pipe:exit 7; curl -H 'Authorization: secret' a.tar")


def test_a_stream_that_is_not_read_to_its_end_is_closed(server: Faulty) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream = RemoteStream(f"{server.base}/a.bin", QUICK)
        assert stream.size == len(CONTENT)
        assert len(stream.read(10)) == 10
        stream.close()
        del stream
