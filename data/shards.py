"""Shards: WebDataset tar files, written so that the same documents give the same bytes, read with clear errors.

A shard `<split>-%06d.tar` holds samples one after another. Writing can be stopped at any moment: finished shards carry
a record (`.records/<shard>.json`) by which the next run goes on behind them.
"""

import contextlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from .artefact import atomic_file, atomic_write_json, file_sha256, plain_errors
from .document import CODES_MEMBER, Document, Segment, TokenDocument, TokenSegment

RECORDS = ".records"
_MEMBER = re.compile(r"(?P<key>(?:.*/)?[^/.]+)\.(?P<extension>[^/]+)")


class Writable(Protocol):
    """What a shard takes: `Document` and `TokenDocument`."""

    @property
    def key(self) -> str: ...

    @property
    def segments(self) -> Sequence[Segment | TokenSegment]: ...

    def to_sample(self) -> dict[str, bytes]: ...


def shard_name(split: str, index: int) -> str:
    return f"{split}-{index:06d}.tar"


def _add(archive: tarfile.TarFile, document: Writable) -> None:
    for extension, data in document.to_sample().items():
        member = tarfile.TarInfo(f"{document.key}.{extension}")  # time 0 and no owner
        member.size, member.mode = len(data), 0o644
        archive.addfile(member, io.BytesIO(data))


def _archive(file: IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)


def write_shard(path: Path | str, documents: Iterable[Writable]) -> Path:
    """Write one tar file, atomically; its bytes depend on the documents alone."""
    with atomic_file(path) as file, _archive(file) as archive:
        for document in documents:
            _add(archive, document)
    return Path(path)


class ShardError(ValueError):
    """A shard that cannot be read, or a faulty sample in it; the message names both."""


class DamagedSample(ShardError):  # noqa: N818 - the sample, not the reading of it, is at fault
    """One sample that cannot be read, while the others of its shard can.

    Attributes:
        reason: what is wrong, in words that are the same for all such samples, so that they can be counted.
        shard, key: where it lies.
    """

    def __init__(self, reason: str, shard: str, key: str) -> None:
        super().__init__(f"{shard}: sample {key!r}: {reason}")
        self.reason, self.shard, self.key = reason, shard, key


class _StrictHeader(tarfile.TarInfo):
    """tarfile takes a header that is missing, cut or damaged for the end of the archive; here only the end mark is."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_StrictHeader":
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise
            raise tarfile.ReadError("no end mark" if not buf else str(error)) from None


def open_archive(path: Path | str | None = None, stream: IO[bytes] | None = None) -> tarfile.TarFile:
    """A tar on disk, or one that can only be read forwards; tarfile.ReadError when its beginning is damaged."""
    if stream is not None:
        return tarfile.open(fileobj=stream, mode="r|*", tarinfo=_StrictHeader)
    assert path is not None
    return tarfile.open(path, mode="r:", tarinfo=_StrictHeader)


def archive_samples(archive: tarfile.TarFile, name: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members by extension) of the samples of an archive of `open_archive`; ShardError when it is cut short.

    Neighbouring members with the same name up to the first dot of its last part are one sample. Folders, links and
    names that webdataset reserves (`__…__`) are passed over.
    """
    key, members = "", {}
    try:
        for member in archive:
            found = _MEMBER.fullmatch(member.name.removeprefix("./"))
            if not member.isreg() or found is None or member.name.startswith("__"):
                continue
            if found["key"] != key:
                if members:
                    yield key, members
                key, members = found["key"], {}
            extension = found["extension"].lower()
            if extension in members:
                raise ShardError(f"{name}: two members are named {key}.{extension}")
            file = archive.extractfile(member)
            assert file is not None
            members[extension] = file.read()
            if len(members[extension]) != member.size:
                raise tarfile.ReadError("unexpected end of data")
    except (tarfile.TarError, EOFError) as error:
        raise ShardError(f"{name} is cut short or damaged after sample {key!r}: {error}") from None
    if members:
        yield key, members


def read_samples(path: Path | str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members by extension) of a shard on disk."""
    path = Path(path)
    try:
        archive = open_archive(path)
    except FileNotFoundError:
        raise ShardError(f"{path} is missing: remove {path.parent}, then make the data set again") from None
    except tarfile.TarError as error:
        raise ShardError(f"{path} is cut short, damaged, or no tar file: {error}") from None
    with archive:
        yield from archive_samples(archive, str(path))


def parse_sample(key: str, members: dict[str, bytes], name: str) -> Document | TokenDocument:
    """The document of a sample of either form; ShardError names the shard `name` and the sample."""
    try:
        form = TokenDocument if CODES_MEMBER in members else Document
        return form.from_sample(key, members)
    except ValueError as error:
        raise ShardError(f"{name}: sample {key!r}: {error}") from None


def read_shard(path: Path | str) -> list[Document]:
    """The documents of a shard of text and pictures."""
    return [_of_form(Document, sample, path) for sample in read_samples(path)]


def read_token_shard(path: Path | str) -> list[TokenDocument]:
    """The token documents of a shard of codes."""
    return [_of_form(TokenDocument, sample, path) for sample in read_samples(path)]


D = TypeVar("D", Document, TokenDocument)


def _of_form(form: type[D], sample: tuple[str, dict[str, bytes]], path: Path | str) -> D:
    document = parse_sample(*sample, str(path))
    if not isinstance(document, form):
        raise ShardError(f"{path}: sample {sample[0]!r} is a {type(document).__name__}, expected a {form.__name__}")
    return document


class ShardWriter:
    """`with ShardWriter(…) as writer:` spreads documents over the shards of one split, holding none in memory.

    Finished shards survive a stop at any moment; an unfinished one is discarded. `request` identifies what is being
    made: finished shards of another request are not taken over. Leaving the `with` normally finishes the last shard.
    """

    def __init__(self, folder: Path | str, split: str, samples_per_shard: int, request: str):
        if samples_per_shard < 1:
            raise ValueError(f"data.samples_per_shard={samples_per_shard} must be at least 1")
        self.folder, self.split, self.samples_per_shard, self.request = Path(folder), split, samples_per_shard, request
        self.finished: list[dict[str, Any]] = []  # of each shard: file, documents, pictures, bytes, sha256
        self.done: set[str] = set()  # keys of the documents in finished shards found at the start
        self._keys: list[str] = []  # of the open shard, and its number of pictures
        self._pictures = 0
        self._opened = contextlib.ExitStack()
        while (record := self._record_of(len(self.finished))) is not None:
            self.done.update(record.pop("keys"))
            self.finished.append(record)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._opened.__exit__(kind, error, None)
        elif self._keys:
            self._finish_shard()

    def add(self, document: Writable) -> None:
        path = self.folder / shard_name(self.split, len(self.finished))
        if not self._keys:
            self._tar = self._opened.enter_context(_archive(self._opened.enter_context(atomic_file(path))))
        self._keys.append(document.key)
        self._pictures += sum(segment.modality == "image" for segment in document.segments)
        with plain_errors(path):
            _add(self._tar, document)
        if len(self._keys) == self.samples_per_shard:
            self._finish_shard()

    def _record_path(self, name: str) -> Path:
        return self.folder / RECORDS / f"{name}.json"

    def _finish_shard(self) -> None:
        name = shard_name(self.split, len(self.finished))
        path = self.folder / name
        self._opened.close()
        record = {
            "file": name,
            "documents": len(self._keys),
            "pictures": self._pictures,
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
        atomic_write_json(self._record_path(name), {**record, "request": self.request, "keys": self._keys})
        self.finished.append(record)
        self._keys, self._pictures = [], 0

    def _record_of(self, index: int) -> dict[str, Any] | None:
        name = shard_name(self.split, index)
        try:
            record = json.loads(self._record_path(name).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        path = self.folder / name
        if record.pop("request") != self.request or not path.exists() or file_sha256(path) != record["sha256"]:
            return None
        return record
