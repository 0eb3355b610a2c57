"""Tars that are cut at every byte, flipped at every byte, and hostile: what is whole is read, what is lost is named."""

import gzip
import io
import tarfile
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnigram.data import archive
from omnigram.data.archive import CutShardError, Found, archive_samples

SAMPLES = {f"{i:03d}": {"json": b'{"n": %d}' % i, "bin": bytes(range(1 + 97 * i % 600))} for i in range(2)}


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = size, kind, link
    return member.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 512)


def tar(members: list[tuple[str, bytes]]) -> bytes:
    return b"".join(header(name, len(data)) + padded(data) for name, data in members) + b"\0" * 1024


WHOLE = tar([(f"{key}.{ext}", data) for key, members in SAMPLES.items() for ext, data in members.items()])


def read(data: bytes) -> tuple[list[Found], CutShardError | None]:
    found: list[Found] = []
    try:
        for sample in archive_samples(io.BytesIO(data), "x.tar"):
            found.append(sample)
    except CutShardError as caught:
        error = caught
    else:
        return found, None
    assert "\n" not in str(error)
    assert "x.tar" in str(error)
    return found, error


def test_a_whole_one() -> None:
    found, error = read(WHOLE)
    assert error is None
    assert {sample.key: sample.members for sample in found} == SAMPLES
    assert not any(sample.fault for sample in found)
    assert read(gzip.compress(WHOLE)) == (found, None)


ENDS = [0]  # where each sample ends, with its padding
for members in SAMPLES.values():
    ENDS.append(ENDS[-1] + sum(512 + len(padded(data)) for data in members.values()))


@pytest.mark.parametrize("compressed", [False, True])
def test_cut_at_every_byte(compressed: bool) -> None:
    """In headers, names, data, padding and end marks: all samples before the cut are there, and the cut is told."""
    data = gzip.compress(WHOLE, 0) if compressed else WHOLE
    for cut in range(len(data)):
        found, error = read(data[:cut])
        for sample in found[:-1]:
            assert sample.members == SAMPLES[sample.key]
        if compressed:
            assert error is not None or [sample.members for sample in found] == [*SAMPLES.values()]
            continue
        whole = sum(end <= cut for end in ENDS) - 1
        assert [sample.key for sample in found[:whole]] == [*SAMPLES][:whole], cut
        assert [sample.members for sample in found[:whole]] == [*SAMPLES.values()][:whole], cut
        assert len(found) <= whole + 1
        if cut < ENDS[-1] + 512:  # half an end mark still is one
            assert error is not None, cut
            assert error.reason == "shard is cut short", (cut, str(error))
        else:
            assert error is None


def test_a_flip_of_any_bit_in_a_header_is_noticed() -> None:
    """Of data nobody can tell; of headers their own checksums do. No sample before the flip is lost or changed."""
    starts = [0]
    for _, members in SAMPLES.items():
        for data in members.values():
            starts.append(starts[-1] + 512 + len(padded(data)))
    for number, start in enumerate(starts[:-1]):
        for offset in range(512):
            flipped = bytearray(WHOLE)
            flipped[start + offset] ^= 4
            found, error = read(bytes(flipped))
            before = number // 2
            assert [sample.members for sample in found[:before]] == [*SAMPLES.values()][:before]
            if error is None:  # the space behind the checksum has no meaning
                assert [sample.members for sample in found] == [*SAMPLES.values()], (number, offset)
                continue
            assert error.reason in ("shard is damaged", "shard is no tar file or damaged", "shard is cut short")


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_hole_of_zeros_is_no_end(blocks: int) -> None:
    """tarfile, and webdataset with it, takes it for the end mark and says nothing of what comes behind."""
    holed = bytearray(WHOLE)
    holed[ENDS[1] : ENDS[1] + 512 * blocks] = bytes(512 * blocks)
    found, error = read(bytes(holed))
    assert [sample.key for sample in found] == ["000"]
    assert error is not None
    assert "shard is damaged" in error.reason
    assert "something behind an end mark" in str(error)
    with tarfile.open(fileobj=io.BytesIO(bytes(holed)), mode="r|") as plain:
        assert len(plain.getmembers()) == 2  # if that changes, our own check may go


def test_an_empty_one_and_one_that_is_none() -> None:
    assert read(bytes(10240)) == ([], None)
    for data, reason in (
        (b"", "cut short"),
        (b"<html>" * 1000, "no tar file"),
        (b"\x1f\x8b" + bytes(2000), "no tar file"),
    ):
        found, error = read(data)
        assert not found
        assert error is not None
        assert reason in str(error)


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (tarfile.SYMTYPE, "member is a link"),
        (tarfile.LNKTYPE, "member is a link"),
        (tarfile.CHRTYPE, "member is a device"),
        (tarfile.BLKTYPE, "member is a device"),
        (tarfile.FIFOTYPE, "member is a pipe"),
    ],
)
def test_what_is_no_file_is_refused(kind: bytes, fault: str) -> None:
    links = header("001.jpg", 0, kind, "/etc/passwd") + header("shadow", 0, kind, "../../etc/shadow")
    data = tar([("000.txt", b"a")])[:-1024] + links + tar([("002.txt", b"c"), ("002.jpg", b"d")])
    found, error = read(data)
    assert error is None
    assert found == [
        Found("000", {"txt": b"a"}),
        Found("shadow", {}, fault),
        Found("001", {}, fault),
        Found("002", {"txt": b"c", "jpg": b"d"}),
    ]


@pytest.mark.parametrize("claimed", [2**31, 8 * 2**40, 2**62])
@pytest.mark.parametrize("name", ["001.jpg", "001.json", "README", "__x__.json"])
def test_terabytes_that_are_only_claimed(claimed: int, name: str) -> None:
    data = tar([("000.txt", b"a")])[:-1024] + header(name, claimed) + b"x" * 5_000_000
    tracemalloc.start()
    found, error = read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000
    assert found[0] == Found("000", {"txt": b"a"})
    assert error is not None
    assert error.reason == "shard is cut short"


def test_what_is_too_large_is_passed_over_and_the_next_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_TEXT", 1000)
    monkeypatch.setattr(archive, "MAX_SAMPLE", 5000)
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    members = [
        ("0.json", bytes(1001)),
        ("0.jpg", b"x"),
        ("1.jpg", bytes(3000)),
        ("1.png", bytes(3000)),
        ("2.a", b""),
        ("2.b", b""),
        ("2.c", b""),
        ("2.d", b""),
        ("3.jpg", b"x"),
        ("3.jpg", b"y"),
        ("4.jpg", bytes(4000)),
        ("4.json", bytes(1000)),
    ]
    found, error = read(tar(members))
    assert error is None
    assert [(sample.key, sample.fault) for sample in found] == [
        ("0", "a .json member has more than 1,000 bytes"),
        ("1", "sample has more than 5,000 bytes"),
        ("2", "sample has more than 3 members"),
        ("3", "two members have the same name"),
        ("4", ""),
    ]


def pax(records: dict[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    body = b""
    for name, value in records.items():
        line = f" {name}={value}\n".encode()
        length = len(line)
        while len(str(length)) + len(line) != length:
            length = len(str(length)) + len(line)
        body += str(length).encode() + line
    return header("x", len(body), kind) + padded(body)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "long name of terabytes": lambda: header("x", 2**42, tarfile.GNUTYPE_LONGNAME) + b"y" * 5_000_000,
    "attributes of terabytes": lambda: header("x", 2**42, tarfile.XHDTYPE) + b"y" * 5_000_000,
    "negative size": lambda: pax({"size": "-512"}) + header("1.txt", 0),
    "size of attributes": lambda: pax({"size": str(2**60)}) + header("1.txt", 0) + b"y" * 5_000_000,
    "endless attributes": lambda: pax({"a": "b"}) * 5000,
    "sparse": lambda: header("1.txt", 512, tarfile.GNUTYPE_SPARSE) + bytes(512) + b"y" * 5_000_000,
    "sparse 1.0": lambda: (
        pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**50)})
        + header("1.txt", 5_000_000)
        + b"99999999999\n" * 400_000
    ),
    "sparse 0.1": lambda: (
        pax({"GNU.sparse.map": f"0,1,{2**50},0", "GNU.sparse.size": str(2**50)}) + header("1.txt", 1) + padded(b"x")
    ),
    "many globals": lambda: b"".join(pax({f"k{n}": "v"}, tarfile.XGLTYPE) + header("1.txt", 0) for n in range(600)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_headers_cost_no_memory_and_no_sample_before_them(kind: str) -> None:
    data = tar([("0.txt", b"a")])[:-1024] + HOSTILE[kind]() + bytes(1024)
    tracemalloc.start()
    found, error = read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12_000_000
    assert found[0] == Found("0", {"txt": b"a"})
    assert error is not None or found[1].fault


def test_a_small_file_that_unpacks_to_much_is_read_piece_by_piece() -> None:
    """100 MB of zeros in 100 kB: a member that is too large is passed over as it comes."""
    inner = tar([("0.txt", b"a")])[:-1024] + header("1.json", 100_000_000)
    packed = gzip.compress(inner + bytes(100_000_000 + 256) + tar([("2.txt", b"c")]))
    tracemalloc.start()
    found, error = read(packed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48_000_000
    assert error is None
    assert [(sample.key, bool(sample.fault)) for sample in found] == [("0", False), ("1", True), ("2", False)]


@given(st.binary(max_size=3000), st.integers(0, len(WHOLE)))
def test_noise_is_an_error_of_one_line(noise: bytes, place: int) -> None:
    read(noise)
    read(WHOLE[:place] + noise)
    read(WHOLE[:place] + noise + WHOLE[place + len(noise) :])
