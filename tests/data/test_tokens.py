"""The token data set: random access, memory that is bounded, and faults that are named."""

import gc
import threading
import time
import weakref
from pathlib import Path
from typing import IO, Any

import pytest
from made_tokens import captioned, token_folder

from omnigram.data import tokens
from omnigram.data.record import TOKENS, VOCABULARY, read_record
from omnigram.data.shards import ShardError
from omnigram.data.token_shard import TokenShard
from omnigram.data.tokens import TokenDataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shards = [[captioned(number, f"family {number % 2}") for number in range(5 * s, 5 * s + 5)] for s in range(4)]
    return token_folder(tmp_path / "made", shards)


def test_documents_are_numbered_through_the_shards(folder: Path) -> None:
    dataset = TokenDataset(folder, "train", hold=1)
    assert len(dataset) == 20
    assert dataset.shard_sizes == (5, 5, 5, 5)
    for index in (0, 19, 4, 5, 12):
        assert dataset[index].key == f"doc{index:04d}"
    for outside in (-1, 20):
        with pytest.raises(IndexError):
            dataset[outside]


def test_relatives_share_family_and_shard(folder: Path) -> None:
    dataset = TokenDataset(folder, "train")
    assert dataset.relatives(6) == [8]  # numbers 5..9, of which 6 and 8 are even
    assert dataset.relatives(7) == [5, 9]


def test_no_more_shards_are_held_than_allowed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = tokens.read_shard_as_found

    def noted(file: IO[bytes], name: str, *more: Any) -> TokenShard:
        read.append(Path(name).name)
        return original(file, name, *more)

    monkeypatch.setattr(tokens, "read_shard_as_found", noted)
    dataset = TokenDataset(folder, "train", hold=2)
    for index in (0, 1, 6, 2, 7):
        dataset[index]
    assert read == ["train-000000.tar", "train-000001.tar"]
    dataset[11]  # the third: the first, used longest ago, goes
    dataset[8]
    assert read == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    dataset[0]
    assert read[3:] == ["train-000000.tar"]
    dataset.reserve(4)
    dataset.load_ahead([0, 1, 2, 3])
    assert [dataset[index].key for index in (0, 5, 10, 15)] == ["doc0000", "doc0005", "doc0010", "doc0015"]
    assert len(read) == len({0, 1, 2, 3}) + 2


def test_a_data_set_that_nobody_has_any_more_goes_with_its_shards_and_its_thread(folder: Path) -> None:
    def reading() -> int:
        return sum(thread.name == "omnigram-shards" for thread in threading.enumerate())

    gc.collect()
    before, sets = reading(), list[weakref.ref[TokenDataset]]()
    (folder / "train-000003.tar").unlink()
    for _ in range(5):
        dataset = TokenDataset(folder, "train")
        assert dataset[0].key == "doc0000"
        with pytest.raises(ShardError):
            dataset[15]
        dataset.load_ahead([1, 2])
        sets.append(weakref.ref(dataset))
        assert reading() > before  # else the name is another now
        del dataset
    end = time.monotonic() + 30
    while (reading() > before or any(of() for of in sets)) and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)
    assert [of() for of in sets] == [None] * 5
    assert reading() == before


def test_the_grammar_writes_these_documents(folder: Path) -> None:
    dataset = TokenDataset(folder, "train")
    caption, picture = dataset[3].segments
    grammar = dataset.grammar()
    (_, text), (_, codes) = grammar.read(grammar.write([("text", caption.codes), ("image", picture.codes)]))
    assert text.tolist() == caption.codes.tolist()
    assert codes.tolist() == picture.codes.tolist()


def test_faults_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no split 'val'"):
        TokenDataset(folder, "val")
    with pytest.raises(FileNotFoundError, match="no finished data set"):
        TokenDataset(tmp_path, "train")
    with pytest.raises(ValueError, match=f"describes '{TOKENS}', not 'omnigram-documents'"):
        read_record(folder, "omnigram-documents")
    other = TokenDataset(folder, "train").vocabulary.to_json().replace('"pad"', '"fill"')
    (folder / VOCABULARY).write_text(other)
    with pytest.raises(ValueError, match=r"is not the vocabulary that dataset\.json beside it names"):
        _ = TokenDataset(folder, "train").vocabulary
    (folder / VOCABULARY).write_text("{}")
    with pytest.raises(ValueError, match=r"vocabulary\.json: not the JSON of a vocabulary.*: remove .* tokens"):
        _ = TokenDataset(folder, "train").vocabulary
    (folder / VOCABULARY).unlink()
    with pytest.raises(ValueError, match=r"vocabulary\.json is missing: remove .*, then make the tokens again"):
        _ = TokenDataset(folder, "train").vocabulary
