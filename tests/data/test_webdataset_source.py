"""WebDataset shards from disk, the web and commands; missing, cut and hostile ones are named or skipped."""

import json

import pytest
from made_pictures import picture, tar_of

from omnigram.data.address_errors import AddressError
from omnigram.data.document import Document, Segment
from omnigram.data.shards import ShardError, read_shard, write_shard
from omnigram.data.sources.webdataset import WebDatasetSource


def captioned(*numbers):
    return [pair for i in numbers for pair in ((f"{i:04d}.jpg", picture(kind="JPEG")), (f"{i:04d}.txt", b"no %d" % i))]


def captions(source):
    return {document.key: document.segments[0].text for document in source}


@pytest.fixture
def shards(tmp_path):
    for shard in range(3):
        tar_of(tmp_path / f"cc-{shard:02d}.tar", captioned(0, 1))
    return tmp_path


EXPECTED = {f"cc-{shard:02d}/{i:04d}": f"no {i}" for shard in range(3) for i in range(2)}


@pytest.mark.parametrize("pattern", ["cc-{00..02}.tar", "cc-*.tar", "cc-00.tar::{d}/cc-{{01,02}}.tar"])
def test_patterns_of_paths(shards, pattern):
    url = f"{shards}/{pattern.replace('{d}', str(shards)).replace('{{', '{').replace('}}', '}')}"
    assert captions(WebDatasetSource(url)) == EXPECTED


def test_a_list_a_command_and_a_compressed_shard(shards):
    tar_of(shards / "cc-02.tar.gz", captioned(0, 1), "w:gz")
    urls = [f"file:{shards}/cc-00.tar", f"pipe:cat {shards}/cc-01.tar", f"{shards}/cc-02.tar.gz"]
    assert list(captions(WebDatasetSource(urls)).values()) == ["no 0", "no 1"] * 3


def test_captions_from_json(tmp_path):
    records = [{"caption": "one"}, {"text": "two", "license": "CC0"}, {"words": "three"}]
    members = [
        p for i, r in enumerate(records) for p in ((f"{i}.png", picture()), (f"{i}.json", json.dumps(r).encode()))
    ]
    path = tar_of(tmp_path / "a.tar", members)
    source = WebDatasetSource(str(path), license="mine", max_skipped=0.5)
    assert [(d.segments[0].text, d.license) for d in source] == [("one", "mine"), ("two", "CC0")]
    assert source.skipped.by_reason == {"no caption": 1}
    source = WebDatasetSource(str(path), caption_key="words", max_skipped=0.7)
    assert list(captions(source).values()) == ["two", "three"]


def test_our_own_documents_come_back(tmp_path):
    segments = (Segment("text", "a", ("b",)), Segment("image", picture(), suffix=".png"), Segment("text", "c"))
    document = Document("k", segments, "origin", "CC0", {"concept": "x", "style": "ink"})
    path = write_shard(tmp_path / "train-000000.tar", [document])
    (back,) = WebDatasetSource(str(path))
    assert back.key == "train-000000/k"
    assert (back.segments, back.source, back.license, back.fields) == (segments, "origin", "CC0", document.fields)
    assert read_shard(write_shard(tmp_path / "again.tar", [back])) == [back]


def test_hostile_and_odd_members_do_no_harm(tmp_path):
    members = [
        ("../../escape.png", picture()),
        ("../../escape.txt", b"x"),
        ("/etc/absolute.png", picture()),
        ("/etc/absolute.txt", b"x"),
        ("./good.PNG", picture()),
        ("./good.txt", b"good"),
        ("README", b"no sample"),
        ("__index__.json", b"{}"),
    ]
    source = WebDatasetSource(str(tar_of(tmp_path / "a.tar", members)), max_skipped=1.0)
    assert captions(source) == {"a/good": "good"}
    assert source.skipped.count == 2
    assert source.skipped.by_reason == {"its name cannot be a sample's key: it must be a relative name without dots": 2}


def test_broken_samples_are_skipped_by_reason(tmp_path):
    members = [
        *captioned(0),
        ("1.jpg", b"broken"),
        ("1.txt", b"x"),
        ("2.jpg", picture(kind="JPEG")),
        ("3.txt", b"x"),
        ("4.json", b'{"segments": [{"image": "0.png"}]}'),
        ("5.json", b"{"),
    ]
    source = WebDatasetSource(str(tar_of(tmp_path / "a.tar", members)), max_skipped=0.9)
    assert captions(source) == {"a/0000": "no 0"}
    assert source.skipped.count == 5
    assert set(source.skipped.by_reason) >= {"no caption", "no picture"}
    with pytest.raises(ValueError, match=r"5 of 6 samples cannot be used.*first is a/1: picture cannot be decoded"):
        list(WebDatasetSource(str(tmp_path / "a.tar")))


def test_a_missing_shard_is_named_at_once(tmp_path):
    tar_of(tmp_path / "cc-0.tar", captioned(0))
    with pytest.raises(FileNotFoundError, match=r"the shard .*cc-1\.tar is missing"):
        WebDatasetSource(f"{tmp_path}/cc-{{0..1}}.tar")
    with pytest.raises(FileNotFoundError, match=r"none-\*\.tar is missing"):
        WebDatasetSource(f"{tmp_path}/none-*.tar")


def test_a_file_that_is_no_tar_and_a_command_that_fails_are_named(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(ValueError, match=r"a\.tar: shard is no tar file or damaged at its beginning: .* 1 of 1 shards"):
        list(WebDatasetSource(str(tmp_path / "a.tar")))
    with pytest.raises(AddressError, match=r"^pipe:exit … cannot be read: its command ended with exit code 3$"):
        list(WebDatasetSource("pipe:exit 3"))
    tar_of(tmp_path / "b.tar", captioned(0))
    with pytest.raises(AddressError, match="ended with exit code 4"):
        list(WebDatasetSource(f"pipe:cat {tmp_path}/b.tar; exit 4"))
    with pytest.raises(AddressError, match=r"^nowhere://x\.tar cannot be read: Protocol not known: nowhere$"):
        list(WebDatasetSource("nowhere://x.tar"))
    with pytest.raises(ShardError, match=r"the shard .* cannot be read: Is a directory$"):
        list(WebDatasetSource(str(tmp_path)))
