"""A stream from elsewhere that survives what may pass: http(s), a command, and whatever fsspec knows (s3, gs, hf, …).

A lost connection, a stall, 5xx and 429 are tried again after a pause that doubles; then the stream goes on where it
broke, by a range where the server has them, else from the start without the bytes that were read. What does not pass
(404, 403, a host that is not known) is told at once. urllib does not notice that a body is shorter than it was said to
be: the bytes are counted here.
"""

import email.utils
import http.client
import io
import random
import socket
import ssl
import time
import urllib.error
import warnings
from dataclasses import dataclass
from typing import Any

from .address_errors import AddressError, shown
from .connections import Connection, connector

LONGEST_PAUSE = 60.0  # seconds between two attempts
LONGEST_WAIT = 600.0  # seconds that a server may ask to wait
BUFFER = 1 << 20  # bytes
_PASSING_STATUS = (408, 425, 429)  # and every 5xx but 501


@dataclass(frozen=True)
class Network:
    """How patient a stream is.

    Attributes:
        attempts: in a row without a byte, before it is given up.
        timeout: seconds without a byte that count as a lost connection, of http(s); other protocols have their own.
        pause: seconds before the second attempt; it doubles up to a minute, and is drawn from half of it to all.
    """

    attempts: int = 10
    timeout: float = 60.0
    pause: float = 1.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or not self.timeout > 0 or not self.pause > 0:
            raise ValueError(
                f"attempts={self.attempts} must be 1 or more, timeout={self.timeout} and pause={self.pause} above 0"
            )

    def pause_after(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row; random, so that many readers do not return together."""
        return min(self.pause * 2.0 ** (failures - 1), LONGEST_PAUSE) * random.uniform(0.5, 1.0)


class RemoteStream(io.RawIOBase):
    """The bytes of an address from the first to the last, whatever happens in between.

    AddressError when that cannot be. `size` and `tag` (None where they are not known) are those of the first answer; a
    file that changes while it is read is an error.
    """

    def __init__(self, address: str, network: Network) -> None:
        self.address, self.network = address, network
        self._connect = connector(address, network.timeout)
        self._at = self._failures = 0
        self._connection: Connection | None = None
        self.size: int | None = None
        self.tag: str | None = None
        self._known = False  # whether it was open once
        self._read(0)  # an address that cannot be opened is told now

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._drop()
        super().close()

    def _read(self, most: int) -> bytes:
        while True:
            try:
                if self._connection is None:
                    self._open()
                assert self._connection is not None
                data = self._connection.read(most) if most else b""
                if most and not data and self.size is not None and self._at < self.size:
                    raise ConnectionError(f"the connection ended after {self._at} of {self.size} bytes")
            except AddressError:
                self._drop()
                raise
            except Exception as error:  # the readers of hf:// and others raise their own kinds
                self._drop()
                self._wait(error)
                continue
            self._at += len(data)
            if data:
                self._failures = 0
            return data

    def _open(self) -> None:
        """Connect at the present place; the bytes before it are left out where the server has no ranges."""
        connection, start = self._connect(self._at if self.size is not None else 0, self.tag)
        self._connection = connection
        if not self._known:
            self.size, self.tag, self._known = connection.size, connection.tag, True
        elif _differ(connection.size, self.size) or _differ(connection.tag, self.tag):
            raise AddressError(f"{shown(self.address)} changed while it was read: run the same command again")
        while start < self._at:
            passed = len(connection.read(min(self._at - start, BUFFER)))
            if not passed:
                raise ConnectionError(f"the connection ended after {start} bytes")
            start += passed

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _wait(self, error: Exception) -> None:
        """Pause before the next attempt; AddressError where there should be none."""
        self._failures += 1
        reason = _reason(error)
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        if not _passes(error, self._known):
            raise AddressError(f"{shown(self.address)} cannot be read: {reason}") from None
        if self._failures >= self.network.attempts:
            raise AddressError(
                f"{shown(self.address)} cannot be read: {reason}; given up after {self._failures} attempts: "
                "run the same command again when the network is back"
            ) from None
        seconds = _asked_to_wait(error) or self.network.pause_after(self._failures)
        warnings.warn(
            f"{shown(self.address)}: {reason}; at byte {self._at}, attempt {self._failures + 1} of "
            f"{self.network.attempts} in {seconds:.2g} s",
            stacklevel=2,
        )
        time.sleep(seconds)


def _differ(now: object, before: object) -> bool:
    """Whether two answers contradict each other; one that goes on with a file need not say all again."""
    return None not in (now, before) and now != before


def _passes(error: Exception, known: bool) -> bool:
    """Whether it may be otherwise in a while. known: whether the address was open before."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in _PASSING_STATUS or (error.code >= 500 and error.code != 501)
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return _passes(error.reason, known)
    if isinstance(error, socket.gaierror):
        return known or error.errno == socket.EAI_AGAIN
    lasting = (FileNotFoundError, PermissionError, IsADirectoryError, ImportError, ValueError, TypeError)
    lasting += (NotImplementedError, ssl.SSLCertVerificationError, http.client.InvalidURL, MemoryError)
    named = type(error).__name__  # of the libraries behind s3:// and hf://, which need not be installed
    return not isinstance(error, lasting) and "Credential" not in named and "NotFound" not in named


def _reason(error: Exception) -> str:
    """In a few words, on one line."""
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return _reason(error.reason)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended early"
    if isinstance(error, http.client.InvalidURL):  # its own words hold what may be a password
        return "it is written wrongly; a space is %20, and / ? # @ of a password are %2F %3F %23 %40"
    words = getattr(error, "strerror", None) or " ".join(str(error).split())
    return str(words) or type(error).__name__


def _asked_to_wait(error: Exception) -> float | None:
    """Seconds of a Retry-After, which is a number or a date."""
    value = error.headers.get("Retry-After") if isinstance(error, urllib.error.HTTPError) else None
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(seconds, LONGEST_WAIT) if seconds > 0 else None
