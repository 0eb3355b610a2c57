"""One attempt at an address from elsewhere: a web server, a shell command, or a file system that fsspec knows.

What goes wrong is told by the errors of the libraries behind it; whether there is another attempt is decided in
remote.py. A command has no other: AddressError when it fails.
"""

import http.client
import importlib.util
import os
import signal
import subprocess
import urllib.request
from collections.abc import Callable
from typing import Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

from .address_errors import WEB, AddressError, shown

_EXTRAS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}  # protocol -> package of the extra `cloud`


class Connection(Protocol):
    """One attempt: bytes of an address from some place on, as they come."""

    @property
    def size(self) -> int | None:
        """Bytes of the whole, where it is known."""
        ...

    @property
    def tag(self) -> str | None:
        """What changes when the contents do."""
        ...

    def read(self, most: int) -> bytes:
        """The next bytes, from one to `most`; none at the end, or where a connection ends early without an error.

        Whatever the library behind it raises; AddressError of a command that failed.
        """
        ...

    def close(self) -> None:
        """Let go of it, also before its end."""
        ...


Connector = Callable[[int, str | None], tuple[Connection, int]]  # (place, tag) -> the connection, and where it begins


def connector(address: str, timeout: float) -> Connector:
    """What connects to an address whenever it is called, and not before.

    It is given the byte to begin at and the tag of an earlier answer, or None. The connection begins at that byte, or
    at 0 where there are no ranges or the tag is another. Whatever the library behind it raises; ImportError with the
    command that installs it.

    Args:
        address: http(s)://, pipe:COMMAND, or what fsspec knows.
        timeout: seconds without a byte that count as a lost connection, of http(s) alone.
    """
    scheme = address.partition(":")[0].lower()  # RFC 3986, section 3.1
    if scheme == "pipe":
        return lambda place, tag: (_Command(address), 0)
    if scheme in WEB:
        return lambda place, tag: _web(address, place, tag, timeout)
    return lambda place, tag: (_Filed(address, place), place)


class _Web:
    """The body of an answer."""

    def __init__(self, answer: http.client.HTTPResponse, size: int | None, tag: str | None) -> None:
        self._answer, self.size, self.tag = answer, size, tag

    def read(self, most: int) -> bytes:
        return self._answer.read1(most)

    def close(self) -> None:
        self._answer.close()


def _web(address: str, place: int, tag: str | None, timeout: float) -> tuple[_Web, int]:
    headers = {"User-Agent": "omnigram", "Accept-Encoding": "identity"}
    if place:
        headers["Range"] = f"bytes={place}-"
        if tag is not None and not tag.startswith("W/"):  # else the whole is sent, and its tag tells that it changed
            headers["If-Range"] = tag
    opener, address = _authorised(address)
    answer = opener.open(urllib.request.Request(address, headers=headers), timeout=timeout)
    try:
        found = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if answer.status == 206:
            span, _, total = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
            if span.partition("-")[0] != str(place):
                raise ConnectionError(f"the server sent the bytes {span!r}, not those from {place} on")
            return _Web(answer, int(total) if total.isdecimal() else None, found), place
        length = answer.headers.get("Content-Length", "")
        return _Web(answer, int(length) if length.isdecimal() else None, found), 0
    except BaseException:
        answer.close()
        raise


def _authorised(address: str) -> tuple[urllib.request.OpenerDirector, str]:
    """What opens an address, and the address without the name and password, which go to its host alone."""
    try:
        parts = urlsplit(address)
        _ = parts.port  # ValueError where it is none
    except ValueError:
        raise http.client.InvalidURL from None
    user, _, host = parts.netloc.rpartition("@")
    if not user:
        return urllib.request.build_opener(), address
    name, _, password = user.partition(":")
    known = urllib.request.HTTPPasswordMgrWithPriorAuth()
    known.add_password(None, f"{parts.scheme}://{host}/", unquote(name), unquote(password), is_authenticated=True)
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(known))
    return opener, urlunsplit(parts._replace(netloc=host))


class _Filed:
    """A file of one of fsspec's file systems."""

    def __init__(self, address: str, place: int) -> None:
        import fsspec

        scheme = address.partition(":")[0]
        if scheme in _EXTRAS and importlib.util.find_spec(_EXTRAS[scheme]) is None:
            raise ImportError(f"{_EXTRAS[scheme]} is not installed: pip install 'omnigram[cloud]'")
        system, path = fsspec.url_to_fs(address)
        self.size, self.tag = None, None
        described = system.info(path)
        if described.get("type") == "directory":
            raise IsADirectoryError("Is a directory")
        if described.get("size") is not None:
            self.size = int(described["size"])
        tags = (described.get(name) for name in ("ETag", "etag", "mtime", "LastModified", "updated", "created"))
        self.tag = next((str(tag) for tag in tags if tag), None)
        self._file = system.open(path, "rb")
        if place:
            self._file.seek(place)

    def read(self, most: int) -> bytes:
        return self._file.read(most)

    def close(self) -> None:
        self._file.close()


class _Command:
    """What a shell command writes. It is never started again: it may have effects, and retries of its own."""

    size: int | None = None
    tag: str | None = None

    def __init__(self, address: str) -> None:
        self._process = subprocess.Popen(
            address.removeprefix("pipe:"), shell=True, stdout=subprocess.PIPE, start_new_session=True
        )
        self._address = address

    def read(self, most: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read1(most)  # type: ignore[attr-defined] - a buffered reader has it, which IO[bytes] does not say
        if not data and (code := self._process.wait()):
            raise AddressError(f"{shown(self._address)} cannot be read: its command ended with exit code {code}")
        return data

    def close(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()  # a command that goes on writing is ended by that
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # and what the shell has started
            self._process.wait()
