"""Damaged token shards: what is lost is named and counted, everything else is there."""

import errno
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_damage import DOCUMENTS, KEYS, checked_folder, member, state
from made_server import told

from omnigram.data.record import DATASET
from omnigram.data.shards import DamagedSample, ShardError
from omnigram.data.tokens import TokenDataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checked_folder(tmp_path / "made")


def edit(path: Path, change: Callable[[bytearray], None]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


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
