"""Atomic files and folders, identities and provenance."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from omnigram.data.artefact import (
    FolderBusyError,
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
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(NotADirectoryError, match=r"link cannot be made \(File exists\): choose another one$"):
        make_folder(tmp_path / "link")
    made = make_folder(tmp_path / "new" / "deep")
    assert make_folder(made).is_dir()
    reason = r"\(.*/file is a file\)" if place.startswith("file") else r"\(No such file or directory\)"
    with pytest.raises(NotADirectoryError, match=rf".*{place} cannot be made {reason}: choose another one$"):
        make_folder(tmp_path / place)
    with pytest.raises(NotADirectoryError, match="choose another one"):
        atomic_write(tmp_path / place / "a.txt", "x")
    with pytest.raises(NotADirectoryError, match="choose another one"):
        publish_folder(tmp_path / place / "run").__enter__()


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


def test_an_empty_folder_is_filled_and_nothing_else_is_overwritten(tmp_path):
    (tmp_path / "empty").mkdir()
    with publish_folder(tmp_path / "empty") as partial:
        (partial / "a").write_text("1")
    assert (tmp_path / "empty" / "a").read_text() == "1"
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link", "empty"):
        with pytest.raises(FileExistsError, match=f"{name} exists already: remove it"), publish_folder(tmp_path / name):
            pass


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_parents_that_were_made_go_again(tmp_path, fault):
    (tmp_path / "old").mkdir()
    with pytest.raises(fault), publish_folder(tmp_path / "old" / "deep" / "deeper" / "run"):
        raise fault
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]


def test_room_is_asked_for_first(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    with publish_folder(tmp_path / "fits", free // 2) as partial:
        (partial / "a").touch()
    with pytest.raises(OSError, match=r"large needs \S+ GB, and the disk has \S+ GB free: free some space") as caught:
        publish_folder(tmp_path / "deep" / "large", 4 * free).__enter__()
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["fits"]


def test_one_fills_a_folder_at_a_time(tmp_path):
    with publish_folder(tmp_path / "run") as partial:
        (partial / "a").touch()
        with pytest.raises(FolderBusyError, match=r"another run is filling .*run: wait for it, or choose another"):
            publish_folder(tmp_path / "run").__enter__()
        assert (partial / "a").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_of_several_at_once_one_wins_whole(tmp_path):
    """The folder is renamed away under those who wait for it; a lock is an open file's, so threads do as processes."""
    start = threading.Barrier(4)

    def fill(number):
        start.wait()
        while True:
            try:
                with publish_folder(tmp_path / str(number // 4)) as partial:
                    for name in "abc":
                        (partial / name).write_text(str(number))
                return "won"
            except FolderBusyError:
                continue
            except FileExistsError:
                return "lost"
            except Exception as fault:  # told below, where nobody waits for the others any more
                return repr(fault)

    rounds = 25
    with ThreadPoolExecutor(4) as runs:
        said = list(runs.map(fill, range(4 * rounds)))
    for number in range(rounds):
        assert sorted(said[4 * number : 4 * number + 4]) == ["lost", "lost", "lost", "won"]
        winner = 4 * number + said[4 * number : 4 * number + 4].index("won")
        assert {(tmp_path / str(number) / name).read_text() for name in "abc"} == {str(winner)}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(map(str, range(rounds)))


KILLED = """
import os, signal, sys
from omnigram.data.artefact import publish_folder
with publish_folder(sys.argv[1]) as partial:
    (partial / "half").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_kill_left_goes_with_the_next_run(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "run")], check=False)
    assert [path.name for path in tmp_path.iterdir()] == [".run.partial"]
    with publish_folder(tmp_path / "run") as partial:
        assert list(partial.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_all_of_a_folder_reaches_the_disk(tmp_path, monkeypatch):
    synced = set()
    monkeypatch.setattr("os.fsync", lambda handle: synced.add(os.fstat(handle).st_ino))
    with publish_folder(tmp_path / "run") as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "small.json").write_text("{}")
    there = [tmp_path, *(tmp_path / "run").rglob("*"), tmp_path / "run"]
    assert {path.stat().st_ino for path in there} == synced


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
