"""Files and folders that are whole or absent: atomic writes, one run a folder, identities and provenance."""

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import filelock
from safetensors import SafetensorError

PARTIAL = ".partial"  # ends the hidden names of what is being written


class FolderBusyError(OSError):
    """Another run holds the folder."""


@contextlib.contextmanager
def plain_errors(path: Path | str) -> Iterator[None]:
    """Turn the system's errors on `path` into one line that says what to change; the type and errno stay."""
    try:
        yield
    except (OSError, SafetensorError) as fault:
        error = _of_the_system(fault)
        if error is None:
            raise
        advice = {
            errno.ENOSPC: "the disk is full: free some space, then run the same command again",
            errno.EDQUOT: "your disk quota is used up: free some space, then run the same command again",
            errno.EFBIG: "a file is larger than the file system or `ulimit -f` allows: choose another folder",
            errno.EACCES: "no permission: choose a folder that you may write",
            errno.EPERM: "no permission: choose a folder that you may write",
            errno.EROFS: "the file system is read-only: choose another folder",
        }.get(error.errno or 0)
        if advice is None:
            raise
        told = type(error)(f"{path} cannot be written: {advice}")
        told.errno = error.errno
        raise told from error


def _of_the_system(fault: OSError | SafetensorError) -> OSError | None:
    """The system's error; safetensors writes its number into a message of its own."""
    if isinstance(fault, OSError):
        return fault
    number = re.search(r"\(os error (\d+)\)", str(fault))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def make_folder(path: Path | str) -> Path:
    """The folder, made with its parents where it is not there. OSError, in one line, where it cannot be."""
    path = Path(path)
    try:
        with plain_errors(path):
            path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        if isinstance(error, FileExistsError) and not _is_other(path):
            return make_folder(path)  # it was there, and was gone when pathlib asked whether it is a folder
        file = next((there for there in (path, *path.parents) if there.is_file()), None)
        reason = f"{file} is a file" if file else (error.strerror or "")
        raise NotADirectoryError(f"the folder {path} cannot be made ({reason}): choose another one") from None
    return path


def _is_other(path: Path) -> bool:
    """Whether something else than a folder has this name."""
    try:
        return not stat.S_ISDIR(os.stat(path).st_mode)
    except FileNotFoundError:
        return path.is_symlink()


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")


def sync_folder(folder: Path) -> None:
    """Let the names in a folder reach the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_file(path: Path | str) -> Iterator[IO[bytes]]:
    """Yield a file beside `path` to write into; on success it is synced and renamed to `path`, else removed.

    `path` is whole or not there, also after kill -9.
    """
    path = Path(path)
    partial = _partial(path)
    make_folder(path.parent)
    with plain_errors(path):
        try:
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def atomic_write(path: Path | str, content: bytes | str | Callable[[IO[bytes]], Any]) -> Path:
    """Write a whole file atomically: the bytes, a text (UTF-8), or what a function writes into the open file."""
    with atomic_file(path) as file:
        if callable(content):
            content(file)
        else:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
    return Path(path)


def atomic_write_json(path: Path | str, value: object) -> Path:
    """Write `value` as readable JSON, atomically."""
    return atomic_write(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def check_free(path: Path | str) -> None:
    """FileExistsError, in one line, if a folder of this name would overwrite something. An empty one is free."""
    path = Path(path)
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise FileExistsError(f"{path} exists already: remove it or choose another name")


@contextlib.contextmanager
def publish_folder(path: Path | str, num_bytes: int = 0) -> Iterator[Path]:
    """Yield a hidden folder beside `path` to fill; on success it is synced and renamed to `path`, else removed.

    num_bytes: how much is going to be written, so that a disk without that room is told at once.

    OSError, in one line: FileExistsError for a `path` that is there and is no empty folder, FolderBusyError while
    another process fills it. What a killed one left is removed by the next call.
    """
    path = Path(path)
    check_free(path)
    absent = [parent for parent in path.parents if not parent.exists()]
    try:
        make_folder(path.parent)
        with _filling(path) as partial:
            _check_room(path, shutil.disk_usage(partial).free, num_bytes)
            with plain_errors(path):
                yield partial
                for file in sorted(partial.rglob("*")):
                    if file.is_dir():
                        sync_folder(file)
                    else:
                        with open(file, "rb") as handle:
                            os.fsync(handle.fileno())
                sync_folder(partial)
                check_free(path)  # which another may have made meanwhile
                os.replace(partial, path)
                sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # one that others use as well stays
            for parent in absent:
                parent.rmdir()
        raise


def _check_room(path: Path, free: int, num_bytes: int) -> None:
    """OSError if a disk with so much room cannot hold so much."""
    if free < num_bytes:
        room = f"{path} needs {num_bytes / 1e9:.2g} GB, and the disk has {free / 1e9:.2g} GB free"
        told = OSError(f"{room}: free some space, or choose another folder")
        told.errno = errno.ENOSPC
        raise told


@contextlib.contextmanager
def _filling(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` for this process alone; it is gone at the end, unless it was renamed."""
    partial = path.with_name(f".{path.name}{PARTIAL}")
    handle = _locked(partial, path)
    try:
        for left in partial.iterdir():  # by a process that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield partial
    finally:
        if _is_of(handle, partial):
            shutil.rmtree(partial, ignore_errors=True)
        os.close(handle)  # and the lock goes, as it does however the process ends


def _locked(folder: Path, path: Path) -> int:
    """A handle with the lock of a folder, which is made. FolderBusyError if another process has that."""
    while True:
        make_folder(folder)
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # it was renamed just now
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise FolderBusyError(f"another run is filling {path}: wait for it, or choose another folder") from None
        if _is_of(handle, folder):
            return handle
        os.close(handle)  # of the folder that was renamed or removed by who had the lock before


def _is_of(handle: int, path: Path) -> bool:
    """Whether a handle is of what has this name now."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def remove_partials(folder: Path | str) -> int:
    """Remove what killed runs left half written in `folder` (call it with the folder's lock held); the count."""
    left = list(Path(folder).glob(f".*{PARTIAL}"))
    for path in left:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return len(left)


class FolderLock:
    """`with FolderLock(folder):` one run in one folder at a time; a second one gets `FolderBusyError`, one line.

    The lock belongs to the process: it is free again when the process ends, however it ends.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self._lock: filelock.BaseFileLock | None = None

    def __enter__(self) -> "FolderLock":
        make_folder(self.folder)
        with plain_errors(self.folder):
            lock = filelock.FileLock(self.folder / ".lock")
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                message = f"another run is working in {self.folder}: wait for it, or choose another folder"
                raise FolderBusyError(message) from None
        self._lock = lock
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._lock is not None
        self._lock.release()


def identity(*parts: object) -> str:
    """SHA-256 (64 hex digits) of bytes, texts and JSON-able values; keys of mappings are sorted first."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, bytes):
            kind, data = b"b", part
        else:
            kind, data = b"j", json.dumps(part, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
        digest.update(kind + len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def file_sha256(path: Path | str) -> str:
    """SHA-256 (64 hex digits) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance() -> dict[str, Any]:
    """What made an artefact: revision of the code, versions, platform and time. No part of any identity."""
    versions: dict[str, str] = {"python": platform.python_version()}
    for name in ("omnigram", "torch", "transformers", "lightning", "sentencepiece", "numpy", "pillow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "revision": _revision(),
        "versions": versions,
        "platform": platform.platform(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _revision() -> str | None:
    """Commit of this checkout, with `+changes` when tracked files differ; None for an installed wheel."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None
