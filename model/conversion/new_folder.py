"""A folder that is whole or not there: it is filled beside its place, under a hidden name, and then renamed."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_folder(path: Path, num_bytes: int) -> Iterator[Path]:
    """Yield a folder to fill; on success it is synced and becomes `path`, else nothing of it stays.

    After a kill a hidden folder is left, which the next call for this `path` removes. OSError in one line if `path`
    exists and is not empty, if the disk has no room for `num_bytes`, or if another process is filling the same.
    """
    path = Path(os.path.abspath(path))
    check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    room = shutil.disk_usage(path.parent).free
    if room < num_bytes:
        raise OSError(
            errno.ENOSPC, f"the disk has {room / 1e9:.1f} GB free, {num_bytes / 1e9:.1f} GB are needed", str(path)
        )
    partial = path.with_name(f".{path.name}.partial")
    partial.mkdir(exist_ok=True)
    with _lock(partial, path):
        try:
            for left in partial.iterdir():  # of a run that was killed
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield partial
            for folder in (partial, *(file for file in partial.rglob("*") if file.is_dir())):
                _sync(folder)
            os.replace(partial, path)
            _sync(path.parent)
        except BaseException as fault:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(fault, OSError) and fault.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(fault.errno, "the disk is full: free some space, or choose another", str(path)) from None
            raise


def check_free(path: Path) -> None:
    """FileExistsError if something would be overwritten."""
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise FileExistsError(f"{path} exists already: remove it, or choose another folder")


@contextlib.contextmanager
def _lock(folder: Path, path: Path) -> Iterator[None]:
    """Of this process alone, and free again however the process ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(f"{path} is being written by another process: wait for it") from None
        yield
    finally:
        os.close(handle)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
