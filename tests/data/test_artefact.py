"""Atomic files and folders, identities and provenance."""

import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from omnigram.data.artefact import (
    atomic_file,
    atomic_write,
    atomic_write_json,
    identity,
    make_folder,
    provenance,
    publish_folder,
    remove_partials,
)


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = atomic_write(tmp_path / "deep" / "a.txt", "old")

    def fail_midway():
        with atomic_file(path) as file:
            file.write(b"new, but not all")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_midway()
    assert path.read_text() == "old"
    atomic_write(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
@pytest.mark.parametrize("by", [OSError, SafetensorError])
def test_a_full_disk_is_one_line_whoever_meets_it(tmp_path, number, by):
    said = os.strerror(number)
    fault = OSError(number, said) if by is OSError else SafetensorError(f"I/O error: {said} (os error {number})")

    def fail_midway():
        with publish_folder(tmp_path / "export") as partial:
            (partial / "half").touch()
            raise fault

    with pytest.raises(OSError, match=r"export cannot be written: (the disk is full|a file is larger)") as caught:
        fail_midway()
    assert caught.value.errno == number
    assert not list(tmp_path.iterdir())
    with pytest.raises(SafetensorError, match="header"), publish_folder(tmp_path / "export"):
        raise SafetensorError("a damaged header")


@pytest.mark.parametrize("place", ["file", "file/deep", "/proc/none/deep"])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, place):
    (tmp_path / "file").touch()
    made = make_folder(tmp_path / "new" / "deep")
    assert make_folder(made).is_dir()
    reason = r"\(.*/file is a file\)" if place.startswith("file") else r"\(No such file or directory\)"
    with pytest.raises(NotADirectoryError, match=rf".*{place} cannot be made {reason}: choose another one$"):
        make_folder(tmp_path / place)
    with pytest.raises(NotADirectoryError, match="choose another one"):
        atomic_write(tmp_path / place / "a.txt", "x")


def test_json_is_readable(tmp_path):
    path = atomic_write_json(tmp_path / "a.json", {"name": "Åland"})
    assert "Åland" in path.read_text(encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "Åland"}


def test_a_folder_is_published_whole(tmp_path):
    path = tmp_path / "run"

    def fail_midway():
        with publish_folder(path) as partial:
            (partial / "a").write_text("1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_midway()
    assert list(tmp_path.iterdir()) == []
    with publish_folder(path) as partial:
        (partial / "a").write_text("1")
    assert (path / "a").read_text() == "1"
    with pytest.raises(FileExistsError, match="exists already"), publish_folder(path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_only_what_is_half_written_is_removed(tmp_path):
    for name in (".a.1.partial", "a.partial", ".a"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".b.2.partial").mkdir()
    assert remove_partials(tmp_path) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a", "a.partial"]


@given(st.lists(st.binary(max_size=4) | st.text(st.characters(codec="utf-8"), max_size=4), max_size=4), st.data())
def test_the_identity_tells_parts_apart(parts, data):
    other = data.draw(st.permutations(parts))
    assert (identity(*parts) == identity(*other)) == (list(parts) == list(other))
    assert identity(*parts) != identity(*parts, b"")


def test_the_identity_sorts_keys_and_never_changes():
    assert identity({"a": 1, "b": [2, None]}) == identity({"b": [2, None], "a": 1})
    assert identity("omnigram", b"1") == "7e4ae62bc49093c8086cadbbc8faf1b2f96c9d53c0e170cc9b4f8e30b986ba7b"


def test_provenance_names_versions():
    record = provenance()
    assert {"python", "torch", "omnigram", "numpy"} <= set(record["versions"])
    assert json.dumps(record)
