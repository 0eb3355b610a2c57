"""Damage while training and while data is made: what is lost is named and counted, everything else is there."""

import errno
import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from made_pictures import data_config, fill_folder, picture, tar_of
from made_server import Faulty, served, told
from made_tokens import captioned, token_folder
from PIL import Image, PngImagePlugin

from omnigram.data.pictures import verify
from omnigram.data.record import DATASET
from omnigram.data.remote import AddressError, Network
from omnigram.data.shard_cache import ShardCache
from omnigram.data.shards import DamagedSample, ShardError
from omnigram.data.sources import OTHER, REASONS
from omnigram.data.sources.folder import FolderSource
from omnigram.data.sources.webdataset import WebDatasetSource
from omnigram.data.tokens import TokenDataset
from omnigram.train.shards import make_shards

QUICK = Network(attempts=3, timeout=1.0, pause=0.01)
DOCUMENTS = 6  # of a shard; there are two


def with_checksums(folder: Path) -> Path:
    record = json.loads((folder / DATASET).read_text())
    for shard in record["splits"]["train"]["shards"]:
        shard["sha256"] = hashlib.sha256((folder / shard["file"]).read_bytes()).hexdigest()
    (folder / DATASET).write_text(json.dumps(record))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shards = [[captioned(6 * s + n, f"family {n % 2}") for n in range(DOCUMENTS)] for s in range(2)]
    return with_checksums(token_folder(tmp_path / "made", shards))


def state(dataset: TokenDataset) -> list[str]:
    """Of each document its key, or why it is damaged."""
    found = []
    for index in range(len(dataset)):
        try:
            found.append(dataset[index].key)
        except DamagedSample as damage:
            found.append(damage.reason)
            told_where = "train-000000.tar" in damage.shard and str(damage).startswith(damage.shard)
        else:
            continue
        assert told_where
    return found


KEYS = [f"doc{number:04d}" for number in range(2 * DOCUMENTS)]


def edit(path: Path, change: Callable[[bytearray], None]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def member(path: Path, name: str) -> tarfile.TarInfo:
    with tarfile.open(path) as archive:
        return archive.getmember(name)


def test_whole_shards_are_silent(folder: Path) -> None:
    assert state(TokenDataset(folder, "train")) == KEYS


def test_a_cut_at_every_place_costs_what_is_behind_it(folder: Path) -> None:
    path = folder / "train-000000.tar"
    whole = path.read_bytes()
    last = [member(path, f"{key}.codes.npy") for key in KEYS[:DOCUMENTS]]
    ends = [codes.offset_data + codes.size for codes in last]
    for cut in range(0, len(whole), 256):
        path.write_bytes(whole[:cut])
        kept = sum(end <= cut for end in ends)
        with told(
            r"train-000000\.tar: \d of 6 documents are damaged: shard is .* after sample|at its beginning|sha256"
        ):
            found = state(TokenDataset(folder, "train"))
        assert found[DOCUMENTS:] == KEYS[DOCUMENTS:]
        if kept < DOCUMENTS:
            assert found[:kept] == KEYS[:kept]
            assert set(found[kept:DOCUMENTS]) <= {"shard is cut short", "the sample has no codes.npy"}
        else:  # all can be read, but it is not the shard that was recorded
            assert found[:DOCUMENTS] in (["checksum"] * DOCUMENTS, KEYS[:DOCUMENTS])


@pytest.mark.parametrize(
    ("name", "place", "reason"),
    [
        ("doc0002.codes.npy", 1, "its codes.npy cannot be read"),
        ("doc0002.codes.npy", 20, "its codes.npy cannot be read"),
        ("doc0002.json", 3, 'its .json member is not an object with a list "segments"'),
        ("doc0002.json", 0, "its .json member cannot be read"),
    ],
)
def test_a_faulty_sample_costs_itself(folder: Path, name: str, place: int, reason: str) -> None:
    path = folder / "train-000000.tar"
    start = member(path, name).offset_data
    edit(path, lambda data: data.__setitem__(start + place, data[start + place] ^ 9))
    dataset = TokenDataset(folder, "train")
    with told(rf"train-000000\.tar: 1 of 6 documents are damaged: sample 'doc0002': {reason}"):
        assert state(dataset) == [*KEYS[:2], reason, *KEYS[3:]]
    assert dataset.relatives(0) == [4]  # and not 2, of the same family
    assert list(dataset.relatives(2)) == []
    assert list(dataset.intact()) == [0, 1, *range(3, 12)]
    assert [dataset.is_intact(index) for index in (1, 2, 3)] == [True, False, True]
    with pytest.raises(DamagedSample) as caught:
        dataset[2]
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.reason, again.shard, again.key, str(again)) == (reason, str(path), "doc0002", str(caught.value))
    assert isinstance(again, ShardError)


def test_a_flip_that_only_the_checksum_shows_costs_the_shard(folder: Path) -> None:
    path = folder / "train-000000.tar"
    start = member(path, "doc0002.codes.npy").offset_data
    edit(path, lambda data: data.__setitem__(start + 128, data[start + 128] ^ 1))  # a code: all samples parse
    with told(r"6 of 6 documents are damaged: shard has another sha256 than dataset\.json says"):
        assert state(TokenDataset(folder, "train")) == ["checksum"] * DOCUMENTS + KEYS[DOCUMENTS:]


def test_numbers_that_are_not_certain_are_none(folder: Path) -> None:
    record = json.loads((folder / DATASET).read_text())
    for wrong in (5, 7):
        record["splits"]["train"]["shards"][0]["documents"] = wrong
        (folder / DATASET).write_text(json.dumps(record))
        with told(rf"{wrong} of {wrong} documents .* shard holds .* documents, dataset\.json says {wrong}"):
            found = state(TokenDataset(folder, "train"))
        assert found[wrong:] == KEYS[DOCUMENTS:]
        assert set(found[:wrong]) == {"shard has another number of documents than dataset.json says"}


def test_codes_that_claim_all_memory_are_damage(folder: Path) -> None:
    path = folder / "train-000000.tar"
    start = member(path, "doc0001.codes.npy").offset_data

    def claim(data: bytearray) -> None:
        place = data.index(b"'shape': (", start)
        text = b"'shape': (999999999999999,), "
        data[place : place + len(text) + 1] = text + b"}"  # over spaces, of which a header has many

    edit(path, claim)
    with told("1 of 6 documents are damaged: sample 'doc0001': its codes.npy cannot be read"):
        assert state(TokenDataset(folder, "train"))[1] == "its codes.npy cannot be read"


def test_a_disk_that_cannot_be_read_is_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bad(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 4000:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(min(size or 0, 512))

    original = open

    def opened(path: Any, *more: Any) -> Any:
        return Bad(Path(path).read_bytes()) if "train-000000" in str(path) else original(path, *more)

    monkeypatch.setattr("omnigram.data.tokens.open", opened, raising=False)
    with told("documents are damaged"):
        found = state(TokenDataset(folder, "train"))
    assert found[0] == KEYS[0]
    assert found[DOCUMENTS - 1] == "shard cannot be read: Input/output error"
    assert found[DOCUMENTS:] == KEYS[DOCUMENTS:]


@pytest.mark.parametrize("file", ["../../etc/passwd", "/etc/passwd", "a\\b", "..", 7, "a/b.tar"])
def test_a_dataset_json_that_names_other_places_is_refused(folder: Path, file: object) -> None:
    record = json.loads((folder / DATASET).read_text())
    record["splits"]["train"]["shards"][0]["file"] = file
    (folder / DATASET).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"names the shard .* which is no file of that folder"):
        TokenDataset(folder, "train")
    record["splits"]["train"]["shards"][0] |= {"file": "train-000000.tar", "documents": 10**15}
    (folder / DATASET).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"says that train-000000\.tar holds 1000000000000000 documents"):
        TokenDataset(folder, "train")


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


def pairs(*numbers: int) -> list[tuple[str, bytes]]:
    return [p for i in numbers for p in ((f"{i:04d}.jpg", picture(kind="JPEG")), (f"{i:04d}.txt", b"no %d" % i))]


def test_a_cut_shard_of_others_keeps_what_is_before_the_cut(tmp_path: Path) -> None:
    for shard in range(3):
        tar_of(tmp_path / f"cc-{shard}.tar", pairs(0, 1, 2))
    cut = tmp_path / "cc-1.tar"
    cut.write_bytes(cut.read_bytes()[: member(cut, "0002.jpg").offset + 700])
    source = WebDatasetSource(f"{tmp_path}/cc-{{0..2}}.tar", max_skipped=0.4)
    with told(
        r"cc-1\.tar: shard is cut short after sample '0002': unexpected end of data: what comes behind it is lost"
    ):
        keys = [document.key for document in source]
    assert keys == [f"cc-{s}/000{n}" for s in range(3) for n in range(3) if (s, n) != (1, 2)]
    assert source.skipped.by_reason == {"shard is cut short": 1}
    assert source.skipped.first == [{"key": str(cut), "reason": "shard is cut short"}]
    with pytest.raises(
        ValueError, match=r"cc-1\.tar: shard is cut .* 1 of 3 shards, more than data.source.max_skipped=0.3"
    ):
        list(WebDatasetSource(f"{tmp_path}/cc-{{0..2}}.tar", max_skipped=0.3))


def test_an_empty_shard_is_said(tmp_path: Path) -> None:
    tar_of(tmp_path / "cc-0.tar", [])
    tar_of(tmp_path / "cc-1.tar", pairs(0))
    with told(r"the shard .*cc-0\.tar holds no samples"):
        assert [document.key for document in WebDatasetSource(f"{tmp_path}/cc-{{0..1}}.tar")] == ["cc-1/0000"]


def test_the_same_keys_in_two_shards_and_in_one_lose_nothing(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        tar_of(tmp_path / place / "cc.tar", [*pairs(0, 1, 0), ("0000__2.jpg", picture()), ("0000__2.txt", b"its own")])
    keys = [document.key for document in WebDatasetSource([f"{tmp_path}/a/cc.tar", f"{tmp_path}/b/cc.tar"])]
    assert keys == [f"{s}/{key}" for s in ("000000", "000001") for key in ("0000", "0001", "0000__2", "0000__2__2")]


def test_links_and_devices_are_refused_by_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for number, kind in enumerate((tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE)):
            text = tarfile.TarInfo(f"{number}.txt")
            text.size = 1
            archive.addfile(text, io.BytesIO(b"x"))
            image = tarfile.TarInfo(f"{number}.png")
            image.type, image.linkname = kind, "/etc/passwd"
            image.size = len(picture()) if kind == tarfile.REGTYPE else 0
            archive.addfile(image, io.BytesIO(picture()))
    source = WebDatasetSource(str(path), max_skipped=0.7)
    assert [document.key for document in source] == ["a/0"]
    assert source.skipped.by_reason == {"member is a link": 1, "member is a device": 1}


def test_make_data_prints_what_is_lost_and_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar_of(tmp_path / "a.tar", [*pairs(*range(20)), ("x.jpg", b"no picture"), ("x.txt", b"x")])
    tar_of(tmp_path / "b.tar", pairs(*range(20)))
    (tmp_path / "b.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:-10240])
    source = {
        "_target_": "omnigram.data.sources.webdataset.WebDatasetSource",
        "urls": f"{tmp_path}/{{a,b}}.tar",
        "max_skipped": 0.5,
    }
    config = data_config("", tmp_path / "set")
    config.data.source = source
    with told(r"b\.tar: shard is cut short"):
        make_shards(config)
    printed = capsys.readouterr().err
    assert "skipped 1: picture cannot be decoded: unknown format (first a/x)" in printed
    assert f"skipped 1: shard is cut short (first {tmp_path}/b.tar)" in printed
    skipped = json.loads((tmp_path / "set" / DATASET).read_text())["skipped"]
    assert skipped["count"] == 2
    assert [entry["key"] for entry in skipped["first"]] == ["a/x", f"{tmp_path}/b.tar"]


def test_a_source_at_an_address_survives_the_network(tmp_path: Path) -> None:
    tar_of(tmp_path / "cc-0.tar", pairs(0, 1))
    tar_of(tmp_path / "cc-1.tar", pairs(2, 3))
    with served(tmp_path) as faulty:
        faulty.faults = [503, ("drop", 700), ("stall", 900), "shut", ("drop", 2000)]
        source = WebDatasetSource(faulty.base + "/cc-{0..1}.tar", network=QUICK)
        with told("attempt"):
            assert [document.segments[0].text for document in source] == ["no 0", "no 1", "no 2", "no 3"]
        assert not source.skipped.count
        with pytest.raises(AddressError, match=r"none\.tar cannot be read: 404"):
            list(WebDatasetSource(faulty.base + "/none.tar", network=QUICK))


def test_as_many_reasons_as_samples_are_not_all_kept(tmp_path: Path) -> None:
    source = FolderSource(fill_folder(tmp_path / "few", 1))
    for number in range(500):
        source.skipped.add(str(number), f"reason {number}")
    assert len(source.skipped.by_reason) == REASONS + 1
    assert source.skipped.by_reason[OTHER] == 500 - REASONS
    assert source.skipped.count == 500


def test_a_file_that_is_larger_than_any_picture_is_not_read(tmp_path: Path) -> None:
    for name in ("huge.png", "good.png"):
        (tmp_path / name).write_bytes(picture())
        (tmp_path / name).with_suffix(".txt").write_text("x")
    os.truncate(tmp_path / "huge.png", 2**41)  # holes, no disk is filled
    source = FolderSource(tmp_path, max_skipped=0.6)
    assert [document.key for document in source] == ["good"]
    assert source.skipped.by_reason == {"the file has more than 1,073,741,824 bytes": 1}


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_png_whose_notes_unpack_to_a_hundred_megabytes(name: bytes) -> None:
    """Refused, or read without its notes; Pillow's own limits hold."""
    packed = zlib.compress(bytes(100_000_000), 9)
    heads = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"k\0\0"}
    plain = picture()
    bomb = plain[:33] + chunk(name, heads[name] + packed) + plain[33:]
    assert PngImagePlugin.MAX_TEXT_CHUNK <= 1 << 20
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"picture cannot be decoded: .*[Tt]oo large"):
        verify(bomb)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["EPS", "ICO", "PSD", "PCX"])
def test_formats_that_nobody_asked_for_are_not_opened(kind: str) -> None:
    """EPS starts Ghostscript."""
    if kind == "PSD":
        data = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 16, 16, 8, 3) + bytes(12) + bytes(2 + 16 * 16 * 3)
    else:
        file = io.BytesIO()
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(file, kind)
        data = file.getvalue()
    assert Image.open(io.BytesIO(data)).size == (16, 16)  # Pillow would
    with pytest.raises(ValueError, match="picture cannot be decoded: unknown format"):
        verify(data)
