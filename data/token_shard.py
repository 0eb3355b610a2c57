"""A token shard as it is found: its documents by number, each of them or why it is damaged.

A fault that shows (a codes.npy that cannot be read, a cut) costs the samples it is in, and those behind a cut. One that
only the checksum shows may be anywhere: it costs the whole shard. So does another number of samples than dataset.json
says, for then nobody knows which is which.
"""

import hashlib
import re
import warnings
from collections import defaultdict
from functools import cached_property
from typing import IO, NamedTuple, cast

from .address_errors import AddressError
from .archive import CutShardError, archive_samples
from .document import TokenDocument
from .kinds import captioned_picture
from .remote import BUFFER


class Damage(NamedTuple):
    """Why a sample cannot be read, in few words that can be counted. The key is empty where it is not known."""

    reason: str
    key: str = ""


class TokenShard:
    """The documents of a shard in memory, and who belongs to which family."""

    def __init__(self, documents: list[TokenDocument | Damage]) -> None:
        self.documents = documents

    @property
    def damaged(self) -> bool:
        return any(isinstance(document, Damage) for document in self.documents)

    @cached_property
    def families(self) -> dict[str, list[int]]:
        """Family -> its captioned pictures, as numbers within the shard."""
        members: defaultdict[str, list[int]] = defaultdict(list)
        for number, document in enumerate(self.documents):
            if isinstance(document, Damage):
                continue
            family = document.fields.get("family")
            if family is not None and captioned_picture(document) is not None:
                members[family].append(number)
        return dict(members)


def read_shard_as_found(stream: IO[bytes], name: str, expected: int, sha256: str | None = None) -> TokenShard:
    """The `expected` documents of a token shard; damage is part of the answer, and warned of once.

    AddressError, and nothing else, when the stream is lost for good.
    """
    hashed = _Hashed(stream)
    documents: list[TokenDocument | Damage] = []
    behind = told = ""
    try:
        for key, members, fault in archive_samples(cast(IO[bytes], hashed), name):
            documents.append(Damage(fault, key) if fault else _document(key, members))
            if len(documents) > expected:
                break
        while hashed.read(BUFFER):  # what is behind the end mark counts for the checksum
            pass
    except CutShardError as error:
        behind, told = error.reason, f"{error.reason} {error.detail}"
    except AddressError:
        raise
    except OSError as error:
        behind = f"shard cannot be read: {error.strerror or type(error).__name__}"
    if len(documents) > expected or (len(documents) < expected and not behind):
        count = f"more than {expected}" if len(documents) > expected else str(len(documents))
        told = f"shard holds {count} documents, dataset.json says {expected}"
        documents = [Damage("shard has another number of documents than dataset.json says")] * expected
    documents += [Damage(behind)] * (expected - len(documents))
    shard = TokenShard(documents)
    if not shard.damaged and sha256 is not None and hashed.digest.hexdigest() != sha256:
        shard = TokenShard([Damage("checksum") for _ in documents])
        told = "shard has another sha256 than dataset.json says"
    lost = [document for document in shard.documents if isinstance(document, Damage)]
    if lost:
        reason = told or f"sample {lost[0].key!r}: {lost[0].reason}"
        warnings.warn(f"{name}: {len(lost)} of {expected} documents are damaged: {reason}", stacklevel=2)
    return shard


def _document(key: str, members: dict[str, bytes]) -> TokenDocument | Damage:
    try:
        return TokenDocument.from_sample(key, members)
    except ValueError as error:
        return Damage(countable(str(error), key), key)


def countable(fault: str, key: str) -> str:
    """A fault without what differs from sample to sample."""
    fault = fault.replace(f"{key}.", "").partition(": ")[0]
    return re.sub(r"segment \d+", "a segment", re.split(r" \d| must be \{", fault)[0])


class _Hashed:
    """A stream, with the SHA-256 of all that was read of it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.digest = stream, hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.digest.update(data)
        return data
