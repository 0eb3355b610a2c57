"""Check a data set, or one shard of it, against docs/data-format.md: every fault with its file and sample."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..tokenizers.vocabulary import Vocabulary
from . import pictures
from .archive import Found, archive_samples
from .artefact import file_sha256
from .document import Document, TokenDocument
from .record import DATASET, DOCUMENTS, FORMAT_VERSION, TOKENS, VOCABULARY
from .shards import ShardError, parse_sample


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, in which file, in which sample (empty when it is the file as a whole)."""

    file: str
    sample: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: sample {self.sample!r}: {self.reason}" if self.sample else f"{self.file}: {self.reason}"


@dataclass(slots=True)
class Report:
    """Counts of what was checked, and the faults."""

    shards: int = 0
    documents: int = 0
    token_documents: int = 0
    faults: list[Fault] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        return not self.faults

    def __str__(self) -> str:
        parts = [f"{self.shards} shards", f"{self.documents} documents", f"{self.token_documents} token documents"]
        return ", ".join(parts) + f": {len(self.faults)} faults" if self.faults else ", ".join(parts) + ": valid"


def validate(path: Path | str) -> Report:
    """Check a folder with its `dataset.json`, or one `.tar` file. FileNotFoundError when `path` is neither."""
    path = Path(path)
    if path.is_file():
        return _Check(path.parent, None).run([path], {})
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is neither a data set's folder nor a shard")
    listed: dict[str, dict[str, Any]] = {}
    faults: list[Fault] = []
    form = recorded = None
    try:
        record = json.loads((path / DATASET).read_text(encoding="utf-8"))
        form, recorded = record.get("format"), record.get("vocabulary")
        for split in record["splits"].values():
            listed |= {shard["file"]: shard for shard in split["shards"]}
        if form not in (DOCUMENTS, TOKENS) or record.get("format_version") != FORMAT_VERSION:
            reason = f"has format {form!r} {record.get('format_version')!r}; known are {DOCUMENTS} and {TOKENS} "
            reason += str(FORMAT_VERSION)
            faults.append(Fault(DATASET, "", reason))
    except FileNotFoundError:
        faults.append(Fault(DATASET, "", "is missing: the data set is not finished"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        faults.append(Fault(DATASET, "", f"cannot be read: {type(error).__name__}: {error}"))
    present = {file.name for file in path.glob("*.tar")}
    if listed:
        faults += [Fault(name, "", f"is not listed in {DATASET}") for name in sorted(present - listed.keys())]
        faults += [Fault(name, "", "is missing") for name in sorted(listed.keys() - present)]
    elif not present:
        faults.append(Fault(str(path), "", "holds no shards"))
    vocabulary = None
    if (path / VOCABULARY).exists():
        try:
            vocabulary = Vocabulary.from_json((path / VOCABULARY).read_text(encoding="utf-8"))
        except ValueError as error:
            faults.append(Fault(VOCABULARY, "", str(error)))
        else:
            if recorded is not None and vocabulary.identity != recorded:
                faults.append(Fault(VOCABULARY, "", f"is not the vocabulary that {DATASET} names"))
    elif form == TOKENS:
        faults.append(Fault(VOCABULARY, "", "is missing: the codes have no ids without it"))
    report = _Check(path, vocabulary).run([path / name for name in sorted(present)], listed)
    report.faults[:0] = faults
    return report


def _found(path: Path) -> Iterator[Found]:
    with open(path, "rb") as stream:
        yield from archive_samples(stream, str(path))


class _Check:
    def __init__(self, folder: Path, vocabulary: Vocabulary | None):
        self.folder, self.vocabulary = folder, vocabulary
        self.report = Report()
        self.keys: dict[str, str] = {}  # key -> shard that holds it

    def run(self, shards: list[Path], listed: dict[str, dict[str, Any]]) -> Report:
        for path in shards:
            self.report.shards += 1
            record = listed.get(path.name, {})
            if "sha256" in record and file_sha256(path) != record["sha256"]:
                self._fault(path, "", f"its sha256 is not the one in {DATASET}: it was changed or damaged")
            count = sum(1 for _ in self._documents(path))
            if record.get("documents", count) != count:
                self._fault(path, "", f"holds {count} good documents, {DATASET} says {record['documents']}")
        return self.report

    def _fault(self, path: Path, sample: str, reason: str) -> None:
        self.report.faults.append(Fault(path.name, sample, reason))

    def _documents(self, path: Path) -> Iterator[str]:
        """Keys of the faultless documents; faults go into the report."""
        try:
            for key, members, fault in _found(path):
                if key in self.keys:
                    self._fault(path, key, f"the key is used in {self.keys[key]} already")
                self.keys.setdefault(key, path.name)
                if fault:
                    self._fault(path, key, fault)
                    continue
                try:
                    # in a folder of tokens a sample without its codes is no document of the other form
                    of_tokens = self.vocabulary is not None
                    document = TokenDocument.from_sample(key, members) if of_tokens else parse_sample(key, members, "")
                    self._contents(document)
                except ValueError as error:
                    self._fault(path, key, str(error).removeprefix(f": sample {key!r}: "))
                else:
                    yield key
        except ShardError as error:
            self._fault(path, "", str(error).removeprefix(f"{path} "))
        except OSError as error:
            self._fault(path, "", f"cannot be read: {error.strerror or error}")

    def _contents(self, document: Document | TokenDocument) -> None:
        if isinstance(document, Document):
            self.report.documents += 1
            for segment in document.segments:
                if segment.modality == "image":
                    pictures.verify(segment.data)
            return
        self.report.token_documents += 1
        for index, segment in enumerate(document.segments):
            if self.vocabulary is None:
                continue
            try:
                size = self.vocabulary.range(segment.modality).size
            except (KeyError, ValueError):
                raise ValueError(f"{VOCABULARY} has no modality {segment.modality!r}") from None
            highest = max(int(np.max(codes)) for codes in (segment.codes, *segment.alternatives))
            if highest >= size:
                raise ValueError(f"segment {index} has the code {highest}, {segment.modality} has {size} codes")
