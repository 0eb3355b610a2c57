"""A cache of whole shards on the local disk, for shards that lie elsewhere: checked, bounded, shared by processes.

A shard is stored under its SHA-256 where that is known, else under its address with what the server said of it. What is
stored is hashed while it comes and again whenever it is used, so that a damaged file is fetched anew. The files used
longest ago go first when there is no room. Files in use are locked: they never go.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import time
import warnings
from pathlib import Path
from typing import IO, Any

import filelock

from .address_errors import AddressError
from .addresses import name_of, open_address
from .artefact import PARTIAL, atomic_file, atomic_write_json, identity, make_folder
from .remote import BUFFER, Network, RemoteStream

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)
_LOCKS = ".locks"  # a few files, by which processes agree who fetches
_AGAIN_AFTER = 600.0  # seconds after which a full disk is tried again
_ABANDONED = 3600.0  # seconds after which a file that is not written any more belongs to a process that was killed


def default_folder() -> Path:
    """Where shards are kept when nothing else is said."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "omnigram" / "shards"


class ChecksumError(AddressError):
    """What is at an address is not what its data set says it is, fetched twice."""


class ShardCache:
    """Local copies of shards, at most `max_bytes` of them in `folder`.

    Where there is no room (the disk is full or not writable) shards are read from their address each time, with one
    warning. A shard that alone is larger than `max_bytes` is as well; the others are stored all the same.
    """

    def __init__(self, folder: Path | str | None = None, max_bytes: int = 100 * 10**9) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes={max_bytes} must be 1 or more")
        self.folder = default_folder() if folder is None else Path(folder).expanduser()
        self.max_bytes = max_bytes
        self._said: set[bool] = set()  # whether it was said of a shard, and of the whole cache
        self._too_large: set[str] = set()  # names under which shards would be stored
        self._full_until = 0.0  # on the monotonic clock: before that nothing new is stored

    def open(self, address: str, sha256: str | None = None, network: Network | None = None) -> IO[bytes]:
        """The whole shard as a file, which stays in the cache while it is open.

        AddressError when it cannot be had; ChecksumError when it is not that of `sha256`, fetched twice.
        """
        network = network or Network()
        try:
            file = self._stored(address, sha256, network)
        except AddressError:
            raise
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            file = None
            reason = error.strerror or os.strerror(error.errno or 0)
            if error.errno == errno.EFBIG:
                self._too_large.add(_name(address, sha256))
                self._say(reason, "shards as large as that", one=True)
            else:
                self._full_until = time.monotonic() + _AGAIN_AFTER
                self._say(reason, "shards", one=False)
        return open_address(address, network) if file is None else file

    def _say(self, reason: str, which: str, one: bool) -> None:
        if one not in self._said:
            self._said.add(one)
            warnings.warn(
                f"no room in the cache {self.folder} ({reason}): {which} are read from their address each time; "
                "free some space, or give the cache another folder or a higher limit",
                stacklevel=3,
            )

    def _stored(self, address: str, sha256: str | None, network: Network) -> IO[bytes] | None:
        """The file of the cache, fetched where it is not there; None if it was removed the moment it was stored."""
        name = _name(address, sha256)
        path = self.folder / f"{name}.tar"
        known = {} if sha256 or not path.exists() else _asked(address, network)
        file = _opened(path)  # without a lock: most often it is there
        if file is not None and self._is_whole(file, sha256, known):
            return file
        if time.monotonic() < self._full_until or name in self._too_large:
            return None
        make_folder(self.folder / _LOCKS)
        with filelock.FileLock(self.folder / _LOCKS / name[:2]):
            again = _opened(path)  # what another process has fetched meanwhile
            if again is not None and self._is_whole(again, sha256, known):
                return again
            if again is not None:
                warnings.warn(f"{path}, the copy of {name_of(address)}, is damaged or old: fetched anew", stacklevel=3)
            self._fetch(address, path, sha256, network)
            return _opened(path)

    def _is_whole(self, file: IO[bytes], sha256: str | None, known: dict[str, Any]) -> bool:
        """Whether a file of the cache holds what was stored, and that is still what the address has; else close it."""
        note = {} if sha256 else _note(Path(file.name))
        wanted = sha256 or note.get("sha256")
        changed = any(known[name] != note.get(name) for name in known)
        if not changed and _sha256(file) == wanted:
            file.seek(0)
            with contextlib.suppress(OSError):  # of another user
                os.utime(file.name)  # when it was used last; the time of reading itself is often not kept
            return True
        file.close()
        return False

    def _fetch(self, address: str, path: Path, sha256: str | None, network: Network) -> None:
        """Store the shard. OSError with a number of `_NO_ROOM` where there is none."""
        try:
            self._store(address, path, sha256, network)
        except ChecksumError as error:
            warnings.warn(f"{error}: fetched anew", stacklevel=4)
            try:
                self._store(address, path, sha256, network)
            except ChecksumError as again:
                raise ChecksumError(f"{again}, also when fetched again: it is damaged where it lies") from None

    def _store(self, address: str, path: Path, sha256: str | None, network: Network) -> None:
        with open_address(address, network) as stream:
            remote = getattr(stream, "raw", None)
            said = _described(remote.size, remote.tag) if isinstance(remote, RemoteStream) else _described(None, None)
            self.make_room(said["bytes"] or 0)
            digest, stored = hashlib.sha256(), 0
            with atomic_file(path) as file:
                while data := stream.read(BUFFER):
                    digest.update(data)
                    stored += len(data)
                    _check_fits(stored, self.max_bytes)
                    file.write(data)
                if sha256 and digest.hexdigest() != sha256:
                    raise ChecksumError(f"{name_of(address)} has another sha256 than its data set says")
        if not sha256:
            atomic_write_json(path.with_suffix(".json"), said | {"sha256": digest.hexdigest()})
        if said["bytes"] is None:
            self.make_room(0)

    def make_room(self, num_bytes: int) -> None:
        """Remove the files used longest ago until so many bytes fit. OSError when they do not."""
        _check_fits(num_bytes, self.max_bytes)
        found: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if path.name.endswith(PARTIAL) and time.time() - status.st_mtime > _ABANDONED:
                    path.unlink()
                elif path.suffix in (".tar", PARTIAL):
                    found.append((status.st_mtime, status.st_size, path))
        total = num_bytes + sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.max_bytes:
                break
            if path.suffix == ".tar" and _removed(path):
                total -= size
        if num_bytes and total > self.max_bytes:
            raise OSError(errno.ENOSPC, "all of it is in use")


def _name(address: str, sha256: str | None) -> str:
    return sha256 or identity(address)


def _check_fits(num_bytes: int, most: int) -> None:
    if num_bytes > most:
        raise OSError(errno.EFBIG, f"one shard is larger than the whole cache of {most / 1e9:.3g} GB")


def _removed(path: Path) -> bool:
    """Remove a file of the cache unless somebody reads it; whether it is gone."""
    with contextlib.suppress(OSError), open(path, "r+b") as file:  # NFS locks only what may be written
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        path.with_suffix(".json").unlink(missing_ok=True)
        return True
    return not path.exists()


def _opened(path: Path) -> IO[bytes] | None:
    """The file, locked against removal as long as it is open; None where it is not there."""
    while True:
        try:
            file = open(path, "rb")  # noqa: SIM115 - it is handed on
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # it was removed between the two


def _asked(address: str, network: Network) -> dict[str, Any]:
    """What the server says of a file now; nothing where it does not answer, so that the copy serves."""
    try:
        with RemoteStream(address, network) as remote:
            return _described(remote.size, remote.tag)
    except AddressError:
        return {}


def _described(size: int | None, tag: str | None) -> dict[str, Any]:
    return {"bytes": size, "tag": tag}


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while data := file.read(BUFFER):
        digest.update(data)
    return digest.hexdigest()


def _note(path: Path) -> dict[str, Any]:
    """What was noted when a file was stored; empty where that cannot be read."""
    try:
        note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}
