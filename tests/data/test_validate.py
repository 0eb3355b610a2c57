"""The validator names the file, the sample and the fault."""

import json

import numpy as np
import pytest
from made_pictures import data_config, fill_folder, picture, tar_of

from omnigram.data.document import Document, Segment, TokenDocument, TokenSegment
from omnigram.data.record import FORMAT_VERSION, TOKENS
from omnigram.data.shards import write_shard
from omnigram.data.validate import validate
from omnigram.tokenizers.vocabulary import Vocabulary
from omnigram.train.shards import make_shards


@pytest.fixture
def made(tmp_path):
    return make_shards(data_config(fill_folder(tmp_path / "pictures", 30), tmp_path / "set"))


def faults(path):
    report = validate(path)
    assert not report.valid
    return [str(fault) for fault in report.faults]


def test_what_make_data_leaves_is_valid(made):
    report = validate(made)
    assert report.valid, report.faults
    assert (report.documents, report.token_documents) == (30, 0)
    assert str(report).endswith("valid")


def test_a_changed_a_missing_and_a_foreign_shard(made):
    shard = made / "train-000001.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    (made / "val-000000.tar").unlink()
    write_shard(made / "extra-000000.tar", [Document("a", (Segment("text", "a"),), "", "")])
    found = faults(made)
    assert "extra-000000.tar: is not listed in dataset.json" in found
    assert "val-000000.tar: is missing" in found
    assert any(line.startswith("train-000001.tar: its sha256 is not the one in dataset.json") for line in found)


def test_a_shard_that_is_cut_short(made):
    shard = made / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    assert any("train-000000.tar: is cut short" in line for line in faults(made))


def test_an_unfinished_data_set(made):
    (made / "dataset.json").unlink()
    assert faults(made) == ["dataset.json: is missing: the data set is not finished"]
    (made / "dataset.json").write_text('{"splits": []}')
    assert faults(made)[0].startswith("dataset.json: cannot be read")


def test_samples_at_fault_are_named(tmp_path):
    good = {"segments": [{"image": "0.png"}]}
    members = [
        ("a.json", json.dumps(good).encode()),
        ("a.0.png", picture()),
        ("b.json", json.dumps(good).encode()),
        ("b.0.png", picture()[:40]),
        ("c.json", json.dumps(good).encode()),
        ("d.json", b"{}"),
        ("a.json", json.dumps(good).encode()),
        ("a.0.png", picture()),
    ]
    path = tar_of(tmp_path / "x.tar", members)
    report = validate(path)
    found = [(fault.file, fault.sample, fault.reason.split(":")[0]) for fault in report.faults]
    assert found == [
        ("x.tar", "b", "picture cannot be decoded"),
        ("x.tar", "c", "segment 0 names c.0.png, which the sample does not hold"),
        ("x.tar", "d", 'its .json member is not an object with a list "segments"'),
        ("x.tar", "a", "the key is used in x.tar already"),
    ]
    assert "4 faults" in str(report)


def test_token_documents_are_checked_against_the_vocabulary(tmp_path):
    vocabulary = Vocabulary.appended(300, codebooks={"image": 16})
    (tmp_path / "vocabulary.json").write_text(vocabulary.to_json())

    def tokens(key, text, image):
        return TokenDocument(key, (TokenSegment("text", np.array([text])), TokenSegment("image", np.array([[image]]))))

    documents = [tokens("good", 299, 15), tokens("text", 300, 0), tokens("image", 0, 16)]
    documents.append(TokenDocument("sound", (TokenSegment("audio", np.array([1])),)))
    path = write_shard(tmp_path / "train-000000.tar", documents)
    record = {"file": path.name, "documents": 4}
    dataset = {"format": TOKENS, "format_version": FORMAT_VERSION, "splits": {"train": {"shards": [record]}}}
    (tmp_path / "dataset.json").write_text(json.dumps(dataset | {"vocabulary": vocabulary.identity}))
    assert faults(tmp_path) == [
        "train-000000.tar: sample 'text': segment 0 has the code 300, text has 300 codes",
        "train-000000.tar: sample 'image': segment 1 has the code 16, image has 16 codes",
        "train-000000.tar: sample 'sound': vocabulary.json has no modality 'audio'",
        "train-000000.tar: holds 1 good documents, dataset.json says 4",
    ]
    (tmp_path / "dataset.json").write_text(json.dumps(dataset | {"vocabulary": "another"}))
    assert faults(tmp_path)[0] == "vocabulary.json: is not the vocabulary that dataset.json names"
    (tmp_path / "vocabulary.json").unlink()
    assert faults(tmp_path)[0] == "vocabulary.json: is missing: the codes have no ids without it"
    (tmp_path / "dataset.json").write_text(json.dumps(dataset | {"format": "tfds"}))
    assert faults(tmp_path)[0].startswith("dataset.json: has format 'tfds' 1; known are omnigram-documents and")


def test_nothing_to_validate(tmp_path):
    with pytest.raises(FileNotFoundError, match="is neither a data set's folder nor a shard"):
        validate(tmp_path / "nowhere")
    assert any("holds no shards" in line for line in faults(tmp_path))


def test_a_token_document_without_its_codes_is_told_as_one(tmp_path):
    """As in a shard that is cut between the two members of its last sample."""
    document = TokenDocument("k", (TokenSegment("text", np.array([1, 2], np.uint16)),))
    tar_of(tmp_path / "train-000000.tar", [("k.json", document.to_sample()["json"])])
    (tmp_path / "vocabulary.json").write_text(Vocabulary.appended(40, codebooks={"image": 16}).to_json())
    record = {"format": TOKENS, "format_version": FORMAT_VERSION, "splits": {"train": {"shards": []}}}
    (tmp_path / "dataset.json").write_text(json.dumps(record))
    assert "the sample has no k.codes.npy" in [fault.reason for fault in validate(tmp_path).faults]
