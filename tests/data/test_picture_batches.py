"""Batches of pictures: each picture once an epoch, of one size, and the same after a stop anywhere."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_pictures import picture

from omnigram.data.document import Document, Segment
from omnigram.data.picture_batches import PictureBatch, Pictures, PictureStream, dealt
from omnigram.data.shards import write_shard

SHARDS, EACH = 3, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15 pictures in three shards, every third one wide; picture i is grey of value 10 i."""
    folder = tmp_path_factory.mktemp("documents")
    shards = []
    for shard in range(SHARDS):
        documents = []
        for number in range(shard * EACH, (shard + 1) * EACH):
            size = (64, 32) if number % 3 == 0 else (32, 32)
            data = picture((number * 10, number * 10, number * 10), size=size)
            segments = (Segment("text", f"grey {number}"), Segment("image", data, suffix=".png"))
            documents.append(Document(f"k{number}", segments, "made", "CC0"))
        name = f"train-{shard:06d}.tar"
        write_shard(folder / name, documents)
        shards.append({"file": name, "documents": EACH, "pictures": EACH})
    record = {"format": "omnigram-documents", "identity": "made", "splits": {"train": {"shards": shards}}}
    (folder / "dataset.json").write_text(json.dumps(record))
    return folder


def pictures(folder: Path, hold: int = 8) -> Pictures:
    return Pictures(folder, "train", resolution=32, patch=8, max_ratio=4.0, hold=hold)


def numbers(batch: torch.Tensor) -> list[int]:
    return [int(grey) // 10 for grey in batch[:, 0, 0, 0]]


def test_every_picture_is_fitted_to_its_bucket_and_given_once(folder: Path):
    found = pictures(folder, hold=1)
    assert len(found) == SHARDS * EACH
    batches = list(found.batches(4))
    assert sorted(n for batch in batches for n in numbers(batch)) == list(range(15))
    for batch in batches:
        assert batch.dtype == torch.uint8
        assert all((n % 3 == 0) == (batch.shape[2] > batch.shape[1]) for n in numbers(batch))


def test_an_epoch_of_the_stream_is_a_permutation(folder: Path):
    stream = PictureStream(pictures(folder), batch_size=1, seed=3)
    epochs = [[numbers(batch.pictures)[0] for batch in islice(stream, 30)][start : start + 15] for start in (0, 15)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(15))
    assert epochs[0] != epochs[1]


@given(cut=st.integers(1, 12), batch_size=st.integers(1, 4), seed=st.integers(0, 3))
def test_a_stream_goes_on_from_any_batch(folder: Path, cut: int, batch_size: int, seed: int):
    whole = list(islice(PictureStream(pictures(folder), batch_size, seed), 14))
    state = json.loads(json.dumps(whole[cut - 1].state))
    rest = list(islice(PictureStream(pictures(folder), batch_size, seed, lambda: state), 14 - cut))
    for expected, found in zip(whole[cut:], rest, strict=True):
        assert torch.equal(expected.pictures, found.pictures)
        assert expected.state == found.state


def test_ranks_take_turns(folder: Path):
    alone = [numbers(b.pictures)[0] for b in islice(PictureStream(pictures(folder), 1, 0), 12)]
    shares = [
        [numbers(b.pictures)[0] for b in islice(PictureStream(pictures(folder), 1, 0, rank=rank, world=2), 6)]
        for rank in (0, 1)
    ]
    assert [n for pair in zip(*shares, strict=True) for n in pair] == alone


def test_what_is_not_there_is_named(folder: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"dataset\.json is missing"):
        pictures(tmp_path)
    with pytest.raises(ValueError, match="has no split 'val': it has train"):
        Pictures(folder, "val", 32, 8)
    with pytest.raises(ValueError, match="batch_size=0"):
        PictureStream(pictures(folder), 0, 0)


@given(before=st.integers(1, 3), after=st.integers(1, 3), batches=st.integers(1, 4), seed=st.integers(0, 3))
def test_other_ranks_go_on_with_what_was_not_yet_seen(folder: Path, before: int, after: int, batches: int, seed: int):
    def positions(stream: PictureStream, number: int) -> list[PictureBatch]:
        return list(islice(stream, number))

    first = [
        positions(PictureStream(pictures(folder), 2, seed, rank=rank, world=before), batches) for rank in range(before)
    ]
    states = dealt([part[-1].state for part in first], after)
    second = [
        positions(PictureStream(pictures(folder), 2, seed, lambda s=state: s, rank, after), 12)
        for rank, state in enumerate(states)
    ]
    seen = [n for part in (*first, *second) for batch in part for n in numbers(batch.pictures)]
    [end] = dealt([part[-1].state for part in second], 1)
    order = [numbers(b.pictures)[0] for b in islice(PictureStream(pictures(folder), 1, seed), end["next"])]
    left = [order[number] for number in end["waiting"]]
    assert sorted(seen + left) == sorted(order)
    assert len(left) < len(order)
