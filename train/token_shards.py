"""One input shard -> one token shard and its record: the unit of work of `make tokens`, whoever carries it out.

Shard and record are written whole or not at all, and the record last, so a worker may die at any moment: whoever is
given the shard next finds it done, or does it from its beginning, and the bytes are the same.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.artefact import atomic_write_json, file_sha256
from ..data.document import Document, TokenDocument
from ..data.encoding import DocumentEncoder
from ..data.record import DATASET
from ..data.shards import RECORDS, ShardError, parse_sample, read_samples, write_shard
from ..data.splits import in_share
from ..tokenizers.vocabulary import TEXT

Shard = Mapping[str, Any]  # as dataset.json lists it: file, documents, sha256
Advance = Callable[[int], object]  # hears how many more documents are done


@dataclass(frozen=True)
class ShardWork:
    """What is to be done with each shard of the folder `source`.

    folder: where the token shard goes, under the same name; request: the identity of what tokens are made from.
    share: of the concepts, whose documents are encoded; the others are left out.
    """

    source: Path
    folder: Path
    request: str
    share: float = 1.0

    def done(self, shard: Shard, encoder: DocumentEncoder, advance: Advance = lambda _: None) -> dict[str, Any]:
        """The record of a shard: kept where an earlier run finished it for the same request, else made.

        ShardError, in one line, for a shard or a sample that cannot be encoded; OSError for a full disk.
        """
        record = self._kept(shard["file"])
        if record is not None:
            advance(shard["documents"])
            return record
        path = self.source / shard["file"]
        try:
            documents = encoder.encode(self._documents(path, shard, advance), advance)
        except ShardError:
            raise
        except ValueError as error:
            raise ShardError(f"{path}: {error}") from None
        return self._write(shard["file"], documents)

    def _kept(self, file: str) -> dict[str, Any] | None:
        try:
            record = json.loads(self._record(file).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        path = self.folder / file
        if record.pop("request", None) != self.request or not path.exists() or file_sha256(path) != record["sha256"]:
            return None
        return record

    def _write(self, file: str, documents: Sequence[TokenDocument]) -> dict[str, Any]:
        path = write_shard(self.folder / file, documents)
        codes, grids = Counter[str](), Counter[str]()
        for document in documents:
            for segment in document.segments:
                codes[segment.modality] += segment.codes.size
                if segment.modality != TEXT:
                    grids["x".join(map(str, segment.codes.shape))] += 1
        record = {
            "file": file,
            "documents": len(documents),
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
            "codes": dict(sorted(codes.items())),
            "grids": dict(sorted(grids.items())),
        }
        atomic_write_json(self._record(file), {**record, "request": self.request})
        return record

    def _documents(self, path: Path, shard: Shard, advance: Advance) -> Iterator[Document]:
        for document in _documents(path, shard):
            if in_share(document, self.share):
                yield document
            else:
                advance(1)

    def _record(self, file: str) -> Path:
        return self.folder / RECORDS / f"{file}.json"


def each_shard(
    work: ShardWork, shards: Sequence[Shard], encoder: DocumentEncoder, advance: Advance
) -> Iterator[dict[str, Any]]:
    """The engine `local`: the records of all shards, one after the other in this process."""
    for shard in shards:
        yield work.done(shard, encoder, advance)


def _documents(path: Path, shard: Shard) -> Iterator[Document]:
    """The documents of an input shard, one at a time; ShardError when it is not the one that dataset.json describes."""
    if path.exists() and file_sha256(path) != shard["sha256"]:
        raise ShardError(f"{path} is not the shard that {path.parent / DATASET} describes: make the data set again")
    for key, members in read_samples(path):
        document = parse_sample(key, members, str(path))
        if not isinstance(document, Document):
            raise ShardError(f"{path}: sample {key!r} is tokens already")
        yield document
