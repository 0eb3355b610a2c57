"""Shards are the same bytes every time; `make_shards` survives stops, full disks and second runs."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from made_pictures import data_config, fill_folder, picture, tar_of
from webdataset.tariterators import group_by_keys, tar_file_expander

from omnigram.data import artefact
from omnigram.data.artefact import FolderBusyError, FolderLock
from omnigram.data.document import Document, Segment, TokenDocument, TokenSegment
from omnigram.data.shards import ShardError, ShardWriter, read_shard, read_token_shard, write_shard
from omnigram.train.shards import make_shards


def document(i):
    return Document(f"{i:03d}", (Segment("text", f"text {i}"), Segment("image", b"PNG%d" % i, suffix=".png")), "s", "l")


def shard_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def test_a_shard_is_the_same_bytes_again_and_webdataset_reads_it(tmp_path):
    documents = [document(i) for i in range(5)]
    one, two = (write_shard(tmp_path / name, documents) for name in ("a.tar", "b.tar"))
    assert one.read_bytes() == two.read_bytes()
    assert read_shard(one) == documents
    with tarfile.open(one) as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in archive} == {(0, 0, 0, "", "", 0o644)}
    with open(one, "rb") as file:
        samples = list(group_by_keys(tar_file_expander([{"url": str(one), "stream": file}])))
    assert [(s["__key__"], s["1.png"]) for s in samples] == [(d.key, d.segments[1].data) for d in documents]


def test_keys_may_be_long_and_not_ascii(tmp_path):
    key = "ünïcode/" + "x" * 300
    written = Document(key, (Segment("text", "a"),), "", "")
    assert read_shard(write_shard(tmp_path / "a.tar", [written])) == [written]


def test_the_wrong_form_is_named(tmp_path):
    path = write_shard(tmp_path / "a.tar", [TokenDocument("k", (TokenSegment("text", np.arange(3)),))])
    assert read_token_shard(path)[0].key == "k"
    with pytest.raises(ShardError, match=r"a\.tar: sample 'k' is a TokenDocument, expected a Document"):
        read_shard(path)
    with pytest.raises(ShardError, match=r"b\.tar is missing"):
        read_shard(tmp_path / "b.tar")


def test_a_writer_resumes_behind_finished_shards(tmp_path):
    def fail_midway():
        with ShardWriter(tmp_path, "train", 2, "r") as writer:
            for i in range(5):
                writer.add(document(i))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_midway()
    assert list(shard_bytes(tmp_path)) == ["train-000000.tar", "train-000001.tar"]
    with ShardWriter(tmp_path, "train", 2, "another request") as writer:
        assert writer.done == set()
    (tmp_path / "train-000001.tar").write_bytes(b"damaged")
    with ShardWriter(tmp_path, "train", 2, "r") as writer:
        assert writer.done == {"000", "001"}
        for i in range(2, 5):
            writer.add(document(i))
    assert [(r["file"], r["documents"], r["pictures"]) for r in writer.finished] == [
        ("train-000000.tar", 2, 2),
        ("train-000001.tar", 2, 2),
        ("train-000002.tar", 1, 1),
    ]
    read = [d for record in writer.finished for d in read_shard(tmp_path / record["file"])]
    assert read == [document(i) for i in range(5)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return fill_folder(tmp_path_factory.mktemp("pictures"), 60)


@pytest.fixture(scope="module")
def made(pictures, tmp_path_factory):
    return make_shards(data_config(pictures, tmp_path_factory.mktemp("made") / "set"))


def test_a_data_set_is_complete(made):
    record = json.loads((made / "dataset.json").read_text())
    documents = {
        s: [d for sh in e["shards"] for d in read_shard(made / sh["file"])] for s, e in record["splits"].items()
    }
    assert {split: len(listed) for split, listed in documents.items()} == {
        split: entry["documents"] for split, entry in record["splits"].items()
    }
    keys = sorted(d.key for listed in documents.values() for d in listed)
    assert keys == [f"{i:03d}" for i in range(60)]
    assert all(
        artefact.file_sha256(made / s["file"]) == s["sha256"] for e in record["splits"].values() for s in e["shards"]
    )
    assert all(shard["documents"] <= 10 for entry in record["splits"].values() for shard in entry["shards"])
    assert {p.name for p in made.iterdir() if p.suffix == ".tar"} == {
        shard["file"] for entry in record["splits"].values() for shard in entry["shards"]
    }
    assert not (made / ".records").exists()


def test_the_same_data_set_is_the_same_bytes_and_identity(made, pictures, tmp_path):
    again = make_shards(data_config(pictures, tmp_path / "again"))
    assert shard_bytes(again) == shard_bytes(made)
    one, two = (json.loads((folder / "dataset.json").read_text()) for folder in (made, again))
    assert one["identity"] == two["identity"]


def test_a_finished_data_set_is_left_alone(made, pictures, monkeypatch):
    before = (made / "dataset.json").stat().st_mtime_ns
    monkeypatch.setattr("omnigram.train.shards.FolderLock", None)  # it is not even locked
    assert make_shards(data_config(pictures, made)) == made
    assert make_shards(data_config(pictures, made, name="renamed", source={"max_skipped": 0.5})) == made
    assert (made / "dataset.json").stat().st_mtime_ns == before


def test_another_configuration_is_refused_in_one_line(made, pictures):
    with pytest.raises(ValueError, match=r"another configuration \(splits\.val was 0\.2, is 0\.3\)") as caught:
        make_shards(data_config(pictures, made, splits={"val": 0.3}))
    assert "\n" not in str(caught.value)


def test_the_record_keeps_no_secret_of_an_address(tmp_path):
    pairs = [pair for i in range(30) for pair in ((f"{i}.png", picture()), (f"{i}.txt", b"no %d" % i))]
    tar_of(tmp_path / "a-00.tar", pairs)

    def config(secret):
        urls = f"pipe:TOKEN={secret} cat {tmp_path}/a-00.tar"
        config = data_config(tmp_path, tmp_path / "set")
        config.data.source = {"_target_": "omnigram.data.sources.webdataset.WebDatasetSource", "urls": urls}
        return config

    made = make_shards(config("tulip"))
    before = (made / "dataset.json").read_text()
    assert "a-00.tar" in before
    assert "tulip" not in before
    assert make_shards(config("tulip")) == made
    with pytest.raises(ValueError, match="another configuration") as caught:
        make_shards(config("rose"))
    assert not {"tulip", "rose"} & set(re.findall(r"\w+", str(caught.value)))


def test_a_folder_of_something_else_is_refused(pictures, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="holds files that are no data set"):
        make_shards(data_config(pictures, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="is a file"):
        make_shards(data_config(pictures, tmp_path / "thesis.tex"))
    (tmp_path / "dataset.json").write_text("[")
    with pytest.raises(ValueError, match="is no description of a data set"):
        make_shards(data_config(pictures, tmp_path))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"source": {"_target_": "omnigram.data.splits.Splits", "path": None}}, "cannot be made"),
        ({"source": {"_target_": "omnigram.data.sources.nothing.X"}}, "cannot be made"),
        ({"source": {"pth": "x"}}, "unexpected keyword argument 'pth'"),
        ({"source": {"path": "/nowhere"}}, r"data\.source\.path=/nowhere is no folder"),
        ({"splits": {"val": 3}}, r"data\.splits\.val=3"),
        ({"samples_per_shard": 0}, r"data\.samples_per_shard=0"),
        ({"splits": {"val": 0.5, "test": 0.499999}}, "no document for the split train"),
    ],
)
def test_mistakes_in_the_configuration_are_one_line(pictures, tmp_path, changes, reason):
    with pytest.raises((ValueError, OSError), match=reason) as caught:
        make_shards(data_config(pictures, tmp_path / "set", **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set" / "dataset.json").exists()


def test_two_runs_in_one_folder(pictures, tmp_path):
    with FolderLock(tmp_path / "set"), pytest.raises(FolderBusyError, match="another run is working in"):
        make_shards(data_config(pictures, tmp_path / "set"))
    make_shards(data_config(pictures, tmp_path / "set"))  # the lock is free again


@pytest.mark.parametrize("place", ["shard", "sync"])
def test_a_full_disk_is_said_and_the_run_goes_on_later(made, pictures, tmp_path, monkeypatch, place):
    calls = []

    def full(original):
        def write(*arguments, **options):
            calls.append(1)
            if len(calls) > 15:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*arguments, **options)

        return write

    config = data_config(pictures, tmp_path / "set")
    with monkeypatch.context() as patch:
        if place == "shard":
            patch.setattr(tarfile.TarFile, "addfile", full(tarfile.TarFile.addfile))
        else:
            patch.setattr(artefact.os, "fsync", full(os.fsync))
        with pytest.raises(OSError, match="cannot be written: the disk is full: free some space") as caught:
            make_shards(config)
    assert caught.value.errno == errno.ENOSPC
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "set").rglob("*.partial"))
    assert not (tmp_path / "set" / "dataset.json").exists()
    make_shards(config)
    assert shard_bytes(tmp_path / "set") == shard_bytes(made)


def test_a_folder_that_cannot_be_written_is_said(pictures, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)  # the tests may run as root, whom no mode stops
    with pytest.raises(PermissionError, match="set cannot be written: no permission: choose a folder"):
        make_shards(data_config(pictures, tmp_path / "set"))


CHILD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from made_pictures import data_config
from omnigram.data import pictures
from omnigram.train.shards import make_shards
verify = pictures.verify
pictures.verify = lambda *a: (time.sleep(0.03), verify(*a))
make_shards(data_config(sys.argv[2], sys.argv[3]))
"""


def test_after_kill_9_the_same_command_goes_on(made, pictures, tmp_path, monkeypatch):
    folder = tmp_path / "set"
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(pictures), str(folder)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 300
        while not (folder / ".records" / "train-000001.tar.json").exists():
            assert time.monotonic() < deadline
            assert child.poll() is None
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("train-*.tar")}
    assert len(kept) >= 2
    assert not (folder / "dataset.json").exists()
    assert list(folder.glob(".*.partial"))  # the shard it was writing
    make_shards(data_config(pictures, folder))
    assert shard_bytes(folder) == shard_bytes(made)
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept  # not written again
    assert not list(folder.rglob("*.partial"))
    one, two = (json.loads((f / "dataset.json").read_text()) for f in (made, folder))
    assert one["splits"] == two["splits"]


@pytest.mark.parametrize("record", ["{", "{}", "[]"])
def test_a_damaged_record_of_a_stopped_run_is_made_again(made, pictures, tmp_path, record):
    records = tmp_path / "set" / ".records"
    records.mkdir(parents=True)
    (tmp_path / "set" / "train-000000.tar").write_bytes(b"cut")
    (records / "train-000000.tar.json").write_text(record)
    make_shards(data_config(pictures, tmp_path / "set"))
    assert shard_bytes(tmp_path / "set") == shard_bytes(made)


def test_half_made_shards_of_another_configuration_are_discarded(made, pictures, tmp_path):
    folder = tmp_path / "set"
    with ShardWriter(folder, "train", 3, "another request") as writer:
        for i in range(40):
            writer.add(document(i))
    make_shards(data_config(pictures, folder))
    assert shard_bytes(folder) == shard_bytes(made)
