"""Addresses of files: a path, file://, http(s)://, s3:// gs:// hf:// and all else that fsspec knows, pipe:COMMAND."""

import io
import re
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import unquote, urlsplit, urlunsplit

from .address_errors import shown
from .artefact import identity
from .remote import BUFFER, Network, RemoteStream

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|pipe:")


def is_local(address: Path | str) -> bool:
    """Whether it is a path on this machine."""
    return isinstance(address, Path) or _SCHEME.match(address) is None or address.startswith("file:")


def local_path(address: Path | str) -> Path:
    """The path of a local address."""
    if isinstance(address, str) and address.startswith("file:"):
        rest = address.removeprefix("file:")
        return Path(unquote(urlsplit(address).path) if rest.startswith("//") else rest)
    return Path(address)


def join(address: Path | str, name: str) -> Path | str:
    """The address of a file of a folder; a signature behind the address of the folder stays behind it."""
    if is_local(address):
        return local_path(address) / name
    address = str(address)
    if not address.startswith(("http://", "https://")):
        return f"{address.rstrip('/')}/{name}"
    parts = urlsplit(address)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def open_address(address: Path | str, network: Network | None = None) -> IO[bytes]:
    """A stream to be read forwards. AddressError or OSError, in one line, when it cannot be opened."""
    if is_local(address):
        return open(local_path(address), "rb")
    return cast(IO[bytes], io.BufferedReader(RemoteStream(str(address), network or Network()), BUFFER))


def read_address(address: Path | str, most: int, network: Network | None = None) -> bytes:
    """All bytes of a small file. ValueError for one of more than `most`."""
    with open_address(address, network) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{name_of(address)} is larger than {most:,} bytes")
    return data


def name_of(address: Path | str) -> str:
    """As messages name it."""
    return shown(str(address))


def recorded(value: Any) -> Any:
    """JSON-able settings as they may be published: an address with a secret is its name and a hash of the whole."""
    if isinstance(value, dict):
        return {name: recorded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [recorded(part) for part in value]
    if not isinstance(value, str) or is_local(value) or shown(value) == value:
        return value
    return {"address": shown(value), "sha256": identity(value)}
